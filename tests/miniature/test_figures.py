"""How the miniature's figures are counted."""

from __future__ import annotations

import json

import pytest
import torch

from srpo.miniature import card, figures, paths
from srpo.miniature.figures import (
    NUM_PROMPTS,
    SEEDS,
    Samples,
    mean,
    mean_by_prompt,
    measure_alignment,
    measure_parts,
    measure_samples,
    reward_scores,
    share_ratio,
    styled,
)
from srpo.miniature.judge import JUDGE_PICTURES, new_judge, save_judge
from srpo.miniature.recipe import PICTURES
from srpo.miniature.world import HELD_OUT_PAIRS, STYLE_WORDS, held_out_prompts, neutral_prompts
from srpo.policies.checkpoints import save_transformer
from srpo.rewards.clip import ClipReward
from srpo.rewards.control_words import PAPER_WORDS
from tests.tiny import save_tiny_flux, tiny_clip, tiny_flux_pipeline


def test_a_mean_carries_its_normal_interval():
    """Of 1, 2, 3, 4: mean 2.5, deviation sqrt(5/3), standard error 0.6455, times 1.96 = 1.2652."""
    value = mean([1.0, 2.0, 3.0, 4.0])
    assert value.mean == 2.5
    assert abs(value.high - 3.7652) < 1e-3
    assert abs(value.low - 1.2348) < 1e-3


def test_training_and_measuring_prompts_have_nothing_in_common_and_no_held_out_pair():
    train, test = ({text for text, _ in neutral_prompts(split)} for split in ("train", "test"))
    assert (len(train), len(test)) == (320, 550)
    assert not train & test
    held_out = {text for text, _ in held_out_prompts()}
    assert len(held_out) == len(HELD_OUT_PAIRS) * 15
    assert not held_out & (train | test)


def test_styled_prompts_name_their_own_style_and_use_all_styles_about_equally():
    prompts = styled(held_out_prompts(), 512, seed=0)
    styles = [scene.style for _, scene in prompts]
    assert all(abs(styles.count(style) - 128) <= 4 for style in STYLE_WORDS)
    assert all(text.split(". ")[0] in STYLE_WORDS[scene.style] for text, scene in prompts)
    assert len(set(prompts)) > 300  # a prompt that comes again comes in another style


def test_saturation_and_clipping_of_known_pictures():
    red = torch.zeros(3, 2, 2)
    red[0] = 1.0
    grey = torch.full((3, 2, 2), 0.5)
    samples = Samples(torch.stack((red, grey)), *(torch.zeros(2, dtype=torch.bool) for _ in range(3)))
    assert samples.saturation.tolist() == [1.0, 0.0]
    assert samples.clipped.tolist() == [1.0, 0.0]


def test_prompts_that_come_several_times_count_once():
    """Means of the prompts: a 2/3, b 0, c 1. Their mean is 5/9, their deviation sqrt(7/27), n is 3."""
    value = mean_by_prompt(torch.tensor([True, True, False, False, True]), ["a", "a", "a", "b", "c"])
    assert value.mean == pytest.approx(5 / 9)
    assert value.high - value.mean == pytest.approx(1.959964 * (7 / 27 / 3) ** 0.5)
    assert value.count == 3


def test_the_interval_of_a_ratio_keeps_the_pairs():
    """Where after is before, every resample's ratio is 1; where they are unpaired the interval is wide.

    For 400 prompts, 40 photos before and 160 other ones after, the delta method gives ln 4 +- 1.96 sqrt(1/40 + 1/160
    + 2/400 - 2/400): for disjoint photos the covariance of the two shares cancels the -2/n. 4 exp(+-0.346).
    """
    before = torch.arange(400) < 40
    same = share_ratio(before, before)
    assert (same.ratio, same.low, same.high, same.count) == (1.0, 1.0, 1.0, 400)
    ratio = share_ratio((torch.arange(400) >= 40) & (torch.arange(400) < 200), before)
    assert ratio.ratio == 4.0
    assert ratio.low == pytest.approx(4 * 2.71828**-0.346, rel=0.05)
    assert ratio.high == pytest.approx(4 * 2.71828**0.346, rel=0.05)


def test_a_ratio_to_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one case before, got none among 5"):
        share_ratio(torch.ones(5, dtype=torch.bool), torch.zeros(5, dtype=torch.bool))


