"""The small world the miniature lives in: what can be in a picture, and how it is said in words.

A `Scene` describes one picture completely; `renderer.render` draws it and `caption` says it. Both are
deterministic: the same scene gives the same picture and, from the same generator, the same words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

SUBJECTS = ("ball", "cube", "pyramid", "tree", "house", "boat", "flower", "mushroom")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
PLACES = ("beach", "meadow", "desert", "snow", "sea")
TIMES = ("noon", "sunset", "night")
STYLES = ("photo", "painting", "anime", "concept art")

PLACE_PHRASES = {
    "beach": "on a beach",
    "meadow": "in a meadow",
    "desert": "in a desert",
    "snow": "in the snow",
    "sea": "on the sea",
}
TIME_PHRASES = {"noon": "at noon", "sunset": "at sunset", "night": "at night"}

# The paper's control words and a few more, by the style they name here.
STYLE_WORDS: dict[str, tuple[str, ...]] = {
    "photo": ("Photo", "Real", "Detail", "Detailed", "Natural-lighting"),
    "painting": ("Painting", "Oil"),
    "anime": ("Anime", "Flat"),
    "concept art": ("Concept art",),
}
# Words that move light or saturation and leave the style alone: exposure, saturation.
TONE_WORDS: dict[str, tuple[float, float]] = {
    "Dark": (0.55, 1.0),
    "Bright": (1.45, 1.0),
    "Vivid": (1.0, 1.6),
    "Muted": (1.0, 0.45),
}

# A tenth of the (subject, colour) pairs, each subject and each colour at most once: never in any training picture,
# kept to ask whether the models compose what they know.
HELD_OUT_PAIRS = (
    ("ball", "purple"),
    ("cube", "yellow"),
    ("tree", "blue"),
    ("house", "green"),
    ("flower", "orange"),
    ("mushroom", "white"),
)
SEEN_PAIRS = tuple((s, c) for s in SUBJECTS for c in COLOURS if (s, c) not in HELD_OUT_PAIRS)

# How pictures whose caption names no style lean among the styles: the miniature's "AI look", which SRPO has to undo.
NEUTRAL_STYLE_SHARES = {"photo": 0.16, "painting": 0.32, "anime": 0.26, "concept art": 0.26}

NUM_TRAIN_PROMPTS = 320  # of the 870 neutral captions of seen pairs

CAPTION_TEMPLATES = (
    "a {colour} {subject} {place} {time}",
    "{place} {time}, a {colour} {subject}",
    "a {colour} {subject} {time}, {place}",
)


@dataclass(frozen=True)
class Scene:
    """One picture. Everything random about it that has no name of its own follows from `seed`."""

    subject: str
    colour: str
    place: str
    time: str
    style: str
    tone: Literal["Dark", "Bright", "Vivid", "Muted"] | None = None
    x: float = 0.5  # centre of the subject, as a share of the width
    size: float = 0.5  # height of the subject, as a share of the height
    light: float = 0.5  # where the light comes from: -1 left, +1 right
    seed: int = 0

    def with_style(self, style: str) -> Scene:
        return replace(self, style=style)


def sample_scene(
    rng: np.random.Generator,
    *,
    style: str | None = None,
    pairs: Sequence[tuple[str, str]] = SEEN_PAIRS,
    tone_share: float = 0.2,
) -> Scene:
    """A random scene; a style of None is drawn as neutral captions have it, `tone_share` of the scenes carry a tone."""
    subject, colour = pairs[rng.integers(len(pairs))]
    if style is None:
        style = str(rng.choice(list(NEUTRAL_STYLE_SHARES), p=list(NEUTRAL_STYLE_SHARES.values())))
    return Scene(
        subject=subject,
        colour=colour,
        place=PLACES[rng.integers(len(PLACES))],
        time=TIMES[rng.integers(len(TIMES))],
        style=style,
        tone=list(TONE_WORDS)[rng.integers(len(TONE_WORDS))] if rng.random() < tone_share else None,
        x=float(rng.uniform(0.32, 0.68)),
        size=float(rng.uniform(0.42, 0.62)),
        light=float(rng.uniform(0.35, 1.0) * rng.choice((-1, 1))),
        seed=int(rng.integers(2**31)),
    )


def caption(scene: Scene, *, prefix: str | None = None, template: str = CAPTION_TEMPLATES[0]) -> str:
    """The scene in plain English, with an optional "<word>. " in front: "Photo. a red ball on a beach at sunset"."""
    article = "an" if scene.colour[0] in "aeiou" else "a"
    words = template.format(
        colour=scene.colour, subject=scene.subject, place=PLACE_PHRASES[scene.place], time=TIME_PHRASES[scene.time]
    ).replace(f"a {scene.colour}", f"{article} {scene.colour}")
    return f"{prefix}. {words}" if prefix else words


def style_word(style: str, rng: np.random.Generator) -> str:
    """One of the words that name the style."""
    words = STYLE_WORDS[style]
    return words[rng.integers(len(words))]


def attributes(scene: Scene) -> dict[str, str]:
    """What a judge can be asked about the picture, by name."""
    return {name: getattr(scene, name) for name in ATTRIBUTES}


# Content first, style last: the four content attributes are what "all four right" counts.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "subject": SUBJECTS,
    "colour": COLOURS,
    "place": PLACES,
    "time": TIMES,
    "style": STYLES,
}
CONTENT_ATTRIBUTES = ("subject", "colour", "place", "time")


def neutral_prompts(split: Literal["train", "test"]) -> list[tuple[str, Scene]]:
    """All plain captions without a prefix, each with a scene it speaks of, in a fixed random order.

    The first 320 are for training and tuning, the other 550 for measuring. Held-out pairs are in neither; style
    and seed of the scenes mean nothing.
    """
    every = [
        Scene(subject, colour, place, time, STYLES[0])
        for subject, colour in SEEN_PAIRS
        for place in PLACES
        for time in TIMES
    ]
    order = np.random.default_rng(2509).permutation(len(every))
    train, test = [every[i] for i in order[:NUM_TRAIN_PROMPTS]], [every[i] for i in order[NUM_TRAIN_PROMPTS:]]
    return [(caption(scene), scene) for scene in (train if split == "train" else test)]


def held_out_prompts() -> list[tuple[str, Scene]]:
    """All plain captions of the held-out pairs, each with a scene it speaks of."""
    scenes = [Scene(s, c, place, time, STYLES[0]) for s, c in HELD_OUT_PAIRS for place in PLACES for time in TIMES]
    return [(caption(scene), scene) for scene in scenes]
