"""A short run before a run: the first updates of a training, with pictures of fixed prompts and seeds on the way.

Nothing is written: the weights are a copy of its own, which is dropped at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from srpo.evaluation.sampling import sample_images
from srpo.rewards.base import Reward
from srpo.runs import UpdateRecord
from srpo.training import faults
from srpo.training.assemble import assemble
from srpo.training.config import TrainConfig
from srpo.training.trainer import Trainer


@dataclass(frozen=True)
class Moment:
    """The model after an update, or before the first."""

    update: int  # 0: before training
    images: Tensor | None  # (N, 3, H, W) in [0, 1], on the CPU, one for each prompt and seed; None where none were due
    record: UpdateRecord | None  # None before the first update
    reward: Reward  # the run's own


def preview(
    config: TrainConfig,
    prompts: Sequence[str],
    seeds: Sequence[int],
    look: Callable[[], None] = lambda: None,
    every: int = 1,
) -> Iterator[Moment]:
    """The moments of a run of these settings, the untrained model first, without validation or checkpoint.

    Pictures are painted as `config.validation` says, before the first update and after every so many. look: called
    before every forward pass of the transformer; what it raises ends the run. ValueError where the run could not begin,
    or where prompts and seeds differ in number; NonFiniteError as for a run.
    """
    trainer = assemble(config)
    hooks = [transformer.register_forward_pre_hook(lambda *_: look()) for transformer in trainer.transformers]
    try:
        yield Moment(0, _pictures(trainer, prompts, seeds), None, trainer.reward)
        for record in trainer.updates():
            images = _pictures(trainer, prompts, seeds) if record.update % every == 0 else None
            yield Moment(record.update, images, record, trainer.reward)
    finally:
        for hook in hooks:
            hook.remove()
        faults.free_memory(trainer)


def _pictures(trainer: Trainer, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
    chosen, objective = trainer.config.validation, trainer.config.objective
    height, width = objective.all_sizes[0]
    return sample_images(
        trainer.policy,
        prompts,
        seeds,
        num_steps=chosen.num_steps,
        guidance=chosen.guidance,
        height=height,
        width=width,
        batch=objective.prompts_per_forward or len(prompts),
    )
