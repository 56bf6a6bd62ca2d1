"""A run in the hands of the process that works on it: its lock, its heartbeat, and what is said if it cannot begin."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack, suppress
from dataclasses import asdict
from types import TracebackType

from srpo.runs.folder import RunFolder
from srpo.runs.heart import Heart
from srpo.runs.locks import Busy, FileLock
from srpo.runs.records import LIVE, RunState
from srpo.runs.stopping import Stopped

HANDOVER_VARIABLE = "SRPO_HANDOVER"


class Handover:
    """What a starting program leaves to its job: the open locks, and the run's state before it was announced."""

    def __init__(self, locks: list[int] | None = None, before: RunState | None = None) -> None:
        self.locks, self.before = locks or [], before

    @classmethod
    def received(cls) -> Handover:
        """The one that was left to this process; an empty one where it was started by hand."""
        left = json.loads(os.environ.pop(HANDOVER_VARIABLE, "{}"))
        return cls(left.get("locks"), RunState(**left["before"]) if left.get("before") else None)

    def told(self) -> dict[str, str]:
        """The environment variable that leaves it to a process."""
        before = asdict(self.before) if self.before else None
        return {HANDOVER_VARIABLE: json.dumps({"locks": self.locks, "before": before})}

    def adopt(self, lock: FileLock) -> bool:
        """True where the lock was handed over; it is held now."""
        return any(lock.adopt(inherited) for inherited in self.locks)


def take_run(run: RunFolder) -> FileLock:
    """The lock on the run, taken. Busy while a job works on it."""
    lock = FileLock(run.path)
    if not lock.acquire():
        job = run.job()
        raise Busy(f"{run.name} is being worked on{f' by process {job.pid}' if job else ''}: stop it first")
    return lock


class Claim:
    """The right to work on a run, while the context lasts. Busy where another process has it.

    What keeps the run from beginning is said in its state: a new one has failed, one that was to go on is as it was.
    """

    def __init__(self, run: RunFolder, handover: Handover, *, is_new: bool) -> None:
        self.run = run
        self._handover, self._is_new, self._has_begun = handover, is_new, False

    def __enter__(self) -> Claim:
        lock = FileLock(self.run.path)
        if not self._handover.adopt(lock):
            lock = take_run(self.run)
        with ExitStack() as held:
            held.callback(lock.release)
            self._before = None if self._is_new else self._handover.before or self.run.state()
            self.heart = held.enter_context(Heart(self.run))
            self.starts("loading the libraries")
            self._held = held.pop_all()
        return self

    def starts(self, phase: str) -> None:
        """Says what the run waits for."""
        update, updates = (self._before.update, self._before.updates) if self._before else (0, 0)
        self.heart.move(phase, update)
        self.run.write_state("starting", update, phase=phase, updates=updates)

    def begins(self) -> None:
        """From here on the work itself says how it ends."""
        self._has_begun = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._held, suppress(OSError):  # let go last; where nothing can be written, the error itself comes out
            if error is not None and not self._has_begun:
                self._say_why_not(error)

    def _say_why_not(self, error: BaseException) -> None:
        stopped, before = isinstance(error, Stopped), self._before
        if stopped:
            message = "it was stopped before it had begun"
        else:
            message = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        if before is None:
            self.run.write_state("stopped" if stopped else "failed", 0, message)
        else:
            status = "lost" if before.status in LIVE else before.status
            self.run.write_state(status, before.update, message, updates=before.updates)
