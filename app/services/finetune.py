"""Fine-tuning as the page drives it: what can be started, what it will cost, and everything one may do with a run.

A run is a process of its own with a folder that tells its whole story; nothing here keeps a run in memory, so an app
that was killed finds its runs again. The limits of what may be asked are in `training_requests.py`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from app.curves import Chart, comparison_charts
from app.services.device import Device, StopFlag
from app.services.models import RUN, is_full_size
from app.services.pictures import PictureStore
from app.services.processes import begin_when_free, probe
from app.services.public import allowed_place
from app.services.requests import BadInput, sentence
from app.services.run_view import Film, RunBook, SampleRow, Samples, Snapshot
from app.services.training_here import TrainingHere
from app.services.training_requests import MAX_COMPARED, TrainRequest, lines_of
from app.state import Options, Refusal, Resumption
from srpo.miniature import paths
from srpo.policies import hub
from srpo.rewards.catalogue import resolved
from srpo.runs import RunFolder, delete_run, list_runs, request_stop, resume_run, settle, start_run, stop_run
from srpo.runs.records import LIVE

HELD_OUT = "test"  # the set of prompts for measuring: it is not offered for training
PROMPT_FOLDER = "prompts"  # below the runs: own prompts, by their hash
TRACKING_NAME = "tracking.txt"  # in a run: what it is handed on to, and what the followers said
MAX_LISTED = 500  # runs in the picker
MAX_ZIPPED_BYTES = 2**29  # a larger export is fetched from its folder
MEASURED = (
    "load_seconds", "first_update_seconds", "seconds_per_update", "peak_bytes", "validation_seconds", "checkpoint_bytes"
)  # fmt: skip


@dataclass(frozen=True)
class Preset:
    """A named configuration: its text for the page, and every setting by its dotted name."""

    name: str
    summary: str
    details: str  # source, cost, what to expect
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Cost:
    """What a run will take here, as a probe measured it."""

    load_seconds: float
    first_update_seconds: float  # the texts are encoded in it
    seconds_per_update: float
    peak_bytes: int
    validation_seconds: float
    checkpoint_bytes: int
    updates: int
    validations: int
    checkpoints: int  # on the disk at once

    @property
    def total_s(self) -> float:
        updates_s = self.first_update_seconds + (self.updates - 1) * self.seconds_per_update
        return self.load_seconds + updates_s + self.validations * self.validation_seconds

    def said(self) -> str:
        """The cost in words."""
        validated = (
            f" and {self.validations} validations of {said_s(self.validation_seconds)}" if self.validations else ""
        )
        return (
            f"Measured here: {said_s(self.seconds_per_update)} per update, so about {said_s(self.total_s)} for "
            f"{self.updates} updates{validated}, loading included; "
            f"{said_bytes(self.peak_bytes)} of memory at the peak, "
            f"{said_bytes(self.checkpoint_bytes * self.checkpoints)} on the disk for checkpoints."
        )


@dataclass(frozen=True)
class Comparison:
    """Several runs beside one another."""

    names: tuple[str, ...]
    charts: tuple[Chart, ...]
    differing: tuple[tuple[str, tuple[str, ...]], ...]  # a setting, and its value in each run
    samples: Samples | None  # each run's at its best or last update
    note: str = ""  # why there are none


class FineTune:
    """The runs of one app."""

    def __init__(self, options: Options, device: Device, pictures: PictureStore) -> None:
        self.options, self.device, self.pictures = options, device, pictures
        self.root = options.runs
        self.here = TrainingHere() if options.trains_here else None
        self.book = RunBook(self.root, pictures)

    # What can be started

    @cached_property
    def presets(self) -> dict[str, Preset]:
        """The presets that fit the base model, by name, the first one first. Imports the training: seconds."""
        from srpo.training.presets import PRESETS

        full_size = is_full_size(self.options.model)
        found = {}
        for name, make in PRESETS.items():
            if full_size != (make().model == str(paths.FLUX)):
                summary, _, details = (make.__doc__ or "").strip().partition("\n")
                settings = self._settings(name, lines_of(self._fixed(name)))
                found[name] = Preset(name, summary, " ".join(details.split()), settings)
        return found

    def prompt_sets(self) -> list[tuple[str, Path]]:
        """(label, file) of the prompts that come with the app and fit its model; a label ends in their number."""
        root = paths.REPOSITORY / "assets" / "prompts" if is_full_size(self.options.model) else paths.ROOT / "prompts"
        files = sorted(file for file in root.glob("*.txt") if file.stem != HELD_OUT)
        return [(_set_label(file), file) for file in files]

    def prompt_sets_to_measure(self) -> list[tuple[str, Path]]:
        """(label, file) of the same sets, and before them the one that no run here trains on, where there is one."""
        sets = self.prompt_sets()
        held_out = [file.with_name(f"{HELD_OUT}.txt") for _, file in sets[:1]]
        return [(_set_label(file), file) for file in held_out if file.is_file()] + sets

    def prompts_of(self, path: str) -> tuple[Path | None, str]:
        """(the built-in set to take for it, or None; else the text of prompts that were once written here).

        A preset may name prompts that everybody has to fetch: where they are missing, a set that is here stands in.
        """
        sets = [file for _, file in self.prompt_sets()]
        file = Path(path)
        if not file.is_file():
            return next(iter(sets), None), ""
        if file.parent == self.prompt_folder:
            return None, file.read_text(encoding="utf-8")
        return (file if file in sets else None), ""

    @property
    def prompt_folder(self) -> Path:
        return (self.root / PROMPT_FOLDER).resolve()

    def check(self, request: TrainRequest) -> list[str]:
        """The run's settings as assignments over its preset. BadInput, one sentence, for whatever does not fit.

        What is checked: the preset, the name and value of every setting, that what the run reads is there, and that it
        can be tracked. What only a loaded model can tell is said by the run itself, as its state.
        """
        from srpo.tracking import require_sinks
        from srpo.training.config import with_settings
        from srpo.training.continuity import inputs
        from srpo.training.offline import OfflinePictures
        from srpo.training.presets import preset

        if request.preset not in self.presets:
            raise BadInput(f"There is no preset {request.preset[:60]!r} here: choose {', '.join(self.presets)}.")
        try:
            if self.here is not None and request.sinks:
                raise ValueError("a run of this page is handed on to nobody: that takes a process of its own")
            require_sinks(request.sinks)
            unchanged = set(lines_of(self.presets[request.preset].settings))
            asked = [line for line in request.assignments(self.prompt_folder) if line not in unchanged]
            given = [*lines_of(self._fixed(request.preset)), *asked]
            config = with_settings(preset(request.preset), [*given, f"device={self.options.device}"])
            _require_inputs(inputs(config), own_prompts=request.prompts is not None)
            for place in inputs(config).values():
                if not hub.is_id(place) or Path(place).exists():
                    allowed_place(self.options, place)
            if config.offline.folder is not None:
                OfflinePictures.open(config.offline.folder, config.objective.all_sizes)  # each image with its caption
        except ValueError as error:
            raise BadInput(sentence(error)) from None
        if request.name and (self.root / request.name).exists():
            raise BadInput(f"There is a run {request.name!r} already: choose another name.")
        return given

    def measure(self, request: TrainRequest, stop: StopFlag) -> Iterator[str | Cost]:
        """Messages, then the cost of such a run, from one real update in a process of its own.

        BadInput where it cannot be run, in the words that a start would use.
        """
        if self.here is not None:
            raise BadInput("A measurement takes a process of its own, and this page starts none.")
        given = self.check(request)
        request.keep_prompts(self.prompt_folder)
        command = ["srpo.training.probe", "--preset", request.preset]
        for assignment in [*given, f"device={self.options.device}"]:
            command += ["--set", assignment]
        measured = yield from probe(self.device, command, "One real update", stop)
        settings = self._settings(request.preset, given)
        every, updates = settings["validation.every"], settings["updates"]
        yield Cost(
            **{field: measured[field] for field in MEASURED},
            updates=updates,
            validations=1 + -(-updates // every) if every else 0,
            checkpoints=4 if every else 3,  # the last two, the one being written, and the best where one is chosen
        )

    def start(self, request: TrainRequest, stop: StopFlag) -> Iterator[str | RunFolder]:
        """Messages while pictures are under way, then the run, started. BadInput where it cannot be, or may not."""
        given = self.check(request)
        request.keep_prompts(self.prompt_folder)
        name, device = request.name, self.options.device

        start = start_run if self.here is None else self.here.start_run

        def begin() -> RunFolder:
            return start(self.root, name, request.preset, given, device=device)

        run = yield from begin_when_free(self.device, begin, stop)
        self._track(run, request.sinks)
        yield run

    # What can be done with a run

    def runs(self) -> list[RunFolder]:
        """The youngest first."""
        return list_runs(self.root)[:MAX_LISTED]

    def snapshot(self, name: str) -> Snapshot:
        """The run as it is. BadInput where there is none, or where its folder cannot be read."""
        try:
            return self.book.reader(name).read()
        except (ValueError, OSError) as error:
            raise BadInput(sentence(error)) from None

    def living(self) -> RunFolder | None:
        """The run under way that began last, so that a new page shows it at once."""
        for run in self.runs():
            try:
                state = settle(run)
            except ValueError:
                continue
            if state is not None and state.status in LIVE:
                return run
        return None

    def stop(self, name: str) -> bool:
        """True where the run was asked to save and end; returns at once. One that does not is ended after ten seconds.

        False where nothing works on it.
        """
        run = self._run(name)
        if self.here is not None and self.here.stop(run):
            return True
        try:
            if request_stop(run) is None:
                return False
        except (ValueError, OSError) as error:
            raise BadInput(sentence(error)) from None
        threading.Thread(target=_see_it_end, args=(run,), name=f"stop {run.name}", daemon=True).start()
        return True

    def resume(
        self, asked: Resumption, stop: StopFlag, *, despite_changes: bool = False
    ) -> Iterator[str | RunFolder | Refusal]:
        """Messages while pictures are under way, then the run, going on.

        Where versions or files are not what they were, a refusal instead, before anything is started.
        """
        run, device = self._run(asked.run), self.options.device
        if not despite_changes and (changes := self._changes(run)):
            yield Refusal(asked, tuple(changes))
            return

        def begin() -> RunFolder:
            resume = resume_run if self.here is None else self.here.resume_run
            return resume(run, asked.updates, asked.from_update, device=device, despite_changes=despite_changes)

        yield from begin_when_free(self.device, begin, stop)
        self._track(run, _tracked(run))
        yield run

    def close(self) -> None:
        """Lets runs that end with this process save first."""
        if self.here is not None:
            self.here.close()

    def planned(self, name: str) -> int:
        """How many updates the run is to have."""
        return self._written_settings(name)["updates"]

    def what_deleting_takes(self, name: str) -> str:
        """The question before a run is deleted."""
        size = said_bytes(self._run(name).size_bytes())
        return f"Delete the run {name} with its weights, checkpoints and samples ({size})? This cannot be undone."

    def delete(self, name: str) -> str:
        """A sentence on what is gone. BadInput for a run under way."""
        run = self._run(name)
        size = run.size_bytes()
        try:
            delete_run(run)
        except (ValueError, OSError) as error:
            raise BadInput(sentence(error)) from None
        self.book.forget(name)
        return f"Deleted the run {name} ({said_bytes(size)})."

    def keep(self, name: str, update: int) -> str:
        """A sentence: the checkpoint is marked, so that no later one replaces it."""
        try:
            self._run(name).keep(update)
        except (ValueError, OSError) as error:
            raise BadInput(sentence(error)) from None
        return f"The checkpoint of update {update} is kept whatever comes."

    def settings_like(self, name: str) -> tuple[str, dict[str, Any]]:
        """(the nearest preset, every setting of the run), for a form that is to start one like it."""
        settings = self._written_settings(name)

        def distance(preset: Preset) -> int:
            return sum(settings.get(key) != value for key, value in preset.settings.items())

        return min(self.presets.values(), key=distance).name, settings

    def compare(self, names: Sequence[str]) -> Comparison:
        """The runs beside one another. BadInput for fewer than two, or too many."""
        names = tuple(dict.fromkeys(names))
        if not 2 <= len(names) <= MAX_COMPARED:
            raise BadInput(f"Choose two to {MAX_COMPARED} runs to compare, not {len(names)}.")
        snapshots = {name: self.snapshot(name) for name in names}
        try:
            settings = [dict(flat(self._run(name).config())) for name in names]
            films = {name: snapshot.film() for name, snapshot in snapshots.items()}
        except (ValueError, OSError) as error:
            raise BadInput(sentence(error)) from None
        keys = dict.fromkeys(key for of_run in settings for key in of_run)
        rows = {key: tuple(_value_said(of_run.get(key, "–")) for of_run in settings) for key in keys}
        samples, note = _same_samples(films)
        return Comparison(
            names,
            comparison_charts({name: (snapshot.records, snapshot.validations) for name, snapshot in snapshots.items()}),
            tuple((key, values) for key, values in rows.items() if len(set(values)) > 1),
            samples,
            note,
        )

    def model_id(self, name: str) -> str:
        """What the Compare tab calls the run's weights: the finished ones, else of its best or last checkpoint."""
        run = self._run(name)
        if run.weights.is_file():
            return f"{RUN}{name}"
        try:
            there, best = run.checkpoint_updates(), run.best()
        except (ValueError, OSError) as error:
            raise BadInput(sentence(error)) from None
        if not there:
            raise BadInput(f"The run {name} has no weights yet: wait for its first checkpoint.")
        return f"{RUN}{name}@{best.update if best and best.update in there else there[-1]}"

    def export_forms(self, name: str) -> list[tuple[str, str]]:
        """(label, form) of what the run exports as."""
        from srpo.export import FORMS, forms_of

        try:
            return [(FORMS[form], form) for form in forms_of(self._run(name))]
        except ValueError as error:
            raise BadInput(sentence(error)) from None

    def export(self, name: str, form: str, update: int | None, dtype: str) -> tuple[Path, Path | None]:
        """(the folder beside the run's own files, a zip of it that the page may serve, or None where it is large)."""
        from srpo.export import export

        try:
            folder = export(self._run(name), form, update=update, dtype=dtype)
            if sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) > MAX_ZIPPED_BYTES:
                return folder, None
            stem = self.pictures.new_folder() / f"{name}-{folder.name}"
            return folder, Path(shutil.make_archive(str(stem), "zip", folder))
        except (ValueError, OSError) as error:
            raise BadInput(sentence(error)) from None

    # Inside

    def _run(self, name: str) -> RunFolder:
        try:
            return self.book.reader(name).run
        except (ValueError, OSError) as error:
            raise BadInput(sentence(error)) from None

    def _written_settings(self, name: str) -> dict[str, Any]:
        """Every setting of the run by its dotted name. BadInput where they cannot be read, or are not whole."""
        try:
            settings = dict(flat(self._run(name).config()))
        except ValueError as error:
            raise BadInput(sentence(error)) from None
        if lacking := next((key for key in ("prompts", "updates") if key not in settings), None):
            raise BadInput(f"The settings of the run {name} lack {lacking!r}: its config.json is not one of ours.")
        for key, kind in (("prompts", str), ("updates", int)):
            if type(settings[key]) is not kind:
                raise BadInput(
                    f"The settings of the run {name} have {str(settings[key])[:40]!r} for {key!r}: edit them back."
                )
        return settings

    def _changes(self, run: RunFolder) -> list[str]:
        """What is not as it was when the run began; nothing of a run that never has, which is refused as such."""
        from srpo.training.config import config_from_dict
        from srpo.training.continuity import changes_since

        try:
            return [] if run.is_new() else changes_since(run, config_from_dict(run.config()))
        except (ValueError, OSError) as error:
            raise BadInput(sentence(error)) from None

    def _fixed(self, preset_name: str) -> dict[str, Any]:
        """What the app's own options decide, whatever the preset says.

        The miniature's judge knows the miniature alone: without another, validation goes by what needs no judge.
        """
        from srpo.training.presets import preset

        options = self.options
        if options.is_miniature:
            return {}
        fixed: dict[str, Any] = {
            "model": str(options.model.resolve()),
            "max_sequence_length": options.max_sequence_length,
        }
        if options.reward is not None:
            fixed["reward"] = resolved(options.reward)
        if options.judge is not None:
            fixed["validation.judge"] = str(options.judge.resolve())
        elif preset(preset_name).validation.judge is not None:
            fixed |= {"validation.judge": None, "validation.maximise": "sharpness", "validation.limits": {}}
        return fixed

    def _settings(self, preset_name: str, assignments: Sequence[str]) -> dict[str, Any]:
        """Every setting, by its dotted name, of a preset with changes."""
        from srpo.training.config import config_dict, with_settings
        from srpo.training.presets import preset

        return dict(flat(config_dict(with_settings(preset(preset_name), list(assignments)))))

    def _track(self, run: RunFolder, sinks: Sequence[str]) -> None:
        """Starts the follower that hands the run's records on; it outlives the app, as the run does."""
        if not sinks:
            return
        command = [sys.executable, "-m", "srpo.tracking", str(run.path.resolve())]
        for sink in sinks:
            command += ["--to", sink]
        with (run.path / TRACKING_NAME).open("ab") as log:
            log.write(f"to {' '.join(sinks)}\n".encode())
            log.flush()
            subprocess.Popen(command, stdout=log, stderr=log, cwd=paths.REPOSITORY, start_new_session=True)


