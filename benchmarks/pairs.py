"""The comparison that a visitor waits for: both sides, previews, scores and files included."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

from app.services.compare import compare
from app.services.device import StopFlag
from app.services.models import BASE, SRPO
from app.services.prompts import MINIATURE_EXAMPLES
from app.services.requests import CompareRequest, parse
from app.services.studio import Studio
from app.state import Options
from benchmarks.figures import Figure
from benchmarks.scale import Scale

FIGURES = (
    Figure("seconds per pair, with previews", "s", at_most=3),
    Figure("pairs per minute, with previews", "pairs"),
)


def measure(options: Options, scale: Scale) -> Iterator[tuple[str, float]]:
    """(name, value) of the figures, medians over pairs of different seeds. ValueError where weights are missing."""
    studio = Studio(options)
    try:
        for _ in studio.engine_when_ready(StopFlag()):
            pass
        _paint(studio, 0, 1)  # what happens once only: memory is taken, the preview's colours are fitted
        seconds = statistics.median(_paint(studio, seed, scale.steps) for seed in range(1, scale.pairs + 1))
    finally:
        studio.pictures.close()
    yield "seconds per pair, with previews", seconds
    yield "pairs per minute, with previews", 60 / seconds


def _paint(studio: Studio, seed: int, steps: int) -> float:
    """Seconds of one comparison."""
    side = studio.catalogue.native_side
    settings = {"seed": seed, "steps": steps, "guidance": 3.5, "width": side, "height": side}
    asked = parse(CompareRequest, settings | {"prompt": MINIATURE_EXAMPLES[0], "left": BASE, "right": SRPO})
    started_s = time.perf_counter()
    *_, last = compare(studio, asked, StopFlag())
    if last.phase != "done":
        raise RuntimeError(f"the comparison ended as {last.phase!r}: {last.message}")
    return time.perf_counter() - started_s
