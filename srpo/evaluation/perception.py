"""Does a reward understand a control word, and what will the word do to pictures?

Two questions. `word_table`: what do pictures of one's own score with the word, and without it? `perceive`: of pictures
painted with the word and without it, from the same prompts and the same noise, can the reward tell which is which, does
it take the word for another one, and does the content suffer? `verdicts` asks the same of any other measure: that is
how the reward's answers are checked.

Throughout a word's *difference* is the score of an image under the prompt with the word minus that under the prompt
alone: what the reward likes whatever the text says is not in it.

N images, W words, D embedding dimensions
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from srpo.evaluation.shares import Mean, mean
from srpo.rewards.base import EmbeddingReward
from srpo.rewards.control_words import FORMS

Z = 1.959964  # of normal 95 % intervals
CLEAR = 0.65  # an AUC whose interval lies above it is a word that the reward perceives
TOLD_APART = 0.65  # below this AUC a word's own pictures are not told from another word's
CONTENT_LOSS = 0.05  # a fall of the content score, as a share of what it was, that is worth a warning

Side = Literal["positive", "negative", "other"]


@dataclass(frozen=True)
class WordTable:
    """Scores of pictures under every word, and the vectors behind them."""

    words: tuple[str, ...]
    without: Tensor  # (N,) score under the prompt alone
    under: Tensor  # (N, W) score under the prompt with each word
    scale: float
    f_img: Tensor  # (N, D) unit vectors
    c_text: Tensor  # (N, W, D) unit vectors

    @property
    def difference(self) -> Tensor:
        """(N, W) what each word adds to the score of each picture."""
        return self.under - self.without[:, None]

    @property
    def rank(self) -> Tensor:
        """(N, W) 1 for the word that adds most to a picture's score."""
        order = self.difference.argsort(dim=1, descending=True)
        return order.argsort(dim=1) + 1

    def form(self, name: str, positive: str, negative: str, k: float) -> Tensor:
        """(N,) the pictures' rewards by one of control_words.FORMS, of a pair of words."""
        c_pos, c_neg = (self.c_text[:, self.words.index(word)] for word in (positive, negative))
        return self.scale * FORMS[name](self.f_img, c_pos, c_neg, k)


@torch.no_grad()
def word_table(
    reward: EmbeddingReward,
    images: Tensor,
    prompts: Sequence[str],
    words: Sequence[str],
    apply: Callable[[str, str], str],
    batch: int = 16,
) -> WordTable:
    """The scores of images (N, 3, H, W) under one prompt each, with every word and without any, on the CPU.

    Each image and each text is embedded once. apply: (word, prompt) -> text, as `ControlWords.apply`.
    """
    if len(images) != len(prompts):
        raise ValueError(f"got {len(images)} images and {len(prompts)} prompts; expected one prompt per image")
    f_img = torch.cat([reward.embed_image(part) for part in images.split(batch)]).cpu()
    c_text, c_plain = _text_vectors(reward, prompts, words, apply)
    without = reward.scale * (f_img * c_plain).sum(-1)
    under = reward.scale * torch.einsum("nd,nwd->nw", f_img, c_text)
    return WordTable(tuple(words), without, under, reward.scale, f_img, c_text)


class Auc(NamedTuple):
    """How often one of the first group scores above one of the second, with its 95 % interval."""

    auc: float
    low: float
    high: float


def auc(first: Tensor, second: Tensor) -> Auc:
    """The area under the ROC curve of scores (m,) against (n,), ties counted half; 0.5 is chance.

    The interval is Newcombe's (2006, method 5): the values whose own standard error, by Hanley and McNeil's formula,
    reaches to the observed one. It keeps a width where the groups are apart. ValueError for an empty group.
    """
    if not len(first) or not len(second):
        raise ValueError(f"an AUC needs both groups: got {len(first)} and {len(second)} scores")
    gap = first.double()[:, None] - second.double()[None]
    found = float(((gap > 0).double() + 0.5 * (gap == 0).double()).mean())
    m, n = len(first), len(second)

    def standard_error(value: float) -> float:
        more = (m + n) / 2 - 1
        spread = 1 + more * (1 - value) / (2 - value) + more * value / (1 + value)
        return math.sqrt(value * (1 - value) * spread / (m * n))

    def reached(value: float) -> float:
        return abs(found - value) - Z * standard_error(value)

    # Beside its own end, where the error is 0, the equation holds at 0 and at 1 as well.
    low = 0.0 if found == 0 else _bisect(reached, found - 1e-9, 0.0)
    high = 1.0 if found == 1 else _bisect(reached, found + 1e-9, 1.0)
    return Auc(found, low, high)


