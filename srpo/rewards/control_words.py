"""Control words and what they make of a reward: SGP, SRP, the CFG-like forms and their discounts.

A text reward is a product of two vectors, f_img . C_text (times a scale). A control word in front of the prompt moves
C_text, and the difference of two words cancels what the reward likes whatever the text says. A reward without a text
branch has no words; it is made relative to the same image under a little noise.

B images, D embedding dimensions; all f_img, c_pos, c_neg (B, D) unit vectors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from srpo.rewards.base import Reward

NUM_INDICES = 1000  # of the reference's sigma table; discounts are lines over 0 (cleanest) ... 999 (noisiest)
WEIGHT_PARTS = 10  # a weight is a number of tenths
MAX_WEIGHT = 10.0
NOISE_STD = 0.05  # of what a reward without text is compared under, for images in [0, 1]


@dataclass(frozen=True)
class ControlWords:
    """Positive and negative words that are put in front of a prompt for the reward alone; the model sees the prompt.

    An update takes one word of each side. A word's weight is how often its turn comes: one of weight 2 comes twice as
    often as one of weight 1. It is no factor of the loss, which clipping the gradient would undo.
    """

    positive: tuple[str, ...]
    negative: tuple[str, ...]
    template: str = "{word}. {prompt}"
    positive_weights: tuple[float, ...] = ()  # one for each word, in tenths; none: all the same
    negative_weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for side in ("positive", "negative"):
            words, weights = getattr(self, side), getattr(self, f"{side}_weights")
            if not words or not all(word.strip() for word in words):
                raise ValueError(f"{side} control words are {words!r}; expected at least one, none empty")
            if weights and len(weights) != len(words):
                raise ValueError(
                    f"{side} control words have {len(weights)} weights for {len(words)} words; expected one for each"
                )
            for weight in weights:
                require_weight(weight)
        require_template(self.template)

    def apply(self, word: str, prompt: str) -> str:
        """The prompt under a control word: "Photo. a red ball"."""
        # One pass each, so that braces in a prompt are left alone.
        before, after = self.template.split("{prompt}", 1)
        return before.replace("{word}", word) + prompt + after.replace("{word}", word)

    def positive_for(self, update: int) -> str:
        """The positive word of an update, taken in turn. Updates count from 1, so the first word comes last."""
        return _word_of(self.positive, self.positive_weights, update)

    def negative_for(self, update: int) -> str:
        """The negative word of an update, taken in turn."""
        return _word_of(self.negative, self.negative_weights, update)


def require_weight(weight: float) -> None:
    """Nothing for a weight that a word may have; ValueError else."""
    in_tenths = math.isfinite(weight) and math.isclose(weight * WEIGHT_PARTS, round(weight * WEIGHT_PARTS))
    if not in_tenths or not 1 / WEIGHT_PARTS <= weight <= MAX_WEIGHT:
        raise ValueError(f"a word's weight is {weight}; expected {1 / WEIGHT_PARTS} to {MAX_WEIGHT:g}, in tenths")


def require_template(template: str) -> None:
    """Nothing for a template with {word} and {prompt}, once each, and no other braces; ValueError else."""
    if template.count("{word}") != 1 or template.count("{prompt}") != 1:
        raise ValueError(f"control-word template {template!r} must contain {{word}} and {{prompt}}, once each")
    if set("{}") & set(template.replace("{word}", "").replace("{prompt}", "")):
        raise ValueError(f"control-word template {template!r} has braces other than {{word}} and {{prompt}}")


@lru_cache(maxsize=64)
def turns(weights: tuple[float, ...]) -> tuple[int, ...]:
    """The places of the words whose turns make one cycle, each as often as it weighs, spread as evenly as can be.

    At each turn every word's claim grows by its weight; the one that claims most, the first of equals, is taken and
    pays for the turn with the sum of all weights. So equal weights give 0, 1, 2 ... in turn.
    """
    parts = [round(weight * WEIGHT_PARTS) for weight in weights]
    parts = [part // math.gcd(*parts) for part in parts]
    claims, taken = [0] * len(parts), []
    for _ in range(sum(parts)):
        claims = [claim + part for claim, part in zip(claims, parts, strict=True)]
        chosen = claims.index(max(claims))
        claims[chosen] -= sum(parts)
        taken.append(chosen)
    return tuple(taken)


def _word_of(words: Sequence[str], weights: tuple[float, ...], update: int) -> str:
    cycle = turns(weights or (1.0,) * len(words))
    return words[cycle[update % len(cycle)]]


PAPER_WORDS = ControlWords(
    positive=("Natural-lighting", "Detail", "Detailed", "Real"),
    negative=("Concept art", "Painting", "Anime", "Flat", "Oil"),
)

Form = Literal["sgp", "srp", "cfg_like", "cfg_like_paper"]


def sgp(f_img: Tensor, c_pos: Tensor, c_neg: Tensor, k: float | Tensor) -> Tensor:
    """(B,) semantic-guided preference: f_img . C_pos. Neither C_neg nor k take part."""
    return _dot(f_img, c_pos)


def srp(f_img: Tensor, c_pos: Tensor, c_neg: Tensor, k: float | Tensor) -> Tensor:
    """(B,) semantic relative preference: f_img . (C_pos - C_neg). k takes no part."""
    return _dot(f_img, c_pos) - _dot(f_img, c_neg)


def cfg_like_paper(f_img: Tensor, c_pos: Tensor, c_neg: Tensor, k: float | Tensor) -> Tensor:
    """(B,) the paper's CFG-like form: f_img . ((1 - k) C_neg + k C_pos); k a number or (B,).

    Only k above 0.5 prefers the positive word.
    """
    return (1 - k) * _dot(f_img, c_neg) + k * _dot(f_img, c_pos)


def cfg_like(f_img: Tensor, c_pos: Tensor, c_neg: Tensor, k: float | Tensor) -> Tensor:
    """(B,) the reference code's CFG-like form: f_img . ((1 + k) C_pos - C_neg); k a number or (B,).

    It is SRP plus k times the general reward, and made the published weights.
    """
    return (1 + k) * _dot(f_img, c_pos) - _dot(f_img, c_neg)


class NoiseRelative(NamedTuple):
    """Scores of images and of the same images under noise; their difference is what is maximised."""

    clean: Tensor  # (B,)
    noisy: Tensor  # (B,)

    @property
    def difference(self) -> Tensor:
        return self.clean - self.noisy


def relative_to_noise(
    reward: Reward, image: Tensor, texts: Sequence[str], seed: int, std: float = NOISE_STD
) -> NoiseRelative:
    """r(x) and r(x + small noise), for rewards without a text branch (the paper's supplement); image (B, 3, H, W)."""
    return NoiseRelative(reward.score(image, texts), reward.score(under_noise(image, seed, std), texts))


def under_noise(image: Tensor, seed: int, std: float = NOISE_STD) -> Tensor:
    """Images (B, 3, H, W) with Gaussian noise added to their pixel values, the same for all images of a seed.

    So no image's score depends on its neighbours. It is not clamped, which would stop the gradient of what is clipped.
    """
    generator = torch.Generator().manual_seed(seed)
    return image + std * torch.randn(image.shape[1:], generator=generator, dtype=torch.float32).to(image)


FORMS = {"sgp": sgp, "srp": srp, "cfg_like": cfg_like, "cfg_like_paper": cfg_like_paper}


@dataclass(frozen=True)
class Discounts:
    """How strongly the general reward counts beside the relative one: k of each branch, a line over the noise levels.

    Each pair is (k at index 0, the cleanest level; k at index 999, the noisiest).
    """

    positive: tuple[float, float]  # denoise branch: k+
    negative: tuple[float, float]  # inversion branch: k-

    def k_positive(self, index: float | Tensor) -> float | Tensor:
        """k+ of the denoise branch at an index in 0 ... 999; fractions lie between."""
        return _line(self.positive, index)

    def k_negative(self, index: float | Tensor) -> float | Tensor:
        """k- of the inversion branch at an index in 0 ... 999; fractions lie between."""
        return _line(self.negative, index)


PAPER_DISCOUNTS = Discounts(positive=(0.1, 0.25), negative=(0.3, 0.01))
PICKSCORE_SCALE = 100 / 20  # SRPO's use of PickScore: the model's own 100, brought near 1
PICKSCORE_DISCOUNTS = Discounts(positive=(0.1, 0.5), negative=(0.6, 0.01))


def net_weight(
    denoise_index: float | Tensor, inversion_index: float | Tensor, discounts: Discounts = PAPER_DISCOUNTS
) -> float | Tensor:
    """Net weight of the general reward over both branches of a draw: k+[denoise index] - k-[inversion index].

    Below 0 the general reward is subtracted, above it is added; the semantic difference always weighs about 2. The
    indices of a draw come from `srpo.objectives.levels`.
    """
    return discounts.k_positive(denoise_index) - discounts.k_negative(inversion_index)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1)


def _line(ends: tuple[float, float], index: float | Tensor) -> float | Tensor:
    first, last = ends
    return first + (last - first) * (index / (NUM_INDICES - 1))
