"""The grid of recoveries: what a perfect model gives, what a random one gives, and how far that is from the picture."""

import math

import pytest
import torch

from srpo.evaluation.recoveries import (
    D_SIGMAS,
    SIGMAS,
    Method,
    grid_methods,
    recover,
    recovered_x0,
    schedule_shift,
    shifted,
)
from srpo.evaluation.recovery_errors import MEASURES, Tally, Yardstick, has_lpips, load_lpips, psnr, ssim
from srpo.evaluation.recovery_push import agreement, heat, push
from srpo.evaluation.recovery_run import Frame, trajectory
from srpo.evaluation.shares import few, mean
from srpo.flow.path import interpolate
from srpo.flow.recovery import one_step_x0, recover_x0
from srpo.flow.samplers import Step
from srpo.policies.flux import FluxPolicy
from srpo.rewards.clip import ClipReward

NOISY, ONE_STEP, LONG, SHORT, INVERSION = grid_methods()


@pytest.fixture(scope="module")
def policy(flux_folder):
    return FluxPolicy.from_pretrained(flux_folder, max_sequence_length=32)


@pytest.fixture(scope="module")
def reward(clip_folder):
    return ClipReward.from_pretrained(clip_folder)


@pytest.fixture(scope="module")
def cond(policy):
    return policy.encode_prompts(["a red ball"])


@pytest.fixture
def x0(policy):
    image = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(5))
    return policy.encode_image(image).detach()


