"""Changes to a training picture that leave true what was said of it.

B pictures, H W pixels. Every function draws from the generator it is given.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from srpo.miniature.renderer.styles import LUMA, saturate


def moved(image: Tensor, generator: torch.Generator, *, pixels: int = 4) -> Tensor:
    """(B, 3, H, W) pictures shifted by up to `pixels` either way, the edge going on, half of them mirrored."""
    count, _, height, width = image.shape
    down = torch.randint(-pixels, pixels + 1, (count, 1), generator=generator)
    right = torch.randint(-pixels, pixels + 1, (count, 1), generator=generator)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    row = (torch.arange(height) + down).clamp(0, height - 1)
    column = (torch.arange(width) + right).clamp(0, width - 1)
    column = torch.where(mirrored, width - 1 - column, column)
    picked = image.permute(0, 2, 3, 1)[torch.arange(count)[:, None, None], row[:, :, None], column[:, None, :]]
    return picked.permute(0, 3, 1, 2)


def toned(
    image: Tensor, generator: torch.Generator, *, strength: float = 0.08, saturation: float | None = None
) -> Tensor:
    """Pictures with brightness, contrast and saturation each changed by up to `strength`, unclamped.

    `saturation` is a strength of its own for the last of them: 1 is from grey to twice as vivid.
    """
    strengths = torch.tensor((strength, strength, strength if saturation is None else saturation))
    factors = 1 + strengths.reshape(3, 1, 1, 1, 1) * (2 * torch.rand(3, len(image), 1, 1, 1, generator=generator) - 1)
    middle = (image * LUMA).sum(dim=1, keepdim=True).mean(dim=(2, 3), keepdim=True)
    return saturate((image - middle) * factors[0] + middle * factors[1], factors[2])


def recoloured(image: Tensor, generator: torch.Generator, *, share: float = 0.5) -> tuple[Tensor, Tensor]:
    """Pictures of which about `share` have other colours but the same shapes, and (B,) bool that says which.

    Their hues are turned by 40 to 320 degrees about the grey axis, their saturation is anything from none to full, and
    half of them are negatives, so that white and black change as well.
    """
    count = len(image)
    changed = torch.rand(count, generator=generator) < share
    angle = torch.deg2rad(40 + 280 * torch.rand(count, generator=generator))
    saturation = torch.rand(count, 1, 1, 1, generator=generator)
    negative = (torch.rand(count, 1, 1, 1, generator=generator) < 0.5).float()
    turned = torch.einsum("bij,bjhw->bihw", _turn_about_grey(angle), image)
    turned = saturate(turned, saturation)
    turned = torch.lerp(turned, 1 - turned, negative).clamp(0, 1)
    return torch.where(changed[:, None, None, None], turned, image), changed


def softened(image: Tensor, generator: torch.Generator, *, strength: float = 1.0) -> Tensor:
    """Pictures mixed with a copy that went through fewer pixels (a half to three quarters), as a VAE smooths them.

    Each picture has its own share of the copy, up to `strength`.
    """
    size = image.shape[-1]
    fewer = int(torch.randint(size // 2, 3 * size // 4 + 1, (), generator=generator))
    copy = F.interpolate(image, size=fewer, mode="bilinear", antialias=True, align_corners=False)
    copy = F.interpolate(copy, size=size, mode="bilinear", align_corners=False)
    return torch.lerp(image, copy, strength * torch.rand(len(image), 1, 1, 1, generator=generator))


def grainy(image: Tensor, generator: torch.Generator, *, std: float = 0.02) -> Tensor:
    """Pictures under fine and coarse noise, of a deviation up to `std` each, drawn for each picture."""
    count, channels, height, width = image.shape
    level = std * torch.rand(2, count, 1, 1, 1, generator=generator)
    fine = torch.randn(image.shape, generator=generator)
    coarse = torch.randn(count, channels, height // 4, width // 4, generator=generator)
    coarse = F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
    return image + level[0] * fine + level[1] * coarse


def _turn_about_grey(angle: Tensor) -> Tensor:
    """(B, 3, 3) rotations of RGB by `angle` (B,) radians about (1, 1, 1): grey stays grey (Rodrigues' formula)."""
    cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / 3**0.5
    sine, cosine = torch.sin(angle)[:, None, None], torch.cos(angle)[:, None, None]
    return cosine * torch.eye(3) + sine * cross + (1 - cosine) / 3
