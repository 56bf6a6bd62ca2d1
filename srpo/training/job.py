"""A job: everything between being asked for a run and its first update, in the order in which things can go wrong.

What is cheap is looked at first: settings, device, files, what has changed since. Then the models are loaded, and the
disk is measured against their size. A new run started from a terminal gets its folder only after all that.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from srpo.loading import import_module
from srpo.runs import DeviceLock, RunFolder, UpdateRecord
from srpo.runs.claim import Claim, Handover
from srpo.runs.environment import environment
from srpo.runs.processes import this_job
from srpo.training import faults
from srpo.training.checkpoints import Loaded, require_disk_space
from srpo.training.config import TrainConfig, config_dict, read_prompts
from srpo.training.continuity import changes_since, inputs
from srpo.training.devices import require_device
from srpo.training.distributed import own_device, session, world
from srpo.training.session import resume, train
from srpo.training.trainer import Trainer


@dataclass(frozen=True)
class Order:
    """What is asked for: a new run in a folder, or that one that is there goes on."""

    run: RunFolder
    config: TrainConfig
    resumes: bool = False
    from_update: int | None = None  # goes back to that checkpoint, or to the start with 0
    despite_changes: bool = False  # goes on although versions or files are not what they were
    in_process: bool = False  # True: a part of a larger program


@dataclass(frozen=True)
class Work:
    """A job that is ready to train."""

    trainer: Trainer
    claim: Claim | None  # None in all but one of several processes
    loaded: Loaded = field(default_factory=lambda: Loaded(0))

    def updates(self, stop: threading.Event) -> Iterator[UpdateRecord]:
        """Trains; see `session.train`."""
        if self.claim is None:
            yield from train(None, self.trainer, stop=stop)
            return
        self.claim.begins()
        yield from train(self.claim.run, self.trainer, stop=stop, heart=self.claim.heart)


@contextmanager
def ready(order: Order, handover: Handover, claim: Claim | None = None) -> Iterator[Work]:
    """The work, loaded, checked and locked, while the context lasts.

    claim: on a run that has a folder already; without it, the run is claimed once it has one. ValueError, one sentence,
    for whatever keeps it from beginning; Busy where the device or the run is in use.
    """
    config, run = order.config, order.run
    with ExitStack() as held:
        require_device(config.device)
        held.enter_context(session(config.device))
        is_main = world().is_main
        if is_main or config.device.startswith("cuda"):
            held.callback(_take_device(order, handover).release)
        read_prompts(config.prompts)
        despite = _require_unchanged(order) if order.resumes else []
        import_module("srpo.training.assemble")  # the models' libraries take seconds; they belong to the phase before

        if claim is not None:
            claim.starts("loading the models")
        trainer = _assemble(config)
        require_disk_space(run.path, trainer.parameters, keeps_best=trainer.validation is not None)
        if is_main:
            if not order.resumes:
                RunFolder.create(run.path, config_dict(config), inputs(config))
            claim = claim or held.enter_context(Claim(run, handover, is_new=not order.resumes))
            run.write_job(this_job(config.device, in_process=order.in_process))
            run.tidy()
        loaded = Loaded(0)
        if order.resumes:
            loaded = resume(run, trainer, order.from_update)
            if is_main:
                run.write_config(config_dict(config))
                if despite:
                    told = f"from update {loaded.update}: {'; '.join(despite)}"
                    run.write_environment(environment(inputs(config)) | {"despite": told})
        yield Work(trainer, claim, loaded)


def train_here(order: Order, *, stop: threading.Event) -> Iterator[UpdateRecord]:
    """As a process of its own would, the records of the run's updates; errors as for `ready` and `train`.

    The run's folder is there, starting, before anything is loaded; where the device is in use, there is none.
    """
    require_device(order.config.device)
    DeviceLock(order.config.device).require_free()
    run = order.run if order.resumes else RunFolder.prepare(order.run.path)
    with ExitStack() as held:
        claim = held.enter_context(Claim(run, Handover(), is_new=not order.resumes))
        work = held.enter_context(ready(order, Handover(), claim))
        yield from work.updates(stop)


def _take_device(order: Order, handover: Handover) -> DeviceLock:
    lock = DeviceLock(own_device(order.config.device))
    if not handover.adopt(lock):
        lock.require(f"run {order.run.name} (process {os.getpid()})")
    return lock


def _assemble(config: TrainConfig) -> Trainer:
    from srpo.training.assemble import assemble  # the models' libraries, which take seconds

    try:
        return assemble(config)
    except (RuntimeError, MemoryError) as error:
        if faults.is_out_of_memory(error):
            raise ValueError(faults.out_of_memory(config)) from error
        raise


def _require_unchanged(order: Order) -> list[str]:
    """What has changed since the run began, where the order says to go on all the same; ValueError else."""
    changes = changes_since(order.run, order.config)
    if changes and not order.despite_changes:
        raise ValueError(
            f"{order.run.name} would not be the same run: {'; '.join(changes)}. Put that right, start a new run with "
            "--like, or go on all the same with --despite-changes"
        )
    return changes
