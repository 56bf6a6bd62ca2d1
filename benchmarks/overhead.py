"""Our way from a prompt to a picture over FluxPipeline's own: the same text, noise, schedule and decoding.

The three ways take turns, so that whatever else the machine does meets them alike; each ratio is the median over the
rounds of ratios within a round.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from app.services.device import StopFlag
from app.services.engine import Engine, Step, to_pil
from app.services.models import Catalogue
from app.services.pictures import data_uri
from app.services.prompts import MINIATURE_EXAMPLES
from app.services.requests import Settings
from app.state import Options
from benchmarks.figures import Figure
from benchmarks.scale import Scale
from srpo.flow.packing import pack
from srpo.flow.samplers import euler
from srpo.policies.flux import FluxPolicy

GUIDANCE = 3.5
PROMPT = MINIATURE_EXAMPLES[0]

FIGURES = (
    Figure("FluxPipeline alone", "s"),
    Figure("our loop / FluxPipeline", "", at_most=1.05),
    Figure("our loop with previews / FluxPipeline", "", at_most=1.3),
    Figure("largest difference of the pictures", "levels of 255", at_most=1),
)


def measure(options: Options, scale: Scale) -> Iterator[tuple[str, float]]:
    """(name, value) of the figures. ValueError where weights are missing."""
    engine = Engine.load(options)
    engine.base.pipe.set_progress_bar_config(disable=True)
    side = Catalogue(options).native_side
    settings = Settings(seed=0, steps=scale.steps, guidance=GUIDANCE, width=side, height=side)
    ways = [
        lambda seed: paint_by_pipeline(engine.base, settings, seed),
        lambda seed: paint_by_loop(engine.base, settings, seed),
        lambda seed: _with_previews(engine, settings, seed),
    ]
    for way in ways:  # what happens once only
        way(0)
    seconds = np.array([[seconds_of(way, number) for way in ways] for number in range(scale.rounds)])  # (rounds, ways)
    yield "FluxPipeline alone", statistics.median(seconds[:, 0])
    ratios = np.median(seconds / seconds[:, :1], axis=0)
    yield "our loop / FluxPipeline", float(ratios[1])
    yield "our loop with previews / FluxPipeline", float(ratios[2])
    pictures = [np.asarray(way(0), dtype=np.float64) for way in ways]
    yield "largest difference of the pictures", max(abs(picture - pictures[0]).max() for picture in pictures[1:])


def paint_by_pipeline(policy: FluxPolicy, settings: Settings, seed: int) -> Image.Image:
    """The picture of PROMPT by FluxPipeline's own call."""
    return policy.pipe(
        PROMPT,
        height=settings.height,
        width=settings.width,
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance,
        latents=pack(policy.initial_noise(seed, settings.height, settings.width)).to(policy.transformer.dtype),
        max_sequence_length=policy.max_sequence_length,
    ).images[0]


@torch.no_grad()
def paint_by_loop(policy: FluxPolicy, settings: Settings, seed: int) -> Image.Image:
    """The same picture by our loop."""
    cond = policy.encode_prompts([PROMPT])

    def velocity(x_t: Tensor, sigma: float) -> Tensor:
        return policy.velocity(x_t, sigma, cond, settings.guidance)

    noise = policy.initial_noise(seed, settings.height, settings.width)
    *_, last = euler(velocity, noise, policy.schedule(settings.steps, settings.height, settings.width))
    return to_pil(policy.decode(last.x_t))


def _with_previews(engine: Engine, settings: Settings, seed: int) -> Image.Image:
    """As the page does it for one side."""
    cond = engine.encode(PROMPT)
    for event in engine.paint([engine.base], cond, settings, seed, StopFlag()):
        if isinstance(event, Step):
            data_uri(event.previews[0])
    return to_pil(event.images[0])


def seconds_of(way: Callable[[int], Image.Image], seed: int) -> float:
    """The time from the call to the finished picture."""
    started_s = time.perf_counter()
    way(seed)
    return time.perf_counter() - started_s
