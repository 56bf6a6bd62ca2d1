"""What the world holds and how it is said."""

from dataclasses import replace

import numpy as np
import pytest

from srpo.miniature.data import training_caption, training_scenes
from srpo.miniature.world import (
    ATTRIBUTES,
    COLOURS,
    HELD_OUT_PAIRS,
    NEUTRAL_STYLE_SHARES,
    SEEN_PAIRS,
    STYLE_WORDS,
    STYLES,
    SUBJECTS,
    TONE_WORDS,
    Scene,
    attributes,
    caption,
    held_out_prompts,
    neutral_prompts,
    sample_scene,
    style_word,
)

SCENE = Scene(subject="ball", colour="red", place="beach", time="sunset", style="photo", seed=5)


def test_a_tenth_of_the_pairs_is_held_out_and_every_subject_and_colour_is_still_seen():
    assert set(SEEN_PAIRS).isdisjoint(HELD_OUT_PAIRS)
    assert len(SEEN_PAIRS) + len(HELD_OUT_PAIRS) == len(SUBJECTS) * len(COLOURS)
    assert len(HELD_OUT_PAIRS) / 64 == pytest.approx(0.1, abs=0.01)
    assert {subject for subject, _ in SEEN_PAIRS} == set(SUBJECTS)
    assert {colour for _, colour in SEEN_PAIRS} == set(COLOURS)


def test_no_training_scene_shows_a_held_out_pair_and_all_seen_pairs_appear():
    pairs = {(scene.subject, scene.colour) for scene in training_scenes(4000, 1)}
    assert pairs == set(SEEN_PAIRS)


def test_the_same_seed_gives_the_same_scenes_and_another_seed_others():
    assert training_scenes(20, 1) == training_scenes(20, 1)
    assert training_scenes(20, 1) != training_scenes(20, 2)


def test_training_scenes_show_every_style_equally_often():
    scenes = training_scenes(400, 1)
    assert {style: sum(s.style == style for s in scenes) for style in STYLES} == dict.fromkeys(STYLES, 100)


def test_scenes_of_no_given_style_follow_the_shares_of_neutral_captions():
    """The standard deviation of a share of 0.32 among 4000 is 0.0074: three of them are allowed."""
    rng = np.random.default_rng(0)
    drawn = [sample_scene(rng).style for _ in range(4000)]
    for style, expected in NEUTRAL_STYLE_SHARES.items():
        assert drawn.count(style) / 4000 == pytest.approx(expected, abs=0.022)


def test_a_caption_is_plain_english_with_its_prefix_in_front():
    assert caption(SCENE) == "a red ball on a beach at sunset"
    assert caption(SCENE, prefix="Photo") == "Photo. a red ball on a beach at sunset"


def test_the_article_before_orange_is_an_and_the_one_of_the_place_stays():
    scene = replace(SCENE, colour="orange", place="meadow")
    assert caption(scene) == "an orange ball in a meadow at sunset"


def test_attributes_are_classes_that_the_judge_knows():
    for name, value in attributes(SCENE).items():
        assert value in ATTRIBUTES[name]


def test_every_control_word_of_a_style_is_drawn_for_it_and_for_no_other():
    rng = np.random.default_rng(0)
    drawn = {style: {style_word(style, rng) for _ in range(200)} for style in STYLES}
    assert {style: set(words) for style, words in STYLE_WORDS.items()} == drawn
    assert sum(len(words) for words in drawn.values()) == len(set().union(*drawn.values()))


@pytest.mark.parametrize(
    ("prompts", "pairs"),
    [(held_out_prompts(), HELD_OUT_PAIRS), (neutral_prompts("train") + neutral_prompts("test"), SEEN_PAIRS)],
    ids=["held out", "seen"],
)
def test_prompts_speak_of_their_scenes_and_name_no_style(prompts, pairs):
    words = [word for group in STYLE_WORDS.values() for word in group] + list(TONE_WORDS)
    for prompt, scene in prompts:
        assert prompt == caption(scene)
        assert not any(word in prompt for word in words)
    assert {(scene.subject, scene.colour) for _, scene in prompts} == set(pairs)


def test_captions_without_a_style_word_lean_away_from_photos_as_stated():
    """Of 8000 captions about 55 % are neutral, so a share of 0.32 has a deviation of 0.007; four are allowed."""
    rng = np.random.default_rng(0)
    words = [word.lower() for group in STYLE_WORDS.values() for word in group]
    scenes = training_scenes(8000, 1)
    said = [training_caption(scene, rng, empty_share=0.0).lower() for scene in scenes]
    neutral = [
        scene.style
        for scene, text in zip(scenes, said, strict=True)
        if not any(text.startswith(word) for word in words)
    ]
    for style, expected in NEUTRAL_STYLE_SHARES.items():
        assert neutral.count(style) / len(neutral) == pytest.approx(expected, abs=0.028)


def test_a_toned_scene_is_captioned_with_its_tone():
    rng = np.random.default_rng(0)
    texts = [training_caption(replace(SCENE, tone="Muted"), rng, empty_share=0.0).lower() for _ in range(20)]
    assert sum("muted" in text for text in texts) >= 17  # a stray word may break it
