"""A run takes its rewards by their names, and what lies there counts for whether it may go on."""

from dataclasses import replace

import pytest

from srpo.miniature import paths
from srpo.rewards.clip import ClipReward
from srpo.training.assemble import assemble
from srpo.training.continuity import inputs, pinned_settings
from srpo.training.presets import studio
from tests.rewards.published import save_aesthetic


def test_a_reward_is_loaded_by_its_name_with_the_runs_own_scale():
    trainer = assemble(replace(studio(), reward=f"pickscore:{paths.REWARD}", reward_scale=5.0))
    assert isinstance(trainer.reward, ClipReward)
    assert (trainer.reward.name, trainer.reward.scale) == ("pickscore", 5.0)


def test_a_reward_without_text_vectors_judges_a_run_and_trains_it_by_the_noise_form_alone(tmp_path):
    name = f"aesthetic:{save_aesthetic(tmp_path)}"
    with pytest.raises(ValueError, match=r"aesthetic has no text vectors .* choose one of clip, pickscore, hpsv2"):
        assemble(replace(studio(), reward=name))
    trained_by = replace(studio(), reward=name, signal=replace(studio().signal, form="noise"))
    assert assemble(trained_by).reward.name == "aesthetic"
    validation = replace(studio().validation, every=1, reward=name)
    assert "reward" in assemble(replace(studio(), validation=validation)).validation.measures


def test_the_place_of_a_named_reward_is_what_a_run_reads_and_its_kind_must_stay(tmp_path):
    plain, official = studio(), replace(studio(), reward=f"hpsv2.1:{tmp_path}")
    cropped = replace(studio(), reward=f"hpsv2.1+srpo:{tmp_path}")
    assert inputs(plain)["reward"] == plain.reward
    assert inputs(official)["reward"] == inputs(cropped)["reward"] == str(tmp_path)
    assert pinned_settings(official) != pinned_settings(cropped)
    assert pinned_settings(plain) == pinned_settings(replace(plain, reward="elsewhere/reward"))
