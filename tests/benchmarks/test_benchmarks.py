"""The benchmarks: verdicts and table by hand, and every measurement once on tiny random models."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from app.arguments import as_arguments
from benchmarks import flux_memory, flux_pictures, flux_updates, overhead, page
from benchmarks.__main__ import main
from benchmarks.figures import Figure, LeftOut, fill, table
from tests.app.serving import PATIENCE_S, ROOT, make_options


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The options that name tiny weights."""
    return as_arguments(replace(make_options(tmp_path_factory.mktemp("weights")), text_tokens=64))


@pytest.mark.parametrize(
    ("figure", "verdict"),
    [
        (Figure("f", "s", at_most=3, value=3.0), "met"),
        (Figure("f", "s", at_most=3, value=3.1), "missed"),
        (Figure("f", "s", at_least=60, value=60.0), "met"),
        (Figure("f", "s", at_least=60, value=59.9), "missed"),
        (Figure("f", "s", at_most=3), ""),
        (Figure("f", "s", value=1.0), ""),
    ],
)
def test_a_goal_is_met_at_its_very_edge_and_judged_only_where_there_is_a_value(figure, verdict):
    assert figure.verdict == verdict


def test_what_was_measured_before_a_failure_is_kept_and_the_rest_say_why():
    def measured():
        yield "second", 2.0
        raise ValueError("There are no weights: train some.")

    first, second, third = fill([Figure(name, "s") for name in ("first", "second", "third")], measured())
    assert (second.value, second.note) == (2.0, "")
    assert first.value is third.value is None
    assert first.note == third.note == "There are no weights: train some."


def test_what_is_not_to_be_had_here_is_left_out_with_its_reason_and_is_no_failure(capsys):
    def measured():
        raise LeftOut("there is no such thing on this machine")
        yield "figure", 1.0

    (figure,) = fill([Figure("figure", "s")], measured())
    assert (figure.value, figure.note) == (None, "left out: there is no such thing on this machine")
    assert main(["--only", "flux"]) == 0
    lines = capsys.readouterr().out.splitlines()
    at_its_size = [figure for group in (flux_pictures, flux_memory, flux_updates) for figure in group.FIGURES]
    assert sum("left out: FLUX.1-dev's size needs a CUDA device" in line for line in lines) == len(at_its_size)


def test_a_figure_that_nobody_declared_is_refused():
    with pytest.raises(KeyError, match="unknown"):
        fill([Figure("known", "s")], iter([("unknown", 1.0)]))


def test_the_table_has_a_line_per_figure_and_a_reason_where_one_is_missing():
    lines = table(
        [
            Figure("seconds per pair", "s", at_most=3, value=1.239),
            Figure("pictures", "a second", at_least=60, value=7.5),
            Figure("memory", "GB", at_most=2.5, note="there is no /proc"),
        ]
    ).splitlines()
    assert [line.split() for line in lines[2:]] == [
        ["seconds", "per", "pair", "1.24", "s", "at", "most", "3", "met"],
        ["pictures", "7.5", "a", "second", "at", "least", "60", "missed"],
        ["memory", "-", "at", "most", "2.5"],
        ["not", "measured:", "memory:", "there", "is", "no", "/proc"],
    ]


def test_missing_weights_are_named_and_the_exit_says_that_figures_are_missing(tmp_path, capsys):
    assert main(["--quick", "--only", "overhead", "--model", str(tmp_path / "nothing")]) == 1
    text = capsys.readouterr().out
    assert text.count(f"The base model is not at {tmp_path / 'nothing'}") == len(overhead.FIGURES)


def test_another_model_is_not_measured_with_the_miniatures_reward(tmp_path, capsys):
    assert main(["--quick", "--only", "training", "--model", str(tmp_path)]) == 1
    assert "name one by --reward FOLDER" in capsys.readouterr().out


def test_every_measurement_runs_in_one_command(weights, tmp_path):
    file = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--json", str(file), *weights]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=3 * PATIENCE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = {figure["name"]: figure for figure in json.loads(file.read_text())["figures"]}
    left_out = [name for name, figure in figures.items() if figure["value"] is None]
    watching = [figure.name for figure in page.FIGURES]
    has_browser = importlib.util.find_spec("playwright") and any(map(shutil.which, page.BROWSERS))
    cold = ["page answers, cold start", "models ready, cold start"]
    cuda = [name for name in figures if name.endswith((", cudnn", ", flash", ", flash3"))]  # kernels of a GPU alone
    assert len(cuda) == 6
    assert left_out == [*cold, *([] if has_browser else watching), *cuda]
    assert all(name in done.stdout for name in figures)

    value = {name: figure["value"] for name, figure in figures.items() if figure["value"] is not None}
    # Both ways paint the same picture, so the ratio compares the same work; rounding may move a pixel by one level.
    difference = value.pop("largest difference of the pictures")
    assert difference <= 1
    assert value["largest difference of the gradients, relative"] < 1e-3  # the same work
    for nothing in (
        "acknowledged votes lost",
        "votes stored twice or otherwise than sent",
        "rules that random schedules break",
        "clean boards with a flag",
        "requests of the 50 that were not answered",
        "a crowd at once: requests that failed otherwise",
        "a crowd at once: acknowledged votes lost or changed",
        "acknowledged votes that the app's kills lost",
        "votes that the app's kills doubled or changed",
    ):
        assert value.pop(nothing) == 0
    assert value.pop("strengths beside scipy's minimum, largest difference") < 1e-6
    assert value.pop("sequential stop: most false wins") <= 5
    assert value.pop("a crowd at once: requests told to come back") >= 0  # as many as the machine was too slow for
    assert -100 < value.pop(watching[-1], 0) < 100  # in percent of the run's speed; noise may make it less than none
    assert all(number > 0 for number in value.values())
    parts = [number for name, number in value.items() if name.startswith("of it, ")]
    assert len(parts) == 4 and sum(parts) == pytest.approx(value["first point after Start"])
    assert value["models ready, warm start"] >= value["page answers, warm start"]
    assert value["pairs per minute, with previews"] == pytest.approx(60 / value["seconds per pair, with previews"])
    assert value["peak memory of the app after a pair"] > 0.2  # torch alone takes more
    assert value["peak memory of the run's process"] > 0.2
    assert 0.45 < value[flux_memory.DIFFERENCE_SIZE] < 0.6
    for kind in flux_updates.KINDS:
        work, floor, share = (
            value[f"FLUX.1-dev, {kind}: {what}"]
            for what in ("update of 4 prompts", "its floor at 790 TFLOP/s", "share of 790 TFLOP/s")
        )
        assert share == pytest.approx(100 * floor / work)
