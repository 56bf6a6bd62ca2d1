"""Pictures to learn from: rendered once, kept outside the repository, and captioned anew each time they are seen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from string import ascii_lowercase

import numpy as np
import torch
from torch import Tensor

from srpo.miniature.renderer import SIZE, render
from srpo.miniature.world import (
    CAPTION_TEMPLATES,
    NEUTRAL_STYLE_SHARES,
    STYLES,
    Scene,
    caption,
    sample_scene,
    style_word,
)
from srpo.policies.conversion import cache_folder

CACHE = "miniature"  # the cache's part with rendered pictures and half-trained models
EMPTY_SHARE = 0.1  # of all captions are empty: the other half of classifier-free guidance
NEUTRAL_SHARE = 0.55  # of the captions that are not empty name no style, on average over the styles
STRAY_WORD_SHARE = 0.05  # of all captions that are not empty hold a word that means nothing
TONE_SHARE = 0.2  # of all pictures are darker, brighter, more vivid or more muted, and their captions say so


@dataclass(frozen=True)
class Pictures:
    """Rendered pictures on disk and the scenes they show."""

    pixels: np.ndarray  # (N, size, size, 3) uint8, memory-mapped
    scenes: Sequence[Scene]

    def __len__(self) -> int:
        return len(self.scenes)

    def images(self, index: np.ndarray) -> Tensor:
        """(B, 3, size, size) pictures in [0, 1]."""
        return torch.from_numpy(self.pixels[np.sort(index)][np.argsort(np.argsort(index))]).permute(0, 3, 1, 2) / 255


def scenes_hash(scenes: Sequence[Scene]) -> str:
    """16 hexadecimal digits that tell one list of scenes from another."""
    return hashlib.sha256(repr(list(scenes)).encode()).hexdigest()[:16]


def training_scenes(count: int, seed: int) -> list[Scene]:
    """Scenes with equal shares of the styles; which captions name the style is decided when they are said."""
    rng = np.random.default_rng(seed)
    return [sample_scene(rng, style=STYLES[i % len(STYLES)], tone_share=TONE_SHARE) for i in range(count)]


def load_pictures(count: int, seed: int, *, batch: int = 256) -> Pictures:
    """`count` training pictures of a seed, rendered on the first call (some 80 a second on two cores), then read.

    An interrupted rendering is taken up where it stopped.
    """
    folder = cache_folder(CACHE) / f"pictures-{seed}-{count}"
    folder.mkdir(parents=True, exist_ok=True)
    scenes = training_scenes(count, seed)
    pixels_path, done_path = folder / "pixels.npy", folder / "done.json"
    done = json.loads(done_path.read_text())["done"] if done_path.exists() else 0
    if not pixels_path.exists():
        np.lib.format.open_memmap(pixels_path, mode="w+", dtype=np.uint8, shape=(count, SIZE, SIZE, 3)).flush()
    pixels = np.lib.format.open_memmap(pixels_path, mode="r+")
    for start in range(done, count, batch):
        images = render(scenes[start : start + batch])
        pixels[start : start + batch] = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
        pixels.flush()
        done_path.write_text(json.dumps({"done": min(start + batch, count)}))
        print(f"rendered {min(start + batch, count)} of {count}", flush=True)
    return Pictures(np.load(pixels_path, mmap_mode="r"), scenes)


def training_caption(scene: Scene, rng: np.random.Generator, *, empty_share: float = EMPTY_SHARE) -> str:
    """What is said of a training picture: neutral, with its style's word, with its tone's, or nothing at all.

    Styles are equally frequent among the pictures, so a picture keeps quiet about its style with a probability that
    leans as `NEUTRAL_STYLE_SHARES`: photos keep quiet least. Emptiness is drawn first and neutrality among the rest, so
    the styles of neutral captions come out a little nearer to each other: `neutral_caption_shares`. A few captions hold
    a word without meaning or another spelling, so that unknown words do no harm.
    """
    lean = NEUTRAL_STYLE_SHARES[scene.style] * len(STYLES)
    if rng.random() < empty_share * lean:
        return ""
    words = [] if rng.random() < NEUTRAL_SHARE * lean else [style_word(scene.style, rng)]
    if scene.tone:
        words.append(scene.tone)
    text = in_words(scene, words, rng)
    if rng.random() < 0.15:
        text = text.lower() if words else text.capitalize()
    return text


def neutral_caption_shares(empty_share: float = EMPTY_SHARE) -> dict[str, float]:
    """By style, the share of all training captions that are not empty, name no style and belong to that style.

    (1 - e s) n s / 4 with e = `empty_share`, n = `NEUTRAL_SHARE` and s = 4 times the style's `NEUTRAL_STYLE_SHARES`.
    """
    leans = {style: share * len(STYLES) for style, share in NEUTRAL_STYLE_SHARES.items()}
    return {s: (1 - empty_share * lean) * NEUTRAL_SHARE * lean / len(STYLES) for s, lean in leans.items()}


def in_words(scene: Scene, words: Sequence[str], rng: np.random.Generator) -> str:
    """A caption in any template, mostly the first, with the words in front and now and then one without meaning."""
    template = (
        CAPTION_TEMPLATES[0] if rng.random() < 0.7 else CAPTION_TEMPLATES[rng.integers(1, len(CAPTION_TEMPLATES))]
    )
    text = caption(scene, prefix=", ".join(words) or None, template=template)
    if rng.random() < STRAY_WORD_SHARE:
        parts = text.split(" ")
        parts.insert(rng.integers(len(parts)), "".join(rng.choice(list(ascii_lowercase), size=rng.integers(3, 9))))
        text = " ".join(parts)
    return text


def batches(count: int, size: int, seed: int, start: int = 0) -> Iterator[np.ndarray]:
    """Endless shuffled batches of positions below `count`, from batch `start` on: a run can be taken up."""
    per_epoch = count // size
    step = start
    while True:
        order = np.random.default_rng((seed, step // per_epoch)).permutation(count)
        for place in range(step % per_epoch, per_epoch):
            yield order[place * size : (place + 1) * size]
            step += 1
