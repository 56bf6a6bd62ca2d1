"""A FLUX LoRA in the two layouts that others read: diffusers/PEFT, which training writes, and kohya's.

diffusers/PEFT:  transformer.<module>.lora_A.weight (r, in), lora_B.weight (out, r); r and alpha in the file's metadata
kohya:           lora_unet_<module>.lora_down.weight, lora_up.weight, alpha; modules named as Black Forest Labs do,
                 where the attention's q, k and v, and in single blocks the MLP's input as well, are one matrix

A fused matrix takes its parts side by side: their A stacked, their B on the diagonal. So the rank there is the parts'
number times r, and alpha grows with it: alpha / rank, the strength, stays.

Source of the names: kohya-ss/sd-scripts `networks/lora_flux.py`, and what diffusers converts back when it loads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

import torch
from torch import Tensor

METADATA_KEY = "lora_adapter_metadata"  # where diffusers keeps r and alpha
PREFIX = "transformer."
DOUBLE = {  # in transformer_blocks.N, by kohya's name in double_blocks_N
    "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn_proj": ("attn.to_out.0",),
    "img_mlp_0": ("ff.net.0.proj",),
    "img_mlp_2": ("ff.net.2",),
    "img_mod_lin": ("norm1.linear",),
    "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn_proj": ("attn.to_add_out",),
    "txt_mlp_0": ("ff_context.net.0.proj",),
    "txt_mlp_2": ("ff_context.net.2",),
    "txt_mod_lin": ("norm1_context.linear",),
}
SINGLE = {  # in single_transformer_blocks.N, by kohya's name in single_blocks_N
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation_lin": ("norm.linear",),
}


def lora_alpha(metadata: Mapping[str, str] | None, rank: int) -> float:
    """alpha of a LoRA file by its metadata; `rank` where it names none, as diffusers reads it.

    ValueError where single modules have an alpha of their own.
    """
    settings = json.loads((metadata or {}).get(METADATA_KEY, "{}"))
    if settings.get(f"{PREFIX}alpha_pattern"):
        raise ValueError("this LoRA gives single modules an alpha of their own, which is not supported: train it anew")
    return float(settings.get(f"{PREFIX}lora_alpha", rank))


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
