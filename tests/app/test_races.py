"""Two that act at once, each after a look at what the other is about to change: one wins, and nothing is mixed up."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import pytest

from app.services import benchmarks, training_here
from app.services.device import StopFlag
from app.services.requests import BadInput
from app.services.studies import Studies
from app.services.study_pictures import make_pictures, stock
from app.services.training_here import TrainingHere
from app.tabs.studies import Handlers
from srpo.evaluation import benchmark_folder
from srpo.evaluation.benchmark import Task
from srpo.evaluation.benchmark_folder import BenchmarkFolder, State
from srpo.runs.claim import take_run
from srpo.runs.control import spawn
from srpo.runs.processes import job_of
from srpo.training.config import TrainConfig
from tests.app.folders import make_run
from tests.app.serving import PATIENCE_S
from tests.app.test_study_plans import saved

SLEEPS = ("-c", "import time; time.sleep(600)")


def wait_until(is_so):
    give_up = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < give_up
        time.sleep(0.01)


# Runs that the app trains itself


@pytest.fixture
def here(monkeypatch):
    """Trains nothing: a run is held, running, until it is asked to stop."""

    def trained(order, stop):
        lock = take_run(order.run)
        try:
            order.run.write_state("running", 3)
            yield None
            wait_until(stop.is_set)
            order.run.write_state("stopped", 3)
        finally:
            lock.release()

    monkeypatch.setattr(training_here, "trained", trained)
    here = TrainingHere()
    yield here
    here.close()


def test_of_two_that_take_up_a_run_at_once_one_does_and_it_can_be_stopped(here, tmp_path, monkeypatch):
    run, together = make_run(tmp_path), threading.Barrier(2)
    monkeypatch.setattr("srpo.training.config.config_from_dict", lambda _: TrainConfig())
    monkeypatch.setattr(training_here.DeviceLock, "require_free", lambda _: together.wait(PATIENCE_S))
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(here.resume_run, run, device="cpu") for _ in range(2)]
        outcomes = [future.exception(PATIENCE_S) for future in asked]
    refused = [error for error in outcomes if error is not None]
    assert len(refused) == 1 and "is being worked on" in str(refused[0])
    assert run.state().status == "running"
    assert here.stop(run), "nobody knows any more who works on the run"
    wait_until(lambda: run.state().status == "stopped")
    wait_until(lambda: not here._under_way)


# Benchmarks


@pytest.fixture
def measuring(unloaded, tmp_path, monkeypatch):
    """The benchmarks of an app whose processes sleep; they are ended with the test."""
    begun = []

    def sleeping(_, log, handover):
        begun.append(spawn(SLEEPS, log, handover))
        return begun[-1]

    monkeypatch.setattr(benchmark_folder, "spawn", sleeping)
    measuring = benchmarks.Benchmarks(unloaded(runs=tmp_path / "runs"))
    orders = {
        name: benchmarks.Order({"list": [name]}, [Task("list", 0, name, 0)], ("base", "srpo=x"), {"size": "32,32"}, ())
        for name in ("a ball", "a boat")
    }
    monkeypatch.setattr(measuring, "order", lambda request: orders[request.prompt])
    yield measuring
    for process in begun:
        process.kill()
        process.wait()


def asked(prompt):
    return SimpleNamespace(prompt=prompt, name="one")


def test_a_start_that_comes_too_late_leaves_the_prompts_of_the_one_at_work(measuring, monkeypatch):
    looked, begun = threading.Event(), threading.Event()
    look = benchmarks._require_alike

    def look_and_wait(folder, order, **more):
        look(folder, order, **more)
        if order.lists["list"] == ["a boat"] and not looked.is_set():
            looked.set()
            begun.wait(PATIENCE_S)

    monkeypatch.setattr(benchmarks, "_require_alike", look_and_wait)
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(lambda: [*measuring.start(asked("a boat"), StopFlag())])
        assert looked.wait(PATIENCE_S)
        try:
            [folder] = measuring.start(asked("a ball"), StopFlag())
        finally:
            begun.set()
        assert isinstance(late.exception(PATIENCE_S), BadInput)
    assert (folder.path / benchmarks.PROMPTS / "list.txt").read_text() == "a ball\n"


def test_a_stop_before_the_process_is_named_stops_it(tmp_path):
    folder = BenchmarkFolder(tmp_path)
    folder.say(State("starting"))
    lock = folder.lock()
    assert lock.acquire()
    process = spawn(SLEEPS, (tmp_path / "log.txt").open("wb"), SimpleNamespace(locks=[lock.fileno()], told=dict))
    try:
        with ThreadPoolExecutor(1) as pool:
            stopping = pool.submit(folder.stop)
            time.sleep(0.2)
            folder._note(job_of(process.pid, "cpu"))
            assert stopping.result(PATIENCE_S)
        assert process.wait(PATIENCE_S) != 0
    finally:
        process.kill()
        process.wait()
        lock.release()


# Studies


@pytest.fixture
def do(studio, options, tmp_path, monkeypatch):
    """The loaded studio over studies of its own."""
    monkeypatch.setattr(studio, "studies", Studies(replace(options, studies=tmp_path / "studies")))
    return Handlers(studio)


def test_pictures_of_a_plan_that_changes_meanwhile_are_not_taken_for_the_new_ones(do):
    study = saved(do, prompts="a red ball\na blue house")
    making = make_pictures(do.studio, study.id, StopFlag())
    next(view for view in making if view.rows)  # the first scene is kept
    changed = saved(do, study.id, prompts="a green boat\na grey cat")
    assert changed.id == study.id and not stock(do.studio, changed).there
    with pytest.raises(BadInput, match="plan has changed"):
        list(making)
    assert not stock(do.studio, changed).there, "a picture of the old prompt stands for the new one"
    *_, last = make_pictures(do.studio, study.id, StopFlag())
    assert last.phase == "done"


# The models


def test_a_question_while_the_models_are_loaded_anew_is_answered(studio):
    """Tokens are counted at every key, and the engine goes between two looks at it."""

    class Going(type(studio)):
        looks = 0

        @property
        def _engine(self):
            type(self).looks += 1
            return studio._engine if self.looks % 2 else None

    going = Going.__new__(Going)
    assert going.count_tokens("a red ball") == studio.count_tokens("a red ball")
    Going.looks = 0
    assert going.arrangement() == studio.arrangement()
