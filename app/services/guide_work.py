"""What the guide's steps compute on the loaded models: calls of the library, and pictures of what they return.

Imports torch at the top: page code reaches it through `guide.py`, which imports it once the models are there.

N images, K words of a side
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from app.services.device import StopFlag
from app.services.engine import memory_named, to_pil
from app.services.pictures import data_uri
from srpo.flow.path import interpolate
from srpo.flow.recovery import recover_exactly
from srpo.miniature.judge import Judge
from srpo.policies.base import Policy
from srpo.rewards.base import EmbeddingReward
from srpo.rewards.control_words import ControlWords, srp

if TYPE_CHECKING:
    from srpo.training.config import TrainConfig

SHOWN_SIDE = 256  # pixels, of the pictures that follow a slider


@dataclass(frozen=True)
class Painted:
    """A finished picture, with the latents it was decoded from."""

    x0: Tensor  # (1, C, H/8, W/8)
    image: Tensor  # (1, 3, H, W) in [0, 1], on the CPU


@dataclass(frozen=True)
class Noised:
    """A picture at a noise level, and brought back by the noise alone."""

    noise: Tensor  # the following (1, 3, H, W) in [0, 1], decoded
    noisy: Tensor
    recovered: Tensor
    worst: float  # the largest error of a recovered latent, where latents have a deviation of about 1


@torch.no_grad()
def noised(policy: Policy, x0: Tensor, noise: Tensor, sigma: float) -> Noised:
    """Equations 3 and 4: `x0` (1, C, h, w) noised to `sigma` below 1, and recovered from there without a model."""
    x_t = interpolate(x0, noise, sigma)
    again = recover_exactly(x_t, noise, sigma)
    return Noised(policy.decode(noise), policy.decode(x_t), policy.decode(again), float((again - x0).abs().max()))


@dataclass(frozen=True)
class WordScores:
    """Scores of images under a prompt with positive words in front, with negative ones, and alone."""

    positive: Tensor  # each (N,), the mean over the words of a side
    negative: Tensor
    plain: Tensor
    difference: Tensor  # the semantic relative preference


@torch.no_grad()
def word_scores(reward: EmbeddingReward, images: Tensor, prompt: str, words: ControlWords) -> WordScores:
    """What the reward says of images (N, 3, H, W) in [0, 1]."""
    f_img = reward.embed_image(images)  # (N, D)
    c_pos, c_neg = (
        reward.embed_text([words.apply(word, prompt) for word in side]).mean(0)
        for side in (words.positive, words.negative)
    )
    plain = reward.embed_text([prompt])[0]
    scores = ((f_img * text).sum(-1) for text in (c_pos, c_neg, plain))
    return WordScores(
        *(reward.scale * score.cpu() for score in scores), reward.scale * srp(f_img, c_pos, c_neg, 0).cpu()
    )


@dataclass(frozen=True)
class Verdict:
    """What the judge takes a picture for."""

    style: str
    photo: float  # how sure it is of a photo, 0 ... 1


def verdicts(judge: Judge | None, images: Tensor) -> list[Verdict | None]:
    """The judge's opinion of images (N, 3, H, W); None for each where there is no judge."""
    if judge is None:
        return [None] * len(images)
    photo = judge.probabilities(images)["style"][:, judge.classes["style"].index("photo")].tolist()
    return [Verdict(said["style"], sure) for said, sure in zip(judge.verdict(images), photo, strict=True)]


@dataclass(frozen=True)
class Moment:
    """A short run after an update; with pictures, where they were due."""

    update: int
    images: Tensor | None  # (N, 3, H, W) on the CPU
    scores: WordScores | None


def short_run(
    config: TrainConfig, prompt: str, seeds: Sequence[int], look_every: int, stop: StopFlag
) -> Iterator[Moment]:
    """The updates of a real training of a copy of the weights, which ends with the generator; nothing is written.

    Pictures of the prompt come before the first update and after every `look_every`. Raises Stopped before the next
    pass of the transformer once `stop` is set.
    """
    from srpo.training.preview import preview  # more libraries, which no other step needs

    with memory_named("train a copy of the model beside it"):
        for moment in preview(config, [prompt] * len(seeds), seeds, stop.check, look_every):
            scores = None
            if moment.images is not None:
                scores = word_scores(moment.reward, moment.images, prompt, config.signal.words)
            yield Moment(moment.update, moment.images, scores)


def shown(image: Tensor) -> str:
    """The address of an image (1, 3, H, W) that is gone with the next move of a slider, at most SHOWN_SIDE large."""
    picture = to_pil(image)
    picture.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    return data_uri(picture)
