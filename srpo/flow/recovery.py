"""Clean latents from noisy ones: by the model alone, by the known noise alone, and by Direct-Align, which uses both.

Equation numbers are those of arXiv 2509.06942; the symbols are those of `path.py`. Direct-Align lets the model cover
only the short step from `sigma` to `sigma_target` and removes the rest of the noise, which it injected itself, exactly.
So the model's error reaches the result multiplied by |sigma_target - sigma| / (1 - sigma_target) instead of by sigma.

The checks of noise levels given as tensors read them, which on an accelerator waits for it once per call.

B batch, ... any further axes
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from srpo.flow.path import per_image, require_full_precision, x0_from_velocity

Branch = Literal["denoise", "inversion"]

MAX_SIGMA_TARGET = 0.99  # a recovery divides by 1 - sigma_target

# Eq. 2, the one-step prediction of ReFL and DRaFT: the whole remaining way by the model. (x_t, velocity, sigma) -> x0
one_step_x0 = x0_from_velocity


def recover_exactly(x_t: Tensor, noise: Tensor, sigma: float | Tensor) -> Tensor:
    """x0 (B, ...) of latents whose noise is known: no model is needed (eq. 4).

    x_t, noise (B, ...); sigma a number or (B,), below 1. ValueError otherwise, or for half precision.
    """
    require_full_precision(x_t=x_t, noise=noise)
    _require("sigma", sigma, "below 1", lambda value: (value >= 0) & (value < 1))
    sigma = per_image(sigma, x_t)
    return (x_t - sigma * noise) / (1 - sigma)


def recover_x0(
    x_t: Tensor, velocity: Tensor, noise: Tensor, sigma: float | Tensor, sigma_target: float | Tensor
) -> Tensor:
    """x0 (B, ...) by Direct-Align: the model from `sigma` to `sigma_target`, then the known noise removed (eq. 5).

    sigma_target < sigma is the denoise branch, sigma_target > sigma the inversion branch: one formula, two directions.
    The derivative by `velocity` is (sigma_target - sigma) / (1 - sigma_target).
    x_t, velocity, noise (B, ...); sigma and sigma_target numbers or (B,), sigma_target in [0, 0.99].
    ValueError otherwise, or for half precision; `step_target` gives a target that fits.
    """
    require_full_precision(x_t=x_t, velocity=velocity, noise=noise)
    _require_between("sigma", sigma, 0, 1)
    _require_between("sigma_target", sigma_target, 0, MAX_SIGMA_TARGET)
    sigma, sigma_target = per_image(sigma, x_t), per_image(sigma_target, x_t)
    x_target = x_t + (sigma_target - sigma) * velocity
    return (x_target - sigma_target * noise) / (1 - sigma_target)


@dataclass(frozen=True)
class StepTarget:
    """Where a step of Direct-Align ends, and whether that is nearer than was asked for."""

    sigma: float | Tensor  # in [0, 0.99]; a number or (B,), as the sigma it was made from
    shortened: bool | Tensor  # True where the step had to be shortened


def step_target(sigma: float | Tensor, d_sigma: float | Tensor, branch: Branch) -> StepTarget:
    """The noise level `d_sigma` away from `sigma` in the branch's direction, kept in [0, 0.99], and if it was cut.

    sigma a number or (B,) in [0, 1], for the inversion branch in [0, 0.99]; d_sigma not negative.
    ValueError otherwise, for another branch than "denoise" or "inversion", and for a denoise step that would end above
    0.99: only a longer one could be kept in the range.
    """
    if branch not in ("denoise", "inversion"):
        raise ValueError(f'The branch must be "denoise" or "inversion", not {branch!r}.')
    _require_between("sigma", sigma, 0, 1 if branch == "denoise" else MAX_SIGMA_TARGET)
    _require_between("d_sigma", d_sigma, 0, 1)
    wanted = sigma - d_sigma if branch == "denoise" else sigma + d_sigma
    if branch == "denoise":
        _require_between("sigma - d_sigma", wanted, -1, MAX_SIGMA_TARGET)
    if isinstance(wanted, Tensor):
        target = wanted.clamp(0, MAX_SIGMA_TARGET)
        return StepTarget(target, wanted != target)
    target = min(max(wanted, 0.0), MAX_SIGMA_TARGET)
    return StepTarget(target, wanted != target)


def _require_between(name: str, value: float | Tensor, low: float, high: float) -> None:
    rounding = 1e-6  # a float32 0.99 is a little above 0.99
    _require(name, value, f"in [{low}, {high}]", lambda v: (v >= low - rounding) & (v <= high + rounding))


def _require(name: str, value: float | Tensor, expected: str, holds: Callable[[Tensor], Tensor]) -> None:
    """Nothing where `holds` is true of every number; else, and for NaN, ValueError with the first that is wrong."""
    values = torch.as_tensor(value).detach().reshape(-1)
    wrong = values[~holds(values)]
    if len(wrong):
        raise ValueError(f"`{name}` must be {expected}, not {wrong[0].item():g}.")
