"""A training in charts: what its log says, as lines that the page draws.

A chart is data alone; colours are numbers that the style sheet turns into colours, so that one description serves
light and dark. Positive, negative and raw scores are means over the branches: both recover the same picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from srpo.runs.records import BestRecord, UpdateRecord, ValidationRecord

MAX_POINTS = 2000  # of one line, as drawn
MAX_MARKS = 20  # of one chart
BRANCHES = ("denoise", "inversion")
# What the page calls a score of the validation; others keep the name they have in the record.
VALIDATION_NAMES = {
    "photo": "Judged photo",
    "content": "Content right",
    "saturation": "Saturation",
    "clipped": "Clipped pixels",
    "sharpness": "Sharpness",
    "diversity": "Diversity",
    "reward": "Another reward",
}


@dataclass(frozen=True)
class Line:
    """One curve; a missing value is None and leaves a gap."""

    name: str
    x: list[float]
    y: list[float | None]
    colour: int
    dash: str = "solid"  # "solid", "dash" or "dot"
    points: bool = False  # a dot at each value, for lines of few
    low: list[float | None] | None = None  # of its interval
    high: list[float | None] | None = None


@dataclass(frozen=True)
class Mark:
    """An upright line at an update, with a word or two."""

    x: float
    text: str
    kind: str  # "best" or "warning"
    hint: str = ""  # the whole sentence


@dataclass(frozen=True)
class Chart:
    """A titled panel of curves, over updates unless it says otherwise."""

    key: str  # its place on the page, the same for every run
    title: str
    hint: str  # what to look for, in a sentence
    lines: tuple[Line, ...]
    marks: tuple[Mark, ...] = ()
    wide: bool = False
    x_title: str = "update"


class Columns:
    """A log's numbers as arrays: (N,) each, NaN where a record lacks the value."""

    def __init__(self, records: Sequence[UpdateRecord]) -> None:
        self.records = records
        self.update = np.array([record.update for record in records], float)

    def field(self, name: str) -> np.ndarray:
        """A number that every record has: "loss", "grad_norm", ..."""
        return np.array([getattr(record, name) for record in self.records], float)

    def score(self, name: str) -> np.ndarray:
        """A score by its name: "denoise/loss", "clip_norm", ..."""
        return np.array([record.scores.get(name, math.nan) for record in self.records], float)

    def mean(self, name: str) -> np.ndarray:
        """The mean of a score over the branches that have it."""
        both = np.array([self.score(f"{branch}/{name}") for branch in BRANCHES])
        there = np.isfinite(both)
        sums = np.where(there, both, 0.0).sum(axis=0)
        return np.divide(sums, there.sum(axis=0), out=np.full(len(self.update), np.nan), where=there.any(axis=0))


def training_charts(
    records: Sequence[UpdateRecord], validations: Sequence[ValidationRecord] = (), best: BestRecord | None = None
) -> tuple[Chart, ...]:
    """The charts of one run. A line without any value is left out, and a chart without a line."""
    log = Columns(records)
    marks = _marks(records, best)

    def line(name: str, y: np.ndarray, colour: int, **more: object) -> Line:
        return _line(name, log.update, y, colour, **more)

    charts = (
        Chart(
            "validation",
            "Validation, by scores the run does not train on",
            "The same prompts and seeds each time: here a run shows that it improves, and where it begins to spoil.",
            _validation_lines(validations),
            marks,
            wide=True,
        ),
        Chart(
            "difference",
            "Positive − negative score",
            "The relative preference that SRPO raises.",
            (line("Difference", log.mean("difference"), 0),),
            marks,
        ),
        Chart(
            "scores",
            "Scores under the control words",
            "In a good run the raw score stays flat while the other two part.",
            (
                line("Positive words", log.mean("positive"), 1),
                line("Negative words", log.mean("negative"), 0),
                line("Prompt alone (raw)", log.mean("plain"), 4, dash="dot"),
            ),
            marks,
        ),
        Chart(
            "loss",
            "Net loss per branch",
            "The two branches pull against each other: what both like whatever the text says cancels.",
            (
                line("Denoise", log.score("denoise/loss"), 1),
                line("Inversion", log.score("inversion/loss"), 0),
                line("Both", log.field("loss"), 4, dash="dot"),
            ),
            marks,
        ),
        Chart(
            "gradient",
            "Gradient norm before clipping",
            "Above the dashed line the step is shortened to it.",
            (line("Norm", log.field("grad_norm"), 2), line("Clipped at", log.score("clip_norm"), 4, dash="dash")),
            marks,
        ),
    )
    return _filled(charts)


