"""The miniature's renderer: the pictures that everything small is learnt from."""

from __future__ import annotations

import time
from collections.abc import Iterator

from app.state import Options
from benchmarks.figures import Figure
from benchmarks.scale import Scale
from srpo.miniature.data import training_scenes
from srpo.miniature.renderer import render

BATCH = 64
FIGURES = (Figure("pictures rendered per second", "pictures", at_least=60),)


def measure(options: Options, scale: Scale) -> Iterator[tuple[str, float]]:
    """(name, value) of the figure, over all styles alike."""
    scenes = training_scenes(scale.pictures, seed=0)
    render(scenes[:4])
    started_s = time.perf_counter()
    for start in range(0, len(scenes), BATCH):
        render(scenes[start : start + BATCH])
    yield "pictures rendered per second", len(scenes) / (time.perf_counter() - started_s)
