"""Buttons against processes: jobs of a real kind, without the models (`tests/runs/job.py`)."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from srpo.runs import (
    Busy,
    DeviceLock,
    Heartbeat,
    RunFolder,
    RunState,
    control,
    delete_run,
    device_holder,
    duplicate_run,
    liveness,
    request_stop,
    resume_run,
    settle,
    start_run,
    stop_run,
)
from srpo.runs.processes import is_alive, job_of, kill_group, start_time, this_job

WAIT_S = 60  # a machine may be busy


@pytest.fixture(autouse=True)
def jobs_without_models(tmp_path, monkeypatch):
    monkeypatch.setenv("SRPO_RUNTIME_DIR", str(tmp_path / "locks"))
    monkeypatch.setattr(control, "JOB", (str(Path(__file__).with_name("job.py")),))
    yield
    for job_file in tmp_path.glob("**/job.json"):
        if (job := RunFolder(job_file.parent).job()) and job.pid != os.getpid():
            kill_group(job)


def wait_until(condition):
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def under_way(run):
    wait_until(lambda: run.progress() and run.state().status == "running")
    return run


def checkpoint(run, update):
    run.checkpoint(update).mkdir()
    for name in ("transformer.safetensors", "manifest.json"):
        (run.checkpoint(update) / name).write_text("x")


def test_a_run_is_starting_within_a_second_and_lives_on_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("JOB_BEHAVIOUR", "slow")
    began = time.process_time()  # of our own: the machine may be busy
    run = start_run(tmp_path / "runs", "first", "studio", ["lr=1e-5"])
    assert time.process_time() - began < 0.5
    assert run.state() == RunState("starting", 0)
    assert liveness(run) == "running"
    under_way(run)
    job = run.job()
    assert os.getsid(job.pid) == job.pid != os.getsid(0)  # no terminal of ours takes it along
    assert device_holder("cpu") == f"run first (process {job.pid})"
    assert run.config() == {"lr": "1e-5", "device": "cpu"}
    assert stop_run(run).status == "stopped"
    assert liveness(run) == "ended"
    assert device_holder("cpu") is None


def test_of_fifty_starts_at_once_exactly_one_job_begins(tmp_path):
    """Threads of this process and of four others, as two pages and a command line would press at once."""
    code = (
        "import sys, threading\n"
        "from srpo.runs import Busy, control, start_run\n"
        f"control.JOB = {control.JOB!r}\n"
        "def start(number):\n"
        "    try:\n"
        f"        start_run({str(tmp_path / 'runs')!r}, f'{{sys.argv[1]}}-{{number}}')\n"
        "        said.append('started')\n"
        "    except Busy as error:\n"
        "        assert 'is in use by run' in str(error), error\n"
        "        said.append('refused')\n"
        "said = []\n"  # printed at the end: threads that print at once mix up their lines
        "threads = [threading.Thread(target=start, args=(number,)) for number in range(10)]\n"
        "for thread in threads: thread.start()\n"
        "for thread in threads: thread.join()\n"
        "print(*said)\n"
    )
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    others = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(number)],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
        )
        for number in range(5)
    ]
    said = "".join(process.communicate(timeout=WAIT_S)[0] for process in others).split()
    assert sorted(said) == ["refused"] * 49 + ["started"]
    [run] = (tmp_path / "runs").iterdir()  # the refused ones have left nothing
    assert stop_run(under_way(RunFolder(run))).status == "stopped"


def test_a_run_of_a_name_is_started_and_resumed_once(tmp_path):
    run = under_way(start_run(tmp_path, "a"))
    with pytest.raises(ValueError, match="there is a run 'a' already"):
        start_run(tmp_path, "a", device="cuda:1")
    with pytest.raises(Busy, match=r"the device cpu is in use by run a \(process \d+\)"):
        resume_run(run)
    with pytest.raises(Busy, match="a is being worked on by process"):
        resume_run(run, device="cuda:1")
    assert not DeviceLock("cuda:1").is_held()


@pytest.mark.parametrize(
    "name", ["../up", "a/b", "/abs", ".hidden", "", "x" * 101, "a\nb", "run.tmp", "ends.", "nul\0"]
)
def test_a_name_that_is_no_plain_folder_name_is_refused(name, tmp_path):
    if name == "":
        assert "studio" in start_run(tmp_path, name).name  # no name: one with the time
        return
    with pytest.raises(ValueError, match="a run cannot be named"):
        start_run(tmp_path, name)
    assert not list(tmp_path.glob("*/state.json"))


def test_a_folder_that_cannot_be_written_leaves_the_device_free(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="no run can be written"):
        start_run(tmp_path / "file", "a")
    assert device_holder("cpu") is None


def test_a_process_that_cannot_be_started_is_said_in_the_state(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with pytest.raises(ValueError, match="no process could be started"):
        start_run(tmp_path, "a")
    assert RunFolder(tmp_path / "a").state().status == "failed"
    assert device_holder("cpu") is None


def test_a_stopped_run_is_resumed_extended_and_finishes(tmp_path):
    run = under_way(start_run(tmp_path, "a"))
    done = stop_run(run).update
    with pytest.raises(ValueError, match=f"a has done {done} updates: ask for more than that, not for {done} in all"):
        resume_run(run, updates=done)
    resume_run(run, updates=done + 3)
    assert run.state().update >= done  # it is shown where it was while it starts
    wait_until(lambda: run.state().status == "finished")
    assert [record.update for record in run.progress()] == list(range(1, done + 4))


def test_going_back_needs_a_checkpoint_and_spares_what_is_kept(tmp_path):
    run = under_way(start_run(tmp_path, "a"))
    stop_run(run)
    for update in (5, 10):
        checkpoint(run, update)
    with pytest.raises(ValueError, match="a cannot go back to update 7: choose one of 0, 5, 10"):
        resume_run(run, from_update=7)
    run.keep(10)
    with pytest.raises(ValueError, match="would remove the checkpoint of update 10, which is to be kept"):
        resume_run(run, from_update=5)
    assert device_holder("cpu") is None
    run.keep(10, False)
    resume_run(run, from_update=5)
    assert liveness(run) == "running"


def test_a_duplicate_begins_beside_its_model(tmp_path):
    run = under_way(start_run(tmp_path, "a", "paper"))
    stop_run(run)
    again = under_way(duplicate_run(run, "b", ["lr=2e-5"]))
    assert (again.path.parent, again.config()["lr"]) == (run.path.parent, "2e-5")


def test_a_killed_job_is_lost_and_told_so_with_its_last_word(tmp_path):
    run = under_way(start_run(tmp_path, "a"))
    run.log.open("a").write("the last word\n")
    kill_group(run.job())
    wait_until(lambda: liveness(run) == "lost")
    assert run.state().status == "running"  # nobody was there to write it
    state = settle(run)
    assert (state.status, run.state()) == ("lost", state)
    assert "it has no checkpoint yet and begins anew" in state.message and "the last word" in state.message
    assert liveness(run) == "lost"
    resume_run(run)
    wait_until(lambda: run.state().status == "running" and liveness(run) == "running")


def test_a_job_that_ends_before_it_says_anything_is_lost(tmp_path, monkeypatch):
    monkeypatch.setenv("JOB_BEHAVIOUR", "crash")
    run = start_run(tmp_path, "a")
    wait_until(lambda: liveness(run) == "lost")
    assert "the last word" in settle(run).message
    assert device_holder("cpu") is None


@pytest.mark.parametrize(
    "stranger", [{"started": "1"}, {"boot_id": "before the restart"}], ids=["pid reused", "rebooted"]
)
def test_a_stranger_with_the_job_s_pid_is_never_signalled_and_the_run_is_lost(stranger, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    try:
        run = RunFolder.create(tmp_path / "a", {"device": "cpu"})
        run.write_state("running", 3)
        run.write_job(replace(job_of(process.pid, "cpu"), **stranger))
        run.write_heartbeat(Heartbeat(time.time(), "training", 3, time.time()))
        assert liveness(run) == "lost"
        assert request_stop(run) is None
        assert stop_run(run, grace_s=0).status == "lost"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.2)
    finally:
        process.kill()
        process.wait()


def test_a_job_that_has_stopped_still_is_stalled_and_stop_ends_it(tmp_path, monkeypatch):
    """SIGSTOP stands for whatever halts a process. Instead of three heartbeats of five seconds, two of two."""
    monkeypatch.setattr(control, "STALLED_AFTER_S", 4.0)
    run = under_way(start_run(tmp_path, "a"))
    job, first = run.job(), run.heartbeat()
    wait_until(lambda: run.heartbeat().time > first.time and liveness(run) == "running")
    os.kill(job.pid, signal.SIGSTOP)
    wait_until(lambda: liveness(run) == "stalled")
    state = stop_run(run, grace_s=0.2)
    assert state.status == "stopped"
    assert "did not answer within 0.2 s" in state.message
    assert not is_alive(job)


def test_a_job_that_beats_but_does_not_move_is_stalled_too(tmp_path):
    """A device that hangs: signs of life come, but no forward pass for ten minutes."""
    run = RunFolder.create(tmp_path / "a", {})
    run.write_state("running", 3)
    run.write_job(replace(this_job("cpu"), began="2026-01-01T00:00:00+00:00"))
    now = time.time()
    for idle_s, expected in ((599, "running"), (601, "stalled")):
        run.write_heartbeat(Heartbeat(now, "training", 3, now - idle_s))
        assert liveness(run) == expected
    run.write_heartbeat(Heartbeat(now - 16, "training", 3, now - 16))
    assert liveness(run) == "stalled"


def test_an_earlier_job_s_heartbeat_says_nothing_about_this_one(tmp_path):
    run = RunFolder.create(tmp_path / "a", {})
    run.write_heartbeat(Heartbeat(time.time() - 1000, "training", 3, time.time() - 1000))
    run.write_state("running", 3)
    run.write_job(this_job("cpu"))
    assert liveness(run) == "running"


def test_a_deaf_job_is_killed_after_the_grace_with_what_it_started(tmp_path, monkeypatch):
    monkeypatch.setenv("JOB_BEHAVIOUR", "child")
    run = under_way(start_run(tmp_path, "a"))
    child = int((run.path / "child").read_text())
    assert start_time(child) is not None
    began = time.monotonic()
    state = stop_run(run, grace_s=0.5)
    assert time.monotonic() - began >= 0.5
    assert state.status == "stopped"
    assert "did not answer within 0.5 s; it has no checkpoint yet" in state.message
    wait_until(lambda: start_time(child) is None)


def test_a_job_that_is_saving_gets_more_time_than_the_grace(tmp_path, monkeypatch):
    monkeypatch.setenv("JOB_BEHAVIOUR", "deaf")
    run = under_way(start_run(tmp_path, "a"))
    monkeypatch.setattr(control, "_is_saving", lambda run: True)
    stopper = threading.Thread(target=stop_run, args=(run, 0.1))
    stopper.start()
    stopper.join(0.6)
    assert stopper.is_alive() and is_alive(run.job())
    monkeypatch.setattr(control, "_is_saving", lambda run: False)
    stopper.join(WAIT_S)
    assert not stopper.is_alive()


def test_a_stop_right_after_the_start_stops(tmp_path, monkeypatch):
    monkeypatch.setenv("JOB_BEHAVIOUR", "slow")
    run = start_run(tmp_path, "a")
    assert stop_run(run).status == "stopped"
    assert liveness(run) == "ended"
    assert device_holder("cpu") is None


def test_a_run_inside_another_program_or_on_another_machine_is_not_signalled(tmp_path):
    run = RunFolder.create(tmp_path / "a", {})
    run.write_state("running", 3)
    run.write_heartbeat(Heartbeat(time.time() + 1, "training", 3, time.time()))
    run.write_job(replace(this_job("cpu"), in_process=True))
    with pytest.raises(ValueError, match=r"a runs inside process \d+: stop it where it was started"):
        stop_run(run)
    run.write_job(replace(this_job("cpu"), host="elsewhere"))
    assert liveness(run) == "running"  # by its heartbeat
    with pytest.raises(ValueError, match="a runs on elsewhere: stop it there"):
        stop_run(run)
    run.write_heartbeat(Heartbeat(time.time() - 60, "training", 3, time.time() - 60))
    run.write_job(replace(this_job("cpu"), host="elsewhere", began="2026-01-01T00:00:00+00:00"))
    assert liveness(run) == "lost"


def test_a_running_run_is_not_deleted_and_a_stopped_one_is_gone(tmp_path):
    run = under_way(start_run(tmp_path, "a"))
    with pytest.raises(Busy, match="stop it first"):
        delete_run(run)
    stop_run(run)
    delete_run(run)
    assert not list(tmp_path.glob("a*"))
    with pytest.raises(ValueError, match="holds no run"):
        delete_run(run)


def test_a_run_s_liveness_is_told_in_every_state(tmp_path):
    run = RunFolder(tmp_path / "a")
    run.path.mkdir()
    assert liveness(run) == "not begun"
    assert settle(run) is None
    for status, expected in (("finished", "ended"), ("stopped", "ended"), ("failed", "ended"), ("starting", "lost")):
        run.write_state(status, 0)
        assert liveness(run) == expected
    assert settle(run).status == "lost"


def test_a_lost_run_in_a_folder_that_can_only_be_read_is_told_all_the_same(tmp_path, monkeypatch):
    run = RunFolder.create(tmp_path / "a", {})
    run.write_state("running", 3)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(RunFolder, "write_state", refuse)
    assert settle(run).status == "lost"
    assert json.loads((run.path / "state.json").read_text())["status"] == "running"


def test_what_is_handed_over_is_taken_once(monkeypatch):
    from srpo.runs.claim import Handover

    before = RunState("stopped", 5, updates=10)
    [(name, value)] = Handover([3, 4], before).told().items()
    monkeypatch.setenv(name, value)
    received = Handover.received()
    assert (received.locks, asdict(received.before)) == ([3, 4], asdict(before))
    assert (Handover.received().locks, name in os.environ) == ([], False)
