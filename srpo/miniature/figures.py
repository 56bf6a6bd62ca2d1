"""What the shipped miniature can do, measured on the files as they lie in assets/, reloaded, with 95 % intervals.

What is new to whom: scene seeds and noise are new to all. Held-out pairs are in no training. The test prompts are new
to SRPO and to its tuning, which see the train prompts alone; as captions they do occur in the training of the base and
of the reward, which learn from random scenes of all seen pairs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from srpo.evaluation import measures
from srpo.evaluation.sampling import sample_images
from srpo.evaluation.shares import Mean, Share, mean, share
from srpo.miniature import paths
from srpo.miniature.data import training_scenes
from srpo.miniature.judge import Judge, judge_accuracy
from srpo.miniature.renderer import render
from srpo.miniature.reward import cosine_range, reward_accuracy
from srpo.miniature.world import (
    CONTENT_ATTRIBUTES,
    HELD_OUT_PAIRS,
    STYLES,
    Scene,
    attributes,
    held_out_prompts,
    neutral_prompts,
    style_word,
)
from srpo.policies.checkpoints import load_transformer
from srpo.policies.flux import FluxPolicy
from srpo.rewards.clip import ClipReward
from srpo.rewards.control_words import PAPER_WORDS

NUM_STEPS, GUIDANCE, TEXT_TOKENS = 28, 3.5, 64
NUM_PROMPTS = 512  # of styled prompts, and of the comparison of models
NUM_RENDERS = 256  # of the figures of the parts
NUM_PROMPTS_ELSEWHERE = 128  # at other lengths of the text and other guidance
OTHER_SETTINGS = ((32, GUIDANCE), (512, GUIDANCE), (TEXT_TOKENS, 1.0), (TEXT_TOKENS, 7.0))  # text tokens, guidance
# Each question has a thousand seeds of its own, for scenes or for noise.
QUESTIONS = ("vae", "judge", "judge, held out", "judge, decoded", "reward", "cosines", "styled", "held out", "neutral")
SEEDS = {question: 90_000 + 1_000 * number for number, question in enumerate(QUESTIONS)}
NUM_RESAMPLES = 10_000


def mean_by_prompt(values: Tensor, prompts: Sequence[str]) -> Mean:
    """The mean over prompts of each prompt's own mean, with the normal 95 % interval over prompts; its count is theirs.

    For prompts that come several times: their cases are not independent. ValueError below two prompts.
    """
    groups: dict[str, list[float]] = {}
    for prompt, value in zip(prompts, values.tolist(), strict=True):
        groups.setdefault(prompt, []).append(float(value))
    return mean([sum(group) / len(group) for group in groups.values()])


class Ratio(NamedTuple):
    """A ratio of two shares of the same `count` prompts, and its 95 % interval."""

    ratio: float
    low: float
    high: float
    count: int


def share_ratio(after: Tensor, before: Tensor) -> Ratio:
    """The share of `after` over that of `before`, (N,) bool each, one for each prompt in the same order.

    The interval holds the middle 95 % of the ratios of 10,000 resamples of the prompts, pairs kept (bootstrap).
    ValueError where `before` has no case: there is no ratio.
    """
    if not before.any():
        raise ValueError(f"a ratio needs at least one case before, got none among {len(before)}")
    picked = np.random.default_rng(0).integers(len(before), size=(NUM_RESAMPLES, len(before)))
    above, below = after.numpy()[picked].sum(axis=1), before.numpy()[picked].sum(axis=1)
    ratios = np.divide(above, below, out=np.full(NUM_RESAMPLES, np.inf), where=below > 0)
    low, high = np.quantile(ratios, (0.025, 0.975), method="closest_observation")
    return Ratio(float(after.sum() / before.sum()), float(low), float(high), len(before))


@dataclass(frozen=True)
class Samples:
    """Pictures of a model and what the judge says of them."""

    images: Tensor  # (N, 3, 128, 128)
    photo: Tensor  # (N,) bool: judged a photo
    style: Tensor  # (N,) bool: the scene's own style; meaningless for neutral prompts
    content: Tensor  # (N,) bool: all four content attributes right

    def first(self, count: int) -> Samples:
        """The first `count` of them."""
        return Samples(self.images[:count], self.photo[:count], self.style[:count], self.content[:count])

    @property
    def saturation(self) -> Tensor:
        """(N,) mean distance between the largest and the smallest channel of a pixel."""
        return measures.saturation(self.images)

    @property
    def clipped(self) -> Tensor:
        """(N,) share of channel values that are black or white in 8 bits."""
        return measures.clipped(self.images)


def judged(
    judge: Judge,
    policy: FluxPolicy,
    prompts: Sequence[tuple[str, Scene]],
    first_seed: int,
    *,
    guidance: float = GUIDANCE,
) -> Samples:
    """One picture for each prompt, the seeds counting up from `first_seed`, and the judge's verdicts."""
    seeds = range(first_seed, first_seed + len(prompts))
    images = sample_images(policy, [text for text, _ in prompts], seeds, num_steps=NUM_STEPS, guidance=guidance)
    verdicts = [v for part in images.split(64) for v in judge.verdict(part)]
    truth = [attributes(scene) for _, scene in prompts]

    def hits(rule: Callable[[dict[str, str], dict[str, str]], bool]) -> Tensor:
        return torch.tensor([rule(said, true) for said, true in zip(verdicts, truth, strict=True)])

    return Samples(
        images,
        photo=hits(lambda said, _: said["style"] == "photo"),
        style=hits(lambda said, true: said["style"] == true["style"]),
        content=hits(lambda said, true: all(said[name] == true[name] for name in CONTENT_ATTRIBUTES)),
    )


