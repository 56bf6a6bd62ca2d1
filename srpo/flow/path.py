"""The straight path between clean latents and noise, and what a velocity on it says.

    x_t = (1 - sigma) x0 + sigma noise        velocity = d x_t / d sigma = noise - x0

`sigma` in [0, 1] is the noise level, 1 = pure noise: a number, or one per image. Equation numbers are those of
arXiv 2509.06942. Everything here is affine in the latents, so gradients are exact.

Half precision is refused, not upcast: latents that were once rounded to bf16 have already lost what a recovery, which
divides by 1 - sigma, needs (3 % at sigma 0.95, 14 % at 0.99). A half-precision model's velocity may be upcast; its
adapter does that.

B batch, ... any further axes
"""

from __future__ import annotations

import torch
from torch import Tensor


def interpolate(x0: Tensor, noise: Tensor, sigma: float | Tensor) -> Tensor:
    """x_t (B, ...), the latents on the path at noise level `sigma` (eq. 3, with alpha = 1 - sigma).

    x0, noise (B, ...); sigma a number or (B,). ValueError for half precision.
    """
    require_full_precision(x0=x0, noise=noise)
    sigma = per_image(sigma, x0)
    return (1 - sigma) * x0 + sigma * noise


def velocity_between(x0: Tensor, noise: Tensor) -> Tensor:
    """The velocity (B, ...) of the path from `x0` to `noise`: what a flow model is trained to predict.

    ValueError for half precision.
    """
    require_full_precision(x0=x0, noise=noise)
    return noise - x0


def x0_from_velocity(x_t: Tensor, velocity: Tensor, sigma: float | Tensor) -> Tensor:
    """The clean latents (B, ...) at the end of a straight line from `x_t` along `velocity`.

    x_t, velocity (B, ...); sigma a number or (B,). ValueError for half precision.
    """
    require_full_precision(x_t=x_t, velocity=velocity)
    return x_t - per_image(sigma, x_t) * velocity


def noise_from_velocity(x_t: Tensor, velocity: Tensor, sigma: float | Tensor) -> Tensor:
    """The noise (B, ...) at the beginning of a straight line through `x_t` along `velocity`.

    x_t, velocity (B, ...); sigma a number or (B,). ValueError for half precision.
    """
    require_full_precision(x_t=x_t, velocity=velocity)
    return x_t + (1 - per_image(sigma, x_t)) * velocity


def per_image(value: float | Tensor, latents: Tensor) -> float | Tensor:
    """`value` shaped to multiply `latents`: a number as it is, (B,) as (B, 1, ..., 1).

    ValueError for a tensor that is neither () nor (B,), or for one in half precision.
    """
    if not isinstance(value, Tensor):
        return value
    require_full_precision(sigma=value)
    if value.ndim == 0:
        return value
    if value.shape != latents.shape[:1]:
        raise ValueError(
            f"One number per image is needed, but {tuple(value.shape)} came with latents {tuple(latents.shape)}."
        )
    return value.reshape(-1, *[1] * (latents.ndim - 1))


def require_full_precision(**tensors: Tensor) -> None:
    """Nothing where every tensor is float32 or float64; ValueError with the first other's name and type."""
    for name, tensor in tensors.items():
        if tensor.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"`{name}` must be float32, not {tensor.dtype}: keep latents in float32 throughout.")
