"""Direct-Align: the gradient path from a reward on clean images to the model's velocity at any noise level.

A rollout of the policy is noised again with noise that is kept. The model covers only a short step (`levels.py`), the
rest of that noise is removed exactly (`flow/recovery.py`), and the image so recovered is scored. What is scored and how
is the signal's business (`srpo.py`): any path can carry any signal.

Both branches of a draw go through the model in one forward pass. Each is then recovered, decoded and scored on its own,
so that the memory of one decoder is enough; the model's own backward pass follows once, with the gradients of both.

B prompts of an update (those of this process), b prompts of one forward pass, C latent channels
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from srpo.flow.guidance import cfg_velocity
from srpo.flow.path import interpolate
from srpo.flow.recovery import Branch, recover_x0
from srpo.flow.samplers import euler
from srpo.flow.schedule import linear_sigmas, shift_sigmas
from srpo.objectives.base import Loss, Rollout, Shard
from srpo.objectives.levels import BranchSteps, Levels, UniformLevels
from srpo.policies.base import Conditioning, Policy
from srpo.rewards.base import Reward
from srpo.rewards.control_words import NUM_INDICES

NO_PROMPT = ""  # the second pass of two-pass guidance sees this


@dataclass(frozen=True)
class Scored:
    """What a signal says of b images: the reward to maximise, and the scores behind it, for the log."""

    reward: Tensor  # (b,) with gradient
    positive: Tensor  # (b,) score under the positive control word; this and the following without gradient
    negative: Tensor  # (b,) score under the negative control word
    plain: Tensor  # (b,) score under the prompt alone: the raw reward


class Signal(Protocol):
    """How a branch's images are rewarded; the inversion branch carries the penalty."""

    def __call__(
        self, reward: Reward, image: Tensor, prompts: Sequence[str], branch: Branch, index: Tensor, update: int
    ) -> Scored:
        """Scores of images (b, 3, H, W) of a branch at discount indices (b,)."""
        ...


