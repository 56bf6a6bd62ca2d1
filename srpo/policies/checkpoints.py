"""Weights of a FLUX transformer on disk, in the key layout of diffusers: what tencent/SRPO publishes.

A file is believed only after its header: keys, shapes and types are compared with the base model's before anything is
allocated. Tensors are then read, converted and placed one by one, without mapping the file: a 47 GB float32 file needs
the memory of the converted model and of one tensor. (The safetensors library maps the whole file, which a machine with
less memory refuses.)

A LoRA in the layout of diffusers is read as well, and merged into a copy of the base. Left out: fp8 and GGUF files,
LoRA files of other layouts, and the original layout of Black Forest Labs; each is refused by its name.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from srpo.policies.lora import merge_lora
from srpo.runs.atomic import write_file

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
LORA_KEY = re.compile(r"transformer\..+\.lora_[AB]\.weight")
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}  # by their names in a header
MAX_HEADER_BYTES = 100_000_000  # the format's own limit


def load_transformer(path: str | Path, base: FluxTransformer2DModel) -> FluxTransformer2DModel:
    """A new transformer of the base's architecture, precision and device with the weights at `path`, in eval mode.

    path: a pipeline folder, a transformer folder, or one safetensors file, in float32, float16 or bfloat16; a file may
    hold a LoRA for the base instead, in diffusers' layout, which is merged.
    ValueError where there are no such weights, or where they are not of the base's architecture.
    """
    path = Path(path)
    files = _find_weights(path)
    header = _read_headers(files)
    if all(LORA_KEY.fullmatch(name) for name in header):
        return _merged(path, header, base)
    _require_same_config(files[0].parent / "config.json", base)
    with torch.device("meta"):
        transformer = FluxTransformer2DModel.from_config(base.config)
    expected = {name: tuple(weight.shape) for name, weight in transformer.state_dict().items()}
    _require_same_layout(path, header, expected)
    weights = {name: _read(entry).to(base.device, base.dtype) for name, entry in header.items()}
    transformer.load_state_dict(weights, assign=True)
    return transformer.eval()


def _merged(path: Path, header: dict[str, _Entry], base: FluxTransformer2DModel) -> FluxTransformer2DModel:
    """A copy of the base with the LoRA of that file in its weights."""
    if foreign := [entry.dtype for entry in header.values() if entry.dtype not in DTYPES]:
        raise ValueError(f"{path} holds a LoRA as {foreign[0]}; choose one in float32, float16 or bfloat16.")
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    weights = {name: weight.clone() for name, weight in base.state_dict().items()}
    try:
        merge_lora(weights, {name: _read(entry) for name, entry in header.items()}, metadata)
    except ValueError as error:
        raise ValueError(f"{path} does not fit this model: {error}.") from error
    with torch.device("meta"):
        transformer = FluxTransformer2DModel.from_config(base.config)
    transformer.load_state_dict(weights, assign=True)
    return transformer.eval()


def save_transformer(transformer: FluxTransformer2DModel, path: str | Path, dtype: torch.dtype) -> Path:
    """The safetensors file at `path`, now complete on disk, with all weights in `dtype`.

    A crash leaves either the old file or the new one. `transformer.load_state_dict(load_file(path))` reads it.
    dtype: float32, float16 or bfloat16. ValueError for another, for another kind of file, or for a weight that is not
    finite in it.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"Weights are saved as .safetensors, not as {path.name!r}.")
    if dtype not in DTYPES.values():
        raise ValueError(f"Weights are saved in float32, float16 or bfloat16, not in {dtype}.")
    weights = {}
    for name, weight in transformer.state_dict().items():
        weights[name] = weight.detach().to("cpu", dtype).contiguous()
        if not weights[name].isfinite().all():
            raise ValueError(f"{name} is not finite in {dtype}: nothing was saved.")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, lambda temporary: save_file(weights, temporary, metadata={"format": "pt"}))
    return path


