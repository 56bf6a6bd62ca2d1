"""One update of the reference trainer, one prompt at a time, written from its description alone.

It shares no code with `srpo`: it calls the tiny pipeline's transformer and VAE and the tiny CLIP themselves. It is the
oracle of `test_paper.py`.

The generator is consumed in this order: the noise; then s, one prompt after the other.

One choice is not in the description: the schedules' `linspace` is computed in float64 and rounded once. PyTorch's
float32 `linspace` differs from it in the last bit of some levels (6e-8), which moves the gradients of these tiny random
models by up to 1.6e-6, about as far as float32 is from float64 here. So 1e-6 can be asked for on the same levels only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import torch
from diffusers import FluxPipeline

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
POS = ["Natural-lighting", "Detail", "Detailed", "Real"]
NEG = ["Concept art", "Painting", "Anime", "Flat", "Oil"]


@dataclass
class Trace:
    """What happened, in order."""

    noise: torch.Tensor
    x0: list = field(default_factory=list)  # per prompt
    told: list = field(default_factory=list)  # timesteps / 1000 of every transformer call, rollouts first
    guidance: list = field(default_factory=list)
    sigmas: list = field(default_factory=list)  # (sigma, sigma_target) per prompt and branch
    indices: list = field(default_factory=list)
    rewards: list = field(default_factory=list)
    losses: list = field(default_factory=list)


def linspace(num_steps):
    return torch.linspace(1, 0, num_steps + 1, dtype=torch.float64).float()


def shift_3(s):
    return 3 * s / (1 + 2 * s)


def one_update(pipe, clip, prompts, *, step, seed, size, pickscore=False):
    """The trace of one update; the gradients, averaged over prompts, are left in the transformer's parameters."""
    generator = torch.Generator().manual_seed(seed)
    latent = size // 8
    trace = Trace(torch.randn((1, 16, latent, latent), generator=generator, dtype=torch.bfloat16).float())
    draws = [int(torch.randint(5, 995 + 1, (1,), generator=generator)) for _ in prompts]
    ids = FluxPipeline._prepare_latent_image_ids(1, latent // 2, latent // 2, "cpu", torch.float32)

    s50 = shift_3(linspace(50))
    table = torch.linspace(float(s50[5]), float(s50[30 if pickscore else 25]), 1000)
    k_plus = torch.linspace(0.1, 0.5 if pickscore else 0.25, 1000)
    k_minus = torch.linspace(0.6 if pickscore else 0.3, 0.01, 1000)
    scale = 100 / 20 if pickscore else 1

    for prompt, s in zip(prompts, draws, strict=True):
        with torch.no_grad():
            embeds, pooled, text_ids = pipe.encode_prompt(prompt, prompt, max_sequence_length=32)

        def velocity(x, sigma, guidance):
            told = int(1000 * sigma) / 1000
            trace.told.append(told)
            trace.guidance.append(guidance)
            out = pipe.transformer(
                hidden_states=FluxPipeline._pack_latents(x, 1, 16, latent, latent),
                timestep=torch.tensor([told]),
                guidance=torch.tensor([float(guidance)]),
                pooled_projections=pooled,  # noqa: B023 called within this turn of the loop
                encoder_hidden_states=embeds,  # noqa: B023
                txt_ids=text_ids,  # noqa: B023
                img_ids=ids,
                return_dict=False,
            )[0]
            return FluxPipeline._unpack_latents(out, size, size, 8)

        with torch.no_grad():
            x = trace.noise
            schedule = shift_3(linspace(25)).tolist()
            for now, after in pairwise(schedule):
                x = x + (after - now) * velocity(x, now, 2 if pickscore else 1)
            x0 = x
        trace.x0.append(x0)

        words = [POS[step % 4] + ". " + prompt, NEG[step % 5] + ". " + prompt]
        with torch.no_grad():
            tokens = [clip.tokenizer(text, truncation=True, max_length=77, return_tensors="pt") for text in words]
            c_pos, c_neg = (clip.model.get_text_features(**t).pooler_output[0] for t in tokens)
            c_pos, c_neg = c_pos / c_pos.norm(), c_neg / c_neg.norm()

        span = min(1000 - s, 100, s)
        m = max(s - span, 1)
        passes = [
            ("denoise", table[1000 - s - span], table[1000 - s], s),
            ("inversion", table[1000 - m], table[1000 - min(m + span, 1000)], m),
        ]
        for branch, sigma, target, index in passes:
            sigma, target = float(sigma), float(target)
            x_t = sigma * trace.noise + (1 - sigma) * x0
            v = velocity(x_t, sigma, 3.5)
            x0_hat = (x_t + (target - sigma) * v - target * trace.noise) / (1 - target)
            image = (pipe.vae.decode(x0_hat / 0.3611 + 0.1159, return_dict=False)[0] / 2 + 0.5).clamp(0, 1)
            edge = clip.model.config.vision_config.image_size
            small = torch.nn.functional.interpolate(image, (edge, edge), mode="bicubic", antialias=True)
            f_img = clip.model.get_image_features(pixel_values=(small - MEAN) / STD).pooler_output[0]
            f_img = f_img / f_img.norm()
            good, bad = scale * f_img @ c_pos, scale * f_img @ c_neg
            r_denoise = (1 + k_plus[index]) * good - bad
            r_inversion = (1 + k_minus[index]) * bad - good
            reward = r_denoise if branch == "denoise" else r_inversion
            loss = torch.relu(0.7 - reward) / 2
            (loss / len(prompts)).backward()
            trace.sigmas.append((sigma, target))
            trace.indices.append(index)
            trace.rewards.append(reward.item())
            trace.losses.append(loss.item())
    return trace
