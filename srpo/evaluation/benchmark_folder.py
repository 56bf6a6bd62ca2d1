"""The folder of a benchmark: what was asked, how far it is, who works on it. No model is needed to read it.

asked.json                           models, rewards and settings of the last call: `--resume` repeats it
plan.json                            prompts, seeds and settings; another call must ask for the same
pictures/MODEL/STYLE/00000.png       written once
pictures/MODEL/made_with.json        by which weights
scores/REWARD/MODEL.jsonl            of every picture, by its hash
benchmark.json, .md, .csv            the result
state.json, job.json, log.txt        how far it is, the process at work, what it said where a page began it

Whoever works on a benchmark holds the lock of its folder; the system lets it go however the work ends.
"""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from srpo.evaluation.benchmark import Task
from srpo.runs.atomic import TEMPORARY, write_text
from srpo.runs.claim import Handover
from srpo.runs.control import spawn
from srpo.runs.locks import Busy, DeviceLock, FileLock
from srpo.runs.processes import is_alive, job_of, send, this_job
from srpo.runs.records import JobRecord, as_record

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")  # of pictures made elsewhere; ours are PNG
ASKED, PLAN, STATE, JOB, LOG = "asked.json", "plan.json", "state.json", "job.json", "log.txt"
RESULT, TABLE, SHEET = "benchmark.json", "benchmark.md", "benchmark.csv"
PARTS = ("rewards", "models", "styles", "means", "differences")  # of a result
LIVE = ("starting", "running")
NAMED_WITHIN_S = 5.0  # a process that has just begun


@dataclass(frozen=True)
class State:
    """How far a benchmark is."""

    status: str  # "starting", "running", "finished", "stopped" or "failed"
    message: str = ""  # what it is at, or why it failed
    done: int = 0  # pictures that are painted, or scored, of all models
    total: int = 0
    left_s: float | None = None  # to the end of that

    @property
    def is_live(self) -> bool:
        return self.status in LIVE


