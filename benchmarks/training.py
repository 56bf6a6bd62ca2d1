"""SRPO itself: ten updates of the preset `studio`, checkpoints left out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

from app.services.models import Catalogue
from app.state import Options
from benchmarks.figures import Figure
from benchmarks.scale import Scale
from srpo.miniature.world import neutral_prompts
from srpo.objectives.direct_align import DirectAlign
from srpo.policies.flux import FluxPolicy
from srpo.rewards.clip import ClipReward
from srpo.training.presets import studio
from srpo.training.trainer import Trainer

FIGURES = (Figure("ten SRPO updates of 8 prompts", "s"),)


def measure(options: Options, scale: Scale) -> Iterator[tuple[str, float]]:
    """(name, value) of the figure; fewer updates are scaled to ten. ValueError where weights are missing."""
    if options.reward is None:
        raise ValueError("Without a reward nothing can be trained: name one by --reward FOLDER.")
    config = replace(studio(), updates=scale.updates, prompts_per_update=scale.prompts_per_update)
    side = Catalogue(options).native_side
    objective = replace(config.objective, height=side, width=side, rollout_steps=min(scale.steps, 25))
    policy = FluxPolicy.from_pretrained(
        options.model, device=options.device, max_sequence_length=options.max_sequence_length
    )
    reward = ClipReward.from_pretrained(options.reward, device=options.device)
    prompts = [prompt for prompt, _ in neutral_prompts("train")]
    trainer = Trainer(policy, DirectAlign(objective, config.signal), reward, prompts, config)
    started_s = time.perf_counter()
    for _ in trainer.updates():
        pass
    yield FIGURES[0].name, 10 / scale.updates * (time.perf_counter() - started_s)
