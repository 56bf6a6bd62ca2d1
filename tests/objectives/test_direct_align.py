"""Direct-Align as a path, and the signals it carries."""

from dataclasses import replace

import pytest
import torch

from srpo.objectives.base import Shard
from srpo.objectives.direct_align import DirectAlign, DirectAlignConfig, Scored
from srpo.objectives.levels import UniformLevels
from srpo.objectives.srpo import TextSignal
from srpo.policies.flux import FluxPolicy
from srpo.rewards.clip import ClipReward
from srpo.rewards.control_words import (
    FORMS,
    PAPER_DISCOUNTS,
    PICKSCORE_DISCOUNTS,
    ControlWords,
    Discounts,
    relative_to_noise,
)
from tests.tiny import tiny_clip, tiny_flux_pipeline

PROMPTS = ["a red ball", "a blue house", "a tree"]
CONFIG = DirectAlignConfig(height=32, width=32, rollout_steps=2)
WORDS = ControlWords(("Photo",), ("Oil",))


@pytest.fixture
def policy(pipe):
    return FluxPolicy(pipe, max_sequence_length=32)


@pytest.fixture(scope="module")
def reward():
    return ClipReward(*tiny_clip())


def run(policy, reward, config=CONFIG, signal=None, seed=0):
    objective = DirectAlign(config, signal or TextSignal())
    generator = torch.Generator().manual_seed(seed)
    rollout = objective.rollout(policy, PROMPTS, policy.encode_prompts(PROMPTS), generator)
    losses = []
    for loss in objective.losses(policy, rollout, reward, generator, 1):
        loss.value.backward()
        losses.append(loss)
    return rollout, losses


class PerfectPolicy:
    """Knows its noise and its clean latents: the velocity is noise - x0, times a number that takes the gradient."""

    device = torch.device("cpu")

    def __init__(self, rollout):
        self.rollout, self.gain, self.decoded = rollout, torch.ones((), requires_grad=True), []

    def velocity(self, x_t, sigma, cond, guidance):
        assert len(x_t) == len(cond) == 2 * len(self.rollout.x0)  # both branches in one pass
        return self.gain * (self.rollout.noise - self.rollout.x0).repeat(2, 1, 1, 1)

    def decode(self, x0):
        self.decoded.append(x0.detach())
        return x0


class SumOf:
    """A signal that rewards the sum of all pixels in one branch, and nothing in the other."""

    def __init__(self, branch):
        self.branch = branch

    def __call__(self, reward, image, prompts, branch, index, update):
        total = image.sum((1, 2, 3)) * (branch == self.branch)
        return Scored(total, total.detach(), total.detach(), total.detach())


def test_a_perfect_velocity_recovers_the_rollout_in_both_branches(policy):
    """And the branches oppose each other: d x0_hat / d velocity is -+ d_sigma / (1 - sigma_target)."""
    slopes, targets = [], []
    for branch in ("denoise", "inversion"):
        objective = DirectAlign(replace(CONFIG, hinge=None), SumOf(branch))
        generator = torch.Generator().manual_seed(0)
        rollout = objective.rollout(policy, PROMPTS, policy.encode_prompts(PROMPTS), generator)
        perfect = PerfectPolicy(rollout)
        for loss in objective.losses(perfect, rollout, None, generator, 1):
            loss.value.backward()
            if f"{branch}/sigma_target" in loss.record:
                targets.append(loss.record[f"{branch}/sigma_target"])
        assert len(perfect.decoded) == 2
        for x0_hat in perfect.decoded:
            torch.testing.assert_close(x0_hat, rollout.x0, atol=2e-5, rtol=1e-5)
        slopes.append(perfect.gain.grad)
    assert targets[0] == pytest.approx(targets[1])
    assert slopes[0].abs() > 1e-3
    torch.testing.assert_close(slopes[0], -slopes[1], rtol=1e-4, atol=1e-5)


