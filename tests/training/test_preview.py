"""A short run before a run: its moments are those of the run itself, and nothing is left of it."""

import pytest
import torch

from srpo.evaluation.sampling import sample_images
from srpo.training.assemble import assemble
from srpo.training.config import with_settings
from srpo.training.presets import studio
from srpo.training.preview import preview
from tests.training.test_probe import folder_bytes

PROMPTS, SEEDS = ["a red ball", "a blue house"], [3, 4]


@pytest.fixture
def config(flux_folder, clip_folder, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red ball\na blue house\na green tree\n")
    changes = [
        *(f"model={flux_folder}", f"reward={clip_folder}", f"prompts={tmp_path / 'prompts.txt'}"),
        *("max_sequence_length=32", "objective.height=32", "objective.width=32", "objective.rollout_steps=2"),
        *("prompts_per_update=2", "validation.every=0", "validation.num_steps=2", "updates=2", "lr=1e-2"),
    ]
    return with_settings(studio(), changes)


def painted(trainer):
    return sample_images(trainer.policy, PROMPTS, SEEDS, num_steps=2, height=32, width=32)


def test_the_moments_are_those_of_the_run_itself(config, flux_folder):
    before = folder_bytes(flux_folder)
    moments = list(preview(config, PROMPTS, SEEDS))
    assert [moment.update for moment in moments] == [0, 1, 2]
    trainer = assemble(config)
    assert torch.equal(moments[0].images, painted(trainer))
    for moment in moments[1:]:
        record = trainer.run_update()
        assert moment.record.loss == record.loss and moment.record.scores == record.scores
        assert torch.equal(moment.images, painted(trainer))
    assert not torch.equal(moments[0].images, moments[2].images)
    assert folder_bytes(flux_folder) == before


def test_what_look_raises_ends_the_run_before_the_next_pass(config):
    class Enough(Exception):
        pass

    seen = []

    def look():
        seen.append(None)
        if len(seen) >= 4:
            raise Enough

    moments = preview(config, PROMPTS, SEEDS, look)
    assert next(moments).update == 0  # two steps of one batch
    with pytest.raises(Enough):
        next(moments)
    assert len(seen) in (4, 5)  # an update's parts run side by side, and each of them is asked
    assert next(moments, None) is None


def test_prompts_and_seeds_go_together(config):
    with pytest.raises(ValueError, match="one seed for each prompt"):
        next(preview(config, PROMPTS, [1]))
