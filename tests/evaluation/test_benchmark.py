"""The benchmark's table: means, intervals and paired differences, against values worked out by hand."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from srpo.evaluation.benchmark import ALL, Judge, Task, chunk_std, is_clear, markdown, summary

CLIP = Judge("clip", "CLIP", "clip:a", None)
HPS = Judge("hpsv2.1", "HPSv2.1", "hpsv2.1:b", "ab" * 32)


def tasks_of(**counts):
    names = [(style, index) for style, count in counts.items() for index in range(count)]
    return [Task(style, index, f"{style} {index}", seed) for seed, (style, index) in enumerate(names)]


def entry(found, **wanted):
    return next(each for each in found if all(each[name] == value for name, value in wanted.items()))


def test_means_and_paired_differences_have_students_interval_over_prompts():
    tasks = tasks_of(anime=12, photo=20)
    generator = np.random.default_rng(0)
    base = generator.normal(0.3, 0.05, 32)
    srpo = base + generator.normal(0.02, 0.01, 32)
    found = summary(tasks, [CLIP], ["base", "srpo"], {CLIP.name: {"base": base, "srpo": srpo}})
    for values, got in (
        (base[:12], entry(found["means"], style="anime", model="base")),
        (srpo, entry(found["means"], style=ALL, model="srpo")),
        ((srpo - base)[12:], entry(found["differences"], style="photo", model="srpo", than="base")),
    ):
        low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
        assert (got["mean"], got["low"], got["high"]) == pytest.approx((values.mean(), low, high))
    # The pictures of one prompt and seed resemble one another: paired, the difference is far better known.
    paired = entry(found["differences"], style=ALL)
    alone = entry(found["means"], style=ALL, model="base")
    assert paired["high"] - paired["low"] < (alone["high"] - alone["low"]) / 3


def test_a_prompt_that_comes_twice_is_one_observation():
    tasks = [Task("own", index, f"prompt {index % 10}", index) for index in range(20)]
    values = np.repeat([np.arange(10.0)], 2, axis=0).ravel()
    found = summary(tasks, [CLIP], ["base"], {CLIP.name: {"base": values}})["means"][0]
    low, _ = stats.t.interval(0.95, 9, 4.5, stats.sem(np.arange(10.0)))
    assert (found["prompts"], found["pictures"]) == (10, 20) and found["low"] == pytest.approx(low)


def test_below_ten_prompts_there_is_no_interval():
    tasks = tasks_of(own=9)
    found = summary(tasks, [CLIP], ["base"], {CLIP.name: {"base": np.arange(9.0)}})
    assert found["means"][0]["low"] is None and found["means"][0]["mean"] == 4
    assert "| base | 4.000 |" in markdown(found, [])


def test_the_deviation_of_chunks_is_that_of_the_hpsv2_benchmark():
    values = np.concatenate([np.full(80, 1.0), np.full(80, 3.0)])
    assert chunk_std(values) == 1.0  # of the means 1 and 3
    assert chunk_std(values[:80]) is None and chunk_std(np.arange(100.0)) is None


def test_columns_stand_as_in_the_papers_table_1_and_json_takes_everything():
    pick = Judge("pickscore", "PickScore v1", "pickscore:c", None)
    tasks, scores = tasks_of(anime=160, photo=160), {}
    for scale, judge in ((0.3, CLIP), (28.9, HPS), (22.7, pick)):
        scores[judge.name] = {name: np.full(320, scale) + step for step, name in enumerate(("base", "srpo"))}
    found = json.loads(json.dumps(summary(tasks, [CLIP, HPS, pick], ["base", "srpo"], scores)))
    text = markdown(found, ["Made so."])
    assert "| model | PickScore v1 | HPSv2.1 | CLIP |" in text
    row = next(line for line in text.splitlines() if line.startswith("| base |"))
    assert [cell.split()[0] for cell in row.split("|")[2:5]] == ["22.700", "28.900", "0.3000"]  # as the heads
    assert "| srpo − base | +1.000 (+1.000 to +1.000) |" in text
    assert "anime 160, photo 160" in text and f"SHA-256 {'ab' * 32}" in text and "Made so." in text
    assert "28.900 ± 0.000 (28.900 to 28.900)" in text


def test_a_difference_is_clear_where_its_interval_is_known_and_leaves_zero_out():
    known = [
        ({"low": 0.1, "high": 0.2}, True),
        ({"low": -0.2, "high": -0.1}, True),
        ({"low": -0.1, "high": 0.2}, False),
    ]
    for entry, expected in [*known, ({"low": 0.0, "high": 0.2}, False), ({"low": None, "high": None}, False)]:
        assert is_clear(entry) is expected


def test_no_interval_of_a_probability_goes_beyond_it():
    tasks, judge = tasks_of(own=12), Judge("judge", "Judged photo", "judge", None)
    base, srpo = np.eye(12)[0], 1 - np.eye(12)[0]  # one of twelve is a photo, and eleven of twelve
    found = summary(tasks, [judge], ["base", "srpo"], {judge.name: {"base": base, "srpo": srpo}})
    low, high = stats.t.interval(0.95, 11, 1 / 12, stats.sem(base))
    first, second = found["means"]
    assert low < 0 and (first["low"], first["high"]) == pytest.approx((0, high))
    assert (second["low"], second["high"]) == pytest.approx((1 - high, 1))
    assert found["differences"][0]["high"] == 1


@pytest.mark.parametrize("bad", [np.arange(3.0), np.array([1.0, math.nan])])
def test_scores_that_are_not_one_finite_number_for_each_picture_are_refused(bad):
    with pytest.raises(ValueError, match="2 finite scores"):
        summary(tasks_of(own=2), [CLIP], ["base"], {CLIP.name: {"base": bad}})
