"""Pictures about pictures: data in, PIL image out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Ink to ember to paper: lightness rises evenly, so equal steps of difference look equal in grey as well.
_STOPS = np.array(
    [[16, 19, 28], [62, 42, 96], [150, 56, 98], [222, 102, 60], [247, 178, 82], [252, 246, 216]], np.float32
)


def colour_of(level: np.ndarray) -> np.ndarray:
    """(..., 3) uint8 colours of levels in [0, 1]."""
    place = np.clip(level, 0.0, 1.0) * (len(_STOPS) - 1)
    low = np.minimum(place.astype(int), len(_STOPS) - 2)
    share = (place - low)[..., None]
    return np.rint(_STOPS[low] * (1 - share) + _STOPS[low + 1] * share).astype(np.uint8)


def scale_css() -> str:
    """The difference map's colour scale as a CSS gradient, for its legend."""
    return "linear-gradient(90deg," + ",".join(f"rgb({int(r)} {int(g)} {int(b)})" for r, g, b in _STOPS) + ")"


def difference(left: Image.Image, right: Image.Image) -> tuple[Image.Image, float, float]:
    """The difference map of two pictures of one size, the mean difference, and the difference at the scale's end.

    A pixel's difference is the mean over its channels of |right - left|, 0 ... 1. The scale ends at the 99.5th
    percentile, so that a few pixels cannot darken the map; two equal pictures give a map of zeros.
    """
    if left.size != right.size:
        raise ValueError(f"Pictures of one size are needed, not {left.size} and {right.size}.")
    a, b = (np.asarray(image.convert("RGB"), np.float32) / 255 for image in (left, right))
    distance = np.abs(b - a).mean(axis=-1)
    end = float(np.percentile(distance, 99.5)) or float(distance.max())
    return Image.fromarray(colour_of(distance / end if end else distance)), float(distance.mean()), end


def sheet(
    rows: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[Image.Image | None]], title: str
) -> Image.Image:
    """One picture of a table of pictures: column names above, row names at the left, empty cells left blank.

    Small pictures are enlarged smoothly to at least 256 pixels, as on the page.
    """
    width, height = next(image.size for row in cells for image in row if image is not None)
    factor = max(1, 256 // min(width, height))
    width, height = width * factor, height * factor
    font, bold = ImageFont.load_default(18), ImageFont.load_default(22)
    gap, margin, label = 12, 28, 280
    top = margin + 40 + 40
    page = Image.new(
        "RGB",
        (margin * 2 + label + len(columns) * (width + gap), top + len(rows) * (height + gap) + margin),
        "#ffffff",
    )
    draw = ImageDraw.Draw(page)
    draw.text((margin, margin), _cut(draw, title, bold, page.width - 2 * margin), "#14181f", bold)
    for j, column in enumerate(columns):
        x = margin + label + j * (width + gap)
        draw.text((x, top - 30), _cut(draw, column, font, width), "#14181f", font)
    for i, row in enumerate(rows):
        y = top + i * (height + gap)
        draw.multiline_text((margin, y + 4), _wrap(draw, row, font, label - 20, 10), "#3c4450", font, spacing=6)
        for j, image in enumerate(cells[i]):
            if image is not None:
                enlarged = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
                page.paste(enlarged, (margin + label + j * (width + gap), y))
    return page


def _cut(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.ImageFont, width: float) -> str:
    """The text, shortened with an ellipsis to fit the width."""
    while len(text) > 1 and draw.textlength(text, font) > width:
        text = text.rstrip("…")[:-1] + "…"
    return text


def _wrap(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.ImageFont, width: float, max_lines: int) -> str:
    lines: list[str] = []
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}".strip()
            if line and draw.textlength(longer, font) > width:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    if len(lines) > max_lines:
        lines = [*lines[: max_lines - 1], lines[max_lines - 1] + " …"]
    return "\n".join(_cut(draw, line, font, width) for line in lines)
