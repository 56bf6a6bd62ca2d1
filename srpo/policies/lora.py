"""LoRA on a FLUX transformer, by peft: adapters beside frozen linear layers, in the layout that diffusers reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from srpo.policies.lora_layouts import METADATA_KEY, PREFIX, lora_alpha

LORA_NAME = "pytorch_lora_weights.safetensors"  # where FluxPipeline.load_lora_weights looks
ADAPTER = ".default"  # peft's name for it, which files leave out


def add_lora(
    transformer: FluxTransformer2DModel, *, rank: int, alpha: float, targets: Sequence[str], seed: int
) -> None:
    """Freezes the transformer and adds adapters, float32, to its linear layers whose names end as `targets` say.

    They change nothing yet: A is Gaussian (std 1 / rank, from `seed` alone), B is zero. ValueError where no layer fits,
    or where the transformer has adapters already.
    """
    from peft import LoraConfig  # half a second to import, so only where it is asked for

    transformer.requires_grad_(False)
    transformer.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets)))
    generator = torch.Generator().manual_seed(seed)
    for name, weight in transformer.named_parameters():
        if ".lora_" in name:
            weight.data = weight.data.float()
        if ".lora_A." in name:
            weight.data.copy_(torch.randn(weight.shape, generator=generator) / rank)


def has_lora(transformer: torch.nn.Module) -> bool:
    return bool(getattr(transformer, "peft_config", None))


def lora_weights(transformer: torch.nn.Module) -> dict[str, Tensor]:
    """The adapters by diffusers' names, "transformer.<layer>.lora_A.weight": the tensors themselves, not copies."""
    return {
        PREFIX + name.replace(ADAPTER, ""): weight.detach()
        for name, weight in transformer.named_parameters()
        if ".lora_" in name
    }


def lora_metadata(transformer: torch.nn.Module) -> dict[str, str]:
    """The header of an adapters' file: without it a reader takes alpha for the rank."""
    settings = transformer.peft_config["default"].to_dict()
    plain = {PREFIX + name: sorted(value) if isinstance(value, set) else value for name, value in settings.items()}
    return {"format": "pt", METADATA_KEY: json.dumps(plain, sort_keys=True)}


def merge_lora(weights: dict[str, Tensor], adapters: Mapping[str, Tensor], metadata: Mapping[str, str] | None) -> None:
    """Adds alpha / rank B A to each layer's weight, in float32, rounded once; `weights` by the transformer's names.

    metadata: the header of the adapters' file. ValueError for an adapter that belongs to none of the weights, or does
    not fit it.
    """
    for layer in sorted({name.removeprefix(PREFIX).rsplit(".lora_", 1)[0] for name in adapters}):
        weight = weights.get(f"{layer}.weight")
        pair = [adapters.get(f"{PREFIX}{layer}.lora_{side}.weight") for side in "AB"]
        if weight is None or any(side is None for side in pair):
            raise ValueError(f"{layer} is no layer of it, or lacks one of A and B")
        down, up = (side.to(weight.device, torch.float32) for side in pair)
        if (len(up), *down.shape[1:]) != tuple(weight.shape) or up.shape[1:] != down.shape[:1]:
            raise ValueError(f"{layer} is {tuple(weight.shape)}, not {tuple(up.shape)} times {tuple(down.shape)}")
        strength = lora_alpha(metadata, len(down)) / len(down)
        weights[f"{layer}.weight"] = (weight.float() + strength * (up @ down)).to(weight.dtype)
