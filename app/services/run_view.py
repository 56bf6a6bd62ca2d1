"""What the page shows of a run: read from its folder as it grows, the same for a living run and one long ended."""

from __future__ import annotations

import statistics
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from app.curves import Chart, training_charts
from app.services.pictures import PictureStore
from app.services.requests import sentence
from srpo.runs import RunFolder, liveness, settle
from srpo.runs.records import LIVE, BestRecord, RunState, UpdateRecord, ValidationRecord

MAX_READ = 10_000  # records of a log; of a longer one an even choice is read
MAX_READERS = 8
RECENT = 20  # updates whose speed counts
LONGEST_S = 1e7  # of an update or a validation: what a record says beyond it tells no speed


@dataclass(frozen=True)
class Film:
    """Pictures of fixed prompts and seeds at several updates of a run."""

    run: str
    prompts: tuple[tuple[str, int], ...] = ()  # text and seed
    updates: tuple[int, ...] = ()
    pictures: tuple[tuple[Path, ...], ...] = ()  # one row per update, one picture per prompt
    best: int | None = None
    ratio: float = 1.0  # width / height


@dataclass(frozen=True)
class SampleRow:
    """One prompt and seed; one picture per run."""

    prompt: str
    seed: int
    pictures: tuple[Path, ...]


@dataclass(frozen=True)
class Samples:
    """The same prompts and seeds in several runs."""

    heads: tuple[str, ...]  # one per run
    rows: tuple[SampleRow, ...]
    ratio: float


@dataclass(frozen=True)
class RunView:
    """Where a run stands."""

    name: str
    status: str  # as in state.json, or "stalled"
    phase: str = ""
    message: str = ""
    update: int = 0
    updates: int = 0  # planned
    per_minute: float | None = None
    left_s: float | None = None  # to the planned end, validations included
    device: str = ""
    best: int | None = None
    checkpoints: tuple[int, ...] = ()
    has_settings: bool = False  # its process has written them
    has_weights: bool = False  # the finished ones
    warning: str = ""  # the last record's

    @property
    def is_live(self) -> bool:
        return self.status in (*LIVE, "stalled")

    @property
    def can_resume(self) -> bool:
        return not self.is_live and self.status != "finished"


class RunReader:
    """One run, read again at each call; only what was added is parsed."""

    def __init__(self, run: RunFolder, pictures: PictureStore) -> None:
        self.run = run
        self._pictures = pictures
        self._records: Sequence[UpdateRecord] | None = None
        self._validations: Sequence[ValidationRecord] | None = None
        self._served: Path | None = None
        self._lock = threading.Lock()

    def read(self) -> Snapshot:
        """The run as it is now. ValueError, one sentence, where its folder cannot be read."""
        with self._lock:
            state = settle(self.run)
            if self._records is not None and len(self._records) > 4 * MAX_READ:
                self._records = None
            self._records = self.run.progress(after=self._records, at_most=MAX_READ)
            self._validations = self.run.validation(after=self._validations)
            return Snapshot(self, state, tuple(self._records), tuple(self._validations), self.run.best())

    def film(self, best: int | None) -> Film:
        """The samples so far, as files that the page may show."""
        samples = self.run.samples()
        if not samples.pictures:
            return Film(self.run.name)
        if self._served is None or not self._served.is_dir():
            self._served = self._pictures.new_folder()
        updates, rows = [], []
        for update, pictures in sorted(samples.pictures.items()):
            if len(pictures) == len(samples.prompts):  # else they are being written
                try:
                    row = tuple(self._pictures.publish(self._served, picture) for picture in pictures)
                except OSError:  # removed since they were listed, as a run goes back, or no pictures
                    continue
                rows.append(row)
                updates.append(update)
        if not rows:
            return Film(self.run.name)
        with Image.open(rows[0][0]) as first:
            ratio = first.width / first.height
        prompts = tuple(zip(samples.prompts, samples.seeds, strict=True))
        return Film(self.run.name, prompts, tuple(updates), tuple(rows), best if best in updates else None, ratio)