def comparison_charts(
    runs: Mapping[str, tuple[Sequence[UpdateRecord], Sequence[ValidationRecord]]],
) -> tuple[Chart, ...]:
    """The charts of several runs over one another, one colour for each."""
    logs = {name: Columns(records) for name, (records, _) in runs.items()}

    def overlay(key: str, title: str, hint: str, column: Callable[[Columns], np.ndarray]) -> Chart:
        lines = [_line(name, log.update, column(log), number) for number, (name, log) in enumerate(logs.items())]
        return Chart(key, title, hint, tuple(lines))

    def validation(score: str) -> Chart:
        lines = [
            _validation_line(score, name, number, validations)
            for number, (name, (_, validations)) in enumerate(runs.items())
        ]
        return Chart(f"validation-{score}", f"Validation: {_named(score)}", "Not trained on.", tuple(lines))

    scores = dict.fromkeys(name for _, validations in runs.values() for record in validations for name in record.scores)
    return _filled(
        (
            *map(validation, scores),
            overlay("difference", "Positive − negative score", "What SRPO raises.", lambda log: log.mean("difference")),
            overlay("raw", "Score of the prompt alone (raw)", "Flat in a good run.", lambda log: log.mean("plain")),
            overlay("loss", "Loss", "Of both branches.", lambda log: log.field("loss")),
            overlay("gradient", "Gradient norm", "Before clipping.", lambda log: log.field("grad_norm")),
        )
    )


def thin(x: np.ndarray, y: np.ndarray, most: int = MAX_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most `most` points of a curve, its first and last among them and no peak lost.

    The inner points are cut into equal runs, and the lowest and the highest of each is kept.
    """
    if len(x) <= most:
        return x, y
    inner = np.arange(1, len(x) - 1)
    kept = [0, len(x) - 1]
    for part in np.array_split(inner, (most - 2) // 2):
        values = y[part]
        if np.isfinite(values).any():
            kept += [part[np.nanargmin(values)], part[np.nanargmax(values)]]
    places = np.unique(kept)
    return x[places], y[places]


def _line(name: str, x: np.ndarray, y: np.ndarray, colour: int, **more: object) -> Line:
    x, y = thin(x, y)
    return Line(name, x.tolist(), _numbers(y), colour, **more)


def _validation_lines(validations: Sequence[ValidationRecord]) -> tuple[Line, ...]:
    names = dict.fromkeys(name for record in validations for name in record.scores)
    return tuple(_validation_line(score, _named(score), colour, validations) for colour, score in enumerate(names))


def _named(score: str) -> str:
    return VALIDATION_NAMES.get(score, score)


def _validation_line(score: str, name: str, colour: int, validations: Sequence[ValidationRecord]) -> Line:
    there = [record for record in validations if score in record.scores]
    ends = [record.intervals.get(score, (math.nan, math.nan)) for record in there]
    return Line(
        name,
        [record.update for record in there],
        _numbers(np.array([record.scores[score] for record in there])),
        colour,
        points=True,
        low=_numbers(np.array([low for low, _ in ends])),
        high=_numbers(np.array([high for _, high in ends])),
    )


def _marks(records: Sequence[UpdateRecord], best: BestRecord | None) -> tuple[Mark, ...]:
    """Where the best checkpoint is, where over-optimisation begins, and the first of each warning in a row."""
    marks = []
    if best is not None:
        marks.append(Mark(best.update, "best", "best", best.rule))
        if best.over_optimised_from is not None:
            hint = "From here on the validation falls while the objective still improves."
            marks.append(Mark(best.over_optimised_from, "over-optimised", "warning", hint))
    before = ""
    for record in records:
        if record.warning and record.warning != before:
            marks.append(Mark(record.update, "⚠", "warning", record.warning))
        before = record.warning
    return tuple(marks[:MAX_MARKS])


def _filled(charts: Sequence[Chart]) -> tuple[Chart, ...]:
    """The charts that have something to show, without their empty lines."""
    kept = []
    for chart in charts:
        lines = tuple(line for line in chart.lines if any(value is not None for value in line.y))
        if lines:
            kept.append(Chart(chart.key, chart.title, chart.hint, lines, chart.marks, chart.wide))
    return tuple(kept)


def _numbers(values: np.ndarray) -> list[float | None]:
    """Six digits of each, None for what is not a finite number."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values.tolist()]
