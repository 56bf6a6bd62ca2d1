"""The views inside the method: the grid of recoveries of a shipped picture, and the table of a reward's words."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

from app.services.device import StopFlag
from app.services.models import BASE
from app.services.prompts import MINIATURE_EXAMPLES
from app.services.recoveries import Kept, Recoveries, examples, recoveries
from app.services.recovery_requests import D_SIGMAS, SIGMAS, RecoverRequest
from app.services.requests import parse
from app.services.studio import Studio
from app.services.words import SeeRequest, see
from app.state import Options
from benchmarks.figures import Figure
from benchmarks.scale import Scale

PICTURES, WORDS = 8, 12

FIGURES = (
    Figure("recoveries: first cell", "s", at_most=1),
    Figure("recoveries: 6 levels x 5 rows, one noise", "s", at_most=4),
    Figure(f"scores of {PICTURES} pictures under {WORDS} words", "s", at_most=2),
)


def measure(options: Options, scale: Scale) -> Iterator[tuple[str, float]]:
    """(name, value) of the figures, medians over as many tries as pairs are painted. ValueError without weights."""
    studio = Studio(options)
    try:
        for _ in studio.engine_when_ready(StopFlag()):
            pass
        grids = [_grid(studio, number) for number in range(1 + scale.pairs)][1:]  # after what happens once only
        yield FIGURES[0].name, statistics.median(first for first, _ in grids)
        yield FIGURES[1].name, statistics.median(whole for _, whole in grids)
        yield FIGURES[2].name, statistics.median([_table(studio, number) for number in range(1 + scale.pairs)][1:])
    finally:
        studio.pictures.close()


def _grid(studio: Studio, seed: int) -> tuple[float, float]:
    """Seconds until the first cell, and until all of them, are there; the noises for the curves come after that."""
    side, example = studio.catalogue.native_side, examples()[seed % len(examples())]
    settings = {"seed": seed, "width": side, "height": side, "prompt": example.prompt, "painter": BASE}
    asked = {"source": "example", "models": [BASE], "sigmas": SIGMAS, "d_sigmas": D_SIGMAS, "noise_seed": seed}
    started_s, first_s = time.perf_counter(), None
    for view in recoveries(studio, parse(RecoverRequest, settings | asked), None, example.name, Kept(), StopFlag()):
        filled = _filled(view)
        if first_s is None and any(filled):
            first_s = time.perf_counter() - started_s
        if filled and all(filled):
            return first_s, time.perf_counter() - started_s
    raise RuntimeError(f"the grid ended as {view.phase!r}: {view.message}")


def _filled(view: Recoveries) -> list[bool]:
    return [cell is not None for row in view.rows for cell in row.cells]


def _table(studio: Studio, seed: int) -> float:
    """Seconds from the last picture to the table of all scores."""
    words = {side: [f"{side} {number}" for number in range(WORDS // 2)] for side in ("positive", "negative")}
    side = studio.catalogue.native_side
    asked = {"words": words, "model": BASE, "prompts": MINIATURE_EXAMPLES[0], "seed": seed, "num_seeds": PICTURES}
    began_s = None
    for view in see(studio, parse(SeeRequest, asked | {"steps": 1, "width": side, "height": side}), StopFlag()):
        if view.phase == "done":
            return time.perf_counter() - began_s
        if len(view.pictures) == PICTURES:
            began_s = time.perf_counter()
    raise RuntimeError(f"the table ended as {view.phase!r}: {view.message}")
