"""A sampling run, looked into: what the model has, what it predicts, and what Direct-Align recovers, level by level.

The run's own noise is what Direct-Align injects, as in training: at each level the finished picture is mixed with it
anew and recovered. The run itself does not lie on that straight line, so a second velocity is computed at each level.

C latent channels, h w latent height and width, H W height and width in pixels
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from srpo.evaluation.recoveries import Method, noisy_columns, recovered_x0
from srpo.flow.recovery import one_step_x0
from srpo.flow.samplers import Step, euler
from srpo.policies.base import Conditioning, Policy


@dataclass(frozen=True)
class Frame:
    """A sampling run at one noise level; images (1, 3, H, W) in [0, 1]."""

    index: int  # of the step that begins here, from 0
    num_steps: int
    sigma: float
    noisy: Tensor  # the run's own latents, as the VAE draws them
    predicted: Tensor  # the clean picture that the model predicts from them (eq. 2)
    recovered: Tensor  # the finished picture by Direct-Align from this level, with the run's noise (eq. 5)
    shortened: bool  # True where Direct-Align's step had to be


def trajectory(
    policy: Policy,
    cond: Conditioning,
    noise: Tensor,
    sigmas: Tensor,
    guidance: float = 3.5,
    d_sigma: float = 0.025,
    max_frames: int = 32,
) -> Iterator[Step | Frame]:
    """Yields the steps of a sampling run as they are taken, then its frames from the noise on; without gradient.

    noise (1, C, h, w), cond one prompt, sigmas (N + 1,) descending from 1 to 0. At most `max_frames` steps become
    frames, evenly spaced, the first and the last among them.
    """

    @torch.no_grad()  # not around a yield: a generator may be resumed on another thread
    def velocity(x_t: Tensor, sigma: float) -> Tensor:
        return policy.velocity(x_t, sigma, cond, guidance)

    steps, at = [], [noise]
    for step in euler(velocity, noise, sigmas):
        steps.append(step)
        at.append(step.x_t)  # where the next one begins
        yield step
    x0, method = at[-1], Method("denoise", d_sigma)
    for index in _spread(len(steps), max_frames):
        yield _frame(policy, cond, guidance, method, steps[index], at[index], x0, noise)


@torch.no_grad()
def _frame(
    policy: Policy,
    cond: Conditioning,
    guidance: float,
    method: Method,
    step: Step,
    x_t: Tensor,
    x0: Tensor,
    noise: Tensor,
) -> Frame:
    sigma, target = step.sigma, method.target(step.sigma)
    if target is None:  # so short a step that the noise left could not be removed exactly: all of it by the model
        method, target = Method("one-step"), Method("one-step").target(sigma)
    ((mixed, velocity),) = noisy_columns(policy, x0, noise, cond, [sigma], guidance)
    return Frame(
        step.index,
        step.num_steps,
        sigma,
        noisy=policy.decode(x_t),
        predicted=policy.decode(one_step_x0(x_t, step.velocity, sigma)),
        recovered=policy.decode(recovered_x0(method, mixed, velocity, noise, sigma, target.sigma)),
        shortened=target.shortened,
    )


def _spread(count: int, most: int) -> list[int]:
    """At most `most` of the numbers 0 ... count - 1, evenly spaced, both ends among them."""
    if count <= most:
        return list(range(count))
    return [round(place * (count - 1) / (most - 1)) for place in range(most)]
