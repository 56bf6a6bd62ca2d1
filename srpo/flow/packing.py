"""FLUX's tokens: every 2 x 2 square of latents is one token, with its row and column as its position.

FLUX.2 packs alike; its positions have a fourth number, which is an image's 0 and counts the tokens of a text.

C latent channels, h w latent height and width, L = (h / 2) (w / 2) image tokens, T text tokens
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

PATCH = 2  # latents per side of a token


def pack(latents: Tensor) -> Tensor:
    """(B, L, 4 C) tokens of latents (B, C, h, w), row by row. ValueError where h or w is odd."""
    _require_even(*latents.shape[-2:])
    return rearrange(latents, "b c (h p) (w q) -> b (h w) (c p q)", p=PATCH, q=PATCH)


def unpack(packed: Tensor, height: int, width: int) -> Tensor:
    """Latents (B, C, height, width) of tokens (B, L, 4 C); `height` and `width` count latents, not pixels.

    ValueError where the size is odd or has another number of tokens.
    """
    _require_even(height, width)
    rows, columns = height // PATCH, width // PATCH
    if packed.shape[1] != rows * columns:
        raise ValueError(f"Latents of {height} x {width} are {rows * columns} tokens, not {packed.shape[1]}.")
    return rearrange(packed, "b (h w) (c p q) -> b c (h p) (w q)", h=rows, p=PATCH, q=PATCH)


def image_ids(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """(L, 3) positions (0, row, column) of the tokens of latents height x width, float32. ValueError where odd."""
    _require_even(height, width)
    rows, columns = torch.arange(height // PATCH), torch.arange(width // PATCH)
    grid = torch.cartesian_prod(torch.zeros(1, dtype=torch.long), rows, columns)
    return grid.to(device, torch.float32)


def text_ids(num_tokens: int, device: torch.device | None = None) -> Tensor:
    """(T, 3) positions of text tokens, all zero: FLUX gives text no place. float32."""
    return torch.zeros(num_tokens, 3, device=device)


def flux2_image_ids(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """(L, 4) positions (0, row, column, 0) of the tokens of latents height x width, float32. ValueError where odd."""
    return F.pad(image_ids(height, width, device), (0, 1))


def flux2_text_ids(num_tokens: int, device: torch.device | None = None) -> Tensor:
    """(T, 4) positions (0, 0, 0, place in the text) of text tokens, float32."""
    return F.pad(torch.arange(num_tokens, dtype=torch.float32, device=device)[:, None], (3, 0))


def _require_even(height: int, width: int) -> None:
    if height % PATCH or width % PATCH:
        raise ValueError(f"Latents are packed in squares of 2 x 2: their size must be even, not {height} x {width}.")
