"""What a study found, as one record: the same votes and plan always give the same numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from srpo.studies.bradley_terry import Strength, board, strengths, wins_to_dethrone
from srpo.studies.criteria import LEVELS, OVERALL, overall
from srpo.studies.estimates import (
    MIN_PROMPTS,
    Estimate,
    Fragility,
    between_prompts_sd,
    clustered,
    fragility,
)
from srpo.studies.health import Health, health, rater_health
from srpo.studies.schema import Plan
from srpo.studies.stopping import Evidence, complete_scores, evidence, prompts_for, share_sd
from srpo.studies.votes import Duels, Vote, duels, votes_by_item

Outcome = Literal["first", "second", "level", "not enough"]


@dataclass(frozen=True)
class PairResult:
    """Two models on one criterion; a win rate is the first one's share."""

    criterion: str
    category: str | None  # of prompts; None: all of them
    first: str  # keys of models
    second: str
    first_won: int
    second_won: int
    ties: int
    both_bad: int
    without_ties: Estimate | None  # None without a decided vote
    with_ties: Estimate | None  # ties and both bad as half; None without a vote
    outcome: Outcome
    more_prompts: int  # that "not enough" lacks, 0 for other outcomes
    sentence: str
    fragility: Fragility | None  # over all prompts only; None without a decided vote


@dataclass(frozen=True)
class Ranking:
    """All models on one criterion, the strongest first."""

    criterion: str
    strengths: tuple[Strength, ...]
    wins_to_dethrone: int | None  # whose removal puts the second first


@dataclass(frozen=True)
class RatingResult:
    """One model's levels on one criterion, or on the derived Overall."""

    criterion: str
    model: str
    shares: dict[str, Estimate]  # by level, the best first
    excellent_gain: Estimate | None  # share of Excellent minus the plan's first model's, by prompt; None for that model


@dataclass(frozen=True)
class Analysis:
    """All results of one set of votes."""

    plan_sha256: str
    votes: int  # on main trials
    raters: int
    items_complete: int
    items: int
    votes_lacking: int  # until every item has as many as planned
    pairs: tuple[PairResult, ...]
    rankings: tuple[Ranking, ...]  # for three models or more
    ratings: tuple[RatingResult, ...]
    evidence: Evidence | None  # of a sequential study
    health: Health


@dataclass(frozen=True)
class Results:
    """All votes, and those that the plan's filters leave."""

    everything: Analysis
    filtered: Analysis
    dropped_raters: tuple[int, ...]
    dropped_votes: int  # theirs included
    filters: tuple[str, ...]  # sentences


def results(plan: Plan, votes: Sequence[Vote]) -> Results:
    """The analysis with and without the filters that the plan declared."""
    kept, dropped = apply_filters(plan, votes)
    everything = analyse(plan, votes)
    filtered = everything if len(kept) == len(votes) else analyse(plan, kept)
    return Results(everything, filtered, dropped, len(votes) - len(kept), filter_sentences(plan))


def apply_filters(plan: Plan, votes: Sequence[Vote]) -> tuple[list[Vote], tuple[int, ...]]:
    """(the votes that stay, the raters of whom none does)."""
    filters, dropped = plan.filters, []
    for rater in rater_health(plan, votes):
        gold = filters.min_gold is not None and rater.gold and rater.gold_right < filters.min_gold * rater.gold
        same = rater.repeats and rater.repeats_same < (filters.min_repeats or 0) * rater.repeats
        if gold or same:
            dropped.append(rater.rater)
    least_s = filters.min_dwell_s or 0.0
    return [v for v in votes if v.rater not in dropped and v.dwell_s >= least_s], tuple(dropped)


def filter_sentences(plan: Plan) -> tuple[str, ...]:
    """The declared filters in words."""
    filters, said = plan.filters, []
    if filters.min_gold is not None:
        said.append(f"Raters who answer less than {filters.min_gold:.0%} of their gold pairs rightly are left out.")
    if filters.min_repeats is not None:
        said.append(f"Raters who repeat less than {filters.min_repeats:.0%} of their answers are left out.")
    if filters.min_dwell_s is not None:
        said.append(f"Votes given in less than {filters.min_dwell_s:g} s are left out.")
    return tuple(said)


