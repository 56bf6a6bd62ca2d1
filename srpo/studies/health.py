"""Whether votes can be trusted: agreement, bias, consistency, and raters whose votes say something is wrong.

Flags rest on the study's first criterion, as answers of one look resemble one another. Each has a margin beside its
test: honest raters differ a little, and with enough votes any little difference is significant.
R raters, U items (a lane with a prompt and a seed), V votes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import krippendorff
import numpy as np
from scipy import special

from srpo.studies.criteria import CHOICES, LEVELS
from srpo.studies.estimates import MIN_PROMPTS, Estimate, binomial_tail, clustered, sign_test
from srpo.studies.schema import Plan
from srpo.studies.votes import Duels, Vote, duels

FAMILY_P = 0.001  # the chance that a clean study raises any flag of one kind
FAST_S = 1.0  # nobody compares two pictures in less
FAST_SHARE = 0.3  # of a rater's votes
SIDE_MARGIN = 0.2  # from one half
AGREEMENT_MARGIN = 0.1  # above what two such raters should agree
MODEL_MARGIN = 0.25  # of the win share, from the other raters' on the same items
DRIFT_MARGIN = 0.15  # of the win share, between the halves of the study
GOLD_EXPECTED = 0.9
DOMINANT_SHARE = 0.4  # of all votes, and more than twice an equal part
MIN_SHARED_ITEMS = 15


@dataclass(frozen=True)
class RaterHealth:
    """One rater in numbers; counts with the number they are of."""

    rater: int
    votes: int  # on main trials
    share: float  # of the study's
    left_share: float | None  # of the decided ones; None where there is none, or no sides
    gold_right: int
    gold: int
    repeats_same: int
    repeats: int
    median_dwell_s: float
    fast_share: float  # of all votes, in less than FAST_S


@dataclass(frozen=True)
class Flag:
    """Something a reader of the results should know."""

    kind: str  # "side", "one answer", "fast", "gold", "inconsistent", "alike", "one model", "drift" or "dominates"
    raters: tuple[int, ...]  # empty where it concerns the whole study
    sentence: str


@dataclass(frozen=True)
class Health:
    """The health of a study's votes."""

    alpha: dict[str, float | None]  # Krippendorff's, by criterion; None where nothing can be compared
    left: Estimate | None  # share of the left side among decided votes
    left_p: float | None  # of the exact sign test
    gold_right: int
    gold: int
    repeats_same: int
    repeats: int
    median_dwell_s: float | None
    raters: tuple[RaterHealth, ...]
    flags: tuple[Flag, ...]


def health(plan: Plan, votes: Sequence[Vote]) -> Health:
    """The health of these votes, flags included."""
    raters = tuple(rater_health(plan, votes))
    main = [vote for vote in votes if vote.trial.kind == "main"]
    left = left_p = None
    if plan.mode == "pairwise":
        columns = duels(plan, main, plan.criteria[0].key)
        decided = columns.where(columns.decided)
        if len(decided):
            left = clustered(decided.prompt, decided.chose_left)
            left_p = sign_test(int(decided.chose_left.sum()), len(decided))
    return Health(
        alpha={criterion.key: alpha(plan, main, criterion.key) for criterion in plan.criteria},
        left=left,
        left_p=left_p,
        gold_right=sum(rater.gold_right for rater in raters),
        gold=sum(rater.gold for rater in raters),
        repeats_same=sum(rater.repeats_same for rater in raters),
        repeats=sum(rater.repeats for rater in raters),
        median_dwell_s=float(np.median([vote.dwell_s for vote in votes])) if votes else None,
        raters=raters,
        flags=tuple(flags(plan, votes, raters)),
    )


