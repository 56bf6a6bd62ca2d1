"""A device that is lent by the call: the same work, the same sentences and the same stop, from a forked worker."""

import importlib.util
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from app.services import lending
from app.services.device import StopFlag
from app.services.lending import LONGEST_S, Lender, by_the_call
from app.services.requests import BadInput, CompareRequest, GridRequest
from tests.app.serving import PATIENCE_S, ROOT

ASKED = {"prompt": "a", "left": "base", "right": "srpo", "seed": 0, "steps": 28, "width": 1024, "height": 1024}


def lender(*, is_miniature):
    options, catalogue = SimpleNamespace(is_miniature=is_miniature), SimpleNamespace(native_side=128)
    return Lender(SimpleNamespace(options=options, catalogue=catalogue), call=None)


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What the calls gave, on the workers of the real package."""
    if importlib.util.find_spec("spaces") is None:
        pytest.skip("the package `spaces`, which a Space brings itself, is not installed: pip install spaces")
    folder = tmp_path_factory.mktemp("zero")
    with (folder / "log.txt").open("w+") as log:
        command = [sys.executable, "-m", "tests.app.zero_page", str(folder)]
        done = subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, timeout=PATIENCE_S, check=False)
        log.seek(0)
        text = log.read()
    assert done.returncode == 0, text
    return json.loads(next(line for line in text.splitlines() if line.startswith('{"parent"')))


def test_work_in_a_worker_shows_each_step_and_leaves_its_files_and_its_charge(said):
    assert said["steps"] >= 3 and said["there"] and said["pictures"][1] == "done"
    assert said["charged"] == [None]  # the owner of the page counts what was used, not the worker
    assert said["kept"] == ["done", [1, 16, 4, 4]]  # what the next work goes on from came back
    assert said["noised"] == "done"


def test_a_stop_reaches_the_worker_and_what_was_finished_stays(said):
    assert said["stopped"][0] == "stopped" and said["stopped"][1].startswith("Stopped")


def test_refusals_of_the_worker_and_of_the_lender_are_the_same_sentences(said):
    folders, limits, too_long, quota = said["sentences"]
    assert "does not open folders" in folders and "at most 128 pixels" in limits
    assert "is lent here for at most 120 s" in too_long
    assert quota == "You have exceeded your free ZeroGPU quota (60s requested)."


def test_a_run_is_trained_in_the_worker_and_written_for_the_page(said):
    status, num_records, elsewhere, in_process = said["trained"]
    assert (status, num_records) == ("finished", 2) and elsewhere and in_process


def test_what_is_asked_for_follows_from_known_figures_and_then_from_what_calls_have_taken(said):
    assert all(0 < asked <= LONGEST_S for asked in said["asked"])
    assert said["asked"][1] < said["asked"][0]  # the first call was done sooner than FLUX.1-dev would have been


def test_the_time_of_a_picture_is_the_published_one_on_the_lent_part_of_the_card():
    """28 steps at 1024 take 5.58 s of a whole card: a pair, on 60 of its 132 parts, 24.6 s, beside 20 s to begin."""
    flux = lender(is_miniature=False)
    asked = flux.seconds((CompareRequest(**ASKED), StopFlag()), None)
    assert asked == pytest.approx(lending.SAFETY * (20 + 2 * 5.58 * 132 / 60), rel=1e-6)
    flux.took((CompareRequest(**ASKED),), None, (20 + 2 * 5.58 * 132 / 60) / 2)
    assert flux.seconds((CompareRequest(**ASKED), StopFlag()), None) == pytest.approx(asked / 2)


def test_work_that_no_call_can_last_for_is_refused_and_what_can_go_on_gets_the_longest():
    many = GridRequest(
        prompts=("a", "b"), models=("base", "srpo"), num_seeds=4, seed=0, steps=40, width=1024, height=1024
    )
    flux = lender(is_miniature=False)
    with pytest.raises(BadInput, match="ask for less"):
        flux.seconds((many, StopFlag()), None)
    assert flux.seconds(("study", StopFlag()), None) == LONGEST_S
    assert flux.seconds(("a cell",), 40) < LONGEST_S


def test_elsewhere_nothing_is_lent_and_the_function_is_itself(monkeypatch):
    @by_the_call
    def work(first, stop):
        yield first, stop

    stop = StopFlag()
    assert list(work(1, stop)) == [(1, stop)]
    monkeypatch.delenv(lending.SPACES_VARIABLE, raising=False)
    assert not lending.is_lent()
    for value, lent in (("true", True), ("1", True), ("0", False), ("", False)):
        monkeypatch.setitem(os.environ, lending.SPACES_VARIABLE, value)
        assert lending.is_lent() is lent


def test_the_flag_of_another_process_hears_of_a_stop_by_its_file(tmp_path):
    import pickle

    flag = StopFlag("ada")
    flag.share(tmp_path / "stop")
    copy = pickle.loads(pickle.dumps(flag))
    assert copy.user == "ada" and not copy.is_set()
    flag.set()
    assert copy.is_set() and bool(flag)
    late = StopFlag()
    late.set()
    late.share(tmp_path / "late")
    assert pickle.loads(pickle.dumps(late)).is_set()
    ending = StopFlag()
    ending.until_s = 0.0
    assert ending.is_set()