def analyse(plan: Plan, votes: Iterable[Vote]) -> Analysis:
    """Everything about these votes."""
    votes = sorted(votes, key=lambda vote: (vote.at_us, vote.rater, vote.trial.number))
    main = [vote for vote in votes if vote.trial.kind == "main"]
    counts = votes_by_item(plan, main)
    per_item = plan.stop.votes_per_item
    shown = evidence(complete_scores(plan, main), plan.stop.alpha) if plan.stop.kind == "sequential" else None
    pairs = _pairs(plan, main) if plan.mode == "pairwise" else []
    if shown is not None:
        pairs[0] = _by_evidence(plan, pairs[0], shown)
    return Analysis(
        plan_sha256=plan.sha256,
        votes=len(main),
        raters=len({vote.rater for vote in votes}),
        items_complete=sum(count >= per_item for count in counts),
        items=len(counts),
        votes_lacking=sum(max(per_item - count, 0) for count in counts),
        pairs=tuple(pairs),
        rankings=tuple(_rankings(plan, main)) if plan.mode == "pairwise" and len(plan.models) > 2 else (),
        ratings=tuple(_ratings(plan, main)) if plan.mode == "rating" else (),
        evidence=shown,
        health=health(plan, votes),
    )


def is_complete(plan: Plan, analysis: Analysis) -> bool:
    """True where the plan's own rule says that no more votes are needed."""
    if analysis.evidence is not None and analysis.evidence.winner is not None:
        return True
    return analysis.items_complete == analysis.items


def _pairs(plan: Plan, main: Sequence[Vote]) -> list[PairResult]:
    """Every pair on every criterion, over all prompts and then by category where there are several."""
    categories = sorted({prompt.category for prompt in plan.prompts})
    found = []
    for criterion in plan.criteria:
        columns = duels(plan, main, criterion.key)
        for first in range(len(plan.models)):
            for second in range(first + 1, len(plan.models)):
                pair = columns.between(first, second)
                found.append(pair_result(plan, pair, criterion.key, first, second))
                for category in categories if len(categories) > 1 else ():
                    inside = [place for place, prompt in enumerate(plan.prompts) if prompt.category == category]
                    part = pair.where(np.isin(pair.prompt, inside))
                    found.append(pair_result(plan, part, criterion.key, first, second, category))
    return found


def pair_result(
    plan: Plan, pair: Duels, criterion: str, first: int, second: int, category: str | None = None
) -> PairResult:
    """What the votes on one pair say."""
    decided = pair.where(pair.decided)
    won = int(decided.score.sum())
    without_ties = clustered(decided.prompt, decided.score) if len(decided) else None
    outcome, more = _outcome(plan, decided, without_ties)
    labels = plan.models[first].label, plan.models[second].label
    return PairResult(
        criterion=criterion,
        category=category,
        first=plan.models[first].key,
        second=plan.models[second].key,
        first_won=won,
        second_won=len(decided) - won,
        ties=int((~pair.decided & ~pair.both_bad).sum()),
        both_bad=int(pair.both_bad.sum()),
        without_ties=without_ties,
        with_ties=clustered(pair.prompt, pair.score) if len(pair) else None,
        outcome=outcome,
        more_prompts=more,
        sentence=_sentence(plan, outcome, more, without_ties, labels),
        fragility=fragility(decided.prompt, decided.score) if len(decided) and category is None else None,
    )


def _by_evidence(plan: Plan, result: PairResult, shown: Evidence) -> PairResult:
    """The result of the pair that decides a sequential study: by its evidence, as an interval for a fixed size is too
    short where one may stop when one likes the look of it.
    """
    left = len(plan.prompts) - shown.prompts
    far = f"the evidence is {shown.e_value:.3g}, and {shown.needed:.3g} decides"
    if shown.winner is None and left:
        sentence = f"Not decided after {shown.prompts} of {len(plan.prompts)} prompts: {far}."
        return replace(result, outcome="not enough", more_prompts=left, sentence=sentence)
    if shown.winner is None:
        sentence = f"No winner was found in all {shown.prompts} prompts: {far}."
        return replace(result, outcome="level", more_prompts=0, sentence=sentence)
    names = plan.label(result.first), plan.label(result.second)
    value, low, high = shown.value, shown.low, shown.high
    if shown.winner == 1:
        names, value, low, high = names[::-1], 1 - value, 1 - high, 1 - low
    sentence = (
        f"{names[0]} wins against {names[1]} after {shown.prompts} prompts: {value:.1%} of the votes, ties as half "
        f"({1 - plan.stop.alpha:.0%} interval, valid whenever one stops, {low:.1%} to {high:.1%})."
    )
    return replace(result, outcome=("first", "second")[shown.winner], more_prompts=0, sentence=sentence)


