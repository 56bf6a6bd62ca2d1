"""Samplers: from noise to clean latents along a model's velocity, one step at a time.

They take the velocity as a callable and yield after every step, so a caller may look, stop or branch off between two.
They leave the gradient mode to the caller.

B batch, ... any further axes
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from srpo.flow.path import require_full_precision, x0_from_velocity

Velocity = Callable[[Tensor, float], Tensor]  # (x_t, sigma) -> velocity, the shape of x_t


@dataclass(frozen=True)
class Step:
    """One finished step of a sampler."""

    index: int  # counts from 0
    num_steps: int
    sigma: float  # where the step began
    sigma_next: float  # where it ended
    x_t: Tensor  # (B, ...) latents at sigma_next
    velocity: Tensor  # (B, ...) the model's, at the beginning of the step

    @property
    def x0(self) -> Tensor:
        """The clean latents (B, ...) that the model predicted in this step (eq. 2); costs one addition."""
        return x0_from_velocity(self.x_t, self.velocity, self.sigma_next)  # same line, read from its other end


def euler(velocity: Velocity, noise: Tensor, sigmas: Tensor | Sequence[float]) -> Iterator[Step]:
    """Yields one `Step` per pair of neighbours in `sigmas`: x_t + (sigma_next - sigma) velocity(x_t, sigma).

    noise (B, ...), the latents at sigmas[0], float32; sigmas (N + 1,), usually 1 ... 0; rising ones add noise back.
    The last step's `x_t` is the sample. Equal to diffusers' FlowMatchEulerDiscreteScheduler bit for bit.
    ValueError for half precision, fewer than two noise levels, or one outside [0, 1].
    """
    require_full_precision(noise=noise)
    levels = torch.as_tensor(sigmas, dtype=torch.float32).tolist()  # read once: no step waits for the device
    if len(levels) < 2 or not all(0 <= level <= 1 for level in levels):
        raise ValueError(f"A sampler needs two or more noise levels in [0, 1], not {levels}.")
    x_t = noise
    for index, (sigma, sigma_next) in enumerate(pairwise(levels)):
        v = velocity(x_t, sigma)
        x_t = x_t + (sigma_next - sigma) * v
        yield Step(index, len(levels) - 1, sigma, sigma_next, x_t, v)
