"""Pictures about pictures: data in, PIL image out."""

from __future__ import annotations

import numpy as np
from PIL import Image

# Ink to ember to paper: lightness rises evenly, so equal steps of difference look equal in grey as well.
_STOPS = np.array(
    [[16, 19, 28], [62, 42, 96], [150, 56, 98], [222, 102, 60], [247, 178, 82], [252, 246, 216]], np.float32
)

DIFFERENCE_END = 0.4  # of full range: where the scale of differences to an original ends on the page


def colour_of(level: np.ndarray) -> np.ndarray:
    """(..., 3) uint8 colours of levels in [0, 1]."""
    place = np.clip(level, 0.0, 1.0) * (len(_STOPS) - 1)
    low = np.minimum(place.astype(int), len(_STOPS) - 2)
    share = (place - low)[..., None]
    return np.rint(_STOPS[low] * (1 - share) + _STOPS[low + 1] * share).astype(np.uint8)


def scale_css() -> str:
    """The difference map's colour scale as a CSS gradient, for its legend."""
    return "linear-gradient(90deg," + ",".join(f"rgb({int(r)} {int(g)} {int(b)})" for r, g, b in _STOPS) + ")"


def scale_filter() -> str:
    """The same scale as the SVG filter of a picture: the mean over its channels becomes a colour.

    Its gain makes 1 of DIFFERENCE_END; what is beyond has the scale's last colour.
    """
    mean = " ".join([f"{1 / 3 / DIFFERENCE_END:.6g}"] * 3 + ["0 0"])
    tables = (
        f'<feFunc{channel} type="table" tableValues="{" ".join(f"{stop / 255:.4g}" for stop in stops)}"/>'
        for channel, stops in zip("RGB", _STOPS.T.tolist(), strict=True)
    )
    return (
        f'<feColorMatrix type="matrix" values="{mean} {mean} {mean} 0 0 0 1 0"/>'
        f"<feComponentTransfer>{''.join(tables)}</feComponentTransfer>"
    )


def heat_over(picture: Image.Image, level: np.ndarray) -> Image.Image:
    """The picture in grey, and over it the colours of `level` (H, W) in [0, 1]: the stronger, the less of the grey."""
    grey = np.asarray(picture.convert("L"), np.float32)[..., None] * np.array([0.72, 0.74, 0.78], np.float32)
    share = np.clip(level, 0, 1)[..., None] ** 0.7
    return Image.fromarray(np.rint(grey * (1 - share) + colour_of(level) * share).astype(np.uint8))


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
