"""A measured figure, its goal, and the table of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

LEFT_OUT = "left out"  # so begins the note of a figure that is not to be had here, which is no failure


class LeftOut(RuntimeError):
    """Something that a measurement needs is not here; the message says what."""


@dataclass(frozen=True)
class Figure:
    """One line of the table; without a value it says in `note` why there is none."""

    name: str
    unit: str
    at_most: float | None = None  # the goal, from above
    at_least: float | None = None  # ... or from below
    value: float | None = None
    note: str = ""

    @property
    def goal(self) -> str:
        """The goal in words, empty where there is none."""
        if self.at_most is not None:
            return f"at most {self.at_most:g}"
        return f"at least {self.at_least:g}" if self.at_least is not None else ""

    @property
    def verdict(self) -> str:
        """ "met", "missed", or nothing where there is no goal or no value."""
        if self.value is None or not self.goal:
            return ""
        met = self.value <= self.at_most if self.at_most is not None else self.value >= self.at_least
        return "met" if met else "missed"


def fill(figures: Sequence[Figure], measured: Iterator[tuple[str, float]]) -> list[Figure]:
    """The figures with their values; where the measurement ends early, the rest say why.

    measured: (name of a figure, value) in any order. KeyError for a name that is not among the figures.
    """
    filled = {figure.name: figure for figure in figures}
    reason = LEFT_OUT
    try:
        for name, value in measured:
            filled[name] = replace(filled[name], value=value)
    except LeftOut as error:
        reason = f"{LEFT_OUT}: {error}"
    except (ValueError, OSError, RuntimeError) as error:
        reason = str(error).strip() or type(error).__name__
    return [figure if figure.value is not None else replace(figure, note=reason) for figure in filled.values()]


def table(figures: Iterable[Figure]) -> str:
    """The figures as aligned plain text, one per line."""
    rows = [("figure", "measured", "goal", "")]
    rows += [(f.name, _measured(f), f.goal, f.verdict) for f in figures]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    reasons = [f"not measured: {f.name}: {f.note}" for f in figures if f.value is None]
    return "\n".join([lines[0], "-" * (sum(widths) + 6), *lines[1:], *reasons])


def _measured(figure: Figure) -> str:
    return "-" if figure.value is None else f"{figure.value:.3g} {figure.unit}".rstrip()