class Verdict(NamedTuple):
    """What to expect of a word."""

    kind: Literal["perceived", "entangled", "weak"]
    text: str  # a few words: "perceived", "entangled with Dark", "weak: expect little"
    reason: str  # a sentence
    entangled_with: tuple[str, ...] = ()


@dataclass(frozen=True)
class Perception:
    """What a measure makes of pictures painted with each word and without any."""

    words: tuple[str, ...]
    sides: tuple[Side, ...]
    separation: tuple[Auc, ...]  # of pictures with the word from pictures without, by the word's own score
    told_apart: Tensor  # (W, W) AUC of a row's pictures against a column's, by the row's score; 1 on the diagonal
    correlation: Tensor  # (W, W) of the words' scores over all pictures
    content: tuple[Mean, ...]  # change of the content score with the word; empty where there is none
    verdicts: tuple[Verdict, ...]


@torch.no_grad()
def perceive(
    reward: EmbeddingReward,
    f_img: Tensor,
    prompts: Sequence[str],
    words: Sequence[str],
    apply: Callable[[str, str], str],
    sides: Sequence[Side] | None = None,
) -> Perception:
    """What the reward makes of the words, by pictures of the same prompts and noise without any word and with each.

    f_img (W + 1, N, D): the pictures' vectors by `reward.embed_image`, those without a word first; prompts: N without
    a word, different ones at best. The content score is how much better a picture fits its own prompt than the others.
    """
    if f_img.shape[:2] != (len(words) + 1, len(prompts)):
        raise ValueError(
            f"got vectors of shape {tuple(f_img.shape)}; expected one for each of {len(words)} words and for none, and "
            f"for each of {len(prompts)} prompts"
        )
    c_text, c_plain = _text_vectors(reward, prompts, words, apply)  # (N, W, D), (N, D)
    plain = reward.scale * torch.einsum("gnd,md->gnm", f_img, c_plain)  # each picture under every prompt
    own = plain.diagonal(dim1=1, dim2=2)  # (W + 1, N)
    difference = reward.scale * torch.einsum("gnd,nwd->gnw", f_img, c_text) - own[..., None]
    return verdicts(difference, words, sides, _content(plain, own))


def verdicts(
    score: Tensor, words: Sequence[str], sides: Sequence[Side] | None = None, content: Tensor | None = None
) -> Perception:
    """What to expect of the words where `score` says how much of each word every picture shows.

    score (W + 1, N, W): by group of pictures, prompt and word; the group without a word first, the same N prompts and
    noise in each. content (W + 1, N): how well each picture fits its prompt. What a prompt itself does to a word's
    score, its mean over the groups, is taken out first. A word whose pictures are not told from those of a word on
    another side is entangled with it; on its own side, it means the same. ValueError for fewer than two prompts.
    """
    count = len(words)
    if score.shape[0] != count + 1 or score.shape[2] != count or score.shape[1] < 2:
        raise ValueError(f"got scores of shape {tuple(score.shape)}; expected ({count + 1}, 2 or more, {count})")
    sides = tuple(sides or ["other"] * count)
    score = score - score.mean(dim=0)
    separation = tuple(auc(score[w + 1, :, w], score[0, :, w]) for w in range(count))
    told_apart = torch.eye(count)
    for row, column in itertools.permutations(range(count), 2):
        told_apart[row, column] = auc(score[row + 1, :, row], score[column + 1, :, row]).auc
    changes = () if content is None else tuple(mean(content[w + 1] - content[0]) for w in range(count))
    before = 0.0 if content is None else float(content[0].mean())
    found = [
        _verdict(w, words, sides, separation, told_apart, _others(score, w), changes[w] if changes else None, before)
        for w in range(count)
    ]
    correlation = torch.corrcoef(score.flatten(0, 1).T).reshape(count, count)
    return Perception(tuple(words), sides, separation, told_apart, correlation, changes, tuple(found))


