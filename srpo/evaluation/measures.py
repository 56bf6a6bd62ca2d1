"""What a picture shows without any model: early signs of a reward that is being hacked.

N images, H W height and width in pixels; values are (N,), one per image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LUMINANCE = (0.2126, 0.7152, 0.0722)  # of red, green and blue, ITU-R BT.709
THUMBNAIL = 16  # pixels per side of what `diversity` compares


def luminance(images: Tensor) -> Tensor:
    """(N,) mean luminance of (N, 3, H, W) in [0, 1]."""
    return torch.einsum("nchw,c->nhw", images, images.new_tensor(LUMINANCE)).mean(dim=(1, 2))


def saturation(images: Tensor) -> Tensor:
    """(N,) mean distance between the largest and the smallest channel of a pixel, of (N, 3, H, W) in [0, 1]."""
    return (images.amax(dim=1) - images.amin(dim=1)).mean(dim=(1, 2))


def clipped(images: Tensor) -> Tensor:
    """(N,) share of channel values that are black or white in 8 bits."""
    level = (images * 255).round()
    return ((level == 0) | (level == 255)).float().mean(dim=(1, 2, 3))


def sharpness(images: Tensor) -> Tensor:
    """(N,) mean size of the luminance's Laplacian, the difference of a pixel to its four neighbours' mean.

    Over-smooth, oily pictures have little of it. A plain or evenly shaded picture has none.
    """
    grey = torch.einsum("nchw,c->nhw", images, images.new_tensor(LUMINANCE))[:, None]
    kernel = images.new_tensor([[0, -0.25, 0], [-0.25, 1, -0.25], [0, -0.25, 0]])
    return F.conv2d(grey, kernel[None, None]).abs().mean(dim=(1, 2, 3))


def diversity(images: Tensor) -> Tensor:
    """(N,) each image's mean distance to the others: root mean square difference of 16 x 16 thumbnails.

    It falls where all pictures take on one look. ValueError for fewer than two images.
    """
    if len(images) < 2:
        raise ValueError(f"diversity compares at least two images, not {len(images)}")
    small = F.adaptive_avg_pool2d(images, THUMBNAIL).flatten(1)
    distances = (
        torch.cdist(small, small, compute_mode="donot_use_mm_for_euclid_dist") / small.shape[1] ** 0.5
    )  # (N, N), zero on the diagonal
    return distances.sum(dim=1) / (len(images) - 1)
