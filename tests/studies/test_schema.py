"""Study plans: what fits, what is refused in one sentence, and the hash that names a plan."""

from __future__ import annotations

from itertools import combinations, product

import pytest

from app.services.requests import BadInput, parse
from srpo.studies.criteria import LEVELS, PAPER, STANDARD, Criterion, overall
from srpo.studies.schema import MAX_TRIALS, Filters, Model, Plan, Prompt, SequentialStop, Version, changes
from srpo.studies.simulation import example_plan


def raw(**changed):
    """A plan as a page would send it."""
    fields = {
        "title": "Is it better?",
        "prompts": [{"text": "a ball"}, {"text": "a cube"}],
        "models": [{"key": "base", "label": "FLUX"}, {"key": "srpo", "label": "SRPO"}],
    }
    return fields | changed


def test_a_plan_has_as_many_items_as_prompts_times_seeds_times_pairs():
    plan = example_plan(prompts=5, models=4, seeds=3)
    assert plan.lanes == tuple(combinations([f"model-{number}" for number in range(4)], 2))
    assert (plan.num_scenes, plan.num_items, plan.num_main) == (15, 90, 90)
    assert (plan.num_repeats, plan.num_gold) == (11, 5)  # 10 and 5 % of 90 / 0.85 = 105.9
    assert plan.num_trials == 106


