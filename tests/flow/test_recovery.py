"""Recoveries: the identities of Direct-Align."""

import math

import pytest
import torch

from srpo.flow.path import interpolate, velocity_between
from srpo.flow.recovery import MAX_SIGMA_TARGET, StepTarget, one_step_x0, recover_exactly, recover_x0, step_target

# (sigma, sigma_target): two denoise steps, two inversion steps, none at all
STEPS = [(0.9643, 0.88), (0.6, 0.0), (0.7, 0.82), (0.95, 0.99), (0.5, 0.5)]


def draw(seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, 16, 4, 6, generator=generator, dtype=dtype) for _ in range(3)]


@pytest.mark.parametrize("sigma", [0.0, 0.5, 0.95, 0.99])
def test_a_known_noise_is_removed_exactly_in_float32(sigma):
    """The error is the rounding of x_t and of sigma * noise, about 2^-23, divided by 1 - sigma (0.01 at worst)."""
    x0, noise, _ = draw()
    error = (recover_exactly(interpolate(x0, noise, sigma), noise, sigma) - x0).abs().max().item()
    assert error <= 5e-7 / (1 - sigma)


@pytest.mark.parametrize(("sigma", "sigma_target"), STEPS)
def test_the_true_velocity_recovers_the_clean_latents_in_both_branches(sigma, sigma_target):
    x0, noise, _ = draw(dtype=torch.float64)
    x_t, velocity = interpolate(x0, noise, sigma), velocity_between(x0, noise)
    torch.testing.assert_close(recover_x0(x_t, velocity, noise, sigma, sigma_target), x0, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("sigma", "sigma_target"), STEPS)
def test_the_derivative_by_the_velocity_is_the_models_share_of_the_way(sigma, sigma_target):
    """-d_sigma / (1 - sigma_target) in the denoise branch, +d_sigma / (1 - sigma_target) in the inversion branch."""
    x0, noise, velocity = draw(dtype=torch.float64)
    x_t = interpolate(x0, noise, sigma)
    velocity.requires_grad_()
    recover_x0(x_t, velocity, noise, sigma, sigma_target).sum().backward()
    d_sigma, sign = abs(sigma - sigma_target), -1 if sigma_target < sigma else 1
    expected = torch.full_like(velocity, sign * d_sigma / (1 - sigma_target))
    torch.testing.assert_close(velocity.grad, expected, rtol=0, atol=1e-12)


def test_a_wrong_velocity_errs_by_the_models_share_only():
    """An error e of the velocity moves eq. 2 by -sigma e, eq. 5 by (sigma_target - sigma) / (1 - sigma_target) e."""
    x0, noise, error = draw(dtype=torch.float64)
    x_t, velocity = interpolate(x0, noise, 0.8), velocity_between(x0, noise) + error
    torch.testing.assert_close(one_step_x0(x_t, velocity, 0.8) - x0, -0.8 * error, rtol=0, atol=1e-12)
    moved = recover_x0(x_t, velocity, noise, 0.8, 0.75) - x0
    torch.testing.assert_close(moved, -0.05 / 0.25 * error, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sigma", [0.1, 0.75, 1.0])
def test_denoising_to_zero_is_the_one_step_prediction_of_refl(sigma):
    x_t, velocity, noise = draw()
    assert torch.equal(recover_x0(x_t, velocity, noise, sigma, 0.0), one_step_x0(x_t, velocity, sigma))


def test_a_step_of_no_length_is_the_exact_recovery():
    x_t, velocity, noise = draw()
    torch.testing.assert_close(recover_x0(x_t, velocity, noise, 0.7, 0.7), recover_exactly(x_t, noise, 0.7))


def test_numbers_per_image_and_single_numbers_give_the_same():
    x_t, velocity, noise = draw()
    sigma, target = torch.tensor([0.9, 0.5, 0.7]), torch.tensor([0.8, 0.6, 0.99])
    together = recover_x0(x_t, velocity, noise, sigma, target)
    for i in range(3):
        alone = recover_x0(x_t[i : i + 1], velocity[i : i + 1], noise[i : i + 1], sigma[i].item(), target[i].item())
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("target", [-0.01, 0.995, 1.0, math.nan, torch.tensor([0.5, 0.5, 1.0])])
def test_a_target_outside_its_range_is_refused(target):
    x_t, velocity, noise = draw()
    with pytest.raises(ValueError, match=r"`sigma_target` must be in \[0, 0.99\]"):
        recover_x0(x_t, velocity, noise, 0.9, target)


def test_the_exact_recovery_of_pure_noise_is_refused():
    x_t, _, noise = draw()
    with pytest.raises(ValueError, match="`sigma` must be below 1, not 1"):
        recover_exactly(x_t, noise, 1.0)


def test_half_precision_is_refused():
    x_t, velocity, noise = draw()
    with pytest.raises(ValueError, match="`velocity` must be float32"):
        recover_x0(x_t, velocity.bfloat16(), noise, 0.9, 0.8)


def test_a_step_that_fits_is_taken_whole():
    down, up = step_target(0.9, 0.08, "denoise"), step_target(0.9, 0.08, "inversion")
    assert (down.sigma, down.shortened) == (pytest.approx(0.82), False)
    assert (up.sigma, up.shortened) == (pytest.approx(0.98), False)


def test_a_step_that_does_not_fit_is_shortened_and_says_so():
    down, up = step_target(0.05, 0.08, "denoise"), step_target(0.95, 0.08, "inversion")
    assert (down.sigma, down.shortened) == (0.0, True)
    assert (up.sigma, up.shortened) == (MAX_SIGMA_TARGET, True)


def test_only_the_steps_that_were_shortened_are_marked():
    target = step_target(torch.tensor([0.90, 0.95]), 0.08, "inversion")
    torch.testing.assert_close(target.sigma, torch.tensor([0.98, 0.99]))
    assert target.shortened.tolist() == [False, True]


@pytest.mark.parametrize("sigma", [1.0, torch.tensor([0.9, 1.0])])
def test_a_denoise_step_too_short_to_leave_pure_noise_is_refused_not_lengthened(sigma):
    with pytest.raises(ValueError, match=r"`sigma - d_sigma` must be in \[-1, 0.99\], not 0.995"):
        step_target(sigma, 0.005, "denoise")
    assert step_target(1.0, 0.01, "denoise") == StepTarget(MAX_SIGMA_TARGET, False)


@pytest.mark.parametrize("branch", ["denoise", "inversion"])
def test_every_target_is_accepted_by_the_recovery(branch):
    x_t, velocity, noise = draw()
    for sigma in torch.linspace(0, 0.99, 34).tolist():
        for level in (sigma, torch.full((3,), sigma)):
            assert recover_x0(x_t, velocity, noise, level, step_target(level, 0.1, branch).sigma).isfinite().all()


def test_an_inversion_from_above_the_highest_target_is_refused():
    with pytest.raises(ValueError, match=r"`sigma` must be in \[0, 0.99\], not 0.995"):
        step_target(0.995, 0.01, "inversion")


def test_an_unknown_branch_and_a_negative_step_are_refused():
    with pytest.raises(ValueError, match="not 'forward'"):
        step_target(0.5, 0.1, "forward")
    with pytest.raises(ValueError, match="`d_sigma` must be in"):
        step_target(0.5, -0.1, "denoise")