def test_no_question_shares_a_seed_with_another_or_with_the_pictures_of_a_training():
    seeds = [seed for first in SEEDS.values() for seed in range(first, first + NUM_PROMPTS)]
    assert len(seeds) == len(set(seeds))
    assert not {PICTURES["seed"], JUDGE_PICTURES[1]} & set(seeds)


def test_scores_of_pictures_are_the_rewards_own_under_the_papers_words():
    reward, images, prompts = ClipReward(*tiny_clip()), torch.rand(2, 3, 32, 32), ["a red ball", "a blue tree"]
    found = reward_scores(reward, images, prompts)
    torch.testing.assert_close(found["raw reward"], reward.score(images, prompts))
    by_word = [reward.score(images, [f"{word}. {p}" for p in prompts]) for word in PAPER_WORDS.negative]
    torch.testing.assert_close(found["negative"], sum(by_word) / 5)
    torch.testing.assert_close(found["positive minus negative"], found["positive"] - found["negative"])


@pytest.fixture(scope="module")
def tiny_parts(tmp_path_factory):
    """Folders of tiny random parts in the layout of the miniature, and two files of transformer weights."""
    root = tmp_path_factory.mktemp("parts")
    save_tiny_flux(root / "flux")
    tiny_clip(root / "reward")
    torch.manual_seed(0)
    save_judge(new_judge(), root / "judge")
    for name, seed in (("same", 0), ("other", 1)):
        save_transformer(tiny_flux_pipeline(seed).transformer, root / f"{name}.safetensors", torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("flux", "reward", "judge"):
            patch.setattr(paths, name.upper(), root / name)
        patch.setattr(figures, "NUM_STEPS", 2)
        yield root


def test_a_model_measured_against_itself_differs_by_nothing_and_another_does(tiny_parts):
    models = {name: tiny_parts / f"{name}.safetensors" for name in ("same", "other")}
    rows = measure_alignment(models, neutral_prompts("train")[:3], first_seed=5)
    assert list(rows) == ["base", "same", "other"]
    base, same, other = rows.values()
    for name, value in base.items():
        assert same[name] == value and value.count == 3
    differences = [value for name, value in same.items() if name.endswith(" difference")]
    assert len(differences) == 8
    assert all(value[:3] == (0.0, 0.0, 0.0) for value in differences)
    assert other["saturation difference"].mean != 0 and other["raw reward difference"].mean != 0
    assert other["saturation difference"].mean == pytest.approx(other["saturation"].mean - base["saturation"].mean)
    expected = same["photo"].share - other["photo"].share
    assert same["photo minus other"].mean == pytest.approx(expected)
    assert ("photo ratio" in same) == (base["photo"].share > 0)


def test_tuning_can_ask_other_prompts_and_seeds(tiny_parts):
    """The same prompts under other noise, and other prompts under the same noise, give other pictures."""
    train, test = neutral_prompts("train")[:2], neutral_prompts("test")[:2]
    saturations = [
        measure_alignment({}, prompts, seed)["base"]["saturation"]
        for prompts, seed in ((train, 5), (train, 7), (test, 5))
    ]
    assert len(set(saturations)) == 3


def test_what_is_measured_is_what_the_card_shows(tiny_parts, tmp_path, monkeypatch):
    """Every part, on a few pictures of the tiny models: the counts are right and the card lacks nothing."""
    for name in ("FIGURES", "CARD", "README"):
        monkeypatch.setattr(card, name, tmp_path / name)
    card.README.write_text(f"{card.BEGIN}{card.END}")
    models = {card.SRPO: tiny_parts / "same.safetensors", card.PLAIN: tiny_parts / "other.safetensors"}
    measured = measure_parts(8) | measure_samples(count=95, count_elsewhere=2)
    measured["alignment"] = measure_alignment(models, neutral_prompts("train")[:3], first_seed=5)
    card.merge_figures(measured)
    card.write_card({})
    assert json.loads(card.FIGURES.read_text())["samples"]["content right, held-out pairs"][3] == 90
    assert len(measured["samples at other settings"]) == 5
    assert measured["judge on decoded renders"]["style"].count == 16
    for name in ("32 text tokens, guidance 3.5", "64 text tokens, guidance 7", "512 text tokens, guidance 3.5"):
        assert f"| {name} |" in card.CARD.read_text(encoding="utf-8")
