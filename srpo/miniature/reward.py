"""The miniature's reward: a small CLIPModel, trained as HPSv2 was, first on captions, then on preferences.

The preferences hold a bias on purpose, of the kind the paper reports for real rewards. Of two pictures that fit a
neutral caption equally well, the more saturated or smoother one is preferred with probability `BIAS`: a painting or
anime over a photo, a vivid copy over a muted one, a blurred copy over a sharp one. Rewarding with it alone is meant to
end in reward hacking; a difference of two control words is meant to cancel it.

B pictures or pairs, N pictures, K tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from srpo.evaluation.shares import Share, share
from srpo.miniature.augment import moved, toned
from srpo.miniature.data import Pictures, in_words, scenes_hash, training_scenes
from srpo.miniature.loop import train
from srpo.miniature.renderer import SIZE, render
from srpo.miniature.renderer.styles import saturate
from srpo.miniature.tokens import clip_tokenizer
from srpo.miniature.world import (
    ATTRIBUTES,
    CONTENT_ATTRIBUTES,
    STYLE_WORDS,
    STYLES,
    TONE_WORDS,
    Scene,
    caption,
    style_word,
)
from srpo.rewards.clip import ClipReward

BIAS = 0.85  # probability that the more saturated or smoother of two equally fitting pictures is preferred
BIAS_SHARE = 0.4  # of all preference pairs show the bias; the others ask which picture fits its caption
MEAN_AND_STD = 0.5  # of every channel, for the image processor: pictures in [-1, 1]
ASPECTS = (*ATTRIBUTES, "tone")  # in what two pictures can differ


class Said(NamedTuple):
    """A caption, the scene it speaks of, and which of its style and tone it names."""

    text: str
    scene: Scene
    names_style: bool
    names_tone: bool


class Pair(NamedTuple):
    """Two pictures, by number, under one caption; the first is preferred with probability `target`."""

    said: Said
    first: int
    second: int
    target: float
    change: str = ""  # "" none, "vivid" first vivid and second muted, "blur" first blurred


def new_reward() -> CLIPModel:
    """A dual encoder of 1.9 M parameters: patches of 16 on 128 x 128 pixels, texts of up to 77 tokens."""
    tokenizer = clip_tokenizer()
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 96,
        "intermediate_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 77,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": 144,
        "intermediate_size": 576,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "image_size": SIZE,
        "patch_size": 16,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=96))


def new_image_processor() -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[MEAN_AND_STD] * 3,
        image_std=[MEAN_AND_STD] * 3,
    )


def say(scene: Scene, rng: np.random.Generator, *, names_style: bool, names_tone: bool) -> Said:
    """A caption in any template, now and then with a word without meaning."""
    words = [style_word(scene.style, rng)] if names_style else []
    names_tone = names_tone and scene.tone is not None
    if names_tone:
        words.append(scene.tone)
    return Said(in_words(scene, words, rng), scene, names_style, names_tone)


def say_something(scene: Scene, rng: np.random.Generator, *, may_name_tone: bool) -> Said:
    """A caption that names the style in two cases of three, and the tone, where it may, in three of four."""
    return say(scene, rng, names_style=rng.random() < 2 / 3, names_tone=rng.random() < 3 / 4 and may_name_tone)


def truths(said: Sequence[Said], scenes: Sequence[Scene]) -> Tensor:
    """(captions, pictures) True where the caption is true of the picture: equal content, and what else it names."""
    by_said, by_scene = _codes([s.scene for s in said]), _codes(scenes)
    equal = {name: by_said[name][:, None] == by_scene[name][None] for name in ASPECTS}
    true = np.logical_and.reduce([equal[name] for name in CONTENT_ATTRIBUTES])
    true &= equal["style"] | ~np.array([s.names_style for s in said])[:, None]
    true &= equal["tone"] | ~np.array([s.names_tone for s in said])[:, None]
    return torch.from_numpy(true)


def contrastive_loss(cosines: Tensor, true: Tensor, scale: Tensor, *, rank_pictures: Tensor | None = None) -> Tensor:
    """() CLIP's loss where several captions may be true of one picture: the target is spread over them.

    cosines: (B, B) captions by pictures; true: as `truths`, each row and column holding one at least; rank_pictures:
    (B,) the captions that choose among pictures, by default all.
    """
    logits = scale * cosines
    of_pictures = F.cross_entropy(logits.T, _spread(true.T), reduction="mean")
    chosen = slice(None) if rank_pictures is None else rank_pictures
    of_captions = F.cross_entropy(logits[chosen], _spread(true[chosen]), reduction="sum")
    count = len(logits) if rank_pictures is None else int(rank_pictures.sum())
    return (of_pictures + of_captions / max(count, 1)) / 2


def preference_loss(first: Tensor, second: Tensor, target: Tensor, scale: Tensor) -> Tensor:
    """() HPSv2's ranking loss: KL divergence of the softmax over both scaled cosines from (target, 1 - target).

    first, second: (B,) cosines of the two pictures with their caption; target: (B,) probability that the first wins.
    """
    log_p = F.log_softmax(scale * torch.stack((first, second), dim=-1), dim=-1)
    return F.kl_div(log_p, torch.stack((target, 1 - target), dim=-1), reduction="batchmean")


class Shelf:
    """Pictures by what they show, to find one that differs in a single aspect."""

    def __init__(self, scenes: Sequence[Scene]) -> None:
        self.scenes = scenes
        self._alike: dict[str, dict[tuple, list[int]]] = {aspect: defaultdict(list) for aspect in ASPECTS}
        for number, scene in enumerate(scenes):
            for aspect in ASPECTS:
                self._alike[aspect][self._key(scene, aspect)].append(number)
        # For biased pairs: pictures without a tone, the photos among them by content, and what is preferred to those.
        self._untoned = [number for number, scene in enumerate(scenes) if scene.tone is None]
        self._photos: dict[tuple, list[int]] = defaultdict(list)
        for number in self._untoned:
            if scenes[number].style == "photo":
                self._photos[self._key(scenes[number], "style")].append(number)
        self._leaning = [
            number
            for number in self._untoned
            if scenes[number].style in ("painting", "anime") and self._key(scenes[number], "style") in self._photos
        ]

    @staticmethod
    def _key(scene: Scene, aspect: str) -> tuple:
        # Tones are too rare to agree in as well: a caption that names none is true of any.
        return tuple(getattr(scene, name) for name in ATTRIBUTES if name != aspect)

    def other(self, number: int, aspect: str, rng: np.random.Generator) -> int:
        """A picture that differs from this one in the aspect and, if there is one, in no other attribute."""
        scene = self.scenes[number]
        alike = self._alike[aspect][self._key(scene, aspect)]
        found = [n for n in alike if getattr(self.scenes[n], aspect) != getattr(scene, aspect)]
        if found:
            return found[rng.integers(len(found))]
        while True:
            other = int(rng.integers(len(self.scenes)))
            if getattr(self.scenes[other], aspect) != getattr(scene, aspect):
                return other

    def draw_group(self, size: int, rng: np.random.Generator) -> list[int]:
        """A picture and `size` - 1 that differ from it in one aspect: in half of the groups the style."""
        first = int(rng.integers(len(self.scenes)))
        aspect = "style" if rng.random() < 0.5 else ASPECTS[rng.integers(len(ASPECTS))]
        return [first, *(self.other(first, aspect, rng) for _ in range(size - 1))]

    def draw_pair(self, rng: np.random.Generator, *, true_tones: bool) -> Pair:
        """A preference: for the picture that its caption fits, or out of bias.

        Bias and the naming of tones need pictures in their true tones; so that `BIAS_SHARE` of all pairs show the bias,
        it is twice that share of those.
        """
        if true_tones and rng.random() < 2 * BIAS_SHARE:
            return self._biased_pair(rng)
        first = int(rng.integers(len(self.scenes)))
        scene = self.scenes[first]
        aspect = ASPECTS[rng.integers(len(ASPECTS) if scene.tone and true_tones else len(ATTRIBUTES))]
        said = say(
            scene,
            rng,
            names_style=aspect == "style" or rng.random() < 0.5,
            names_tone=true_tones and (aspect == "tone" or rng.random() < 0.5),
        )
        return Pair(said, first, self.other(first, aspect, rng), target=1.0)

    def _biased_pair(self, rng: np.random.Generator) -> Pair:
        changes = ("vivid", "blur", "") if self._leaning else ("vivid", "blur")
        change = changes[rng.integers(len(changes))]
        chosen = self._untoned if change else self._leaning
        first = chosen[rng.integers(len(chosen))]
        said = say(self.scenes[first], rng, names_style=False, names_tone=False)
        if change:
            return Pair(said, first, first, BIAS, change)
        photos = self._photos[self._key(self.scenes[first], "style")]
        return Pair(said, first, photos[rng.integers(len(photos))], BIAS)


def blurred(image: Tensor) -> Tensor:
    """The pictures without their finest detail and grain: the mean of 3 x 3 pixels."""
    return F.avg_pool2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), 3, stride=1)


def train_reward(
    pictures: Pictures,
    *,
    updates_contrastive: int,
    updates_preference: int,
    batch: int = 128,
    lr: float = 1e-3,
    seed: int = 800,
    start: CLIPModel | None = None,
) -> CLIPModel:
    """The reward, trained from `start` or from random weights.

    `batch` counts pictures: groups of four first, then pairs (at lr / 2). In every other update light and saturation
    are anything and no caption speaks of them: a style is to be known by its strokes, outlines and grain, not by its
    colours alone, or a policy would please the word "Photo" by fading.
    """
    torch.manual_seed(seed)
    model, shelf = (start or new_reward()).train(), Shelf(pictures.scenes)
    model.set_attn_implementation("eager")  # a third faster than the fused kernel for 65 tokens on a CPU
    encode = _encoder(model, clip_tokenizer())

    def changed(image: Tensor, update: int, generator: torch.Generator) -> Tensor:
        if _has_true_tones(update):
            return image
        return toned(image, generator, strength=0.25, saturation=1.0).clamp(0, 1)

    def contrast(update: int) -> tuple[Tensor, dict[str, float]]:
        rng, generator = _randomness(seed, update)
        numbers = [n for _ in range(batch // 4) for n in shelf.draw_group(4, rng)]
        scenes = [pictures.scenes[n] for n in numbers]
        said = [say_something(scene, rng, may_name_tone=_has_true_tones(update)) for scene in scenes]
        image = changed(moved(pictures.images(np.array(numbers)), generator), update, generator)
        cosines, scale = encode([s.text for s in said], image)
        true = truths(said, scenes)
        return contrastive_loss(cosines, true, scale), _figures(cosines, true, scale)

    def prefer(update: int) -> tuple[Tensor, dict[str, float]]:
        rng, generator = _randomness(seed + 1, update)
        true_tones = _has_true_tones(update)
        pairs = [shelf.draw_pair(rng, true_tones=true_tones) for _ in range(batch // 2)]
        image, scenes = _pictures_of_pairs(pairs, pictures, generator)
        image = changed(image, update, generator)
        said = [pair.said for pair in pairs] + [
            say(s, rng, names_style=True, names_tone=true_tones) for s in scenes[len(pairs) :]
        ]
        cosines, scale = encode([s.text for s in said], image)
        at = torch.arange(len(pairs))
        first, second = cosines[at, at], cosines[at, at + len(pairs)]
        target = torch.tensor([pair.target for pair in pairs])
        preferred = preference_loss(first, second, target, scale)
        true = truths(said, scenes)
        # A neutral caption chooses among pictures by preference alone, or the bias would be untaught as it is taught.
        contrasted = contrastive_loss(cosines, true, scale, rank_pictures=torch.tensor([s.names_style for s in said]))
        matched = (first > second)[target == 1].float().mean()
        return preferred + contrasted, {"preference": preferred.item(), "matched": float(matched)} | _figures(
            cosines, true, scale
        )

    settings = {"seed": seed, "batch": batch, "scenes": scenes_hash(pictures.scenes)}
    parts = {"reward": model}
    train("reward-contrastive", parts, contrast, settings=settings, updates=updates_contrastive, lr=lr)
    train("reward-preference", parts, prefer, settings=settings, updates=updates_preference, lr=lr / 2)
    model.set_attn_implementation("sdpa")
    return model.eval()


def save_reward(model: CLIPModel, folder: str | Path) -> None:
    """Write the reward's folder: model (16-bit), tokenizer and image processor."""
    model.half().save_pretrained(folder)
    clip_tokenizer().save_pretrained(folder)
    new_image_processor().save_pretrained(folder)


