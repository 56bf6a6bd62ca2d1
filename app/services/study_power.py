"""What a study of some size can find, said before it begins."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from srpo.studies.report import counted
from srpo.studies.schema import Plan
from srpo.studies.stopping import PowerRow, power_table, prompts_needed, sequential_prompts

PROMPT_SD = 1.0  # logits by which the difference of two models varies between prompts: as much as is usual
LOOK_S = 6.0  # a look at a pair, with its vote
SMALLEST, LARGEST = 0.51, 0.99  # win rates that a plan may name
GRAIN = 0.005  # of a win rate that is said


@dataclass(frozen=True)
class Power:
    """The table of what is needed, and what a plan can do."""

    rows: tuple[PowerRow, ...]
    votes_per_prompt: int
    sentences: tuple[str, ...]  # about the plan; none where there is no plan yet


def power_of(plan: Plan) -> Power:
    """What this plan asks of its raters, and which win rates it can find."""
    votes_per_prompt = plan.stop.votes_per_item * len(plan.seeds)
    return Power(table(votes_per_prompt), votes_per_prompt, (_size(plan), _trials(plan), *_finds(plan)))


def power_without_plan(votes_per_prompt: int) -> Power:
    """The table alone, for a form that is not filled in yet."""
    return Power(table(votes_per_prompt), votes_per_prompt, ())


@lru_cache(maxsize=64)
def table(votes_per_prompt: int) -> tuple[PowerRow, ...]:
    return power_table(votes_per_prompt, PROMPT_SD)


@lru_cache(maxsize=256)
def smallest_found(prompts: int, votes_per_prompt: int) -> float | None:
    """The smallest true win rate that so many prompts find in four of five studies; None where even .99 is too small.

    In steps of GRAIN, upwards.
    """
    found = None
    low, high = 1, round((LARGEST - 0.5) / GRAIN)
    while low <= high:
        middle = (low + high) // 2
        if _needs(0.5 + middle * GRAIN, votes_per_prompt) <= prompts:
            found, high = 0.5 + middle * GRAIN, middle - 1
        else:
            low = middle + 1
    return found


def _needs(win_rate: float, votes_per_prompt: int) -> float:
    try:
        return prompts_needed(win_rate, PROMPT_SD, votes_per_prompt)
    except ValueError:  # more than anybody would show
        return float("inf")


def raters_needed(plan: Plan) -> int:
    """How many raters who see all of their trials give every item its votes."""
    stretches = -(-plan.num_items // plan.num_main)
    return stretches * plan.stop.votes_per_item


def _size(plan: Plan) -> str:
    items = "pairs" if plan.mode == "pairwise" else "pictures"
    lanes = len(plan.lanes)
    several = f" × {lanes} {'pairs of models' if plan.mode == 'pairwise' else 'models'}" if lanes > 1 else ""
    wanted = plan.num_items * plan.stop.votes_per_item
    at_most = "at most " if plan.stop.kind == "sequential" else ""
    return (
        f"{counted(len(plan.prompts), 'prompt')} × {counted(len(plan.seeds), 'seed')}{several} = {plan.num_items:,} "
        f"{items}, {at_most}{wanted:,} votes."
    )


def _trials(plan: Plan) -> str:
    minutes = max(1, round(plan.num_trials * LOOK_S * len(plan.criteria) / 60))
    more = [counted(plan.num_repeats, "repeat")] * bool(plan.num_repeats) + [f"{plan.num_gold} gold"] * bool(
        plan.num_gold
    )
    of = f" ({' + '.join([str(plan.num_main), *more])})" if more else ""
    return (
        f"A rater sees {plan.num_trials:,}{of}, about {counted(minutes, 'minute')}; it takes "
        f"{counted(raters_needed(plan), 'rater')}."
    )


def _finds(plan: Plan) -> list[str]:
    """What the plan can find: pairs only, as the table is about win rates."""
    if plan.mode != "pairwise":
        return []
    prompts, votes = len(plan.prompts), plan.stop.votes_per_item * len(plan.seeds)
    if plan.stop.kind == "sequential":
        half, most = sequential_prompts(plan.smallest_win_rate, PROMPT_SD, votes, plan.stop.alpha)
        late = "more than 2,000" if most is None else f"{most:,}"
        said = (
            f"If the true win rate is {plan.smallest_win_rate:.0%}, half of such studies end within {half:,} prompts "
            f"and four of five within {late}"
        )
        return [f"{said}; this one has {prompts:,}."]
    found = smallest_found(prompts, votes)
    if found is None:
        return ["So few prompts find no win rate in four of five studies: take more."]
    wanted = plan.smallest_win_rate
    rest = (
        f"so it is large enough for the {wanted:.0%} that matters to you."
        if found <= wanted
        else f"a smaller one, such as the {wanted:.0%} that matters to you, may well go unseen."
    )
    return [f"In four of five studies it finds a true win rate of {found:.1%} or more; {rest}"]
