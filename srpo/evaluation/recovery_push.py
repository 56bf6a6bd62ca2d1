"""Where a reward would push a recovered picture: its gradient, and the picture after one small step along it.

A reward can only teach what its gradient sees. On the blur of an early one-step prediction it points elsewhere than on
the finished picture; on a Direct-Align recovery from the same level it nearly agrees with it, and `agreement` says how
nearly.

H W height and width in pixels
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from srpo.rewards.base import Reward

HEAT_SHARE = 14  # patches per side over which a heat map is averaged: about those of a vision tower


@dataclass(frozen=True)
class Push:
    """A reward's gradient at a picture; images (1, 3, H, W) in [0, 1]."""

    image: Tensor
    gradient: Tensor  # (1, 3, H, W) of the score by the picture
    pushed: Tensor  # the picture after the step
    before: float  # its score, and that after the step
    after: float


def push(reward: Reward, image: Tensor, text: str, step: float) -> Push:
    """The push of a picture (1, 3, H, W) under a text: one step of gradient ascent, `step` per value on average.

    step: the root mean square of the change, in the units of the picture, 0 ... 1; what leaves [0, 1] is cut off.
    """
    if not 0 < step <= 1:
        raise ValueError(f"The step must be above 0 and at most 1, not {step:g}.")
    with torch.enable_grad():
        leaf = image.detach().clone().requires_grad_()
        score = reward.score(leaf, [text]).sum()
        (gradient,) = torch.autograd.grad(score, leaf)
    size = gradient.square().mean().sqrt().clamp(min=torch.finfo(gradient.dtype).tiny)
    pushed = (image.detach() + step * gradient / size).clamp(0, 1)
    with torch.no_grad():
        return Push(image.detach(), gradient, pushed, score.item(), reward.score(pushed, [text]).item())


def agreement(one: Push, other: Push) -> float:
    """The cosine between the gradients at two pictures of one size: 1 where the reward asks for the same of both."""
    return F.cosine_similarity(one.gradient.flatten(), other.gradient.flatten(), dim=0).item()


def heat(gradient: Tensor) -> Tensor:
    """(H, W) in [0, 1] how strongly each place of a picture is pushed, of a gradient (1, 3, H, W).

    The root mean square over channels and neighbours; 1 is the 99.5th percentile.
    """
    energy = gradient.square().mean(dim=1, keepdim=True)
    size = max(1, min(gradient.shape[-2:]) // HEAT_SHARE // 2 * 2 + 1)  # odd, so that a place is the middle of its own
    padded = F.pad(energy, [size // 2] * 4, mode="reflect")
    level = F.avg_pool2d(padded, size, stride=1)[0, 0].sqrt()
    end = level.flatten().kthvalue(max(1, round(0.995 * level.numel()))).values
    return (level / end).clamp(0, 1) if end > 0 else level
