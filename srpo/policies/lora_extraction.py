"""A LoRA out of two whole checkpoints: for each layer the best matrix of a given rank for what the tuning changed.

D = tuned - base is cut off after its largest singular values (Eckart and Young): with U the left singular vectors of
the `rank` largest, B = U and A = U^T D, or the same from the right where D is higher than wide. The vectors come from
the eigenvectors of D D^T in float64, so a full rank gives D back to float32's rounding. Nothing is clamped.

Every layer takes part, the adaLNs as well. What is no matrix is kept whole: a bias's difference as lora_B.bias, a
norm's new weight under its own name; diffusers and peft read both. All adapters have the same rank, smaller ones with
rows of zeros, as readers that know no other alpha take it for the rank.

Layer by layer: the memory is that of one layer in float64, whatever the checkpoints' size and form.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from srpo.policies.lora_layouts import PREFIX
from srpo.policies.places import Pieces, find
from srpo.policies.tensors import is_finite, read_weight, shape_of


@dataclass(frozen=True)
class Layer:
    """What became of one layer."""

    name: str
    shape: tuple[int, ...]
    squares: float  # |D|^2, the sum of the squared changes of its weight
    relative: float  # |D| / |W|
    energy: float  # the share of |D|^2 that is kept; 1 for what is kept whole
    done: int
    total: int


def extract(
    base: str | Path, tuned: str | Path, rank: int, *, device: str | torch.device = "cpu"
) -> Generator[Layer, None, dict[str, Tensor]]:
    """A Layer after each; returns the LoRA in the layout of diffusers/PEFT, float32 on the CPU, strength 1.

    base, tuned: whole weights, in any form that `places.find` knows. Layers that did not change are left out.
    ValueError, one sentence, for a rank below 1, or two places that are not the same architecture.
    """
    if rank < 1:
        raise ValueError(f"The rank must be 1 or more, not {rank}.")
    ours, theirs = find(base).recipe(), find(tuned).recipe()
    _require_alike(Path(base), ours, Path(tuned), theirs)
    matrices = [name for name in ours if len(shape_of(ours[name])) == 2]
    rank = min(rank, max((min(shape_of(ours[name])) for name in matrices), default=1))
    names = sorted(name for name in ours if not name.endswith(".bias"))
    adapters: dict[str, Tensor] = {}
    for done, name in enumerate(names, start=1):
        layer = name.removesuffix(".weight")
        before = read_weight(ours[name], torch.float32)
        after = read_weight(theirs[name], torch.float32)
        difference = (after - before).to(device)
        if not is_finite(difference):
            raise ValueError(f"{name} is not finite in {tuned if is_finite(before) else base}: choose whole weights.")
        energy = 1.0
        if len(difference.shape) != 2:
            if difference.any():
                adapters[f"{PREFIX}{name}"] = after
        else:
            bias = _bias_difference(ours, theirs, f"{layer}.bias")
            if difference.any() or (bias is not None and bias.any()):
                down, up, energy = factors(difference, rank)
                adapters[f"{PREFIX}{layer}.lora_A.weight"] = down.cpu()
                adapters[f"{PREFIX}{layer}.lora_B.weight"] = up.cpu()
                if bias is not None:  # of all layers or of none: so peft reads it
                    adapters[f"{PREFIX}{layer}.lora_B.bias"] = bias
        squares = float(difference.double().square().sum())
        relative = squares**0.5 / max(float(before.norm()), 1e-12)
        yield Layer(layer, tuple(before.shape), squares, relative, energy, done, len(names))
    if not adapters:
        raise ValueError(f"{tuned} has the same weights as {base}: there is nothing to extract.")
    return adapters


def factors(difference: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """(A, B, kept share of the energy): B A is the nearest matrix of that rank; float32, zeros beyond the full rank.

    difference: (out, in). A: (rank, in), B: (out, rank).
    """
    exact = difference.double()
    is_wide = exact.shape[0] <= exact.shape[1]
    wide = exact if is_wide else exact.T
    _, vectors = torch.linalg.eigh(wide @ wide.T)  # ascending
    kept = vectors[:, -rank:].flip(1)
    rows = kept.T @ wide
    total = float(exact.square().sum())
    energy = float(rows.square().sum()) / total if total else 1.0
    missing = rank - kept.shape[1]
    kept = torch.nn.functional.pad(kept, (0, missing)).float()
    rows = torch.nn.functional.pad(rows, (0, 0, 0, missing)).float()
    down, up = (rows, kept) if is_wide else (kept.T, rows.T)
    return down.contiguous(), up.contiguous(), energy


def _bias_difference(ours: dict[str, Pieces], theirs: dict[str, Pieces], name: str) -> Tensor | None:
    """tuned - base of that bias, float32; None where the layer has none."""
    if name not in ours:
        return None
    return read_weight(theirs[name], torch.float32) - read_weight(ours[name], torch.float32)


def _require_alike(base: Path, ours: dict[str, Pieces], tuned: Path, theirs: dict[str, Pieces]) -> None:
    """Nothing where both have the same weights by name and shape; else ValueError that names the first other one."""
    if different := sorted(ours.keys() ^ theirs.keys()):
        raise ValueError(f"{tuned} and {base} are two architectures: only one of them has {different[0]}.")
    for name in ours:
        if shape_of(ours[name]) != shape_of(theirs[name]):
            shapes = f"{shape_of(theirs[name])} and {shape_of(ours[name])}"
            raise ValueError(f"{tuned} and {base} are two architectures: {name} is {shapes}.")