def test_one_pass_for_both_branches_has_the_gradient_of_a_pass_for_each_prompt_and_branch(reward):
    """Three prompts, two branches and two injections in two forward passes, against twelve by hand."""
    config, signal = replace(CONFIG, num_injections=2), TextSignal()
    policy = FluxPolicy(tiny_flux_pipeline(), max_sequence_length=32)
    rollout, _ = run(policy, reward, config)
    batched = torch.cat([weight.grad.flatten() for weight in policy.parameters()])
    policy.transformer.zero_grad()

    generator = torch.Generator().manual_seed(0)
    DirectAlign(config, signal).rollout(policy, PROMPTS, rollout.cond, generator)  # draws the noise once more
    for _ in range(2):
        drawn = config.levels.draw(len(PROMPTS), generator)
        for steps in (config.levels.denoise(drawn), config.levels.inversion(drawn)):
            for i, prompt in enumerate(PROMPTS):
                one = slice(i, i + 1)
                x0, noise, sigma, target = (
                    rollout.x0[one],
                    rollout.noise[one],
                    steps.sigma[one],
                    steps.sigma_target[one],
                )
                x_t = (1 - sigma) * x0 + sigma * noise
                velocity = policy.velocity(x_t, sigma, rollout.cond[one], config.guidance)
                image = policy.decode((x_t + (target - sigma) * velocity - target * noise) / (1 - target))
                scored = signal(reward, image, [prompt], steps.branch, steps.index[one], 1)
                (torch.relu(config.hinge - scored.reward).sum() / 12).backward()
    alone = torch.cat([weight.grad.flatten() for weight in policy.parameters()])
    assert alone.norm() > 1e-3
    assert (batched - alone).norm() < 1e-5 * alone.norm()


def test_the_losses_may_be_looked_at_without_touching_the_weights(policy, reward):
    objective = DirectAlign(CONFIG, TextSignal())
    generator = torch.Generator().manual_seed(0)
    rollout = objective.rollout(policy, PROMPTS, policy.encode_prompts(PROMPTS), generator)
    assert len(list(objective.losses(policy, rollout, reward, generator, 1))) == 2
    assert all(weight.grad is None for weight in policy.parameters())


