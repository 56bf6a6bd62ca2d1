"""python -m srpo.benchmark FOLDER: any set of models paints the same prompts, and rewards judge the pictures.

Killed at any moment and started again, or by `--resume`, it goes on, and writes the very same table. What lies in
FOLDER is told by `evaluation/benchmark_folder.py`; the page's Benchmark tab begins, shows and ends the same.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
from PIL import Image
from torch import Tensor

from srpo.evaluation import benchmark_folder as places
from srpo.evaluation.benchmark import Judge, Task, csv_text, markdown, summary
from srpo.evaluation.benchmark_folder import BenchmarkFolder, State, read_object
from srpo.evaluation.prompt_lists import NAME, plan, read_prompt_lists
from srpo.evaluation.records import comparison_texts
from srpo.miniature import paths
from srpo.painting import Painter, add_options, read_options, require_seeds
from srpo.policies import hub
from srpo.policies.places import split_weight
from srpo.rewards.base import Reward, score_images
from srpo.rewards.catalogue import Named, place_of, read_name, resolved
from srpo.runs.atomic import write_file, write_text
from srpo.runs.claim import Handover
from srpo.runs.environment import fingerprint
from srpo.runs.lines import append_line, cut_back, read_lines
from srpo.runs.locks import DeviceLock

BASE, RECORD = "base", "reward.json"
TOGETHER = 16  # pictures that are scored together; always the same ones, so that a kill changes no digit
NAMED = 5  # pictures that an error names; it counts the rest
TOLD_EVERY_S, SAID_EVERY = 0.5, 50  # seconds from note to note in the folder, pictures from line to line
INTERRUPTED = 130  # the exit status after Ctrl-C, as shells have it

Report = Callable[[str], None]


class Model(NamedTuple):
    """One line of the table."""

    name: str
    weights: str | None  # over the base, a LoRA's as PLACE@WEIGHT; None for the base's own
    is_given: bool = False  # True: its pictures are made elsewhere and lie in the folder


@dataclass(frozen=True)
class Column:
    """One column of the table: something that scores pictures, loaded where one has no score yet."""

    kind: str
    title: str
    name: str  # a reward's, without the folders above its place where that is clear enough
    asked: str  # the whole name
    log: str  # the folder of its scores: one for the very weights, as scores of others are others
    load: Callable[[], Reward]


@dataclass(frozen=True)
class Order:
    """What a call asks for."""

    painter: Painter
    models: list[Model]
    columns: list[Column]
    tasks: list[Task]

    @property
    def painted(self) -> list[Model]:
        return [model for model in self.models if not model.is_given]


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, 2 with one sentence for what cannot be measured, or that of an interruption."""
    options = _parser().parse_args(arguments)
    try:
        text = (
            measured(options)
            if options.measure
            else run(options, lambda line: print(line, file=sys.stderr, flush=True))
        )
    except KeyboardInterrupt:
        print(f"stopped: python -m srpo.benchmark {options.folder} --resume goes on", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text, end="")
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def run(options: argparse.Namespace, report: Report) -> str:
    """The table, in Markdown; it, its JSON and its CSV lie in the folder by then."""
    folder = BenchmarkFolder(options.folder)
    order = _resumed(folder) if options.resume else _order(options)
    if folder.path.exists() and not folder.path.is_dir():
        raise ValueError(f"{folder.path} is a file: name a folder for the benchmark")
    folder.path.mkdir(parents=True, exist_ok=True)
    with _taken(folder, order.painter.base.device):
        _keep_plan(folder.path / places.PLAN, order.tasks, order.painter)
        for model in order.models:
            _require_same_weights(folder, model)
        if not options.resume:
            _keep_asked(folder, options, order)
        with _noted(folder, order):
            return _table(folder, order, report)


