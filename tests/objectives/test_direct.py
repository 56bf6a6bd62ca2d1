"""The preset `direct` against an independent transcription of the later trainer's update.

Tolerances as in `test_paper.py`. The image is scaled by its own range here as there, which the decoder's offset and
scale do not touch, so the two agree to rounding only.
"""

from dataclasses import replace

import pytest
import torch

from srpo.objectives.direct_align import DirectAlign
from srpo.objectives.levels import StepLevels
from srpo.policies.flux import FluxPolicy
from srpo.rewards.clip import ClipReward
from srpo.training.presets import direct
from tests.objectives.transcription_direct import one_update
from tests.tiny import tiny_clip, tiny_flux_pipeline

SIZE, SEED, ROLLOUT_STEPS = 32, 5, 26
PROMPTS = ["a red ball on a beach", "a blue house", "a green tree in the snow at sunset"]


def gradients(module):
    return torch.cat([weight.grad.flatten() for weight in module.parameters()])


def relative_error(value, expected):
    return ((value - expected).norm() / expected.norm()).item()


@pytest.fixture(scope="module", params=[1, 6])
def pair(request):
    """Our rollout, losses and gradients of an update, and the oracle's trace and gradients; updates count from 1."""
    update, config = request.param, direct()
    pipe = tiny_flux_pipeline()
    trace = one_update(pipe, tiny_clip(), PROMPTS, step=update - 1, seed=SEED, size=SIZE, rollout_steps=ROLLOUT_STEPS)
    policy = FluxPolicy(tiny_flux_pipeline(), max_sequence_length=32)
    path = replace(config.objective, height=SIZE, width=SIZE)
    objective = DirectAlign(path, config.signal)
    generator = torch.Generator().manual_seed(SEED)
    rollout = objective.rollout(policy, PROMPTS, policy.encode_prompts(PROMPTS), generator)
    losses = []
    for loss in objective.losses(policy, rollout, ClipReward(*tiny_clip()), generator, update):
        loss.value.backward()
        losses.append(loss)
    return (rollout, losses, gradients(policy.transformer)), (trace, gradients(pipe.transformer))


def test_rollouts_losses_and_gradient_are_the_transcriptions(pair):
    (rollout, losses, gradient), (trace, expected) = pair
    assert torch.equal(rollout.noise, trace.noise.expand_as(rollout.noise))
    assert relative_error(rollout.x0, torch.cat(trace.x0)) < 2e-6
    assert len(losses) == 2  # one denoise branch per draw, all prompts together
    for draw, loss in enumerate(losses):
        theirs = [prompt * 2 + draw for prompt in range(len(PROMPTS))]
        for name, values in (("sigma", [s for s, _ in trace.sigmas]), ("sigma_target", [t for _, t in trace.sigmas])):
            mean = sum(values[i] for i in theirs) / len(theirs)
            assert loss.record[f"denoise/{name}"] == pytest.approx(mean, rel=1e-6)
        mean = sum(trace.rewards[i] for i in theirs) / len(theirs)
        assert loss.record["denoise/reward"] == pytest.approx(mean, rel=1e-5, abs=1e-6)
        mean = sum(trace.losses[i] for i in theirs) / len(theirs)
        assert loss.value.item() == pytest.approx(mean, rel=1e-5, abs=1e-7)
    assert expected.norm() > 1e-4
    assert relative_error(gradient, expected) < 1e-5


def test_direct_has_the_published_numbers():
    config = direct()
    assert (config.lr, config.clip_norm, config.updates) == (3e-6, 50, 50)
    path = config.objective
    assert (path.rollout_steps, path.rollout_cfg_scale, path.num_injections) == (26, 4.0, 2)
    assert (path.inversion, path.hinge, path.discount_shift, path.image_range) == (False, None, 3.0, "own")
    assert path.levels == StepLevels()


def test_words_take_turns_from_the_first_as_that_trainer_counts_updates_from_0():
    words = direct().signal.words
    assert [words.positive_for(update) for update in (1, 2, 5)] == ["Natural-lighting", "Detail", "Natural-lighting"]
    assert [words.negative_for(update) for update in (1, 2, 4)] == ["Concept art", "Painting", "Concept art"]
