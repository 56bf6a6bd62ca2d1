"""A process is known by pid, start time and boot together, and a stranger is never signalled."""

import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from srpo.runs import processes
from srpo.runs.processes import is_alive, is_here, job_of, kill_group, send, start_time, this_job


@pytest.fixture
def sleeper():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def test_this_process_is_alive_and_here():
    job = this_job("cpu")
    assert is_alive(job) and is_here(job)
    assert job.began.endswith("+00:00")


def test_a_dead_process_and_its_remains_are_not_alive(sleeper):
    job = job_of(sleeper.pid, "cpu")
    assert is_alive(job)
    sleeper.kill()
    deadline = time.monotonic() + 10
    while is_alive(job):  # it is a zombie until it is waited for
        assert time.monotonic() < deadline
    assert not send(job, signal.SIGTERM)
    sleeper.wait()
    assert start_time(sleeper.pid) is None
    with pytest.raises(ProcessLookupError):
        job_of(sleeper.pid, "cpu")


@pytest.mark.parametrize(
    "stranger",
    [{"started": "1"}, {"boot_id": "another start of the machine"}, {"host": "another-machine"}],
    ids=lambda change: next(iter(change)),
)
def test_a_stranger_with_the_pid_is_never_signalled(sleeper, stranger):
    job = replace(job_of(sleeper.pid, "cpu"), **stranger)
    assert not is_alive(job)
    assert not send(job, signal.SIGKILL)
    kill_group(job)
    with pytest.raises(subprocess.TimeoutExpired):
        sleeper.wait(timeout=0.2)


def test_a_signal_reaches_the_process_itself(sleeper):
    assert send(job_of(sleeper.pid, "cpu"), signal.SIGTERM)
    assert sleeper.wait(timeout=10) == -signal.SIGTERM


def test_a_leader_is_killed_with_its_group_and_another_alone():
    """The first has a group of its own, with a child in it; the second shares ours, which must live on."""
    code = "import subprocess, time; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); time.sleep(60)"
    for leads in (True, False):
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=leads
        )
        child = job_of(int(process.stdout.readline()), "cpu")
        kill_group(job_of(process.pid, "cpu"))
        assert process.wait(timeout=10) == -signal.SIGKILL
        process.stdout.close()
        if leads:
            deadline = time.monotonic() + 10
            while is_alive(child):
                assert time.monotonic() < deadline
        else:
            assert is_alive(child)
            send(child, signal.SIGKILL)


def test_where_there_is_no_proc_the_system_s_own_words_are_asked(sleeper, monkeypatch, tmp_path):
    """As on macOS: `ps` tells the start, to the second."""
    monkeypatch.setattr(processes, "PROC", tmp_path)
    said = {"ps": "S    Sat Nov 21 11:25:00 2026\n"}
    monkeypatch.setattr(processes, "_said", lambda name, *rest: said.get(name, ""))
    assert start_time(sleeper.pid) == "Sat Nov 21 11:25:00 2026"
    said["ps"] = "Z    Sat Nov 21 11:25:00 2026\n"
    assert start_time(sleeper.pid) is None
    said["ps"] = ""
    assert start_time(sleeper.pid) is None