def _table(folder: BenchmarkFolder, order: Order, report: Report) -> str:
    painter, tasks = order.painter, order.tasks
    for model in (model for model in order.models if model.is_given):
        _refuse(folder, model.name, folder.missing(model.name, tasks), len(tasks))
    for column in order.columns:
        _require_loadable(folder, column)
    _paint(folder, order, report)
    hashes = {model.name: _require_pictures(folder, model.name, tasks) for model in order.models}
    progress = Progress(folder, len(order.columns) * len(order.models) * len(tasks))
    judges, scores = [], {}
    for column in order.columns:
        judge, scores[column.name] = _score(folder, column, hashes, tasks, progress, report)
        judges.append(judge)
    result = {"settings": _settings(painter)} | summary(tasks, judges, list(hashes), scores)
    text = markdown(result, _made_with(painter, tasks, order.models))
    write_text(folder.path / places.RESULT, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    write_text(folder.path / places.SHEET, csv_text(result))
    write_text(folder.path / places.TABLE, text)
    return text


@contextmanager
def _taken(folder: BenchmarkFolder, device: str) -> Iterator[None]:
    """The folder and the device, ours alone. ValueError, naming who has them, where another works on either."""
    handover = Handover.received()  # from a page that has taken both
    lock, device_lock = folder.lock(), DeviceLock(device)
    if not handover.adopt(lock) and not lock.acquire():
        raise ValueError(f"another benchmark is at work in {folder.path}: wait for its end, or choose another folder")
    try:
        if not handover.adopt(device_lock):
            device_lock.require(folder.holder())
        try:
            yield
        finally:
            device_lock.release()
    finally:
        lock.release()


@contextmanager
def _noted(folder: BenchmarkFolder, order: Order) -> Iterator[None]:
    """Notes in the folder that we work on it, and how that ends; a kill is told by the lock alone."""
    folder.begin(order.painter.base.device)
    folder.say(State("running", "loading the models"))
    try:
        yield
    except KeyboardInterrupt:
        folder.say(State("stopped"))
        raise
    except Exception as error:
        known = isinstance(error, ValueError | OSError)
        folder.say(State("failed", str(error) if known else f"{type(error).__name__}: {error}"))
        raise
    total = len(order.models) * len(order.tasks)
    folder.say(State("finished", "", total, total))


class Progress:
    """How far a part of the work is, noted in the folder for whoever looks."""

    def __init__(self, folder: BenchmarkFolder, total: int, done: int = 0) -> None:
        self._folder, self._total, self._done, self._before = folder, total, done, done
        self._began_s, self._told_s = time.monotonic(), 0.0

    def forward(self, message: str, count: int = 1, *, is_news: bool = True) -> None:
        """So many more are done. is_news=False: they were done before, which says nothing of the speed."""
        self._done += count
        self._before += 0 if is_news else count
        now_s = time.monotonic()
        if now_s - self._told_s < TOLD_EVERY_S and self._done < self._total:
            return
        self._told_s, made = now_s, self._done - self._before
        left_s = (now_s - self._began_s) * (self._total - self._done) / made if made else None
        self._folder.say(State("running", message, self._done, self._total, left_s))


def measured(options: argparse.Namespace) -> str:
    """What a picture costs here, as JSON: seconds and bytes, measured on one that is painted and scored for it.

    It is done twice, and the second time counts: the first one warms up.
    """
    order = _resumed(BenchmarkFolder(options.folder)) if options.resume else _order(options)
    if not order.painted:
        raise ValueError("there is nothing to paint: all pictures are made elsewhere")
    painter, task = order.painter, order.tasks[0]
    policy = painter.policy_with(order.painted[-1].weights)
    painter.require_paintable([task.prompt for task in order.tasks])
    load_s, score_s = time.time() - psutil.Process().create_time(), 0.0  # libraries and models
    for _ in range(2):
        began_s = time.perf_counter()
        picture = painter.paint(policy, task.prompt, task.seed)
        picture_s = time.perf_counter() - began_s
    for column in order.columns:
        began_s = time.perf_counter()
        reward = column.load()
        load_s += time.perf_counter() - began_s
        for _ in range(2):
            began_s = time.perf_counter()
            score_images(reward, [picture] * TOGETHER, [task.prompt] * TOGETHER, TOGETHER)
            once_s = (time.perf_counter() - began_s) / TOGETHER
        score_s += once_s
    file = io.BytesIO()
    picture.save(file, "PNG")
    cost = {"load_s": load_s, "picture_s": picture_s, "score_s": score_s, "picture_bytes": file.tell()}
    return json.dumps(cost | {"pictures": len(order.painted) * len(order.tasks)}) + "\n"


# What is asked


def _order(options: argparse.Namespace) -> Order:
    """What the options ask for; nothing is loaded. ValueError, one sentence, where they cannot be meant."""
    painter = read_options(options)
    models = _models(options.entry, painter)
    columns = _columns(options, painter.base.device)
    lists = read_prompt_lists(options.prompts or _own_prompts(painter))
    tasks = plan(lists, options.seed, options.first, options.num_seeds)
    require_seeds(tasks[0].seed, tasks[-1].seed)
    return Order(painter, models, columns, tasks)


def _resumed(folder: BenchmarkFolder) -> Order:
    """What the last call asked for, with the prompts and seeds of the plan."""
    asked = folder.asked()
    words = []
    for name, value in asked.items():
        words += [f"--{name}={part}" for part in (value if isinstance(value, list) else [value])]
    options = _parser().parse_args([str(folder.path), *words])
    painter = read_options(options)
    return Order(painter, _models(options.entry, painter), _columns(options, painter.base.device), folder.tasks())


def _keep_asked(folder: BenchmarkFolder, options: argparse.Namespace, order: Order) -> None:
    """Notes the call, with whole paths, so that `--resume` repeats it from wherever it is given."""
    settings, base = order.painter.settings, order.painter.base
    entries = [
        model.name if model.weights is None else f"{model.name}={_whole(model.weights)}" for model in order.models
    ]
    asked = {
        "model": str(base.model.resolve()) if base.model.exists() else str(base.model),
        "device": base.device,
        "text-tokens": base.max_sequence_length,
        "steps": settings.steps,
        "guidance": settings.guidance,
        "size": f"{settings.height},{settings.width}",
        "entry": entries,
        "reward": [resolved(name) for name in _reward_names(options)],
        "judge": [str(options.judge.resolve())] if options.judge else [],
    }
    write_text(folder.path / places.ASKED, json.dumps(asked, indent=1, ensure_ascii=False) + "\n")


def _whole(weights: str) -> str:
    """The place with its absolute path, its weight behind it."""
    place, _ = split_weight(weights)
    return f"{place.resolve()}{weights[len(str(place)) :]}" if place.exists() else weights


def _own_prompts(painter: Painter) -> Path:
    """The prompts that come with the repository for such a model."""
    if painter.base.is_miniature:
        return paths.ROOT / "prompts" / "test.txt"
    return paths.REPOSITORY / "assets" / "prompts" / "everyday.txt"


def _settings(painter: Painter) -> dict[str, Any]:
    facts = painter.facts({})
    return {**asdict(painter.settings), "base": facts["base"]["name"]} | {
        name: facts[name] for name in ("text_tokens", "dtype", "device", "versions")
    }


def _keep_plan(file: Path, tasks: Sequence[Task], painter: Painter) -> None:
    """Writes the plan. ValueError, naming what differs, where another one is there."""
    asked = {
        **_settings(painter),
        "base_weights": fingerprint(painter.base.place),
        "pictures": [task._asdict() for task in tasks],
    }
    if not file.exists():
        write_text(file, json.dumps(asked, indent=1, ensure_ascii=False) + "\n")
        return
    kept = read_object(file)
    if changed := [name for name in {**kept, **asked} if kept.get(name) != asked.get(name)]:
        raise ValueError(
            f"{file.parent} was begun with other {', '.join(changed)} (see {file.name}): ask for the same, or choose "
            "another folder"
        )


# Pictures


def _models(entries: Sequence[str] | None, painter: Painter) -> list[Model]:
    """The models asked for. ValueError for a name that is no folder's, or comes twice."""
    if not entries:
        if painter.base.srpo is None:
            raise ValueError(f"name the models to compare over {painter.base.name}: --entry base --entry srpo=FILE")
        return [Model(BASE, None), Model("srpo", str(painter.base.srpo))]
    models = []
    for entry in entries:
        name, equals, weights = entry.partition("=")
        if not NAME.fullmatch(name) or (equals and not weights):
            raise ValueError(f"--entry {entry!r} is not NAME=WEIGHTS, base, or the NAME of pictures that are there")
        if (name == BASE and equals) or name in [model.name for model in models]:
            raise ValueError(f"--entry {entry!r}: the name {name!r} is taken")
        models.append(Model(name, weights if equals else None, is_given=not equals and name != BASE))
    return models


def _require_same_weights(folder: BenchmarkFolder, model: Model) -> None:
    """Notes by which weights a model's pictures are made. ValueError where some were made by others."""
    note = folder.pictures(model.name) / "made_with.json"
    made_with = {"weights": "made elsewhere" if model.is_given else _fingerprint(model.weights)}
    if not note.exists():
        if model.weights is not None:
            hub.require_weights(model.weights)
        note.parent.mkdir(parents=True, exist_ok=True)
        write_text(note, json.dumps(made_with) + "\n")
    elif read_object(note) != made_with:
        raise ValueError(
            f"the pictures of {model.name!r} in {folder.path} were made by other weights: choose another name"
        )


def _fingerprint(weights: str | None) -> str:
    """What tells weights over the base from all others; a LoRA at another weight is another."""
    if weights is None:
        return BASE
    place, weight = hub.located(weights)
    return fingerprint(place) if weight == 1 else f"{fingerprint(place)}@{weight:g}"


def _paint(folder: BenchmarkFolder, order: Order, report: Report) -> None:
    """Paints what is not there yet, one model in memory beside the base at a time."""
    painter, tasks = order.painter, order.tasks
    missing = {model: folder.missing(model.name, tasks) for model in order.painted}
    lacking, total = sum(map(len, missing.values())), len(order.painted) * len(tasks)
    if not lacking:
        return
    painter.require_paintable([task.prompt for task in tasks])
    progress = Progress(folder, total, total - lacking)
    for model, wanted in missing.items():
        if not wanted:
            continue
        policy = painter.policy_with(model.weights)
        side = {"left": BASE, "right": "srpo" if model.weights in (None, str(painter.base.srpo)) else model.weights}
        names = {"left": painter.base.name, "right": model.name}
        facts = painter.facts({model.name: model.weights})
        for done, task in enumerate(wanted, 1):
            image = painter.paint(policy, task.prompt, task.seed)
            asked = {"prompt": task.prompt, "seed": task.seed, "num_seeds": 1, "control_word": ""}
            request = {**asked, **asdict(painter.settings), **side}
            texts = comparison_texts(request, task.prompt, "right" if model.weights else "left", names, facts)
            path = folder.pictures(model.name) / task.style / f"{task.index:05d}.png"
            path.parent.mkdir(exist_ok=True)
            write_file(path, lambda file, image=image, texts=texts: image.save(file, "PNG", pnginfo=texts))
            progress.forward(f"painting by {model.name}")
            if done % SAID_EVERY == 0 or done == len(wanted):
                report(f"{model.name}: {done} of {len(wanted)} pictures painted")


def _require_pictures(folder: BenchmarkFolder, model: str, tasks: Sequence[Task]) -> list[str]:
    """(N,) SHA-256 of a model's picture files. ValueError, naming them, where some are missing or unreadable."""
    hashes, bad = [], []
    for task in tasks:
        try:
            content = _content(folder, model, task)
            _decoded(content)
            hashes.append(hashlib.sha256(content).hexdigest())
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            bad.append(task)
    _refuse(folder, model, bad, len(tasks))
    return hashes


def _refuse(folder: BenchmarkFolder, model: str, bad: Sequence[Task], total: int) -> None:
    if bad:
        named = ", ".join(f"{task.style}/{task.index:05d}" for task in bad[:NAMED])
        more = f" and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
        verb = "is" if len(bad) == 1 else "are"
        raise ValueError(
            f"{len(bad):,} of {total:,} pictures of {model!r} {verb} missing or unreadable in "
            f"{folder.pictures(model)}: {named}{more}"
        )


def _content(folder: BenchmarkFolder, model: str, task: Task) -> bytes:
    path = folder.find(model, task)
    if path is None:
        raise FileNotFoundError(f"{model} has no picture {task.style}/{task.index:05d}")
    return path.read_bytes()


def _decoded(content: bytes) -> Image.Image:
    with Image.open(io.BytesIO(content)) as picture:
        return picture.convert("RGB")


# Scores


class PhotoJudge:
    """How sure an independent judge of the miniature is of a photo. It measures, and is never trained on."""

    name = "judge"
    sha256 = None

    def __init__(self, place: Path) -> None:
        from srpo.miniature.judge import Judge as Classifier

        self._judge = Classifier.from_pretrained(place)
        self._photo = self._judge.classes["style"].index("photo")

    def score(self, image: Tensor, texts: Sequence[str]) -> Tensor:
        """(B,) probabilities of images (B, 3, H, W) in [0, 1]; the texts have no say in them."""
        return self._judge.probabilities(image)["style"][:, self._photo]


def _reward_names(options: argparse.Namespace) -> list[str]:
    """The rewards asked for; the miniature's, where nothing that scores is named."""
    return options.reward or ([] if options.judge else [str(paths.REWARD)])


def _columns(options: argparse.Namespace, device: str) -> list[Column]:
    """What scores, in the order of asking. ValueError for a reward that is unknown, or comes twice."""
    columns = [_reward_column(read_name(name), device) for name in _reward_names(options)]
    if options.judge is not None:
        place, log = options.judge, f"judge-{_plain(fingerprint(options.judge))}"
        columns.append(Column("judge", "Judged photo", "judge", f"judge:{place}", log, lambda: PhotoJudge(place)))
    asked, names = [column.asked for column in columns], [column.name for column in columns]
    if twice := [name for name in asked if asked.count(name) > 1]:
        raise ValueError(f"the reward {twice[0]} is named twice: name each once")
    return [replace(column, name=column.asked) if names.count(column.name) > 1 else column for column in columns]


def _reward_column(named: Named, device: str) -> Column:
    from srpo.rewards.load import load_reward

    place = Path(named.place).name
    # CLIP is many models, told apart by their folders.
    title = f"CLIP, {place}" if named.kind == "clip" else named.card.title.partition(" (")[0]
    kind = named.kind if named.preprocessing == "official" else f"{named.kind}-srpo"
    log = f"{kind}-{_plain(fingerprint(place_of(str(named))))}"
    short = str(Named(named.kind, place, named.preprocessing))
    return Column(named.kind, title, short, str(named), log, lambda: load_reward(named, device=device))


def _logs(folder: BenchmarkFolder, column: Column) -> Path:
    return folder.path / "scores" / column.log


def _require_loadable(folder: BenchmarkFolder, column: Column) -> None:
    """Notes what the column is, before hours are spent on painting. ValueError where it cannot be loaded."""
    record = _logs(folder, column) / RECORD
    if not record.is_file():
        reward = column.load()
        record.parent.mkdir(parents=True, exist_ok=True)
        write_text(record, json.dumps({"sha256": reward.sha256}) + "\n")


def _plain(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text)


def _score(
    folder: BenchmarkFolder,
    column: Column,
    hashes: Mapping[str, list[str]],
    tasks: Sequence[Task],
    progress: Progress,
    report: Report,
) -> tuple[Judge, dict[str, np.ndarray]]:
    """The column's facts, and its scores of every model's pictures (N,); what is known already is not scored anew."""
    logs = _logs(folder, column)
    reward, found = None, {}
    for model, wanted in hashes.items():
        log = logs / f"{model}.jsonl"
        known = _known(log)
        values: list[float] = []
        for start in range(0, len(tasks), TOGETHER):
            chunk, pictures = tasks[start : start + TOGETHER], wanted[start : start + TOGETHER]
            is_news = known.get(start, {}).get("pictures") != pictures
            if is_news:
                if reward is None:
                    reward = column.load()
                images = [_decoded(_content(folder, model, task)) for task in chunk]
                scores = score_images(reward, images, [task.prompt for task in chunk], TOGETHER)
                known[start] = {"start": start, "pictures": pictures, "scores": scores}
                append_line(log, known[start])
            values += known[start]["scores"]
            progress.forward(f"scoring {model} by {column.title}", len(chunk), is_news=is_news)
        found[model] = np.array(values)
        report(f"{model}: {len(tasks)} pictures scored by {column.title}")
    return Judge(column.kind, column.title, column.name, read_object(logs / RECORD)["sha256"]), found


def _known(log: Path) -> dict[int, dict[str, Any]]:
    """The scores of an earlier call by the first picture of each group; a line that a kill tore is cut off."""
    cut_back(log, lambda record: True)
    return {record["start"]: record for record in read_lines(log, dict)}


def _made_with(painter: Painter, tasks: Sequence[Task], models: Sequence[Model]) -> list[str]:
    """Sentences on how the pictures came about."""
    given = [model.name for model in models if model.is_given]
    settings = painter.settings
    said = [
        f"{painter.base.name}, {settings.steps} steps, guidance {settings.guidance:g}, "
        f"{settings.width} x {settings.height} pixels; each picture has a seed of its own, {tasks[0].seed} to "
        f"{tasks[-1].seed}, the same for every model."
    ]
    return said + ([f"The pictures of {', '.join(given)} were made elsewhere."] if given else [])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m srpo.benchmark", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where pictures, scores and the table are kept")
    parser.add_argument("--resume", action="store_true", help="go on with what the folder was last asked for")
    parser.add_argument("--measure", action="store_true", help="only tell, as JSON, what a picture costs here")
    parser.add_argument(
        "--prompts", type=Path, help="a list of prompts (.txt, or .json of texts), or a folder with one for each style"
    )
    parser.add_argument("--first", type=int, metavar="N", help="only the first N prompts of each style")
    parser.add_argument("--num-seeds", type=int, default=1, metavar="N", help="paint each prompt N times")
    parser.add_argument(
        "--entry",
        action="append",
        metavar="NAME[=WEIGHTS]",
        help="a model: base, NAME=WEIGHTS over it (a file, a folder or an id, a LoRA as FILE@0.8), "
        "or the NAME of pictures that lie in FOLDER/pictures/NAME/STYLE, "
        "00000.png and on; repeatable (default: base and SRPO, of the miniature)",
    )
    parser.add_argument(
        "--reward", action="append", metavar="NAME", help="KIND:PLACE or a folder; repeatable; see python -m srpo.score"
    )
    parser.add_argument("--judge", type=Path, help="the miniature's judge: a column of how sure it is of photos")
    add_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
