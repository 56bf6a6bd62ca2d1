"""Updates at FLUX.1-dev's size on random weights, beside what the GPU allows: a LoRA's and the full weights'.

The text encoders are small, as texts are encoded once a run; all else has the size of FLUX.1-dev and of HPSv2.1's
ViT-H/14. The floor is the counted work over the 790 TFLOP/s of dense bf16 that one H200 sustains.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Iterator
from dataclasses import replace

import torch

from app.state import Options
from benchmarks.figures import Figure
from benchmarks.flux_models import FLOP_PER_S, Size, new_policy, new_reward, size_for
from benchmarks.scale import Scale
from srpo.objectives.direct_align import DirectAlign
from srpo.training.assemble import made_trainable
from srpo.training.config import TrainConfig
from srpo.training.flops import update_flops
from srpo.training.presets import paper, studio_flux
from srpo.training.probe import forget_peak, peak_bytes
from srpo.training.trainer import Trainer

PROMPTS = ("a red ball on a beach", "a blue house in the snow", "a green tree at night", "a white boat at sea")
KINDS = ("LoRA at 512", "full weights at 512", "full weights at 720, preset paper")
WHATS = (
    ("update of 4 prompts", "s"),
    ("its floor at 790 TFLOP/s", "s"),
    ("share of 790 TFLOP/s", "%"),
    ("peak memory", "GB"),
)
FIGURES = tuple(Figure(f"FLUX.1-dev, {kind}: {what}", unit) for kind in KINDS for what, unit in WHATS)


def measure(options: Options, scale: Scale) -> Iterator[tuple[str, float]]:
    """(name, value) of the figures. LeftOut without CUDA, but for a quick look, which takes a small model."""
    size = size_for(options, scale)
    for kind in KINDS:
        values = _measured(settings(size, options.device, kind), size, scale.rounds_of_flux)
        for (what, _), value in zip(WHATS, values, strict=True):
            yield f"FLUX.1-dev, {kind}: {what}", value


def settings(size: Size, device: str, kind: str) -> TrainConfig:
    """A preset with four prompts per update; full weights as they fit one card, which float32 masters do not."""
    config, side = (paper(), size.paper_side) if kind.endswith("paper") else (studio_flux(), size.side)
    config = replace(
        config,
        device=device,
        max_sequence_length=size.text_tokens,
        objective=replace(config.objective, height=side, width=side),
        prompts_per_update=len(PROMPTS),
    )
    if kind.startswith("LoRA"):
        return config
    return replace(config, weights="full", numerics="bf16_stochastic", optimizer=size.optimizer)


def _measured(config: TrainConfig, size: Size, rounds: int) -> tuple[float, float, float, float]:
    """Seconds of an update, its floor in seconds, the share of the floor in percent, and the peak memory in GB."""
    forget_peak(config.device)
    base = new_policy(size, config.device, checkpoint_decode=config.checkpoint_decode)
    policy = made_trainable(base, config)
    reward = new_reward(size, config.device)
    trainer = Trainer(policy, DirectAlign(config.objective, config.signal), reward, list(PROMPTS), config)
    trainer.run_update()  # what happens once only: texts, memory
    seconds = statistics.median(trainer.run_update().seconds for _ in range(rounds))
    peak = peak_bytes(config.device)
    floor = update_flops(config, policy, reward) / FLOP_PER_S
    del trainer, base, policy, reward
    gc.collect()
    if config.device.startswith("cuda"):
        torch.cuda.empty_cache()
    return seconds, floor, 100 * floor / seconds, peak / 1e9
