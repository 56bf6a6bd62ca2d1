"""Who may use the device: one at a time, in the order of asking, each able to stop.

Gradio's own cancelling frees its queue slot while the cancelled work may still run; the turn here is given back by
the work itself, when it has really ended. Beyond this process the device's lock counts: a training holds it for as
long as it lives, and whoever is called here must get it before the work begins.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from app.services.public import Budget
from srpo.runs import DeviceLock, device_holder

# What the page says of it, word for word.
RULE = (
    "One piece of work at a time on a device: pictures wait while a run trains, and a run starts when the pictures "
    "under way are finished."
)
OURS = "SRPO Studio (pictures, or a measurement)"  # how others name us, when we hold the device


class Stopped(Exception):
    """Raised inside work whose visitor has asked it to stop, or has left."""


class StopFlag:
    """Set by anyone, read by the work between two steps. It knows whose work that is.

    A pickled one, in another process, is set where a file says so.
    """

    def __init__(self, user: str | None = None, file: Path | None = None) -> None:
        self.user = user  # the visitor's account; None for one who has not signed in
        self.until_s = math.inf  # by time.monotonic: then it sets itself
        self._event, self._file = threading.Event(), file

    def __reduce__(self) -> tuple:
        return StopFlag, (self.user, self._file)

    def share(self, file: Path) -> None:
        """Lets copies in other processes hear of it by that file, which appears when the flag is set."""
        self._file = file
        if self:
            self.set()

    def set(self) -> None:
        self._event.set()
        if self._file is not None:
            with suppress(OSError):  # its folder is gone with the work
                self._file.touch()

    def is_set(self) -> bool:
        return bool(self)

    def __bool__(self) -> bool:
        known = self._event.is_set() or time.monotonic() > self.until_s
        return known or (self._file is not None and self._file.exists())

    def check(self) -> None:
        """Raises Stopped once the flag is set."""
        if self:
            raise Stopped


class Device:
    """Turns on the device, first come first served."""

    def __init__(self, name: str = "cpu", budget: Budget | None = None) -> None:
        """budget: what a turn is charged to; None where time costs nothing."""
        self.name, self.budget = name, budget
        self._lock = DeviceLock(name)
        self._changed = threading.Condition()
        self._turns: deque[object] = deque()

    def is_ours(self) -> bool:
        """True where pictures are under way, here or in another app of ours: they end soon, and by themselves."""
        return device_holder(self.name) == OURS

    @contextmanager
    def turn(self) -> Iterator[Turn]:
        """A place in the line; it is left, and the next one called, when the block ends."""
        turn = Turn(self)
        with self._changed:
            self._turns.append(turn)
        try:
            yield turn
        finally:
            turn.release()
            with self._changed:
                self._turns.remove(turn)
                self._changed.notify_all()


class Turn:
    """One place in the device's line."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._holds = False
        self._user: str | None = None
        self._began_s = 0.0

    def ahead(self) -> int:
        """How many are before this turn; 0 when the device is ours."""
        with self._device._changed:
            return self._device._turns.index(self)

    def wait(self, timeout_s: float) -> int:
        """`ahead()` after the line has moved, or after `timeout_s`."""
        with self._device._changed:
            self._device._changed.wait_for(lambda: self._device._turns[0] is self, timeout_s)
            return self._device._turns.index(self)

    def acquire(self) -> str | None:
        """None once the device is ours alone, else who has it: a training, or another program of ours."""
        if not self._holds and self._device._lock.acquire(OURS):
            self._holds, self._began_s = True, time.monotonic()
        return None if self._holds else device_holder(self._device.name) or "another program"

    def bill(self, user: str | None) -> None:
        """Charges this turn's time to the account. BadInput, one sentence, where that has none left for this hour."""
        if self._device.budget is not None:
            self._device.budget.require(user)
        self._user = user

    def release(self) -> None:
        """Lets others have the device, if it was ours."""
        if self._holds:
            self._holds = False
            if self._device.budget is not None:
                self._device.budget.charge(self._user, time.monotonic() - self._began_s)
            self._device._lock.release()


def wait_for_device(turn: Turn, stop: StopFlag) -> Iterator[str]:
    """Messages until no training and no other program has the device; the turn must have been called.

    BadInput where the visitor's device time is spent.
    """
    turn.bill(stop.user)
    while (holder := turn.acquire()) is not None:
        stop.check()
        yield f"The device is in use by {holder}. This starts by itself when that has ended."
        time.sleep(0.25)


class AlreadyRunning(ValueError):
    """The visitor has work of that kind under way."""


class Jobs:
    """The stop flags of running work, by visitor: a Stop button reaches only its own page's work."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flags: dict[str, StopFlag] = {}

    @contextmanager
    def flag(self, visitor: str, user: str | None = None) -> Iterator[StopFlag]:
        """A flag that `stop(visitor)` sets for as long as the block runs. AlreadyRunning inside another such block.

        user: the account that pays for the work.
        """
        flag = StopFlag(user)
        with self._lock:
            if visitor in self._flags:
                raise AlreadyRunning("This page is at work already: stop it first, or wait for its end.")
            self._flags[visitor] = flag
        try:
            yield flag
        finally:
            with self._lock:
                del self._flags[visitor]

    def is_running(self, visitor: str) -> bool:
        with self._lock:
            return visitor in self._flags

    def stop(self, visitor: str) -> bool:
        """Whether there was work to stop."""
        with self._lock:
            flag = self._flags.get(visitor)
        if flag is not None:
            flag.set()
        return flag is not None
