"""Bradley-Terry strengths of several models from their wins over one another.

    P(i beats j) = expit(theta_i - theta_j)                                    (Bradley and Terry, 1952)
    theta = argmax  sum_ij wins_ij log P(i beats j)  -  sum_i theta_i^2 / (2 prior_sd^2)

The normal prior is weak and keeps every strength finite where a model won, or lost, all: 30 to 0 included. A tie is
half a win for each. M models, G prompts, B bootstrap samples, V votes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from srpo.studies.estimates import MIN_PROMPTS, t_quantile
from srpo.studies.votes import Duels

PRIOR_SD = 3.0  # logits: a model 3 logits above another wins 95 % of the time
BOOTSTRAPS = 1000
MAX_STEPS = 200
TOLERANCE = 1e-10  # of the last Newton step, logits
LONGEST_STEP = 1.0  # logits


@dataclass(frozen=True)
class Strength:
    """One model among the others, in logits; their mean is 0."""

    model: int  # its place in the plan
    value: float
    low: float | None  # 95 %, prompts resampled; None below MIN_PROMPTS prompts
    high: float | None
    low_independent: float  # 95 % by the curvature, as if votes were independent: too short where they cluster
    high_independent: float
    best_rank: int | None  # 95 % of the resampled orders lie between these two
    worst_rank: int | None


def fit(wins: np.ndarray, prior_sd: float | None = PRIOR_SD) -> np.ndarray:
    """(..., M) strengths with mean 0, of (..., M, M) wins of the row's model over the column's.

    prior_sd=None: no prior, the plain maximum of the likelihood. ValueError where that does not exist: a set of models
    that never lost to the others, or never met them.
    """
    wins = np.asarray(wins, float)
    num_models = wins.shape[-1]
    if prior_sd is None and not all(is_connected(board) for board in wins.reshape(-1, num_models, num_models)):
        raise ValueError("without a prior, each model must have won against and lost to the others, if by way of some")
    precision = 0.0 if prior_sd is None else prior_sd**-2
    met = wins + np.swapaxes(wins, -1, -2)
    theta = np.zeros(wins.shape[:-1])
    for _ in range(MAX_STEPS):
        chance = expit(theta[..., :, None] - theta[..., None, :])
        slope = (wins - met * chance).sum(axis=-1) - precision * theta
        step = np.linalg.solve(_curvature(met, chance, precision), slope[..., None])[..., 0]
        # Far from the maximum Newton's step can overshoot; a bounded one cannot on so smooth a hill.
        longest = np.abs(step).max(axis=-1, keepdims=True)
        theta = theta + step * np.minimum(1.0, LONGEST_STEP / np.maximum(longest, LONGEST_STEP))
        if longest.max() < TOLERANCE:
            return theta - theta.mean(axis=-1, keepdims=True)
    raise ValueError(f"the strengths did not settle within {MAX_STEPS} steps")


def is_connected(wins: np.ndarray) -> bool:
    """True where a way of wins leads from every model to every other: (M, M) wins."""
    reach = (np.asarray(wins) > 0) | np.eye(len(wins), dtype=bool)
    for _ in range(len(wins).bit_length()):
        reach = reach @ reach
    return bool(reach.all())


def board(votes: Duels, num_models: int) -> np.ndarray:
    """(M, M) wins of the row's model over the column's; a tie is half a win for each."""
    wins = np.zeros((num_models, num_models))
    np.add.at(wins, (votes.first, votes.second), votes.score)
    np.add.at(wins, (votes.second, votes.first), 1 - votes.score)
    return wins


def boards_by_prompt(votes: Duels, num_models: int) -> np.ndarray:
    """(G, M, M): `board` of every prompt that has votes."""
    _, place = np.unique(votes.prompt, return_inverse=True)
    wins = np.zeros((place.max(initial=-1) + 1, num_models, num_models))
    np.add.at(wins, (place, votes.first, votes.second), votes.score)
    np.add.at(wins, (place, votes.second, votes.first), 1 - votes.score)
    return wins


def strengths(votes: Duels, num_models: int, seed: int, *, bootstraps: int = BOOTSTRAPS) -> tuple[Strength, ...]:
    """Every model's strength, the strongest first, with both kinds of interval. ValueError without votes."""
    if len(votes) == 0:
        raise ValueError("strengths need at least one vote, got none")
    by_prompt = boards_by_prompt(votes, num_models)
    total = by_prompt.sum(axis=0)
    theta = fit(total)
    half = t_quantile(0.975, 10**6) * independent_errors(total, theta)
    low, high, ranks = [[None] * num_models] * 2 + [[(None, None)] * num_models]
    if len(by_prompt) >= MIN_PROMPTS:
        resampled = resample(by_prompt, seed, bootstraps)  # (B, M)
        low, high = np.quantile(resampled, (0.025, 0.975), axis=0).tolist()
        places = 1 + (resampled[:, :, None] < resampled[:, None, :]).sum(axis=-1)  # (B, M)
        edges = np.quantile(places, (0.025, 0.975), axis=0, method="nearest").astype(int)
        ranks = list(zip(*edges.tolist(), strict=True))
    return tuple(
        Strength(
            *(model, float(theta[model]), low[model], high[model]),
            *(float(theta[model] - half[model]), float(theta[model] + half[model])),
            *ranks[model],
        )
        for model in np.argsort(-theta, kind="stable").tolist()
    )


def resample(by_prompt: np.ndarray, seed: int, count: int = BOOTSTRAPS) -> np.ndarray:
    """(count, M) strengths of boards of as many prompts, drawn with replacement from (G, M, M)."""
    num_prompts = len(by_prompt)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(num_prompts, np.full(num_prompts, 1 / num_prompts), size=count)  # (B, G)
    return fit(np.einsum("bg,gij->bij", weights, by_prompt))


def independent_errors(wins: np.ndarray, theta: np.ndarray, prior_sd: float = PRIOR_SD) -> np.ndarray:
    """(M,) standard errors by the curvature at the maximum, as if all votes were independent."""
    chance = expit(theta[:, None] - theta[None, :])
    covariance = np.linalg.inv(_curvature(wins + wins.T, chance, prior_sd**-2))
    centre = np.eye(len(theta)) - 1 / len(theta)  # the strengths are given with mean 0
    return np.sqrt(np.diag(centre @ covariance @ centre))


def wins_to_dethrone(wins: np.ndarray) -> int | None:
    """How many of the strongest model's wins over the second would have to be taken away for their order to turn.

    None where all of them are not enough. Taking more away only weakens the first, so the number is found by halving.
    """
    first, second = np.argsort(-fit(wins), kind="stable")[:2]

    def turned(removed: int) -> bool:
        left = np.array(wins, float)
        left[first, second] -= removed
        theta = fit(left)
        return bool(theta[second] > theta[first])

    low, high = 0, int(np.floor(wins[first, second]))
    if not turned(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if turned(middle) else (middle, high)
    return high


def _curvature(met: np.ndarray, chance: np.ndarray, precision: float) -> np.ndarray:
    """(..., M, M) minus the second derivative; all strengths moved alike, which changes nothing, are held by ones."""
    weight = met * chance * (1 - chance)
    num_models = met.shape[-1]
    own = np.eye(num_models) * (weight.sum(axis=-1) + precision)[..., None]
    return own - weight + (1.0 if precision == 0 else 0.0) / num_models


def expit(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * x))
