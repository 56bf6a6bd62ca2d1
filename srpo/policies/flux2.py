"""FLUX.2 klein as a policy: what differs from FLUX.1.

One text encoder, Qwen3, which reads the prompt as a chat and gives three of its layers side by side; no vector of the
whole prompt. The latents are normalised token by token, with the mean and the deviation that the VAE has measured.
Positions have four numbers, and the schedule's shift depends on the number of steps as well.

The distilled models know no guidance. Their bases are guided in two passes, as the pipeline does above 1:

    velocity = v("") + guidance (v(prompt) - v(""))        so guidance 1 is one pass, at half the cost

B batch, C latent channels (32), H W image height and width in pixels, T text tokens, L image tokens
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers import Flux2KleinPipeline
from einops import rearrange
from torch import Tensor

from srpo.flow.packing import flux2_image_ids, flux2_text_ids, pack, unpack
from srpo.flow.path import per_image
from srpo.flow.schedule import flux2_mu, linear_sigmas, shift_sigmas_exponential
from srpo.policies.base import Conditioning
from srpo.policies.families import FLUX2_KLEIN, Family
from srpo.policies.flux import FluxPolicy, TokenCount, one_each


class Flux2KleinPolicy(FluxPolicy):
    """A `Policy` over the parts of a diffusers Flux2KleinPipeline. Latents are unpacked float32 (B, C, H/8, W/8)."""

    family: ClassVar[Family] = FLUX2_KLEIN
    pipeline_class: ClassVar[type] = Flux2KleinPipeline
    parts: ClassVar[tuple[str, ...]] = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
    text_encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)
    shared_settings: ClassVar[tuple[str, ...]] = ("in_channels", "joint_attention_dim")

    @property
    def is_distilled(self) -> bool:
        """Whether the model takes few steps and no guidance."""
        return bool(self.pipe.config.is_distilled)

    def _pipeline(self, parts: Mapping[str, Any]) -> Flux2KleinPipeline:
        return Flux2KleinPipeline(**parts, is_distilled=self.is_distilled)

    def _shifted_sigmas(self, num_steps: int, num_tokens: int) -> Tensor:
        return shift_sigmas_exponential(linear_sigmas(num_steps), flux2_mu(num_tokens, num_steps))

    def initial_noise(self, seed: int, height: int, width: int) -> Tensor:
        """(1, C, H/8, W/8) the noise that Flux2KleinPipeline draws for a CPU generator of that seed, float32.

        It is drawn packed, a channel of all tokens after the other, in the text encoder's precision.
        ValueError for a size that is not a multiple of 16.
        """
        channels, rows, columns = self.latent_shape(height, width)
        generator = torch.Generator().manual_seed(seed)
        shape = (1, 4 * channels, rows // 2, columns // 2)
        drawn = torch.randn(shape, generator=generator, dtype=self.pipe.text_encoder.dtype)
        return unpack(rearrange(drawn, "b c h w -> b (h w) c"), rows, columns).to(self.device, torch.float32)

    # Text

    def _encode(self, prompt: str) -> Conditioning:
        embeds, _ = self.pipe.encode_prompt(prompt, device=self.device, max_sequence_length=self.max_sequence_length)
        return Conditioning(embeds)

    def count_tokens(self, prompt: str) -> TokenCount:
        """The length of the chat around the prompt in Qwen3's tokens, and the most that are read."""
        chat = self.pipe.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        tokens = self.pipe.tokenizer(chat, truncation=False, verbose=False).input_ids
        return TokenCount(len(tokens), self.max_sequence_length)

    # The model

    def velocity(self, x_t: Tensor, sigma: float | Tensor, cond: Conditioning, guidance: float | Tensor) -> Tensor:
        """noise - x0 (B, C, H/8, W/8) as the model sees it, float32.

        x_t (B, C, H/8, W/8); sigma and guidance a number or (B,). Guidance up to 1, or of a distilled model, is one
        pass; above 1 it is two, for all images of the call. ValueError as FluxPolicy's.
        """
        with_text = super().velocity(x_t, sigma, cond, guidance)
        is_guided = guidance > 1 if not isinstance(guidance, Tensor) else bool((guidance > 1).any())
        if self.is_distilled or not is_guided:
            return with_text
        nothing = self.encode_prompts([""])[[0] * len(x_t)]
        without = super().velocity(x_t, sigma, nothing, guidance)
        scale = per_image(one_each("guidance", guidance, x_t).clamp(min=1), x_t)
        return without + scale * (with_text - without)

    def _text_inputs(self, cond: Conditioning, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        return {
            "encoder_hidden_states": cond.prompt_embeds.to(device, dtype),
            "txt_ids": flux2_text_ids(cond.prompt_embeds.shape[1], device),
        }

    def _new_image_ids(self, rows: int, columns: int, device: torch.device) -> Tensor:
        return flux2_image_ids(rows, columns, device)

    # Images

    def _normalized(self, latents: Tensor) -> Tensor:
        mean, std = self._token_statistics(latents)
        return unpack((pack(latents) - mean) / std, *latents.shape[-2:])

    def _denormalized(self, x0: Tensor) -> Tensor:
        mean, std = self._token_statistics(x0)
        return unpack(pack(x0) * std + mean, *x0.shape[-2:])

    def _token_statistics(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, standard deviation) of the numbers of a token, (4 C,) each, in the latents' precision."""
        norm = self.pipe.vae.bn
        variance = norm.running_var.to(latents.device, latents.dtype)
        std = (variance + self.pipe.vae.config.batch_norm_eps).sqrt()
        return norm.running_mean.to(latents.device, latents.dtype), std
