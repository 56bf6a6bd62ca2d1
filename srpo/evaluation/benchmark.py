"""The table of a benchmark: mean scores by style and model, and paired differences between models.

Every model paints the same prompts from the same seeds, so models are compared prompt by prompt, and a prompt is one
observation however often it is painted.

N pictures of one model, in the order of the tasks; R rewards, M models.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from srpo.studies.estimates import MIN_PROMPTS, Estimate, clustered

ALL = "all"
CHUNK = 80  # prompts whose means the HPSv2 benchmark takes the deviation of
EVERYWHERE = (-np.inf, np.inf)
BOUNDS = {"judge": (0.0, 1.0)}  # of scores that have any, by their kind: no interval goes beyond them
# The paper's Table 1, as far as a reward can fill it; the others follow in the order they were asked for.
TABLE_1 = ("aesthetic-v2.5", "pickscore", "imagereward", "hpsv2.1")
SHEET_HEADS = ("kind", "reward", "style", "model", "than", "mean", "low", "high", "chunk_std", "pictures", "prompts")
TABLE_1_NOTE = (
    "Of the columns of Table 1 in the paper of SRPO (arXiv 2509.06942), GenEval is not measured here and the human "
    "ones need people; its HPSv2.1 is a cosine, a hundredth of ours. Published figures differ with their settings: "
    "compare only what stands in one table."
)


class Task(NamedTuple):
    """One picture that every model is to paint."""

    style: str
    index: int  # within the style, from 0
    prompt: str
    seed: int


@dataclass(frozen=True)
class Judge:
    """One reward of the table."""

    kind: str  # of its card
    title: str
    name: str  # as it was asked for
    sha256: str | None  # of published weights


Scores = Mapping[str, Mapping[str, np.ndarray]]  # by the reward's name, then by model: (N,)


def summary(tasks: Sequence[Task], judges: Sequence[Judge], models: Sequence[str], scores: Scores) -> dict[str, Any]:
    """The whole result as JSON takes it: rewards, styles, means with intervals, paired differences with intervals.

    ValueError where a model's scores are not one for each task, or not finite.
    """
    for judge, model in itertools.product(judges, models):
        values = scores[judge.name][model]
        if values.shape != (len(tasks),) or not np.isfinite(values).all():
            raise ValueError(f"{judge.name} must give {model} {len(tasks)} finite scores, not {values.shape}")
    styles = list(dict.fromkeys(task.style for task in tasks))
    return {
        "rewards": [vars(judge) for judge in _as_in_table_1(judges)],
        "models": list(models),
        "styles": {style: sum(task.style == style for task in tasks) for style in styles},
        "means": list(_means(tasks, judges, models, scores)),
        "differences": list(_differences(tasks, judges, models, scores)),
    }


def is_clear(difference: Mapping[str, Any]) -> bool:
    """True where the 95 % interval of a difference is known and does not hold 0. (No correction for many looks.)"""
    return difference["low"] is not None and not difference["low"] <= 0 <= difference["high"]


def csv_text(result: Mapping[str, Any]) -> str:
    """Every mean and every paired difference of the result, one to a line, unrounded."""
    file = io.StringIO()
    sheet = csv.DictWriter(file, SHEET_HEADS, restval="", lineterminator="\n")
    sheet.writeheader()
    for kind in ("means", "differences"):
        sheet.writerows({"kind": kind.removesuffix("s"), **entry} for entry in result[kind])
    return file.getvalue()


def chunk_std(values: np.ndarray) -> float | None:
    """The deviation of the means of chunks of 80, as the HPSv2 benchmark gives it; None below two whole chunks."""
    if len(values) < 2 * CHUNK or len(values) % CHUNK:
        return None
    return float(values.reshape(-1, CHUNK).mean(axis=1).std())


def _means(
    tasks: Sequence[Task], judges: Sequence[Judge], models: Sequence[str], scores: Scores
) -> Iterator[dict[str, Any]]:
    for judge, (style, picked), model in itertools.product(judges, _groups(tasks).items(), models):
        values = scores[judge.name][model][picked]
        found = _estimate(tasks, picked, values, BOUNDS.get(judge.kind, EVERYWHERE))
        yield {"reward": judge.name, "style": style, "model": model, **found, "chunk_std": chunk_std(values)}


def _differences(
    tasks: Sequence[Task], judges: Sequence[Judge], models: Sequence[str], scores: Scores
) -> Iterator[dict[str, Any]]:
    """Every later model against every earlier one."""
    pairs = list(itertools.combinations(models, 2))
    for judge, (style, picked), (than, model) in itertools.product(judges, _groups(tasks).items(), pairs):
        values = (scores[judge.name][model] - scores[judge.name][than])[picked]
        low, high = BOUNDS.get(judge.kind, EVERYWHERE)
        found = _estimate(tasks, picked, values, (low - high, high - low))
        yield {"reward": judge.name, "style": style, "model": model, "than": than, **found}


def _groups(tasks: Sequence[Task]) -> dict[str, np.ndarray]:
    """The places of each style's tasks, and of all where there is more than one style."""
    styles = np.array([task.style for task in tasks])
    groups = {style: np.flatnonzero(styles == style) for style in dict.fromkeys(styles.tolist())}
    return groups if len(groups) == 1 else groups | {ALL: np.arange(len(tasks))}


