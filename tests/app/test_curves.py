"""Charts say what the log says: no point lost, none invented."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest

from app import curves
from srpo.runs.records import BestRecord
from tests.app.folders import record, validated


def chart(charts, key):
    return next(chart for chart in charts if chart.key == key)


def line(chart, name):
    return next(line for line in chart.lines if line.name == name)


def test_scores_are_means_over_the_branches_that_have_them():
    both = record(1, scores={"denoise/positive": 0.2, "inversion/positive": 0.4})
    alone = record(2, scores={"denoise/positive": 0.6})
    positive = line(chart(curves.training_charts([both, alone]), "scores"), "Positive words")
    assert positive.x == [1, 2]
    assert positive.y == pytest.approx([0.3, 0.6])


def test_every_quantity_of_a_run_has_its_line():
    charts = curves.training_charts([record(1), record(2)], [validated(0, 0.2), validated(2, 0.3)])
    names = {chart.key: [line.name for line in chart.lines] for chart in charts}
    assert names == {
        "difference": ["Difference"],
        "scores": ["Positive words", "Negative words", "Prompt alone (raw)"],
        "validation-photo": ["Mean"],
        "loss": ["Denoise", "Inversion", "Both"],
        "gradient": ["Norm", "Clipped at"],
    }
    assert line(chart(charts, "difference"), "Difference").y == [0.005, 0.01]
    assert line(chart(charts, "loss"), "Inversion").y == [-0.1, -0.2]
    assert line(chart(charts, "gradient"), "Clipped at").y == [0.1, 0.1]


def test_validations_carry_their_intervals():
    (photo,) = chart(curves.training_charts([], [validated(0, 0.2), validated(10, 0.3)]), "validation-photo").lines
    assert (photo.x, photo.y) == ([0, 10], [0.2, 0.3])
    assert photo.low == pytest.approx([0.15, 0.25]) and photo.high == pytest.approx([0.25, 0.35])


def test_the_best_point_the_turn_and_each_warning_are_marked_once():
    records = [record(1), record(2, warning="reward is constant"), record(3, warning="reward is constant"), record(4)]
    charts = curves.training_charts(records, [validated(0, 0.2)], BestRecord(2, 0.3, "highest photo share", 4))
    marks = [(mark.x, mark.kind, mark.hint.split()[0]) for mark in chart(charts, "difference").marks]
    assert marks == [(2, "best", "highest"), (4, "warning", "From"), (2, "warning", "reward")]


def test_what_is_not_there_has_no_line_and_no_chart():
    assert curves.training_charts([]) == ()
    without = curves.training_charts([record(1, scores={"denoise/loss": 1.0})])
    assert [chart.key for chart in without] == ["loss", "gradient"]
    assert [line.name for line in chart(without, "loss").lines] == ["Denoise", "Both"]


def test_what_is_not_a_number_is_a_gap_that_json_can_carry():
    charts = curves.training_charts([record(1, loss=math.nan), record(2), record(3, loss=math.inf)])
    both = line(chart(charts, "loss"), "Both")
    assert both.y == [None, 0.5, None]
    json.loads(json.dumps([asdict(chart) for chart in charts], allow_nan=False))


@pytest.mark.parametrize("length", [1, 2, 1999, 2000, 2001, 100_003])
def test_a_thinned_curve_is_short_and_keeps_its_ends_and_every_peak(length):
    x, y = np.arange(length), np.sin(np.arange(length) / 500)
    y[length // 3], y[length // 2] = 7, -9
    few_x, few_y = curves.thin(x, y)
    assert len(few_x) <= 2000 and (np.diff(few_x) > 0).all()
    assert (few_x[0], few_x[-1]) == (0, length - 1)
    assert (few_y.max(), few_y.min()) == (y.max(), y.min())
    assert (y[few_x] == few_y).all()
    if length <= 2000:
        assert len(few_x) == length


def test_thinning_bridges_gaps():
    y = np.full(5000, np.nan)
    y[4000] = 1.0
    few_x, few_y = curves.thin(np.arange(5000), y)
    assert 4000 in few_x and np.nansum(few_y) == 1.0


def test_compared_runs_lie_over_one_another_each_in_its_colour():
    charts = curves.comparison_charts(
        {"a": ([record(1)], [validated(0, 0.2)]), "b": ([record(1), record(2)], [validated(0, 0.4)])}
    )
    assert [chart.key for chart in charts] == ["validation-photo", "difference", "raw", "loss", "gradient"]
    for panel in charts:
        assert [(line.name, line.colour) for line in panel.lines] == [("a", 0), ("b", 1)]
    assert [line.y for line in charts[0].lines] == [[0.2], [0.4]]
