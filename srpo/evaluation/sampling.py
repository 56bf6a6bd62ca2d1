"""Pictures of a policy for many prompts at once, as every measurement here takes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from srpo.flow.samplers import euler
from srpo.policies.base import Policy


@torch.no_grad()
def sample_images(
    policy: Policy,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    num_steps: int = 28,
    guidance: float = 3.5,
    height: int = 128,
    width: int = 128,
    batch: int = 32,
) -> Tensor:
    """(N, 3, height, width) images on the CPU, one for each prompt and its seed.

    A seed's noise is the same whatever the batch. ValueError where prompts and seeds differ in number.
    """
    if len(prompts) != len(seeds):
        raise ValueError(f"one seed for each prompt is needed: {len(prompts)} prompts came with {len(seeds)} seeds")
    images = []
    for start in range(0, len(prompts), batch):
        chosen = slice(start, start + batch)
        settings = {"num_steps": num_steps, "guidance": guidance, "height": height, "width": width}
        _, x0 = sample_latents(policy, prompts[chosen], seeds[chosen], **settings)
        images.append(policy.decode(x0).cpu())
    return torch.cat(images)


@torch.no_grad()
def sample_latents(
    policy: Policy,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    num_steps: int = 28,
    guidance: float = 3.5,
    height: int = 128,
    width: int = 128,
) -> tuple[Tensor, Tensor]:
    """(noise, x0), (N, C, height/8, width/8) each: the noises of the seeds, and the clean latents made of them."""
    cond = policy.encode_prompts(prompts)
    noise = torch.cat([policy.initial_noise(seed, height, width) for seed in seeds])
    sigmas = policy.schedule(num_steps, height, width)
    *_, last = euler(lambda x_t, sigma: policy.velocity(x_t, sigma, cond, guidance), noise, sigmas)
    return noise, last.x_t
