"""Control words and what they make of a reward: SGP, SRP, the CFG-like forms and their discounts.

A text reward is a product of two vectors, f_img . C_text (times a scale). A control word in front of the prompt moves
C_text, and the difference of two words cancels what the reward likes whatever the text says.

B images, D embedding dimensions; all f_img, c_pos, c_neg (B, D) unit vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

NUM_INDICES = 1000  # of the reference's sigma table; discounts are lines over 0 (cleanest) ... 999 (noisiest)


@dataclass(frozen=True)
class ControlWords:
    """Positive and negative words that are put in front of a prompt for the reward alone; the model sees the prompt."""

    positive: tuple[str, ...]
    negative: tuple[str, ...]
    template: str = "{word}. {prompt}"

    def __post_init__(self) -> None:
        for side in ("positive", "negative"):
            if not getattr(self, side) or not all(word.strip() for word in getattr(self, side)):
                raise ValueError(f"{side} control words are {getattr(self, side)!r}; expected at least one, none empty")
        if "{word}" not in self.template or "{prompt}" not in self.template:
            raise ValueError(f"control-word template {self.template!r} must contain {{word}} and {{prompt}}")

    def apply(self, word: str, prompt: str) -> str:
        """The prompt under a control word: "Photo. a red ball"."""
        # One pass each, so that braces in a prompt are left alone.
        before, after = self.template.split("{prompt}", 1)
        return before.replace("{word}", word) + prompt + after.replace("{word}", word)

    def positive_for(self, update: int) -> str:
        """The positive word of an update, taken in turn. Updates count from 1, so the first word comes last."""
        return self.positive[update % len(self.positive)]

    def negative_for(self, update: int) -> str:
        """The negative word of an update, taken in turn."""
        return self.negative[update % len(self.negative)]


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
