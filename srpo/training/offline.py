"""Pictures from a folder in the place of rollouts: images with captions, or latents that were stored from rollouts.

images   metadata.jsonl with `file_name` and `text` in each line (Hugging Face's imagefolder), or a .txt beside each
latents  what `python -m srpo.training.store` writes: latents-00000.safetensors ... with `x0` and `noise`, and
         prompts.json with the captions in the same order

N pictures, B pictures of an update, C latent channels
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from srpo.objectives.base import Rollout
from srpo.policies.base import Policy
from srpo.training.cache import TensorCache
from srpo.training.order import generator_of

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
CAPTION_FIELDS = ("text", "caption", "prompt")
MANIFEST = "prompts.json"
CACHE_BYTES = 2**31  # of encoded images, on the CPU: 4,000 of 720 x 720 pixels

Size = tuple[int, int]  # (height, width) in pixels


@dataclass(frozen=True)
class Picture:
    """One picture of the folder, and which size it is brought to."""

    caption: str
    path: Path  # of the image, or of the file of latents
    size: Size
    place: int = 0  # in the file of latents


class OfflinePictures:
    """The pictures of a folder as clean latents, encoded when first needed."""

    def __init__(self, pictures: Sequence[Picture]) -> None:
        self.pictures = list(pictures)
        self._cache = TensorCache(CACHE_BYTES)

    @classmethod
    def open(cls, folder: str | Path, sizes: Sequence[Size]) -> OfflinePictures:
        """The pictures of a folder; an image goes to the size of the nearest proportions.

        ValueError, one sentence, for no such folder, an image without a caption, a caption without its image, or what
        is not an image.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise ValueError(f"there is no folder {folder}: set offline.folder to one with images and captions")
        if (folder / MANIFEST).is_file():
            return cls(_stored_latents(folder, sizes))
        captions = _captions(folder)
        return cls([Picture(caption, path, nearest_size(_image_size(path), sizes)) for path, caption in captions])

    def latents(
        self, policy: Policy, seed: int, number: int, count: int, own: slice
    ) -> tuple[list[str], Tensor, Tensor | None]:
        """Captions, clean latents (B, C, H/8, W/8) and, of stored rollouts, their noise, of rollout `number`.

        All `count` pictures are of one size, drawn as often as there are such; no picture comes twice before all of
        that size have come. `own` is the part of them that is wanted.
        """
        generator = generator_of("offline", seed, number)
        first = self.pictures[int(torch.randint(len(self.pictures), (1,), generator=generator))]
        like = [picture for picture in self.pictures if picture.size == first.size]
        order = [
            place
            for _ in range(math.ceil(count / len(like)))
            for place in torch.randperm(len(like), generator=generator).tolist()
        ]
        chosen = [like[place] for place in order[:count]][own]
        stored = [self._stored(picture, policy) for picture in chosen]
        parts = torch.stack(stored).to(policy.device)  # (B, 1 or 2, C, H/8, W/8)
        return [picture.caption for picture in chosen], parts[:, 0], parts[:, 1] if parts.shape[1] == 2 else None

    def _stored(self, picture: Picture, policy: Policy) -> Tensor:
        """(1, C, H/8, W/8) x0 alone, or (2, C, H/8, W/8) x0 and noise, float32 on the CPU."""

        def make() -> Tensor:
            if picture.path.suffix == ".safetensors":
                file = load_file(picture.path)
                return torch.stack([file["x0"][picture.place], file["noise"][picture.place]])
            with torch.no_grad():
                return policy.encode_image(_pixels(picture).to(policy.device)).cpu()

        return self._cache.get((picture.path, picture.place), make)


def nearest_size(size: Size, sizes: Sequence[Size]) -> Size:
    """The one of `sizes` (height, width) whose proportions are nearest, as a ratio."""
    return min(sizes, key=lambda other: abs(math.log(other[0] / other[1]) - math.log(size[0] / size[1])))