def _estimate(
    tasks: Sequence[Task], picked: np.ndarray, values: np.ndarray, bounds: tuple[float, float]
) -> dict[str, Any]:
    prompts = np.array([tasks[place].prompt for place in picked])
    found: Estimate = clustered(prompts, values, bounds=bounds)
    return {
        "mean": found.value,
        "low": None if found.low is None else float(found.low),
        "high": None if found.high is None else float(found.high),
        "pictures": found.votes,
        "prompts": found.prompts,
    }


def _as_in_table_1(judges: Sequence[Judge]) -> list[Judge]:
    places = {kind: place for place, kind in enumerate(TABLE_1)}
    return sorted(judges, key=lambda judge: places.get(judge.kind, len(places)))


def markdown(result: Mapping[str, Any], made_with: Sequence[str]) -> str:
    """The result for people. made_with: sentences on how the pictures came about."""
    models = result["models"]
    groups = groups_of(result)
    counts = ", ".join(f"{style} {count}" for style, count in result["styles"].items())
    titles = titles_of(result)
    lines = [
        "# Benchmark",
        "",
        "Written by `python -m srpo.benchmark`. " + " ".join(made_with),
        f"Pictures of each model: {counts}. In brackets 95 % intervals over prompts (Student's t), none below "
        f"{MIN_PROMPTS} prompts.",
        "",
        *_table(["model", *titles.values()], [[model, *_row(result, titles, model)] for model in models]),
        "",
        TABLE_1_NOTE,
    ]
    for name, title in titles.items():
        means = {(entry["model"], entry["style"]): entry for entry in result["means"] if entry["reward"] == name}
        digits = digits_of(result, name)
        lines += ["", f"## {title}"]
        if len(groups) > 1:  # else the table above says it all
            rows = [[model, *(said(means[model, group], digits) for group in groups)] for model in models]
            lines += ["", *_table(["model", *groups], rows)]
        apart = [entry for entry in result["differences"] if entry["reward"] == name]
        pairs = list(dict.fromkeys((entry["model"], entry["than"]) for entry in apart))
        found = {(entry["model"], entry["than"], entry["style"]): entry for entry in apart}
        rows = [[f"{m} − {than}", *(said(found[m, than, group], digits, "+") for group in groups)] for m, than in pairs]
        if rows:
            lines += ["", "Paired differences, prompt by prompt:", "", *_table(["models", *groups], rows)]
    if any(entry["chunk_std"] is not None for entry in result["means"]):
        lines += ["", f"± is the deviation of the means of {CHUNK} prompts, as the HPSv2 benchmark prints it."]
    hashes = [
        f"{titles[reward['name']]}: SHA-256 {reward['sha256']}" for reward in result["rewards"] if reward["sha256"]
    ]
    return "\n".join([*lines, *(["", *hashes] if hashes else [])]) + "\n"


def titles_of(result: Mapping[str, Any]) -> dict[str, str]:
    """A heading for each reward's name: its title, and the name as well where two have the same."""
    rewards = result["rewards"]
    titles = [reward["title"] for reward in rewards]
    return {
        reward["name"]: reward["title"] if titles.count(reward["title"]) == 1 else f"{reward['title']} {reward['name']}"
        for reward in rewards
    }


def groups_of(result: Mapping[str, Any]) -> list[str]:
    """The styles, and all of them together at the end where there is more than one."""
    styles = list(result["styles"])
    return [*styles, ALL] if len(styles) > 1 else styles


def digits_of(result: Mapping[str, Any], reward: str) -> int:
    """Digits behind the point: four of what is about 1, such as a cosine, fewer of what is larger."""
    return 4 if max(abs(entry["mean"]) for entry in result["means"] if entry["reward"] == reward) < 2 else 3


def _row(result: Mapping[str, Any], names: Mapping[str, str], model: str) -> list[str]:
    """A model's means over all prompts, one for each reward."""
    means = {(entry["reward"], entry["model"], entry["style"]): entry for entry in result["means"]}
    return [said(means[name, model, groups_of(result)[-1]], digits_of(result, name)) for name in names]


def said(entry: Mapping[str, Any], digits: int, sign: str = "") -> str:
    """A mean or a difference with its interval, as the table says it."""
    text = f"{entry['mean']:{sign}.{digits}f}"
    if entry.get("chunk_std") is not None:
        text += f" ± {entry['chunk_std']:.{digits}f}"
    if entry["low"] is None:
        return text
    return f"{text} ({entry['low']:{sign}.{digits}f} to {entry['high']:{sign}.{digits}f})"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return [f"| {' | '.join(line)} |" for line in lines]
