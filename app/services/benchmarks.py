"""Benchmarks as the page drives them: what is asked, what it will cost, how far it is, what it found.

A benchmark is a process of its own and a folder that tells its whole story: `python -m srpo.benchmark`, as anyone may
run it. A closed page, or an app that was killed, loses nothing; stopped here it goes on from a terminal, and the other
way round; and the table is the one that the command wrote.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BeforeValidator, field_validator, model_validator

from app.services.device import StopFlag
from app.services.finetune import said_bytes, said_s
from app.services.grid import Grid, GridRow
from app.services.models import BASE, SRPO, Model
from app.services.processes import begin_when_free, probe
from app.services.requests import (
    MAX_NAME_CHARACTERS,
    MAX_PROMPT_CHARACTERS,
    BadInput,
    ModelName,
    Settings,
    sentence,
    whole,
)
from app.services.studio import Studio
from app.services.training_requests import read_prompt_file
from srpo.evaluation.benchmark import Task
from srpo.evaluation.benchmark_folder import ASKED, PLAN, RESULT, SHEET, TABLE, BenchmarkFolder, State, list_benchmarks
from srpo.evaluation.prompt_lists import NAME, SUFFIXES, plan, read_prompt_lists
from srpo.evaluation.records import MAX_SEED
from srpo.policies import hub
from srpo.rewards.catalogue import card_of, place_of, read_name, resolved
from srpo.runs.atomic import remove_folder

FOLDER, PROMPTS = "benchmarks", "prompts"  # below the runs; below a benchmark
REWARD, JUDGE = "reward", "judge"  # what the page has of its own
MAX_MODELS, MAX_LISTS, MAX_REWARDS = 12, 16, 8
MAX_PICTURES = 100_000  # of one benchmark, over all models
MAX_SHOWN = 4  # prompts whose pictures are shown
T = TypeVar("T")


# Requests


def _name(value: object) -> str:
    if value is None or value == "":
        return ""
    if not isinstance(value, str) or not NAME.fullmatch(value.strip()):
        raise ValueError("A name may have at most 64 letters, digits, dots and hyphens: it becomes a folder.")
    return value.strip()


def _optional_count(value: object) -> int | None:
    if value is None or value == "":
        return None
    return whole("Prompts per list", 1, MAX_PICTURES)(value)


def _several(value: object) -> object:
    """A picker's choices; none of them is an empty choice."""
    return value or ()


def _names_by_line(value: object) -> object:
    return [line.strip() for line in value.splitlines() if line.strip()] if isinstance(value, str) else value or ()


