"""python -m srpo.tracking RUN --to tensorboard: hands a run's records on to what others chart them with.

A follower reads the run's folder as everybody does, while the run grows and until it ends. So it can neither slow a
run nor hurt it, and may as well be started afterwards. It begins with the run's first record every time, over whatever
an earlier follower left: after a resume nothing is there twice.

tensorboard   event files in RUN/tensorboard; look at them by: tensorboard --logdir RUNS
trackio       the local project "srpo-studio"; look at it by: trackio show --project srpo-studio
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from srpo.runs import RunFolder, settle
from srpo.runs.records import LIVE, UpdateRecord, ValidationRecord

PROJECT = "srpo-studio"
POLL_S = 1.0


class Sink(Protocol):
    def write(self, update: int, values: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Scalars as TensorBoard's event files. Its own writer, not torch's: a follower should not weigh 300 MB."""

    def __init__(self, run: RunFolder) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        folder = run.path / "tensorboard"
        shutil.rmtree(folder, ignore_errors=True)
        self._event, self._summary, self._writer = Event, Summary, EventFileWriter(str(folder))

    def write(self, update: int, values: dict[str, float]) -> None:
        scalars = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        summary = self._summary(value=scalars)
        self._writer.add_event(self._event(wall_time=time.time(), step=update, summary=summary))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Trackio:
    """Scalars in a local Trackio project; its own monitoring of the machine is off."""

    def __init__(self, run: RunFolder) -> None:
        import trackio

        with suppress(ValueError):  # the first run makes the project
            for known in trackio.Api().runs(PROJECT):
                if known.name == run.name:
                    known.delete()
        self._run = trackio.init(
            PROJECT, run.name, config=run.config(), embed=False, auto_log_gpu=False, auto_log_cpu=False
        )

    def write(self, update: int, values: dict[str, float]) -> None:
        self._run.log(values, step=update)

    def close(self) -> None:
        self._run.finish()


SINKS: dict[str, Callable[[RunFolder], Sink]] = {"tensorboard": TensorBoard, "trackio": Trackio}


def require_sinks(names: Sequence[str]) -> None:
    """Nothing where all are known and installed; else ValueError with what to do."""
    for name in names:
        if name not in SINKS:
            raise ValueError(f"there is no tracking by {name!r}: choose {' or '.join(SINKS)}")
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"{name} is not installed here: pip install {name}, or start the run without it")


def follow(run: RunFolder, names: Sequence[str], poll_s: float = POLL_S) -> int:
    """The number of updates handed on, once the run has ended and all of it was read."""
    require_sinks(names)
    while (state := settle(run)) is not None and state.status == "starting":
        time.sleep(poll_s)  # its settings are not written yet
    sinks = [SINKS[name](run) for name in names]
    progress, validation, seen, judged = None, None, 0, 0
    try:
        while True:
            state = settle(run)
            live = state is not None and state.status in LIVE
            progress, validation = run.progress(after=progress), run.validation(after=validation)
            for record in progress[seen:]:
                _hand_on(sinks, record.update, values_of(record))
            for record in validation[judged:]:
                _hand_on(sinks, record.update, validation_values(record))
            seen, judged = len(progress), len(validation)
            if not live:
                return seen
            time.sleep(poll_s)
    finally:
        for sink in sinks:
            sink.close()


def values_of(record: UpdateRecord) -> dict[str, float]:
    """The numbers of an update by name."""
    return {
        "loss": record.loss,
        "grad_norm": record.grad_norm,
        "lr": record.lr,
        "seconds": record.seconds,
        **record.scores,
    }


def validation_values(record: ValidationRecord) -> dict[str, float]:
    """The numbers of a validation by name, apart from the update's own."""
    return {f"validation/{name}": value for name, value in record.scores.items()}


def _hand_on(sinks: Sequence[Sink], update: int, values: dict[str, float]) -> None:
    for sink in sinks:
        sink.write(update, values)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 2 with one sentence where nothing can be followed."""
    parser = argparse.ArgumentParser(prog="python -m srpo.tracking", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--to", action="append", required=True, choices=SINKS, help="repeatable")
    options = parser.parse_args(arguments)
    try:
        run = RunFolder.open(options.run)
        print(f"{run.name}: {follow(run, options.to)} updates handed on to {', '.join(options.to)}")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
