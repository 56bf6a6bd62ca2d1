"""How a reward becomes a gradient: rollout without gradient, then losses one graph at a time.

B prompts, C latent channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from srpo.policies.base import Conditioning, Policy
from srpo.rewards.base import Reward


@dataclass(frozen=True)
class Rollout:
    """Finished samples of the current policy and what is known about how they came to be."""

    prompts: Sequence[str]
    cond: Conditioning
    x0: Tensor  # (B, C, H/8, W/8) clean latents, no gradient
    noise: Tensor  # same shape: the initial noise of the rollout, and the noise Direct-Align injects


@dataclass(frozen=True)
class Shard:
    """Which part of an update's prompts this process works on.

    Every process draws for all of them from the same generator and keeps its own part: so an update is the same
    however many processes share it.
    """

    index: int = 0
    count: int = 1

    def whole(self, own: int) -> int:
        """The number of all prompts, where `own` are this process's."""
        return own * self.count

    def part(self, own: int) -> slice:
        """Where this process's prompts lie among all."""
        return slice(self.index * own, (self.index + 1) * own)


@dataclass(frozen=True)
class Loss:
    """One backward's worth: call `value.backward()` before asking the objective for the next.

    Asking for the next may itself pass gradients on: only once all losses were asked for are they in the weights.
    """

    value: Tensor  # () float32, weights of terms included; the mean over the update's prompts
    record: dict[str, float]  # what to log: branch means of scores, rewards, sigmas


class Objective(Protocol):
    def rollout(
        self, policy: Policy, prompts: Sequence[str], cond: Conditioning, generator: torch.Generator
    ) -> Rollout:
        """Samples of the current policy, without gradient."""
        ...

    def offline_rollout(
        self, prompts: Sequence[str], cond: Conditioning, x0: Tensor, noise: Tensor | None, generator: torch.Generator
    ) -> Rollout:
        """The same of stored clean latents; their noise is drawn where they came without one."""
        ...

    def losses(
        self, policy: Policy, rollout: Rollout, reward: Reward, generator: torch.Generator, update: int
    ) -> Iterator[Loss]:
        """One graph at a time. Iterate to the end, calling backward on each: then the weights have their gradients."""
        ...
