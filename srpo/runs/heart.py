"""The heartbeat of a job: a thread that writes a sign of life every two seconds, whatever the work is busy with."""

from __future__ import annotations

import threading
import time
from types import TracebackType

from srpo.runs.folder import RunFolder
from srpo.runs.records import Heartbeat

BEAT_EVERY_S = 2.0


class Heart:
    """Beats while its context lasts. `move` is the work's own sign."""

    def __init__(self, run: RunFolder, every_s: float = BEAT_EVERY_S) -> None:
        self._run, self._every_s = run, every_s
        self._phase, self._update, self._active = "", 0, time.time()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name="heartbeat", daemon=True)

    def move(self, phase: str | None = None, update: int | None = None) -> None:
        """The work has moved: on in its phase, into another, or past an update. A new phase is written at once."""
        self._active = time.time()
        self._update = self._update if update is None else update
        if phase is not None and phase != self._phase:
            self._phase = phase
            self._beat()

    def __enter__(self) -> Heart:
        self._beat()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _beat_on(self) -> None:
        while not self._ended.wait(self._every_s):
            self._beat()

    def _beat(self) -> None:
        beat = Heartbeat(time.time(), self._phase, self._update, self._active)
        try:
            self._run.write_heartbeat(beat)
        except OSError:  # a full disk, say: the work itself will meet it and say so; the next beat tries again
            return
