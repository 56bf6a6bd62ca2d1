"""Who sees what, when and on which side: a function of the plan and of a rater's number, and of nothing else.

All items stand in one endless line: the lanes (pairs of models) take turns, and within a lane every scene (a prompt
with a seed) comes once per lap. A rater gets the next stretch of the line; `votes_per_item` raters in a row get the
same one. Along a lane sides alternate, so that any stretch is balanced within one; from rater to rater and from lap to
lap the sides of an item alternate as well, so that after any number of raters each item is balanced within one.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from srpo.studies.schema import Lane, Plan

Kind = Literal["main", "repeat", "gold"]
Scene = tuple[int, int]  # the place of a prompt in the plan, and a seed


@dataclass(frozen=True)
class Shown:
    """One picture of a trial."""

    prompt: int
    seed: int
    model: str
    spoiled: bool = False  # the wrong half of a gold pair: another prompt's picture, and visibly damaged


@dataclass(frozen=True)
class Trial:
    """What a rater sees at once, and is asked all of the study's criteria about."""

    number: int  # its place in what the rater sees, from 0
    kind: Kind
    prompt: int  # the one that is shown with the pictures
    left: Shown
    right: Shown | None = None  # None where pictures are rated one at a time
    of: int | None = None  # of a repeat: the number of the trial it repeats, with the sides swapped

    @property
    def lane(self) -> Lane:
        """The models of the trial in an order that does not depend on the sides."""
        return tuple(sorted(shown.model for shown in self.pictures))

    @property
    def pictures(self) -> tuple[Shown, ...]:
        return (self.left,) if self.right is None else (self.left, self.right)

    @property
    def better(self) -> str | None:
        """The side that is right in a gold pair, else None."""
        if self.kind != "gold" or self.right is None:
            return None
        return "left" if self.right.spoiled else "right"


