"""Breaks in at the n-th thing that a save does to the disk: kills the process there, or lets that one thing fail.

Used in a forked child, as an audit hook of Python stays for ever. What is counted: files opened for writing, folders
made, renames, removals (Python tells of each before it happens), every fsync, and each tensor file before and after it
is written, which the safetensors library does by itself.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable

from srpo.training import checkpoints

WRITES = os.O_WRONLY | os.O_RDWR
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree")


class Steps:
    """Counts while `armed`; at number `at` it does what it is told to."""

    def __init__(self, at: int | None = None, act: Callable[[], None] = lambda: None) -> None:
        self.count, self.at, self.act, self.armed = 0, at, act, False
        sys.addaudithook(self._hear)
        os.fsync = self._told_around(os.fsync)
        checkpoints.save_file = self._told_around(checkpoints.save_file)

    def step(self) -> None:
        if self.armed and threading.current_thread() is threading.main_thread():  # not the heartbeat's
            self.count += 1
            if self.count == self.at:
                self.act()

    def _hear(self, event: str, arguments: tuple) -> None:
        if event in CHANGES or (event == "open" and arguments[2] & WRITES):
            self.step()

    def _told_around(self, function: Callable) -> Callable:
        def told(*arguments: object, **options: object) -> object:
            self.step()
            result = function(*arguments, **options)
            self.step()
            return result

        return told


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail(number: int) -> Callable[[], None]:
    def act() -> None:
        raise OSError(number, os.strerror(number))

    return act


def in_child(work: Callable[[], int]) -> int:
    """What `work` returned in a forked child, its exit status; or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        try:
            status = work()
        except BaseException:
            traceback.print_exc()
            status = 99
        os._exit(status)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)
