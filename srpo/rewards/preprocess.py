"""From a picture to what a vision tower reads, differentiable throughout.

An antialiased bicubic filter overshoots at sharp edges; as in the reference trainer the result is not clamped, which
would stop the gradient there.

B images, H W height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def resize_shortest(image: Tensor, size: int) -> Tensor:
    """Images (B, 3, h, w) whose shorter side is `size` pixels, the proportions kept (rounded down)."""
    height, width = image.shape[-2:]
    short = min(height, width)
    return resize(image, size * height // short, size * width // short)


def resize_longest(image: Tensor, size: int) -> Tensor:
    """Images (B, 3, h, w) whose longer side is `size` pixels, the proportions kept, rounded as HPSv2's package does."""
    height, width = image.shape[-2:]
    scale = size / max(height, width)  # multiplied, not divided: halves round to the same side as there
    return resize(image, max(1, round(height * scale)), max(1, round(width * scale)))


def center_crop(image: Tensor, height: int, width: int) -> Tensor:
    """The middle (B, 3, height, width) of the images. ValueError where they are smaller than that."""
    if image.shape[-2] < height or image.shape[-1] < width:
        raise ValueError(
            f"cannot crop {height} x {width} from {image.shape[-2]} x {image.shape[-1]} pixels: resize first"
        )
    top = round((image.shape[-2] - height) / 2)
    left = round((image.shape[-1] - width) / 2)
    return image[..., top : top + height, left : left + width]


def pad_to_square(image: Tensor, value: float = 0.0) -> Tensor:
    """The images (B, 3, S, S) centred in squares of their longer side; what is added has the given value."""
    height, width = image.shape[-2:]
    size = max(height, width)
    top, left = (size - height) // 2, (size - width) // 2
    return F.pad(image, (left, size - width - left, top, size - height - top), value=value)


def normalize(image: Tensor, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD) -> Tensor:
    """(image - mean) / std per channel, (B, 3, H, W)."""
    shift = torch.tensor(mean, dtype=image.dtype, device=image.device).view(3, 1, 1)
    scale = torch.tensor(std, dtype=image.dtype, device=image.device).view(3, 1, 1)
    return (image - shift) / scale


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """Images (B, 3, height, width), squeezed to that size whatever their proportions."""
    if image.shape[-2:] == (height, width):
        return image
    return F.interpolate(image, size=(height, width), mode="bicubic", antialias=True, align_corners=False)