@torch.no_grad()
def reward_scores(reward: ClipReward, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
    """(N,) each: the raw reward under the prompt alone, the means under the paper's words, and their difference."""

    def score(texts: Sequence[str]) -> Tensor:
        parts = range(0, len(images), 64)
        return torch.cat([reward.score(images[i : i + 64], texts[i : i + 64]) for i in parts]).cpu()

    def under(words: Sequence[str]) -> Tensor:
        return torch.stack([score([PAPER_WORDS.apply(word, p) for p in prompts]) for word in words]).mean(dim=0)

    positive, negative = under(PAPER_WORDS.positive), under(PAPER_WORDS.negative)
    scores = {"raw reward": score(prompts), "positive": positive, "negative": negative}
    return scores | {"positive minus negative": positive - negative}


def styled(prompts: Sequence[tuple[str, Scene]], count: int, seed: int) -> list[tuple[str, Scene]]:
    """`count` of the prompts, repeated as needed, each with a word for a style in front.

    Styles come about equally often, and a prompt that comes again comes in another style.
    """
    rng = np.random.default_rng(seed)
    chosen = []
    for i in range(count):
        text, scene = prompts[i % len(prompts)]
        style = STYLES[(i + i // len(prompts)) % len(STYLES)]
        chosen.append((f"{style_word(style, rng)}. {text}", scene.with_style(style)))
    return chosen


def measure_parts(count: int = NUM_RENDERS) -> dict[str, Any]:
    """Figures of VAE, judge and reward on unseen renders."""
    policy, judge = FluxPolicy.from_pretrained(paths.FLUX), Judge.from_pretrained(paths.JUDGE)

    @torch.no_grad()
    def decoded(image: Tensor) -> Tensor:
        return policy.decode(policy.encode_image(image))

    scenes = [replace(scene, tone=None) for scene in training_scenes(count, SEEDS["vae"])]
    errors = []
    for start in range(0, count, 32):
        image = render(scenes[start : start + 32])
        errors.append((decoded(image) - image).square().mean(dim=(1, 2, 3)))
    psnr = -10 * torch.log10(torch.cat(errors))
    by_style = {style: mean(psnr[[s.style == style for s in scenes]]) for style in STYLES}
    return {
        "vae": {"psnr": mean(psnr), **{f"psnr of {style}": value for style, value in by_style.items()}},
        "judge": judge_accuracy(judge, 4 * count, SEEDS["judge"]),
        "judge on held-out pairs": judge_accuracy(judge, count, SEEDS["judge, held out"], pairs=HELD_OUT_PAIRS),
        "judge on decoded renders": judge_accuracy(judge, 2 * count, SEEDS["judge, decoded"], change=decoded),
        "reward": reward_accuracy(paths.REWARD, 2 * count, SEEDS["reward"]),
        "reward's cosines": cosine_range(paths.REWARD, count, SEEDS["cosines"]),
    }


def measure_samples(count: int = NUM_PROMPTS, count_elsewhere: int = NUM_PROMPTS_ELSEWHERE) -> dict[str, Any]:
    """Figures of the base's pictures under styled prompts, of seen and of held-out pairs, and at other settings.

    The other settings see the first `count_elsewhere` of the same prompts and noise.
    """
    judge, reward = Judge.from_pretrained(paths.JUDGE), ClipReward.from_pretrained(paths.REWARD)

    def pictures(prompts: Sequence[tuple[str, Scene]], first_seed: int, tokens: int, guidance: float) -> Samples:
        policy = FluxPolicy.from_pretrained(paths.FLUX, max_sequence_length=tokens)
        return judged(judge, policy, prompts, first_seed, guidance=guidance)

    prompts, unknown = styled(neutral_prompts("test"), count, SEEDS["styled"]), held_out_prompts()
    seen = pictures(prompts, SEEDS["styled"], TEXT_TOKENS, GUIDANCE)
    new = pictures(styled(unknown, count, SEEDS["held out"]), SEEDS["held out"], TEXT_TOKENS, GUIDANCE)
    figures = {
        "style right, style word given": share(seen.style),
        "content right, seen pairs": share(seen.content),
        "content right, held-out pairs": mean_by_prompt(
            new.content, [unknown[i % len(unknown)][0] for i in range(count)]
        ),
    }
    few = prompts[:count_elsewhere]
    at = {(TEXT_TOKENS, GUIDANCE): seen.first(len(few))}
    at |= {(tokens, guidance): pictures(few, SEEDS["styled"], tokens, guidance) for tokens, guidance in OTHER_SETTINGS}
    elsewhere = {
        f"{tokens} text tokens, guidance {guidance:g}": {
            "style": share(samples.style),
            "content": share(samples.content),
            "raw reward": mean(reward_scores(reward, samples.images, [text for text, _ in few])["raw reward"]),
            "saturation": mean(samples.saturation),
        }
        for (tokens, guidance), samples in at.items()
    }
    return {"samples": figures, "samples at other settings": elsewhere}


def measure_alignment(
    models: Mapping[str, str | Path],
    prompts: Sequence[tuple[str, Scene]] | None = None,
    first_seed: int = SEEDS["neutral"],
) -> dict[str, dict[str, Share | Mean | Ratio]]:
    """Each model against the base on the same neutral prompts and seeds: paired differences with their intervals.

    models: name -> weights file; the base itself is always measured, under "base". The first model is also compared
    with each of the others: "photo minus <other>". Differences of shares are shares, not percentage points.
    prompts: by default 512 test prompts, one picture each. For tuning take `neutral_prompts("train")` and a first seed
    outside `SEEDS`, so that the test prompts and their noise stay unseen.
    """
    prompts = neutral_prompts("test")[:NUM_PROMPTS] if prompts is None else prompts
    base = FluxPolicy.from_pretrained(paths.FLUX, max_sequence_length=TEXT_TOKENS)
    judge, reward = Judge.from_pretrained(paths.JUDGE), ClipReward.from_pretrained(paths.REWARD)

    def measured(policy: FluxPolicy) -> tuple[Samples, dict[str, Tensor]]:
        samples = judged(judge, policy, prompts, first_seed)
        scores = reward_scores(reward, samples.images, [text for text, _ in prompts])
        return samples, {"saturation": samples.saturation, "clipped": samples.clipped, **scores}

    before, values_before = measured(base)
    rows: dict[str, dict[str, Share | Mean | Ratio]] = {"base": _row(before, values_before)}
    photos: dict[str, Tensor] = {}
    for name, weights in models.items():
        after, values = measured(base.with_transformer(load_transformer(weights, base.transformer)))
        rows[name] = _row(after, values) | {
            "photo difference": mean(after.photo.double() - before.photo.double()),
            "content difference": mean(after.content.double() - before.content.double()),
            **{f"{what} difference": mean(values[what] - values_before[what]) for what in values},
        }
        if before.photo.any():
            rows[name]["photo ratio"] = share_ratio(after.photo, before.photo)
        photos[name] = after.photo.double()
    names = list(models)
    for first, other in itertools.product(names[:1], names[1:]):
        rows[first][f"photo minus {other}"] = mean(photos[first] - photos[other])
    return rows


def _row(samples: Samples, values: Mapping[str, Tensor]) -> dict[str, Share | Mean | Ratio]:
    means = {what: mean(value) for what, value in values.items()}
    return {"photo": share(samples.photo), "content": share(samples.content), **means}
