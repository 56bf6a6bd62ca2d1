"""The pictures: the same scene is the same picture, and styles and words look like what they are called."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from srpo.miniature.data import training_scenes
from srpo.miniature.renderer import SIZE, render
from srpo.miniature.renderer.styles import LUMA
from srpo.miniature.world import COLOURS, PLACES, STYLES, SUBJECTS, TIMES, TONE_WORDS

SCENES = [replace(scene, tone=None) for scene in training_scenes(16, 5)]


def luminance(image):
    return float((image * LUMA).sum(dim=1).mean())


def colourfulness(image):
    """Mean distance between the largest and the smallest channel."""
    return float((image.amax(dim=1) - image.amin(dim=1)).mean())


def fine_noise(image):
    """Median over pixels of what a 3 x 3 mean removes."""
    return float((image - F.avg_pool2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), 3, stride=1)).abs().median())


def in_style(style):
    return render([scene.with_style(style) for scene in SCENES])


def test_pictures_have_the_size_asked_for_and_lie_between_zero_and_one():
    image = render(SCENES[:4])
    assert image.shape == (4, 3, SIZE, SIZE)
    assert image.dtype == torch.float32
    assert 0 <= image.min() < 0.2 and 0.8 < image.max() <= 1
    assert render(SCENES[:1], size=64).shape == (1, 3, 64, 64)


def test_a_scene_gives_the_same_picture_alone_and_within_a_batch():
    together = render(SCENES)
    for scene, image in zip(SCENES, together, strict=True):
        assert (render([scene])[0] - image).abs().max() <= 1 / 255


def test_another_seed_draws_the_same_things_another_way():
    first, second = render([SCENES[0], replace(SCENES[0], seed=SCENES[0].seed + 1)])
    assert (first - second).abs().mean() > 0.01


@pytest.mark.parametrize(
    ("attribute", "values"),
    [("subject", SUBJECTS), ("colour", COLOURS), ("place", PLACES), ("time", TIMES), ("style", STYLES)],
)
def test_every_two_values_of_an_attribute_can_be_told_apart(attribute, values):
    image = render([replace(SCENES[0], **{attribute: value}) for value in values])
    coarse = F.avg_pool2d(image, 4)  # what is left of grain and strokes no longer counts
    differences = (coarse[:, None] - coarse[None]).abs().amax(dim=(2, 3, 4))
    assert differences[~torch.eye(len(values), dtype=torch.bool)].min() > 0.08


def test_photos_have_fine_grain_and_flat_anime_has_next_to_none():
    assert fine_noise(in_style("photo")) > 2 * fine_noise(in_style("anime"))


def test_paintings_and_anime_are_more_colourful_than_photos():
    photo = colourfulness(in_style("photo"))
    assert colourfulness(in_style("painting")) > 1.3 * photo
    assert colourfulness(in_style("anime")) > 1.15 * photo


def test_anime_has_dark_outlines_of_one_colour():
    ink = torch.tensor((0.07, 0.05, 0.10)).reshape(1, 3, 1, 1)
    noon = [replace(scene, time="noon", colour="red") for scene in SCENES]

    def share_of_ink(style):
        image = render([scene.with_style(style) for scene in noon])
        return float(((image - ink).abs().amax(dim=1) < 0.06).float().mean())

    assert share_of_ink("anime") > 0.005
    assert share_of_ink("anime") > 3 * share_of_ink("photo")


def test_night_is_darker_than_sunset_and_sunset_darker_than_noon():
    night, sunset, noon = (
        luminance(render([replace(s, time=time) for s in SCENES])) for time in ("night", "sunset", "noon")
    )
    assert night < sunset < noon


@pytest.mark.parametrize("style", STYLES)
def test_tone_words_move_light_and_saturation_as_they_say(style):
    plain = in_style(style)
    toned = {tone: render([replace(s.with_style(style), tone=tone) for s in SCENES]) for tone in TONE_WORDS}
    assert luminance(toned["Dark"]) < 0.8 * luminance(plain)
    assert luminance(toned["Bright"]) > 1.1 * luminance(plain)
    assert colourfulness(toned["Vivid"]) > 1.15 * colourfulness(plain)
    assert colourfulness(toned["Muted"]) < 0.6 * colourfulness(plain)


def test_rendering_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one scene"):
        render([])
