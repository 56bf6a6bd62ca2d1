"""Runs that this very process trains, where none of their own can be started: a hosted page, a device lent by the call.

The trainer is the same (`srpo.training.job.train_here`), and so is what it leaves: the page reads the run's folder and
cannot tell where it was trained. But such a run ends with this process, saved as by a Stop where that is asked to end.
A thread draws the records; where the device is lent, they come from the call.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from app.services.device import StopFlag
from app.services.lending import by_the_call
from srpo.runs import Busy, DeviceLock, RunFolder
from srpo.runs.claim import take_run
from srpo.runs.control import require_more, require_name, require_way_back

if TYPE_CHECKING:
    from srpo.runs import UpdateRecord
    from srpo.training.job import Order

log = logging.getLogger(__name__)

BEGINS_WITHIN_S = 30.0  # until a run has its folder: a worker may have to be started first
SAVES_WITHIN_S = 60.0  # once asked to stop
LEAVES_WITHIN_S = 0.3  # once its locks are free


@by_the_call
def trained(order: Order, stop: StopFlag) -> Iterator[UpdateRecord]:
    """The records of the run's updates, each after it is on the disk. Errors as for `train_here`."""
    from srpo.training.job import train_here

    yield from train_here(order, stop=stop)


@dataclass
class _Training:
    """A run under way."""

    order: Order
    stop: StopFlag = field(default_factory=StopFlag)
    thread: threading.Thread | None = None
    error: Exception | None = None


class TrainingHere:
    """The runs under way in this process; it starts them as `srpo.runs.start_run` and `resume_run` do."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: dict[Path, _Training] = {}

    def start_run(
        self, root: Path, name: str | None, preset_name: str, assignments: Sequence[str], *, device: str
    ) -> RunFolder:
        """A new run below `root`. ValueError where the name does not fit or is taken; Busy where the device is."""
        from srpo.training.config import with_settings
        from srpo.training.job import Order
        from srpo.training.presets import preset

        folder = root.resolve() / require_name(name or f"{datetime.now():%Y%m%d-%H%M%S}-{preset_name}")
        if folder.exists():
            raise ValueError(f"there is a run {folder.name!r} already: choose another name")
        config = with_settings(preset(preset_name), [*assignments, f"device={device}"])
        return self._begin(Order(RunFolder(folder), config, in_process=True))

    def resume_run(
        self,
        run: RunFolder,
        updates: int | None = None,
        from_update: int | None = None,
        *,
        device: str,
        despite_changes: bool = False,
    ) -> RunFolder:
        """The run, going on. ValueError where it cannot; Busy where the device, or the run, is in use."""
        from srpo.training.config import config_from_dict
        from srpo.training.job import Order

        if run.is_new():
            raise ValueError(f"{run.name} has never begun: start a new run")
        if from_update is not None:
            require_way_back(run, from_update)
        if updates is not None:
            require_more(run, updates, from_update)
        config = replace(config_from_dict(run.config()), device=device)
        if updates is not None:
            config = replace(config, updates=updates)
        take_run(run).release()
        return self._begin(Order(run, config, True, from_update, despite_changes, in_process=True))

    def stop(self, run: RunFolder) -> bool:
        """True where the run is under way here, and was asked to save and end."""
        with self._lock:
            training = self._under_way.get(run.path.resolve())
        if training is not None:
            training.stop.set()
        return training is not None

    def close(self) -> None:
        """Lets all runs save and end."""
        with self._lock:
            under_way = list(self._under_way.values())
        for training in under_way:
            training.stop.set()
        for training in under_way:
            training.thread.join(SAVES_WITHIN_S)

    def _begin(self, order: Order) -> RunFolder:
        """The run, once its folder says that it begins. What keeps it from having one is raised."""
        DeviceLock(order.config.device).require_free()
        path = order.run.path.resolve()
        training, before = _Training(order), order.run.state()
        # The caller's context tells who asks, which is whose time on a lent device it is.
        training.thread = threading.Thread(
            target=copy_context().run, args=(self._draw, training), name=f"train {order.run.name}", daemon=True
        )
        with self._lock:
            ending = self._under_way.get(path)
        if ending is not None:  # its locks are free a moment before it is gone
            ending.thread.join(LEAVES_WITHIN_S)
        with self._lock:
            if path in self._under_way:  # two were asked for at once; only the first is ours to stop
                raise Busy(f"{order.run.name} is being worked on: stop it first")
            self._under_way[path] = training
            training.thread.start()
        give_up_s = time.monotonic() + BEGINS_WITHIN_S
        while training.thread.is_alive() and order.run.state() == before and time.monotonic() < give_up_s:
            time.sleep(0.02)
        if training.error is not None and order.run.state() == before:
            raise training.error
        return order.run

    def _draw(self, training: _Training) -> None:
        try:
            with closing(trained(training.order, training.stop)) as records:
                for _ in records:
                    pass
        except Exception as error:  # the run's state says so as well, once it has one
            training.error = error
            if not isinstance(error, ValueError):
                log.exception("The run %s failed.", training.order.run.name)
        finally:
            with self._lock:
                del self._under_way[training.order.run.path.resolve()]
