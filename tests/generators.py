"""What tests of generators share."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

S = TypeVar("S")
R = TypeVar("R")


def finished(steps: Generator[S, None, R]) -> tuple[list[S], R]:
    """(what was yielded on the way, what is returned)."""
    said: list[S] = []
    try:
        while True:
            said.append(next(steps))
    except StopIteration as end:
        return said, end.value
