"""SRPO's signals: the reward of an image under its prompt, relative to control words or to noise, or plain.

Together with the path of `direct_align.py` this is SRPO; with the form "plain" it is Direct-Align alone. The form
"noise" needs no text branch: any reward that scores images will do.

b images of one forward pass, D embedding dimensions
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from srpo.flow.recovery import Branch
from srpo.objectives.direct_align import Scored
from srpo.rewards.base import EmbeddingReward, Reward
from srpo.rewards.control_words import (
    FORMS,
    NOISE_STD,
    PAPER_DISCOUNTS,
    PAPER_WORDS,
    ControlWords,
    Discounts,
    Form,
    relative_to_noise,
)


@dataclass(frozen=True)
class TextSignal:
    """A reward of image and text, as a `direct_align.Signal`.

    The denoise branch ascends form(f_img, C_pos, C_neg, k+). The inversion branch is the penalty: it ascends the same
    form with the words swapped and k-, or minus the plain reward. As its step runs the other way, both push the
    velocity to the same side.
    """

    form: Literal["plain"] | Form = "cfg_like"
    words: ControlWords = PAPER_WORDS
    discounts: Discounts = PAPER_DISCOUNTS
    noise_std: float = NOISE_STD  # of the form "noise"

    def __post_init__(self) -> None:
        ends = (*self.discounts.positive, *self.discounts.negative)
        if self.form == "cfg_like_paper" and not all(0.5 <= k <= 1 for k in ends):
            raise ValueError(
                f"form cfg_like_paper weighs its words k and 1 - k, with discounts {self.discounts.positive} and "
                f"{self.discounts.negative} mostly the wrong one: set both within 0.5 ... 1, such as (0.9, 0.9)"
            )
        if not 0 < self.noise_std < math.inf:
            raise ValueError(f"noise_std is {self.noise_std}; expected a finite number above 0")

    def __call__(
        self, reward: Reward, image: Tensor, prompts: Sequence[str], branch: Branch, index: Tensor, update: int
    ) -> Scored:
        """Rewards and scores of images (b, 3, H, W).

        ValueError for a reward without text and image vectors, unless the form is "noise".
        """
        if self.form == "noise":
            return self._against_noise(reward, image, prompts, branch, update)
        if not isinstance(reward, EmbeddingReward):
            raise ValueError(
                f"the reward {reward.name!r} has no text vectors: control words need a CLIP-like reward; "
                'without one choose the form "noise"'
            )
        positive, negative = self.words.positive_for(update), self.words.negative_for(update)
        c_pos = reward.embed_text([self.words.apply(positive, prompt) for prompt in prompts])  # (b, D)
        c_neg = reward.embed_text([self.words.apply(negative, prompt) for prompt in prompts])
        c_plain = reward.embed_text(prompts)
        f_img = reward.embed_image(image)

        def score(text: Tensor) -> Tensor:
            return reward.scale * (f_img.detach() * text).sum(-1)

        value = self._branch_reward(f_img, c_pos, c_neg, c_plain, branch, index)
        return Scored(reward.scale * value, score(c_pos), score(c_neg), score(c_plain))

    def _against_noise(
        self, reward: Reward, image: Tensor, prompts: Sequence[str], branch: Branch, update: int
    ) -> Scored:
        """The positive score is the image's own, the negative one that of the image under noise."""
        found = relative_to_noise(reward, image, prompts, update, self.noise_std)
        clean, noisy = found.clean.detach(), found.noisy.detach()
        return Scored(found.difference if branch == "denoise" else -found.difference, clean, noisy, clean)

    def _branch_reward(
        self, f_img: Tensor, c_pos: Tensor, c_neg: Tensor, c_plain: Tensor, branch: Branch, index: Tensor
    ) -> Tensor:
        if self.form == "plain":
            plain = (f_img * c_plain).sum(-1)
            return plain if branch == "denoise" else -plain
        form = FORMS[self.form]
        if branch == "denoise":
            return form(f_img, c_pos, c_neg, self.discounts.k_positive(index))
        return form(f_img, c_neg, c_pos, self.discounts.k_negative(index))