def require_new(folder: Path) -> None:
    """ValueError where there is something already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty: choose a new folder")


def store_rollouts(rollouts: Iterable[Rollout], folder: str | Path) -> Path:
    """The folder, new, with the rollouts as offline pictures, one after the other. ValueError where it is not empty."""
    folder = Path(folder)
    require_new(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, rollout in enumerate(rollouts):
        name = f"latents-{number:05d}.safetensors"
        save_file({"x0": rollout.x0.cpu().contiguous(), "noise": rollout.noise.cpu().clone()}, folder / name)
        files.append({"file": name, "captions": list(rollout.prompts)})
    (folder / MANIFEST).write_text(json.dumps(files, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return folder


def _stored_latents(folder: Path, sizes: Sequence[Size]) -> list[Picture]:
    pictures = []
    try:
        for entry in json.loads((folder / MANIFEST).read_text(encoding="utf-8")):
            path = folder / entry["file"]
            with safe_open(path, framework="pt") as file:
                shape = file.get_slice("x0").get_shape()
            size = (8 * shape[-2], 8 * shape[-1])
            if size not in sizes or len(entry["captions"]) != shape[0]:
                raise ValueError(f"{path} holds {shape[0]} pictures of {size[0]} x {size[1]}, which do not belong here")
            pictures += [Picture(caption, path, size, place) for place, caption in enumerate(entry["captions"])]
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise ValueError(
            f"{folder} does not hold stored latents of this run's size {_words(sizes)}: {error}; store them anew"
        ) from error
    if not pictures:
        raise ValueError(f"{folder} holds no stored latents: store some with python -m srpo.training.store")
    return pictures


def _captions(folder: Path) -> list[tuple[Path, str]]:
    """Every image below the folder with its caption, in the order of their names."""
    images = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    metadata = folder / "metadata.jsonl"
    captions = _from_metadata(metadata) if metadata.is_file() else _from_text_files(folder)
    if without := [path for path in images if path not in captions]:
        raise ValueError(f"{len(without)} images of {folder} have no caption, first {without[0].name}: add it")
    if without := sorted(path for path in captions if path not in images):
        raise ValueError(f"{len(without)} captions of {folder} have no image, first that of {without[0].name}: add it")
    if not images:
        raise ValueError(f"{folder} holds no image ({', '.join(SUFFIXES)}): add some, each with a caption")
    return [(path, captions[path]) for path in images]


def _from_metadata(metadata: Path) -> dict[Path, str]:
    captions = {}
    for number, line in enumerate(metadata.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            caption = next(entry[name] for name in CAPTION_FIELDS if name in entry)
            path = metadata.parent / entry["file_name"]
        except (ValueError, KeyError, TypeError, StopIteration) as error:
            raise ValueError(
                f'line {number} of {metadata} must be like {{"file_name": "a.png", "text": "a caption"}}'
            ) from error
        if ".." in Path(entry["file_name"]).parts or Path(entry["file_name"]).is_absolute():
            raise ValueError(f"line {number} of {metadata} points outside its folder, to {entry['file_name']!r}")
        if not isinstance(caption, str) or not caption.strip():
            raise ValueError(f"line {number} of {metadata} has an empty caption: write one")
        captions[path] = caption.strip()
    return captions


def _from_text_files(folder: Path) -> dict[Path, str]:
    captions = {}
    for text in sorted(folder.rglob("*.txt")):
        images = [path for path in text.parent.glob(text.stem + ".*") if path.suffix.lower() in SUFFIXES]
        try:
            caption = " ".join(text.read_text(encoding="utf-8").split())
        except UnicodeDecodeError as error:
            raise ValueError(f"{text} is not UTF-8: save it as such") from error
        if not caption:
            raise ValueError(f"{text} is empty: write the caption of its image there")
        for path in images or [text.with_suffix(".png")]:
            captions[path] = caption
    return captions


def _image_size(path: Path) -> Size:
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is no image that can be read: replace or remove it") from error


def _pixels(picture: Picture) -> Tensor:
    """(1, 3, H, W) in [0, 1]: the image, resized to cover its size and cut in the middle."""
    height, width = picture.size
    try:
        with Image.open(picture.path) as opened:
            image = opened.convert("RGB")
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"{picture.path} is no image that can be read: replace or remove it") from error
    scale = max(height / image.height, width / image.width)
    covered = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    image = image.resize(covered, Image.Resampling.LANCZOS)
    left, top = (covered[0] - width) // 2, (covered[1] - height) // 2
    pixels = np.asarray(image.crop((left, top, left + width, top + height)), dtype=np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


def _words(sizes: Sequence[Size]) -> str:
    return ", ".join(f"{height} x {width}" for height, width in sizes)
