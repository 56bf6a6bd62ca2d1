"""The two sides in numbers: the reward's scores under the control words, and an independent judge's opinion."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from srpo.miniature.world import CONTENT_ATTRIBUTES
from srpo.rewards.base import EmbeddingReward, Reward
from srpo.rewards.control_words import PAPER_WORDS, ControlWords
from srpo.rewards.load import load_reward

if TYPE_CHECKING:
    from srpo.miniature.judge import Judge


NO_SCORES = (
    "Scores are off: the miniature’s reward and judge know its own small world alone. "
    "Start the app with --reward FOLDER, the folder of a CLIPModel such as PickScore, or with another reward: "
    "python -m srpo.score --list names them and tells how to get each."
)


@dataclass(frozen=True)
class Row:
    """One line of the scores table: a quantity of both sides, or a verdict in words."""

    name: str
    hint: str  # what it is, in a sentence
    left: float | str
    right: float | str
    kind: str = "score"  # "score", "share" (0 ... 1, shown in per cent) or "verdict" (words)


class Scorer:
    """The reward and the judge, as far as they are there; `note` tells a visitor what is off, and how to have it."""

    def __init__(
        self, reward: Reward | None, judge: Judge | None, note: str = "", words: ControlWords = PAPER_WORDS
    ) -> None:
        self.reward, self.judge, self.note, self.words = reward, judge, note, words

    @classmethod
    def load(cls, reward: Path | None, judge: Path | None) -> Scorer:
        """The reward by its name, the judge from its folder.

        One that is not named or cannot be loaded leaves its lines out of the table.
        """
        if reward is None and judge is None:
            return cls(None, None, NO_SCORES)
        found, problems = [], []
        for load, folder in ((load_reward, reward), (_judge, judge)):
            try:
                found.append(None if folder is None else load(folder))
            except ValueError as error:
                found.append(None)
                problems.append(str(error))
        return cls(*found, f"Some scores are off: {'; '.join(problems)}." if problems else "")

    @torch.no_grad()
    def rows(self, left: Tensor, right: Tensor, prompt: str) -> list[Row]:
        """The table of two images (1, 3, H, W) in [0, 1] under the plain prompt."""
        images = torch.cat([left, right]).cpu()  # both scorers live on the CPU, wherever the pictures were made
        rows: list[Row] = []
        if self.reward is not None:
            rows += self._reward_rows(images, prompt)
        if self.judge is not None:
            rows += self._judge_rows(images)
        return rows

    def _reward_rows(self, images: Tensor, prompt: str) -> list[Row]:
        words, reward = self.words, self.reward

        def row(name: str, hint: str, values: Tensor) -> Row:
            return Row(name, hint, float(values[0]), float(values[1]))

        if not isinstance(reward, EmbeddingReward):  # it judges a picture whole: words in front are not its matter
            hint = f"what {reward.name} says of each side"
            return [row("Reward of the prompt alone", hint, reward.score(images, [prompt, prompt]))]
        texts = [words.apply(word, prompt) for word in (*words.positive, *words.negative)]
        scores = reward.scale * reward.embed_image(images) @ reward.embed_text([*texts, prompt]).T  # (2, words + 1)
        positive = scores[:, : len(words.positive)].mean(dim=1)
        negative = scores[:, len(words.positive) : -1].mean(dim=1)
        return [
            row("Reward with photo words in front", f"mean of {', '.join(words.positive)}", positive),
            row("Reward with drawing words in front", f"mean of {', '.join(words.negative)}", negative),
            row("Photo words − drawing words", "the relative preference that SRPO raises", positive - negative),
            row("Reward of the prompt alone", "SRPO is not meant to raise it", scores[:, -1]),
        ]

    def _judge_rows(self, images: Tensor) -> list[Row]:
        photo = self.judge.probabilities(images)["style"][:, self.judge.classes["style"].index("photo")]
        left, right = self.judge.verdict(images)
        content = [" · ".join(side[name] for name in CONTENT_ATTRIBUTES) for side in (left, right)]
        hint = "how sure an independent judge, never a reward, is of a photo"
        return [
            Row("Judged photo", hint, float(photo[0]), float(photo[1]), "share"),
            Row("Judged style", "the judge’s likeliest style", left["style"], right["style"], "verdict"),
            Row("Judged content", "what the judge sees", *content, "verdict"),
        ]


def _judge(folder: Path) -> Judge:
    from srpo.miniature.judge import Judge  # only a page that has a judge pays for its imports

    return Judge.from_pretrained(folder)
