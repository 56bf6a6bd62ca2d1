"""Shares and means with intervals that hold when votes cluster by prompt.

Votes on one prompt resemble one another: an interval that takes them for independent is too short (Wilson on 40 prompts
of 5 votes covers 79 to 90 % instead of 95 %). Here a prompt is one observation, however many votes it has.
V votes, G prompts with votes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import special

MIN_PROMPTS = 10  # below that the spread between prompts is not known well enough for an interval
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over votes with its 95 % interval; no interval (None) below MIN_PROMPTS prompts."""

    value: float
    low: float | None
    high: float | None
    votes: int
    prompts: int

    @property
    def is_enough(self) -> bool:
        return self.low is not None

    def excludes(self, value: float) -> bool:
        """True where the interval is known and the value lies outside."""
        return self.low is not None and not self.low <= value <= self.high


def t_quantile(share: float, freedom: int) -> float:
    """The value below which that share of Student's t lies."""
    return float(special.stdtrit(freedom, share))


class Clusters(NamedTuple):
    """Votes summed by prompt: (G,) numbers of votes and sums of their scores."""

    counts: np.ndarray
    sums: np.ndarray

    @classmethod
    def of(cls, prompts: np.ndarray, scores: np.ndarray) -> Clusters:
        """prompts: (V,) any labels; scores: (V,)."""
        _, place = np.unique(prompts, return_inverse=True)
        return cls(np.bincount(place).astype(float), np.bincount(place, weights=scores))


def clustered(prompts: np.ndarray, scores: np.ndarray, *, bounds: tuple[float, float] = (0.0, 1.0)) -> Estimate:
    """The mean of the scores, its interval by Student's t over the prompts.

    prompts, scores: (V,). The mean is the ratio (sum of scores) / (number of votes); its variance that of a ratio,
    G/(G-1) sum_g (s_g - mean n_g)^2 / (sum_g n_g)^2. With equally many votes on every prompt that is the plain t
    interval of the prompts' means. ValueError where there is no vote.
    """
    if len(scores) == 0:
        raise ValueError("an estimate needs at least one vote, got none")
    scores = np.asarray(scores, float)
    counts, sums = Clusters.of(np.asarray(prompts), scores)
    num_prompts, total = len(counts), counts.sum()
    value = float(sums.sum() / total)
    if num_prompts < MIN_PROMPTS:
        return Estimate(value, None, None, len(scores), num_prompts)
    low, high = bounds
    residuals = sums - value * counts
    if np.ptp(scores) == 0 and value in bounds and bounds == (0.0, 1.0):
        # All votes agree, so no spread is to be seen and t would claim certainty: the exact binomial interval for so
        # many prompts of one opinion (Clopper and Pearson).
        edge = ((1 - LEVEL) / 2) ** (1 / num_prompts)
        return Estimate(value, *((edge, 1.0) if value == 1 else (0.0, 1 - edge)), len(scores), num_prompts)
    variance = num_prompts / (num_prompts - 1) * float(residuals @ residuals) / total**2
    half = t_quantile((1 + LEVEL) / 2, num_prompts - 1) * math.sqrt(variance)
    return Estimate(value, max(value - half, low), min(value + half, high), len(scores), num_prompts)


def between_prompts_sd(prompts: np.ndarray, scores: np.ndarray) -> float:
    """The standard deviation of one prompt's contribution to `clustered`'s mean; 0 below two prompts.

    The half width of an interval over G such prompts is about t * sd / sqrt(G).
    """
    counts, sums = Clusters.of(np.asarray(prompts), np.asarray(scores, float))
    if len(counts) < 2:
        return 0.0
    residuals = (sums - sums.sum() / counts.sum() * counts) / counts.mean()
    return float(np.sqrt(residuals @ residuals / (len(counts) - 1)))


def binomial_tail(hits: int, cases: int, share: float) -> float:
    """The chance of at least so many hits. (`bdtrc` counts those above its first argument.)"""
    return 1.0 if hits <= 0 else float(special.bdtrc(hits - 1, cases, share))


def sign_test(hits: int, cases: int) -> float:
    """The exact two-sided p-value of so many hits if both sides were equally likely; 1 without a case."""
    extreme = max(hits, cases - hits)
    return min(1.0, 2 * binomial_tail(extreme, cases, 0.5)) if cases else 1.0


@dataclass(frozen=True)
class Fragility:
    """How many of the leader's votes would have to be taken away."""

    to_doubt: int | None  # until the interval no longer excludes 1/2; None where it includes it already
    to_flip: int  # until the other one leads; 1 where they are level


def fragility(prompts: np.ndarray, scores: np.ndarray) -> Fragility:
    """The least number of decided votes whose removal changes the result, chosen one after another to do most harm.

    prompts, scores: (V,), scores 0 or 1.
    """
    scores = np.asarray(scores, float)
    if scores.mean() < 0.5:
        scores = 1 - scores
    to_flip = int(2 * scores.sum() - len(scores)) + 1
    if not clustered(prompts, scores).excludes(0.5):
        return Fragility(None, to_flip)
    counts, sums = Clusters.of(np.asarray(prompts), scores)
    for removed in range(1, to_flip + 1):
        lows = _low_ends(counts, sums)
        worst = int(np.argmin(lows))
        counts[worst] -= 1
        sums[worst] -= 1
        if lows[worst] <= 0.5:
            return Fragility(removed, to_flip)
    return Fragility(to_flip, to_flip)


def _low_ends(counts: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """(G,) the low end of `clustered`'s interval without one winning vote of that prompt; inf where it has none."""
    n, s = counts - 1, sums - 1
    total, won = counts.sum() - 1, sums.sum() - 1
    value = won / total
    groups = (counts > 0).sum() - (n == 0)
    # sum of (s - value n)^2 over all prompts, with one of them changed
    ss, sn, nn = (float(a @ b) for a, b in ((sums, sums), (sums, counts), (counts, counts)))
    ss, sn, nn = ss - sums**2 + s**2, sn - sums * counts + s * n, nn - counts**2 + n**2
    variance = groups / np.maximum(groups - 1, 1) * (ss - 2 * value * sn + value**2 * nn) / total**2
    half = special.stdtrit(np.maximum(groups - 1, 1), (1 + LEVEL) / 2) * np.sqrt(np.maximum(variance, 0))
    low = ((1 - LEVEL) / 2) ** (1 / np.maximum(groups, 1)) if won == total else value - half
    low = np.where(groups < MIN_PROMPTS, -np.inf, low)  # no interval, so nothing is excluded any more
    return np.where(s >= 0, low + 1e-12 * counts, np.inf)  # of equal ones, the prompt that is soonest empty
