"""The analysis as a whole: counts by hand, outcomes in words, filters, and ratings."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from srpo.studies.analysis import analyse, apply_filters, filter_sentences, is_complete, results
from srpo.studies.criteria import LEVELS, PAPER, STANDARD
from srpo.studies.schedule import schedule
from srpo.studies.schema import Filters, FixedStop, Prompt, SequentialStop
from srpo.studies.simulation import World, clicks_left, example_plan, simulate
from srpo.studies.votes import Vote, check_answers, check_dwell

BETTER = World(strengths={"model-1": 2.0}, ties=0.0)


def votes_by(plan, rater, answer):
    """All of a rater's votes; answer: trial -> answer to every question."""
    trials = schedule(plan, rater)
    return [
        Vote(rater, trial, {known.key: answer(trial) for known in plan.criteria}, 3.0, 1000 * trial.number)
        for trial in trials
    ]


def for_model(model):
    return lambda trial: "left" if trial.left.model == model else "right"


def test_wins_ties_and_both_bad_are_counted_once_each_whatever_the_side():
    """Of 40 prompts, by number modulo 4: model 0, model 1, tie, both bad."""
    plan = example_plan(prompts=40)

    def answer(trial):
        turn = trial.prompt % 4
        return for_model(f"model-{turn}")(trial) if turn < 2 else ("tie", "both bad")[turn - 2]

    (pair,) = analyse(plan, votes_by(plan, 0, answer) + votes_by(plan, 1, answer)).pairs
    assert (pair.first_won, pair.second_won, pair.ties, pair.both_bad) == (20, 20, 20, 20)
    assert pair.without_ties.value == pair.with_ties.value == 0.5
    assert (pair.without_ties.votes, pair.with_ties.votes) == (40, 80)
    assert (pair.without_ties.prompts, pair.with_ties.prompts) == (20, 40)


def test_repeats_and_gold_pairs_do_not_count_as_votes():
    plan = example_plan(prompts=40)
    found = analyse(plan, votes_by(plan, 0, for_model("model-1")))
    assert found.votes == found.pairs[0].second_won == 40
    assert (found.health.repeats, found.health.gold) == (plan.num_repeats, plan.num_gold)


def test_a_clear_winner_is_named_from_the_winners_side():
    plan = example_plan(prompts=40)
    found = analyse(plan, simulate(plan, 5, 0, BETTER)).pairs[0]
    assert found.outcome == "second" and found.more_prompts == 0
    assert found.sentence.startswith("Model 1 wins ")
    assert f"{1 - found.without_ties.value:.1%} of the decided votes against Model 0" in found.sentence
    assert found.fragility.to_doubt > 10


def test_too_little_data_says_so_and_how_much_more_is_needed():
    plan = example_plan(prompts=8)
    found = analyse(plan, simulate(plan, 5, 0, BETTER)).pairs[0]
    assert found.outcome == "not enough" and found.without_ties.low is None
    assert found.sentence.startswith("Not enough to compare Model 0 and Model 1: 8 prompts with a decided vote; ")
    assert f"{found.more_prompts:,} more" in found.sentence
    empty = analyse(plan, []).pairs[0]
    assert empty.outcome == "not enough" and empty.without_ties is empty.with_ties is empty.fragility is None
    assert empty.more_prompts == found.more_prompts + 8


def test_with_the_prompts_it_lacked_a_study_without_a_difference_says_that_there_is_none():
    small = analyse(example_plan(prompts=30), simulate(example_plan(prompts=30), 3, 1)).pairs[0]
    assert small.outcome == "not enough"
    plan = example_plan(prompts=30 + small.more_prompts + 40)
    large = analyse(plan, simulate(plan, 3, 1)).pairs[0]
    assert large.outcome == "level"
    assert "a win rate of 60% would have shown in four of five studies" in large.sentence


def test_a_study_by_evidence_is_judged_by_its_evidence():
    plan = example_plan(prompts=60, stop=SequentialStop(votes_per_item=3))
    votes = simulate(plan, 3, 0, BETTER)
    won = analyse(plan, votes)
    assert won.evidence.winner == 1 and won.pairs[0].outcome == "second" and is_complete(plan, won)
    assert "valid whenever one stops" in won.pairs[0].sentence
    begun = analyse(plan, [vote for vote in votes if vote.rater < 2])
    assert begun.pairs[0].outcome == "not enough" and begun.pairs[0].more_prompts == 60
    assert not is_complete(plan, begun)
    level = analyse(plan, simulate(plan, 3, 0, World(ties=1.0)))
    assert level.pairs[0].outcome == "level" and is_complete(plan, level)
    assert "No winner was found in all 60 prompts" in level.pairs[0].sentence


def test_progress_counts_items_and_the_votes_that_are_lacking():
    plan = example_plan(prompts=10, stop=FixedStop(votes_per_item=2))
    votes = simulate(plan, 2, 0)
    half = analyse(plan, [vote for vote in votes if vote.rater == 0])
    assert (half.items_complete, half.items, half.votes_lacking) == (0, 10, 10)
    full = analyse(plan, votes)
    assert (full.items_complete, full.votes_lacking, full.raters) == (10, 0, 2)
    assert is_complete(plan, full) and not is_complete(plan, half)