@dataclass(frozen=True)
class DirectAlignConfig:
    """Every knob of the path. The defaults are this project's; `training/presets.py` has the paper's."""

    height: int = 128  # pixels
    width: int = 128
    sizes: tuple[tuple[int, int], ...] = ()  # (height, width) buckets, one drawn per rollout; none: height x width
    rollout_steps: int = 25
    rollout_guidance: float = 3.5
    rollout_cfg_scale: float | None = None  # of guidance in two passes, beside the embedding's; None: one pass
    rollout_shift: float | None = None  # constant shift of the rollout's schedule; None: the model's own schedule
    guidance: float = 3.5  # of the training pass
    levels: Levels = field(default_factory=UniformLevels)
    num_injections: int = 1  # draws of noise levels per rollout; losses are averaged over them
    inversion: bool = True  # False: the denoise branch alone
    hinge: float | None = 0.7  # loss = relu(hinge - reward); None: loss = -reward
    discount_shift: float | None = None  # loss times lambda = shift_sigmas(level's place in 0 ... 1, this); None: 1
    image_range: Literal["clamp", "own"] = "clamp"  # "own": brought to 0 ... 1 by its own minimum and maximum
    shared_noise: bool = False  # True: one noise for all prompts of an update
    noise_in_bf16: bool = False  # True: drawn in bf16, as the reference does
    truncate_timestep: bool = False  # True: the model is told int(1000 sigma) / 1000
    prompts_per_forward: int | None = None  # bounds memory; None: all prompts of the update at once

    def __post_init__(self) -> None:
        for name in ("rollout_steps", "num_injections"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.prompts_per_forward is not None and self.prompts_per_forward < 1:
            raise ValueError(f"prompts_per_forward is {self.prompts_per_forward}; expected at least 1, or none")
        for name in ("rollout_guidance", "rollout_cfg_scale", "guidance", "hinge"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{name} is {value}; expected a finite number")
        for name in ("rollout_shift", "discount_shift"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}; expected a finite number above 0, or none")

    @property
    def all_sizes(self) -> tuple[tuple[int, int], ...]:
        """Every (height, width) that an update may have."""
        return self.sizes or ((self.height, self.width),)


class DirectAlign:
    """The objective: `rollout` samples images, `losses` yields one graph per branch and forward pass.

    The generator is consumed in this order: the size, where there are several; the noise; then, for every injection,
    one noise level per prompt. It is consumed for the prompts of all shards.
    """

    def __init__(self, config: DirectAlignConfig, signal: Signal, shard: Shard | None = None) -> None:
        self.config = config
        self.signal = signal
        self.shard = shard or Shard()

    @torch.no_grad()
    def rollout(
        self, policy: Policy, prompts: Sequence[str], cond: Conditioning, generator: torch.Generator
    ) -> Rollout:
        """Samples of the current policy by Euler's method, with the noise they began from."""
        height, width = self._size(generator)
        noise = self._noise(policy.latent_shape(height, width), len(prompts), generator).to(policy.device)
        sigmas = self._rollout_sigmas(policy, height, width)
        no_prompt = policy.encode_prompts([NO_PROMPT]) if self.config.rollout_cfg_scale is not None else None
        parts = [self._sample(policy, noise[part], cond[part], no_prompt, sigmas) for part in self._parts(len(prompts))]
        return Rollout(prompts, cond, torch.cat(parts), noise)

    def offline_rollout(
        self, prompts: Sequence[str], cond: Conditioning, x0: Tensor, noise: Tensor | None, generator: torch.Generator
    ) -> Rollout:
        """Stored clean latents as if they had been sampled; their noise is drawn where they came without one.

        x0 (B, C, H/8, W/8), noise (B, C, H/8, W/8) or None.
        """
        if noise is None:
            noise = self._noise(tuple(x0.shape[1:]), len(prompts), generator).to(x0.device)
        return Rollout(prompts, cond, x0, noise)

    def losses(
        self, policy: Policy, rollout: Rollout, reward: Reward, generator: torch.Generator, update: int
    ) -> Iterator[Loss]:
        """Yields the loss of each branch; together they are the update's mean over prompts, branches and injections.

        With `prompts_per_forward` the prompts come in several parts, each already weighted by its share of them.
        """
        count, drawn = len(rollout.prompts), None
        for _ in range(self.config.num_injections):
            drawn = self.config.levels.draw(self.shard.whole(count), generator, drawn)
            branches = self._branches(drawn[self.shard.part(count)])
            for part in self._parts(count):
                yield from self._losses(policy, rollout, reward, [steps[part] for steps in branches], part, update)

    def _losses(
        self,
        policy: Policy,
        rollout: Rollout,
        reward: Reward,
        branches: Sequence[BranchSteps],
        part: slice,
        update: int,
    ) -> Iterator[Loss]:
        """One forward pass, the loss of each branch on a copy of its velocities, then the model's backward pass."""
        x0, noise, prompts = rollout.x0[part], rollout.noise[part], rollout.prompts[part]
        x_t = [interpolate(x0, noise, steps.sigma.to(x0.device)) for steps in branches]
        told = [self._told_sigmas(steps.sigma) for steps in branches]
        cond = Conditioning.cat([rollout.cond[part]] * len(branches))
        velocity = policy.velocity(torch.cat(x_t), torch.cat(told).to(x0.device), cond, self.config.guidance)
        copied = velocity.detach().requires_grad_()
        for branch, steps in enumerate(branches):
            own = copied[branch * len(x0) : (branch + 1) * len(x0)]
            sigma, sigma_target = steps.sigma.to(x0.device), steps.sigma_target.to(x0.device)
            image = self._image(policy, recover_x0(x_t[branch], own, noise, sigma, sigma_target))
            scored = self.signal(reward, image, prompts, steps.branch, steps.index.to(x0.device), update)
            loss = self._loss(scored.reward, steps)
            num_terms = self.config.num_injections * len(branches)
            yield Loss(loss.sum() / (len(rollout.prompts) * num_terms), _record(steps, scored, loss))
        if copied.grad is not None:  # None where the caller only wanted to see the losses
            velocity.backward(copied.grad)

    def _loss(self, reward: Tensor, steps: BranchSteps) -> Tensor:
        """(b,) before the mean."""
        loss = -reward if self.config.hinge is None else torch.relu(self.config.hinge - reward)
        if self.config.discount_shift is None:
            return loss
        place = (steps.index / (NUM_INDICES - 1)).to(loss.device, loss.dtype)
        return shift_sigmas(place, self.config.discount_shift) * loss

    def _image(self, policy: Policy, x0: Tensor) -> Tensor:
        """(b, 3, H, W) in [0, 1], as the reward sees it."""
        if self.config.image_range == "clamp":
            return policy.decode(x0)
        image = policy.decode(x0, clamp=False)
        lowest, highest = image.amin((1, 2, 3), keepdim=True), image.amax((1, 2, 3), keepdim=True)
        return (image - lowest) / (highest - lowest)

    def _size(self, generator: torch.Generator) -> tuple[int, int]:
        sizes = self.config.all_sizes
        if len(sizes) == 1:
            return sizes[0]
        return sizes[int(torch.randint(len(sizes), (1,), generator=generator))]

    def _noise(self, shape: Sequence[int], count: int, generator: torch.Generator) -> Tensor:
        """(count, *shape) float32 on the generator's device: this shard's part of the noise of all prompts."""
        whole = 1 if self.config.shared_noise else self.shard.whole(count)
        dtype = torch.bfloat16 if self.config.noise_in_bf16 else torch.float32
        noise = torch.randn((whole, *shape), generator=generator, dtype=dtype, device=generator.device).float()
        return noise.expand(count, *shape) if self.config.shared_noise else noise[self.shard.part(count)]

    def _rollout_sigmas(self, policy: Policy, height: int, width: int) -> Tensor:
        if self.config.rollout_shift is None:
            return policy.schedule(self.config.rollout_steps, height, width)
        return shift_sigmas(linear_sigmas(self.config.rollout_steps), self.config.rollout_shift)

    def _sample(
        self, policy: Policy, noise: Tensor, cond: Conditioning, no_prompt: Conditioning | None, sigmas: Tensor
    ) -> Tensor:
        guidance, cfg_scale = self.config.rollout_guidance, self.config.rollout_cfg_scale
        both = None if no_prompt is None else Conditioning.cat([cond, *[no_prompt] * len(cond)])

        def velocity(x_t: Tensor, sigma: float) -> Tensor:
            told = self._told_sigma(sigma)
            if both is None:
                return policy.velocity(x_t, told, cond, guidance)
            return cfg_velocity(*policy.velocity(torch.cat([x_t, x_t]), told, both, guidance).chunk(2), cfg_scale)

        for step in euler(velocity, noise, sigmas):  # noqa: B007 the last step is the sample
            pass
        return step.x_t

    def _told_sigma(self, sigma: float) -> float:
        """The noise level the model is told."""
        return int(1000 * sigma) / 1000 if self.config.truncate_timestep else sigma

    def _told_sigmas(self, sigmas: Tensor) -> Tensor:
        return torch.tensor([self._told_sigma(sigma) for sigma in sigmas.tolist()], dtype=torch.float32)

    def _branches(self, drawn: Tensor) -> list[BranchSteps]:
        levels = self.config.levels
        return [levels.denoise(drawn), levels.inversion(drawn)] if self.config.inversion else [levels.denoise(drawn)]

    def _parts(self, num_prompts: int) -> list[slice]:
        size = self.config.prompts_per_forward or num_prompts
        return [slice(start, start + size) for start in range(0, num_prompts, size)]


def _record(steps: BranchSteps, scored: Scored, loss: Tensor) -> dict[str, float]:
    """Means over the b prompts, prefixed by the branch; one wait for the device. `prompts` is b."""
    values = {
        "positive": scored.positive,
        "negative": scored.negative,
        "difference": scored.positive - scored.negative,
        "plain": scored.plain,
        "reward": scored.reward,
        "loss": loss,  # before it is divided by the number of branches and injections
    }
    means = torch.stack([value.detach().mean() for value in values.values()]).tolist()
    record = dict(zip(values, means, strict=True))
    record["sigma"] = steps.sigma.mean().item()
    record["sigma_target"] = steps.sigma_target.mean().item()
    record["shortened"] = steps.shortened.float().mean().item()  # share of steps that had to be shortened
    return {f"{steps.branch}/{name}": value for name, value in record.items()} | {"prompts": len(loss)}
