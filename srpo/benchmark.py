"""python -m srpo.benchmark FOLDER: any set of models paints the same prompts, and rewards judge the pictures.

Killed at any moment and started again, it goes on, and writes the very same table. In FOLDER:

plan.json                            prompts, seeds and settings; another call must ask for the same
pictures/MODEL/STYLE/00000.png       written once
pictures/MODEL/made_with.json        by which weights
scores/REWARD/MODEL.jsonl            of every picture, by its hash
benchmark.json, benchmark.md         the result
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from srpo.evaluation.benchmark import Judge, Task, markdown, summary
from srpo.evaluation.records import comparison_texts
from srpo.miniature import paths
from srpo.painting import Painter, add_options, read_options, require_seeds
from srpo.policies import hub
from srpo.rewards.catalogue import Named, place_of, read_name
from srpo.runs.atomic import write_file, write_text
from srpo.runs.environment import fingerprint
from srpo.runs.lines import append_line, cut_back, read_lines
from srpo.runs.locks import FileLock

NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}")  # of a model or a style: it becomes a folder
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")  # of pictures made elsewhere; ours are PNG
BASE, RECORD = "base", "reward.json"
TOGETHER = 16  # pictures that are scored together; always the same ones, so that a kill changes no digit
NAMED = 5  # pictures that an error names; it counts the rest

Report = Callable[[str], None]


class Model(NamedTuple):
    """One line of the table."""

    name: str
    weights: Path | None  # over the base; None for the base's own
    is_given: bool = False  # True: its pictures are made elsewhere and lie in the folder


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 2 with one sentence for what cannot be measured."""
    options = _parser().parse_args(arguments)
    try:
        text = run(options, lambda line: print(line, file=sys.stderr, flush=True))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text, end="")
    return 0