def rater_health(plan: Plan, votes: Sequence[Vote]) -> list[RaterHealth]:
    """Every rater with a vote, in order of their numbers, on the first criterion."""
    key = plan.criteria[0].key
    by_rater: dict[int, dict[int, Vote]] = {}
    for vote in votes:
        by_rater.setdefault(vote.rater, {})[vote.trial.number] = vote
    num_main = sum(vote.trial.kind == "main" for vote in votes)
    found = []
    for rater, own in sorted(by_rater.items()):
        main = [vote for vote in own.values() if vote.trial.kind == "main"]
        sides = [vote.answers[key] for vote in main if vote.answers[key] in ("left", "right")]
        gold = [gold_passed(vote, key) for vote in own.values() if vote.trial.kind == "gold"]
        repeats = [
            chosen(vote, key) == chosen(own[vote.trial.of], key)
            for vote in own.values()
            if vote.trial.kind == "repeat" and vote.trial.of in own
        ]
        dwell_s = [vote.dwell_s for vote in own.values()]
        found.append(
            RaterHealth(
                rater=rater,
                votes=len(main),
                share=len(main) / num_main if num_main else 0.0,
                left_share=sides.count("left") / len(sides) if sides else None,
                gold_right=sum(gold),
                gold=len(gold),
                repeats_same=sum(repeats),
                repeats=len(repeats),
                median_dwell_s=float(np.median(dwell_s)),
                fast_share=sum(seconds < FAST_S for seconds in dwell_s) / len(dwell_s),
            )
        )
    return found


def gold_passed(vote: Vote, criterion: str) -> bool:
    """True where a gold pair was answered rightly; a spoiled picture alone must get one of the lower two levels."""
    if vote.trial.better is None:
        return vote.answers[criterion] in LEVELS[2:]
    return vote.answers[criterion] == vote.trial.better


def chosen(vote: Vote, criterion: str) -> str:
    """The model that was chosen, or the answer itself where none was."""
    answer = vote.answers[criterion]
    shown = dict(zip(("left", "right"), vote.trial.pictures, strict=False))
    return shown[answer].model if answer in shown else answer


def alpha(plan: Plan, main: Sequence[Vote], criterion: str) -> float | None:
    """Krippendorff's alpha of the main votes: nominal for choices, ordinal for levels. None where it is not defined.

    That is where no item has two votes, or all votes are the same.
    """
    answers = Answers.of(main, criterion)
    level = "ordinal" if plan.mode == "rating" else "nominal"
    values = answers.codes[~np.isnan(answers.codes)]
    if len(np.unique(values)) < 2 or not (np.sum(~np.isnan(answers.codes), axis=0) > 1).any():
        return None
    return float(krippendorff.alpha(reliability_data=answers.codes, level_of_measurement=level))


@dataclass(frozen=True)
class Answers:
    """Every rater's answer to every item."""

    raters: list[int]  # (R,) their numbers
    codes: np.ndarray  # (R, U) float; NaN where there is none

    @classmethod
    def of(cls, main: Sequence[Vote], criterion: str) -> Answers:
        raters = sorted({vote.rater for vote in main})
        items = {item: place for place, item in enumerate(sorted({item_of(vote) for vote in main}))}
        rows = {rater: place for place, rater in enumerate(raters)}
        codes = np.full((len(raters), len(items)), np.nan)
        for vote in main:
            codes[rows[vote.rater], items[item_of(vote)]] = _code(vote, criterion)
        return cls(raters, codes)


def item_of(vote: Vote) -> tuple:
    """(the lane's models, prompt, seed): what two raters must share for their answers to be compared."""
    return vote.trial.lane, vote.trial.prompt, vote.trial.left.seed


def _code(vote: Vote, criterion: str) -> int:
    """The answer as a number, independent of the sides: the lane's model that was chosen, or the kind of answer."""
    answer = vote.answers[criterion]
    if answer in LEVELS:
        return LEVELS.index(answer)
    if answer in ("left", "right"):
        return vote.trial.lane.index(chosen(vote, criterion))
    return CHOICES.index(answer)


# Flags


def flags(plan: Plan, votes: Sequence[Vote], raters: Sequence[RaterHealth]) -> list[Flag]:
    """All flags, those of single raters first."""
    key = plan.criteria[0].key
    main = [vote for vote in votes if vote.trial.kind == "main"]
    answers = Answers.of(main, key)
    found = [flag for rater in raters for flag in _of_rater(plan, votes, rater, raters)]
    found += _alike(answers)
    if plan.mode == "pairwise":
        columns = duels(plan, main, key)
        for first, second in {(int(a), int(b)) for a, b in zip(columns.first, columns.second, strict=True)}:
            pair = columns.between(first, second)
            found += _one_model(plan, pair, len(plan.lanes), len(raters))
            found += _drift(plan, pair, len(plan.lanes))
    return found


