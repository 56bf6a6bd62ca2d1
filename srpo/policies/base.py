"""What the method needs from an image model.

Everything outside an adapter speaks unpacked float32 latents and noise levels `sigma`; how a model wants its tokens
packed, its time scaled or its latents shifted stays inside the adapter.

B batch, C latent channels, H W image height and width in pixels, T text tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts: what the model sees of the text, computed once per prompt."""

    prompt_embeds: Tensor  # (B, T, D) one vector per text token
    pooled: Tensor | None = None  # (B, P) one vector per prompt; None for a model that reads none

    def __len__(self) -> int:
        return self.prompt_embeds.shape[0]

    def __getitem__(self, index: slice | Sequence[int] | Tensor) -> Conditioning:
        """The chosen prompts; `index` keeps the batch axis (a slice, a list or a tensor of positions)."""
        return self._each(lambda part: part[index])

    def to(self, device: str | torch.device) -> Conditioning:
        return self._each(lambda part: part.to(device))

    @property
    def nbytes(self) -> int:
        return self.prompt_embeds.nbytes + (0 if self.pooled is None else self.pooled.nbytes)

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """All prompts of the parts, in order; the parts are of one model, so all have `pooled` or none."""
        pooled = None if parts[0].pooled is None else torch.cat([p.pooled for p in parts])
        return Conditioning(torch.cat([p.prompt_embeds for p in parts]), pooled)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        return Conditioning(change(self.prompt_embeds), None if self.pooled is None else change(self.pooled))


class Policy(Protocol):
    """A text-to-image flow model with its text encoders and its VAE."""

    device: torch.device

    def parameters(self) -> list[torch.nn.Parameter]:
        """The weights a fine-tune may change (the transformer's; text encoders and VAE are frozen)."""
        ...

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, H/8, W/8) of an image of that many pixels. ValueError where the size does not fit the model."""
        ...

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning: ...

    def schedule(self, num_steps: int, height: int, width: int) -> Tensor:
        """The model's own (num_steps + 1,) descending noise levels, 1 ... 0, for an image of that size."""
        ...

    def initial_noise(self, seed: int, height: int, width: int) -> Tensor:
        """(1, C, H/8, W/8) Gaussian latents of a seed, the same on every device, float32."""
        ...

    def velocity(self, x_t: Tensor, sigma: float | Tensor, cond: Conditioning, guidance: float | Tensor) -> Tensor:
        """noise - x0 as the model sees it. x_t (B, C, H/8, W/8); sigma and guidance a number or (B,); float32 out."""
        ...

    def encode_image(self, image: Tensor) -> Tensor:
        """Clean latents (B, C, H/8, W/8) of an image (B, 3, H, W) in [0, 1]: the mode of the VAE's posterior."""
        ...

    def decode(self, x0: Tensor, clamp: bool = True) -> Tensor:
        """Image (B, 3, H, W) of clean latents, differentiable, clamped to [0, 1] unless `clamp` is False."""
        ...


class TrainablePolicy(Policy, Protocol):
    """A policy whose weights a trainer changes, saves and puts back."""

    transformer: torch.nn.Module

    @property
    def weights_name(self) -> str:
        """The file name under which others expect what is trained."""
        ...

    @property
    def weights_metadata(self) -> dict[str, str]:
        """What belongs into the header of that file."""
        ...

    def trained_weights(self) -> dict[str, Tensor]:
        """What is trained, by its name in that file: the tensors themselves, not copies."""
        ...
