"""The health of votes: numbers by hand, planted defects found, clean boards left in peace."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from srpo.studies.criteria import PAPER, WHOLE
from srpo.studies.health import alpha, health, rater_health
from srpo.studies.schedule import schedule
from srpo.studies.simulation import (
    World,
    answers_from_a_list,
    clicks_fast,
    clicks_left,
    example_plan,
    simulate,
    votes_for,
)
from srpo.studies.votes import Vote

PLAN = example_plan(prompts=40)
WORLD = World(strengths={"model-1": 0.4})


def flagged(behaviours, raters=6, seed=0, plan=PLAN):
    """{(kind, raters)} of the flags."""
    return {(flag.kind, flag.raters) for flag in health(plan, simulate(plan, raters, seed, WORLD, behaviours)).flags}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("raters", [4, 6, 10])
def test_a_side_clicker_is_flagged_and_nobody_else(raters, seed):
    found = flagged({1: clicks_left}, raters, seed)
    assert ("side", (1,)) in found
    assert all(1 in who for _, who in found)


@pytest.mark.parametrize("seed", range(5))
def test_a_fast_clicker_is_flagged_and_nobody_else(seed):
    found = flagged({2: clicks_fast}, seed=seed)
    assert ("fast", (2,)) in found
    assert all(2 in who for _, who in found)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("raters", [6, 10])
def test_colluding_raters_are_flagged_as_the_pair_they_are(raters, seed):
    found = flagged({1: answers_from_a_list, 4: answers_from_a_list}, raters, seed)
    assert ("alike", (1, 4)) in found
    assert {who for kind, who in found if kind == "alike"} == {(1, 4)}


def test_three_colluding_raters_are_flagged_in_pairs():
    found = flagged(dict.fromkeys((0, 3, 7), answers_from_a_list), raters=10)
    assert {who for kind, who in found if kind == "alike"} >= {(0, 3), (0, 7), (3, 7)}


@pytest.mark.parametrize("model", ["model-0", "model-1"])
@pytest.mark.parametrize("seed", range(5))
def test_a_rater_who_knows_the_models_is_flagged(model, seed):
    found = flagged({3: votes_for(model)}, seed=seed)
    assert ("one model", (3,)) in found
    assert {who for kind, who in found if kind == "one model"} == {(3,)}


@pytest.mark.parametrize("seed", range(5))
def test_an_identity_that_leaks_half_way_is_flagged(seed):
    knows = votes_for("model-1", late_only=True)
    assert ("drift", ()) in flagged(dict.fromkeys(range(6), knows), seed=seed)


def test_a_rater_who_fails_the_gold_pairs_is_flagged():
    plan = example_plan(prompts=40, gold=0.2)
    votes = simulate(plan, 4, 0, WORLD)
    wrong = {"left": "right", "right": "left"}
    votes = [
        replace(vote, answers={"overall": wrong[vote.trial.better]})
        if vote.rater == 2 and vote.trial.kind == "gold"
        else vote
        for vote in votes
    ]
    assert [(flag.kind, flag.raters) for flag in health(plan, votes).flags] == [("gold", (2,))]


def test_a_rater_who_answers_one_thing_to_everything_is_flagged():
    assert ("one answer", (0,)) in flagged({0: lambda look: ("both bad", 3.0)})
    rating = example_plan(prompts=30, mode="rating", criteria=PAPER)
    assert ("one answer", (0,)) in flagged({0: lambda look: ("Good", 3.0)}, plan=rating)


def test_a_rater_who_gave_most_of_the_votes_is_flagged():
    votes = simulate(PLAN, 4, 0, WORLD)
    few = [vote for vote in votes if vote.rater == 0 or vote.trial.number < 5]
    assert ("dominates", (0,)) in {(flag.kind, flag.raters) for flag in health(PLAN, few).flags}


@pytest.mark.parametrize(
    "world",
    [World(), World(strengths={"model-1": 1.0}), World(strengths={"model-1": 2.5}, prompt_sd=1.5), World(ties=0.5)],
    ids=["equal", "better", "far better", "many ties"],
)
@pytest.mark.parametrize("raters", [2, 4, 10])
def test_clean_boards_raise_no_flag(world, raters):
    found = Counter()
    for seed in range(25):
        found.update(flag.kind for flag in health(PLAN, simulate(PLAN, raters, seed, world)).flags)
    assert not found


def test_clean_boards_of_three_models_and_of_ratings_raise_no_flag():
    for plan in (
        example_plan(prompts=20, models=3, seeds=2),
        example_plan(prompts=30, models=2, mode="rating", criteria=PAPER),
    ):
        for seed in range(10):
            assert health(plan, simulate(plan, 5, seed, World(strengths={"model-1": 1.0}))).flags == ()


def test_a_raters_numbers_are_counts_of_their_own_votes():
    """Rater 0 always chooses the left side after 2 s: half the gold pairs are right, no swapped repeat agrees."""
    plan = example_plan(prompts=34, gold=0.1)
    answers = {"overall": "left"}
    votes = [Vote(0, trial, answers, 2.0, 1) for trial in schedule(plan, 0)]
    (found,) = rater_health(plan, votes)
    assert (found.votes, found.share, found.left_share) == (34, 1.0, 1.0)
    assert (found.gold_right, found.gold) == (2, 4)
    assert (found.repeats_same, found.repeats) == (0, 4)
    assert (found.median_dwell_s, found.fast_share) == (2.0, 0.0)
    whole = health(plan, votes)
    assert (whole.left.value, whole.gold, whole.repeats, whole.median_dwell_s) == (1.0, 4, 4, 2.0)
    assert whole.left_p == pytest.approx(2 * 0.5**34)


def test_a_repeat_whose_first_vote_was_taken_back_is_no_repeat():
    plan = example_plan(prompts=34)
    votes = simulate(plan, 1, 0)
    firsts = {vote.trial.of for vote in votes if vote.trial.kind == "repeat"}
    (found,) = rater_health(plan, [vote for vote in votes if vote.trial.number not in firsts])
    assert found.repeats == 0


def two_raters(answers):
    """Main votes of two raters on the same pictures; answers: [(of the first, of the second)], as models or a word."""
    plan = example_plan(prompts=len(answers), repeats=0.0, gold=0.0)
    votes = []
    for rater in (0, 1):
        for trial in schedule(plan, rater):
            said = answers[trial.prompt][rater]
            sides = {trial.left.model: "left", trial.right.model: "right"}
            votes.append(Vote(rater, trial, {"overall": sides.get(said, said)}, 3.0, 1))
    return plan, votes


A, B = "model-0", "model-1"


def test_alpha_is_krippendorffs_for_nominal_data_by_hand():
    """Ten pairs, A-A five times, B-B three, A-B twice: 12 A, 8 B.

    Observed disagreement 2 of 10 pairs; expected 2 * 12 * 8 / (20 * 19). alpha = 1 - 0.2 / 0.50526 = 0.604.
    """
    plan, votes = two_raters([(A, A)] * 5 + [(B, B)] * 3 + [(A, B), (B, A)])
    assert alpha(plan, votes, "overall") == pytest.approx(1 - 0.2 / (2 * 12 * 8 / 380))


def test_alpha_does_not_depend_on_sides_and_tells_a_tie_from_both_bad():
    plan, votes = two_raters([(A, A), (B, B), ("tie", "tie"), ("both bad", "both bad")])
    assert alpha(plan, votes, "overall") == pytest.approx(1.0)
    plan, votes = two_raters([(A, A), (B, B), ("tie", "both bad")])
    assert alpha(plan, votes, "overall") < 1


def test_alpha_is_not_defined_without_two_votes_on_an_item_or_without_two_answers():
    plan, votes = two_raters([(A, A), (A, A)])
    assert alpha(plan, votes, "overall") is None
    plan, votes = two_raters([(A, B), (B, A)])
    assert alpha(plan, [vote for vote in votes if vote.rater == 0], "overall") is None
    assert alpha(plan, [], "overall") is None


def test_alpha_of_ratings_is_ordinal():
    """Neighbouring levels disagree less than far ones."""
    plan = example_plan(
        prompts=12, models=1, mode="rating", criteria=(WHOLE.model_copy(update={"key": "look"}),), gold=0
    )

    def value(other):
        votes = []
        for rater in (0, 1):
            for trial in schedule(plan, rater):
                level = ("Excellent", "Fail")[trial.prompt % 2]
                if rater == 1 and trial.prompt < 4:
                    level = other[level]
                votes.append(Vote(rater, trial, {"look": level}, 3.0, 1))
        return alpha(plan, [vote for vote in votes if vote.trial.kind == "main"], "look")

    near = value({"Excellent": "Good", "Fail": "Pass"})
    far = value({"Excellent": "Fail", "Fail": "Excellent"})
    assert 0 < far < near < 1


def test_no_votes_are_healthy_and_say_nothing():
    found = health(PLAN, [])
    assert (found.raters, found.flags, found.left, found.median_dwell_s) == ((), (), None, None)
    assert found.alpha == {"overall": None}
