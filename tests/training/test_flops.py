"""The count of an update's operations, on the tiny model."""

from dataclasses import replace

import pytest

from srpo.policies.flux import FluxPolicy
from srpo.rewards.clip import ClipReward
from srpo.training.flops import update_flops
from srpo.training.presets import direct, studio
from tests.tiny import tiny_clip, tiny_flux_pipeline
from tests.training.test_trainer import small


@pytest.fixture(scope="module")
def parts():
    return FluxPolicy(tiny_flux_pipeline(), max_sequence_length=32), ClipReward(*tiny_clip())


def with_path(config, **changes):
    return replace(config, objective=replace(config.objective, **changes))


def test_it_is_the_same_again_and_grows_with_the_prompts_and_the_rollouts_steps(parts):
    config = small(studio())
    count = update_flops(config, *parts)
    assert update_flops(config, *parts) == count
    assert update_flops(replace(config, prompts_per_update=6), *parts) == 3 * count
    counts = [update_flops(with_path(config, rollout_steps=steps), *parts) for steps in (1, 2, 5)]
    assert counts[2] - counts[1] == 3 * (counts[1] - counts[0]) > 0


def test_a_step_of_the_rollout_is_the_transformers_products_by_hand(parts):
    """Four image and 32 text tokens: of every linear layer two operations per weight and token it sees; of attention
    four per pair of tokens and channel. Modulations and embeddings see one vector per picture."""
    policy, _ = parts
    config = replace(small(studio()), prompts_per_update=1)
    steps = [update_flops(with_path(config, rollout_steps=steps), *parts) for steps in (1, 2)]
    image, text = 4, 32
    expected = 0
    for name, weight in policy.transformer.named_parameters():
        if weight.ndim != 2:
            continue
        if "norm" in name or "time_text_embed" in name:
            tokens = 1
        elif name.startswith("single_transformer_blocks"):
            tokens = image + text
        elif "add_" in name or "context" in name:
            tokens = text
        else:
            tokens = image
        expected += 2 * tokens * weight.numel()
    blocks = len(policy.transformer.transformer_blocks) + len(policy.transformer.single_transformer_blocks)
    expected += blocks * 4 * (image + text) ** 2 * policy.transformer.inner_dim
    assert steps[1] - steps[0] == pytest.approx(expected, rel=1e-9)


def test_two_passes_of_guidance_and_injections_cost_what_they_must(parts):
    """`direct`: two passes a step in the rollout; of the gradient passes one for each of its two draws."""
    config = small(direct())
    plain = with_path(config, rollout_cfg_scale=None)
    step = [update_flops(with_path(c, rollout_steps=4), *parts) - update_flops(c, *parts) for c in (config, plain)]
    assert step[0] == 2 * step[1]
    one = update_flops(with_path(config, num_injections=1), *parts)
    rollout = 3 * step[0]
    assert update_flops(config, *parts) - rollout == 2 * (one - rollout)


def test_nothing_is_left_in_the_weights(parts):
    policy, reward = parts
    before = [weight.clone() for weight in policy.parameters()]
    update_flops(small(studio()), policy, reward)
    assert all(
        weight.grad is None and weight.equal(old) for weight, old in zip(policy.parameters(), before, strict=True)
    )
