"""How near a model comes to a tuned one, with the distance of the untuned one for a yardstick.

All start from the same noises, with the same texts and settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from srpo.evaluation.recovery_errors import psnr
from srpo.evaluation.sampling import sample_latents
from srpo.flow.path import interpolate
from srpo.policies.base import Policy

SIGMAS = (0.9, 0.6, 0.3)  # noise levels at which velocities are compared


@dataclass(frozen=True)
class Fidelity:
    """Over prompts and seeds. Of the ratios, 0 is the tuned model itself, 1 as far from it as the base."""

    velocity_error: float  # |v - v_tuned| / |v_base - v_tuned|
    picture_error: float  # mean |picture - tuned's| / mean |base's - tuned's|
    psnr_db: float  # of its pictures against the tuned model's
    base_psnr_db: float  # of the base's


@torch.no_grad()
def fidelity(
    base: Policy,
    tuned: Policy,
    ours: Policy,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    num_steps: int,
    guidance: float,
    side: int,
) -> Fidelity:
    """`ours` beside `tuned` at every seed of every prompt; side in pixels, pictures are square."""
    settings = {"num_steps": num_steps, "guidance": guidance, "height": side, "width": side}
    policies = (base, tuned, ours)
    errors, distances, gaps, base_gaps, ratios, base_ratios = ([] for _ in range(6))
    for prompt in prompts:
        cond = base.encode_prompts([prompt])
        for seed in seeds:
            made = [sample_latents(policy, [prompt], [seed], **settings) for policy in policies]
            noise, x0 = made[1]
            for sigma in SIGMAS:
                x_t = interpolate(x0, noise, sigma)  # on the tuned model's own way
                plain, wanted, found = (policy.velocity(x_t, sigma, cond, guidance) for policy in policies)
                errors.append((found - wanted).square().sum())
                distances.append((plain - wanted).square().sum())
            plain, wanted, found = (base.decode(latents) for _, latents in made)
            gaps.append((found - wanted).abs().mean())
            base_gaps.append((plain - wanted).abs().mean())
            ratios.append(float(psnr(found, wanted).mean()))
            base_ratios.append(float(psnr(plain, wanted).mean()))
    velocity_error = float((torch.stack(errors).sum() / torch.stack(distances).sum().clamp_min(1e-30)).sqrt())
    picture_error = float(torch.stack(gaps).sum() / torch.stack(base_gaps).sum().clamp_min(1e-30))
    return Fidelity(velocity_error, picture_error, sum(ratios) / len(ratios), sum(base_ratios) / len(base_ratios))