def test_pictures_are_rated_one_at_a_time():
    plan = example_plan(prompts=5, models=3, seeds=2, mode="rating", criteria=PAPER)
    assert plan.lanes == (("model-0",), ("model-1",), ("model-2",))
    assert plan.num_items == 30


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"title": "  "}, "The title is empty"),
        ({"title": 7}, "The title must be text"),
        ({"title": "x" * 201}, "may have 200"),
        ({"title": "a\0b"}, "cannot be stored"),
        ({"prompts": [{"text": "a \ud800 b"}]}, "cannot be stored"),
        ({"prompts": []}, "1 to 2,000 prompts, not 0"),
        ({"prompts": [{"text": "A  Ball"}, {"text": "a ball"}]}, "The prompt 'a ball' is there twice"),
        ({"prompts": [{"text": "x" * 4001}]}, "may have 4,000"),
        ({"models": [{"key": "base", "label": "FLUX"}]}, "2 to 12 models, not 1"),
        ({"models": [{"key": "a", "label": "A"}, {"key": "a", "label": "B"}]}, "The model 'a' is there twice"),
        ({"models": [{"key": "a", "label": "A"}, {"key": "b", "label": "A"}]}, "label of a model 'A' is there twice"),
        ({"seeds": [1, 1]}, "The seed '1' is there twice"),
        ({"seeds": [-1]}, "A seed must lie between 0 and 4,294,967,295, not at -1"),
        ({"seeds": [0.5]}, "whole number"),
        ({"seeds": [True]}, "must be a number"),
        ({"criteria": []}, "1 to 8 criteria, not 0"),
        ({"criteria": [{"key": "=1+1", "title": "t", "question": "q"}]}, "short word of small letters"),
        ({"criteria": [{"key": "a", "title": "", "question": "q"}]}, "A criterion's title is empty"),
        ({"mode": "rating"}, "Overall is derived"),
        ({"repeats": 0.4}, "The share of repeats must lie between 0 and 0.3"),
        ({"repeats": float("nan")}, "must be a number"),
        ({"smallest_win_rate": 0.5}, "The smallest win rate must lie between 0.51"),
        ({"stop": {"kind": "fixed", "votes_per_item": 0}}, "The number of votes on each pair"),
        ({"settings": {"steps": float("inf")}}, "no finite number"),
        ({"settings": {"": 1}}, "name of a setting is empty"),
        ({"trials_per_rater": 0}, "The trials of a rater must lie between 1"),
        ({"seeds": list(range(16)), "prompts": [{"text": str(n)} for n in range(200)]}, "3,200 items, more than 2,000"),
        ({"surprise": 1}, "'surprise' that means nothing here"),
        ({"stop": {"kind": "never"}}, "cannot be read"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(changed, says):
    with pytest.raises(BadInput, match=says):
        parse(Plan, raw(**changed))


def test_a_rating_study_cannot_stop_by_its_evidence():
    with pytest.raises(ValueError, match="Only a pairwise study"):
        example_plan(mode="rating", criteria=PAPER, stop=SequentialStop())


def test_a_plan_comes_back_from_its_text_with_the_same_hash():
    plan = parse(Plan, raw(settings={"steps": 28, "guidance": 3.5, "sampler": "Euler"}, seeds=[3, 5]))
    again = Plan.from_text(plan.as_text())
    assert again == plan
    assert again.as_text() == plan.as_text()
    assert again.sha256 == plan.sha256
    assert len(plan.sha256) == 64


@pytest.mark.parametrize("text", ["", "[]", "7", "{}", '{"format": 1}', "[" * 100_000])
def test_what_is_no_plan_is_refused(text):
    with pytest.raises(ValueError, match=r"^This is no plan of a study: [^\n]*\.$"):
        Plan.from_text(text)


def test_a_plan_of_another_format_is_refused():
    text = example_plan().as_text().replace('"format":1', '"format":2')
    with pytest.raises(ValueError, match="format 2 and this program reads 1"):
        Plan.from_text(text)


def test_every_field_counts_in_the_hash():
    """A change of any one of them makes another plan."""
    plan = parse(Plan, raw())
    changed = {
        "title": "Another",
        "instructions": "Take your time.",
        "mode": "rating",
        "prompts": [Prompt(text="a tree")],
        "models": [Model(key="base", label="FLUX"), Model(key="run:x", label="x")],
        "seeds": [7],
        "settings": {"steps": 4},
        "criteria": PAPER,
        "trials_per_rater": 1,
        "repeats": 0.0,
        "gold": 0.0,
        "stop": SequentialStop(),
        "filters": Filters(min_gold=None),
        "smallest_win_rate": 0.7,
        "seed": 1,
    }
    assert set(changed) == set(Plan.model_fields)
    plans = [plan]
    for name, value in changed.items():
        fields = {known: getattr(plan, known) for known in Plan.model_fields} | {name: value}
        plans.append(Plan(**fields | ({"criteria": PAPER} if name == "mode" else {})))
    assert len({plan.sha256 for plan in plans}) == len(plans)


def test_a_changed_plan_is_a_new_version_that_says_what_changed():
    before = example_plan()
    version = Version.first(before)
    with pytest.raises(ValueError, match="has not changed"):
        version.changed_to(example_plan())
    after = example_plan(seed=7)
    assert version.changed_to(after) == Version(2, after, after.sha256)
    assert changes(before, after) == {"seed": (0, 7)}


def test_a_plan_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        example_plan().title = "Another"


def test_a_number_of_trials_just_short_of_all_items_becomes_all_of_them():
    """Of 10 scenes with 3 pairs of models each, 27 trials hold at most 9 of a pair, 28 may hold 10: then all 30."""
    assert [example_plan(10, 3, trials_per_rater=count).num_main for count in (1, 27, 28, 30)] == [1, 27, 30, 30]
    assert example_plan(300, 2, 16, trials_per_rater=MAX_TRIALS).num_main == MAX_TRIALS


def test_the_papers_overall_follows_its_rules_for_every_combination_of_levels():
    """A table by counting: e Excellent, f Fail among four."""
    seen = set()
    for levels in product(LEVELS, repeat=4):
        excellent, fail = levels.count("Excellent"), levels.count("Fail")
        found = overall(levels)
        seen.add(found)
        if excellent == 4:
            assert found == "Excellent"
        elif excellent in (2, 3):
            assert found == "Good"
        else:
            assert found == ("Fail" if fail else "Pass")
    assert seen == set(LEVELS)
    for wrong in ([], ["Superb"]):
        with pytest.raises(ValueError, match="levels are"):
            overall(wrong)


def test_the_standard_criteria_are_the_papers_four_and_an_overall_each_with_a_rubric():
    assert [criterion.key for criterion in STANDARD] == ["alignment", "realism", "detail", "aesthetics", "overall"]
    assert all(isinstance(criterion, Criterion) and criterion.rubric for criterion in STANDARD)
    assert example_plan(criteria=STANDARD).criterion("realism").title == "Realism and artefacts"