def _of_rater(plan: Plan, votes: Sequence[Vote], rater: RaterHealth, raters: Sequence[RaterHealth]) -> list[Flag]:
    """What a rater's own votes show."""
    key, found, bound = plan.criteria[0].key, [], FAMILY_P / len(raters)
    answers = [vote.answers[key] for vote in votes if vote.rater == rater.rater and vote.trial.kind == "main"]
    lefts, rights = answers.count("left"), answers.count("right")
    name = f"Rater {rater.rater}"
    if lefts + rights and sign_test(lefts, lefts + rights) < bound:
        side, hits = ("left", lefts) if lefts > rights else ("right", rights)
        if hits / (lefts + rights) > 0.5 + SIDE_MARGIN:
            sentence = f"{name} chose the {side} side in {hits} of {lefts + rights} decided votes."
            found.append(Flag("side", (rater.rater,), sentence))
    others = [vote.answers[key] for vote in votes if vote.rater != rater.rater and vote.trial.kind == "main"]
    for answer in set(answers) - {"left", "right"}:
        hits, usual = answers.count(answer), (others.count(answer) + 1) / (len(others) + 2)
        if hits > 0.9 * len(answers) and binomial_tail(hits, len(answers), min(0.8, usual + SIDE_MARGIN)) < bound:
            found.append(Flag("one answer", (rater.rater,), f"{name} answered “{answer}” to nearly everything."))
    if rater.fast_share > FAST_SHARE and rater.votes >= MIN_SHARED_ITEMS:
        sentence = f"{name} answered {rater.fast_share:.0%} of the pairs in less than {FAST_S:g} s."
        found.append(Flag("fast", (rater.rater,), sentence))
    wrong = rater.gold - rater.gold_right
    if wrong and binomial_tail(wrong, rater.gold, 1 - GOLD_EXPECTED) < bound:
        found.append(Flag("gold", (rater.rater,), f"{name} failed {wrong} of {rater.gold} gold pairs."))
    same = sum(other.repeats_same for other in raters if other is not rater)
    repeats = sum(other.repeats for other in raters if other is not rater)
    changed = rater.repeats - rater.repeats_same
    if repeats >= MIN_SHARED_ITEMS and changed:
        # As likely as for the others together, or somewhat more: their share is itself an estimate.
        usual = min((repeats - same + 1) / (repeats + 2) + AGREEMENT_MARGIN, 0.9)
        if binomial_tail(changed, rater.repeats, usual) < bound:
            sentence = f"{name} changed the answer in {changed} of {rater.repeats} repeats."
            found.append(Flag("inconsistent", (rater.rater,), sentence))
    if len(raters) > 2 and rater.share > max(DOMINANT_SHARE, 2 / len(raters)):
        found.append(Flag("dominates", (rater.rater,), f"{name} gave {rater.share:.0%} of all votes."))
    return found


def _alike(answers: Answers) -> list[Flag]:
    """Raters who agree more than each of them does with the others: they may have worked together.

    The clearest pair comes first; whoever is flagged is no measure of what the rest should agree.
    """
    there = (~np.isnan(answers.codes)).astype(float)
    shared = there @ there.T  # (R, R) items that both answered
    same = np.zeros_like(shared)
    for code in np.unique(answers.codes[there > 0]):
        hit = (answers.codes == code).astype(float)
        same += hit @ hit.T
    num_raters = len(answers.raters)
    pairs = [(r, s) for r in range(num_raters) for s in range(r) if shared[r, s] >= MIN_SHARED_ITEMS]
    suspects: set[int] = set()
    found = []
    while pairs:
        judged = {}
        for pair in pairs:
            others = [t for t in range(num_raters) if t not in pair and t not in suspects]
            if others and (likely := _expected_agreement(same, shared, pair, others)) is not None:
                expected, most = likely
                hits, cases = int(same[pair]), int(shared[pair])
                if hits / cases > most + AGREEMENT_MARGIN / 2:
                    judged[pair] = binomial_tail(hits, cases, most), expected, hits, cases
        if not judged or (clearest := min(judged.items(), key=lambda entry: entry[1][0]))[1][0] >= FAMILY_P / len(
            pairs
        ):
            break
        pair, (_, expected, hits, cases) = clearest
        both = tuple(sorted(answers.raters[place] for place in pair))
        sentence = (
            f"Raters {both[0]} and {both[1]} gave the same answer to {hits} of {cases} items, "
            f"where {expected:.0%} would be expected."
        )
        found.append(Flag("alike", both, sentence))
        suspects.update(pair)
        pairs.remove(pair)
    return found


