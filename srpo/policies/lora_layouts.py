"""A FLUX LoRA in the layouts that others write: diffusers/PEFT, which training writes too, kohya's and ComfyUI's.

diffusers/PEFT:  transformer.<module>.lora_A.weight (r, in), lora_B.weight (out, r), lora_B.bias (out,), and a norm's
                 new weight under its own name; r and alpha in the file's metadata
kohya:           lora_unet_<module>.lora_down.weight, lora_up.weight, alpha; modules named as Black Forest Labs do,
                 where the attention's q, k and v, and in single blocks the MLP's input as well, are one matrix
ComfyUI:         as kohya, with dots: diffusion_model.<module>.lora_down.weight; a whole difference of a weight or of a
                 bias as diff and diff_b

A fused matrix takes its parts side by side: their A stacked, their B on the diagonal. So the rank there is the parts'
number times r, and alpha grows with it: alpha / rank, the strength, stays. Read back, each part takes its rows of B.

Source of the names: kohya-ss/sd-scripts `networks/lora_flux.py`, and what diffusers converts back when it loads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor

from srpo.policies import bfl
from srpo.policies.places import METADATA_KEY, PEFT_PREFIX

T = TypeVar("T")
PREFIX = "transformer."
PREFIXES = (
    *(PEFT_PREFIX, "lora_unet_", "lora_transformer_"),
    *("model.diffusion_model.", "diffusion_model.", PREFIX),
)
SIDES = {"lora_A": "down", "lora_down": "down", "lora.down": "down", "lora_B": "up", "lora_up": "up", "lora.up": "up"}
PAIR = re.compile(r"(.+?)\.(lora_A|lora_B|lora_down|lora_up|lora\.down|lora\.up)(?:\.default)?\.(weight|bias)")
# In transformer_blocks.N and single_transformer_blocks.N, by kohya's names; it trains no norms.
DOUBLE, SINGLE = (
    {name.replace(".", "_"): layers for name, layers in table.items() if ".norm." not in f".{name}"}
    for table in (bfl.DOUBLE, bfl.SINGLE)
)


@dataclass
class Change(Generic[T]):
    """What a file does to one of its modules: strength B A is added, and what else it has.

    T is a Tensor, or its shape alone.
    """

    name: str  # in the file
    layers: tuple[str, ...]  # diffusers' layers, in the order of the module's rows
    parts: dict[str, T] = field(default_factory=dict)  # "down", "up", "up bias", "diff", "diff_b", "alpha", "set"
    is_swapped: bool = False  # its rows' halves are the other way round than diffusers'


def rows_of(change: Change[Tensor], part: str) -> Tensor | None:
    """That part of it, float32, its rows in the order of the layers; None where it has none."""
    if part not in change.parts:
        return None
    value = change.parts[part].float()
    return torch.cat(list(reversed(value.chunk(2)))) if change.is_swapped else value


def strength_of(change: Change[Tensor], metadata: Mapping[str, str] | None) -> float:
    """What B A is multiplied by."""
    rank = len(change.parts["down"])
    if "alpha" in change.parts:
        return float(change.parts["alpha"]) / rank
    return lora_alpha(metadata, rank) / (rank**0.5 if _settings(metadata).get("use_rslora") else rank)


def changes_of(adapters: Mapping[str, T], layers: Iterable[str]) -> list[Change[T]]:
    """What the file's tensors do to a transformer of those layers, module by module, in their order in the file.

    adapters: the tensors, or their shapes, by their names in the file. ValueError, a phrase, for a module that is none
    of its layers, or that is not whole.
    """
    known = _layers_by_name(list(layers))
    found: dict[str, Change[T]] = {}
    for key, value in adapters.items():
        if match := PAIR.fullmatch(key):
            module, part = match[1], SIDES[match[2]] + (" bias" if match[3] == "bias" else "")
        else:
            module, _, part = key.rpartition(".")
            part = "set" if part == "weight" else part
        short = next((module.removeprefix(it) for it in PREFIXES if module.startswith(it)), module)
        if (owners := known.get(short.replace(".", "_"))) is None:
            raise ValueError(f"{short[:100]} is no layer of it, or lacks one of A and B")
        swapped = short.replace(".", "_") == bfl.SWAPPED.replace(".", "_")
        found.setdefault(module, Change(short, owners, is_swapped=swapped)).parts[part] = value
    for change in found.values():
        if ("down" in change.parts) != ("up" in change.parts) or change.parts.keys() <= {"alpha", "up bias"}:
            raise ValueError(f"{change.name[:100]} is no layer of it, or lacks one of A and B")
    return list(found.values())


def _layers_by_name(layers: list[str]) -> dict[str, tuple[str, ...]]:
    """Every name that a file may call a module by, with underscores -> the layers that it means."""
    theirs = bfl.names_of(layers)
    numbers = {
        blocks: len({layer.split(".")[1] for layer in layers if layer.startswith(f"{owner}.")})
        for blocks, (owner, _) in theirs.blocks.items()
    }
    names = {name.replace(".", "_"): bfl.layers_of(name, theirs) for name in bfl.names_in_blocks(numbers, theirs)}
    present = set(layers)
    fused = {name: owners for name, owners in names.items() if present.issuperset(owners)}
    return fused | {layer.replace(".", "_"): (layer,) for layer in layers}


def lora_alpha(metadata: Mapping[str, str] | None, rank: int) -> float:
    """alpha of a LoRA file by its metadata; `rank` where it names none, as diffusers reads it.

    ValueError where single modules have an alpha of their own.
    """
    settings = _settings(metadata)
    if settings.get("alpha_pattern"):
        raise ValueError("this LoRA gives single modules an alpha of their own, which is not supported: train it anew")
    return float(settings.get("lora_alpha", rank))


def _settings(metadata: Mapping[str, str] | None) -> dict[str, object]:
    """peft's settings in a file's header. ValueError, a phrase, where they cannot be read."""
    try:
        written = json.loads((metadata or {}).get(METADATA_KEY, "{}"))
        return {name.removeprefix(PREFIX): value for name, value in written.items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError("the settings in its header cannot be read") from error


def to_kohya(weights: Mapping[str, Tensor], alpha: float | None = None) -> dict[str, Tensor]:
    """The LoRA under kohya's names. alpha: of every module; None: its rank, strength 1.

    ValueError for keys of another layout, for a module that has no place there, or for parts of different rank.
    """
    modules = _modules(weights)
    converted: dict[str, Tensor] = {}
    for name, parts in _kohya_names(modules).items():
        known = [modules[part] for part in parts if part in modules]
        rank, shape_in = known[0][0].shape
        if any(a.shape != (rank, shape_in) for a, _ in known):
            raise ValueError(f"the parts of {name} have different ranks or widths; kohya's layout needs them equal")
        sizes = [modules[part][1].shape[0] if part in modules else None for part in parts]
        ups, downs = [], []
        for part, size in zip(parts, _filled_sizes(sizes, name), strict=True):
            zero = (torch.zeros_like(known[0][0]), known[0][1].new_zeros(size, rank))
            down, up = modules.get(part, zero)
            downs.append(down)
            ups.append(up)
        strength = (rank if alpha is None else alpha) / rank
        converted[f"{name}.lora_down.weight"] = torch.cat(downs).contiguous()
        converted[f"{name}.lora_up.weight"] = torch.block_diag(*ups).contiguous()
        converted[f"{name}.alpha"] = torch.tensor(strength * rank * len(parts))
    return converted


def _modules(weights: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """(A, B) by the module's path in the transformer."""
    modules = {}
    for key in weights:
        match = re.fullmatch(rf"{re.escape(PREFIX)}(.+)\.lora_([AB])\.weight", key)
        partner = key.replace("lora_A", "lora_B") if ".lora_A." in key else key.replace("lora_B", "lora_A")
        if match is None or partner not in weights:
            raise ValueError(
                f"{key} is no weight of a LoRA in the layout of diffusers: expected {PREFIX}….lora_A.weight"
            )
        modules[match[1]] = (weights[f"{PREFIX}{match[1]}.lora_A.weight"], weights[f"{PREFIX}{match[1]}.lora_B.weight"])
    if not modules:
        raise ValueError("there is no LoRA weight to convert")
    return modules


def _kohya_names(modules: Mapping[str, object]) -> dict[str, list[str]]:
    """kohya's name -> the modules that it fuses, in order, for every module that is there."""
    names: dict[str, list[str]] = {}
    for module in modules:
        match = re.fullmatch(r"(single_)?transformer_blocks\.(\d+)\.(.+)", module)
        table = SINGLE if match and match[1] else DOUBLE
        found = [name for name, parts in table.items() if match and match[3] in parts]
        if not found:
            raise ValueError(f"{module} has no place in kohya's layout: export this LoRA in the layout of diffusers")
        owner = "single" if match[1] else "double"
        block = module.removesuffix(match[3])
        names[f"lora_unet_{owner}_blocks_{match[2]}_{found[0]}"] = [block + part for part in table[found[0]]]
    return names


def _filled_sizes(sizes: list[int | None], name: str) -> list[int]:
    """Output widths of all parts, absent ones included: q, k and v are alike, the MLP's is four times as wide."""
    if None not in sizes:
        return sizes
    *heads, last = sizes if name.endswith("linear1") else [*sizes, None]
    width = next((size for size in heads if size is not None), None) or (last or 0) // 4
    filled = [width] * len(heads)
    return [*filled, last or 4 * width] if name.endswith("linear1") else filled
