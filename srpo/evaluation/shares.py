"""Shares and means with their uncertainty: the form in which every figure is reported."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from scipy.special import stdtrit
from torch import Tensor


class Share(NamedTuple):
    """A share of `count` cases and its Wilson 95 % interval."""

    share: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.share:.1%} ({self.low:.1%} to {self.high:.1%}, n = {self.count})"


def share(hits: Iterable[bool]) -> Share:
    """The share of true cases with Wilson's score interval (1927) at 95 %. ValueError where there is no case."""
    cases = [bool(hit) for hit in hits]
    if not cases:
        raise ValueError("a share needs at least one case, got none")
    n, p, z = len(cases), sum(cases) / len(cases), 1.959964
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Share(p, max(middle - half, 0.0), min(middle + half, 1.0), n)


class Mean(NamedTuple):
    """A mean over `count` cases and its 95 % interval."""

    mean: float
    low: float
    high: float
    count: int


def mean(values: Tensor | Sequence[float]) -> Mean:
    """The mean with its normal 95 % interval, for many cases. ValueError below two."""
    return _mean(values, lambda count: 1.959964)


def few(values: Tensor | Sequence[float]) -> Mean:
    """The mean with its 95 % interval by Student's t, wide enough for a handful of cases. ValueError below two."""
    return _mean(values, lambda count: float(stdtrit(count - 1, 0.975)))


def _mean(values: Tensor | Sequence[float], half_widths: Callable[[int], float]) -> Mean:
    """The mean with its interval; `half_widths` says how many standard errors reach to either side."""
    cases = torch.as_tensor(values, dtype=torch.float64)
    if len(cases) < 2:
        raise ValueError(f"an interval needs at least two cases, got {len(cases)}")
    middle, half = float(cases.mean()), half_widths(len(cases)) * float(cases.std()) / math.sqrt(len(cases))
    return Mean(middle, middle - half, middle + half, len(cases))
