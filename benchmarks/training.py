"""A run of the preset `studio` as its user meets it: a process of its own, started as the page starts it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from app.services.models import Catalogue
from app.state import Options
from benchmarks.figures import Figure
from benchmarks.scale import Scale
from srpo.runs import RunFolder
from srpo.runs.control import liveness, settle, start_run, stop_run
from srpo.runs.records import LIVE

LIMIT_S = 600.0  # for any one thing that is waited for

FIGURES = (
    Figure("first point after Start", "s", at_most=12),
    Figure("of it, state after Start", "s", at_most=1),
    Figure("of it, libraries", "s"),
    Figure("of it, models and checks", "s"),
    Figure("of it, first update", "s"),
    Figure("30 updates of 8 prompts, without validation", "s", at_most=45),
    Figure("peak memory of the run's process", "GB", at_most=2),
)
FIRST, STATE, LIBRARIES, MODELS, UPDATE, MANY, PEAK = (figure.name for figure in FIGURES)
MANY_UPDATES = 30


def measure(options: Options, scale: Scale) -> Iterator[tuple[str, float]]:
    """(name, value) of the figures. ValueError where weights are missing, RuntimeError where a run does not train."""
    with started(options, scale, "validated", "updates=1") as (watch, started_s):
        # The run's own words for what it is doing end the parts.
        state_s = watch.until(lambda: watch.status != "")
        models_s = watch.until(lambda: watch.phase == "loading the models" or watch.status != "starting")
        training_s = watch.until(lambda: watch.status != "starting")
        point_s = watch.until(lambda: watch.updates >= 1)
        yield FIRST, point_s - started_s
        yield STATE, state_s - started_s
        yield LIBRARIES, models_s - state_s
        yield MODELS, training_s - models_s
        yield UPDATE, point_s - training_s
        watch.until_the_end()
        peak = watch.peak_bytes
    count = MANY_UPDATES if scale.updates >= MANY_UPDATES else scale.updates
    with started(options, scale, "alone", f"updates={count}", "validation.every=0") as (watch, _):
        training_s = watch.until(lambda: watch.status != "starting")
        ended_s = watch.until_the_end()
        yield MANY, MANY_UPDATES / count * (ended_s - training_s)  # fewer are scaled to as many
        yield PEAK, max(peak, watch.peak_bytes) / 1e9


def assignments(options: Options, scale: Scale) -> list[str]:
    """What makes `studio` a run on the weights of the options. ValueError where there is no reward."""
    if options.reward is None:
        raise ValueError("Without a reward nothing can be trained: name one by --reward FOLDER.")
    side = Catalogue(options).native_side
    wanted = {
        "model": str(options.model.resolve()),
        "reward": str(options.reward.resolve()),
        "device": options.device,
        "max_sequence_length": options.max_sequence_length,
        "objective.height": side,
        "objective.width": side,
        "prompts_per_update": scale.prompts_per_update,
        "validation.judge": str(options.judge.resolve()) if options.judge else "none",
    }
    if options.judge is None:
        wanted |= {"validation.maximise": "sharpness", "validation.limits": "{}"}
    if scale.steps < 12:
        wanted |= {"objective.rollout_steps": scale.steps, "validation.num_steps": scale.steps}
        wanted |= {"validation.num_prompts": 2, "validation.num_samples": 1}
    return [f"{name}={value}" for name, value in wanted.items()]


class Watch:
    """A run of another process, looked at again and again."""

    def __init__(self, run: RunFolder) -> None:
        self.run, self.peak_bytes = run, 0

    @property
    def status(self) -> str:
        return state.status if (state := self.run.state()) else ""

    @property
    def phase(self) -> str:
        return state.phase if (state := self.run.state()) else ""

    @property
    def updates(self) -> int:
        """How many updates are in the log."""
        return len(self.run.progress())

    def seconds_of_updates(self, after: int = 0) -> list[float]:
        """What each update took, in the run's own words, but for the first so many."""
        return [record.seconds for record in self.run.progress()][after:]

    def until(self, is_there: Callable[[], bool], pause_s: float = 0.05) -> float:
        """The time at which it is there. RuntimeError where the run fails or ends before, or takes too long.

        pause_s: from look to look; every look takes something from the run, which uses all cores.
        """
        begun_s = time.monotonic()
        while True:
            ended = self.status not in LIVE or liveness(self.run) == "lost"
            if is_there():
                return time.monotonic()
            if ended:
                raise RuntimeError(f"the run ended as {settle(self.run).status!r}: {self.run.state().message}")
            if time.monotonic() - begun_s > LIMIT_S:
                raise RuntimeError(f"the run did not get there within {LIMIT_S:g} s")
            self._note_memory()
            time.sleep(pause_s)

    def until_the_end(self) -> float:
        """The time at which the run has finished; RuntimeError as above."""
        return self.until(lambda: self.status == "finished", pause_s=0.5)

    def _note_memory(self) -> None:
        """Its process's largest memory so far, as long as the process is there."""
        job = self.run.job()
        try:
            lines = Path(f"/proc/{job.pid}/status").read_text().splitlines() if job else []
        except OSError:  # it has ended, or this system has no /proc
            return
        peaks = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]  # none once it has ended
        self.peak_bytes = max([self.peak_bytes, *peaks])


@contextmanager
def started(options: Options, scale: Scale, name: str, *changes: str, root: Path | None = None) -> Iterator[tuple]:
    """(the run's watch, when it was asked for), as a process that ends with the block; below `root`, or nowhere."""
    with tempfile.TemporaryDirectory() as folder:
        settings = [*assignments(options, scale), *changes]
        started_s = time.monotonic()
        run = start_run(root or Path(folder), name, "studio", settings, device=options.device)
        try:
            yield Watch(run), started_s
        finally:
            stop_run(run)
