"""A training in its run folder: log, validations, checkpoints, a stop that loses nothing, and the finished weights.

`train` is a generator, so the same code drives a process of its own (`__main__`) and a page that may not start one
(`job.train_here`). Whoever draws its records sees each update after it is on the disk.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from srpo.runs import BestRecord, RunFolder, UpdateRecord, ValidationRecord
from srpo.runs.heart import Heart
from srpo.runs.records import Status
from srpo.runs.stopping import Stopped
from srpo.runs.watch import LOOKS_BACK, warning
from srpo.training import faults
from srpo.training.checkpoints import (
    Loaded,
    Trainable,
    load_checkpoint,
    prune,
    read_weights,
    save_checkpoint,
    save_finished,
    snapshot,
)
from srpo.training.distributed import World
from srpo.training.trainer import NonFiniteError


class Validator(Protocol):
    """Scores pictures of fixed prompts and seeds, by what the run does not train on."""

    prompts: list[str]
    seeds: list[int]
    images: Tensor  # (N, 3, H, W) in [0, 1], of the last validation, one for each prompt and seed
    num_samples: int  # so many of them are kept in the run folder

    def due(self, update: int) -> bool: ...

    def validate(self, policy: Any, update: int) -> ValidationRecord: ...

    def best(self, records: list[ValidationRecord]) -> BestRecord | None: ...

    def should_stop(self, records: list[ValidationRecord]) -> bool: ...


class Training(Trainable, Protocol):
    """What a session needs of a trainer."""

    policy: Any
    transformers: Sequence[torch.nn.Module]  # what a stop interrupts
    validation: Validator | None
    world: World

    def begin_update(self) -> UpdateRecord: ...

    def end_update(self) -> None: ...


def resume(run: RunFolder, trainer: Training, from_update: int | None = None) -> Loaded:
    """Where the run goes on, loaded into the trainer; its logs are cut back to that. Errors as for `load_checkpoint`.

    With several processes all of them must call it; one writes.
    """
    loaded = load_checkpoint(run, trainer, from_update)
    trainer.world.agree(False)  # all have read
    if trainer.world.is_main:
        if from_update is not None:
            run.weights.unlink(missing_ok=True)  # the end of what is undone now
        run.cut_back(loaded.update)
    return loaded


def train(
    run: RunFolder | None, trainer: Training, *, stop: threading.Event, heart: Heart | None = None
) -> Iterator[UpdateRecord]:
    """Runs the updates that are left and yields the record of each; the run's state tells how it ended.

    stop: looked at before every forward pass of the transformer. Closing the generator stops as well. What fails is
    written to the run's state and raised; a NaN or Inf saves the last good weights as a checkpoint first.
    run: None in all but one of several processes.
    """
    with ExitStack() as living:
        if run is not None and heart is None:
            heart = living.enter_context(Heart(run))
        session = _Session(run, trainer, heart)
        try:
            yield from _until_the_end(session, stop)
        except Exception as error:
            session.fail(error)
            raise


def _until_the_end(session: _Session, stop: threading.Event) -> Iterator[UpdateRecord]:
    trainer = session.trainer
    try:
        with _stoppable(trainer, stop, session):
            session.begin()
            while trainer.update < trainer.config.updates and not session.is_over():
                if trainer.world.agree(stop.is_set()):
                    raise Stopped
                yield session.update()
                session.after_update()
    except (Stopped, GeneratorExit):
        session.stop()
    else:
        session.finish()


@contextmanager
def _stoppable(trainer: Training, stop: threading.Event, session: _Session) -> Iterator[None]:
    """Before every forward pass of the transformer the flag is looked at, and the work shows that it moves.

    Of several processes none may leave the others alone in a pass: they stop between updates only.
    """

    def look(*_: object) -> None:
        session.moves()
        if trainer.world.size == 1 and stop.is_set():
            raise Stopped

    hooks = [transformer.register_forward_pre_hook(look) for transformer in trainer.transformers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Session:
    """The steps of a session, each of which leaves the folder in order. Without a run nothing is written."""

    def __init__(self, run: RunFolder | None, trainer: Training, heart: Heart | None) -> None:
        self.run, self.trainer, self.heart = run, trainer, heart
        self.recent = list(run.progress()[-LOOKS_BACK:]) if run else []
        self.validations = list(run.validation()) if run else []
        self.warned = ""
        self._saved: int | None = None  # the update of the last checkpoint that this session has written

    def begin(self) -> None:
        self._say("training")
        if self.run and self.trainer.validation is not None:  # a run that went back may have lost its best
            self.run.write_best(self.trainer.validation.best(self.validations) if self.validations else None)
        if self.trainer.update > 0:  # one that a kill has cut short; the start's own comes with the first update
            self._validate()

    def update(self) -> UpdateRecord:
        """The record of the next update, after it is in the log.

        The first one's is there before the start is validated, as its gradient moves no weight yet: whoever watches
        does not wait for that.
        """
        start = time.perf_counter()
        record = self.trainer.begin_update()
        if self.trainer.update == 0 and self._owes_validation():
            record = self._log(record)
            self._validate()
            self.trainer.end_update()
        else:
            self.trainer.end_update()
            record = self._log(replace(record, seconds=time.perf_counter() - start))
        self._say("training")
        return record

    def after_update(self) -> None:
        """Checkpoint and validation, where they are due. The checkpoint comes first: a kill then costs less."""
        trainer = self.trainer
        validates = trainer.validation is not None and trainer.validation.due(trainer.update)
        if validates or trainer.update % trainer.config.checkpoint_every == 0:
            self._save()
        self._validate()

    def is_over(self) -> bool:
        """True where validation says that the run only gets worse; of several processes, all hear it."""
        validation = self.trainer.validation
        over = validation is not None and self.trainer.update > 0 and validation.should_stop(self.validations)
        return self._as_main_says(over)

    def finish(self) -> None:
        """Saves the finished weights: the last ones, or, of a run that validation has ended, the best."""
        over, trainer = self.is_over(), self.trainer
        self._save()
        best = self.run.best() if self.run and over else None
        weights, message = trainer.weights(), self.warned
        if best is not None and best.update in self.run.checkpoint_updates():
            weights = read_weights(self.run, best.update)
            message = (
                f"ended by validation after update {trainer.update}; its weights are those of update {best.update}"
            )
        if self.run:
            save_finished(self.run, weights, trainer.weights_name, trainer.weights_metadata)
            self._end("finished", message)

    def stop(self) -> None:
        self._forget_unfinished()
        self._save()
        self._end("stopped", self.warned)

    def fail(self, error: Exception) -> None:
        """Says so. After a NaN or Inf, the weights are still good: they are saved, and what was tried is dumped."""
        message = faults.sentence(error, self.trainer.config)
        if faults.is_out_of_memory(error):
            faults.free_memory(self.trainer)
        if isinstance(error, NonFiniteError):
            message += self._keep_what_is_good(error)
        with suppress(OSError):  # nothing can be written any more; the log has the error
            self._forget_unfinished()
            self._end("failed", message)

    def _keep_what_is_good(self, error: NonFiniteError) -> str:
        """What to add to the error: where the batch was dumped, and what went wrong with saving, if anything did."""
        try:
            dumped = faults.dump(self.run, error, self.trainer.config) if self.run else None
            told = f"; {dumped} says what it was about to do" if dumped else ""
            self._save()
        except Exception as second:  # the first error is the one to tell; this one joins it
            told = f"; {faults.sentence(second, self.trainer.config)}"
        return told

    def moves(self) -> None:
        if self.heart:
            self.heart.move()

    def _log(self, record: UpdateRecord) -> UpdateRecord:
        """The record as it stands in the log now, with what looks wrong in the curve."""
        self.recent = [*self.recent[-LOOKS_BACK:], record]
        if (found := warning(self.recent)) and found != self.warned:
            self.warned = found
            record = replace(record, warning=found)
        if self.run:
            self.run.append_progress(record)
        return record

    def _forget_unfinished(self) -> None:
        """Takes an update out of the log that has not moved the weights."""
        if self.run and self.recent and self.recent[-1].update > self.trainer.update:
            self.run.cut_back(self.trainer.update)

    def _owes_validation(self) -> bool:
        """True where the weights as they are have still to be validated."""
        validation, update = self.trainer.validation, self.trainer.update
        done = any(record.update == update for record in self.validations)
        return self._as_main_says(validation is not None and validation.due(update) and not done)

    def _as_main_says(self, flag: bool) -> bool:
        """The flag of the process that has the run's validations; the others know only those of their own session."""
        return self.trainer.world.gather(flag)[0]

    def _validate(self) -> None:
        if not self._owes_validation():
            return
        trainer, validation = self.trainer, self.trainer.validation
        self._say("validating")
        record = validation.validate(trainer.policy, trainer.update)
        self.validations.append(record)
        if self.run:
            self._keep_samples(validation)
            self.run.append_validation(record)
            self.run.write_best(validation.best(self.validations))
            self._prune()
        self._say("training")

    def _keep_samples(self, validation: Validator) -> None:
        count = validation.num_samples

        def write(folder: Path) -> None:
            for number, image in enumerate(validation.images[:count]):
                pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
                Image.fromarray(pixels).save(folder / f"{number:02d}.png")

        prompts, seeds = list(validation.prompts[:count]), list(validation.seeds[:count])
        self.run.write_samples(self.trainer.update, prompts, seeds, write)

    def _save(self) -> None:
        """A checkpoint of now, where there is anything new to keep. All processes collect it; one writes."""
        if self.trainer.update in (0, self._saved):
            return
        self._say("saving")
        taken = snapshot(self.trainer)
        if self.run:
            save_checkpoint(self.run, taken)
            self._prune()
        self._saved = self.trainer.update
        self._say("training")

    def _prune(self) -> None:
        best = self.run.best()
        prune(self.run, best.update if best else None)

    def _say(self, phase: str) -> None:
        trainer = self.trainer
        if self.heart:
            self.heart.move(phase, trainer.update)
        if self.run:
            self.run.write_state("running", trainer.update, self.warned, phase=phase, updates=trainer.config.updates)

    def _end(self, status: Status, message: str) -> None:
        if self.run:
            self.run.write_state(status, self.trainer.update, message, updates=self.trainer.config.updates)