class TrueVelocity:
    """A policy that knows the picture and the noise, and so never errs."""

    def __init__(self, policy, x0, noise):
        self.decode, self.x0, self.noise = policy.decode, x0, noise

    def velocity(self, x_t, sigma, cond, guidance):
        return (self.noise - self.x0).repeat(len(x_t) // len(self.noise), 1, 1, 1)


class Counting:
    """A policy that counts what the model is asked."""

    def __init__(self, policy):
        self.decode, self.inner, self.asked = policy.decode, policy, []

    def velocity(self, x_t, sigma, cond, guidance):
        self.asked.append(torch.as_tensor(sigma).tolist())
        return self.inner.velocity(x_t, sigma, cond, guidance)


def test_the_rows_are_those_of_the_paper():
    assert [method.name for method in grid_methods(D_SIGMAS)] == [
        "Noisy input",
        "One-step prediction",
        "Direct-Align, Δσ 0.075",
        "Direct-Align, Δσ 0.025",
        "Direct-Align, inversion, Δσ 0.025",
    ]


def test_the_true_velocity_gives_the_picture_back_at_every_level(policy, cond, x0):
    noise = torch.cat([policy.initial_noise(seed, 32, 48) for seed in (1, 2)])
    sigmas = (0.999, 0.99, *SIGMAS, 0.3, 0.05, 0.001)
    cells = list(recover(TrueVelocity(policy, x0, noise), x0, noise, cond, sigmas))
    assert {cell.sigma for cell in cells if cell.method == SHORT} == set(sigmas)
    for cell in cells:
        if cell.method != NOISY:
            assert torch.allclose(cell.x0, x0.expand_as(noise), atol=2e-4), (cell.method, cell.sigma)
            assert (psnr(cell.image, policy.decode(x0).expand_as(cell.image)) > 60).all()


def test_the_cells_are_those_of_the_library_called_by_hand(policy, cond, x0):
    noise = policy.initial_noise(1, 32, 48)
    cells = {(cell.method, cell.sigma): cell for cell in recover(policy, x0, noise, cond, guidance=2.0)}
    assert len(cells) == 6 * 5
    for sigma in SIGMAS:
        x_t = interpolate(x0, noise, sigma)
        velocity = policy.velocity(x_t, sigma, cond, 2.0).detach()
        by_hand = {
            NOISY: x_t,
            ONE_STEP: one_step_x0(x_t, velocity, sigma),
            LONG: recover_x0(x_t, velocity, noise, sigma, sigma - 0.075),
            SHORT: recover_x0(x_t, velocity, noise, sigma, sigma - 0.025),
            INVERSION: recover_x0(x_t, velocity, noise, sigma, sigma + 0.025),
        }
        for method, expected in by_hand.items():
            cell = cells[method, sigma]
            assert torch.allclose(cell.x0, expected, atol=1e-4), (method, sigma)
            assert torch.allclose(cell.image, policy.decode(expected), atol=1e-4)
            assert not cell.shortened and not cell.image.requires_grad


def test_every_velocity_is_computed_once_and_cells_come_one_by_one(policy, cond, x0, monkeypatch):
    noise = policy.initial_noise(1, 32, 48)  # 6 tokens
    counting = Counting(policy)
    assert len(list(recover(counting, x0, noise, cond))) == 30
    assert counting.asked == [pytest.approx(SIGMAS)]
    monkeypatch.setattr("srpo.evaluation.recoveries.TOKENS_PER_FORWARD", 12)
    counting.asked.clear()
    running = recover(counting, x0, noise, cond)
    assert [next(running).sigma for _ in range(10)] == [0.95] * 5 + [0.9] * 5
    assert counting.asked == [pytest.approx(SIGMAS[:2])]
    next(running)
    assert counting.asked == [pytest.approx(SIGMAS[:2]), pytest.approx(SIGMAS[2:4])]


@pytest.mark.parametrize(
    ("method", "sigma", "target", "shortened"),
    [
        (SHORT, 0.95, 0.925, False),
        (LONG, 0.05, 0.0, True),
        (INVERSION, 0.95, 0.975, False),
        (INVERSION, 0.98, 0.99, True),
        (INVERSION, 0.99, 0.99, True),
        (ONE_STEP, 0.995, 0.0, False),
        (SHORT, 0.999, 0.974, False),
    ],
)
def test_a_step_stays_in_its_range_and_says_where_it_was_shortened(method, sigma, target, shortened):
    found = method.target(sigma)
    assert (found.sigma, found.shortened) == (pytest.approx(target), shortened)


def test_where_no_step_fits_there_is_no_cell(policy, cond, x0):
    short = Method("denoise", 0.001)
    assert INVERSION.target(0.995) is None and short.target(0.995) is None
    noise = policy.initial_noise(1, 32, 48)
    cells = recover(policy, x0, noise, cond, [0.995, 0.5], (ONE_STEP, short, INVERSION))
    assert [(cell.method, cell.sigma) for cell in cells] == [
        (ONE_STEP, 0.995),
        *((method, 0.5) for method in (ONE_STEP, short, INVERSION)),
    ]


def test_the_weight_is_the_derivative_by_the_velocity(policy, cond, x0):
    noise = policy.initial_noise(1, 32, 48)
    for cell in recover(policy, x0, noise, cond, (0.95, 0.3)):
        velocity = torch.zeros_like(x0, requires_grad=True)
        found = recovered_x0(cell.method, x0, velocity, noise, cell.sigma, cell.sigma_target)
        if cell.method == NOISY:
            assert cell.weight == 0 and not found.requires_grad
        else:
            (gradient,) = torch.autograd.grad(found.sum(), velocity)
            assert gradient.abs().mean().item() == pytest.approx(cell.weight, rel=1e-4)
    assert [Method("denoise", 0.025).target(0.95).sigma, ONE_STEP.target(0.95).sigma] == [pytest.approx(0.925), 0]


@pytest.mark.parametrize("sigma", [0, 1, -0.1, 1.1, math.nan])
def test_a_level_outside_the_path_is_refused(policy, cond, x0, sigma):
    with pytest.raises(ValueError, match="between 0 and 1"):
        next(recover(policy, x0, policy.initial_noise(1, 32, 48), cond, [sigma]))


def test_shifted_levels_lie_on_the_schedule_of_that_size(policy):
    for height, width in ((32, 48), (256, 256)):
        shift = schedule_shift(policy, height, width)
        expected = policy.schedule(20, height, width)[1:-1].tolist()
        assert shifted([1 - index / 20 for index in range(1, 20)], shift) == pytest.approx(expected, abs=1e-5)
    assert schedule_shift(policy, 256, 256) == pytest.approx(math.exp(0.5), rel=1e-5)


def test_equal_pictures_have_no_error_and_others_have_that_of_their_difference(reward):
    original = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    yardstick = Yardstick(original, reward, "a red ball")
    (same,) = yardstick(original)
    assert same.psnr == math.inf and same.ssim == pytest.approx(1) and same.embedding == pytest.approx(0, abs=1e-6)
    darker, noisier = yardstick(torch.cat([original - 0.1, torch.rand(1, 3, 32, 32)]))
    assert darker.psnr == pytest.approx(20, abs=1e-4)  # -10 log10 0.1^2
    assert 1 > darker.ssim > noisier.ssim and noisier.embedding > 0
    assert same.reward == pytest.approx(reward.score(original, ["a red ball"]).item())
    assert yardstick.reward_of_original == same.reward
    assert same.lpips is None


def test_similarity_is_that_of_a_smaller_picture_where_the_picture_is_large():
    small = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    large = small.repeat_interleave(8, -1).repeat_interleave(8, -2)  # 512, brought down to 256 pixels
    halved = small.repeat_interleave(4, -1).repeat_interleave(4, -2)
    assert ssim(large[:1], large[1:]) == pytest.approx(ssim(halved[:1], halved[1:]))


def test_without_an_embedding_or_a_reward_those_measures_are_missing(reward):
    class Plain:
        name = "plain"
        score = staticmethod(reward.score)

    original = torch.rand(1, 3, 32, 32)
    (found,) = Yardstick(original, Plain(), "a ball")(original)
    assert found.embedding is None and found.reward == pytest.approx(reward.score(original, ["a ball"]).item())
    (bare,) = Yardstick(original)(original)
    assert bare.embedding is None and bare.reward is None and bare.ssim == pytest.approx(1)


def test_a_distance_of_the_users_own_is_measured_too():
    original = torch.zeros(1, 3, 32, 32)
    found = Yardstick(original, lpips=lambda image, other: (image - other).abs().mean((1, 2, 3)))(original + 0.25)
    assert [errors.lpips for errors in found] == [pytest.approx(0.25)]


@pytest.mark.skipif(has_lpips(), reason="lpips is installed")
def test_missing_lpips_says_how_to_have_it():
    with pytest.raises(ValueError, match="pip install lpips, with a torchvision built for"):
        load_lpips()


def test_a_tally_gives_means_with_student_intervals(policy, cond, x0, reward):
    noise = torch.cat([policy.initial_noise(seed, 32, 48) for seed in (1, 2, 3)])
    yardstick, tally = Yardstick(policy.decode(x0).detach(), reward, "a ball"), Tally()
    found = {}
    for cell in recover(policy, x0, noise, cond, [0.9, 0.5]):
        found[cell.method, cell.sigma] = yardstick(cell.image)
        tally.add(cell, found[cell.method, cell.sigma])
    for measure in set(MEASURES) - {"lpips"}:
        values = [getattr(errors, measure) for errors in found[SHORT, 0.9]]
        assert tally.mean(SHORT, 0.9, measure) == few(values)
    assert tally.mean(SHORT, 0.9, "lpips") is None and tally.mean(SHORT, 0.7, "psnr") is None


def test_students_interval_of_three_cases_is_that_of_the_table():
    """t at 97.5 % with 2 degrees of freedom is 4.3027; the cases 1, 2, 3 have a standard error of 1 / sqrt 3."""
    found = few([1.0, 2.0, 3.0])
    assert (found.mean, found.count) == (2, 3)
    assert found.high - found.mean == found.mean - found.low == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    many = list(range(2000))
    assert few(many).low == pytest.approx(mean(many).low, rel=1e-3)
    with pytest.raises(ValueError, match="at least two"):
        few([1.0])


def test_a_trajectory_shows_the_run_and_what_is_recovered_from_each_of_its_levels(policy, cond):
    noise, sigmas = policy.initial_noise(3, 32, 48), policy.schedule(5, 32, 48)
    events = list(trajectory(policy, cond, noise, sigmas, d_sigma=0.05))
    steps, frames = events[:5], events[5:]
    assert all(isinstance(step, Step) for step in steps) and all(isinstance(frame, Frame) for frame in frames)
    assert [frame.sigma for frame in frames] == pytest.approx(sigmas[:-1].tolist())
    x0, x_t = steps[-1].x_t, noise
    for step, frame in zip(steps, frames, strict=True):
        assert torch.allclose(frame.noisy, policy.decode(x_t), atol=1e-4)
        velocity = policy.velocity(x_t, step.sigma, cond, 3.5)
        assert torch.allclose(frame.predicted, policy.decode(one_step_x0(x_t, velocity, step.sigma)), atol=1e-3)
        mixed = interpolate(x0, noise, step.sigma)
        velocity, target = policy.velocity(mixed, step.sigma, cond, 3.5), max(step.sigma - 0.05, 0)
        recovered = recover_x0(mixed, velocity, noise, step.sigma, target)
        assert torch.allclose(frame.recovered, policy.decode(recovered), atol=1e-3)
        assert frame.shortened == (step.sigma < 0.05)
        x_t = step.x_t


def test_a_trajectory_of_many_steps_keeps_its_ends(policy, cond):
    events = trajectory(policy, cond, policy.initial_noise(3, 32, 32), policy.schedule(9, 32, 32), max_frames=4)
    assert [event.index for event in events if isinstance(event, Frame)] == [0, 3, 5, 8]


def test_too_short_a_step_from_pure_noise_is_left_to_the_model(policy, cond):
    noise, sigmas = policy.initial_noise(3, 32, 32), policy.schedule(2, 32, 32)
    *_, first, _ = trajectory(policy, cond, noise, sigmas, d_sigma=0.001)
    assert first.sigma == 1 and torch.allclose(first.recovered, first.predicted, atol=1e-4)


def test_a_push_raises_the_score_by_a_step_of_the_size_asked_for(reward):
    image = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(4)) * 0.5 + 0.25
    found = push(reward, image, "a red ball", 0.001)
    assert (found.pushed - image).square().mean().sqrt().item() == pytest.approx(0.001, rel=1e-3)
    assert found.after > found.before == pytest.approx(reward.score(image, ["a red ball"]).item())
    gained = (found.gradient * (found.pushed - image)).sum().item()  # to first order
    assert found.after - found.before == pytest.approx(gained, rel=0.05)
    assert agreement(found, found) == pytest.approx(1)
    assert abs(agreement(found, push(reward, 1 - image, "a red ball", 0.001))) < 0.99


@pytest.mark.parametrize("step", [0, -1, 1.5, math.nan])
def test_a_push_without_a_sensible_step_is_refused(reward, step):
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        push(reward, torch.rand(1, 3, 32, 32), "a ball", step)


def test_the_heat_is_where_the_gradient_is():
    gradient = torch.zeros(1, 3, 56, 84)
    assert heat(gradient).abs().max() == 0
    gradient[:, :, 20:24, 60:64] = -2.0
    level = heat(gradient)
    assert level.shape == (56, 84) and level.max() == 1
    assert level[22, 62] == 1 and level[22, 20] == 0 and level[50, 62] == 0
