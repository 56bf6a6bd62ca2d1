"""What raters are asked: the paper's four dimensions and an overall choice, with rubrics in our words.

The paper (section on human evaluation) has five raters give each picture Excellent, Good, Pass or Fail on four
dimensions and derives an Overall from them. A pairwise study asks the overall question itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

LEVELS = ("Excellent", "Good", "Pass", "Fail")  # the best first
SIDES = ("left", "right")
CHOICES = (*SIDES, "tie", "both bad")
OVERALL = "overall"


class Criterion(BaseModel):
    """One question about a pair or a picture, with what to look for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str  # short and plain: it names a column in what is exported
    title: str
    question: str  # as asked about a pair
    rubric: tuple[str, ...] = ()


ALIGNMENT = Criterion(
    key="alignment",
    title="Text-image alignment",
    question="Which picture shows what the text asks for?",
    rubric=(
        "Look for every thing the text names, its number, colour and place, what it does, and the style asked for.",
        "Excellent: all of it is there, and nothing contradicts it. Good: a detail is off.",
        "Pass: the main subject is right, and something that matters is missing or wrong. Fail: another picture.",
    ),
)
REALISM = Criterion(
    key="realism",
    title="Realism and artefacts",
    question="Which picture looks less made by a machine?",
    rubric=(
        "Key issues: deformed bodies or things; text that is wrong or unreadable; surfaces that are oily or colours "
        "too rich; edges with a glow they should not have; textures too even to be real.",
        "Begin at Excellent, and go down one level for each key issue.",
        "Judge within the style that was asked for: a drawing need not look like a photo.",
    ),
)
DETAIL = Criterion(
    key="detail",
    title="Detail",
    question="Which picture has the richer detail?",
    rubric=(
        "Look at materials, small structures, foreground and background: is there something to discover?",
        "Detail that means nothing, such as noise or ornament without sense, does not count.",
        "Excellent: rich everywhere it should be. Good: rich in the subject. Pass: plain. Fail: empty or smeared.",
    ),
)
AESTHETICS = Criterion(
    key="aesthetics",
    title="Aesthetics and composition",
    question="Which picture is better composed and more beautiful?",
    rubric=(
        "Look at the arrangement, the light, the harmony of colours and where the eye is led.",
        "Excellent: one would hang it up. Good: pleasant. Pass: nothing disturbs. Fail: it is unpleasant to look at.",
    ),
)
WHOLE = Criterion(
    key=OVERALL,
    title="Overall",
    question="Which picture is better?",
    rubric=("All in all: which of the two would you give to the person who wrote the text?",),
)

PAPER = (ALIGNMENT, REALISM, DETAIL, AESTHETICS)
STANDARD = (*PAPER, WHOLE)  # what a pairwise study can choose from


def overall(levels: Sequence[str]) -> str:
    """The paper's derived Overall of one picture's levels, in the paper's order of rules.

    Excellent where all are; Good where at least half are Excellent, whatever the others; Pass where none is Fail; else
    Fail. ValueError where there is no level, or one that is none.
    """
    if not levels or not set(levels) <= set(LEVELS):
        raise ValueError(f"levels are {', '.join(LEVELS)}, not {list(levels)}")
    excellent = sum(level == "Excellent" for level in levels)
    if excellent == len(levels):
        return "Excellent"
    if 2 * excellent >= len(levels):
        return "Good"
    return "Fail" if "Fail" in levels else "Pass"
