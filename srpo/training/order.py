"""What an update draws and in which order it takes what there is: functions of their arguments alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch


def update_generator(seed: int, update: int) -> torch.Generator:
    """The CPU generator of one update: a function of (seed, update) alone."""
    return generator_of("update", seed, update)


def generator_of(purpose: str, seed: int, number: int) -> torch.Generator:
    """A CPU generator that has nothing in common with its neighbours, nor with those of another purpose."""
    digest = hashlib.sha256(f"{purpose} {seed} {number}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)  # torch takes 63 bits


def prompts_of_update(prompts: Sequence[str], seed: int, update: int, count: int) -> list[str]:
    """The prompts of an update: the next `count` of an endless row of shuffled passes over all prompts.

    A function of its arguments alone; updates count from 1.
    """
    places = range((update - 1) * count, update * count)
    passes = {place // len(prompts) for place in places}
    shuffled = {number: _shuffled(prompts, seed, number) for number in passes}
    return [shuffled[place // len(prompts)][place % len(prompts)] for place in places]


def _shuffled(prompts: Sequence[str], seed: int, number: int) -> list[str]:
    order = torch.randperm(len(prompts), generator=generator_of("pass", seed, number))
    return [prompts[index] for index in order.tolist()]
