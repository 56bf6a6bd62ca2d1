"""Rendered once, read back, and drawn in batches that can be taken up again."""

import json
from itertools import islice

import numpy as np
import pytest
import torch

from srpo.miniature.data import (
    batches,
    load_pictures,
    neutral_caption_shares,
    scenes_hash,
    training_caption,
    training_scenes,
)
from srpo.miniature.renderer import render
from srpo.miniature.world import STYLE_WORDS, STYLES


def test_pictures_read_back_are_the_renders_to_a_byte_in_the_order_asked_for(pictures):
    index = np.array([40, 3, 3, 17])
    expected = render([training_scenes(64, 3)[i] for i in index])
    assert (pictures.images(index) - expected).abs().max() <= 0.5 / 255 + 1e-6


def test_an_interrupted_rendering_is_taken_up_where_it_stopped(cache, monkeypatch):
    whole = load_pictures(8, 3, batch=4).images(np.arange(8))
    (done,) = cache.rglob("done.json")
    done.write_text(json.dumps({"done": 4}))
    rendered = []
    monkeypatch.setattr("srpo.miniature.data.render", lambda scenes: rendered.extend(scenes) or render(scenes))
    again = load_pictures(8, 3, batch=4).images(np.arange(8))
    assert torch.equal(whole, again)
    assert rendered == training_scenes(8, 3)[4:]


def test_batches_cover_every_epoch_once_and_can_start_anywhere():
    first_ten = list(islice(batches(20, 4, seed=1), 10))
    assert sorted(np.concatenate(first_ten[:5])) == list(range(20))
    assert sorted(np.concatenate(first_ten[5:])) == list(range(20))
    assert not np.array_equal(first_ten[0], first_ten[5])
    for start in (3, 7):
        for late, whole in zip(islice(batches(20, 4, seed=1, start=start), 3), first_ten[start:], strict=False):
            assert np.array_equal(late, whole)


def test_scenes_are_told_apart_by_their_hash():
    assert scenes_hash(training_scenes(20, 1)) == scenes_hash(training_scenes(20, 1))
    assert len({scenes_hash(training_scenes(*which)) for which in ((20, 1), (20, 2), (19, 1))}) == 3


def test_half_of_all_training_captions_are_neutral_and_mostly_not_of_photos():
    """By hand for photos: (1 - 0.1 * 0.64) * 0.55 * 0.64 / 4 = 0.0824. Of 16,000 a share of 0.15 has a deviation of
    0.0028; four are allowed."""
    shares = neutral_caption_shares()
    assert shares["photo"] == pytest.approx(0.0824, abs=1e-4)
    assert sum(shares.values()) == pytest.approx(0.492, abs=1e-3)
    rng, words = np.random.default_rng(0), tuple(w.lower() for group in STYLE_WORDS.values() for w in group)
    counts = dict.fromkeys(STYLES, 0)
    for scene in training_scenes(16_000, 1):
        text = training_caption(scene, rng).lower()
        counts[scene.style] += bool(text) and not text.startswith(words)
    for style, count in counts.items():
        assert count / 16_000 == pytest.approx(shares[style], abs=0.0112)
