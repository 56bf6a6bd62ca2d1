"""LoRA on a FLUX transformer, by peft: adapters beside frozen linear layers, in the layout that diffusers reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from srpo.policies.lora_layouts import METADATA_KEY, PREFIX, Change, changes_of
from srpo.policies.places import LORA_NAME

__all__ = ["LORA_NAME", "add_lora", "has_lora", "lora_metadata", "lora_weights", "merge_lora"]

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


def merge_lora(
    weights: dict[str, Tensor],
    adapters: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None,
    *,
    weight: float = 1.0,
) -> None:
    """Adds alpha / rank B A to each layer's weight, in float32, rounded once; `weights` by the transformer's names.

    adapters: a file's tensors by its names, in any layout that `lora_layouts` knows; metadata: the file's header.
    weight: how much of it, 1 as it was trained. A norm's new weight is approached by that share.
    ValueError, a phrase, for an adapter that belongs to none of the weights, or does not fit it.
    """
    layers = [name.removesuffix(".weight") for name in weights if name.endswith(".weight")]
    for change in changes_of(adapters, layers):
        if "down" in change.parts:
            strength = weight * change.strength(metadata)
            _add_product(weights, change, strength)
            _add(weights, change, "bias", change.rows("up bias"), strength)
        _add(weights, change, "weight", change.rows("diff"), weight)
        _add(weights, change, "bias", change.rows("diff_b"), weight)
        if (target := change.rows("set")) is not None:
            now = weights[f"{change.layers[0]}.weight"]
            if target.shape != now.shape:
                raise ValueError(f"{change.name} is {tuple(now.shape)}, not {tuple(target.shape)}")
            _add(weights, change, "weight", target.to(now.device) - now.float(), weight)


def _add_product(weights: dict[str, Tensor], change: Change, strength: float) -> None:
    """Adds strength B A, one layer's rows at a time."""
    down, up = change.parts["down"].float(), change.rows("up")
    sizes = [len(weights[f"{layer}.weight"]) for layer in change.layers]
    width = weights[f"{change.layers[0]}.weight"].shape[-1]
    if down.ndim != 2 or up.ndim != 2 or (len(up), down.shape[1]) != (sum(sizes), width) or up.shape[1] != len(down):
        shape = (sum(sizes), width)
        raise ValueError(f"{change.name} is {shape}, not {tuple(up.shape)} times {tuple(down.shape)}")
    for layer, rows in zip(change.layers, up.split(sizes), strict=True):
        now = weights[f"{layer}.weight"]
        weights[f"{layer}.weight"] = _sum(now, rows.to(now.device) @ down.to(now.device), strength)


def _add(weights: dict[str, Tensor], change: Change, kind: str, difference: Tensor | None, share: float) -> None:
    """Adds that share of a whole difference, where there is one, to each layer's "weight" or "bias"."""
    if difference is None:
        return
    names = [f"{layer}.{kind}" for layer in change.layers]
    if missing := [name for name in names if name not in weights]:
        raise ValueError(f"{change.name} changes {missing[0]}, which is not there")
    sizes = [len(weights[name]) for name in names]
    if difference.shape != (sum(sizes), *weights[names[0]].shape[1:]):
        raise ValueError(f"{change.name} has {sum(sizes)} rows, not {tuple(difference.shape)}")
    for name, rows in zip(names, difference.split(sizes), strict=True):
        weights[name] = _sum(weights[name], rows.to(weights[name].device), share)


def _sum(now: Tensor, difference: Tensor, share: float) -> Tensor:
    return (now.float() + share * difference).to(now.dtype)
