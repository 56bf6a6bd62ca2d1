"""Difference maps show what they say."""

import numpy as np
import pytest
from PIL import Image

from app import plots


def test_equal_pictures_differ_nowhere():
    picture = Image.effect_noise((32, 16), 50).convert("RGB")
    image, mean, end = plots.difference(picture, picture)
    assert (mean, end) == (0.0, 0.0)
    assert np.asarray(image).reshape(-1, 3).std(axis=0).max() == 0


def test_the_mean_difference_is_the_mean_over_pixels_and_channels():
    """Half of the picture is black against white in one of three channels: 1/2 * 1/3."""
    left = np.zeros((8, 8, 3), np.uint8)
    right = left.copy()
    right[:, :4, 0] = 255
    image, mean, end = plots.difference(Image.fromarray(left), Image.fromarray(right))
    assert mean == pytest.approx(1 / 6)
    assert end == pytest.approx(1 / 3)
    pixels = np.asarray(image)
    assert (pixels[:, :4] == plots.colour_of(np.array(1.0))).all()
    assert (pixels[:, 4:] == plots.colour_of(np.array(0.0))).all()


def test_the_scale_gets_lighter_all_the_way():
    lightness = plots.colour_of(np.linspace(0, 1, 50)).astype(float) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) > 0).all()


def test_pictures_of_two_sizes_are_refused():
    with pytest.raises(ValueError, match="one size"):
        plots.difference(Image.new("RGB", (8, 8)), Image.new("RGB", (8, 16)))
