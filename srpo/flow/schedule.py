"""Noise levels of a sampler: evenly spaced, then shifted towards noise, as FLUX does it by the number of image tokens.

N steps
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def linear_sigmas(num_steps: int) -> Tensor:
    """(N + 1,) evenly spaced noise levels from 1 to 0, float32. ValueError for fewer than one step."""
    if num_steps < 1:
        raise ValueError(f"A schedule needs at least one step, not {num_steps}.")
    return torch.linspace(1, 0, num_steps + 1, dtype=torch.float64).float()  # rounded once, as NumPy's in diffusers


def shift_sigmas(sigmas: Tensor, shift: float) -> Tensor:
    """`sigmas` moved towards noise by the constant `shift` (1 leaves them): shift sigma / (1 + (shift - 1) sigma).

    sigmas in [0, 1], any shape; 0 and 1 stay. ValueError for a shift that is not above 0.
    Source: Esser et al., arXiv 2403.03206, eq. 23; FLUX.1-dev at a fixed shift of 3 is the paper's schedule.
    """
    if not 0 < shift < math.inf:
        raise ValueError(f"The shift must be a number above 0, not {shift}.")
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def flux_mu(
    num_tokens: int,
    *,
    base_tokens: int = 256,
    max_tokens: int = 4096,
    base_shift: float = 0.5,
    max_shift: float = 1.15,
) -> float:
    """FLUX's shift exponent mu for an image of `num_tokens` packed tokens, on a line through its two settings.

    The defaults are FLUX.1-dev's. 1024 x 1024 pixels are 4096 tokens: mu = 1.15; 256 x 256 are 256: mu = 0.5.
    Source: black-forest-labs/flux, `get_lin_function`.
    """
    slope = (max_shift - base_shift) / (max_tokens - base_tokens)
    return num_tokens * slope + (base_shift - slope * base_tokens)


def flux2_mu(num_tokens: int, num_steps: int) -> float:
    """FLUX.2's shift exponent mu for an image of `num_tokens` packed tokens in so many steps.

    Two lines in the number of tokens are known, fitted at 10 and at 200 steps; mu goes straight from one to the other.
    Above 4300 tokens that of 200 steps holds for all. Source: black-forest-labs/flux2, `compute_empirical_mu`.
    """
    at_200 = 0.00016927 * num_tokens + 0.45666666
    if num_tokens > 4300:
        return at_200
    at_10 = 8.73809524e-05 * num_tokens + 1.89833333
    slope = (at_200 - at_10) / 190
    return slope * num_steps + (at_200 - slope * 200)


def shift_sigmas_exponential(sigmas: Tensor, mu: float) -> Tensor:
    """`sigmas` moved towards noise by e^mu: e^mu / (e^mu + 1 / sigma - 1), the same curve as `shift_sigmas(., e^mu)`.

    Written in this form, it equals the sigmas of diffusers' FlowMatchEulerDiscreteScheduler bit for bit.
    sigmas in [0, 1], any shape; 0 and 1 stay.
    """
    shift = torch.full_like(sigmas, math.exp(mu))  # a tensor: a number divided by a tensor is rounded twice
    return shift / (shift + (1 / sigmas - 1))


def flux_sigmas(num_steps: int, num_tokens: int, **settings: float) -> Tensor:
    """(N + 1,) noise levels from 1 to 0 by which FLUX samples an image of `num_tokens` packed tokens, float32.

    settings: those of `flux_mu`, where they differ from FLUX.1-dev's.
    """
    return shift_sigmas_exponential(linear_sigmas(num_steps), flux_mu(num_tokens, **settings))