def _text_vectors(
    reward: EmbeddingReward, prompts: Sequence[str], words: Sequence[str], apply: Callable[[str, str], str]
) -> tuple[Tensor, Tensor]:
    """(N, W, D) of the prompts with each word, (N, D) of the prompts alone; each text is encoded once."""
    by_prompt = {
        prompt: reward.embed_text([prompt, *(apply(word, prompt) for word in words)]).cpu()
        for prompt in dict.fromkeys(prompts)
    }
    vectors = torch.stack([by_prompt[prompt] for prompt in prompts])
    return vectors[:, 1:], vectors[:, 0]


def _content(plain: Tensor, own: Tensor) -> Tensor:
    """(G, N) how much better a picture fits its own prompt than the other prompts; with one prompt, its score.

    plain (G, N, N) scores of the pictures under every prompt, own (G, N) under theirs.
    """
    others = plain.shape[-1] - 1
    return own - (plain.sum(-1) - own) / others if others else own


def _others(score: Tensor, w: int) -> Auc | None:
    """A word's pictures against those of all other words, by its own score; None where it is the only one."""
    rest = [v + 1 for v in range(score.shape[2]) if v != w]
    return auc(score[w + 1, :, w], score[rest, :, w].flatten()) if rest else None


def _verdict(
    w: int,
    words: Sequence[str],
    sides: Sequence[Side],
    separation: Sequence[Auc],
    told_apart: Tensor,
    others: Auc | None,
    content: Mean | None,
    content_before: float,
) -> Verdict:
    found = separation[w]
    reason = f"In {_percent(found)} of pairs the picture painted with it scores higher under it than the one without"
    if found.low <= CLEAR:
        if found.high < 0.5:
            reason += ": the wrong way round."
        elif found.low <= 0.5:
            reason += ": that may be chance."
        else:
            reason += ": too few to rely on."
        if others is None or others.low <= CLEAR:
            return Verdict("weak", "weak: expect little", reason)
        reason += (
            f" But against pictures of the other words it is {_percent(others)}: the reward knows the look, which "
            "pictures without the word mostly have already."
        )
        if sides[w] == "positive":
            return Verdict("weak", "weak: pictures look like that already", reason)
        return Verdict("perceived", "perceived: the look without any word", reason)
    taken = [v for v in range(len(words)) if v != w and told_apart[w, v] < TOLD_APART]
    taken = [v for v in taken if separation[v].low > CLEAR]  # a word that does nothing has pictures of no kind
    same = [words[v] for v in taken if sides[v] == sides[w] != "other"]
    other = [words[v] for v in taken if words[v] not in same]
    reason += "."
    if same:
        reason += f" It means much the same as {_listed(same)}."
    if content is not None and content.high < -CONTENT_LOSS * abs(content_before):
        reason += " The content suffers: pictures fit their own prompt less than without it."
    if other:
        reason += f" Pictures of {_listed(other)} score about as high under it as its own."
        return Verdict("entangled", f"entangled with {_listed(other)}", reason, tuple(other))
    return Verdict("perceived", "perceived", reason)


def _percent(found: Auc) -> str:
    return f"{found.auc:.0%} ({found.low:.0%} to {found.high:.0%})"


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _bisect(function: Callable[[float], float], below: float, above: float) -> float:
    """Where a function crosses zero between an argument at which it is negative and one at which it is positive.

    The second one where it is not positive even there.
    """
    if function(above) <= 0:
        return above
    for _ in range(60):
        middle = (below + above) / 2
        below, above = (middle, above) if function(middle) < 0 else (below, middle)
    return (below + above) / 2
