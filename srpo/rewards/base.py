"""What the method needs from a reward: differentiable scores of images, by text.

B images, N texts, D embedding dimensions.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor


@runtime_checkable
class Reward(Protocol):
    """Scores images. Higher is better."""

    name: str

    def score(self, image: Tensor, texts: Sequence[str]) -> Tensor:
        """(B,) scores of images (B, 3, H, W) in [0, 1] under one text each; gradients reach the image."""
        ...


@runtime_checkable
class EmbeddingReward(Reward, Protocol):
    """A dual encoder (HPSv2, PickScore, CLIP): the score is a scaled product of two unit vectors.

    SRPO's relative rewards work on these two vectors (`control_words.py`).
    """

    scale: float  # score = scale * f_img . f_text; 1 for HPSv2 and CLIP, 100 / 20 in SRPO's use of PickScore

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """(N, D) unit vectors, without gradient."""
        ...

    def embed_image(self, image: Tensor) -> Tensor:
        """(B, D) unit vectors of images (B, 3, H, W) in [0, 1]; gradients reach the image."""
        ...


def image_tensor(picture: Image.Image, device: str | torch.device = "cpu") -> Tensor:
    """(1, 3, H, W) float32 in [0, 1] of a picture; transparency and other modes are converted to RGB."""
    pixels = np.array(picture.convert("RGB"), dtype=np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].to(device)


def to_pil(image: Tensor) -> Image.Image:
    """The picture of an image (1, 3, H, W) in [0, 1]."""
    pixels = image[0].detach().clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(np.ascontiguousarray(pixels))


@torch.no_grad()
def score_images(
    reward: Reward, pictures: Sequence[Image.Image], texts: Sequence[str], batch_size: int = 16
) -> list[float]:
    """The scores of pictures under one text each; neighbours of one size are scored together, `batch_size` at most."""
    if len(pictures) != len(texts):
        raise ValueError(f"got {len(pictures)} pictures and {len(texts)} texts; expected one text per picture")
    scores: list[float] = []
    while len(scores) < len(pictures):
        rest = pictures[len(scores) : len(scores) + batch_size]
        _, batch = next(itertools.groupby(rest, key=lambda picture: picture.size))
        image = torch.cat([image_tensor(picture) for picture in batch])
        scores += reward.score(image, texts[len(scores) : len(scores) + len(image)]).tolist()
    return scores