def _outcome(plan: Plan, decided: Duels, estimate: Estimate | None) -> tuple[Outcome, int]:
    """(what may be said, how many prompts are missing where that is nothing).

    Nothing may be said where the interval holds 1/2 and too few prompts were seen to find, with 80 % power, the
    smallest win rate that the plan declared to matter.
    """
    if estimate is not None and estimate.excludes(0.5):
        return ("first" if estimate.value > 0.5 else "second"), 0
    smallest = plan.smallest_win_rate
    have = 0 if estimate is None else estimate.prompts
    if have >= MIN_PROMPTS:
        sd = between_prompts_sd(decided.prompt, decided.score)
    else:  # the spread is not known yet: prompts that differ as much as is usual
        sd = share_sd(smallest, 1.0, plan.stop.votes_per_item)
    needed = max(prompts_for(smallest - 0.5, max(sd, 0.05)), MIN_PROMPTS)
    return ("level", 0) if have >= needed else ("not enough", needed - have)


def _sentence(plan: Plan, outcome: Outcome, more: int, estimate: Estimate | None, labels: tuple[str, str]) -> str:
    """The outcome in words."""
    if outcome == "not enough":
        have = 0 if estimate is None else estimate.prompts
        return (
            f"Not enough to compare {labels[0]} and {labels[1]}: {have} prompt{'' if have == 1 else 's'} with a "
            f"decided vote; about {more:,} more would find a win rate of {plan.smallest_win_rate:.0%} in four of "
            "five studies."
        )
    if outcome == "level":
        return (
            f"No difference was found between {labels[0]} and {labels[1]}: at so many prompts a win rate of "
            f"{plan.smallest_win_rate:.0%} would have shown in four of five studies."
        )
    winner, loser = labels if outcome == "first" else labels[::-1]
    value, low, high = estimate.value, estimate.low, estimate.high
    if outcome == "second":
        value, low, high = 1 - value, 1 - high, 1 - low
    return f"{winner} wins {value:.1%} of the decided votes against {loser} (95 % interval {low:.1%} to {high:.1%})."


def _rankings(plan: Plan, main: Sequence[Vote]) -> list[Ranking]:
    found = []
    for criterion in plan.criteria:
        columns = duels(plan, main, criterion.key)
        if len(columns):
            wins = board(columns, len(plan.models))
            ranked = strengths(columns, len(plan.models), plan.seed)
            found.append(Ranking(criterion.key, ranked, wins_to_dethrone(wins)))
    return found


# Ratings


def _ratings(plan: Plan, main: Sequence[Vote]) -> list[RatingResult]:
    """Every criterion and then Overall, each with all models that have a vote."""
    found = []
    for criterion in (*(known.key for known in plan.criteria), OVERALL):
        columns = {model.key: _levels(main, criterion, model.key) for model in plan.models}
        base = columns[plan.models[0].key]
        for model, (prompts, levels) in columns.items():
            if len(prompts) == 0:
                continue
            shares = {level: clustered(prompts, levels == place) for place, level in enumerate(LEVELS)}
            gain = None if model == plan.models[0].key else paired_gain(base, (prompts, levels))
            found.append(RatingResult(criterion, model, shares, gain))
    return found


def _levels(main: Sequence[Vote], criterion: str, model: str) -> tuple[np.ndarray, np.ndarray]:
    """((V,) prompts, (V,) places in LEVELS) of the votes on one model's pictures."""
    own = [vote for vote in main if vote.trial.left.model == model]
    given = [overall(list(v.answers.values())) if criterion == OVERALL else v.answers[criterion] for v in own]
    return np.array([v.trial.prompt for v in own], int), np.array([LEVELS.index(level) for level in given], int)


def paired_gain(base: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> Estimate | None:
    """The share of Excellent of `other` minus that of `base`, over the prompts that both have; None without one.

    Each is ((V,) prompts, (V,) places in LEVELS). A prompt counts once, so its difficulty cancels.
    """
    shared = np.intersect1d(base[0], other[0])
    if len(shared) == 0:
        return None
    gains = [
        float((other[1][other[0] == prompt] == 0).mean() - (base[1][base[0] == prompt] == 0).mean())
        for prompt in shared
    ]
    return clustered(shared, gains, bounds=(-1.0, 1.0))