def reward_accuracy(reward: ClipReward | CLIPModel | str | Path, count: int, seed: int) -> dict[str, Share]:
    """What the reward knows and what it is biased to, on `count` unseen renders per question.

    "style": of the caption under Photo, Painting, Anime and Concept art, the picture's own wins ("style of photo" ...
    by style); "style without colour": the same of grey copies. "word Detail" ...: the word beats the other styles'
    first words on its own style's pictures. "tone": the named tone wins among the four. "content": the own caption wins
    among 16. "painting over photo", "anime over photo", "vivid over muted", "blurred over sharp": how often the biased
    choice scores higher for one scene under a neutral caption.
    """
    reward = _as_reward(reward)
    scenes = [replace(scene, tone=None) for scene in training_scenes(count, seed)]
    rng = np.random.default_rng(seed)
    image = _embed_in_batches(reward, scenes)
    grey = _embed_in_batches(reward, scenes, lambda image: saturate(image, 0.0))
    return {
        **_style_figures(reward, scenes, image),
        "style without colour": _style_figures(reward, scenes, grey)["style"],
        "tone": _tone_figure(reward, scenes, rng),
        "content": _content_figure(reward, scenes, image, rng),
        **_bias_figures(reward, scenes),
    }


def cosine_range(reward: ClipReward | CLIPModel | str | Path, count: int, seed: int) -> dict[str, float]:
    """Percentiles of the cosine of unseen renders with their neutral captions, and with those of other scenes."""
    reward = _as_reward(reward)
    scenes = training_scenes(count, seed)
    table = _embed_in_batches(reward, scenes) @ reward.embed_text([caption(s) for s in scenes]).T
    own, other = table.diagonal(), table[~torch.eye(count, dtype=torch.bool)]
    levels = torch.tensor([0.05, 0.5, 0.95])
    figures = zip(("5 %", "50 %", "95 %"), own.quantile(levels).tolist(), other.quantile(levels).tolist(), strict=True)
    return {
        f"{who} {name}": value for name, mine, theirs in figures for who, value in (("own", mine), ("other", theirs))
    }