def test_categories_and_criteria_are_analysed_on_their_own():
    texts = [Prompt(text=f"thing {number}", category=("photo", "anime")[number % 2]) for number in range(40)]
    plan = example_plan(prompts=40, criteria=STANDARD).model_copy(update={"prompts": tuple(texts)})
    plan = type(plan)(**{name: getattr(plan, name) for name in type(plan).model_fields})

    def answer(trial):
        return for_model("model-1" if trial.prompt % 2 else "model-0")(trial)

    found = analyse(plan, votes_by(plan, 0, answer)).pairs
    assert [(pair.criterion, pair.category) for pair in found[:3]] == [
        *(("alignment", None), ("alignment", "anime"), ("alignment", "photo")),
    ]
    assert len(found) == 5 * 3
    assert [pair.without_ties.value for pair in found[:3]] == [0.5, 0.0, 1.0]


def test_three_models_are_ranked_and_two_are_not():
    plan = example_plan(prompts=30, models=3)
    found = analyse(plan, simulate(plan, 3, 0, World(strengths={"model-2": 2.0, "model-1": 1.0})))
    assert [strength.model for strength in found.rankings[0].strengths] == [2, 1, 0]
    assert found.rankings[0].wins_to_dethrone > 0
    assert len(found.pairs) == 3
    assert analyse(example_plan(), []).rankings == ()
    assert analyse(plan, []).rankings == ()


def test_ratings_are_shares_of_levels_with_the_derived_overall():
    """Model 0 is Good throughout; model 1 Excellent on even prompts and Fail on odd ones."""
    plan = example_plan(prompts=20, mode="rating", criteria=PAPER)

    def answer(trial):
        if trial.kind == "gold":
            return "Fail"
        return "Good" if trial.left.model == "model-0" else ("Excellent", "Fail")[trial.prompt % 2]

    found = {(r.criterion, r.model): r for r in analyse(plan, votes_by(plan, 0, answer)).ratings}
    assert len(found) == 5 * 2
    for criterion in ("alignment", "realism", "detail", "aesthetics"):
        assert [found[criterion, "model-0"].shares[level].value for level in LEVELS] == [0, 1, 0, 0]
    for criterion in ("alignment", "overall"):
        assert [found[criterion, "model-1"].shares[level].value for level in LEVELS] == [0.5, 0, 0, 0.5]
    # No Excellent and no Fail: the paper's rule makes four times Good a Pass.
    assert [found["overall", "model-0"].shares[level].value for level in LEVELS] == [0, 0, 1, 0]
    gain = found["overall", "model-1"].excellent_gain
    assert gain.value == 0.5 and gain.excludes(0.0)
    assert found["overall", "model-0"].excellent_gain is None
    assert all(sum(share.value for share in r.shares.values()) == pytest.approx(1) for r in found.values())


def test_declared_filters_leave_out_raters_and_votes_and_the_results_show_both():
    plan = example_plan(prompts=40, gold=0.1, filters=Filters(min_gold=0.75, min_repeats=0.2, min_dwell_s=1.0))
    votes = simulate(plan, 5, 0, BETTER, {1: clicks_left})
    hasty = [replace(vote, dwell_s=0.3) if vote.rater == 2 and vote.trial.number < 7 else vote for vote in votes]
    kept, dropped = apply_filters(plan, hasty)
    assert dropped == (1,)
    assert len(hasty) - len(kept) == plan.num_trials + 7
    found = results(plan, hasty)
    assert found.dropped_raters == (1,) and found.dropped_votes == plan.num_trials + 7
    assert (found.everything.raters, found.filtered.raters) == (5, 4)
    assert found.filtered.pairs[0].without_ties.value < found.everything.pairs[0].without_ties.value
    assert len(found.filters) == 3 and "75%" in found.filters[0] and "1 s" in found.filters[2]


def test_without_filters_both_results_are_one():
    plan = example_plan(prompts=12, filters=Filters(min_gold=None, min_repeats=None, min_dwell_s=None))
    found = results(plan, simulate(plan, 3, 0, behaviours={1: clicks_left}))
    assert found.filtered is found.everything and found.dropped_votes == 0
    assert filter_sentences(plan) == ()


def test_the_same_votes_in_any_order_give_the_same_numbers_which_json_can_hold():
    plan = example_plan(prompts=20, models=3)
    votes = simulate(plan, 3, 0)
    found = results(plan, votes)
    assert results(plan, votes[::-1]) == found
    assert json.loads(json.dumps(asdict(found), allow_nan=False))["everything"]["votes"] == 180


@pytest.mark.parametrize(
    "answers", [{}, {"overall": "middle"}, {"overall": 1}, {"overall": "left", "x": "left"}, None, "left", ["left"]]
)
def test_answers_that_do_not_fit_are_refused(answers):
    with pytest.raises(ValueError, match=r"A vote answers|An answer is one of"):
        check_answers(example_plan(), answers)


def test_a_rating_is_a_level_and_a_choice_is_none():
    plan = example_plan(mode="rating", criteria=PAPER)
    good = dict.fromkeys((known.key for known in PAPER), "Good")
    assert check_answers(plan, good) == good
    with pytest.raises(ValueError, match="An answer is one of Excellent, Good, Pass, Fail"):
        check_answers(plan, good | {"realism": "left"})


@pytest.mark.parametrize("dwell_s", [-1, float("nan"), float("inf"), "3", None, True])
def test_a_look_takes_a_number_of_seconds(dwell_s):
    with pytest.raises(ValueError, match="number of seconds"):
        check_dwell(dwell_s)


def test_a_look_of_days_is_one_of_a_day():
    assert (check_dwell(3), check_dwell(1e9)) == (3.0, 86400.0)