@lru_cache(maxsize=1024)
def schedule(plan: Plan, rater: int) -> tuple[Trial, ...]:
    """All trials of the rater with that number (from 0, in order of joining), in the order in which they come."""
    if rater < 0:
        raise ValueError(f"raters are numbered from 0, not {rater}")
    rng = random.Random(f"{plan.sha256}/rater {rater}")
    mains = _mains(plan, rater)
    repeated = _choose_repeats(plan, mains, rng)
    gold = _gold_trials(plan, rater, rng)
    num_trials = plan.num_trials
    places = list(range(num_trials))
    early = _shuffled(places[: num_trials // 2], rng)[: len(repeated)]
    late = _shuffled(places[num_trials - num_trials // 3 :], rng)[: len(repeated)]
    rest = _shuffled(sorted(set(places) - set(early) - set(late)), rng)
    others = [main for index, main in enumerate(mains) if index not in set(repeated)]
    trials = [replace(trial, number=place) for trial, place in zip([*gold, *others], rest, strict=True)]
    for index, first, again in zip(repeated, early, late, strict=True):
        trials.append(replace(mains[index], number=first))
        swapped = {"left": mains[index].right, "right": mains[index].left} if mains[index].right else {}
        trials.append(replace(mains[index], number=again, kind="repeat", of=first, **swapped))
    return tuple(sorted(trials, key=lambda trial: trial.number))


@lru_cache(maxsize=64)
def gold_pool(plan: Plan) -> tuple[tuple[Shown, Shown], ...]:
    """(right, spoiled) of every gold pair: the same for all raters, so that their pass rates compare.

    The spoiled half is a damaged picture of another prompt by the same model, so it is worse by any criterion. It is
    of the same prompt where a plan has but one.
    """
    rng = random.Random(f"{plan.sha256}/gold")
    scenes = _shuffled([(prompt, seed) for prompt in range(len(plan.prompts)) for seed in plan.seeds], rng)
    num_prompts = len(plan.prompts)
    # One distance for all, so that no spoiled picture serves twice.
    away = 1 + int(rng.random() * (num_prompts - 1)) if num_prompts > 1 else 0
    pairs = []
    for number in range(plan.num_gold):
        lap, place = divmod(number, len(scenes))
        (prompt, seed), model = scenes[place], plan.models[(place + lap) % len(plan.models)].key
        pairs.append((Shown(prompt, seed, model), Shown((prompt + away) % num_prompts, seed, model, spoiled=True)))
    return tuple(pairs)


def pictures(plan: Plan) -> tuple[Shown, ...]:
    """Every picture that any rater can be shown, each once."""
    plain = [
        Shown(prompt, seed, model.key)
        for model in plan.models
        for prompt in range(len(plan.prompts))
        for seed in plan.seeds
    ]
    return (*plain, *dict.fromkeys(spoiled for _, spoiled in gold_pool(plan)))


def broken_rules(plan: Plan, schedules: Mapping[int, Sequence[Trial]]) -> list[str]:
    """One sentence for each rule of the design that these schedules, of raters 0, 1, 2 ..., break."""
    broken = [line for rater, trials in schedules.items() for line in _broken_by(plan, rater, trials)]
    shown: Counter[tuple[Lane, int, int]] = Counter()  # how often, over all raters so far
    lefts: Counter[tuple[Lane, int, int]] = Counter()  # the first of the lane on the left, minus on the right
    for rater in sorted(schedules):
        for trial in schedules[rater]:
            if trial.kind != "main":
                continue
            item = (trial.lane, trial.prompt, trial.left.seed)
            shown[item] += 1
            lefts[item] += _balance(trial)
            if plan.mode == "pairwise" and abs(lefts[item]) > 1:
                broken.append(f"after rater {rater}, the item {item} is out of balance by {lefts[item]}")
    counts = [shown[lane, prompt, seed] for lane, prompt, seed in _items(plan)]
    if max(counts) - min(counts) > plan.stop.votes_per_item:
        broken.append(f"one item was shown {max(counts)} times, another {min(counts)} times")
    return broken


def _broken_by(plan: Plan, rater: int, trials: Sequence[Trial]) -> list[str]:
    """What one rater's schedule breaks."""
    broken = []
    kinds = Counter(trial.kind for trial in trials)
    if [trial.number for trial in trials] != list(range(len(trials))):
        broken.append(f"rater {rater}: trials are not numbered from 0")
    for kind, share in (("repeat", plan.repeats), ("gold", plan.gold)):
        if abs(kinds[kind] - share * len(trials)) > 1:
            broken.append(f"rater {rater}: {kinds[kind]} of {len(trials)} are {kind}, not {share:.0%}")
    faces = Counter(trial.pictures for trial in trials if not (plan.mode == "rating" and trial.kind == "repeat"))
    if twice := [face for face, count in faces.items() if count > 1]:
        broken.append(f"rater {rater}: {twice[0]} comes twice unswapped")
    for lane in plan.lanes:
        mains = [trial for trial in trials if trial.kind == "main" and trial.lane == tuple(sorted(lane))]
        both = mains + [trial for trial in trials if trial.kind == "repeat" and trial.lane == tuple(sorted(lane))]
        for name, some in (("", mains), (" with repeats", both)):
            if plan.mode == "pairwise" and abs(balance := sum(map(_balance, some))) > 1:
                broken.append(f"rater {rater}: lane {lane}{name} is out of balance by {balance}")
    lefts = sum(1 if trial.better == "left" else -1 for trial in trials if trial.kind == "gold" and trial.right)
    if abs(lefts) > 1:
        broken.append(f"rater {rater}: the gold pairs are out of balance by {lefts}")
    for trial in trials:
        seeds = {shown.seed for shown in trial.pictures}
        asked = {shown.prompt for shown in trial.pictures if not shown.spoiled}
        if len(seeds) > 1 or not asked <= {trial.prompt}:
            broken.append(f"rater {rater}: trial {trial.number} mixes seeds or prompts")
        if trial.kind == "repeat":
            first = trials[trial.of]
            swapped = tuple(reversed(first.pictures))
            if first.kind != "main" or first.number >= trial.number - 1 or swapped != trial.pictures:
                broken.append(f"rater {rater}: trial {trial.number} does not repeat an earlier one with sides swapped")
    return broken


def _balance(trial: Trial) -> int:
    """1 where the first model of the lane is on the left, -1 where it is on the right."""
    return 1 if trial.left.model == trial.lane[0] else -1


def _items(plan: Plan) -> list[tuple[Lane, int, int]]:
    return [
        (tuple(sorted(lane)), prompt, seed)
        for lane in plan.lanes
        for prompt in range(len(plan.prompts))
        for seed in plan.seeds
    ]


@lru_cache(maxsize=64)
def _line(plan: Plan) -> tuple[list[Scene], list[int], list[int]]:
    """(the scenes of one lap, then for each lane where in the lap it begins and with which side).

    A seed is gone through before the next, and the prompts keep their order, so that a rater with few trials sees many
    prompts.
    """
    rng = random.Random(f"{plan.sha256}/line")
    prompts = _shuffled(list(range(len(plan.prompts))), rng)
    scenes = [(prompt, seed) for seed in _shuffled(list(plan.seeds), rng) for prompt in prompts]
    begins = [int(rng.random() * len(scenes)) for _ in plan.lanes]
    return scenes, begins, [int(rng.random() * 2) for _ in plan.lanes]


def _mains(plan: Plan, rater: int) -> list[Trial]:
    """The rater's stretch of the line, unnumbered."""
    scenes, begins, sides = _line(plan)
    lanes, count = plan.lanes, len(scenes)
    turn, seat = divmod(rater, plan.stop.votes_per_item)
    trials = []
    for place in range(turn * plan.num_main, (turn + 1) * plan.num_main):
        step, number = divmod(place, len(lanes))
        lap, within = divmod(step, count)
        # With an even number of scenes each lap would give every scene the side it had in the last one, so each lap
        # begins one scene later. (An odd number does that by itself.)
        shift = lap if count % 2 == 0 else 0
        prompt, seed = scenes[(within + shift + begins[number]) % count]
        shown = [Shown(prompt, seed, model) for model in lanes[number]]
        if (step + seat + sides[number]) % 2:
            shown.reverse()
        trials.append(Trial(-1, "main", prompt, *shown))
    return trials


def _choose_repeats(plan: Plan, mains: Sequence[Trial], rng: random.Random) -> list[int]:
    """Places in `mains` of those to repeat: the lanes take turns, within a lane the sides do.

    The side that a lane has more of begins, so that the lane stays balanced with its repeats.
    """
    queues = []
    for lane in plan.lanes:
        here = _shuffled([place for place, trial in enumerate(mains) if set(trial.lane) == set(lane)], rng)
        sides = [[place for place in here if _balance(mains[place]) == side] for side in (1, -1)]
        sides.sort(key=len, reverse=True)
        queues.append([side[at] for at in range(len(sides[0])) for side in sides if at < len(side)])
    queues = _shuffled(queues, rng)
    turns = [queue[at] for at in range(max(map(len, queues))) for queue in queues if at < len(queue)]
    return turns[: plan.num_repeats]


def _gold_trials(plan: Plan, rater: int, rng: random.Random) -> list[Trial]:
    """The gold pairs with alternating sides, or the spoiled pictures alone where pictures are rated; unnumbered."""
    start = int(rng.random() * 2)
    trials = []
    for number, (right, spoiled) in enumerate(gold_pool(plan)):
        if plan.mode == "rating":
            trials.append(Trial(-1, "gold", right.prompt, spoiled))
        else:
            pair = (right, spoiled) if (number + start) % 2 else (spoiled, right)
            trials.append(Trial(-1, "gold", right.prompt, *pair))
    return trials


def _shuffled(values: list, rng: random.Random) -> list:
    """A new order. (`Random.random` is the same in every Python version; `shuffle` need not be.)"""
    return sorted(values, key=lambda _: rng.random())