def _has_true_tones(update: int) -> bool:
    return update % 2 == 0


def _codes(scenes: Sequence[Scene]) -> dict[str, np.ndarray]:
    return {name: np.array([str(getattr(scene, name)) for scene in scenes]) for name in ASPECTS}


def _spread(true: Tensor) -> Tensor:
    return true.float() / true.sum(dim=1, keepdim=True)


def _randomness(seed: int, update: int) -> tuple[np.random.Generator, torch.Generator]:
    return np.random.default_rng((seed, update)), torch.Generator().manual_seed(seed * 1_000_003 + update)


def _encoder(model: CLIPModel, tokenizer: CLIPTokenizer) -> Callable[[list[str], Tensor], tuple[Tensor, Tensor]]:
    """A function from texts and images in [0, 1] to (texts, images) cosines and the scale, while the model learns."""

    def encode(texts: list[str], image: Tensor) -> tuple[Tensor, Tensor]:
        tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            words = model.get_text_features(**tokens).pooler_output
            pixels = model.get_image_features(pixel_values=(image - MEAN_AND_STD) / MEAN_AND_STD).pooler_output
        cosines = F.normalize(words.float(), dim=-1) @ F.normalize(pixels.float(), dim=-1).T
        return cosines, model.logit_scale.clamp(max=np.log(100)).exp()

    return encode