def _path(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > MAX_NAME_CHARACTERS or "\0" in value:
        raise ValueError("The folder of prompt lists must be a path.")
    return value.strip()


class BenchmarkRequest(Settings):
    """Models x prompts x seeds, and what judges the pictures."""

    name: Annotated[str, BeforeValidator(_name)] = ""  # "": the time of its start
    models: Annotated[tuple[ModelName, ...], BeforeValidator(_several)] = ()
    sets: Annotated[tuple[str, ...], BeforeValidator(_several)] = ()  # of those that the page offers
    files: Annotated[tuple[Path, ...], BeforeValidator(_several)] = ()  # brought by the visitor
    folder: Annotated[str, BeforeValidator(_path)] = ""  # with a list for each style, such as HPSv2's four
    first: Annotated[int | None, BeforeValidator(_optional_count)] = None  # prompts of each list; None: all
    own: Annotated[tuple[str, ...], BeforeValidator(_several)] = ()  # of REWARD and JUDGE
    rewards: Annotated[tuple[str, ...], BeforeValidator(_names_by_line)] = ()  # by their names

    @field_validator("models")
    @classmethod
    def _are_several(cls, models: tuple[str, ...]) -> tuple[str, ...]:
        models = tuple(dict.fromkeys(models))
        if not 2 <= len(models) <= MAX_MODELS:
            raise ValueError(f"A benchmark compares two to {MAX_MODELS} models, not {len(models)}: choose them.")
        return models

    @model_validator(mode="after")
    def _fits(self) -> BenchmarkRequest:
        if not (self.sets or self.files or self.folder):
            raise ValueError("There are no prompts: choose a list, bring a file, or name a folder of lists.")
        if not (self.own or self.rewards):
            raise ValueError("Nothing would judge the pictures: choose a reward, or name one.")
        if len(self.own) + len(self.rewards) > MAX_REWARDS:
            raise ValueError(f"At most {MAX_REWARDS} rewards judge at once, not {len(self.own) + len(self.rewards)}.")
        return self


@dataclass(frozen=True)
class Order:
    """A request in the words of the command."""

    lists: Mapping[str, Sequence[str]]  # the prompts of each style, whole lists
    tasks: Sequence[Task]
    entries: tuple[str, ...]
    settings: Mapping[str, str]  # options that stay what they were for as long as a benchmark lives
    arguments: tuple[str, ...]  # all other options, but for the prompts

    @property
    def num_pictures(self) -> int:
        return len(self.tasks) * len(self.entries)

    @property
    def words(self) -> list[str]:
        return [*self.arguments, *(word for name, value in self.settings.items() for word in (f"--{name}", value))]


@dataclass(frozen=True)
class Pace:
    """What a picture costs here, as it was measured."""

    load_s: float
    picture_s: float
    score_s: float
    picture_bytes: int

    def said(self, num_pictures: int, num_models: int) -> str:
        """What so many pictures will cost."""
        total_s = self.load_s * num_models + num_pictures * (self.picture_s + self.score_s)
        return (
            f"Measured here: {self.picture_s:.2g} s to paint a picture and {self.score_s:.1g} s to judge it, so "
            f"about {said_s(total_s)} in all, loading included, and {said_bytes(num_pictures * self.picture_bytes)} "
            "on the disk."
        )


# What is shown


@dataclass(frozen=True)
class BenchmarkView:
    """Where a benchmark stands."""

    name: str
    state: State
    models: tuple[str, ...] = ()
    styles: tuple[tuple[str, int], ...] = ()  # with the pictures of each model
    missing: tuple[tuple[str, int], ...] = ()  # models of which pictures are not there, and how many
    given: tuple[str, ...] = ()  # models whose pictures are made elsewhere
    result: Mapping[str, Any] | None = None  # the table of the last time that it was finished
    has_begun: bool = False  # there is something to go on with

    @property
    def num_makeable(self) -> int:
        """Missing pictures that going on would make."""
        return sum(count for model, count in self.missing if model not in self.given)

    @property
    def num_pictures(self) -> int:
        return sum(count for _, count in self.styles) * len(self.models)

    @property
    def is_whole(self) -> bool:
        return self.state.status == "finished" and not self.missing


class Kept(Generic[T]):
    """What was read last, as long as what it was read from has not changed."""

    def __init__(self) -> None:
        self.key: object = None
        self._value: T | None = None
        self._lock = threading.Lock()  # several pages may look at once

    def get(self, key: object, read: Callable[[], T]) -> T:
        """What `read` returns; it is asked where the key is another than at the last call."""
        with self._lock:
            if key != self.key:
                self._value = read()
                self.key = key
            return self._value


class Reader:
    """One benchmark, read again at each call; only what has changed is parsed, or looked for."""

    def __init__(self, folder: BenchmarkFolder) -> None:
        self.folder = folder
        self._plan: Kept[tuple[list[Task], dict[str, Any]]] = Kept()
        self._missing: Kept[tuple[tuple[str, int], ...]] = Kept()
        self._result: Kept[dict[str, Any] | None] = Kept()

    def read(self) -> BenchmarkView:
        """ValueError, one sentence, where the folder cannot be read."""
        folder, state = self.folder, self.folder.state()
        try:
            tasks, asked = self.begun()
        except (ValueError, OSError):
            if state.status == "finished":  # it has been begun, so what tells of that is damaged
                raise
            return BenchmarkView(folder.name, state)
        models = tuple(entry.partition("=")[0] for entry in asked["entry"])
        given = tuple(name for name, entry in zip(models, asked["entry"], strict=True) if entry == name != BASE)
        styles = {style: sum(task.style == style for task in tasks) for style in dict.fromkeys(t.style for t in tasks)}
        missing: tuple[tuple[str, int], ...] = ()
        if not state.is_live:
            folders = [f"{model}/{style}" for model in models for style in styles]
            looked = self._plan.key, _states(folder.path / "pictures", folders)
            missing = self._missing.get(looked, lambda: _missing(folder, models, tasks))
        result = self._result.get(_states(folder.path, (RESULT,)), folder.result)
        return BenchmarkView(folder.name, state, models, tuple(styles.items()), missing, given, result, has_begun=True)

    def begun(self) -> tuple[list[Task], dict[str, Any]]:
        """What every model paints, and what was asked last. ValueError where it has not begun."""
        key = _states(self.folder.path, (ASKED, PLAN))
        return self._plan.get(key, lambda: (self.folder.tasks(), self.folder.asked()))

    def shown(self) -> list[Task]:
        """Tasks whose pictures stand for all: of each style in turn."""
        groups: dict[str, list[Task]] = {}
        for task in self.begun()[0]:
            groups.setdefault(task.style, []).append(task)
        turns = (group[place] for place in range(MAX_SHOWN) for group in groups.values() if place < len(group))
        return list(turns)[:MAX_SHOWN]


def _missing(folder: BenchmarkFolder, models: Sequence[str], tasks: Sequence[Task]) -> tuple[tuple[str, int], ...]:
    counts = ((model, len(folder.missing(model, tasks))) for model in models)
    return tuple((model, count) for model, count in counts if count)


def _states(folder: Path, names: Sequence[str]) -> tuple[int | None, ...]:
    """When each of these was changed last; a folder changes with every file that comes or goes."""

    def changed(path: Path) -> int | None:
        try:
            return path.stat().st_mtime_ns
        except OSError:
            return None

    return tuple(changed(folder / name) for name in names)


class Benchmarks:
    """The benchmarks of one app."""

    def __init__(self, studio: Studio) -> None:
        self.options, self.device, self.pictures = studio.options, studio.device, studio.pictures
        self.catalogue, self.prompt_sets = studio.catalogue, studio.finetune.prompt_sets_to_measure
        self.root = studio.options.runs / FOLDER
        self._readers: dict[Path, Reader] = {}
        self._paces: dict[tuple[str, ...], Pace] = {}

    def own_rewards(self) -> list[tuple[str, str]]:
        """(label, REWARD or JUDGE) of what the page has of its own."""
        options, found = self.options, []
        if options.reward is not None:
            card = card_of(options.reward)
            found.append((card.title.partition(" (")[0] if card else f"CLIP, {Path(options.reward).name}", REWARD))
        if options.judge is not None:
            found.append(("Judged photo", JUDGE))
        return found

    # What can be started

    def order(self, request: BenchmarkRequest) -> Order:
        """The request as the command takes it. BadInput, one sentence, for whatever does not fit.

        What only loaded models can tell, such as a prompt with too many tokens, the command says before it paints.
        """
        options = self.options
        if options.absent:
            raise BadInput(
                f"Not here yet: {' and '.join(options.absent)}. Paint a picture in Compare, which downloads it."
            )
        lists = self._lists(request)
        taken = sum(min(len(prompts), request.first or len(prompts)) for prompts in lists.values())
        if (num_pictures := taken * request.num_seeds * len(request.models)) > MAX_PICTURES:
            raise BadInput(f"That would be {num_pictures:,} pictures; at most {MAX_PICTURES:,} are made: take fewer.")
        tasks = plan(lists, request.seed, request.first, request.num_seeds)
        if tasks[-1].seed > MAX_SEED:
            raise BadInput(f"Every picture has a seed of its own, at most {MAX_SEED:,}: choose a smaller first seed.")
        entries = self._entries([self.catalogue.find(name) for name in request.models])
        settings = {
            **{"model": str(options.model.resolve()), "device": options.device},
            **{"text-tokens": str(options.max_sequence_length), "steps": str(request.steps)},
            **{"guidance": str(request.guidance), "size": f"{request.height},{request.width}"},
        }
        arguments = [
            *("--seed", str(request.seed), "--num-seeds", str(request.num_seeds)),
            *(() if request.first is None else ("--first", str(request.first))),
            *(word for entry in entries for word in ("--entry", entry)),
            *self._rewards(request),
        ]
        return Order(lists, tasks, tuple(entries), settings, tuple(arguments))

    def outline(self, request: BenchmarkRequest) -> str:
        """What a start would make, and what that costs as far as it was measured. BadInput as for `order`."""
        order = self.order(request)
        seeds = f" × {request.num_seeds} seeds" if request.num_seeds > 1 else ""
        num_prompts = len(order.tasks) // request.num_seeds
        made = f"{len(order.entries)} models × {num_prompts:,} prompts{seeds} = {order.num_pictures:,} pictures."
        pace = self._paces.get(self._pace_key(request))
        costs = pace.said(order.num_pictures, len(order.entries)) if pace else "Measure the cost to know time and disk."
        return f"{made} {costs}"

    def measure(self, request: BenchmarkRequest, stop: StopFlag) -> Iterator[str]:
        """Messages, the last of which is what such a benchmark costs, from one picture by a process of its own.

        BadInput where it cannot be run, in the words that a start would use.
        """
        order = self.order(request)
        with tempfile.TemporaryDirectory(prefix="srpo-prompts-") as place:
            prompts = _write_lists(Path(place) / PROMPTS, order.lists)
            command = ["srpo.benchmark", place, *order.words, "--prompts", str(prompts), "--measure"]
            measured = yield from probe(self.device, command, "One picture", stop)
        del measured["pictures"]
        self._paces[self._pace_key(request)] = Pace(**measured)
        yield self.outline(request)

    def start(self, request: BenchmarkRequest, stop: StopFlag) -> Iterator[str | BenchmarkFolder]:
        """Messages while pictures are under way, then the benchmark, started. BadInput where it cannot be, or may not.

        One of that name that asked for the same pictures goes on, with these models and rewards.
        """
        order = self.order(request)
        folder = BenchmarkFolder(self.root / (request.name or f"{datetime.now():%Y%m%d-%H%M%S}"))

        def begin() -> BenchmarkFolder:
            _require_alike(folder, order)
            prompts = (folder.path / PROMPTS).resolve()

            def prepare() -> None:  # once the folder is ours: another start may have come in between
                _require_alike(folder, order, is_ours=True)
                _write_lists(prompts, order.lists)

            folder.start([*order.words, "--prompts", str(prompts)], self.options.device, prepare)
            return folder

        yield (yield from begin_when_free(self.device, begin, stop))

    # What can be done with one

    def names(self) -> list[str]:
        """The one begun last first."""
        return [folder.name for folder in list_benchmarks(self.root)]

    def view(self, name: str) -> BenchmarkView:
        """The benchmark as it is. BadInput where there is none, or where its folder cannot be read."""
        try:
            return self._reader(name).read()
        except (ValueError, OSError) as error:
            raise BadInput(sentence(error)) from None

    def stop(self, name: str) -> bool:
        """True where the process at work was told to end; no finished picture is lost. False where none is at work."""
        return self._reader(name).folder.stop()

    def resume(self, name: str, stop: StopFlag) -> Iterator[str | BenchmarkFolder]:
        """Messages while pictures are under way, then the benchmark, going on with what it was last asked for."""
        folder = self._reader(name).folder
        try:
            device = folder.asked()["device"]
        except (ValueError, OSError, KeyError) as error:
            raise BadInput(sentence(error)) from None

        def begin() -> BenchmarkFolder:
            folder.start(["--resume"], device)
            return folder

        yield (yield from begin_when_free(self.device, begin, stop))

    def strip(self, name: str) -> Grid:
        """Some prompts with the picture of every model, as far as they are there."""
        reader = self._reader(name)
        folder = reader.folder
        served = self.pictures.root / f"benchmark-{folder.name}"  # one for all looks at it
        try:
            (_, asked), tasks = reader.begun(), reader.shown()
        except (ValueError, OSError):
            return Grid("done", "")
        models = tuple(entry.partition("=")[0] for entry in asked["entry"])
        height, width = map(int, asked["size"].split(","))
        rows = tuple(
            GridRow(task.prompt, task.seed, tuple(self._copy(served, folder, model, task) for model in models))
            for task in tasks
        )
        return Grid("done", "", models, rows, width=width, height=height)

    def files(self, name: str) -> list[Path]:
        """Copies of the table, the sheet and the whole result that the page may serve, called by the benchmark."""
        folder = self._reader(name).folder
        served = self.pictures.new_folder()
        try:
            return [
                Path(shutil.copy(folder.path / file, served / f"{folder.name}{Path(file).suffix}"))
                for file in (TABLE, SHEET, RESULT)
            ]
        except OSError as error:
            raise BadInput(sentence(error)) from None

    # Inside

    def _reader(self, name: str) -> Reader:
        """BadInput where there is no benchmark of that name, nor a folder of one at that path."""
        path = self.root / name
        if not NAME.fullmatch(name) or not path.is_dir():
            try:
                path = Path(name).expanduser()
                is_there = (path / PLAN).is_file()
            except (OSError, RuntimeError, ValueError):  # a name too long, a user unknown, a null byte
                is_there = False
            if not is_there:
                raise BadInput(f"There is no benchmark {name[:80]!r}: choose one, or name the folder of one.")
        return self._readers.setdefault(path.resolve(), Reader(BenchmarkFolder(path)))

    def _copy(self, served: Path, folder: BenchmarkFolder, model: str, task: Task) -> Path | None:
        try:
            found = folder.find(model, task)
            return found and self.pictures.publish(served, found)
        except OSError:
            return None

    def _lists(self, request: BenchmarkRequest) -> dict[str, list[str]]:
        offered = {str(file): file for _, file in self.prompt_sets()}
        if unknown := [name for name in request.sets if name not in offered]:
            raise BadInput(f"The list {Path(unknown[0]).name[:60]!r} is not among the ones offered: choose again.")
        for file in request.files:
            if file.suffix not in SUFFIXES:
                raise BadInput(f"{file.name[:60]!r} is no list of prompts: bring .txt files, or .json files of texts.")
            read_prompt_file(file)  # its size, and that it is text
        try:
            named = [Path(request.folder).expanduser()] if request.folder else []
            if named and not named[0].exists():
                raise BadInput(f"There is nothing at {request.folder[:80]!r}: name the folder of prompt lists.")
            lists = read_prompt_lists(*(offered[name] for name in request.sets), *request.files, *named)
        except BadInput:
            raise
        except (ValueError, OSError, RuntimeError) as error:  # no lists, a name too long, a user unknown
            raise BadInput(sentence(error)) from None
        if len(lists) > MAX_LISTS:
            raise BadInput(f"At most {MAX_LISTS} lists are taken, not {len(lists)}.")
        for style, prompts in lists.items():
            if max(map(len, prompts)) > MAX_PROMPT_CHARACTERS:
                raise BadInput(f"A prompt of {style} has more than {MAX_PROMPT_CHARACTERS:,} characters: shorten it.")
        return lists

    def _entries(self, models: Sequence[Model]) -> list[str]:
        """NAME=WEIGHTS of each model; the base has no weights of its own."""
        entries: list[str] = []
        for model in models:
            if model.weights is None:
                entries.append(BASE)
                continue
            label = SRPO if model.id == SRPO else model.label
            plain = re.sub(r"[^A-Za-z0-9.]+", "-", label).strip("-.").lower()[:56] or "model"
            taken = [entry.partition("=")[0] for entry in entries] + [BASE]
            name = next(name for name in (plain, *(f"{plain}-{n}" for n in range(2, 99))) if name not in taken)
            weight = "" if model.weight == 1 else f"@{model.weight:g}"
            entries.append(f"{name}={model.weights.resolve()}{weight}")
        return entries

    def _rewards(self, request: BenchmarkRequest) -> list[str]:
        words, options = [], self.options
        own = {REWARD: options.reward, JUDGE: options.judge}
        if absent := [name for name in request.own if own.get(name) is None]:
            raise BadInput(f"This page has no {absent[0][:20]}: choose among the ones offered.")
        if REWARD in request.own:
            words += ["--reward", resolved(options.reward)]
        for name in request.rewards:
            try:
                named = read_name(name)
                if not (hub.is_id(place_of(name)) or Path(place_of(name)).exists()):
                    raise BadInput(f"The reward {name[:80]!r} is not here: {named.card.get}.")
                words += ["--reward", resolved(name)]
            except BadInput:
                raise
            except (ValueError, OSError) as error:  # a kind that is none, a name too long
                raise BadInput(sentence(error)) from None
        if JUDGE in request.own:
            words += ["--judge", str(options.judge.resolve())]
        return words

    def _pace_key(self, request: BenchmarkRequest) -> tuple[str, ...]:
        """What decides the cost of one picture."""
        shape = (request.steps, request.guidance, request.width, request.height)
        return (*map(str, shape), *request.own, *request.rewards)


def _require_alike(folder: BenchmarkFolder, order: Order, *, is_ours: bool = False) -> None:
    """Nothing where the folder is new, or holds a benchmark of the same pictures that nobody works on; else BadInput.

    is_ours: nobody else can work on it, as its lock is held by us.

    The command refuses as much, but the folder would then say that it has failed.
    """
    if not folder.path.is_dir():
        return
    if not is_ours and folder.lock().is_held():
        raise BadInput(f"The benchmark {folder.name} is at work already: stop it first, or choose another name.")
    try:
        asked, tasks = folder.asked(), folder.tasks()
    except (ValueError, OSError):
        return  # it never came to a plan
    if tasks != order.tasks or any(str(asked.get(name)) != value for name, value in order.settings.items()):
        raise BadInput(f"{folder.name} was begun with other prompts, seeds or settings: choose another name.")


def _write_lists(folder: Path, lists: Mapping[str, Sequence[str]]) -> Path:
    """The folder, holding these lists and nothing else."""
    remove_folder(folder)
    folder.mkdir(parents=True)
    for style, prompts in lists.items():
        (folder / f"{style}.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")
    return folder
