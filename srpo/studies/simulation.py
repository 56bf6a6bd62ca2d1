"""Simulated raters on a real schedule: what a study's analysis will say, known before anybody has voted.

A world has strengths and prompts; a rater votes honestly in it, or as a behaviour says: those are the defects that
`health` must find.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from srpo.studies.criteria import LEVELS
from srpo.studies.schedule import Trial, schedule
from srpo.studies.schema import Model, Plan, Prompt
from srpo.studies.votes import Vote

START_US = 1_700_000_000_000_000
LOOK_S = 4.0  # the median of an honest look


@dataclass(frozen=True)
class World:
    """What is true of the models, and how raters see it."""

    strengths: Mapping[str, float] = field(default_factory=dict)  # logits by model; 0 where not named
    prompt_sd: float = 0.7  # logits by which a pair's difference varies between prompts
    ties: float = 0.1  # share
    gold: float = 0.97  # share of gold pairs answered rightly


@dataclass(frozen=True)
class Look:
    """What a behaviour may know when it answers."""

    plan: Plan
    trial: Trial
    honest: str  # the answer it would give otherwise
    late: bool  # in the second half of its trials
    rng: np.random.Generator


Behaviour = Callable[[Look], tuple[str, float]]  # (the answer, the seconds it took)


def example_plan(
    prompts: int | Sequence[str] = 4, models: int | Sequence[Model] = 2, seeds: int = 1, **changes: object
) -> Plan:
    """A plan of that size, or of those texts and models; everything else is its default, or a change."""
    if isinstance(prompts, int):
        prompts = [f"a thing of number {number}" for number in range(prompts)]
    if isinstance(models, int):
        models = [Model(key=f"model-{number}", label=f"Model {number}") for number in range(models)]
    fields = {
        "title": "Is it better?",
        "prompts": [Prompt(text=text) for text in prompts],
        "models": models,
        "seeds": list(range(seeds)),
    }
    return Plan(**fields | changes)


def simulate(
    plan: Plan,
    raters: int,
    seed: int,
    world: World | None = None,
    behaviours: Mapping[int, Behaviour] | None = None,
) -> list[Vote]:
    """All votes of so many raters who see all of their trials, all criteria answered alike."""
    world, behaviours = world or World(), behaviours or {}
    rng = np.random.default_rng(seed)
    tastes = {
        (lane, prompt): world.prompt_sd * z
        for lane in (tuple(sorted(lane)) for lane in plan.lanes)
        for prompt, z in enumerate(rng.standard_normal(len(plan.prompts)).tolist())
    }
    votes = []
    for rater in range(raters):
        trials = schedule(plan, rater)
        now_us = START_US
        for trial in trials:
            answer = _honest(plan, world, trial, tastes.get((trial.lane, trial.prompt), 0.0), rng)
            dwell_s = LOOK_S * math.exp(0.4 * rng.standard_normal())
            if rater in behaviours:
                late = trial.number >= len(trials) // 2
                answer, dwell_s = behaviours[rater](Look(plan, trial, answer, late, rng))
            now_us += int(dwell_s * 1e6) + 1
            votes.append(Vote(rater, trial, {known.key: answer for known in plan.criteria}, dwell_s, now_us))
    return votes


def clicks_left(look: Look) -> tuple[str, float]:
    return "left", 3.0


def clicks_fast(look: Look) -> tuple[str, float]:
    return ("left", "right")[int(look.rng.random() * 2)], 0.25


def answers_from_a_list(look: Look) -> tuple[str, float]:
    """Whoever behaves like this gives the same answers as all others who do: they share a list, item by item."""
    shown = look.trial
    number = (shown.prompt * 7919 + shown.left.seed * 104729 + 31 * sum(map(ord, "".join(shown.lane)))) % 97
    wanted = shown.lane[number % 2]
    return ("left" if shown.left.model == wanted else "right"), LOOK_S


def votes_for(model: str, *, late_only: bool = False) -> Behaviour:
    """Knows which model is which and votes for that one, always or in the second half only."""

    def behave(look: Look) -> tuple[str, float]:
        sides = {shown.model: side for shown, side in zip(look.trial.pictures, ("left", "right"), strict=True)}
        if look.trial.kind == "gold" or model not in sides or (late_only and not look.late):
            return look.honest, LOOK_S
        return sides[model], LOOK_S

    return behave


def _honest(plan: Plan, world: World, trial: Trial, taste: float, rng: np.random.Generator) -> str:
    if trial.kind == "gold":
        right = rng.random() < world.gold
        if trial.better is None:
            return "Fail" if right else "Good"
        return trial.better if right else {"left": "right", "right": "left"}[trial.better]
    if trial.right is None:
        quality = world.strengths.get(trial.left.model, 0.0) + taste + rng.logistic()
        return LEVELS[int(np.searchsorted((-1.0, 0.5, 2.0), -quality))]
    if rng.random() < world.ties:
        return "tie"
    first, second = trial.lane
    edge = world.strengths.get(first, 0.0) - world.strengths.get(second, 0.0) + taste
    winner = first if rng.random() < 1 / (1 + math.exp(-edge)) else second
    return "left" if trial.left.model == winner else "right"


def prompt_shares(
    prompts: int, votes: Sequence[int] | int, win_chances: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(V,) prompts and (V,) scores of votes on prompts with those chances of a win."""
    counts = np.broadcast_to(votes, prompts)
    labels = np.repeat(np.arange(prompts), counts)
    return labels, (rng.random(len(labels)) < win_chances[labels]).astype(float)