class BenchmarkFolder:
    """One benchmark."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def name(self) -> str:
        return self.path.name

    # What was asked

    def asked(self) -> dict[str, Any]:
        """The options of the last call, by name; models ("entry") and "size" are among them.

        ValueError where the folder holds no benchmark that has begun.
        """
        if not (self.path / ASKED).is_file() or not (self.path / PLAN).is_file():
            raise ValueError(f"{self.path} holds no benchmark that has begun: start one there")
        found = read_object(self.path / ASKED)
        if not isinstance(found.get("entry"), list) or not re.fullmatch(r"\d+,\d+", str(found.get("size"))):
            raise ValueError(f"{self.path / ASKED} cannot be read: models and a size are expected")
        return found

    def tasks(self) -> list[Task]:
        """What every model paints. ValueError where the plan cannot be read."""
        try:
            return [as_record(Task, picture) for picture in read_object(self.path / PLAN)["pictures"]]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.path / PLAN} cannot be read: {error}") from error

    # Pictures

    def pictures(self, model: str) -> Path:
        return self.path / "pictures" / model

    def find(self, model: str, task: Task) -> Path | None:
        """The file of a picture; None where there is none."""
        stem = self.pictures(model) / task.style / f"{task.index:05d}"
        places = (stem.with_suffix(suffix) for suffix in SUFFIXES)
        return next((place for place in places if place.exists()), None)

    def missing(self, model: str, tasks: Sequence[Task]) -> list[Task]:
        """Of which tasks the model has no picture. One look into each folder: a list may have thousands."""
        there: dict[str, set[str]] = {}
        for style in dict.fromkeys(task.style for task in tasks):
            files = (self.pictures(model) / style).glob("*")
            there[style] = {file.stem for file in files if file.suffix in SUFFIXES}
        return [task for task in tasks if f"{task.index:05d}" not in there[task.style]]

    def result(self) -> dict[str, Any] | None:
        """The last table; None before the first. ValueError where it cannot be read."""
        if not (self.path / RESULT).is_file():
            return None
        found = read_object(self.path / RESULT)
        if lacking := [name for name in PARTS if name not in found]:
            raise ValueError(f"{self.path / RESULT} cannot be read: it lacks {lacking[0]}")
        return found

    # Who works on it, and how far that is

    def lock(self) -> FileLock:
        return FileLock(self.path)

    def begin(self, device: str) -> None:
        """Notes that this process works on it."""
        self._note(this_job(device))

    def say(self, state: State) -> None:
        write_text(self.path / STATE, json.dumps(asdict(state)) + "\n", durable=not state.is_live)

    def state(self) -> State:
        """How far it is. Where nobody works on it any more although it says so, it was stopped, or failed at once."""
        try:
            said = as_record(State, read_object(self.path / STATE))
        except (OSError, ValueError):
            said = State("starting")
        if self.lock().is_held():
            return said if said.is_live else State("starting")
        if not said.is_live:
            return said
        words = self._last_words()
        if said.status == "starting" and words.startswith("error: "):
            return State("failed", words.removeprefix("error: "))
        return State("stopped", "", said.done, said.total)

    def stop(self) -> bool:
        """True where the process at work was told to end, which costs it no finished picture; False where none is."""
        give_up = time.monotonic() + NAMED_WITHIN_S
        while (job := self._job()) is None or not is_alive(job):  # one that has just begun is not named yet
            if not self.lock().is_held() or time.monotonic() > give_up:
                return False
            time.sleep(0.02)
        return self.lock().is_held() and send(job, signal.SIGTERM)

    def start(self, arguments: Sequence[str], device: str, prepare: Callable[[], None] = lambda: None) -> None:
        """Begins `python -m srpo.benchmark` on the folder, as a process that outlives us.

        prepare: is called once the folder is ours, to write what the process will read. The process inherits the locks
        of the device and of the folder, so nobody comes in between. Busy, one sentence, where another has either of
        them; ValueError where no process can be started.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        device_lock, lock = DeviceLock(device), self.lock()
        device_lock.require(self.holder())
        try:
            if not lock.acquire():
                raise Busy(f"another benchmark is at work in {self.path}: wait for its end, or stop it")
            try:
                prepare()
                self._launch(arguments, device_lock, lock)
            finally:
                lock.release()
        finally:
            device_lock.release()

    def holder(self) -> str:
        """How others name it, while it has a device."""
        return f"benchmark {self.name}"

    def _launch(self, arguments: Sequence[str], device: DeviceLock, lock: FileLock) -> None:
        self.say(State("starting"))
        handover = Handover([device.fileno(), lock.fileno()])
        command = ["-m", "srpo.benchmark", str(self.path.resolve()), *arguments]
        try:
            with (self.path / LOG).open("wb") as log:
                process = spawn(command, log, handover)
        except OSError as error:
            raise ValueError(f"no process could be started: {error}") from error
        with suppress(ProcessLookupError):  # it has ended already, and has said why
            self._note(job_of(process.pid, device.device))
        threading.Thread(target=process.wait, daemon=True).start()  # takes its remains away when it ends

    def _note(self, job: JobRecord) -> None:
        write_text(self.path / JOB, json.dumps(asdict(job)) + "\n")

    def _job(self) -> JobRecord | None:
        try:
            return as_record(JobRecord, read_object(self.path / JOB))
        except (OSError, ValueError):
            return None

    def _last_words(self) -> str:
        try:
            lines = (self.path / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return ""
        return next((line for line in reversed(lines) if line.strip()), "")


def list_benchmarks(root: Path) -> list[BenchmarkFolder]:
    """The benchmarks directly below `root`, the one begun last first; none where there is no such folder."""
    began = {}
    for folder in root.glob("*"):
        with suppress(OSError):  # one that is being deleted
            files = [file for file in (folder / STATE, folder / ASKED) if file.exists()]
            if files and folder.suffix != TEMPORARY:
                began[folder] = max(file.stat().st_mtime for file in files)
    return [BenchmarkFolder(folder) for folder in sorted(began, key=lambda folder: (-began[folder], folder.name))]


def read_object(file: Path) -> dict[str, Any]:
    """The object of a JSON file. ValueError, naming it, for anything else."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} cannot be read: an object is expected")
    return found
