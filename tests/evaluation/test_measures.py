"""Measures of pictures by closed forms."""

import pytest
import torch

from srpo.evaluation.measures import clipped, diversity, saturation, sharpness


def plain(*colour, size=32):
    return torch.tensor(colour).view(1, 3, 1, 1).expand(1, 3, size, size)


def test_saturation_is_the_spread_of_the_channels():
    images = torch.cat([plain(0.5, 0.5, 0.5), plain(1.0, 0.0, 0.0), plain(0.2, 0.5, 0.3)])
    assert saturation(images).tolist() == pytest.approx([0.0, 1.0, 0.3])


def test_clipped_counts_what_is_black_or_white_in_8_bits():
    images = torch.cat([plain(0.5, 0.5, 0.5), plain(1.0, 0.001, 0.5), plain(0.999, 0.997, 0.0)])
    assert clipped(images).tolist() == pytest.approx([0.0, 2 / 3, 2 / 3])  # 0.001 is level 0, 0.997 is level 254


def test_an_evenly_shaded_picture_has_no_sharpness_and_a_chessboard_all_of_it():
    """On a chessboard of 0 and 1 every pixel differs by 1 from each of its four neighbours."""
    ramp = torch.linspace(0, 1, 32).expand(1, 3, 32, 32)
    board = ((torch.arange(32)[:, None] + torch.arange(32)) % 2).float().expand(1, 3, 32, 32)
    assert sharpness(torch.cat([ramp, board, 0.5 * board])).tolist() == pytest.approx([0, 1, 0.5], abs=1e-6)


def test_diversity_is_the_mean_distance_to_the_others():
    """Three plain greys 0, 0.1 and 0.5: distances 0.1, 0.5 and 0.4."""
    greys = torch.cat([plain(grey, grey, grey) for grey in (0.0, 0.1, 0.5)])
    assert diversity(greys).tolist() == pytest.approx([0.3, 0.25, 0.45], abs=1e-5)
    assert diversity(greys[[1, 1]]).tolist() == pytest.approx([0, 0], abs=1e-3)
    with pytest.raises(ValueError, match="at least two images, not 1"):
        diversity(greys[:1])
