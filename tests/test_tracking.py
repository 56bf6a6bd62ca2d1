"""What is handed on is what the run's folder says, once each, whoever started it and when."""

import subprocess
import sys
import threading
import time

import pytest

from srpo import tracking
from srpo.runs import RunFolder
from tests.app.folders import make_run, pretend_to_run, record, validated


class Heard:
    """A sink that remembers."""

    def __init__(self, run):
        self.told, self.closed = [], False
        Heard.last = self

    def write(self, update, values):
        self.told.append((update, values))

    def close(self):
        self.closed = True


@pytest.fixture
def heard(monkeypatch):
    monkeypatch.setattr(tracking, "SINKS", {"json": Heard})  # a module that is installed everywhere
    return Heard


def test_a_finished_run_is_handed_on_whole(tmp_path, heard):
    run = make_run(tmp_path, status="finished")
    assert tracking.follow(run, ["json"]) == 3
    updates = [(update, values["loss"]) for update, values in heard.last.told if "loss" in values]
    assert updates == [(1, 0.5), (2, 0.5), (3, 0.5)]
    assert [(u, v) for u, v in heard.last.told if "loss" not in v] == [
        (0, {"validation/photo": 0.2}),
        (3, {"validation/photo": 0.3}),
    ]
    assert heard.last.closed


def test_a_growing_run_is_followed_to_its_end(tmp_path, heard):
    run = make_run(tmp_path, status="running")
    pretend_to_run(run, time.time(), 3)
    follower = threading.Thread(target=tracking.follow, args=(run, ["json"], 0.01), daemon=True)
    follower.start()
    run.append_progress(record(4))
    run.append_validation(validated(4, 0.6))
    time.sleep(0.1)
    assert follower.is_alive()
    run.append_progress(record(5))
    run.write_state("finished", 5, updates=5)
    follower.join(20)
    assert not follower.is_alive()
    assert [update for update, values in heard.last.told if "loss" in values] == [1, 2, 3, 4, 5]


def test_a_follower_waits_until_a_starting_run_has_its_settings(tmp_path, heard):
    run = RunFolder.prepare(tmp_path / "one")
    pretend_to_run(run, time.time(), 0)
    follower = threading.Thread(target=tracking.follow, args=(run, ["json"], 0.01), daemon=True)
    follower.start()
    time.sleep(0.1)
    run.write_state("failed", 0, "no such model")
    follower.join(20)
    assert not follower.is_alive() and heard.last.told == []


def test_tensorboard_gets_every_number_and_a_second_follower_doubles_nothing(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = make_run(tmp_path, status="finished")
    for _ in range(2):
        tracking.follow(run, ["tensorboard"])
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 0.5), (2, 0.5), (3, 0.5)]
    assert [event.step for event in events.Scalars("validation/photo")] == [0, 3]
    assert "denoise/positive" in events.Tags()["scalars"]


def test_trackio_gets_every_number_and_a_second_follower_doubles_nothing(tmp_path, monkeypatch):
    """In a process of its own: trackio keeps its place and its threads for the life of one."""
    pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    run = make_run(tmp_path / "runs", status="finished")
    for _ in range(2):
        command = [sys.executable, "-m", "srpo.tracking", str(run.path), "--to", "trackio"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    script = (
        "from trackio.sqlite_storage import SQLiteStorage as S; "
        "logs = S.get_logs('srpo-studio', 'one'); print([(l['step'], l['loss']) for l in logs if 'loss' in l])"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert told.stdout.strip().splitlines()[-1] == "[(1, 0.5), (2, 0.5), (3, 0.5)]", told.stderr


def test_what_is_not_installed_or_not_known_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="trackio is not installed here: pip install trackio"):
        tracking.require_sinks(["trackio"])
    with pytest.raises(ValueError, match="choose tensorboard or trackio"):
        tracking.require_sinks(["wandb"])
    make_run(tmp_path)
    assert tracking.main([str(tmp_path / "one"), "--to", "trackio"]) == 2
    assert capsys.readouterr().err.startswith("error: trackio is not installed")
    assert tracking.main([str(tmp_path / "nobody"), "--to", "trackio"]) == 2


def test_a_follower_does_without_torch():
    script = "import sys, srpo.tracking; print([name for name in ('torch', 'gradio') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr
