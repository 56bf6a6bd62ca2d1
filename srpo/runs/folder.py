"""The run folder: everything a training says about itself, and all that others need to read of it.

config.json                            every setting
environment.json                       versions, code and fingerprints of the files it began with
job.json                               the process that works on it, or did last
state.json                             starting, running, finished, stopped, failed or lost; its phase and update
heartbeat.json                         the last sign of life
progress.jsonl                         one line per finished update
validation.jsonl                       one line per validation
best.json                              the best checkpoint so far
kept.json                              the checkpoints that the user wants to keep
samples/update-000010/00.png           pictures of fixed prompts and seeds, named in samples/samples.json
checkpoints/update-000010/             weights, optimiser and place of an unfinished run
dump/update-000010.json                what an update was about to do that could not be done
log.txt                                what the process printed, where it was started by another program
diffusion_pytorch_model.safetensors    the finished weights, in the layout of tencent/SRPO;
pytorch_lora_weights.safetensors       or of the LoRA, in that of diffusers
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from srpo.runs.atomic import TEMPORARY, remove_folder, remove_temporary, write_folder, write_text
from srpo.runs.environment import environment
from srpo.runs.lines import BLOCK, Lines, append_line, cut_back, read_lines
from srpo.runs.records import (
    BestRecord,
    Heartbeat,
    JobRecord,
    RunState,
    Status,
    UpdateRecord,
    ValidationRecord,
    as_record,
)

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
LORA_NAME = "pytorch_lora_weights.safetensors"
MANIFEST_NAME = "manifest.json"  # of a checkpoint, written last: where it is, the checkpoint was whole once
RESERVE_BYTES = 1 << 16  # set aside, so that even on a full disk a run can say that the disk is full

Record = TypeVar("Record")


@dataclass(frozen=True)
class Samples:
    """Pictures of the same prompts and seeds through the run."""

    prompts: list[str]
    seeds: list[int]
    pictures: dict[int, list[Path]]  # by update


class RunFolder:
    """Reads and writes one run. Every file but the logs is replaced in one step; the logs grow by whole lines."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def prepare(cls, path: str | Path) -> RunFolder:
        """A new run of which nothing is known but that it is starting. ValueError where the folder holds something."""
        cls.require_room(path)
        run = cls(path)
        try:
            run.checkpoints.mkdir(parents=True)
            run.write_state("starting", 0)
        except OSError as error:
            raise ValueError(
                f"no run can be written to {run.path} ({error.strerror}): choose another folder"
            ) from error
        return run

    @staticmethod
    def require_room(path: str | Path) -> None:
        """Nothing where a new run may be made at `path`; else ValueError."""
        path = Path(path)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ValueError(f"{path} is not empty: choose a new folder, or resume the run that is there")
        there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
        if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
            raise ValueError(f"no run can be written to {path}: {there} cannot be written, choose another folder")

    @classmethod
    def create(cls, path: str | Path, config: Mapping[str, Any], inputs: Mapping[str, str] | None = None) -> RunFolder:
        """A new run with its settings and its environment, in a new folder or in one that was prepared.

        inputs: the files, folders and ids that it reads, whose fingerprints belong to the environment.
        ValueError where the folder holds something already.
        """
        run = cls(path)
        if not run.is_prepared():
            run = cls.prepare(path)
        run._write_json("environment.json", environment(inputs or {}))
        run.write_config(config)
        run._reserve()
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """The run in a folder. ValueError where there is none."""
        run = cls(path)
        if not (run._file("config.json").is_file() or run._file("state.json").is_file()):
            raise ValueError(f"{run.path} holds no run: expected a folder with a config.json")
        return run

    # Where things are

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def weights(self) -> Path:
        """Where the finished weights lie, whole or LoRA; the file is there once the run has finished."""
        lora = self._file(LORA_NAME)
        return lora if lora.is_file() else self._file(WEIGHTS_NAME)

    @property
    def log(self) -> Path:
        return self._file("log.txt")

    def checkpoint(self, update: int) -> Path:
        """The folder of the checkpoint after that update, there or not."""
        return self.checkpoints / f"update-{update:06d}"

    def checkpoint_updates(self) -> list[int]:
        """The updates with a checkpoint, ascending. Whether its files are still whole shows when it is loaded."""
        return sorted(_by_update(manifest.parent for manifest in self.checkpoints.glob(f"update-*/{MANIFEST_NAME}")))

    def checkpoint_weights(self, update: int) -> Path:
        """The weights in that update's checkpoint. ValueError where there is none."""
        for name in ("lora.safetensors", "transformer.safetensors"):
            if (file := self.checkpoint(update) / name).is_file():
                return file
        there = ", ".join(map(str, self.checkpoint_updates())) or "none"
        raise ValueError(f"{self.name} has no checkpoint of update {update}; there are: {there}")

    def size_bytes(self) -> int:
        """What the run takes of the disk. Files that go away meanwhile are left out."""
        return sum(_size(file) for file in self.path.rglob("*"))

    def is_new(self) -> bool:
        """True where no job has written its settings yet."""
        return not self._file("config.json").exists()

    def is_prepared(self) -> bool:
        """True where the run was announced and its job has written nothing yet."""
        state = self.state()
        return state is not None and state.status == "starting" and self.is_new()

    # What it was made with

    def config(self) -> dict[str, Any]:
        """The settings. ValueError where they cannot be read."""
        return self._read_object("config.json")

    def write_config(self, config: Mapping[str, Any]) -> None:
        self._write_json("config.json", config)

    def environment(self) -> dict[str, str]:
        """The versions, code and inputs the run began with. ValueError where they cannot be read."""
        return self._read_object("environment.json")

    def write_environment(self, account: Mapping[str, str]) -> None:
        self._write_json("environment.json", account)

    # What it is doing

    def state(self) -> RunState | None:
        """What the run is doing, None before its first word. ValueError where the file cannot be read."""
        return self._read_record("state.json", RunState)

    def write_state(self, status: Status, update: int, message: str = "", *, phase: str = "", updates: int = 0) -> None:
        """Says so. On a full disk, the run's reserve is given up for it."""
        state = asdict(RunState(status, update, message, phase, updates))
        try:
            self._write_json("state.json", state)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self._file("reserve").unlink(missing_ok=True)
            self._write_json("state.json", state)

    def job(self) -> JobRecord | None:
        """The process that works on the run or did last, None before the first. ValueError as `state`."""
        return self._read_record("job.json", JobRecord)

    def write_job(self, job: JobRecord) -> None:
        self._write_json("job.json", asdict(job))

    def heartbeat(self) -> Heartbeat | None:
        """The last sign of life, None before the first. ValueError as `state`."""
        return self._read_record("heartbeat.json", Heartbeat)

    def write_heartbeat(self, beat: Heartbeat) -> None:
        write_text(self._file("heartbeat.json"), json.dumps(asdict(beat)) + "\n", durable=False)

    def log_tail(self, lines: int = 50) -> str:
        """The last lines of log.txt, at most 64 kB of them; empty where there is none."""
        try:
            with self.log.open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - BLOCK))
                text = log.read().decode(errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    # What came of it

    def progress(self, after: Lines[UpdateRecord] | None = None, at_most: int | None = None) -> Lines[UpdateRecord]:
        """The finished updates. A last line that is being written, or that a kill has torn, is left out.

        after: what an earlier call returned, so that only new lines are read. at_most: of a huge log, about so many
        evenly spread ones. ValueError, naming the line, where another line cannot be read.
        """
        return read_lines(self._file("progress.jsonl"), lambda line: as_record(UpdateRecord, line), after, at_most)

    def append_progress(self, record: UpdateRecord) -> None:
        append_line(self._file("progress.jsonl"), asdict(record))

    def validation(self, after: Lines[ValidationRecord] | None = None) -> Lines[ValidationRecord]:
        """The validations so far; `after` and errors as for `progress`."""
        return read_lines(self._file("validation.jsonl"), lambda line: as_record(ValidationRecord, line), after)

    def append_validation(self, record: ValidationRecord) -> None:
        append_line(self._file("validation.jsonl"), asdict(record))

    def best(self) -> BestRecord | None:
        """The best checkpoint so far, None where none was validated. ValueError as `state`."""
        return self._read_record("best.json", BestRecord)

    def write_best(self, best: BestRecord | None) -> None:
        if best is None:
            self._file("best.json").unlink(missing_ok=True)
        else:
            self._write_json("best.json", asdict(best))

    def samples(self) -> Samples:
        """The pictures so far. ValueError as `state`."""
        folder = self._file("samples")
        if not (folder / "samples.json").exists():
            return Samples([], [], {})
        named = self._read_object("samples/samples.json")
        prompts, seeds = named.get("prompts"), named.get("seeds")
        if not (_are(str, prompts) and _are(int, seeds) and len(prompts) == len(seeds)):
            raise ValueError(f"{folder / 'samples.json'} cannot be read: as many prompts as seeds are expected")
        pictures = {
            update: sorted(found.glob("*.png")) for update, found in _by_update(folder.glob("update-*")).items()
        }
        return Samples(prompts, seeds, dict(sorted(pictures.items())))

    def write_samples(self, update: int, prompts: list[str], seeds: list[int], write: Callable[[Path], object]) -> None:
        """Adds the pictures that `write(folder)` puts there as 00.png, 01.png ..., one for each prompt and seed."""
        folder = self._file("samples")
        folder.mkdir(exist_ok=True)
        self._write_json("samples/samples.json", {"prompts": list(prompts), "seeds": list(seeds)})
        remove_folder(folder / f"update-{update:06d}")
        write_folder(folder / f"update-{update:06d}", write)

    # What may go

    def kept(self) -> list[int]:
        """The updates whose checkpoints the user wants to keep, ascending. ValueError as `state`."""
        if not self._file("kept.json").exists():
            return []
        kept = self._read_json("kept.json")
        if not _are(int, kept):
            raise ValueError(f"{self._file('kept.json')} cannot be read: a list of updates is expected")
        return kept

    def keep(self, update: int, yes: bool = True) -> None:
        """Marks a checkpoint as to be kept whatever comes, or no more. ValueError where there is no such one."""
        if yes:
            self.checkpoint_weights(update)
        others = set(self.kept()) - {update}
        self._write_json("kept.json", sorted(others | ({update} if yes else set())))

    def cut_back(self, update: int) -> None:
        """Forgets what came after that update, and torn lines: a resumed run will do those updates again.

        Checkpoints go first and from the newest on, so that a kill meanwhile leaves a run that can be cut back again.
        """
        for later in reversed(self.checkpoint_updates()):
            if later > update:
                remove_folder(self.checkpoint(later))
        for name in ("progress.jsonl", "validation.jsonl"):
            cut_back(self._file(name), lambda line: line["update"] <= update)
        for later in self.samples().pictures:
            if later > update:
                remove_folder(self._file("samples") / f"update-{later:06d}")

    def tidy(self) -> None:
        """Removes what a killed job left unfinished, and sets the reserve aside again. For the run's own job."""
        for folder in (self.path, self.checkpoints, self._file("samples")):
            remove_temporary(folder)
        self._reserve()

    def _reserve(self) -> None:
        """Sets space aside: random bytes, which no file system can store in less."""
        if not (reserve := self._file("reserve")).exists():
            reserve.write_bytes(os.urandom(RESERVE_BYTES))

    def _file(self, name: str) -> Path:
        return self.path / name

    def _read_record(self, name: str, kind: type[Record]) -> Record | None:
        """The record in a file, None where there is no such file. ValueError where it cannot be read."""
        if not self._file(name).exists():
            return None
        said = self._read_json(name)
        try:
            return as_record(kind, said)
        except ValueError as error:
            raise ValueError(f"{self._file(name)} is not what a run says there: {error}") from error

    def _read_object(self, name: str) -> dict[str, Any]:
        """The object in a file. ValueError where it cannot be read, or is none."""
        found = self._read_json(name)
        if not isinstance(found, dict):
            raise ValueError(f"{self._file(name)} cannot be read: an object is expected")
        return found

    def _read_json(self, name: str) -> Any:
        try:
            return json.loads(self._file(name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"{self._file(name)} cannot be read: {error}") from error

    def _write_json(self, name: str, value: Any) -> None:
        write_text(self._file(name), json.dumps(value, indent=2) + "\n")


def list_runs(root: str | Path) -> list[RunFolder]:
    """The runs directly below `root`, the youngest first; none where there is no such folder."""
    began = {}
    for folder in Path(root).glob("*"):
        changed = _changed(folder / "config.json") or _changed(folder / "state.json")
        if changed and folder.suffix != TEMPORARY:  # one that is being deleted
            began[folder] = changed
    youngest_first = sorted(began, key=lambda folder: (began[folder], folder.name), reverse=True)
    return [RunFolder(folder) for folder in youngest_first]


def _by_update(folders: Iterable[Path]) -> dict[int, Path]:
    """Those that are named by an update, as we name them; whatever else somebody has put beside them is left out."""
    named = ((re.fullmatch(r"update-([0-9]{6,15})", folder.name), folder) for folder in folders)
    return {int(found[1]): folder for found, folder in named if found}


def _are(kind: type, values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is kind for value in values)


def _changed(file: Path) -> float | None:
    """When the file was written last, None where there is none."""
    try:
        return file.stat().st_mtime
    except OSError:
        return None


def _size(file: Path) -> int:
    try:
        return file.stat().st_size if file.is_file() else 0
    except OSError:  # removed since it was listed
        return 0
