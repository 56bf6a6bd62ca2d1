"""Sheets: tables of pictures as one picture, which carries how it was made.

A record is JSON in an iTXt chunk of the PNG, under one key for everything that is made here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

KEY = "srpo_studio"
FORMAT = 1
SOFTWARE = "SRPO Studio"
# Signs that Pillow's own font lacks, as they are spelt out on a sheet.
SPELT = {"Δσ": "d_sigma", "σ": "sigma", "×": "x", "−": "-"}


def png_texts(record: dict[str, Any], parameters: str | None = None) -> PngImagePlugin.PngInfo:
    """PNG text chunks holding `record` as our JSON and, where given, the `parameters` text."""
    info = PngImagePlugin.PngInfo()
    if parameters is not None:
        info.add_itxt("parameters", parameters)
    info.add_itxt(KEY, json.dumps({"format": FORMAT, **record}, ensure_ascii=False))
    info.add_text("Software", SOFTWARE)
    return info


def sheet(
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Sequence[Sequence[Image.Image | None]],
    title: str,
    notes: Mapping[tuple[int, int], str] | None = None,
) -> Image.Image:
    """One picture of a table of pictures: column names above, row names at the left, empty cells left blank.

    Small pictures are enlarged smoothly to at least 256 pixels, as on the page. `notes` are written across the foot of
    the cells (row, column).
    """
    width, height = next(image.size for row in cells for image in row if image is not None)
    factor = max(1, 256 // min(width, height))
    width, height = width * factor, height * factor
    font, bold = ImageFont.load_default(18), ImageFont.load_default(22)
    title, rows, columns = _spelt(title), list(map(_spelt, rows)), list(map(_spelt, columns))
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
            if note := (notes or {}).get((i, j)):
                x, foot = margin + label + j * (width + gap), y + height
                draw.rectangle((x, foot - 26, x + width - 1, foot - 1), "#14181f")
                draw.text((x + 8, foot - 24), _cut(draw, _spelt(note), font, width - 16), "#ffffff", font)
    return page


def _spelt(text: str) -> str:
    """The text in signs that the font has."""
    for sign, words in SPELT.items():
        text = text.replace(sign, words)
    return text


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
