"""How far recovered pictures are from the picture they came from, and what a reward says of them.

The original is the clean latents as the VAE draws them: what the VAE itself loses is no method's fault.

N images, H W height and width in pixels
"""

from __future__ import annotations

import importlib.util
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from skimage.metrics import structural_similarity
from torch import Tensor

from srpo.evaluation.recoveries import Cell, Method
from srpo.evaluation.shares import Mean, few
from srpo.rewards.base import EmbeddingReward, Reward

SSIM_SIDE = 256  # pixels of the shorter side to which pictures are brought, as the measure's authors recommend
LPIPS_PACKAGE = "lpips"  # brings torchvision, which must have been built for the same torch

Distance = Callable[[Tensor, Tensor], Tensor]  # images (N, 3, H, W) in [0, 1], twice -> (N,)


@dataclass(frozen=True)
class Errors:
    """One recovered picture against the original; None for what there is no model for."""

    psnr: float  # decibels
    ssim: float  # 1 for equal pictures
    embedding: float | None  # 1 - cosine of the reward's embeddings of both pictures
    reward: float | None  # the recovered picture's score under the text
    lpips: float | None


MEASURES = tuple(field.name for field in fields(Errors))


class Yardstick:
    """Measures recovered pictures against one original, whose embedding is computed once."""

    def __init__(
        self, original: Tensor, reward: Reward | None = None, text: str = "", lpips: Distance | None = None
    ) -> None:
        """original (1, 3, H, W) in [0, 1]; `text` is what the reward reads."""
        self.original, self.reward, self.text, self.lpips = original, reward, text, lpips
        self._embedded = self._embed(original)
        self.reward_of_original = self._measure(original)[0].reward

    def __call__(self, image: Tensor) -> list[Errors]:
        """The errors of each of the images (N, 3, H, W) in [0, 1]; without gradient."""
        return self._measure(image)

    @torch.no_grad()
    def _measure(self, image: Tensor) -> list[Errors]:
        count = len(image)
        original = self.original.expand_as(image)
        psnrs, ssims = psnr(image, original).tolist(), ssim(image, original).tolist()
        distances = scores = lpips = [None] * count
        if self._embedded is not None:
            embedded = self._embed(image)
            distances = (1 - (embedded * self._embedded).sum(-1)).tolist()
            scores = (self.reward.scale * embedded @ self.reward.embed_text([self.text]).T)[:, 0].tolist()
        elif self.reward is not None:
            scores = self.reward.score(image, [self.text] * count).tolist()
        if self.lpips is not None:
            lpips = self.lpips(image, original).reshape(-1).tolist()
        return [Errors(*values) for values in zip(psnrs, ssims, distances, scores, lpips, strict=True)]

    @torch.no_grad()
    def _embed(self, image: Tensor) -> Tensor | None:
        """(N, D) the reward's embeddings; None where it has none to give."""
        return self.reward.embed_image(image) if isinstance(self.reward, EmbeddingReward) else None


def psnr(image: Tensor, original: Tensor) -> Tensor:
    """(N,) peak signal-to-noise ratio in decibels of images (N, 3, H, W) in [0, 1]; infinite for equal ones."""
    return -10 * (image - original).square().mean(dim=(1, 2, 3)).log10()


def ssim(image: Tensor, original: Tensor) -> Tensor:
    """(N,) structural similarity of images (N, 3, H, W) in [0, 1], in the settings of its authors.

    A Gaussian window of 1.5 pixels on pictures averaged down to about 256 pixels. Source: Wang et al., "Image Quality
    Assessment: From Error Visibility to Structural Similarity" (2004), and the usage notes of their code.
    """
    factor = max(1, round(min(image.shape[-2:]) / SSIM_SIDE))
    pairs = zip(*(F.avg_pool2d(side, factor).double().cpu().numpy() for side in (image, original)), strict=True)
    values = [
        structural_similarity(
            left, right, data_range=1.0, channel_axis=0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for left, right in pairs
    ]
    return torch.tensor(np.array(values))


def has_lpips() -> bool:
    """Whether the user has installed the package `lpips`, which this project does not bring."""
    return importlib.util.find_spec(LPIPS_PACKAGE) is not None


def load_lpips(device: str | torch.device = "cpu") -> Distance:
    """The distance of Zhang et al. (2018) with AlexNet, from the user's own `lpips`. ValueError where it is missing."""
    if not has_lpips():
        raise ValueError(
            "LPIPS needs the package lpips: pip install lpips, with a torchvision built for the torch that is here"
        )
    import lpips  # the user's own

    model = lpips.LPIPS(net="alex", verbose=False).eval().requires_grad_(False).to(device)

    @torch.no_grad()
    def distance(image: Tensor, original: Tensor) -> Tensor:
        return model(image.to(device), original.to(device), normalize=True).reshape(-1).cpu()

    return distance


class Tally:
    """Errors of the same cells under several noises, and their means."""

    def __init__(self) -> None:
        self._found: dict[tuple[Method, float], list[Errors]] = defaultdict(list)

    def add(self, cell: Cell, errors: Sequence[Errors]) -> None:
        """Notes the errors of a cell, one for each noise."""
        self._found[cell.method, cell.sigma] += errors

    def mean(self, method: Method, sigma: float, measure: str) -> Mean | None:
        """The mean of one of MEASURES over the noises, with its 95 % interval by Student's t.

        A single noise has no interval: its ends are NaN. None for a cell or a measure that is not there.
        """
        values = [getattr(errors, measure) for errors in self._found.get((method, sigma), ())]
        if not values or None in values:
            return None
        return few(values) if len(values) > 1 else Mean(values[0], float("nan"), float("nan"), 1)