def run(options: argparse.Namespace, report: Report) -> str:
    """The table, in Markdown; it and its JSON lie in the folder by then."""
    painter = read_options(options)
    models = _models(options.entry, painter)
    names = [read_name(name) for name in options.reward or [paths.REWARD]]
    tasks = plan(read_prompt_lists(options.prompts or _own_prompts(painter)), options.seed, options.first)
    require_seeds(tasks[0].seed, tasks[-1].seed)
    folder = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder)
    if not lock.acquire():
        raise ValueError(f"another benchmark is at work in {folder}: wait for its end, or choose another folder")
    try:
        _keep_plan(folder / "plan.json", tasks, painter)
        for model in models:
            _require_same_weights(folder, model)
        _require_files(folder, [model for model in models if model.is_given], tasks)
        _paint(folder, [model for model in models if not model.is_given], tasks, painter, report)
        hashes = {model.name: _require_pictures(folder, model.name, tasks) for model in models}
        judges, scores = [], {}
        for name in names:
            judge, scores[judge.name] = _score(folder, name, hashes, tasks, options.device, report)
            judges.append(judge)
        result = {"settings": _settings(painter)} | summary(tasks, judges, list(hashes), scores)
        text = markdown(result, _made_with(painter, tasks, models))
        write_text(folder / "benchmark.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        write_text(folder / "benchmark.md", text)
    finally:
        lock.release()
    return text


# Prompts and seeds


def read_prompt_lists(place: Path) -> dict[str, list[str]]:
    """The prompts of each style: of one file, or of every file of a folder; a style is called by its file.

    A .json file is a list of texts, as HPSv2's anime, concept-art, paintings and photo; a .txt file has one per line.
    ValueError, one sentence, where there are none or a file is something else.
    """
    files = sorted([*place.glob("*.json"), *place.glob("*.txt")]) if place.is_dir() else [place]
    if not files:
        raise ValueError(f"{place} holds no list of prompts: a .json file with a list of texts, or a .txt file")
    lists = {}
    for file in files:
        if not NAME.fullmatch(file.stem) or file.stem in lists:
            raise ValueError(f"{file} gives no style: name the file once, in letters, digits, dots and hyphens")
        lists[file.stem] = _read_prompts(file)
    return lists


def _read_prompts(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8")
        found = json.loads(text) if file.suffix == ".json" else text.splitlines()
    except (OSError, ValueError) as error:
        raise ValueError(f"the prompts in {file} cannot be read: {error}") from error
    if not isinstance(found, list) or not all(isinstance(prompt, str) for prompt in found):
        raise ValueError(f"{file} is no list of prompts: a JSON list of texts is expected")
    prompts = [" ".join(prompt.split()) for prompt in found if prompt.strip()]
    if not prompts:
        raise ValueError(f"{file} holds no prompt")
    return prompts


def plan(lists: dict[str, list[str]], seed: int, first: int | None = None) -> list[Task]:
    """What every model paints; each picture has a seed of its own, counted on over all styles.

    first: only so many prompts of each style. A prompt has the same seed whatever `first` is.
    """
    if first is not None and first < 1:
        raise ValueError(f"--first must be 1 or more, not {first}")
    tasks, start = [], seed
    for style, prompts in lists.items():
        tasks += [Task(style, index, prompt, start + index) for index, prompt in enumerate(prompts[:first])]
        start += len(prompts)
    return tasks


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
    kept = _read_json(file)
    if changed := [name for name in {**kept, **asked} if kept.get(name) != asked.get(name)]:
        raise ValueError(
            f"{file.parent} was begun with other {', '.join(changed)} (see {file.name}): ask for the same, or choose "
            "another folder"
        )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} cannot be read: an object is expected")
    return found


# Pictures


def _models(entries: Sequence[str] | None, painter: Painter) -> list[Model]:
    """The models asked for. ValueError for a name that is no folder's, or comes twice."""
    if not entries:
        if painter.base.srpo is None:
            raise ValueError(f"name the models to compare over {painter.base.name}: --entry base --entry srpo=FILE")
        return [Model(BASE, None), Model("srpo", painter.base.srpo)]
    models = []
    for entry in entries:
        name, equals, weights = entry.partition("=")
        if not NAME.fullmatch(name) or (equals and not weights):
            raise ValueError(f"--entry {entry!r} is not NAME=WEIGHTS, base, or the NAME of pictures that are there")
        if (name == BASE and equals) or name in [model.name for model in models]:
            raise ValueError(f"--entry {entry!r}: the name {name!r} is taken")
        models.append(Model(name, Path(weights) if equals else None, is_given=not equals and name != BASE))
    return models


def _pictures(folder: Path, model: str) -> Path:
    return folder / "pictures" / model


def _require_same_weights(folder: Path, model: Model) -> None:
    """Notes by which weights a model's pictures are made. ValueError where some were made by others."""
    note = _pictures(folder, model.name) / "made_with.json"
    made_with = {"weights": "made elsewhere" if model.is_given else _fingerprint(model.weights)}
    if not note.exists():
        if model.weights is not None:
            hub.require_weights(model.weights)
        note.parent.mkdir(parents=True, exist_ok=True)
        write_text(note, json.dumps(made_with) + "\n")
    elif _read_json(note) != made_with:
        raise ValueError(f"the pictures of {model.name!r} in {folder} were made by other weights: choose another name")


def _fingerprint(weights: Path | None) -> str:
    """What tells weights over the base from all others; a LoRA at another weight is another."""
    if weights is None:
        return BASE
    place, weight = hub.located(weights)
    return fingerprint(place) if weight == 1 else f"{fingerprint(place)}@{weight:g}"


def _paint(folder: Path, models: Sequence[Model], tasks: Sequence[Task], painter: Painter, report: Report) -> None:
    """Paints what is not there yet, one model in memory beside the base at a time."""
    is_checked = False
    for model in models:
        missing = [task for task in tasks if _find(folder, model.name, task) is None]
        if not missing:
            continue
        if not is_checked:
            painter.require_paintable([task.prompt for task in tasks])
            is_checked = True
        policy = painter.policy_with(model.weights)
        side = {"left": BASE, "right": "srpo" if model.weights in (None, painter.base.srpo) else str(model.weights)}
        names = {"left": painter.base.name, "right": model.name}
        facts = painter.facts({model.name: model.weights})
        for done, task in enumerate(missing, 1):
            image = painter.paint(policy, task.prompt, task.seed)
            asked = {"prompt": task.prompt, "seed": task.seed, "num_seeds": 1, "control_word": ""}
            request = {**asked, **asdict(painter.settings), **side}
            texts = comparison_texts(request, task.prompt, "right" if model.weights else "left", names, facts)
            path = _pictures(folder, model.name) / task.style / f"{task.index:05d}.png"
            path.parent.mkdir(exist_ok=True)
            write_file(path, lambda file, image=image, texts=texts: image.save(file, "PNG", pnginfo=texts))
            if done % 50 == 0 or done == len(missing):
                report(f"{model.name}: {done} of {len(missing)} pictures painted")


def _find(folder: Path, model: str, task: Task) -> Path | None:
    """The file of a picture; None where there is none."""
    places = (_pictures(folder, model) / task.style / f"{task.index:05d}{suffix}" for suffix in SUFFIXES)
    return next((place for place in places if place.exists()), None)


def _require_files(folder: Path, models: Sequence[Model], tasks: Sequence[Task]) -> None:
    """ValueError, naming them, where pictures of these models are missing."""
    for model in models:
        _refuse(folder, model.name, [task for task in tasks if _find(folder, model.name, task) is None])


def _require_pictures(folder: Path, model: str, tasks: Sequence[Task]) -> list[str]:
    """(N,) SHA-256 of a model's picture files. ValueError, naming them, where some are missing or unreadable."""
    hashes, bad = [], []
    for task in tasks:
        try:
            content = _content(folder, model, task)
            _decoded(content)
            hashes.append(hashlib.sha256(content).hexdigest())
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            bad.append(task)
    _refuse(folder, model, bad)
    return hashes


def _refuse(folder: Path, model: str, bad: Sequence[Task]) -> None:
    if bad:
        named = ", ".join(f"{task.style}/{task.index:05d}" for task in bad[:NAMED])
        more = f" and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
        verb = "is" if len(bad) == 1 else "are"
        raise ValueError(f"of {model!r} {named}{more} {verb} missing or unreadable in {_pictures(folder, model)}")


def _content(folder: Path, model: str, task: Task) -> bytes:
    path = _find(folder, model, task)
    if path is None:
        raise FileNotFoundError(f"{model} has no picture {task.style}/{task.index:05d}")
    return path.read_bytes()


def _decoded(content: bytes) -> Image.Image:
    with Image.open(io.BytesIO(content)) as picture:
        return picture.convert("RGB")


# Scores


def _score(
    folder: Path, name: Named, hashes: dict[str, list[str]], tasks: Sequence[Task], device: str, report: Report
) -> tuple[Judge, dict[str, np.ndarray]]:
    """The reward, and its scores of every model's pictures (N,); it is loaded where some are not known yet."""
    from srpo.rewards.base import score_images
    from srpo.rewards.load import load_reward

    place = re.sub(r"[^\w.-]+", "-", fingerprint(place_of(str(name))))
    logs = folder / "scores" / f"{name.kind}{'' if name.preprocessing == 'official' else '-srpo'}-{place}"
    logs.mkdir(parents=True, exist_ok=True)  # one for the very weights: scores of others are others
    # CLIP is many models, told apart by their folders.
    title = f"CLIP, {Path(name.place).name}" if name.kind == "clip" else name.card.title.partition(" (")[0]
    reward, found = None, {}
    for model, wanted in hashes.items():
        log = logs / f"{model}.jsonl"
        known = _known(log)
        values: list[float] = []
        for start in range(0, len(tasks), TOGETHER):
            chunk, pictures = tasks[start : start + TOGETHER], wanted[start : start + TOGETHER]
            if known.get(start, {}).get("pictures") != pictures:
                if reward is None:
                    reward = load_reward(name, device=device)
                    write_text(logs / RECORD, json.dumps({"sha256": reward.sha256}) + "\n")
                images = [_decoded(_content(folder, model, task)) for task in chunk]
                scores = score_images(reward, images, [task.prompt for task in chunk], TOGETHER)
                known[start] = {"start": start, "pictures": pictures, "scores": scores}
                append_line(log, known[start])
            values += known[start]["scores"]
        found[model] = np.array(values)
        report(f"{model}: {len(tasks)} pictures scored by {title}")
    return Judge(name.kind, title, str(name), _read_json(logs / RECORD)["sha256"]), found


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
        f"{settings.width} x {settings.height} pixels; each prompt has a seed of its own, {tasks[0].seed} to "
        f"{tasks[-1].seed}, the same for every model."
    ]
    return said + ([f"The pictures of {', '.join(given)} were made elsewhere."] if given else [])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m srpo.benchmark", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where pictures, scores and the table are kept")
    parser.add_argument(
        "--prompts", type=Path, help="a list of prompts (.txt, or .json of texts), or a folder with one for each style"
    )
    parser.add_argument("--first", type=int, metavar="N", help="only the first N prompts of each style")
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
    add_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
