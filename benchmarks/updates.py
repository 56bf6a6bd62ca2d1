"""Our update beside the same update as the reference trainer does it: same draws, same gradient, other order of work.

There, one prompt at a time goes through rollout and both branches, each branch in a pass of its own; texts are encoded
anew for every pass, the VAE's own weights take gradients that nobody uses, and autograd's anomaly mode is on.
"""

from __future__ import annotations

import statistics
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace

import torch

from app.services.models import Catalogue
from app.state import Options
from benchmarks.figures import Figure
from benchmarks.scale import Scale
from srpo.flow.path import interpolate
from srpo.flow.recovery import recover_x0
from srpo.flow.samplers import euler
from srpo.miniature.world import neutral_prompts
from srpo.objectives.direct_align import DirectAlign
from srpo.policies.flux import FluxPolicy
from srpo.rewards.clip import ClipReward
from srpo.training.order import prompts_of_update, update_generator
from srpo.training.presets import studio
from srpo.training.trainer import Trainer

FIGURES = (
    Figure("update of 8 prompts, ours", "s"),
    Figure("update of 8 prompts, as the reference works", "s"),
    Figure("the reference's way / ours", "", at_least=3),
    Figure("largest difference of the gradients, relative", "", at_most=1e-3),
)


def measure(options: Options, scale: Scale) -> Iterator[tuple[str, float]]:
    """(name, value) of the figures, medians over rounds in which both take their turn. ValueError without weights."""
    trainer = make_trainer(options, scale)
    ours(trainer), reference(trainer)  # what happens once only
    seconds = [(_seconds(ours, trainer), _seconds(reference, trainer)) for _ in range(scale.rounds)]
    yield FIGURES[0].name, statistics.median(own for own, _ in seconds)
    yield FIGURES[1].name, statistics.median(theirs for _, theirs in seconds)
    yield FIGURES[2].name, statistics.median(theirs / own for own, theirs in seconds)
    gradient, expected = ours(trainer), reference(trainer)
    yield FIGURES[3].name, ((gradient - expected).norm() / expected.norm()).item()


def make_trainer(options: Options, scale: Scale) -> Trainer:
    """A trainer of `studio` on the model of the options."""
    config = replace(studio(), prompts_per_update=scale.prompts_per_update)
    side = Catalogue(options).native_side
    objective = replace(config.objective, height=side, width=side, rollout_steps=min(scale.steps, 12))
    config = replace(config, objective=objective)
    policy = FluxPolicy.from_pretrained(
        options.model, device=options.device, max_sequence_length=options.max_sequence_length
    )
    reward = ClipReward.from_pretrained(options.reward, device=options.device)
    prompts = [prompt for prompt, _ in neutral_prompts("train")]
    return Trainer(policy, DirectAlign(objective, config.signal), reward, prompts, config)


def ours(trainer: Trainer) -> torch.Tensor:
    """The gradient of the trainer's first update, as the trainer computes it."""
    trainer.optimizer.zero_grad(set_to_none=True)
    rollout, generator = _rollout(trainer)
    for loss in trainer.objective.losses(trainer.policy, rollout, trainer.reward, generator, 1):
        loss.value.backward()
    return _gradient(trainer)


def reference(trainer: Trainer) -> torch.Tensor:
    """The same gradient, one prompt and one branch at a time."""
    trainer.optimizer.zero_grad(set_to_none=True)
    policy, config = trainer.policy, trainer.objective.config
    vae, count = policy.pipe.vae, trainer.config.prompts_per_update
    prompts = prompts_of_update(trainer.prompts, trainer.config.seed, 1, count)
    generator = update_generator(trainer.config.seed, 1)
    shape = policy.latent_shape(config.height, config.width)
    noises = torch.randn((count, *shape), generator=generator).to(policy.device)
    drawn = config.levels.draw(count, generator)
    sigmas = policy.schedule(config.rollout_steps, config.height, config.width)
    kept = policy._text_cache, trainer.reward._text_cache
    policy._text_cache, trainer.reward._text_cache = OrderedDict(), OrderedDict()
    vae.requires_grad_(True)
    with torch.autograd.set_detect_anomaly(True, check_nan=True):
        for number, prompt in enumerate(prompts):
            noise, one = noises[[number]], slice(number, number + 1)
            with torch.no_grad():
                cond = _encoded_anew(trainer, prompt)
                *_, last = euler(
                    lambda x_t, sigma, cond=cond: policy.velocity(x_t, sigma, cond, config.rollout_guidance),
                    noise,
                    sigmas,
                )
            for steps in (config.levels.denoise(drawn)[one], config.levels.inversion(drawn)[one]):
                cond = _encoded_anew(trainer, prompt)
                sigma, target = steps.sigma.to(policy.device), steps.sigma_target.to(policy.device)
                x_t = interpolate(last.x_t, noise, sigma)
                velocity = policy.velocity(x_t, sigma, cond, config.guidance)
                image = policy.decode(recover_x0(x_t, velocity, noise, sigma, target))
                scored = trainer.objective.signal(trainer.reward, image, [prompt], steps.branch, steps.index, 1)
                (-scored.reward.sum() / (2 * count)).backward()
    vae.requires_grad_(False)
    vae.zero_grad(set_to_none=True)
    policy._text_cache, trainer.reward._text_cache = kept
    return _gradient(trainer)


def _rollout(trainer: Trainer):
    config = trainer.config
    prompts = prompts_of_update(trainer.prompts, config.seed, 1, config.prompts_per_update)
    generator = update_generator(config.seed, 1)
    cond = trainer.policy.encode_prompts(prompts)
    return trainer.objective.rollout(trainer.policy, prompts, cond, generator), generator


def _encoded_anew(trainer: Trainer, prompt: str):
    """The prompt as the model sees it, and the reward's texts forgotten: both are encoded for this pass alone."""
    trainer.policy._text_cache.clear()
    trainer.reward._text_cache.clear()
    return trainer.policy.encode_prompts([prompt])


def _gradient(trainer: Trainer) -> torch.Tensor:
    return torch.cat([weight.grad.flatten() for weight in trainer.parameters])


def _seconds(way, trainer: Trainer) -> float:
    started_s = time.perf_counter()
    way(trainer)
    return time.perf_counter() - started_s