def _expected_agreement(
    same: np.ndarray, shared: np.ndarray, pair: tuple[int, int], others: list[int]
) -> tuple[float, float] | None:
    """(the share of answers that two independent raters should have in common, its upper end).

    It follows from their agreement with the others in an additive model of logits: a careful rater agrees more with
    everyone. None where the others say nothing about one of the two.
    """
    if min(shared[one, others].sum() for one in pair) < MIN_SHARED_ITEMS:
        return None
    logits = [_logit(same[one, others].sum(), shared[one, others].sum()) for one in pair]
    rest = np.ix_(others, others)
    if (num_among := np.tril(shared[rest], -1).sum()) > 0:
        among = _logit(np.tril(same[rest], -1).sum(), num_among)
        middle, variance = logits[0][0] + logits[1][0] - among[0], logits[0][1] + logits[1][1] + among[1]
    else:  # of three raters: as much as the one who agrees more with the third
        middle, variance = max(logits)
    return float(special.expit(middle)), float(special.expit(middle + 2.5 * math.sqrt(variance)))


def _logit(hits: float, cases: float) -> tuple[float, float]:
    """(a smoothed logit of hits of cases, its variance)."""
    hits, misses = hits + 0.5, cases - hits + 0.5
    return math.log(hits / misses), 1 / hits + 1 / misses


def _one_model(plan: Plan, pair: Duels, num_lanes: int, num_raters: int) -> list[Flag]:
    """Raters who favour one model far more than the others do on the same items: they may know which it is.

    The clearest comes first, and counts no more among the others: of two raters who differ, neither can be named.
    """
    found = []
    while len(np.unique(pair.rater)) > 2:
        _, place = np.unique(pair.prompt * (max(plan.seeds) + 1) + pair.seed, return_inverse=True)
        sums, counts = np.bincount(place, weights=pair.score), np.bincount(place)
        apart = {}
        for rater in np.unique(pair.rater).tolist():
            own = (pair.rater == rater) & (counts[place] > 1)
            if own.sum() >= MIN_SHARED_ITEMS:
                others = (sums[place[own]] - pair.score[own]) / (counts[place[own]] - 1)
                mean, p = _t_test(pair.score[own] - others)
                if abs(mean) > MODEL_MARGIN and p < FAMILY_P / (num_lanes * num_raters):
                    apart[rater] = mean
        if not apart:
            break
        rater, mean = max(apart.items(), key=lambda entry: abs(entry[1]))
        model = plan.models[int(pair.first[0] if mean > 0 else pair.second[0])]
        sentence = (
            f"Rater {rater} preferred {model.label} by {abs(mean):.0%} of the votes more than the others did on "
            "the same pictures: its identity may have leaked."
        )
        found.append(Flag("one model", (rater,), sentence))
        pair = pair.where(pair.rater != rater)
    return found


def _drift(plan: Plan, pair: Duels, num_lanes: int) -> list[Flag]:
    """A preference that changed between the first and the second half of the votes, on the same prompts."""
    if len(pair) == 0:
        return []
    late = pair.at_us > np.median(pair.at_us)
    changes = []
    for prompt in np.unique(pair.prompt):
        here = pair.prompt == prompt
        if (here & late).any() and (here & ~late).any():
            changes.append(pair.score[here & late].mean() - pair.score[here & ~late].mean())
    if len(changes) < 2 * MIN_PROMPTS:
        return []
    mean, p = _t_test(np.array(changes))
    if abs(mean) <= DRIFT_MARGIN or p >= FAMILY_P / num_lanes:
        return []
    model = plan.models[int(pair.first[0] if mean > 0 else pair.second[0])]
    sentence = (
        f"In the second half of the study {model.label} won {abs(mean):.0%} of the votes more than in the first, on "
        "the same prompts: its identity may have leaked on the way."
    )
    return [Flag("drift", (), sentence)]


def _t_test(differences: np.ndarray) -> tuple[float, float]:
    """(the mean, the two-sided p-value of its being 0)."""
    count, mean = len(differences), float(differences.mean())
    error = float(differences.std(ddof=1)) / math.sqrt(count)
    if error == 0:
        return mean, 1.0 if mean == 0 else 0.0
    return mean, float(2 * special.stdtr(count - 1, -abs(mean / error)))
