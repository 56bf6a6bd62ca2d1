"""The preset `paper` against the independent one-prompt transcription of the reference trainer's update."""

from dataclasses import replace

import pytest
import torch

from srpo.flow.schedule import linear_sigmas, shift_sigmas
from srpo.objectives.direct_align import DirectAlign
from srpo.objectives.levels import TableLevels
from srpo.objectives.srpo import TextSignal
from srpo.policies.flux import FluxPolicy
from srpo.rewards.clip import ClipReward
from srpo.rewards.control_words import PAPER_WORDS
from srpo.training.presets import paper, paper_pickscore
from tests.objectives.transcription import one_update
from tests.tiny import tiny_clip, tiny_flux_pipeline

SIZE, SEED = 32, 3
PROMPTS = ["a red ball on a beach", "a blue house", "a green tree in the snow at sunset"]


class Recorder:
    """A policy, and what it was asked."""

    def __init__(self, policy):
        self.policy, self.told, self.guidance = policy, [], []

    def __getattr__(self, name):
        return getattr(self.policy, name)

    def velocity(self, x_t, sigma, cond, guidance):
        self.told.append(sigma)
        self.guidance.append(guidance)
        return self.policy.velocity(x_t, sigma, cond, guidance)


def ours(config, step, prompts_per_forward):
    """The policy, the rollout and the losses of one update; gradients are left in the policy's weights."""
    policy = Recorder(FluxPolicy(tiny_flux_pipeline(), max_sequence_length=32))
    reward = ClipReward(*tiny_clip(), scale=config.reward_scale)
    path = replace(config.objective, height=SIZE, width=SIZE, prompts_per_forward=prompts_per_forward)
    objective = DirectAlign(path, config.signal)
    generator = torch.Generator().manual_seed(SEED)
    rollout = objective.rollout(policy, PROMPTS, policy.encode_prompts(PROMPTS), generator)
    losses = []
    for loss in objective.losses(policy, rollout, reward, generator, step):
        loss.value.backward()
        losses.append(loss)
    return policy, rollout, losses


def gradients(module):
    return torch.cat([weight.grad.flatten() for weight in module.parameters()])


def relative_error(value, expected):
    return ((value - expected).norm() / expected.norm()).item()


@pytest.fixture(scope="module", params=[(paper, False, 1), (paper, False, 8), (paper_pickscore, True, 4)])
def pair(request):
    """(our policy, rollout, losses), (the oracle's trace, its gradients), one prompt per forward pass."""
    preset, pickscore, step = request.param
    pipe = tiny_flux_pipeline()
    trace = one_update(pipe, tiny_clip(), PROMPTS, step=step, seed=SEED, size=SIZE, pickscore=pickscore)
    return ours(preset(), step, 1), (trace, gradients(pipe.transformer))


def test_noise_and_rollouts_are_the_transcriptions(pair):
    (_, rollout, _), (trace, _) = pair
    assert torch.equal(rollout.noise, trace.noise.expand_as(rollout.noise))
    assert relative_error(rollout.x0, torch.cat(trace.x0)) < 1e-6  # bit-equal where this was written


def test_the_model_is_told_the_same_timesteps_and_guidances(pair):
    """Both run 25 rollout steps per prompt; the branches take a pass each there, and one pass together here."""
    (policy, _, _), (trace, _) = pair

    def rollout_steps(calls):
        return [float(call) for call in calls[:25]]

    n = len(PROMPTS)
    per_prompt = 27
    theirs = [trace.told[p * per_prompt + 25 + b] for p in range(n) for b in (0, 1)]
    assert rollout_steps(policy.told) == rollout_steps(trace.told)
    assert len(policy.told) == 26 * n
    assert [round(sigma, 6) for call in policy.told[25 * n :] for sigma in call.tolist()] == theirs
    assert policy.guidance[:25] == trace.guidance[:25]
    assert set(policy.guidance[25 * n :]) == {3.5}


def test_levels_rewards_and_losses_are_the_transcriptions(pair):
    (_, _, losses), (trace, _) = pair
    n = len(PROMPTS)
    for branch, name in enumerate(("denoise", "inversion")):
        for prompt in range(n):
            theirs = prompt * 2 + branch
            record = losses[theirs].record
            assert record[f"{name}/sigma"] == pytest.approx(trace.sigmas[theirs][0], rel=1e-6)
            assert record[f"{name}/sigma_target"] == pytest.approx(trace.sigmas[theirs][1], rel=1e-6)
            assert record[f"{name}/reward"] == pytest.approx(trace.rewards[theirs], rel=1e-6, abs=1e-6)
            assert losses[theirs].value.item() * n == pytest.approx(trace.losses[theirs], rel=1e-6)


def test_levels_differ_from_those_of_a_float32_linspace_in_the_last_bit_at_most():
    """The oracle rounds its schedules once (see there); a trainer that uses torch.linspace in float32 is this near."""

    def shift_3(s):
        return 3 * s / (1 + 2 * s)

    s50 = shift_3(torch.linspace(1, 0, 51)).tolist()
    for cleanest_step in (25, 30):
        table = torch.linspace(s50[5], s50[cleanest_step], 1000)
        assert (TableLevels(cleanest_step=cleanest_step).sigmas() - table).abs().max() <= 2**-24
    assert (shift_sigmas(linear_sigmas(25), 3.0) - shift_3(torch.linspace(1, 0, 26))).abs().max() <= 2**-24


def test_the_update_has_the_transcriptions_gradient(pair):
    (policy, _, _), (_, expected) = pair
    assert expected.norm() > 1e-6
    assert relative_error(gradients(policy.transformer), expected) < 1e-6


def test_all_prompts_in_one_forward_pass_give_the_same_gradient():
    """Batching changes only how sums are rounded; that error grows through 25 rollout steps to about 1e-6."""
    alone, together = ours(paper(), 1, 1), ours(paper(), 1, None)
    assert len(alone[2]) == 6 and len(together[2]) == 2
    assert sum(x.value.item() for x in alone[2]) == pytest.approx(sum(x.value.item() for x in together[2]), rel=1e-6)
    assert relative_error(gradients(together[0].transformer), gradients(alone[0].transformer)) < 2e-5


def test_the_words_of_the_update_reach_the_reward_alone():
    """Another update number changes the scores under the words and leaves the plain score and the pictures alone."""
    (_, one, first), (_, two, second) = ours(paper(), 1, None), ours(paper(), 2, None)
    assert torch.equal(one.x0, two.x0)
    assert first[0].record["denoise/plain"] == second[0].record["denoise/plain"]
    assert first[0].record["denoise/positive"] != second[0].record["denoise/positive"]


def test_words_that_all_weigh_the_same_leave_every_bit_of_the_update():
    weighed = replace(PAPER_WORDS, positive_weights=(1.0,) * 4, negative_weights=(2.5,) * 5)
    config = replace(paper(), signal=replace(paper().signal, words=weighed))
    (first, _, plain), (second, _, same) = ours(paper(), 7, None), ours(config, 7, None)
    assert [loss.record for loss in plain] == [loss.record for loss in same]
    assert torch.equal(gradients(first.transformer), gradients(second.transformer))


def test_the_oracle_would_notice_another_form_of_the_reward():
    config = replace(paper(), signal=TextSignal(form="srp"))
    trace = one_update(tiny_flux_pipeline(), tiny_clip(), PROMPTS, step=1, seed=SEED, size=SIZE)
    assert abs(ours(config, 1, 1)[2][0].record["denoise/reward"] - trace.rewards[0]) > 1e-4
