"""The miniature's judge: which subject, colour, place, time and style a picture shows.

It stands for the human raters and never rewards anything. It is a transformers ResNet with one logit per class of every
attribute ("style:photo"); the classes of one attribute compete in a softmax of their own. Its own pictures, seeds and
augmentation keep it apart from the reward and from the generator.

B pictures, K logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import ResNetConfig, ResNetForImageClassification

from srpo.evaluation.shares import Share, share
from srpo.loading import one_at_a_time
from srpo.miniature.augment import grainy, moved, recoloured, softened, toned
from srpo.miniature.data import Pictures, batches, scenes_hash, training_scenes
from srpo.miniature.loop import train
from srpo.miniature.renderer import SIZE, render
from srpo.miniature.world import ATTRIBUTES, Scene, attributes

JUDGE_PICTURES = (8_000, 7)  # count and seed of the pictures it learns from, which nothing else sees
LABELS = [f"{name}:{value}" for name, values in ATTRIBUTES.items() for value in values]


def new_judge() -> ResNetForImageClassification:
    """A ResNet of 0.9 M parameters for 128 x 128 pictures in [-1, 1]."""
    config = ResNetConfig(
        embedding_size=32,
        hidden_sizes=[32, 64, 96, 160],
        depths=[1, 2, 2, 1],
        layer_type="basic",
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )
    return ResNetForImageClassification(config)


class Judge:
    """The trained classifier with what its logits mean."""

    def __init__(self, model: ResNetForImageClassification) -> None:
        self.model = model.float().eval().requires_grad_(False)
        labels = [model.config.id2label[index].split(":", 1) for index in range(model.config.num_labels)]
        self.classes: dict[str, list[str]] = {}
        for name, value in labels:
            self.classes.setdefault(name, []).append(value)

    @classmethod
    @one_at_a_time
    def from_pretrained(cls, folder: str | Path) -> Judge:
        """The judge stored in a folder. ValueError where there is none."""
        try:
            model = ResNetForImageClassification.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
        except OSError as error:
            raise ValueError(f"no judge at {str(folder)!r}: expected config.json and model.safetensors") from error
        if not all(":" in label for label in model.config.id2label.values()):
            raise ValueError(f"the classifier at {str(folder)!r} is no judge: its labels lack the form 'style:photo'")
        return cls(model)

    @torch.no_grad()
    def probabilities(self, image: Tensor) -> dict[str, Tensor]:
        """(B, classes) probabilities by attribute, of images (B, 3, H, W) in [0, 1], in the order of `classes`."""
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(f"expected images of shape (B, 3, H, W), got {tuple(image.shape)}")
        if image.shape[-2:] != (SIZE, SIZE):
            image = F.interpolate(image, size=(SIZE, SIZE), mode="bicubic", antialias=True, align_corners=False)
        logits = self.model(image.float().clamp(0, 1) * 2 - 1).logits
        parts = logits.split([len(values) for values in self.classes.values()], dim=-1)
        return {name: part.softmax(-1) for name, part in zip(self.classes, parts, strict=True)}

    def verdict(self, image: Tensor) -> list[dict[str, str]]:
        """The likeliest class of every attribute, for each image of (B, 3, H, W) in [0, 1]."""
        best = {name: table.argmax(-1).tolist() for name, table in self.probabilities(image).items()}
        return [{name: self.classes[name][best[name][i]] for name in best} for i in range(len(image))]


def train_judge(
    pictures: Pictures,
    *,
    updates: int,
    batch: int = 64,
    lr: float = 2e-3,
    seed: int = 700,
    start: ResNetForImageClassification | None = None,
) -> ResNetForImageClassification:
    """The judge, trained from `start` or anew on pictures nothing else sees: `load_pictures(*JUDGE_PICTURES)`.

    Half of the pictures come in other colours and are asked for their subject alone: no subject is to be known by its
    colour, or the pairs held out of all training would be misjudged.
    """
    torch.manual_seed(seed)
    model = (start or new_judge()).requires_grad_(True).to(memory_format=torch.channels_last).train()
    truth = _class_numbers(pictures.scenes)
    order = None

    def step(update: int) -> tuple[Tensor, dict[str, float]]:
        nonlocal order
        order = order or batches(len(pictures), batch, seed, start=update)
        index = next(order)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + update)
        image, recolour = recoloured(pictures.images(index), generator)
        image = _augmented(image, generator).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(image * 2 - 1).logits
        parts = logits.float().split([len(values) for values in ATTRIBUTES.values()], dim=-1)
        target = truth[torch.from_numpy(index)]
        asked = {name: slice(None) if name == "subject" else ~recolour for name in ATTRIBUTES}
        answers = {
            name: (part[asked[name]], target[asked[name], i])
            for i, (name, part) in enumerate(zip(ATTRIBUTES, parts, strict=True))
        }
        loss = sum(F.cross_entropy(logits, classes) for logits, classes in answers.values())
        return loss, {f"right_{name}": _hit_rate(*answer) for name, answer in answers.items()}

    settings = {"seed": seed, "batch": batch, "scenes": scenes_hash(pictures.scenes)}
    train("judge", {"judge": model}, step, settings=settings, updates=updates, lr=lr)
    return model.eval()


def save_judge(model: ResNetForImageClassification, folder: str | Path) -> None:
    """Write the judge's folder, 16-bit."""
    model.half().save_pretrained(folder)


def judge_accuracy(
    judge: Judge,
    count: int,
    seed: int,
    *,
    pairs: Sequence[tuple[str, str]] | None = None,
    change: Callable[[Tensor], Tensor] = lambda image: image,
    batch: int = 64,
) -> dict[str, Share]:
    """Share of right verdicts on clean renders of unseen seeds, by attribute and by attribute within each style.

    The keys are "subject", "subject in anime" ... `pairs` replaces subject and colour by pairs of one's choice, such as
    those held out; `change` is done to the images (B, 3, H, W) before they are judged.
    """
    scenes = training_scenes(count, seed)
    if pairs is not None:
        rng = np.random.default_rng(seed)
        chosen = [pairs[i] for i in rng.integers(len(pairs), size=count)]
        scenes = [replace(scene, subject=s, colour=c) for scene, (s, c) in zip(scenes, chosen, strict=True)]
    parts = [scenes[start : start + batch] for start in range(0, count, batch)]
    found = [verdict for part in parts for verdict in judge.verdict(change(render(part)))]
    hits: dict[str, list[bool]] = {}
    for scene, verdict in zip(scenes, found, strict=True):
        for name, value in attributes(scene).items():
            hits.setdefault(name, []).append(verdict[name] == value)
            if name != "style":
                hits.setdefault(f"{name} in {scene.style}", []).append(verdict[name] == value)
            else:
                hits.setdefault(f"style of {value}", []).append(verdict[name] == value)
    return {name: share(values) for name, values in hits.items()}


def _augmented(image: Tensor, generator: torch.Generator) -> Tensor:
    """What a small diffusion model might do to a picture, mild enough that the truth stays true."""
    image = softened(moved(image, generator), generator)
    return grainy(toned(image, generator), generator).clamp(0, 1)


def _class_numbers(scenes: Sequence[Scene]) -> Tensor:
    """(N, attributes) the number of each scene's class within its attribute."""
    return torch.tensor([[ATTRIBUTES[name].index(value) for name, value in attributes(s).items()] for s in scenes])


def _hit_rate(logits: Tensor, target: Tensor) -> float:
    return float((logits.argmax(-1) == target).float().mean())
