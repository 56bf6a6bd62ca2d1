"""LoRA on a transformer, by peft: adapters beside frozen linear layers, in the layout that diffusers reads."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from srpo.loading import one_at_a_time
from srpo.policies.lora_layouts import METADATA_KEY, PREFIX, Change, changes_of, rows_of, strength_of
from srpo.policies.places import LORA_NAME

__all__ = ["LORA_NAME", "add_lora", "has_lora", "lora_metadata", "lora_weights", "merge_lora", "require_lora_fit"]

Shape = tuple[int, ...]
ADAPTER = ".default"  # peft's name for it, which files leave out


@one_at_a_time
def add_lora(transformer: torch.nn.Module, *, rank: int, alpha: float, targets: Sequence[str], seed: int) -> None:
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
            weight.data.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float32) / rank)


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
    require_lora_fit(
        {name: tuple(it.shape) for name, it in weights.items()},
        {name: tuple(it.shape) for name, it in adapters.items()},
    )
    for change in changes_of(adapters, _layers(weights)):
        if "down" in change.parts:
            strength = weight * strength_of(change, metadata)
            _add_product(weights, change, strength)
            _add(weights, change, "bias", rows_of(change, "up bias"), strength)
        _add(weights, change, "weight", rows_of(change, "diff"), weight)
        _add(weights, change, "bias", rows_of(change, "diff_b"), weight)
        if (target := rows_of(change, "set")) is not None:
            now = weights[f"{change.layers[0]}.weight"]
            _add(weights, change, "weight", target.to(now.device) - now.float(), weight)


def require_lora_fit(weights: Mapping[str, Shape], adapters: Mapping[str, Shape]) -> None:
    """Nothing where every adapter fits the weights it changes, by their shapes alone; else ValueError, a phrase."""
    for change in changes_of(adapters, _layers(weights)):
        matrix = _stacked(weights, change, "weight")
        if "down" in change.parts:
            down, up = change.parts["down"], change.parts["up"]
            fits = len(down) == len(up) == 2 and (up[0], down[1]) == matrix and up[1] == down[0]
            # A fused matrix has the ranks of its parts side by side; more would be no LoRA, but a way to fill memory.
            if not fits or not 0 < down[0] <= len(change.layers) * max(matrix):
                raise ValueError(f"{change.name} is {matrix}, not {up} times {down}")
        for part, kind in (("up bias", "bias"), ("diff_b", "bias"), ("diff", "weight"), ("set", "weight")):
            if part in change.parts and change.parts[part] != (whole := _stacked(weights, change, kind)):
                raise ValueError(f"{change.name} has {whole[0]} rows, not {change.parts[part]}")
        if math.prod(change.parts.get("alpha", ())) != 1:
            raise ValueError(f"{change.name} has an alpha that is no number")


def _layers(weights: Iterable[str]) -> list[str]:
    return [name.removesuffix(".weight") for name in weights if name.endswith(".weight")]


def _stacked(weights: Mapping[str, Shape], change: Change, kind: str) -> Shape:
    """The shape of the layers' "weight" or "bias", one below the other. ValueError, a phrase, where one has none."""
    names = [f"{layer}.{kind}" for layer in change.layers]
    if missing := [name for name in names if name not in weights]:
        raise ValueError(f"{change.name} changes {missing[0]}, which is not there")
    return (sum(weights[name][0] for name in names), *weights[names[0]][1:])


def _add_product(weights: dict[str, Tensor], change: Change[Tensor], strength: float) -> None:
    """Adds strength B A, one layer's rows at a time."""
    down, up = change.parts["down"].float(), rows_of(change, "up")
    for name, rows in _shared_out(weights, change, "weight", up):
        now = weights[name]
        weights[name] = _sum(now, rows.to(now.device) @ down.to(now.device), strength)


def _add(
    weights: dict[str, Tensor], change: Change[Tensor], kind: str, difference: Tensor | None, share: float
) -> None:
    """Adds that share of a whole difference, where there is one, to each layer's "weight" or "bias"."""
    if difference is not None:
        for name, rows in _shared_out(weights, change, kind, difference):
            weights[name] = _sum(weights[name], rows.to(weights[name].device), share)


def _shared_out(
    weights: Mapping[str, Tensor], change: Change[Tensor], kind: str, rows: Tensor
) -> Iterator[tuple[str, Tensor]]:
    """(a layer's "weight" or "bias", its rows), for each of the layers."""
    names = [f"{layer}.{kind}" for layer in change.layers]
    return zip(names, rows.split([len(weights[name]) for name in names]), strict=True)


def _sum(now: Tensor, difference: Tensor, share: float) -> Tensor:
    return (now.float() + share * difference).to(now.dtype)