def _require_inputs(places: Mapping[str, str], *, own_prompts: bool) -> None:
    """Nothing where the folders and files that a run reads are there; else ValueError. Ids of a hub are left to it."""
    from srpo.training.config import read_prompts

    for name, place in places.items():
        if name == "prompts":
            if not own_prompts:  # those were read already, and are written next
                read_prompts(place)
        elif name == "offline.folder":
            continue  # its pictures are looked at one by one
        elif not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", place) and not Path(place).exists():
            raise ValueError(f"{name} is {place!r}, but there is nothing: set the path of what it should be")


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every single setting by its dotted name."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def said_s(seconds: float) -> str:
    """A duration in words: "0.4 s", "12 s", "3 min", "1 h 20 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"


def said_bytes(count: float) -> str:
    """A size in words: "850 MB", "1.3 GB"."""
    if count >= 1e9:
        return f"{count / 1e9:.1f} GB"
    return f"{count / 1e6:.0f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def _see_it_end(run: RunFolder) -> None:
    try:
        stop_run(run)
    except (ValueError, OSError):
        return  # it has ended, or is gone: what the page reads next says so


def _tracked(run: RunFolder) -> tuple[str, ...]:
    """What the run was handed on to when it was started."""
    try:
        first = (run.path / TRACKING_NAME).read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    except OSError:
        return ()
    return tuple(first.removeprefix("to ").split())


def _value_said(value: object) -> str:
    """A setting's value as a table shows it."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return Path(text).name if re.fullmatch(r"/\S+", text) else text


def _same_samples(films: Mapping[str, Film]) -> tuple[Samples | None, str]:
    """One row per prompt and seed that all runs have sampled, each run's picture at its best or last update."""
    first = next(iter(films.values()))
    shared = [key for key in first.prompts if all(key in film.prompts for film in films.values())]
    if not shared:
        return None, "These runs share no sample of the same prompt and seed."
    chosen = {name: film.updates.index(film.best) if film.best is not None else -1 for name, film in films.items()}
    rows = tuple(
        SampleRow(*key, tuple(film.pictures[chosen[name]][film.prompts.index(key)] for name, film in films.items()))
        for key in shared
    )
    heads = tuple(f"{name}, update {film.updates[chosen[name]]}" for name, film in films.items())
    return Samples(heads, rows, first.ratio), ""


def _set_label(file: Path) -> str:
    """The name of a built-in set of prompts, and how many it has."""
    held_out = ", held out" if file.stem == HELD_OUT else ""
    return f"{file.stem}{held_out} ({len(file.read_text(encoding='utf-8').splitlines())})"
