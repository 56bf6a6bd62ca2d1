"""Our update beside the same update as the reference trainer does it: same draws, same step, other order of work.

There, one prompt at a time goes through rollout and both branches, each branch in a pass of its own; the texts of model
and reward are encoded anew for every pass, the VAE's own weights take gradients that nobody uses, and anomaly mode is
on. What only a large model needs, the recomputed activations of its transformer, is left out of both.
Ours is the trainer as a run has it; the reference's way is written out here on torch's own layers.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from app.state import Options
from benchmarks.figures import Figure
from benchmarks.scale import Scale
from benchmarks.training import assignments
from srpo.flow.path import interpolate
from srpo.flow.recovery import recover_x0
from srpo.objectives.levels import BranchSteps
from srpo.policies.base import Conditioning
from srpo.policies.flux import FluxPolicy
from srpo.rewards.clip import ClipReward
from srpo.rewards.control_words import cfg_like
from srpo.training.assemble import assemble
from srpo.training.config import TrainConfig, read_prompts, with_settings
from srpo.training.order import prompts_of_update, update_generator
from srpo.training.presets import studio

FIGURES = (
    Figure("update of 8 prompts, ours", "s"),
    Figure("update of 8 prompts, as the reference works", "s"),
    Figure("the reference's way / ours", "", at_least=3),
    Figure("largest difference of the gradients, relative", "", at_most=1e-3),
)


def measure(options: Options, scale: Scale) -> Iterator[tuple[str, float]]:
    """(name, value) of the figures, medians over rounds in which both take their turn. ValueError without weights."""
    config = settings(options, scale)
    ours, reference = assemble(config), Reference(config)
    ours.run_update(), reference.run_update()  # what happens once only; both have the gradient of the first update now
    gradient, expected = flat_gradient(ours.parameters), flat_gradient(reference.parameters)
    seconds = [(_seconds(ours.run_update), _seconds(reference.run_update)) for _ in range(scale.rounds)]
    yield FIGURES[0].name, statistics.median(own for own, _ in seconds)
    yield FIGURES[1].name, statistics.median(theirs for _, theirs in seconds)
    yield FIGURES[2].name, statistics.median(theirs / own for own, theirs in seconds)
    yield FIGURES[3].name, ((gradient - expected).norm() / expected.norm()).item()


def settings(options: Options, scale: Scale) -> TrainConfig:
    """The preset `studio`, without validation, on the model of the options. ValueError without a reward."""
    return with_settings(studio(), [*assignments(options, scale), "validation.every=0", f"updates={1 + scale.rounds}"])


class Reference:
    """The reference's way of working, with the settings of a run of ours: `cfg_like`, both branches, no hinge."""

    def __init__(self, config: TrainConfig) -> None:
        self.config, self.path, self.prompts = config, config.objective, read_prompts(config.prompts)
        length = config.max_sequence_length
        self.policy = FluxPolicy.from_pretrained(config.model, device=config.device, max_sequence_length=length)
        self.reward = ClipReward.from_pretrained(config.reward, device=config.device)
        self.policy.pipe.vae.requires_grad_(True)
        self.parameters = self.policy.parameters()
        self.optimizer = torch.optim.AdamW(
            self.parameters, config.lr, config.betas, eps=config.eps, weight_decay=config.weight_decay
        )
        self.update = 0

    def run_update(self) -> None:
        """The next update."""
        self.update += 1
        config, path, policy = self.config, self.path, self.policy
        count = config.prompts_per_update
        generator = update_generator(config.seed, self.update)
        shape = policy.latent_shape(path.height, path.width)
        noises = torch.randn((count, *shape), generator=generator).to(policy.device)
        drawn = path.levels.draw(count, generator)
        prompts = prompts_of_update(self.prompts, config.seed, self.update, count)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autograd.set_detect_anomaly(True, check_nan=True):
            for number, prompt in enumerate(prompts):
                noise, level = noises[[number]], drawn[number : number + 1]
                x0 = self._rollout(prompt, noise)
                for steps in (path.levels.denoise(level), path.levels.inversion(level)):
                    (-self._branch_reward(prompt, x0, noise, steps) / (2 * count)).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, config.clip_norm)
        self.optimizer.step()

    @torch.no_grad()
    def _rollout(self, prompt: str, noise: Tensor) -> Tensor:
        """(1, C, H/8, W/8) the picture of one prompt by Euler's method."""
        cond, x_t = self._encoded(prompt), noise
        sigmas = self.policy.schedule(self.path.rollout_steps, self.path.height, self.path.width).tolist()
        for sigma, sigma_next in pairwise(sigmas):
            x_t = x_t + (sigma_next - sigma) * self.policy.velocity(x_t, sigma, cond, self.path.rollout_guidance)
        return x_t

    def _branch_reward(self, prompt: str, x0: Tensor, noise: Tensor, steps: BranchSteps) -> Tensor:
        """() the reward of one prompt's picture, recovered after one pass of the model."""
        policy, signal = self.policy, self.config.signal
        sigma, sigma_target, index = (
            value.to(policy.device) for value in (steps.sigma, steps.sigma_target, steps.index)
        )
        x_t = interpolate(x0, noise, sigma)
        velocity = policy.velocity(x_t, sigma, self._encoded(prompt), self.path.guidance)
        image = policy.decode(recover_x0(x_t, velocity, noise, sigma, sigma_target))
        words = signal.words.positive_for(self.update), signal.words.negative_for(self.update)
        self.reward._text_cache.clear()
        wanted, unwanted = (self.reward.embed_text([signal.words.apply(word, prompt)]) for word in words)
        f_img = self.reward.embed_image(image)
        if steps.branch == "denoise":
            return cfg_like(f_img, wanted, unwanted, signal.discounts.k_positive(index)).sum()
        return cfg_like(f_img, unwanted, wanted, signal.discounts.k_negative(index)).sum()

    def _encoded(self, prompt: str) -> Conditioning:
        """The prompt as the model sees it, encoded anew."""
        self.policy._text_cache.clear()
        return self.policy.encode_prompts([prompt])


def flat_gradient(parameters: list[torch.nn.Parameter]) -> Tensor:
    """All gradients in one row, as the last update has clipped them."""
    return torch.cat([weight.grad.flatten() for weight in parameters])


def _seconds(work: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    work()
    return time.perf_counter() - started_s
