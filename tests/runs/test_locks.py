"""Locks: one holder, named; let go by the system when the holder dies; handed over without a gap."""

import os
import subprocess
import sys
import threading

import pytest

from srpo.runs import Busy, DeviceLock, device_holder
from srpo.runs.locks import FileLock, device_key, runtime_folder

HOLD = """
import sys, time
from srpo.runs import DeviceLock
print(DeviceLock("cpu").acquire("another"), flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def locks_here(tmp_path, monkeypatch):
    monkeypatch.setenv("SRPO_RUNTIME_DIR", str(tmp_path / "locks"))


def test_a_device_has_one_holder_whose_name_the_others_read():
    first, second = DeviceLock("cpu"), DeviceLock("cpu")
    assert device_holder("cpu") is None
    assert first.acquire("run a (process 1)")
    assert not second.acquire("run b")
    assert device_holder("cpu") == first.holder() == "run a (process 1)"
    with pytest.raises(Busy, match=r"the device cpu is in use by run a \(process 1\): wait"):
        second.require("run b")
    first.release()
    assert device_holder("cpu") is None
    assert second.acquire("b") and second.holder() == "b"  # nothing of the longer name is left
    assert DeviceLock("cuda:1").acquire("run c")
    second.release()
    second.release()
    assert first.acquire("again")


def test_the_same_lock_is_not_taken_twice():
    lock = DeviceLock("cpu")
    lock.acquire("a")
    with pytest.raises(RuntimeError, match="already held"):
        lock.acquire("a")


def test_a_killed_holder_lets_go():
    process = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "True\n"
        assert device_holder("cpu") == "another"
        assert not DeviceLock("cpu").acquire("me")
    finally:
        process.kill()
        process.communicate()
    assert device_holder("cpu") is None
    assert DeviceLock("cpu").acquire("me")


def test_of_fifty_threads_that_take_it_at_once_one_gets_it():
    locks, taken, together = [DeviceLock("cpu") for _ in range(50)], [], threading.Barrier(50)

    def take(lock):
        together.wait()
        if lock.acquire("me"):
            taken.append(lock)

    threads = [threading.Thread(target=take, args=(lock,)) for lock in locks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1


def test_looking_at_the_holder_never_refuses_anybody():
    stop = threading.Event()

    def look():
        while not stop.is_set():
            device_holder("cpu")

    watchers = [threading.Thread(target=look) for _ in range(4)]
    for watcher in watchers:
        watcher.start()
    try:
        lock = DeviceLock("cpu")
        for _ in range(200):
            assert lock.acquire("me")
            lock.release()
    finally:
        stop.set()
        for watcher in watchers:
            watcher.join()


def test_an_inherited_lock_goes_on_when_its_giver_lets_go(tmp_path):
    """The very open file is handed over; another file under that number is not taken for it."""
    giver, heir = DeviceLock("cpu"), DeviceLock("cpu")
    giver.acquire("run a")
    inherited = os.dup(giver.fileno())
    giver.release()
    assert heir.adopt(inherited)
    assert device_holder("cpu") == "run a"
    heir.release()
    assert device_holder("cpu") is None
    other = os.open(tmp_path, os.O_RDONLY)
    assert not DeviceLock("cpu").adopt(other)
    os.close(other)
    assert not DeviceLock("cpu").adopt(other)


def test_a_folder_can_be_locked_and_a_missing_one_has_no_holder(tmp_path):
    lock = FileLock(tmp_path)
    assert lock.acquire()
    assert FileLock(tmp_path).is_held() and not FileLock(tmp_path).acquire()
    assert not FileLock(tmp_path / "missing").is_held()
    assert not (tmp_path / "missing").exists()


def test_a_device_has_one_key_whatever_it_is_called(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert device_key("cuda") == device_key("cuda:0") != device_key("cuda:1")
    assert device_key("cpu") == device_key("CPU:0")
    first = device_key("cuda:3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert device_key("cuda:1") == first  # the same card


def test_a_folder_of_locks_that_is_not_ours_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("SRPO_RUNTIME_DIR", str(tmp_path / "file"))
    with pytest.raises(ValueError, match="set SRPO_RUNTIME_DIR to a folder of yours"):
        DeviceLock("cpu").acquire("me")
    monkeypatch.setenv("SRPO_RUNTIME_DIR", str(tmp_path / "new"))
    assert runtime_folder().stat().st_mode & 0o777 == 0o700
