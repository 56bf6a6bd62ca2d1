"""A study that may end as soon as its evidence suffices, and how large one must be that does not.

Sequential: each prompt brings one number x in [0, 1], the first model's share of its votes with ties as half. If both
models are equal, E[x] = 1/2, so a gambler who stakes the share lambda on each prompt has a fair game:

    capital(lambda) = prod_g (1 + lambda (x_g - 1/2)),    -2 < lambda < 2,    E[capital] = 1

The mean over a grid of lambda is fair as well. By Ville's inequality it ever reaches 1 / alpha in at most a share alpha
of the studies without a true difference, whatever the spread of the prompts and however often one looks. (Testing by
betting: Shafer 2021; Waudby-Smith and Ramdas 2024.) It looks at prompts, never at single votes: those cluster, and a
test on them declares a false winner in 13 to 25 % of the studies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import special

from srpo.studies.estimates import t_quantile
from srpo.studies.schema import Plan
from srpo.studies.votes import Vote, duels

ALPHA, POWER = 0.05, 0.8
STAKES = np.linspace(-0.975, 0.975, 40)  # lambda in units of the largest fair one; 0 is none of them
WIN_RATES = (0.55, 0.60, 0.65, 0.70, 0.75)
MAX_NEEDED = 100_000
LARGEST_LOG = 690.0  # of a capital: beyond any doubt, and still a number that every file can hold
IN_A_ROW = 3  # votes: exact power rises and falls by single votes


@dataclass(frozen=True)
class Evidence:
    """How far a sequential study is."""

    prompts: int  # that count by now
    value: float | None  # the first model's mean share, None before the first prompt
    e_value: float  # the gambler's capital: 1 / alpha ends the study
    needed: float  # 1 / alpha
    winner: int | None  # 0: the first model of the pair, 1: the second, None: not decided
    low: float  # holds the true share in 1 - alpha of all studies, whenever one stops
    high: float


def e_values(scores: np.ndarray, centre: float = 0.5) -> np.ndarray:
    """(..., G) the capital after each prompt of (..., G) scores in [0, 1], if their mean were `centre`."""
    distance = np.asarray(scores, float)[..., None, :] - centre
    largest = np.where(STAKES > 0, 1 / centre, 1 / (1 - centre))  # so that no single prompt can take all
    capital = np.cumsum(np.log1p((STAKES * largest)[:, None] * distance), axis=-1)
    total = special.logsumexp(capital, axis=-2) - math.log(len(STAKES))
    return np.exp(np.minimum(total, LARGEST_LOG))


def evidence(scores: Sequence[float], alpha: float = ALPHA) -> Evidence:
    """The state of a sequential study after these prompts' scores, in the order in which they were complete.

    The winner is the one that led when the capital first sufficed. low, high: every mean that the game, played against
    it, has not refuted by now.
    """
    x = np.asarray(scores, float)
    if len(x) == 0:
        return Evidence(0, None, 1.0, 1 / alpha, None, 0.0, 1.0)
    capital = e_values(x)
    enough = np.flatnonzero(capital >= 1 / alpha)
    winner = int(x[: enough[0] + 1].mean() < 0.5) if len(enough) else None
    grid = np.linspace(0, 1, 201)
    kept = [centre for centre in grid[1:-1] if e_values(x, centre).max() < 1 / alpha] or [float(x.mean())]
    low, high = max(min(kept) - grid[1], 0.0), min(max(kept) + grid[1], 1.0)  # to the next one that was refuted
    return Evidence(len(x), float(x.mean()), float(capital[-1]), 1 / alpha, winner, float(low), float(high))


def complete_scores(plan: Plan, votes: Sequence[Vote]) -> list[float]:
    """The first lane's scores by prompt on the first criterion, in the order in which the prompts were complete.

    A prompt is complete when each of its seeds has `votes_per_item` votes; later ones do not change its score, as a
    prompt that could still move would let one wait for good luck.
    """
    seen = duels(plan, sorted(votes, key=lambda vote: vote.at_us), plan.criteria[0].key).between(0, 1)
    per_item, scores = plan.stop.votes_per_item, []
    taken: dict[int, dict[int, list[float]]] = {}
    for prompt, seed, score in zip(seen.prompt.tolist(), seen.seed.tolist(), seen.score.tolist(), strict=True):
        items = taken.setdefault(prompt, {known: [] for known in plan.seeds})
        if len(items[seed]) == per_item:
            continue
        items[seed].append(score)
        if all(len(item) == per_item for item in items.values()):
            scores.append(float(np.mean(list(items.values()))))
    return scores


# How many are needed


def votes_needed(win_rate: float, alpha: float = ALPHA, power: float = POWER) -> int:
    """Decided votes, all independent, for the exact two-sided binomial test of 1/2 to have that power.

    As the power rises and falls by single votes, the first number from which it holds IN_A_ROW times.
    """
    run = 0
    for count in range(1, MAX_NEEDED):
        run = run + 1 if binomial_power(count, win_rate, alpha) >= power else 0
        if run == IN_A_ROW:
            return count - IN_A_ROW + 1
    raise ValueError(f"a win rate of {win_rate:g} needs more than {MAX_NEEDED:,} votes: plan for a larger one")


def binomial_power(count: int, win_rate: float, alpha: float = ALPHA) -> float:
    """The chance that the exact two-sided test of 1/2 rejects after so many votes."""
    reject = int(special.bdtrik(alpha / 2, count, 0.5)) if 0.5**count <= alpha / 2 else -1
    while special.bdtr(reject + 1, count, 0.5) <= alpha / 2:
        reject += 1
    while reject >= 0 and special.bdtr(reject, count, 0.5) > alpha / 2:
        reject -= 1
    if reject < 0:
        return 0.0
    return float(special.bdtr(reject, count, win_rate) + special.bdtr(reject, count, 1 - win_rate))


@lru_cache(maxsize=256)
def share_sd(win_rate: float, prompt_sd: float, votes_per_prompt: int) -> float:
    """The sd of a prompt's share of votes, where prompts differ by `prompt_sd` logits around a mean win rate.

    Var = Var(p) + (w (1 - w) - Var(p)) / k: prompts differ, and each is known from k votes only.
    """
    spread = _win_rates_of_prompts(win_rate, prompt_sd)
    between = float(spread @ spread / len(spread) - win_rate**2)
    return math.sqrt(max(between, 0.0) + (win_rate * (1 - win_rate) - between) / votes_per_prompt)


def _win_rates_of_prompts(win_rate: float, prompt_sd: float) -> np.ndarray:
    """(401,) equally likely prompts: expit(mu + prompt_sd z), mu such that their mean is the win rate."""
    z = special.ndtri((np.arange(401) + 0.5) / 401)
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if special.expit(middle + prompt_sd * z).mean() < win_rate else (low, middle)
    return special.expit(middle + prompt_sd * z)


def prompts_for(difference: float, sd: float, alpha: float = ALPHA, power: float = POWER) -> int:
    """Prompts for a two-sided t test over prompts to find such a mean difference from 1/2 with that power."""
    if difference <= 0:
        raise ValueError(f"a difference to be found must be above 0, not {difference:g}")

    def reaches(count: int) -> bool:
        edge = t_quantile(1 - alpha / 2, count - 1)
        # The noncentral t below `edge`; the other side's false wins are too rare to count.
        return 1 - special.nctdtr(count - 1, difference * math.sqrt(count) / max(sd, 1e-9), edge) >= power

    low, high = 2, 4
    while not reaches(high):
        low, high = high, 2 * high
        if high > MAX_NEEDED:
            raise ValueError(f"so small a difference needs more than {MAX_NEEDED:,} prompts: plan for a larger one")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return high


def prompts_needed(win_rate: float, prompt_sd: float, votes_per_prompt: int) -> int:
    """Prompts for a study of a fixed size: 80 % power for that win rate over all prompts."""
    return prompts_for(win_rate - 0.5, share_sd(win_rate, prompt_sd, votes_per_prompt))


@lru_cache(maxsize=64)
def sequential_prompts(
    win_rate: float, prompt_sd: float, votes_per_prompt: int, alpha: float = ALPHA, studies: int = 400, most: int = 2000
) -> tuple[int, int | None]:
    """(prompts when half, when 80 % of simulated sequential studies have found that win rate); None beyond `most`."""
    rng = np.random.default_rng(0)
    ends = []
    for _ in range(studies):
        chance = rng.choice(_win_rates_of_prompts(win_rate, prompt_sd), size=most)
        capital = e_values(rng.binomial(votes_per_prompt, chance) / votes_per_prompt)
        ends.append(int(np.argmax(capital >= 1 / alpha)) + 1 if capital.max() >= 1 / alpha else most + 1)
    median, late = np.quantile(ends, (0.5, POWER), method="higher").tolist()
    return int(median), int(late) if late <= most else None


@dataclass(frozen=True)
class PowerRow:
    """What it takes to find one win rate with 80 % power at 5 %."""

    win_rate: float
    votes: int  # decided and independent: one vote on each prompt, or prompts that are all alike
    prompts: int  # of `votes_per_prompt` votes each, in a study of a fixed size


def power_table(votes_per_prompt: int = 5, prompt_sd: float = 1.0) -> tuple[PowerRow, ...]:
    """The table that says how many votes and prompts are needed, for the usual win rates."""
    return tuple(
        PowerRow(win_rate, votes_needed(win_rate), prompts_needed(win_rate, prompt_sd, votes_per_prompt))
        for win_rate in WIN_RATES
    )
