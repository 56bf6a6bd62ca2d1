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
    sigmas = policy.schedule(num_steps, height, width)
    images = []
    for start in range(0, len(prompts), batch):
        chosen = slice(start, start + batch)
        cond = policy.encode_prompts(prompts[chosen])
        noise = torch.cat([policy.initial_noise(seed, height, width) for seed in seeds[chosen]])
        *_, last = euler(lambda x_t, sigma, cond=cond: policy.velocity(x_t, sigma, cond, guidance), noise, sigmas)
        images.append(policy.decode(last.x_t).cpu())
    return torch.cat(images)
