"""Signals as a wish to stop, which the work sees where it can stop without losing anything."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(BaseException):
    """A stop was asked for: what is under way is dropped. Not an Exception, so that no library takes it for its own."""


class StopSignals(threading.Event):
    """Set by SIGTERM, SIGINT or a hangup. While `at_once` lasts, they interrupt what is under way as well."""

    def __init__(self) -> None:
        super().__init__()
        self._interrupts = False

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Stopped is raised in the midst of what the context does."""
        self._interrupts = True
        try:
            if self.is_set():
                raise Stopped
            yield
        finally:
            self._interrupts = False

    def receive(self, number: int, frame: FrameType | None) -> None:
        """The handler of the signals."""
        self.set()
        if self._interrupts:
            raise Stopped


@contextmanager
def stop_on_signals() -> Iterator[StopSignals]:
    """A flag that SIGTERM, SIGINT and SIGHUP set while the context lasts; an ignored one (nohup) stays ignored.

    Main thread only, as Python demands.
    """
    stop = StopSignals()
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    heard = [number for number in numbers if before[number] is not signal.SIG_IGN]
    for number in heard:
        signal.signal(number, stop.receive)
    try:
        yield stop
    finally:
        for number in heard:
            signal.signal(number, before[number])
