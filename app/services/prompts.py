"""What the page suggests: prompts to start from, and the control words."""

from __future__ import annotations

from app.services.requests import PLAIN
from srpo.miniature.world import COLOURS, PLACES, STYLE_WORDS, SUBJECTS, TIMES, TONE_WORDS

MINIATURE_EXAMPLES = (
    "a red ball on a beach at sunset",
    "a blue house on a beach at noon",
    "a green tree in the snow at noon",
    "a purple mushroom in a meadow at sunset",
)
FLUX_EXAMPLES = (
    "a woman reading by a window on a rainy afternoon",
    "an old fisherman mending a net, harbour at dawn",
    "a bowl of ramen on a wooden table",
    "a street in Lisbon after the rain",
)


def examples(is_full_size: bool) -> tuple[str, ...]:
    return FLUX_EXAMPLES if is_full_size else MINIATURE_EXAMPLES


def miniature_world() -> str:
    """What the miniature can be asked for, in a line."""
    things, places, times = (", ".join(names) for names in (SUBJECTS, PLACES, TIMES))
    return (
        f"The miniature knows {len(SUBJECTS)} things ({things}), {len(COLOURS)} colours, "
        f"{len(PLACES)} places ({places}) and {len(TIMES)} times of day ({times})."
    )


def control_words() -> list[tuple[str, str]]:
    """(label, word) of every control word the page offers, the way to have none first."""
    styles = [(f"{word}  ·  {style}", word) for style, words in STYLE_WORDS.items() for word in words]
    tones = [(f"{word}  ·  light and saturation", word) for word in TONE_WORDS]
    return [("None", PLAIN), *styles, *tones]
