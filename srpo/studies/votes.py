"""What raters answered, as records and as the columns that statistics are made of.

V votes of one criterion, M models, P prompts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from srpo.studies.criteria import CHOICES, LEVELS
from srpo.studies.schedule import Trial
from srpo.studies.schema import Plan

MAX_DWELL_S = 24 * 3600.0


@dataclass(frozen=True)
class Vote:
    """One rater's answers about one trial: one for each criterion of the plan."""

    rater: int
    trial: Trial
    answers: Mapping[str, str]  # by the criterion's key: one of CHOICES, or of LEVELS where pictures are rated
    dwell_s: float  # from the pictures' appearance to the answer
    at_us: int  # when it was stored: microseconds since 1970, UTC


@dataclass(frozen=True)
class Duels:
    """Votes on pairs as columns, seen from the model that stands first in the plan."""

    rater: np.ndarray  # (V,) int
    prompt: np.ndarray  # (V,) int
    seed: np.ndarray  # (V,) int
    first: np.ndarray  # (V,) int, a model's place in the plan
    second: np.ndarray  # (V,) int, greater than `first`
    score: np.ndarray  # (V,) float: 1 where the first won, 0 where the second did, 0.5 for a tie or both bad
    both_bad: np.ndarray  # (V,) bool
    chose_left: np.ndarray  # (V,) bool; False for a tie as well
    dwell_s: np.ndarray  # (V,) float
    at_us: np.ndarray  # (V,) int

    def __len__(self) -> int:
        return len(self.rater)

    @property
    def decided(self) -> np.ndarray:
        """(V,) True where one side won."""
        return self.score != 0.5

    def where(self, chosen: np.ndarray) -> Duels:
        """Those votes alone; chosen: (V,) bool, or their places."""
        return Duels(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))

    def between(self, first: int, second: int) -> Duels:
        """The votes on one pair of models, by their places in the plan."""
        return self.where((self.first == first) & (self.second == second))


def duels(plan: Plan, votes: Iterable[Vote], criterion: str, kind: str = "main") -> Duels:
    """The votes on pairs of that kind ("main" or "repeat") as columns."""
    place = {model.key: number for number, model in enumerate(plan.models)}
    rows = []
    for vote in votes:
        if vote.trial.kind != kind:
            continue
        left, right = (place[shown.model] for shown in vote.trial.pictures)
        answer = vote.answers[criterion]
        won = {"left": 1.0, "right": 0.0}.get(answer, 0.5)
        rows.append(
            (
                *(vote.rater, vote.trial.prompt, vote.trial.left.seed, min(left, right), max(left, right)),
                *(won if left < right else 1 - won, answer == "both bad", answer == "left"),
                *(vote.dwell_s, vote.at_us),
            )
        )
    types = (int, int, int, int, int, float, bool, bool, float, np.int64)
    columns = zip(*rows, strict=True) if rows else ([] for _ in types)
    return Duels(*(np.array(column, kind) for column, kind in zip(columns, types, strict=True)))


def check_answers(plan: Plan, answers: Mapping[str, str]) -> dict[str, str]:
    """The answers, one of the allowed ones for each criterion of the plan and no more. ValueError else."""
    allowed = CHOICES if plan.mode == "pairwise" else LEVELS
    keys = [criterion.key for criterion in plan.criteria]
    if not isinstance(answers, Mapping) or set(answers) != set(keys):
        raise ValueError("A vote answers every question of the study and no other: answer all, and vote again.")
    for key in keys:
        if answers[key] not in allowed:
            raise ValueError(f"An answer is one of {', '.join(allowed)}, not {str(answers[key])[:40]!r}.")
    return {key: answers[key] for key in keys}


def check_dwell(dwell_s: float) -> float:
    """The time of a look in seconds, at most a day. ValueError for what is none."""
    if isinstance(dwell_s, bool) or not isinstance(dwell_s, int | float) or not 0 <= dwell_s < float("inf"):
        raise ValueError("The time of a look must be a number of seconds, 0 or more.")
    return min(float(dwell_s), MAX_DWELL_S)


def votes_by_item(plan: Plan, main: Iterable[Vote]) -> list[int]:
    """How many main votes each item of the study has: one number for each lane, prompt and seed."""
    counts = {
        (tuple(sorted(lane)), prompt, seed): 0
        for lane in plan.lanes
        for prompt in range(len(plan.prompts))
        for seed in plan.seeds
    }
    for vote in main:
        counts[vote.trial.lane, vote.trial.prompt, vote.trial.left.seed] += 1
    return list(counts.values())
