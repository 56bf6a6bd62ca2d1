"""Pictures at FLUX.1-dev's size on random weights: eager and compiled, by each kernel of the attention.

The goals are published figures of 28 steps at 1024 x 1024 on one H200: diffusers as it is 5.58 s, compiled 4.32 s, with
FlashAttention 3 and compiled 3.73 s. The limit is the counted work of the transformer over 790 TFLOP/s.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from app.services.requests import Settings
from app.state import Options
from benchmarks.figures import Figure, LeftOut
from benchmarks.flux_models import FLOP_PER_S, new_policy, size_for
from benchmarks.overhead import GUIDANCE, PROMPT, paint_by_loop, paint_by_pipeline, seconds_of
from benchmarks.scale import Scale
from srpo.policies.acceleration import BACKENDS, Acceleration, available
from srpo.policies.flux import FluxPolicy

WHAT = "1024 x 1024 at 28 steps"
PUBLISHED = {("native", False): 5.58, ("native", True): 4.32, ("cudnn", True): 4.32, ("flash3", True): 3.73}  # seconds
FIGURES = (
    Figure(f"{WHAT}: the limit at 790 TFLOP/s", "s"),
    *(
        Figure(f"{WHAT}: {'compiled' if compiles else 'eager'}, {attention}", "s", PUBLISHED.get((attention, compiles)))
        for compiles in (False, True)
        for attention in BACKENDS
    ),
    Figure(f"{WHAT}: the fastest, share of 790 TFLOP/s", "%"),
    Figure(f"{WHAT}: compiling, once", "s"),
    Figure("FLUX.1-dev: our loop / FluxPipeline", "", at_most=1.03),
)


def measure(options: Options, scale: Scale) -> Iterator[tuple[str, float]]:
    """(name, value) of the figures. LeftOut without CUDA, and for kernels whose packages are not here."""
    size = size_for(options, scale)
    policy, device = new_policy(size, options.device), torch.device(options.device)
    side = size.picture_side
    settings = Settings(seed=0, steps=scale.steps, guidance=GUIDANCE, width=side, height=side)
    limit = picture_flops(policy, settings) / FLOP_PER_S
    yield f"{WHAT}: the limit at 790 TFLOP/s", limit

    policy.pipe.set_progress_bar_config(disable=True)
    ways = [lambda seed, way=way: way(policy, settings, seed) for way in (paint_by_pipeline, paint_by_loop)]
    for way in ways:  # what happens once only
        way(0)
    rounds = np.array([[seconds_of(way, number) for way in ways] for number in range(scale.rounds_of_pictures)])
    yield "FLUX.1-dev: our loop / FluxPipeline", float(np.median(rounds[:, 1] / rounds[:, 0]))

    taken, lacking = [], [name for name in BACKENDS if name not in available(device)]
    for compiles in (False, True):
        for attention in available(device):
            try:
                Acceleration(compiles, attention).apply(policy.transformer)
                began_s = time.perf_counter()
                paint_by_loop(policy, settings, 0)  # what happens once only: compiling
                first_s = time.perf_counter() - began_s
            except (ValueError, RuntimeError) as error:
                lacking.append(f"{attention} ({' '.join(str(error).split())[:120]})")
                continue
            seeds = range(1, scale.rounds_of_pictures + 1)
            seconds = statistics.median(seconds_of(ways[1], seed) for seed in seeds)
            taken.append(seconds)
            yield f"{WHAT}: {'compiled' if compiles else 'eager'}, {attention}", seconds
            if compiles and attention == "native":
                yield f"{WHAT}: compiling, once", max(0.0, first_s - seconds)
    yield f"{WHAT}: the fastest, share of 790 TFLOP/s", 100 * limit / min(taken)
    if lacking:
        raise LeftOut(f"not to be had here: {', '.join(lacking)}")


def picture_flops(policy: FluxPolicy, settings: Settings) -> int:
    """Floating-point operations of all steps of a picture, counted on one evaluation of the transformer."""
    cond = policy.encode_prompts([PROMPT])
    noise = policy.initial_noise(0, settings.height, settings.width)
    with ExitStack() as counted:
        counted.enter_context(torch.no_grad())
        if policy.device.type == "cpu":  # torch does not count the CPU's fused attention
            counted.enter_context(sdpa_kernel(SDPBackend.MATH))
        counter = counted.enter_context(FlopCounterMode(display=False))
        policy.velocity(noise, 1.0, cond, settings.guidance)
    return counter.get_total_flops() * settings.steps
