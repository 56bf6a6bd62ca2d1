"""Clean pictures recovered from noisy ones, by every method at every noise level: Figure 3 of arXiv 2509.06942.

A picture's clean latents are mixed with a known noise. Each method then says what the clean picture was: the plain
one-step prediction by the model alone, Direct-Align by a short step of the model and the noise that it knows. All
methods at a level start from the same noisy latents and the same velocity, which is computed once.

B noises of one picture, C latent channels, h w latent height and width, H W height and width in pixels, S noise levels
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from srpo.flow.packing import PATCH
from srpo.flow.path import interpolate
from srpo.flow.recovery import MAX_SIGMA_TARGET, StepTarget, one_step_x0, recover_x0, step_target
from srpo.flow.schedule import shift_sigmas
from srpo.policies.base import Conditioning, Policy

Kind = Literal["noisy", "one-step", "denoise", "inversion"]

SIGMAS = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5)  # of the paper's Figure 3, from 95 % noise to 50 %
D_SIGMAS = (0.075, 0.025)
TOKENS_PER_FORWARD = 512  # image tokens up to which a batch is faster than one picture after the other


@dataclass(frozen=True)
class Method:
    """A way from noisy latents to a clean picture: one row of the grid."""

    kind: Kind
    d_sigma: float = 0.0  # length of the model's step, of the two branches of Direct-Align

    @property
    def name(self) -> str:
        if self.kind == "noisy":
            return "Noisy input"
        if self.kind == "one-step":
            return "One-step prediction"
        branch = "Direct-Align" if self.kind == "denoise" else "Direct-Align, inversion"
        return f"{branch}, Δσ {self.d_sigma:g}"

    def target(self, sigma: float) -> StepTarget | None:
        """Where the model's step from `sigma` ends, and if it was shortened; None where no step in its direction fits.

        Above 0.99 no step leads to more noise, and a denoise step may be too short to come down to 0.99.
        """
        if self.kind == "noisy":
            return StepTarget(sigma, False)
        if self.kind == "one-step":
            return StepTarget(0.0, False)
        nearest = sigma if self.kind == "inversion" else sigma - self.d_sigma
        return step_target(sigma, self.d_sigma, self.kind) if nearest <= MAX_SIGMA_TARGET else None

    def weight(self, sigma: float, sigma_target: float) -> float:
        """|d x0 / d velocity|: by how much the model's error, and a gradient that reaches it, is multiplied."""
        return 0.0 if self.kind == "noisy" else abs(sigma - sigma_target) / (1 - sigma_target)


def grid_methods(d_sigmas: Sequence[float] = D_SIGMAS) -> tuple[Method, ...]:
    """The rows of the grid: the noisy input, one step, Direct-Align by each `d_sigma`, inversion by the smallest."""
    denoise = (Method("denoise", d_sigma) for d_sigma in d_sigmas)
    return Method("noisy"), Method("one-step"), *denoise, Method("inversion", min(d_sigmas))


@dataclass(frozen=True)
class Cell:
    """What one method makes of the picture at one noise level."""

    method: Method
    sigma: float
    sigma_target: float  # where the model's step ended
    shortened: bool  # True where that is nearer than was asked for
    x0: Tensor  # (B, C, h, w) the recovered latents; of the noisy input the noisy ones
    image: Tensor  # (B, 3, H, W) in [0, 1]

    @property
    def weight(self) -> float:
        """|d x0 / d velocity|, see `Method.weight`."""
        return self.method.weight(self.sigma, self.sigma_target)


