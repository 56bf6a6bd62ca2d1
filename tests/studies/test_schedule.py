"""Schedules: the rules of the design on random studies, and the checker of the rules on broken ones."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from benchmarks.studies import random_plan
from srpo.studies.criteria import PAPER
from srpo.studies.schedule import Shown, Trial, broken_rules, gold_pool, pictures, schedule
from srpo.studies.schema import FixedStop
from srpo.studies.simulation import example_plan


@pytest.mark.parametrize("number", range(300))
def test_every_rule_holds_in_a_random_study(number):
    rng = random.Random(number)
    plan = random_plan(rng)
    schedules = {rater: schedule(plan, rater) for rater in range(rng.randint(1, 7))}
    assert broken_rules(plan, schedules) == []
    assert all(len(trials) == plan.num_trials for trials in schedules.values())
    shown = {picture for trials in schedules.values() for trial in trials for picture in trial.pictures}
    assert shown <= set(pictures(plan))


def test_a_schedule_follows_from_the_plan_and_the_rater_alone():
    schedule.cache_clear()
    first = schedule(example_plan(12), 3)
    schedule.cache_clear()
    assert schedule(example_plan(12), 3) == first
    assert schedule(example_plan(12), 4) != first
    assert schedule(example_plan(12, seed=1), 3) != first


def test_every_rater_sees_every_item_once_where_nothing_limits_the_trials():
    plan = example_plan(prompts=6, models=3, seeds=2)
    for rater in range(5):
        seen = Counter(
            (trial.lane, trial.prompt, trial.left.seed) for trial in schedule(plan, rater) if trial.kind == "main"
        )
        assert len(seen) == plan.num_items
        assert set(seen.values()) == {1}


def test_two_raters_in_a_row_see_the_same_items_with_opposite_sides():
    plan = example_plan(prompts=20, trials_per_rater=8, stop=FixedStop(votes_per_item=2))

    def sides(rater):
        return {trial.prompt: trial.left.model for trial in schedule(plan, rater) if trial.kind == "main"}

    first, second, third = sides(0), sides(1), sides(2)
    assert set(first) == set(second)
    assert all(first[prompt] != second[prompt] for prompt in first)
    assert not set(first) & set(third)  # the next two go on where these stopped


def test_a_rater_with_few_trials_sees_many_prompts():
    plan = example_plan(prompts=12, seeds=3, trials_per_rater=12)
    prompts = [trial.prompt for trial in schedule(plan, 0) if trial.kind == "main"]
    assert len(set(prompts)) == 12


def test_gold_pairs_are_one_pool_for_all_raters_and_each_spoils_another_prompts_picture():
    plan = example_plan(prompts=40)
    pool = gold_pool(plan)
    assert len(pool) == plan.num_gold == 2
    for right, spoiled in pool:
        assert spoiled.spoiled and not right.spoiled
        assert right.prompt != spoiled.prompt
        assert (right.model, right.seed) == (spoiled.model, spoiled.seed)
    for rater in range(3):
        gold = [trial for trial in schedule(plan, rater) if trial.kind == "gold"]
        assert {frozenset(trial.pictures) for trial in gold} == {frozenset(pair) for pair in pool}
        assert all(trial.pictures[("left", "right").index(trial.better)] in dict(pool) for trial in gold)


def test_a_rating_study_shows_one_picture_and_as_gold_a_spoiled_one():
    plan = example_plan(prompts=20, mode="rating", criteria=PAPER)
    trials = schedule(plan, 0)
    assert all(trial.right is None and trial.better is None for trial in trials)
    assert [trial.left.spoiled for trial in trials] == [trial.kind == "gold" for trial in trials]


def test_pictures_lists_each_picture_once():
    plan = example_plan(prompts=20, models=3, seeds=2)
    listed = pictures(plan)
    assert len(listed) == len(set(listed)) == 20 * 3 * 2 + plan.num_gold


def test_raters_count_from_0():
    with pytest.raises(ValueError, match="numbered from 0, not -1"):
        schedule(example_plan(), -1)


def broken(change):
    """What the checker says of a study whose first rater's schedule went through `change`."""
    plan = example_plan(prompts=20)
    schedules = {0: change(list(schedule(plan, 0))), 1: schedule(plan, 1)}
    return " ".join(broken_rules(plan, schedules))


def swap(trial):
    return replace(trial, left=trial.right, right=trial.left)


def first_of(trials, kind):
    return next(trial.number for trial in trials if trial.kind == kind)


def test_the_checker_sees_sides_out_of_balance():
    assert "out of balance" in broken(
        lambda trials: [swap(t) if t.kind == "main" and t.left.model == "model-1" else t for t in trials]
    )


def test_the_checker_sees_a_repeat_that_is_not_swapped():
    def change(trials):
        at = first_of(trials, "repeat")
        trials[at] = swap(trials[at])
        return trials

    said = broken(change)
    assert "does not repeat an earlier one with sides swapped" in said
    assert "comes twice unswapped" in said


def test_the_checker_sees_mixed_seeds_and_prompts():
    def change(trials):
        at = first_of(trials, "main")
        trials[at] = replace(trials[at], right=replace(trials[at].right, seed=99))
        return trials

    assert "mixes seeds or prompts" in broken(change)


def test_the_checker_sees_missing_repeats_and_gold_pairs():
    def change(trials):
        kept = [trial for trial in trials if trial.kind == "main"]
        return [replace(trial, number=number) for number, trial in enumerate(kept)]

    said = broken(change)
    assert "0 of 20 are repeat, not 10%" in said


def test_the_checker_sees_gold_out_of_balance_and_wrong_numbers():
    plan = example_plan(prompts=60)
    trials = [swap(trial) if trial.kind == "gold" and trial.better == "left" else trial for trial in schedule(plan, 0)]
    said = " ".join(broken_rules(plan, {0: trials[1:]}))
    assert "gold pairs are out of balance" in said
    assert "not numbered from 0" in said


def test_the_checker_sees_items_left_out():
    plan = example_plan(prompts=20, trials_per_rater=5, stop=FixedStop(votes_per_item=1))
    same = {rater: schedule(plan, 0) for rater in range(3)}
    assert "one item was shown 3 times, another 0 times" in " ".join(broken_rules(plan, same))


def test_a_trial_knows_its_models_whatever_the_sides():
    trial = Trial(0, "main", 1, Shown(1, 2, "b"), Shown(1, 2, "a"))
    assert trial.lane == swap(trial).lane == ("a", "b")
