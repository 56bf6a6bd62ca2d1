"""Runs that the app trains itself: the same run, started, stopped, taken up and refused as any other."""

import time
from types import SimpleNamespace

import pytest

from app.services.device import StopFlag
from app.services.requests import BadInput, parse
from app.services.training_requests import TrainRequest
from app.state import Resumption, Watching
from app.tabs.finetune import Form, Handlers
from srpo.runs import DeviceLock, RunFolder, liveness
from tests.app.serving import PATIENCE_S

SETTINGS = (
    "objective.height=32", "objective.width=32", "objective.rollout_steps=2", "validation.every=0",
    "checkpoint_every=2", "prompts_per_update=2",
)  # fmt: skip


@pytest.fixture
def tune(unloaded, tmp_path):
    """The services of a page that starts no process, over an empty folder of runs."""
    tune = unloaded(runs=tmp_path / "runs", trains_here=True).finetune
    yield tune
    tune.close()


@pytest.fixture
def no_process(monkeypatch):
    """Whoever starts a process fails the test."""

    def refuse(*_, **__):
        raise AssertionError("a process was started")

    monkeypatch.setattr("srpo.runs.control._spawn", refuse)


def ask(**changes):
    asked = {"preset": "studio", "prompts": "a red ball\na blue house", "more": "\n".join(SETTINGS)}
    return parse(TrainRequest, asked | changes)


def wait_until(is_so, run):
    give_up = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < give_up and not (run.state() and run.state().status == "failed"), run.state()
        time.sleep(0.02)


def ended(run):
    return run.state().status not in ("starting", "running")


def test_a_run_is_started_stopped_and_taken_up_without_a_process(tune, no_process):
    (run,) = tune.start(ask(name="mine", updates=400), StopFlag())
    wait_until(lambda: len(run.progress()) >= 3, run)
    assert run.job().in_process and liveness(run) == "running" and tune.living().name == "mine"
    with pytest.raises(BadInput, match="in use by run mine"):
        list(tune.start(ask(name="second", updates=2), StopFlag()))
    assert not (tune.root / "second").exists()
    assert tune.stop("mine")
    wait_until(lambda: ended(run), run)
    done = run.state().update
    assert run.state().status == "stopped" and run.checkpoint_updates()[-1] == done < 400
    wait_until(lambda: not DeviceLock("cpu").is_held(), run)

    (again,) = tune.resume(Resumption("mine", updates=done + 2), StopFlag())
    wait_until(lambda: ended(again), again)
    assert again.state().status == "finished" and again.weights.is_file()
    assert [record.update for record in again.progress()] == list(range(1, done + 3))
    wait_until(lambda: not tune.here._under_way, again)
    assert not tune.stop("mine")  # nothing is under way


def test_a_page_that_ends_lets_its_run_save(tune):
    (run,) = tune.start(ask(name="last", updates=400), StopFlag())
    wait_until(lambda: len(run.progress()) >= 1, run)
    tune.close()
    assert run.state().status == "stopped" and run.checkpoint_updates()


def test_what_keeps_a_run_from_beginning_is_said(tune, tmp_path):
    with pytest.raises(BadInput, match="There is a run 'taken' already"):
        (tmp_path / "runs" / "taken").mkdir(parents=True)
        list(tune.start(ask(name="taken"), StopFlag()))
    holder = DeviceLock("cpu")
    holder.require("run elsewhere")
    try:
        with pytest.raises(BadInput, match="in use by run elsewhere"):
            list(tune.start(ask(name="mine"), StopFlag()))
    finally:
        holder.release()
    assert not (tune.root / "mine").exists()
    # What only a loaded model can tell is in the state of a run that has its folder by then.
    (run,) = tune.start(ask(name="foreign", more="\n".join([*SETTINGS, "objective.height=40"])), StopFlag())
    wait_until(lambda: ended(run), run)
    assert run.state().status == "failed" and "40" in run.state().message


def test_what_takes_a_process_is_refused_in_one_sentence(tune, request_of):
    with pytest.raises(BadInput, match="takes a process of its own"):
        list(tune.measure(ask(), StopFlag()))
    with pytest.raises(BadInput, match="handed on to nobody"):
        tune.check(ask(sinks=("tensorboard",)))


def test_the_tab_of_such_a_page_offers_neither(unloaded, tmp_path):
    from app import ui

    parts = ui.build(unloaded(runs=tmp_path, trains_here=True)).config["components"]
    shown = {part["props"].get("elem_id"): part["props"].get("visible") for part in parts}
    assert shown["start"] and not shown["measure"] and not shown["sinks"]


def test_the_tab_shows_such_a_run_as_it_shows_any(tune, request_of):
    do = Handlers(SimpleNamespace(finetune=tune, options=tune.options, jobs=None, catalogue=None))
    (run,) = tune.start(ask(name="shown", updates=2), StopFlag())
    wait_until(lambda: ended(run), run)
    live = do.show(Watching(), "shown")
    assert 'data-status="finished"' in live.head and len(Form._fields) == 15
    assert RunFolder.open(tune.root / "shown").weights.is_file()
