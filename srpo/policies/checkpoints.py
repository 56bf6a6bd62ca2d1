"""Weights of a transformer on disk, in every form they are published in (srpo.policies.places lists them).

A file is believed only after its header: keys, shapes and types are compared with the base model's before anything is
allocated. Tensors are then read, converted and placed one by one: a 47 GB float32 file needs the memory of the
converted model and of one tensor. A LoRA is merged into a copy of the base. GGUF's blocks stay as they are and are
unpacked at each use, by diffusers, so that such a model takes the memory of its file.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import Flux2Transformer2DModel, FluxTransformer2DModel, GGUFQuantizationConfig
from safetensors.torch import save_file
from torch import Tensor

from srpo.loading import one_at_a_time
from srpo.policies import tensors
from srpo.policies.blocks import BLOCK, pack
from srpo.policies.headers import QUANTISED
from srpo.policies.lora import merge_lora, require_lora_fit
from srpo.policies.places import WEIGHTS_NAME, Found, Piece, Pieces, find
from srpo.runs.atomic import write_file

__all__ = [
    "WEIGHTS_NAME",
    "load_transformer",
    "quantised",
    "read_weights",
    "require_fit",
    "save_transformer",
    "with_weights",
]

Transformer = FluxTransformer2DModel | Flux2Transformer2DModel
SAVED = (torch.float32, torch.float16, torch.bfloat16)


@one_at_a_time
def load_transformer(
    place: str | Path,
    base: Transformer,
    *,
    weight: float = 1.0,
    device: str | torch.device | None = None,
) -> Transformer:
    """A new transformer of the base's architecture and precision with the weights at `place`, in eval mode.

    place: a pipeline's, a transformer's or a run's folder, or one file, in any form that `places.find` knows.
    weight: of a LoRA; 1 as it was trained, 0 the base. Whole weights have none but 1.
    device: where it is to lie; the base's where it is None.
    ValueError, one sentence, where there are no such weights, or where they do not fit the base.
    """
    device = torch.device(base.device if device is None else device)
    found = find(place)
    require_fit(found, base, weight=weight)
    if found.is_quantised:
        return _in_blocks(_read_blocks(found.recipe(), base.dtype), base, device)
    return with_weights(base, dict(read_weights(found, base, weight=weight, device=device)))


def read_weights(
    found: Found, base: Transformer, *, weight: float = 1.0, device: str | torch.device = "cpu"
) -> Iterator[tuple[str, Tensor]]:
    """(name, weight in the base's precision on that device), one by one; they must fit the base.

    Those of a LoRA are merged into copies of the base's, all of them first. GGUF's blocks are unpacked.
    """
    if found.kind == "lora":
        yield from _merged(found, base, weight, device).items()
        return
    for name, pieces in found.recipe().items():
        yield name, tensors.read_weight(pieces, base.dtype).to(device)


@one_at_a_time
def with_weights(base: Transformer, weights: Mapping[str, Tensor]) -> Transformer:
    """A transformer of the base's architecture around these tensors themselves, in eval mode."""
    with torch.device("meta"):
        transformer = type(base).from_config(base.config)
    transformer.load_state_dict(weights, assign=True)
    return transformer.eval()


@one_at_a_time
def quantised(transformer: Transformer, kind: str, device: str | torch.device) -> Transformer:
    """A copy on that device whose blocks' matrices are packed in GGUF's `kind` ("Q8_0" or "Q4_0").

    What is outside of the repeated blocks, a few thousandths of all, stays as it is, as in published files.
    ValueError, one sentence, where the package gguf is not installed.
    """
    weights: dict[str, Tensor] = {}
    for name, weight in transformer.state_dict().items():
        if weight.ndim == 2 and "transformer_blocks." in name and weight.shape[1] % BLOCK == 0:
            weights[name] = _blocks(pack(weight.to(device), kind), kind)
        else:
            weights[name] = weight
    return _in_blocks(weights, transformer, torch.device(device))


def require_fit(found: Found, base: Transformer, *, weight: float = 1.0) -> None:
    """Nothing where these weights are of the base's architecture, by their headers; ValueError, one sentence, else."""
    expected = {name: tuple(it.shape) for name, it in base.state_dict().items()}
    if found.kind == "lora":
        with _named(found):
            require_lora_fit(expected, {name: entry.shape for name, entry in found.entries.items()})
        return
    if weight != 1:
        raise ValueError(
            f"{found.place} holds whole weights, not a LoRA, so it has no weight; leave out “@{weight:g}”."
        )
    _require_same_config(found.files[0].parent / "config.json", base)
    _require_same_layout(found.place, found.recipe(), expected)


@contextmanager
def _named(found: Found) -> Iterator[None]:
    """Turns a phrase about a LoRA into a sentence that names its file."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{found.place} does not fit this model: {error}.") from error


def _merged(found: Found, base: Transformer, weight: float, device: str | torch.device) -> dict[str, Tensor]:
    """Copies of the base's weights with the LoRA in them."""
    adapters = {name: tensors.read_weight((Piece.whole(entry),)) for name, entry in found.entries.items()}
    weights = {name: it.to(device, copy=True) for name, it in base.state_dict().items()}
    with _named(found):
        merge_lora(weights, adapters, found.metadata, weight=weight)
    return weights


def _read_blocks(recipe: Mapping[str, Pieces], dtype: torch.dtype) -> dict[str, Tensor]:
    """A GGUF file's weights: what lies in blocks as it is, the rest in that precision."""
    weights = {}
    for name, pieces in recipe.items():
        kind = pieces[0].entry.dtype
        packed = kind in QUANTISED
        weights[name] = _blocks(tensors.read_blocks(pieces), kind) if packed else tensors.read_weight(pieces, dtype)
    return weights


def _blocks(packed: Tensor, kind: str) -> Tensor:
    """diffusers' parameter of these bytes (rows, bytes per row)."""
    gguf = tensors.require_gguf()
    from diffusers.quantizers.gguf.utils import GGUFParameter  # imports gguf, which is optional

    return GGUFParameter(packed, quant_type=gguf.GGMLQuantizationType(QUANTISED[kind]))


def _in_blocks(weights: dict[str, Tensor], base: Transformer, device: torch.device) -> Transformer:
    """The model whose linear layers keep GGUF's blocks and compute in the base's precision."""
    with tempfile.TemporaryDirectory() as folder:  # diffusers takes a configuration by its folder alone
        base.save_config(folder)
        transformer = type(base).from_single_file(
            weights,
            config=folder,
            quantization_config=GGUFQuantizationConfig(compute_dtype=base.dtype),
            dtype=base.dtype,
            local_files_only=True,
            device=device,
        )
    return transformer.eval()


def save_transformer(transformer: Transformer, path: str | Path, dtype: torch.dtype) -> Path:
    """The safetensors file at `path`, now complete on disk, with all weights in `dtype`.

    A crash leaves either the old file or the new one. `transformer.load_state_dict(load_file(path))` reads it.
    dtype: float32, float16 or bfloat16. ValueError for another, for another kind of file, or for a weight that is not
    finite in it.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"Weights are saved as .safetensors, not as {path.name!r}.")
    if dtype not in SAVED:
        raise ValueError(f"Weights are saved in float32, float16 or bfloat16, not in {dtype}.")
    weights = {}
    for name, weight in transformer.state_dict().items():
        weights[name] = weight.detach().to("cpu", dtype).contiguous()
        if not weights[name].isfinite().all():
            raise ValueError(f"{name} is not finite in {dtype}: nothing was saved.")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, lambda temporary: save_file(weights, temporary, metadata={"format": "pt"}))
    return path


def _require_same_config(config: Path, base: Transformer) -> None:
    """Nothing where the base's settings lie beside the weights, or none of a model; ValueError for other settings.

    Most of them show in the shapes of the weights, but not all: the axes of the position embedding do not.
    """
    try:
        settings = json.loads(config.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except (ValueError, RecursionError) as error:
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


def _require_same_layout(place: Path, recipe: Mapping[str, Pieces], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Nothing where the recipe makes exactly the expected weights; else ValueError."""
    missing, extra = sorted(expected.keys() - recipe.keys()), sorted(recipe.keys() - expected.keys())
    if missing or extra:
        lacks = f"lacks {len(missing)} of {len(expected)} weights (first {missing[0]})" if missing else ""
        holds = f"holds {len(extra)} that do not belong to it (first {extra[0]})" if extra else ""
        differences = " and ".join(filter(None, (lacks, holds)))
        raise ValueError(f"{place} does not fit this model: it {differences}.")
    for name, pieces in recipe.items():
        if (shape := tensors.shape_of(pieces)) != expected[name]:
            raise ValueError(f"{place} does not fit this model: {name} is {shape}, not {expected[name]}.")