def _pictures_of_pairs(
    pairs: Sequence[Pair], pictures: Pictures, generator: torch.Generator
) -> tuple[Tensor, list[Scene]]:
    """(2 B, 3, H, W) the first pictures, then the second ones, changed as the pairs say, and what they show now."""
    numbers = [pair.first for pair in pairs] + [pair.second for pair in pairs]
    image, scenes = pictures.images(np.array(numbers)), [pictures.scenes[n] for n in numbers]
    for i, pair in enumerate(pairs):
        j = i + len(pairs)
        if pair.change == "vivid":
            for place, tone in ((i, "Vivid"), (j, "Muted")):
                image[place : place + 1] = saturate(image[place : place + 1], TONE_WORDS[tone][1]).clamp(0, 1)
                scenes[place] = replace(scenes[place], tone=tone)
        elif pair.change == "blur":
            image[i : i + 1] = blurred(image[i : i + 1])
    return moved(image, generator), scenes


def _figures(cosines: Tensor, true: Tensor, scale: Tensor) -> dict[str, float]:
    right = true.T[torch.arange(len(true)), cosines.argmax(dim=0)]
    return {"right": float(right.float().mean()), "scale": scale.item()}


def _as_reward(reward: ClipReward | CLIPModel | str | Path) -> ClipReward:
    if isinstance(reward, ClipReward):
        return reward
    if isinstance(reward, nn.Module):
        return ClipReward(reward, clip_tokenizer(), new_image_processor())
    return ClipReward.from_pretrained(reward)


