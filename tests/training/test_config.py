"""Settings: their rules, the command line's changes, and the way through a file."""

import json
from dataclasses import replace

import pytest

from srpo.objectives.levels import TableLevels, UniformLevels
from srpo.training.config import (
    TrainConfig,
    config_dict,
    config_from_dict,
    read_prompts,
    with_settings,
)
from srpo.training.presets import PRESETS, paper, plain, preset, studio


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_the_way_through_a_file(name):
    config = preset(name)
    assert config_from_dict(json.loads(json.dumps(config_dict(config)))) == config


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_source_cost_and_what_to_expect(name):
    for word in ("Source", "ost:", "Expect:") if name != "paper_pickscore" else ("Source and cost:", "Expect:"):
        assert word in PRESETS[name].__doc__


def test_an_unknown_preset_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"no preset 'papper': choose studio, plain, direct, offline, paper_miniature"):
        preset("papper")


def test_plain_differs_from_studio_by_its_signal_alone():
    assert replace(plain(), signal=studio().signal) == studio()
    assert plain().signal.form == "plain"


def test_the_paper_has_the_published_numbers():
    config = paper()
    assert (config.lr, config.weight_decay, config.clip_norm) == (5e-6, 1e-4, 0.1)
    assert config.updates * config.prompts_per_update == 608
    assert (config.objective.height, config.objective.rollout_steps) == (720, 25)


def test_assignments_change_numbers_words_lists_and_nothing_else():
    config = with_settings(
        studio(),
        [
            "lr=2e-5",
            "objective.levels.d_sigma=0.05",
            "objective.hinge=none",
            "objective.inversion=false",
            'signal.words.positive=["Photo", "Real"]',
            "signal.discounts.negative=[0.3, 0.01]",
            "prompts=my prompts.txt",
        ],
    )
    assert (config.lr, config.objective.levels.d_sigma, config.objective.hinge) == (2e-5, 0.05, None)
    assert config.objective.inversion is False
    assert config.signal.words.positive == ("Photo", "Real")
    assert config.signal.discounts.negative == (0.3, 0.01)
    assert config.prompts == "my prompts.txt"
    assert (config.seed, config.signal.words.negative) == (studio().seed, studio().signal.words.negative)


def test_a_new_kind_of_levels_starts_from_its_own_defaults():
    config = with_settings(studio(), ["objective.levels.kind=table", "objective.levels.kind=uniform"])
    assert config.objective.levels == UniformLevels()
    assert with_settings(studio(), ["objective.levels.kind=table"]).objective.levels == TableLevels()
    changed = with_settings(studio(), ["objective.levels.kind=table", "objective.levels.cleanest_step=30"])
    assert changed.objective.levels == TableLevels(cleanest_step=30)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("updats=3", r"no setting 'updats'; did you mean updates"),
        ("d_sigma=0.1", r"did you mean objective\.levels\.d_sigma\?"),
        ("objective.levels.max_span=50", r"no setting 'objective\.levels\.max_span'"),
        ("lr", r"expected key=value"),
        ("lr=fast", r"lr: .*valid number"),
        ("lr=NaN", r"lr is nan; expected a finite number"),
        ("updates=0", r"updates is 0; expected at least 1"),
        ("updates=1.5", r"updates: .*integer"),
        ("betas=[0.9, 1.0]", r"betas are \(0\.9, 1\.0\)"),
        ("objective.levels.sigma_max=1.2", r"sigma_max 1\.2; expected"),
        ("objective.levels.kind=cosine", r"kind is cosine; expected table, steps, uniform"),
        ("signal.words.positive=Real", r'positive: expected a list, like \["a", "b"\]'),
        ("signal.form=spr", r"signal\.form"),
        ("signal.form=cfg_like_paper", r"set both within 0\.5 \.\.\. 1"),
        ("objective.height=16384", r"more than max_pixels 1048576"),
        ('signal.words={"positive": ["a"], "negativ": ["b"]}', r"negative"),
    ],
)
def test_a_wrong_setting_gets_one_sentence(assignment, message):
    with pytest.raises(ValueError, match=message) as caught:
        with_settings(studio(), [assignment])
    assert "\n" not in str(caught.value)


def test_an_unknown_name_in_a_file_is_not_swallowed():
    settings = config_dict(TrainConfig())
    settings["objective"]["rollout_step"] = 3
    with pytest.raises(ValueError, match=r"did you mean objective\.rollout_steps"):
        config_from_dict(settings)


def test_prompts_are_the_lines_of_a_file_that_say_something(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a red ball\n\n  ein grüner Baum \n", encoding="utf-8")
    assert read_prompts(path) == ["a red ball", "ein grüner Baum"]
    path.write_text("\n \n")
    with pytest.raises(ValueError, match="holds no prompt"):
        read_prompts(path)
    path.write_bytes(b"\xff\xfe\x00")
    for wrong in (path, tmp_path / "missing.txt"):
        with pytest.raises(ValueError, match="expected a UTF-8 text file"):
            read_prompts(wrong)
