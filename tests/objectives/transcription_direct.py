"""One update of the later reference trainer (`direct`), one prompt at a time, written from its description alone.

As `transcription.py` it shares no code with `srpo`. That trainer is for another model: here its two passes of guidance
and its training pass tell FLUX guidance 1, which is no distilled guidance.

The generator is consumed in this order: the noise; then s of every prompt for the first draw; then for the second.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import torch
from diffusers import FluxPipeline

from tests.objectives.transcription import MEAN, STD, linspace, shift_3

POS = ["Natural-lighting", "Detail", "Detailed", "Real"]
NEG = ["Concept art", "Painting", "Anime"]
T = 100


@dataclass
class Trace:
    """What happened, by prompt; the draws of a prompt one after the other."""

    noise: torch.Tensor
    x0: list = field(default_factory=list)
    sigmas: list = field(default_factory=list)  # (sigma, sigma_target)
    rewards: list = field(default_factory=list)
    losses: list = field(default_factory=list)


def one_update(pipe, clip, prompts, *, step, seed, size, rollout_steps=26):
    """The trace of one update; the gradients, averaged over prompts, are left in the transformer's parameters.

    step: counts from 0.
    """
    generator = torch.Generator().manual_seed(seed)
    latent = size // 8
    trace = Trace(torch.randn((1, 16, latent, latent), generator=generator, dtype=torch.bfloat16).float())
    draws = [[int(torch.randint(2, T - 2 + 1, (1,), generator=generator)) for _ in prompts] for _ in range(2)]
    ids = FluxPipeline._prepare_latent_image_ids(1, latent // 2, latent // 2, "cpu", torch.float32)
    discount = shift_3(torch.linspace(0, 1, T + 1))
    table = torch.linspace(0.9, 0.2, T)

    for number, prompt in enumerate(prompts):
        with torch.no_grad():
            seen = {text: pipe.encode_prompt(text, text, max_sequence_length=32) for text in (prompt, "")}

        def velocity(packed, sigma, text):
            embeds, pooled, text_ids = seen[text]  # noqa: B023 called within this turn of the loop
            return pipe.transformer(
                hidden_states=packed,
                timestep=torch.tensor([int(1000 * sigma) / 1000]),
                guidance=torch.tensor([1.0]),
                pooled_projections=pooled,
                encoder_hidden_states=embeds,
                txt_ids=text_ids,
                img_ids=ids,
                return_dict=False,
            )[0]

        noise = FluxPipeline._pack_latents(trace.noise, 1, 16, latent, latent)
        with torch.no_grad():
            x = noise
            for now, after in pairwise(shift_3(linspace(rollout_steps)).tolist()):
                with_prompt, without = velocity(x, now, prompt), velocity(x, now, "")
                guided = without + 4 * (with_prompt - without)
                scale = torch.norm(with_prompt, dim=-1, keepdim=True) / torch.norm(guided, dim=-1, keepdim=True)
                x = x + (after - now) * guided * scale
            x0 = x
        trace.x0.append(FluxPipeline._unpack_latents(x0, size, size, 8))

        texts = [POS[step % 4] + ". " + prompt, NEG[step % 3] + ". " + prompt]
        with torch.no_grad():
            tokens = [clip.tokenizer(text, truncation=True, max_length=77, return_tensors="pt") for text in texts]
            c_pos, c_neg = (clip.model.get_text_features(**t).pooler_output[0] for t in tokens)
            c_pos, c_neg = c_pos / c_pos.norm(), c_neg / c_neg.norm()

        span = 41
        for draw in range(2):
            s = draws[draw][number]
            span = min(T - s, span, s)
            sigma, target = float(table[T - s - span]), float(table[T - s])
            x_t = sigma * noise + (1 - sigma) * x0
            x0_hat = (x_t + (target - sigma) * velocity(x_t, sigma, prompt) - target * noise) / (1 - target)
            latents = FluxPipeline._unpack_latents(x0_hat, size, size, 8)
            image = pipe.vae.decode(latents / 0.3611 + 0.1159, return_dict=False)[0]
            image = (image - image.min()) / (image.max() - image.min())
            edge = clip.model.config.vision_config.image_size
            small = torch.nn.functional.interpolate(image, (edge, edge), mode="bicubic", antialias=True)
            f_img = clip.model.get_image_features(pixel_values=(small - MEAN) / STD).pooler_output[0]
            f_img = f_img / f_img.norm()
            reward = f_img @ c_pos - f_img @ c_neg
            loss = -reward * discount[s] / 2
            (loss / len(prompts)).backward()
            trace.sigmas.append((sigma, target))
            trace.rewards.append(reward.item())
            trace.losses.append(loss.item())
    return trace