@dataclass(frozen=True)
class Snapshot:
    """A run at one moment."""

    reader: RunReader
    state: RunState | None
    records: tuple[UpdateRecord, ...]
    validations: tuple[ValidationRecord, ...]
    best: BestRecord | None
    samples: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "samples", tuple(sorted(self.reader.run.samples().pictures)))

    def view(self) -> RunView:
        run, state = self.reader.run, self.state
        if state is None:
            return RunView(run.name, "starting", message="This run has not begun.")
        stalled = state.status in LIVE and liveness(run) == "stalled"
        job = run.job()
        per_minute, left_s = self._speed(state)
        return RunView(
            run.name,
            "stalled" if stalled else state.status,
            state.phase,
            sentence(state.message) if state.message else "",
            max(state.update, self.records[-1].update if self.records and state.status in LIVE else 0),
            state.updates,
            per_minute,
            left_s if state.status in LIVE else None,
            job.device if job else "",
            self.best.update if self.best else None,
            tuple(run.checkpoint_updates()),
            (run.path / "config.json").is_file(),
            run.weights.is_file(),
            self.records[-1].warning if self.records else "",
        )

    def charts(self) -> tuple[Chart, ...]:
        return training_charts(self.records, self.validations, self.best)

    def film(self) -> Film:
        return self.reader.film(self.best.update if self.best else None)

    def versions(self) -> dict[str, object]:
        """What each part of the page depends on: a part whose value is the same need not be drawn again."""
        last = self.records[-1] if self.records else None
        name, best = self.reader.run.name, self.best
        return {
            "charts": (name, len(self.records), last and last.update, len(self.validations), best),
            "film": (name, self.samples, best and best.update),
        }

    def _speed(self, state: RunState) -> tuple[float | None, float | None]:
        """(updates per minute over the last ones, seconds to the planned end)."""
        recent = _seconds(self.records[-RECENT:])
        if not recent or not (update_s := statistics.fmean(recent)) > 0:
            return None, None
        left = max(0, state.updates - state.update)
        return 60 / update_s, left * update_s + self._validations_left_s(state, left)

    def _validations_left_s(self, state: RunState, left: int) -> float:
        """How long the validations still to come will take, as far as those that were tell."""
        seconds = _seconds(self.validations)
        if len(seconds) < 2:
            return sum(seconds) if left else 0.0
        every = self.validations[-1].update - self.validations[-2].update
        mean_s = statistics.fmean(seconds)
        return mean_s * -(-left // every) if every > 0 else 0.0


def _seconds(records: Sequence[UpdateRecord | ValidationRecord]) -> list[float]:
    return [record.seconds for record in records if 0 <= record.seconds <= LONGEST_S]


class RunBook:
    """The readers of a runs folder, shared by all visitors; the longest unused ones are forgotten."""

    def __init__(self, root: Path, pictures: PictureStore) -> None:
        self.root = root
        self._pictures = pictures
        self._readers: OrderedDict[str, RunReader] = OrderedDict()
        self._lock = threading.Lock()

    def reader(self, name: str) -> RunReader:
        """The reader of the run of that name. ValueError where there is none, or for a name that is a path."""
        if not name or Path(name).name != name or name in (".", ".."):
            raise ValueError(f"{name[:80]!r} is no name of a run: choose one from the list.")
        with self._lock:
            known = self._readers.get(name)
            if known is None:
                known = self._readers[name] = RunReader(RunFolder.open(self.root / name), self._pictures)
            elif not known.run.path.is_dir():
                del self._readers[name]
                raise ValueError(f"The run {name!r} is gone: choose another.")
            self._readers.move_to_end(name)
            while len(self._readers) > MAX_READERS:
                self._readers.popitem(last=False)
            return known

    def forget(self, name: str) -> None:
        with self._lock:
            self._readers.pop(name, None)
