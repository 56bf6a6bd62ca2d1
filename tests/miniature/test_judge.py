"""The judge: its classes, what it answers, and that it learns and is stored."""

import pytest
import torch
from transformers import ResNetForImageClassification

from srpo.miniature.data import Pictures
from srpo.miniature.judge import Judge, judge_accuracy, new_judge, save_judge, train_judge
from srpo.miniature.loop import train
from srpo.miniature.world import ATTRIBUTES, HELD_OUT_PAIRS


class InterruptedPictures(Pictures):
    """The first batch comes; the second is a Ctrl+C."""

    asked = 0

    def images(self, index):
        type(self).asked += 1
        if self.asked == 2:
            raise KeyboardInterrupt
        return super().images(index)


@pytest.fixture
def judge():
    torch.manual_seed(0)
    return Judge(new_judge())


def test_the_classes_are_those_of_the_world_by_attribute(judge):
    assert judge.classes == {name: list(values) for name, values in ATTRIBUTES.items()}


def test_probabilities_of_each_attribute_sum_to_one_for_pictures_of_any_size(judge):
    for size in ((128, 128), (64, 96), (256, 256)):
        table = judge.probabilities(torch.rand(2, 3, *size))
        assert set(table) == set(ATTRIBUTES)
        for name, values in table.items():
            assert values.shape == (2, len(ATTRIBUTES[name]))
            torch.testing.assert_close(values.sum(-1), torch.ones(2))


def test_the_verdict_is_the_likeliest_class_of_each_attribute(judge):
    image = torch.rand(3, 3, 128, 128)
    table = judge.probabilities(image)
    for i, verdict in enumerate(judge.verdict(image)):
        assert verdict == {name: judge.classes[name][int(values[i].argmax())] for name, values in table.items()}


def test_a_picture_is_judged_alone_as_in_a_batch(judge):
    image = torch.rand(3, 3, 128, 128)
    alone, together = judge.probabilities(image[1:2]), judge.probabilities(image)
    for name in alone:
        torch.testing.assert_close(alone[name][0], together[name][1])


def test_a_stored_judge_is_small_and_judges_as_before_but_for_rounding(judge, tmp_path):
    image = torch.rand(2, 3, 128, 128)
    before = judge.probabilities(image)
    save_judge(judge.model, tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < 2e6
    after = Judge.from_pretrained(tmp_path).probabilities(image)
    for name, values in before.items():
        torch.testing.assert_close(after[name], values, atol=2e-3, rtol=0)


def test_a_folder_without_a_judge_or_with_a_foreign_classifier_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="no judge at"):
        Judge.from_pretrained(tmp_path)
    config = new_judge().config
    config.id2label = {0: "cat", 1: "dog"}
    ResNetForImageClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is no judge"):
        Judge.from_pretrained(tmp_path)


def test_an_image_of_the_wrong_shape_is_refused(judge):
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        judge.probabilities(torch.rand(3, 128, 128))


def test_training_taken_up_halfway_ends_where_an_uninterrupted_one_ends(pictures, tmp_path, monkeypatch):
    monkeypatch.setitem(train.__kwdefaults__, "checkpoint_every", 1)
    monkeypatch.setenv("SRPO_CACHE", str(tmp_path / "whole"))
    whole = train_judge(pictures, updates=2, batch=8)
    monkeypatch.setenv("SRPO_CACHE", str(tmp_path / "halves"))
    with pytest.raises(KeyboardInterrupt):
        train_judge(InterruptedPictures(pictures.pixels, pictures.scenes), updates=2, batch=8)
    halves = train_judge(pictures, updates=2, batch=8)
    torch.manual_seed(700)
    untrained = new_judge().state_dict()
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(halves.state_dict()[name], value, atol=1e-5, rtol=1e-4)
        if value.is_floating_point():
            assert not torch.equal(value, untrained[name])


def test_accuracy_is_given_by_attribute_and_style_with_intervals(judge):
    figures = judge_accuracy(judge, 8, seed=11, pairs=HELD_OUT_PAIRS)
    assert {"subject", "colour", "place", "time", "style", "place in concept art", "style of photo"} <= set(figures)
    for figure in figures.values():
        assert 0 <= figure.low <= figure.share <= figure.high <= 1
    assert figures["subject"].count == 8
    assert figures["subject in photo"].count == 2


def test_accuracy_on_changed_pictures_is_that_of_what_the_judge_then_sees(judge):
    """All black pictures get one verdict: styles come equally often, so a quarter of the verdicts is right."""
    figures = judge_accuracy(judge, 8, seed=11, change=torch.zeros_like, batch=4)
    assert figures["style"].share == 0.25
