"""Large weights, converted once: tensor by tensor into shards of another precision, kept below a cache folder.

tencent/SRPO is one float32 file of 47.6 GB and FLUX is run in bfloat16: without this, each start would read twice what
it needs. A folder of the cache belongs to one content (size, time of change and header of every file) and one
precision. Shards are written whole or not at all, the index last, so what is there is right: after a kill the
conversion goes on with the next shard. No more than one shard's tensor is in memory at a time.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from srpo.policies.headers import Entry, content_identity, read_header
from srpo.policies.places import WEIGHTS_NAME, Found, Pieces, find
from srpo.policies.tensors import is_finite, read_weight, shape_of
from srpo.runs.atomic import flock, remove_temporary, replaced, write_text

NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
SHARD_BYTES = 5 * 10**9  # as diffusers' own shards, more or less


@dataclass(frozen=True)
class Progress:
    """How far a conversion is."""

    new_bytes: int  # written since the one before
    done_bytes: int
    total_bytes: int


def cache_folder(part: str = "weights") -> Path:
    """Where converted weights are kept, or other things that can be made again: $SRPO_CACHE or the user's cache."""
    root = os.environ.get("SRPO_CACHE")
    root = root or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "srpo-studio"
    return Path(root) / part


def is_worth_converting(found: Found, dtype: torch.dtype) -> bool:
    """Whether a copy in that precision is shorter to read: whole weights, more than a shard, in a wider type."""
    return found.kind == "transformer" and found.dtype == "F32" and dtype.itemsize < 4 and found.num_bytes > SHARD_BYTES


def converted_folder(found: Found, dtype: torch.dtype, cache: Path | None = None) -> Path:
    """Where these weights in that precision belong, made or not."""
    return (cache or cache_folder()) / f"{content_identity(list(found.files))[:32]}-{NAMES[dtype].lower()}"


def is_converted(folder: Path) -> bool:
    return _index(folder).is_file()


def convert(
    place: str | Path,
    dtype: torch.dtype = torch.bfloat16,
    *,
    cache: Path | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Generator[Progress, None, Path]:
    """Progress after every tensor; returns the folder, which `load_transformer` reads.

    dtype: float32, float16 or bfloat16. What is there already is not made again. Closing the generator leaves whole
    shards behind. ValueError, one sentence, for weights that cannot be read, a number that is not finite in that
    precision, or too little room on the disk; OSError where the disk fails.
    """
    if dtype not in NAMES:
        raise ValueError(f"Weights are converted to float32, float16 or bfloat16, not to {dtype}.")
    found = find(place)
    recipe = found.recipe()
    folder = converted_folder(found, dtype, cache)
    total = sum(_num_bytes(pieces, dtype) for pieces in recipe.values())
    if not is_converted(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            yield from _fill(folder, found, recipe, dtype, shard_bytes)
    yield Progress(0, total, total)
    return folder


def _fill(
    folder: Path, found: Found, recipe: dict[str, Pieces], dtype: torch.dtype, shard_bytes: int
) -> Iterator[Progress]:
    """Writes what the folder lacks, the index last."""
    remove_temporary(folder)
    total = sum(_num_bytes(pieces, dtype) for pieces in recipe.values())
    shards = _shards(recipe, dtype, shard_bytes)
    names = [
        f"diffusion_pytorch_model-{number + 1:05}-of-{len(shards):05}.safetensors" for number in range(len(shards))
    ]
    layouts = [_layout(folder / name, shard, dtype) for name, shard in zip(names, shards, strict=True)]
    there = [_is_whole(folder / name, layout) for name, layout in zip(names, layouts, strict=True)]
    _require_room(folder, sum(_size(layout) for layout, whole in zip(layouts, there, strict=True) if not whole))
    done = 0
    for name, shard, layout, whole in zip(names, shards, layouts, there, strict=True):
        if whole:
            done += _size(layout)
        else:
            for written in _write_shard(folder / name, shard, layout, dtype):
                done += written
                yield Progress(written, done, total)
    config = found.files[0].parent / "config.json"
    if config.is_file() and '"_class_name"' in config.read_text(encoding="utf-8", errors="replace"):
        shutil.copyfile(config, folder / "config.json")
    weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_text(_index(folder), json.dumps(index, indent=2, sort_keys=True) + "\n")


def _index(folder: Path) -> Path:
    return folder / f"{WEIGHTS_NAME}.index.json"


def _num_bytes(pieces: Pieces, dtype: torch.dtype) -> int:
    return torch.Size(shape_of(pieces)).numel() * dtype.itemsize


def _shards(recipe: dict[str, Pieces], dtype: torch.dtype, shard_bytes: int) -> list[dict[str, Pieces]]:
    """The weights in their order in the files, in groups of at most that many bytes, one weight at the least."""
    ordered = sorted(recipe, key=lambda name: (recipe[name][0].entry.file, recipe[name][0].entry.start, name))
    shards: list[dict[str, Pieces]] = []
    room = 0
    for name in ordered:
        needed = _num_bytes(recipe[name], dtype)
        if not shards or needed > room:
            shards.append({})
            room = shard_bytes
        shards[-1][name] = recipe[name]
        room -= needed
    return shards


def _layout(file: Path, shard: dict[str, Pieces], dtype: torch.dtype) -> dict[str, Entry]:
    """Where each weight will lie, counted from the beginning of the data."""
    layout, end = {}, 0
    for name, pieces in shard.items():
        layout[name] = Entry(file, NAMES[dtype], shape_of(pieces), end, _num_bytes(pieces, dtype))
        end += layout[name].num_bytes
    return layout


def _size(layout: dict[str, Entry]) -> int:
    return sum(entry.num_bytes for entry in layout.values())


def _is_whole(file: Path, layout: dict[str, Entry]) -> bool:
    """Whether an earlier conversion has finished this shard."""
    try:
        there = read_header(file).entries
    except (OSError, ValueError):
        return False
    wanted = {name: (entry.dtype, entry.shape) for name, entry in layout.items()}
    return {name: (entry.dtype, entry.shape) for name, entry in there.items()} == wanted


def _require_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ValueError(
            f"The converted weights need {needed / 1e9:.1f} GB below {folder.parent} and {free / 1e9:.1f} GB are free; "
            "make room, or set SRPO_CACHE to a folder on another disk."
        )


def _write_shard(file: Path, shard: dict[str, Pieces], layout: dict[str, Entry], dtype: torch.dtype) -> Iterator[int]:
    """Bytes written, weight by weight. The file appears whole, after the last.

    Source: the format's description in huggingface/safetensors.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    for name, entry in layout.items():
        offsets = [entry.start, entry.start + entry.num_bytes]
        header[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": offsets}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8 bytes

    with replaced(file) as temporary, temporary.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        for name, pieces in shard.items():
            weight = read_weight(pieces, dtype).contiguous()
            if not is_finite(weight):
                raise ValueError(f"{name} is not finite in {dtype}: its file was not converted.")
            opened.write(weight.reshape(-1).view(torch.uint8).numpy().data)
            yield weight.nbytes


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Nobody else converts into the folder meanwhile; ValueError where somebody does."""
    with (folder / "lock").open("w") as opened:
        if not flock(opened.fileno(), exclusive=True):
            raise ValueError("These weights are being converted by another process; wait until it is done.")
        yield