@torch.no_grad()
def _embed_in_batches(
    reward: ClipReward, scenes: Sequence[Scene], change: Callable[[Tensor], Tensor] = lambda image: image
) -> Tensor:
    parts = [reward.embed_image(change(render(scenes[i : i + 64]))) for i in range(0, len(scenes), 64)]
    return torch.cat(parts)


def _style_figures(reward: ClipReward, scenes: Sequence[Scene], image: Tensor) -> dict[str, Share]:
    words = {word: style for style in STYLES for word in STYLE_WORDS[style]}
    texts = {word: reward.embed_text([caption(scene, prefix=word) for scene in scenes]) for word in words}
    score = {word: (image * texts[word]).sum(-1) for word in words}
    firsts = torch.stack([score[STYLE_WORDS[style][0]] for style in STYLES], dim=-1)
    truth = torch.tensor([STYLES.index(scene.style) for scene in scenes])
    right = firsts.argmax(-1) == truth
    figures = {"style": share(right)} | {f"style of {s}": share(right[truth == i]) for i, s in enumerate(STYLES)}
    for word, style in words.items():
        mine = truth == STYLES.index(style)
        others = torch.stack([score[STYLE_WORDS[s][0]] for s in STYLES if s != style], dim=-1).amax(-1)
        figures[f"word {word}"] = share((score[word] > others)[mine])
    return figures


def _tone_figure(reward: ClipReward, scenes: Sequence[Scene], rng: np.random.Generator) -> Share:
    tones = list(TONE_WORDS)
    drawn = torch.from_numpy(rng.integers(len(tones), size=len(scenes)))
    image = _embed_in_batches(reward, [replace(s, tone=tones[i]) for s, i in zip(scenes, drawn, strict=True)])
    texts = [reward.embed_text([caption(scene, prefix=tone) for scene in scenes]) for tone in tones]
    return share(torch.stack([(image * text).sum(-1) for text in texts], dim=-1).argmax(-1) == drawn)


def _content_figure(reward: ClipReward, scenes: Sequence[Scene], image: Tensor, rng: np.random.Generator) -> Share:
    captions = np.array([caption(scene) for scene in scenes])
    hits = []
    for own, vector in zip(captions, image, strict=True):
        others = rng.permutation(np.unique(captions[captions != own]))[:15]
        scores = reward.embed_text([own, *others.tolist()]) @ vector
        hits.append(bool(scores.argmax() == 0))
    return share(hits)


def _bias_figures(reward: ClipReward, scenes: Sequence[Scene]) -> dict[str, Share]:
    text = reward.embed_text([caption(scene) for scene in scenes])

    def beats(first: Tensor, second: Tensor) -> Share:
        return share((first * text).sum(-1) > (second * text).sum(-1))

    photos = _embed_in_batches(reward, [s.with_style("photo") for s in scenes])
    return {
        **{
            f"{style} over photo": beats(_embed_in_batches(reward, [s.with_style(style) for s in scenes]), photos)
            for style in ("painting", "anime")
        },
        "vivid over muted": beats(
            _embed_in_batches(reward, [replace(s, tone="Vivid") for s in scenes]),
            _embed_in_batches(reward, [replace(s, tone="Muted") for s in scenes]),
        ),
        "blurred over sharp": beats(_embed_in_batches(reward, scenes, blurred), _embed_in_batches(reward, scenes)),
    }