def recover(
    policy: Policy,
    x0: Tensor,
    noise: Tensor,
    cond: Conditioning,
    sigmas: Sequence[float] = SIGMAS,
    methods: Sequence[Method] = grid_methods(),
    guidance: float = 3.5,
) -> Iterator[Cell]:
    """Yields the cells of the grid, column by column, each as soon as it is computed; without gradient.

    x0 (1, C, h, w) clean latents of the picture, noise (B, C, h, w) one or more noises to inject, cond its one prompt,
    sigmas in (0, 1). A method that cannot step at a level has no cell there. The velocities of several levels are
    computed in one pass where the pictures are small.
    """
    levels = [float(sigma) for sigma in sigmas]
    if wrong := [sigma for sigma in levels if not 0 < sigma < 1]:
        raise ValueError(f"Noise levels must lie between 0 and 1, not at {wrong[0]:g}.")
    for part in _parts(levels, noise):
        for sigma, (x_t, velocity) in zip(part, noisy_columns(policy, x0, noise, cond, part, guidance), strict=True):
            yield from column(policy, x_t, velocity, noise, sigma, methods)


def column(
    policy: Policy, x_t: Tensor, velocity: Tensor, noise: Tensor, sigma: float, methods: Sequence[Method]
) -> Iterator[Cell]:
    """Yields the cells of one noise level; without gradient. x_t, velocity and noise (B, C, h, w)."""
    for method in methods:
        if (target := method.target(sigma)) is None:
            continue
        recovered = recovered_x0(method, x_t, velocity, noise, sigma, target.sigma)
        with torch.no_grad():  # not around the yield: a generator may be resumed on another thread
            image = policy.decode(recovered)
        yield Cell(method, sigma, target.sigma, target.shortened, recovered, image)


def recovered_x0(
    method: Method, x_t: Tensor, velocity: Tensor, noise: Tensor, sigma: float, sigma_target: float
) -> Tensor:
    """(B, C, h, w) what a method makes of noisy latents; differentiable in `x_t` and `velocity`."""
    if method.kind == "noisy":
        return x_t
    if method.kind == "one-step":
        return one_step_x0(x_t, velocity, sigma)
    return recover_x0(x_t, velocity, noise, sigma, sigma_target)


@torch.no_grad()
def noisy_columns(
    policy: Policy, x0: Tensor, noise: Tensor, cond: Conditioning, sigmas: Sequence[float], guidance: float
) -> list[tuple[Tensor, Tensor]]:
    """[(x_t, velocity)], (B, C, h, w) each, of every noise level, computed in one pass of the model.

    x0 (1, C, h, w), noise (B, C, h, w), cond one prompt.
    """
    count = len(noise)
    x_t = torch.cat([interpolate(x0.expand_as(noise), noise, sigma) for sigma in sigmas])
    told = torch.tensor(sigmas, dtype=torch.float32).repeat_interleave(count).to(x_t.device)
    velocity = policy.velocity(x_t, told, cond[[0] * len(x_t)], guidance)
    return list(zip(x_t.split(count), velocity.split(count), strict=True))


def schedule_shift(policy: Policy, height: int, width: int, num_steps: int = 2) -> float:
    """The shift s of the policy's own schedule at that size in pixels, `shift_sigmas(., s)`.

    It is read off a level near the middle: s sigma / (1 + (s - 1) sigma), for a sigma of the unshifted schedule.
    num_steps: FLUX.2's shift depends on their number as well; FLUX.1's does not.
    """
    steps = max(num_steps, 2)
    index = steps // 2
    level, sigma = float(policy.schedule(steps, height, width)[index]), 1 - index / steps
    return level * (1 - sigma) / (sigma * (1 - level))


def shifted(sigmas: Sequence[float], shift: float) -> list[float]:
    """The noise levels at which a sampler is when it has come as far as an unshifted one at `sigmas`."""
    return shift_sigmas(torch.tensor(sigmas, dtype=torch.float64), shift).tolist()


def _parts(sigmas: Sequence[float], noise: Tensor) -> list[Sequence[float]]:
    """The levels in groups that go through the model together."""
    tokens = noise.shape[-2] * noise.shape[-1] // PATCH**2 * len(noise)
    size = max(1, TOKENS_PER_FORWARD // tokens)
    return [sigmas[start : start + size] for start in range(0, len(sigmas), size)]
