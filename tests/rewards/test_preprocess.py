"""The picture's way into a vision tower, against Pillow and by hand."""

import numpy as np
import pytest
import torch
from PIL import Image

from srpo.rewards.preprocess import (
    CLIP_MEAN,
    CLIP_STD,
    center_crop,
    normalize,
    pad_to_square,
    resize_longest,
    resize_shortest,
)


def smooth_picture(height, width):
    y, x = torch.meshgrid(torch.linspace(0, 6, height), torch.linspace(0, 6, width), indexing="ij")
    return torch.stack([0.5 + 0.3 * torch.sin(x), 0.5 + 0.3 * torch.cos(y), 0.5 + 0.2 * torch.sin(x + y)])[None]


def test_the_resize_is_pillows_antialiased_bicubic_filter():
    """Pillow filters each channel in float mode "F" the same way, so no rounding is between us: 1e-4 at most."""
    image = smooth_picture(90, 60)
    ours = resize_shortest(image, 32)[0]
    for channel, expected in zip(ours, image[0], strict=True):
        pillow = Image.fromarray(expected.numpy(), mode="F").resize((32, 48), Image.Resampling.BICUBIC)
        assert np.abs(channel.numpy() - np.asarray(pillow)).max() < 1e-4


def test_shortest_and_longest_sides_become_the_size_asked_for():
    image = torch.rand(1, 3, 48, 30)
    assert resize_shortest(image, 24).shape[-2:] == (38, 24)  # 24 * 48 / 30 = 38.4, rounded down
    assert resize_longest(image, 24).shape[-2:] == (24, 15)
    assert resize_shortest(image, 30) is image


def test_the_crop_is_the_middle_and_refuses_smaller_pictures():
    image = torch.arange(36.0).view(1, 1, 6, 6)
    assert torch.equal(center_crop(image, 2, 4)[0, 0], torch.tensor([[13.0, 14, 15, 16], [19, 20, 21, 22]]))
    with pytest.raises(ValueError, match="resize first"):
        center_crop(image, 8, 4)


def test_padding_centres_the_picture():
    padded = pad_to_square(torch.ones(1, 3, 2, 5), value=0.0)
    assert padded.shape == (1, 3, 5, 5)
    assert padded[0, 0, :, 0].tolist() == [0, 1, 1, 0, 0]


def test_normalising_the_mean_gives_zero_and_one_deviation_more_gives_one():
    image = torch.stack([torch.tensor(CLIP_MEAN), torch.tensor(CLIP_MEAN) + torch.tensor(CLIP_STD)]).view(2, 3, 1, 1)
    expected = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 1, 1)
    torch.testing.assert_close(normalize(image), expected)


def test_every_step_passes_exact_gradients():
    """All steps are linear: the gradient is checked by finite differences in float64."""
    image = smooth_picture(10, 7).double().requires_grad_()

    def chain(x):
        return normalize(pad_to_square(center_crop(resize_longest(resize_shortest(x, 5), 6), 6, 4)))

    assert torch.autograd.gradcheck(chain, (image,))
