"""The heartbeat: written whatever the work does, and it outlives a disk that is full for a while."""

import time

import pytest

from srpo.runs import RunFolder
from srpo.runs.heart import Heart


@pytest.fixture
def run(tmp_path):
    return RunFolder.create(tmp_path / "run", {})


def wait_for(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_it_beats_by_itself_and_tells_when_the_work_moved(run):
    with Heart(run, every_s=0.01) as heart:
        heart.move("training", 3)
        first = run.heartbeat()
        assert (first.phase, first.update) == ("training", 3)
        wait_for(lambda: run.heartbeat().time > first.time)
        assert run.heartbeat().active == first.active  # nothing has moved
        heart.move()
        wait_for(lambda: run.heartbeat().active > first.active)
        assert run.heartbeat().update == 3
    last = run.heartbeat()
    time.sleep(0.05)
    assert run.heartbeat() == last


def test_a_full_disk_does_not_end_it(run, monkeypatch):
    real, full = RunFolder.write_heartbeat, True

    def write(self, beat):
        if full:
            raise OSError(28, "No space left on device")
        real(self, beat)

    monkeypatch.setattr(RunFolder, "write_heartbeat", write)
    with Heart(run, every_s=0.01):
        time.sleep(0.05)
        assert run.heartbeat() is None
        full = False
        wait_for(lambda: run.heartbeat() is not None)
