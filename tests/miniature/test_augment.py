"""Augmentation: what may change, what must not, and that it follows from the generator alone."""

import pytest
import torch

from srpo.miniature.augment import grainy, moved, recoloured, softened, toned

CHANGES = (moved, toned, softened, grainy)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def image():
    return torch.rand(8, 3, 32, 32, generator=generator(1))


@pytest.mark.parametrize("change", CHANGES)
def test_the_same_generator_gives_the_same_change_and_another_seed_another(change, image):
    assert torch.equal(change(image, generator()), change(image, generator()))
    assert not torch.equal(change(image, generator()), change(image, generator(2)))
    assert change(image, generator()).shape == image.shape


def test_moving_shifts_or_mirrors_and_changes_no_value(image):
    found = 0
    for before, after in zip(image, moved(image, generator(), pixels=2), strict=True):
        inner = after[:, 2:-2, 2:-2]
        for candidate in (before, before.flip(-1)):
            windows = candidate.unfold(1, 28, 1).unfold(2, 28, 1)  # (3, 5, 5, 28, 28)
            found += int((windows == inner[:, None, None]).all(dim=(0, 3, 4)).any())
    assert found == len(image)


def test_toning_a_grey_picture_by_at_most_eight_percent_keeps_it_grey_and_moves_it_no_further(image):
    grey = torch.full_like(image, 0.5)
    changed = toned(grey, generator())
    torch.testing.assert_close(changed, changed.mean(dim=1, keepdim=True).expand_as(changed))
    assert 0.5 * 0.92 - 1e-6 <= changed.min() < changed.max() <= 0.5 * 1.08 + 1e-6


def test_saturation_can_be_changed_more_than_light(image):
    """At strength 1 saturation goes from none to twice: one grey value per pixel stays, its colour's length changes."""
    changed = toned(image, generator(), strength=0.0, saturation=1.0)
    luma = torch.tensor((0.299, 0.587, 0.114)).reshape(1, 3, 1, 1)
    torch.testing.assert_close((changed * luma).sum(dim=1), (image * luma).sum(dim=1))
    factors = changed.std(dim=1).mean(dim=(1, 2)) / image.std(dim=1).mean(dim=(1, 2))
    assert factors.min() < 0.5 < 1.3 < factors.max()


def test_softening_lowers_every_pictures_detail_and_keeps_its_mean(image):
    after = softened(image, generator())
    assert (after.std(dim=(1, 2, 3)) < image.std(dim=(1, 2, 3))).all()
    torch.testing.assert_close(after.mean(dim=(2, 3)), image.mean(dim=(2, 3)), atol=0.02, rtol=0)


def test_grain_stays_within_its_deviation(image):
    """The coarse part is interpolated, which only lowers its deviation: together at most sqrt(2) times the level."""
    noise = grainy(image, generator(), std=0.02) - image
    assert 0 < float(noise.std(dim=(1, 2, 3)).max()) < 0.02 * 2**0.5 * 1.1


def test_recolouring_says_which_pictures_it_changed_and_leaves_the_others_alone(image):
    after, changed = recoloured(image, generator(), share=0.5)
    again, _ = recoloured(image, generator(), share=0.5)
    assert torch.equal(after, again)
    assert 0 < changed.sum() < len(image)
    assert torch.equal(after[~changed], image[~changed])
    assert not torch.isclose(after[changed], image[changed]).all(dim=(1, 2, 3)).any()
    assert 0 <= after.min() <= after.max() <= 1


def test_recolouring_keeps_shapes_a_grey_picture_stays_grey_and_is_at_most_turned_into_its_negative():
    grey = torch.rand(16, 1, 8, 8, generator=generator(3)).expand(-1, 3, -1, -1)
    after, _ = recoloured(grey, generator(), share=1.0)
    kept = torch.isclose(after, grey, atol=1e-5).all(dim=(1, 2, 3))
    negative = torch.isclose(after, 1 - grey, atol=1e-5).all(dim=(1, 2, 3))
    assert (kept ^ negative).all()
    assert kept.any() and negative.any()


def test_recolouring_turns_hues_by_40_to_320_degrees():
    """The hue angle of a pure red, in the plane across the grey axis, is the turn itself, or the turn plus 180."""
    red = torch.tensor([0.6, 0.4, 0.4]).reshape(1, 3, 1, 1).expand(256, 3, 1, 1)
    after, _ = recoloured(red, generator(), share=1.0)
    r, g, b = after[:, :, 0, 0].unbind(dim=1)
    angle = torch.rad2deg(torch.atan2(3**0.5 * (g - b), 2 * r - g - b)) % 360
    positive = after.mean(dim=(1, 2, 3)) < 0.5
    assert angle[positive].min() >= 39
    assert angle[positive].max() <= 321
    assert angle[positive].max() - angle[positive].min() > 180
