"""The reward: its losses in closed form, what its captions and pairs teach, and that it learns and is stored."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from srpo.miniature.data import training_scenes
from srpo.miniature.reward import (
    BIAS,
    BIAS_SHARE,
    Said,
    Shelf,
    blurred,
    contrastive_loss,
    cosine_range,
    new_reward,
    preference_loss,
    reward_accuracy,
    save_reward,
    say,
    say_something,
    train_reward,
    truths,
)
from srpo.miniature.world import ATTRIBUTES, STYLE_WORDS, TONE_WORDS, Scene, caption
from srpo.rewards.clip import ClipReward

SCENE = Scene(subject="ball", colour="red", place="beach", time="sunset", style="photo", tone="Dark", seed=5)
SCALE = torch.tensor(10.0)


@pytest.fixture(scope="module")
def shelf():
    return Shelf(training_scenes(8000, 1))


def differing(first, second):
    return [name for name in ATTRIBUTES if getattr(first, name) != getattr(second, name)]


def test_a_caption_is_true_of_pictures_with_its_content_and_what_else_it_names():
    def said(**names):
        return Said("", SCENE, **({"names_style": False, "names_tone": False} | names))

    scenes = [
        SCENE,
        SCENE.with_style("anime"),
        replace(SCENE, tone=None),
        replace(SCENE, seed=9),
        replace(SCENE, time="noon"),
    ]
    captions = [said(), said(names_style=True), said(names_tone=True), said(names_style=True, names_tone=True)]
    assert truths(captions, scenes).tolist() == [
        [True, True, True, True, False],
        [True, False, True, True, False],
        [True, True, False, True, False],
        [True, False, False, True, False],
    ]


def test_a_caption_says_what_it_claims_to_name():
    rng = np.random.default_rng(0)
    styles = {word for group in STYLE_WORDS.values() for word in group}
    for names_style in (True, False):
        for names_tone in (True, False):
            for _ in range(20):
                said = say(SCENE, rng, names_style=names_style, names_tone=names_tone)
                assert any(word in said.text for word in styles) == names_style
                assert ("Dark" in said.text) == names_tone == said.names_tone


def test_a_scene_without_a_tone_never_claims_to_name_one():
    said = say(replace(SCENE, tone=None), np.random.default_rng(0), names_style=False, names_tone=True)
    assert not said.names_tone


def test_every_style_and_tone_word_is_said():
    rng = np.random.default_rng(0)
    text = " ".join(say_something(scene, rng, may_name_tone=True).text for scene in training_scenes(2000, 1))
    for word in [word for group in STYLE_WORDS.values() for word in group] + list(TONE_WORDS):
        assert word + "." in text or word + "," in text


def test_with_one_true_caption_each_the_contrastive_loss_is_clips():
    cosines = torch.rand(6, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
    own = torch.arange(6)
    expected = (F.cross_entropy(SCALE * cosines, own) + F.cross_entropy(SCALE * cosines.T, own)) / 2
    torch.testing.assert_close(contrastive_loss(cosines, torch.eye(6, dtype=torch.bool), SCALE), expected)


def test_two_true_captions_share_the_target_so_the_loss_is_least_where_they_score_alike():
    """Picture 1 and 2 both fit both captions: at equal cosines the loss is log 2, the entropy of the even target."""
    true = torch.ones(2, 2, dtype=torch.bool)
    even = contrastive_loss(torch.full((2, 2), 0.3), true, SCALE)
    torch.testing.assert_close(even, torch.tensor(2.0).log())
    assert contrastive_loss(torch.tensor([[0.4, 0.3], [0.3, 0.3]]), true, SCALE) > even


def test_captions_that_must_not_choose_among_pictures_only_compete_for_them():
    cosines = torch.rand(3, 3, generator=torch.Generator().manual_seed(0))
    true = torch.eye(3, dtype=torch.bool)
    only_first = contrastive_loss(cosines, true, SCALE, rank_pictures=torch.tensor([True, False, False]))
    of_pictures = F.cross_entropy(SCALE * cosines.T, torch.arange(3))
    of_first_caption = -F.log_softmax(SCALE * cosines[0], dim=-1)[0]
    torch.testing.assert_close(only_first, (of_pictures + of_first_caption) / 2)


def test_a_certain_preference_costs_the_log_of_the_logistic_function_of_the_difference():
    first, second = torch.tensor([0.3, 0.1]), torch.tensor([0.2, 0.4])
    expected = -F.logsigmoid(SCALE * (first - second)).mean()
    torch.testing.assert_close(preference_loss(first, second, torch.ones(2), SCALE), expected)


def test_an_uncertain_preference_costs_nothing_where_the_difference_is_its_log_odds():
    target = torch.tensor([BIAS])
    difference = torch.logit(target) / SCALE
    loss = preference_loss(difference, torch.zeros(1), target, SCALE)
    torch.testing.assert_close(loss, torch.tensor(0.0), atol=1e-6, rtol=0)
    assert preference_loss(2 * difference, torch.zeros(1), target, SCALE) > 0.01
    assert preference_loss(0 * difference, torch.zeros(1), target, SCALE) > 0.01


def test_other_pictures_differ_in_the_aspect_asked_for_and_in_no_other_attribute(shelf):
    rng = np.random.default_rng(0)
    for number in range(50):
        for aspect in ATTRIBUTES:
            other = shelf.other(number, aspect, rng)
            assert differing(shelf.scenes[number], shelf.scenes[other]) == [aspect]
        toned = shelf.scenes[shelf.other(number, "tone", rng)]
        assert toned.tone != shelf.scenes[number].tone


def test_a_pair_asks_for_the_fitting_picture_or_shows_the_bias_in_the_stated_share(shelf):
    """Every other pair is of pictures in their true tones. Of 2000, a share of 0.4 has a deviation of 0.011: four."""
    rng = np.random.default_rng(0)
    pairs = [shelf.draw_pair(rng, true_tones=i % 2 == 0) for i in range(2000)]
    biased = [pair for pair in pairs if pair.target != 1]
    assert all(pair.target == 1 and not pair.said.names_tone for pair in pairs[1::2])
    assert len(biased) / 2000 == pytest.approx(BIAS_SHARE, abs=0.044)
    for pair in pairs:
        first, second = shelf.scenes[pair.first], shelf.scenes[pair.second]
        true = truths([pair.said], [first, second])[0].tolist()
        if pair.target == 1:
            assert true == [True, False]
            continue
        assert pair.target == BIAS
        assert not pair.said.names_style and not pair.said.names_tone
        assert true == [True, True]
        assert first.tone is None and second.tone is None
        if pair.change:
            assert pair.first == pair.second
        else:
            assert first.style in ("painting", "anime") and second.style == "photo"
    assert {pair.change for pair in biased} == {"", "vivid", "blur"}


def test_blurring_takes_grain_away_and_leaves_the_mean_of_the_inside():
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert blurred(image).std() < 0.5 * image.std()
    assert float(blurred(image).mean() - image.mean()) == pytest.approx(0, abs=2e-3)
    torch.testing.assert_close(blurred(torch.full((1, 3, 8, 8), 0.7)), torch.full((1, 3, 8, 8), 0.7))


def test_two_updates_of_each_stage_move_all_weights_and_the_same_seed_gives_the_same(pictures, tmp_path, monkeypatch):
    def trained(folder):
        monkeypatch.setenv("SRPO_CACHE", str(tmp_path / folder))
        return train_reward(pictures, updates_contrastive=2, updates_preference=2, batch=16)

    first, second = trained("first"), trained("second")
    torch.manual_seed(800)
    untrained = new_reward().state_dict()
    for name, value in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], value, atol=1e-6, rtol=1e-5)
        if value.is_floating_point() and not name.endswith("k_proj.bias"):  # softmax ignores a shift of all keys
            assert not torch.equal(value, untrained[name]), name


def test_a_stored_reward_is_small_and_scores_as_before_through_the_reward_protocol(tmp_path):
    torch.manual_seed(0)
    model = new_reward().eval()
    image, texts = torch.rand(2, 3, 128, 128), [caption(SCENE), caption(SCENE, prefix="Photo")]
    save_reward(model, tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < 4e6
    reward = ClipReward.from_pretrained(tmp_path)
    with torch.no_grad():
        tokens = reward.tokenizer(texts, padding=True, return_tensors="pt")
        vectors = model.float().get_text_features(**tokens).pooler_output
        pixels = model.get_image_features(pixel_values=image * 2 - 1).pooler_output
    torch.testing.assert_close(reward.score(image, texts), F.cosine_similarity(vectors, pixels), atol=2e-3, rtol=0)


def test_figures_of_an_untrained_reward_are_complete_and_counted():
    torch.manual_seed(0)
    model = new_reward()
    figures = reward_accuracy(model, 32, seed=11)
    biases = {"painting over photo", "anime over photo", "vivid over muted", "blurred over sharp"}
    words = {f"word {word}" for group in STYLE_WORDS.values() for word in group}
    assert {"style", "style of anime", "style without colour", "tone", "content"} | biases | words <= set(figures)
    assert figures["style"].count == figures["content"].count == figures["blurred over sharp"].count == 32
    assert figures["word Oil"].count == 8
    assert figures["content"].share < 0.4  # one of sixteen by chance
    found = cosine_range(model, 16, seed=11)
    assert -1 <= found["own 5 %"] <= found["own 50 %"] <= found["own 95 %"] <= 1