def test_shards_of_an_update_are_its_parts(reward):
    """Two shards of two prompts see the noise and levels of the four; their mean loss and gradient is the four's."""
    prompts, results = [*PROMPTS, "a boat"], []
    for shards in ([Shard()], [Shard(0, 2), Shard(1, 2)]):
        policy, total = FluxPolicy(tiny_flux_pipeline(), max_sequence_length=32), 0.0
        for shard in shards:
            own = prompts[shard.part(len(prompts) // shard.count)]
            objective = DirectAlign(CONFIG, TextSignal(), shard)
            generator = torch.Generator().manual_seed(0)
            rollout = objective.rollout(policy, own, policy.encode_prompts(own), generator)
            for loss in objective.losses(policy, rollout, reward, generator, 1):
                (loss.value / len(shards)).backward()
                total += loss.value.item() / len(shards)
        results.append((total, torch.cat([weight.grad.flatten() for weight in policy.parameters()])))
    (whole, gradient), (parts, gradient_of_parts) = results
    assert parts == pytest.approx(whole, rel=1e-5)
    assert (gradient_of_parts - gradient).norm() < 1e-5 * gradient.norm()


def test_several_sizes_take_turns_by_the_generator_and_one_size_draws_nothing(policy, reward):
    sizes = ((32, 48), (48, 32))
    shapes = {run(policy, reward, replace(CONFIG, sizes=sizes), seed=seed)[0].x0.shape[-2:] for seed in range(6)}
    assert shapes == {(4, 6), (6, 4)}
    one, _ = run(policy, reward, replace(CONFIG, sizes=((32, 32),)))
    assert torch.equal(one.noise, run(policy, reward)[0].noise)


def test_two_pass_guidance_of_scale_1_is_the_plain_rollout_and_of_another_is_not(policy, reward):
    plain, _ = run(policy, reward)
    one, _ = run(policy, reward, replace(CONFIG, rollout_cfg_scale=1.0))
    four, _ = run(policy, reward, replace(CONFIG, rollout_cfg_scale=4.0))
    torch.testing.assert_close(one.x0, plain.x0, atol=1e-4, rtol=1e-4)
    assert (four.x0 - plain.x0).abs().max() > 0.01


def test_a_discount_multiplies_each_prompts_loss_by_lambda_of_its_place(policy, reward):
    """Shift 3 of the place p = index / 999: lambda = 3 p / (1 + 2 p); one level, so all prompts have the same."""
    levels = UniformLevels(sigma_min=0.8, sigma_max=0.8, d_sigma=0.1)
    config = replace(CONFIG, levels=levels, hinge=None)
    _, plain = run(policy, reward, config)
    _, discounted = run(policy, reward, replace(config, discount_shift=3.0))
    denoise, inversion = 1 / 2, 0.0  # of 0.6 ... 0.8: the steps' cleaner ends are 0.7 and 0.6
    for loss, expected, place in zip(discounted, plain, (denoise, inversion), strict=True):
        assert loss.value.item() == pytest.approx(expected.value.item() * 3 * place / (1 + 2 * place), abs=1e-6)


def test_an_image_in_its_own_range_spans_0_to_1_and_keeps_the_gradient_of_clamped_pixels(policy):
    objective = DirectAlign(replace(CONFIG, image_range="own"), TextSignal())
    x0 = (5 * torch.randn(2, 16, 4, 4, generator=torch.Generator().manual_seed(0))).requires_grad_()
    image = objective._image(policy, x0)
    assert image.amin((1, 2, 3)).tolist() == [0.0, 0.0] and image.amax((1, 2, 3)).tolist() == [1.0, 1.0]
    raw = policy.decode(x0, clamp=False)[1]
    torch.testing.assert_close(image[1], (raw - raw.min()) / (raw.max() - raw.min()))
    assert torch.equal(policy.decode(x0), policy.decode(x0, clamp=False).clamp(0, 1))


def test_stored_latents_keep_their_noise_or_get_one_by_the_objectives_rule(policy, reward):
    objective = DirectAlign(replace(CONFIG, shared_noise=True), TextSignal())
    cond, x0 = policy.encode_prompts(PROMPTS), torch.randn(3, 16, 4, 4)
    stored = torch.randn(3, 16, 4, 4)
    generator = torch.Generator().manual_seed(0)
    assert objective.offline_rollout(PROMPTS, cond, x0, stored, generator).noise is stored
    drawn = objective.offline_rollout(PROMPTS, cond, x0, None, generator)
    assert torch.equal(drawn.noise[0], drawn.noise[2]) and torch.equal(drawn.x0, x0)


def test_the_rollout_is_the_policies_euler_sample_of_its_own_schedule(policy, reward, pipe):
    rollout, _ = run(policy, reward)
    latents = pipe(
        PROMPTS,
        height=32,
        width=32,
        num_inference_steps=2,
        guidance_scale=CONFIG.rollout_guidance,
        latents=pipe._pack_latents(rollout.noise, 3, 16, 4, 4),
        max_sequence_length=32,
        output_type="latent",
    ).images
    torch.testing.assert_close(rollout.x0, pipe._unpack_latents(latents, 32, 32, 8), atol=1e-4, rtol=1e-4)
    assert not rollout.x0.requires_grad


def test_each_prompt_has_its_own_noise_unless_it_is_shared(policy, reward):
    own, _ = run(policy, reward)
    shared, _ = run(policy, reward, replace(CONFIG, shared_noise=True))
    assert not torch.equal(own.noise[0], own.noise[1])
    assert torch.equal(shared.noise[0], shared.noise[1])


def test_the_noise_in_bf16_has_eight_bits(policy, reward):
    rollout, _ = run(policy, reward, replace(CONFIG, noise_in_bf16=True))
    assert rollout.noise.dtype == torch.float32
    assert torch.equal(rollout.noise, rollout.noise.bfloat16().float())


@pytest.mark.parametrize(
    ("inversion", "injections", "count"), [(True, 1, 2), (False, 1, 1), (False, 2, 2), (True, 3, 6)]
)
def test_losses_are_the_mean_over_branches_and_injections(policy, reward, inversion, injections, count):
    config = replace(CONFIG, inversion=inversion, num_injections=injections)
    _, losses = run(policy, reward, config)
    assert len(losses) == count
    for loss in losses:
        branch = "denoise" if "denoise/loss" in loss.record else "inversion"
        assert loss.value.item() == pytest.approx(loss.record[f"{branch}/loss"] / count, rel=1e-6)


def test_parts_of_the_batch_give_the_loss_and_gradient_of_the_whole(reward):
    results = []
    for size in (None, 2):
        policy = FluxPolicy(tiny_flux_pipeline(), max_sequence_length=32)
        _, losses = run(policy, reward, replace(CONFIG, prompts_per_forward=size))
        gradient = torch.cat([weight.grad.flatten() for weight in policy.parameters()])
        results.append((sum(loss.value.item() for loss in losses), gradient, len(losses)))
    (whole, gradient, _), (parts, gradient_of_parts, count) = results
    assert count == 4
    assert parts == pytest.approx(whole, rel=1e-6)
    assert (gradient_of_parts - gradient).norm() < 1e-5 * gradient.norm()


def test_the_same_seed_gives_the_same_losses_and_another_seed_others(policy, reward):
    def values(seed):
        return [loss.value.item() for loss in run(policy, reward, seed=seed)[1]]

    assert values(0) == values(0)
    assert values(0) != values(1)


def test_the_hinge_stops_the_gradient_above_its_margin(policy, reward):
    run(policy, reward, replace(CONFIG, hinge=-10.0))
    assert all(weight.grad is None or not weight.grad.any() for weight in policy.parameters())


def test_without_a_hinge_the_loss_is_minus_the_reward(policy, reward):
    _, losses = run(policy, reward, replace(CONFIG, hinge=None))
    assert losses[0].record["denoise/loss"] == pytest.approx(-losses[0].record["denoise/reward"])


def test_records_hold_the_scores_and_rewards_of_the_form(policy, reward):
    """Denoise: (1 + k+) positive - negative; inversion: (1 + k-) negative - positive."""
    signal = TextSignal("cfg_like", WORDS, Discounts((0.2, 0.2), (0.4, 0.4)))
    _, (denoise, inversion) = run(policy, reward, signal=signal)
    d, i = denoise.record, inversion.record
    assert d["denoise/difference"] == pytest.approx(d["denoise/positive"] - d["denoise/negative"], abs=1e-6)
    assert d["denoise/reward"] == pytest.approx(1.2 * d["denoise/positive"] - d["denoise/negative"], abs=1e-6)
    expected = 1.4 * i["inversion/negative"] - i["inversion/positive"]
    assert i["inversion/reward"] == pytest.approx(expected, abs=1e-6)


def test_the_discount_follows_each_prompts_own_noise_level(reward):
    """k+ 0 at index 0 and 1 at index 999: the reward is SRP plus index / 999 of the positive score."""
    image, index = torch.rand(2, 3, 32, 32), torch.tensor([0.0, 999.0])
    signal = TextSignal("cfg_like", WORDS, Discounts((0.0, 1.0), (0.0, 0.0)))
    scored = signal(reward, image, PROMPTS[:2], "denoise", index, 1)
    expected = scored.positive - scored.negative + torch.tensor([0.0, 1.0]) * scored.positive
    torch.testing.assert_close(scored.reward, expected)


# By hand, of the scores under the positive and the negative word and under the prompt alone: denoise with k+ = 0.6,
# inversion with k- = 0.8.
BRANCH_REWARDS = {
    "plain": (lambda pos, neg, plain: plain, lambda pos, neg, plain: -plain),
    "sgp": (lambda pos, neg, plain: pos, lambda pos, neg, plain: neg),
    "srp": (lambda pos, neg, plain: pos - neg, lambda pos, neg, plain: neg - pos),
    "cfg_like": (lambda pos, neg, plain: 1.6 * pos - neg, lambda pos, neg, plain: 1.8 * neg - pos),
    "cfg_like_paper": (lambda pos, neg, plain: 0.4 * neg + 0.6 * pos, lambda pos, neg, plain: 0.2 * pos + 0.8 * neg),
}


@pytest.mark.parametrize("form", ["plain", *FORMS])
def test_each_branch_ascends_its_form_and_the_inversion_branch_with_the_words_swapped(form, reward):
    image, index = torch.rand(3, 3, 32, 32), torch.tensor([0.0, 400.0, 999.0])
    signal = TextSignal(form, WORDS, Discounts((0.6, 0.6), (0.8, 0.8)))
    pos, neg = (reward.score(image, [f"{word}. {prompt}" for prompt in PROMPTS]) for word in ("Photo", "Oil"))
    plain = reward.score(image, PROMPTS)
    for branch, by_hand in zip(("denoise", "inversion"), BRANCH_REWARDS[form], strict=True):
        scored = signal(reward, image, PROMPTS, branch, index, 1)
        torch.testing.assert_close(scored.reward, by_hand(pos, neg, plain))


@pytest.mark.parametrize("discounts", [PAPER_DISCOUNTS, PICKSCORE_DISCOUNTS, Discounts((0.9, 0.9), (0.9, 1.1))])
def test_the_papers_form_refuses_discounts_that_favour_the_wrong_word(discounts):
    with pytest.raises(ValueError, match=r"set both within 0\.5 \.\.\. 1"):
        TextSignal("cfg_like_paper", WORDS, discounts)


def test_the_rewards_scale_multiplies_rewards_and_scores(reward):
    image, index = torch.rand(3, 3, 32, 32), torch.zeros(3)
    scaled = ClipReward(*tiny_clip(), scale=5.0)
    one = TextSignal(words=WORDS)(reward, image, PROMPTS, "denoise", index, 1)
    five = TextSignal(words=WORDS)(scaled, image, PROMPTS, "denoise", index, 1)
    for name in ("reward", "positive", "negative", "plain"):
        torch.testing.assert_close(getattr(five, name), 5 * getattr(one, name))


def test_only_the_reward_to_maximise_carries_a_gradient(reward):
    image = torch.rand(3, 3, 32, 32, requires_grad=True)
    scored = TextSignal(words=WORDS)(reward, image, PROMPTS, "denoise", torch.zeros(3), 1)
    assert scored.reward.requires_grad
    assert not (scored.positive.requires_grad or scored.negative.requires_grad or scored.plain.requires_grad)


class Brightness:
    """A reward without a text branch."""

    name = "brightness"

    def score(self, image, texts):
        return image.mean((1, 2, 3)).square()


def test_a_reward_without_text_vectors_is_refused():
    with pytest.raises(ValueError, match="'brightness' has no text vectors"):
        TextSignal()(Brightness(), torch.rand(1, 3, 8, 8), ["a"], "denoise", torch.zeros(1), 1)


def test_relative_to_noise_it_is_trained_and_the_inversion_branch_is_its_penalty():
    signal, image = TextSignal(form="noise", noise_std=0.1), torch.rand(2, 3, 8, 8, requires_grad=True)
    denoise, inversion = (
        signal(Brightness(), image, ["a", "b"], branch, torch.zeros(2), 4) for branch in ("denoise", "inversion")
    )
    expected = relative_to_noise(Brightness(), image, ["a", "b"], seed=4, std=0.1)
    torch.testing.assert_close(denoise.reward, expected.clean - expected.noisy)
    torch.testing.assert_close(inversion.reward, -denoise.reward)
    torch.testing.assert_close(denoise.positive - denoise.negative, denoise.reward.detach())
    assert torch.equal(denoise.plain, denoise.positive) and not denoise.plain.requires_grad


def test_an_update_of_a_reward_without_text_moves_the_weights(policy):
    _, losses = run(policy, Brightness(), signal=TextSignal(form="noise"))
    assert [next(iter(loss.record)).split("/")[0] for loss in losses] == ["denoise", "inversion"]
    gradients = [weight.grad for weight in policy.parameters() if weight.grad is not None]
    assert sum(gradient.abs().sum().item() for gradient in gradients) > 0


def test_noise_without_a_size_is_refused():
    with pytest.raises(ValueError, match="noise_std is 0"):
        TextSignal(form="noise", noise_std=0.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rollout_steps": 0},
        {"num_injections": 0},
        {"prompts_per_forward": 0},
        {"guidance": float("nan")},
        {"discount_shift": 0.0},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        replace(CONFIG, **wrong)


def test_a_range_of_one_level_draws_that_level(policy, reward):
    config = replace(CONFIG, levels=UniformLevels(sigma_min=0.8, sigma_max=0.8, d_sigma=0.1))
    _, (denoise, inversion) = run(policy, reward, config)
    assert denoise.record["denoise/sigma"] == pytest.approx(0.8)
    assert inversion.record["inversion/sigma"] == pytest.approx(0.6)