def _find_weights(path: Path) -> list[Path]:
    """The safetensors files behind `path`; ValueError where there are none, or where a shard is missing."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ValueError(f"There is nothing at {path}; choose a model folder or a .safetensors file.")
    folder = path / "transformer" if (path / "model_index.json").is_file() else path
    index = folder / f"{WEIGHTS_NAME}.index.json"
    if index.is_file():
        return _read_index(index)
    if (folder / WEIGHTS_NAME).is_file():
        return [folder / WEIGHTS_NAME]
    raise ValueError(f"{folder} holds no {WEIGHTS_NAME}; choose a pipeline or transformer folder, or a file.")


def _read_index(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is no index of weights; download the model again.") from error
    if foreign := [name for name in names if not isinstance(name, str) or Path(name).name != name]:
        raise ValueError(f"{index} points outside its folder, to {foreign[0]!r}; it is not to be trusted.")
    if missing := [name for name in names if not (index.parent / name).is_file()]:
        raise ValueError(f"{index.parent} lacks {len(missing)} of {len(names)} files, first {missing[0]}.")
    return [index.parent / name for name in names]


@dataclass(frozen=True)
class _Entry:
    """Where a tensor lies on disk."""

    file: Path
    dtype: str  # in the words of the format: F32, BF16, F8_E4M3 ...
    shape: tuple[int, ...]
    start: int  # bytes from the beginning of the file


def _read_headers(files: list[Path]) -> dict[str, _Entry]:
    """All tensors of the files by name; ValueError for a file that is damaged or no safetensors file."""
    entries: dict[str, _Entry] = {}
    for file in files:
        try:
            found = _read_header(file)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{file} is damaged, or no safetensors file; download or choose it again.") from error
        if repeated := sorted(entries.keys() & found.keys()):
            raise ValueError(f"{file} repeats {repeated[0]} of another file; download the model again.")
        entries |= found
    return entries


def _read_header(file: Path) -> dict[str, _Entry]:
    """The tensors of one file: 8 bytes of length, that many of JSON, then the data. Raises where they do not agree.

    Source: the format's description in huggingface/safetensors.
    """
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        data = 8 + length
        if not 0 < length <= MAX_HEADER_BYTES or data > (size := file.stat().st_size):
            raise ValueError(f"the header cannot be {length} bytes long")
        header = json.loads(opened.read(length))
    header.pop("__metadata__", None)
    entries, last = {}, 0
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        if not 0 <= begin <= end:
            raise ValueError(f"{name} cannot lie between {begin} and {end}")
        dtype, shape = entry["dtype"], tuple(entry["shape"])
        if dtype in DTYPES and end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
            raise ValueError(f"{name} has another length than its shape says")
        entries[name] = _Entry(file, dtype, shape, data + begin)
        last = max(last, end)
    if data + last != size:
        raise ValueError(f"the file should be {data + last} bytes long, not {size}")
    return entries


def _read(entry: _Entry) -> Tensor:
    """The tensor, in the type it is stored in. ValueError where the file has become shorter."""
    tensor = torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
    with entry.file.open("rb") as opened:
        opened.seek(entry.start)
        if opened.readinto(tensor.reshape(-1).view(torch.uint8).numpy()) != tensor.nbytes:
            raise ValueError(f"{entry.file} changed while it was read; load it again.")
    return tensor


def _require_same_config(config: Path, base: FluxTransformer2DModel) -> None:
    """Nothing where the base's settings lie beside the weights, or none of a model; ValueError for other settings.

    Most of them show in the shapes of the weights, but not all: the axes of the position embedding do not.
    """
    try:
        settings = json.loads(config.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except ValueError as error:
        raise ValueError(f"{config} cannot be read; download the model again.") from error
    if not isinstance(settings, dict) or "_class_name" not in settings:  # a run's settings, say
        return
    if settings["_class_name"] != type(base).__name__:
        raise ValueError(
            f"{config.parent} holds another model, {settings['_class_name']}; choose a {type(base).__name__}."
        )
    for name, ours in base.config.items():
        theirs = settings.get(name, ours)
        if not name.startswith("_") and theirs != (list(ours) if isinstance(ours, tuple) else ours):
            raise ValueError(f"{config.parent} does not fit this model: {name} is {theirs}, but {ours} is needed.")


def _require_same_layout(path: Path, header: dict[str, _Entry], expected: dict[str, tuple[int, ...]]) -> None:
    """Nothing where the header has exactly the expected keys and shapes, in a type we read; else ValueError."""
    if layout := _foreign_layout(header):
        raise ValueError(f"{path} holds {layout}; choose a transformer's weights in the layout of diffusers.")
    missing, extra = sorted(expected.keys() - header.keys()), sorted(header.keys() - expected.keys())
    if missing or extra:
        lacks = f"lacks {len(missing)} of {len(expected)} weights (first {missing[0]})" if missing else ""
        holds = f"holds {len(extra)} that do not belong to it (first {extra[0]})" if extra else ""
        differences = " and ".join(filter(None, (lacks, holds)))
        raise ValueError(f"{path} does not fit this model: it {differences}.")
    for name, entry in header.items():
        if entry.shape != expected[name]:
            raise ValueError(f"{path} does not fit this model: {name} is {entry.shape}, not {expected[name]}.")
        if entry.dtype not in DTYPES:
            raise ValueError(f"{path} holds {name} as {entry.dtype}; choose weights in float32, float16 or bfloat16.")


def _foreign_layout(names: dict[str, object]) -> str | None:
    """The kind of file these keys belong to, where it is a known one other than ours."""
    if any(".lora_" in name or name.startswith("lora_") for name in names):
        return "a LoRA"
    if any("double_blocks." in name for name in names):
        return "FLUX in the layout of Black Forest Labs"
    return None
