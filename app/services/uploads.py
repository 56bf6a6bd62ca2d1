"""Pictures that visitors bring: read from a file that anyone may have made, and cut to the size of the model.

A file of a few kilobytes can claim to be a picture of a hundred megapixels, so what its header says is judged before a
single pixel is decoded.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from app.services.requests import BadInput

MAX_IMAGE_PIXELS = 50_000_000
MIN_SIDE = 16  # pixels
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)  # the app makes the warning an error
# What Pillow raises for a file that is no picture, or a damaged one.
UNREADABLE = (UnidentifiedImageError, OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, *BOMBS)


def read_picture(path: str | Path, height: int, width: int) -> Image.Image:
    """The picture of a file, RGB, its middle cut out and resized to width x height; an animation's first frame.

    BadInput for a file that cannot be read, is no picture, or holds one too large or too small.
    """
    return fit(open_picture(path), height, width)


def open_picture(path: str | Path) -> Image.Image:
    """The whole picture of a file, upright and in RGB on white; an animation's first frame.

    BadInput for a file that cannot be read, is no picture, or holds one too large or too small: its size is taken from
    its header, before anything is decoded.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_IMAGE_PIXELS:
                raise BadInput(_too_large(f"{width:,} × {height:,} pixels"))
            if min(width, height) < MIN_SIDE:
                raise BadInput(
                    f"That picture has {width:,} × {height:,} pixels and needs at least {MIN_SIDE} on each side: "
                    "choose a larger one."
                )
            return _rgb(ImageOps.exif_transpose(image))
    except BadInput:
        raise
    except BOMBS:
        raise BadInput(_too_large("far more")) from None
    except UNREADABLE:
        raise BadInput(
            f"That file cannot be read as a picture: choose a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file."
        ) from None


def fit(picture: Image.Image, height: int, width: int) -> Image.Image:
    """The middle of the picture in the proportions of width x height, resized to it."""
    return ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)


def fit_note(size: tuple[int, int], height: int, width: int) -> str:
    """A sentence on what `fit` does to a picture of that (width, height); nothing where it does nothing."""
    if size == (width, height):
        return ""
    cut = "its middle, " if size[0] * height != size[1] * width else ""
    return f"The picture has {size[0]:,} × {size[1]:,} pixels; {cut}resized to {width} × {height}, is what is used."


def _too_large(pixels: str) -> str:
    return f"That picture has {pixels} and may have {MAX_IMAGE_PIXELS / 1e6:.0f} megapixels: choose a smaller one."


def _rgb(image: Image.Image) -> Image.Image:
    """The picture in RGB: what is transparent becomes white, and 16 bits of grey become 8."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
