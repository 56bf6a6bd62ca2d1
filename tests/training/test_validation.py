"""Validation: the same pictures each time, and a rule that is a function of the records."""

from dataclasses import replace

import pytest
import torch

from srpo.evaluation.sampling import sample_images
from srpo.policies.flux import FluxPolicy
from srpo.runs.records import ValidationRecord
from srpo.training.config import ValidationConfig
from srpo.training.validation import Validation, best_of, spread
from tests.tiny import tiny_flux_pipeline

PROMPTS = [f"a red ball {number}" for number in range(6)]
CONFIG = ValidationConfig(every=5, num_prompts=3, num_samples=2, num_steps=2)


def validation_of(config=CONFIG, **changes):
    return Validation(config, PROMPTS, **{"size": (32, 48), "updates": 12, **changes})


def records(scores, content=None, half=0.1):
    """One record every five updates, each score with an interval of +- half."""
    content = content or [0.9] * len(scores)
    return [
        ValidationRecord(
            5 * number,
            {"photo": score, "content": kept},
            {"photo": (score - half, score + half), "content": (kept - half, kept + half)},
            1.0,
        )
        for number, (score, kept) in enumerate(zip(scores, content, strict=True))
    ]


def test_it_is_due_before_the_first_update_every_fifth_and_after_the_last():
    assert [update for update in range(13) if validation_of().due(update)] == [0, 5, 10, 12]
    assert not validation_of(replace(CONFIG, every=0)).due(0)


def test_it_scores_the_pictures_that_the_policy_paints_of_its_prompts_and_seeds():
    policy = FluxPolicy(tiny_flux_pipeline(), max_sequence_length=16)
    seen = []

    def brightness(images, prompts):
        seen.append(prompts)
        return images.mean((1, 2, 3))

    validation = validation_of(more={"brightness": brightness, "bright": lambda images, _: images.mean((1, 2, 3)) > 0})
    record = validation.validate(policy, 5)
    assert validation.prompts == [PROMPTS[0], PROMPTS[2], PROMPTS[4]]
    expected = sample_images(policy, validation.prompts, validation.seeds, num_steps=2, height=32, width=48)
    torch.testing.assert_close(validation.images, expected, atol=1e-5, rtol=1e-5)
    assert seen == [validation.prompts]
    assert (record.update, record.scores["bright"]) == (5, 1.0)
    values = expected.mean((1, 2, 3))
    half = 1.959964 * values.std().item() / 3**0.5
    assert record.scores["brightness"] == pytest.approx(values.mean().item(), rel=1e-4)
    assert record.intervals["brightness"] == pytest.approx(
        (values.mean().item() - half, values.mean().item() + half), rel=1e-3
    )
    assert list(record.scores) == ["brightness", "bright", "saturation", "clipped", "sharpness", "diversity"]
    assert record.intervals["bright"][0] < 1.0  # three of three are no certainty


def test_the_same_weights_score_the_same_and_leave_the_generator_of_the_process_alone():
    policy, validation = FluxPolicy(tiny_flux_pipeline(), max_sequence_length=16), validation_of()
    before = torch.get_rng_state()
    first, second = validation.validate(policy, 0), validation.validate(policy, 5)
    assert first.scores == second.scores
    assert torch.equal(torch.get_rng_state(), before)


def test_the_best_is_the_first_of_the_highest():
    best = best_of(records([0.2, 0.5, 0.5, 0.4]), "photo", {})
    assert (best.update, best.score, best.over_optimised_from) == (5, 0.5, None)
    assert best_of([], "photo", {}) is None


def test_a_checkpoint_beyond_a_limit_is_never_the_best():
    limits = {"content": (-0.1, 1.0)}
    best = best_of(records([0.2, 0.4, 0.9], [0.9, 0.85, 0.7]), "photo", limits)
    assert (best.update, best.over_optimised_from) == (5, 10)
    assert best.rule == "the most photo, where content falls by at most 0.1"


@pytest.mark.parametrize(
    ("scores", "since"),
    [
        ([0.2, 0.6, 0.55, 0.4, 0.3], 15),  # 0.55 is within the best one's interval, 0.4 and 0.3 are below it
        ([0.2, 0.6, 0.4, 0.55, 0.4], 20),  # it recovered at 15
        ([0.2, 0.6, 0.4, 0.3, 0.7], None),  # a new best
        ([0.6, 0.3, 0.2, 0.1, 0.0], 5),  # worse from the start
        ([0.2, 0.3, 0.4, 0.5, 0.6], None),
    ],
)
def test_over_optimisation_begins_where_everything_after_the_best_is_worse(scores, since):
    assert best_of(records(scores), "photo", {}).over_optimised_from == since


def test_a_run_is_stopped_once_two_validations_confirm_it_and_only_where_that_is_asked_for():
    rule = {"num_samples": 0, "maximise": "photo", "stop": True}
    more = {"photo": lambda images, _: images.mean((1, 2, 3))}
    validation, patient = (validation_of(replace(CONFIG, **rule | {"stop": stop}), more=more) for stop in (True, False))
    worse = records([0.2, 0.6, 0.3, 0.2])
    assert [validation.should_stop(worse[:count]) for count in range(5)] == [False, False, False, False, True]
    assert not patient.should_stop(worse)


def test_a_rule_without_its_score_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="no score 'photo' here: choose among saturation, clipped, sharpness"):
        validation_of(replace(CONFIG, maximise="photo"))
    with pytest.raises(ValueError, match="no score 'content' here"):
        validation_of(replace(CONFIG, limits={"content": (-0.1, 0.1)}))


def test_prompts_are_spread_evenly_and_come_again_where_there_are_few():
    assert spread(list("abcdefgh"), 4) == ["a", "c", "e", "g"]
    assert spread(["a", "b"], 5) == ["a", "b", "a", "b", "a"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"every": -1}, "validation.every is -1"),
        ({"num_prompts": 1}, "at least 2 and 1"),
        ({"num_samples": 4}, r"num_samples is 4; expected 0 \.\.\. 3"),
        ({"limits": {"content": (0.1, 0.2)}}, "validation.limits.content is 0.1"),
        ({"every": 0, "stop": True}, "validation.stop needs validations"),
    ],
)
def test_settings_out_of_range_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **wrong)


def test_the_miniatures_judge_scores_photos_and_content_of_prompts_it_knows():
    from srpo.miniature import paths
    from srpo.miniature.judge import Judge
    from srpo.miniature.renderer import render
    from srpo.miniature.world import neutral_prompts
    from srpo.training.assemble import judge_measures

    known = neutral_prompts("train")[:4]
    prompts, scenes = [text for text, _ in known], [scene for _, scene in known]
    measures = judge_measures(Judge.from_pretrained(paths.JUDGE))
    photos = render([scene.with_style("photo") for scene in scenes])
    drawn = render([scene.with_style("anime") for scene in scenes])
    assert measures["photo"](photos, prompts).float().mean() >= 0.75
    assert measures["photo"](drawn, prompts).float().mean() <= 0.25
    assert measures["content"](photos, prompts).float().mean() >= 0.75
    assert measures["content"](photos, prompts[1:] + prompts[:1]).float().mean() <= 0.25
    with pytest.raises(ValueError, match="does not know what 'a dog' shows"):
        measures["content"](photos[:1], ["a dog"])
