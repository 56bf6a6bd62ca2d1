"""Lists of prompts in files, one list for each style, and what a benchmark makes of them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from srpo.evaluation.benchmark import Task

NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}")  # of a style or a model: it becomes a folder
SUFFIXES = (".json", ".txt")


def read_prompt_lists(*places: Path) -> dict[str, list[str]]:
    """The prompts of each style: of every file that is named, and of every list in a folder that is.

    A .json file is a list of texts, as HPSv2's anime, concept-art, paintings and photo; a .txt file has one per line.
    ValueError, one sentence, where there are none, a file is something else, or two have the same name.
    """
    lists: dict[str, list[str]] = {}
    for file in (file for place in places for file in _files(place)):
        if not NAME.fullmatch(file.stem) or file.stem in lists:
            raise ValueError(f"{file} gives no style: name the file once, in letters, digits, dots and hyphens")
        lists[file.stem] = _read_prompts(file)
    return lists


def plan(lists: Mapping[str, list[str]], seed: int, first: int | None = None, num_seeds: int = 1) -> list[Task]:
    """What every model paints; each picture has a seed of its own, counted on over all styles, then over again.

    first: only so many prompts of each style. num_seeds: how often each prompt is painted. A prompt has the same seed
    whatever `first` is, and the same first seed whatever `num_seeds` is.
    """
    if first is not None and first < 1:
        raise ValueError(f"--first must be 1 or more, not {first}")
    if num_seeds < 1:
        raise ValueError(f"--num-seeds must be 1 or more, not {num_seeds}")
    tasks, start, total = [], seed, sum(map(len, lists.values()))
    for style, prompts in lists.items():
        taken = prompts[:first]
        for turn in range(num_seeds):
            tasks += [
                Task(style, turn * len(taken) + place, prompt, start + turn * total + place)
                for place, prompt in enumerate(taken)
            ]
        start += len(prompts)
    return tasks


def _files(place: Path) -> Sequence[Path]:
    if not place.is_dir():
        if place.suffix.lower() not in SUFFIXES:
            raise ValueError(f"{place} is no list of prompts: a .json file with a list of texts, or a .txt file")
        return [place]
    files = sorted(file for suffix in SUFFIXES for file in place.glob(f"*{suffix}"))
    if not files:
        raise ValueError(f"{place} holds no list of prompts: a .json file with a list of texts, or a .txt file")
    return files


def _read_prompts(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8-sig")
        found = json.loads(text) if file.suffix == ".json" else text.splitlines()
    except (OSError, ValueError) as error:
        raise ValueError(f"the prompts in {file} cannot be read: {error}") from error
    if not isinstance(found, list) or not all(isinstance(prompt, str) for prompt in found):
        raise ValueError(f"{file} is no list of prompts: a JSON list of texts is expected")
    prompts = [" ".join(prompt.split()) for prompt in found if prompt.strip()]
    if not prompts:
        raise ValueError(f"{file} holds no prompt")
    return prompts
