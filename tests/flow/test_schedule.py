"""Noise levels, against closed forms and against diffusers' scheduler."""

import math

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from srpo.flow.schedule import flux_mu, flux_sigmas, linear_sigmas, shift_sigmas, shift_sigmas_exponential

FLUX_DEV = {"shift": 3.0, "base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096}


def diffusers_sigmas(num_steps, mu=None):
    scheduler = FlowMatchEulerDiscreteScheduler(**FLUX_DEV, use_dynamic_shifting=mu is not None)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / num_steps, num_steps), mu=mu)
    return scheduler.sigmas


@pytest.mark.parametrize("num_steps", [1, 4, 25, 28, 50, 100])
@pytest.mark.parametrize("num_tokens", [64, 256, 1024, 2025, 4096])
def test_flux_sigmas_equal_the_scheduler_of_diffusers_bit_for_bit(num_steps, num_tokens):
    assert flux_mu(num_tokens) == calculate_shift(num_tokens)
    assert torch.equal(flux_sigmas(num_steps, num_tokens), diffusers_sigmas(num_steps, flux_mu(num_tokens)))


@pytest.mark.parametrize("num_steps", [1, 4, 25, 28, 50])
def test_a_constant_shift_equals_the_scheduler_of_diffusers(num_steps):
    ours = shift_sigmas(linear_sigmas(num_steps), 3.0)
    torch.testing.assert_close(ours, diffusers_sigmas(num_steps), rtol=0, atol=1e-7)


def test_mu_is_at_its_two_settings_for_small_and_large_images():
    assert flux_mu(256) == pytest.approx(0.5, abs=1e-12)
    assert flux_mu(4096) == pytest.approx(1.15, abs=1e-12)


def test_mu_follows_the_settings_of_another_model():
    assert flux_mu(600, base_tokens=100, max_tokens=1100, base_shift=0.2, max_shift=0.6) == pytest.approx(
        0.4, abs=1e-12
    )


def test_the_exponential_shift_is_the_constant_shift_by_e_to_the_mu():
    sigmas = torch.linspace(0, 1, 101, dtype=torch.float64)
    for mu in (0.0, 0.5, 1.15):
        ours = shift_sigmas_exponential(sigmas, mu)
        torch.testing.assert_close(ours, shift_sigmas(sigmas, math.exp(mu)), rtol=0, atol=1e-15)


def test_shifts_compose_by_multiplication_and_keep_both_ends():
    sigmas = torch.linspace(0, 1, 11, dtype=torch.float64)
    twice = shift_sigmas(shift_sigmas(sigmas, 1.5), 2.0)
    torch.testing.assert_close(twice, shift_sigmas(sigmas, 3.0), rtol=0, atol=1e-15)
    assert (twice[0], twice[-1]) == (0, 1)
    assert torch.equal(shift_sigmas(sigmas, 1.0), sigmas)


def test_the_papers_training_range_lies_where_its_table_begins_and_ends():
    """shift_3 of 50 steps: s50[5] = 3 * 0.9 / (1 + 2 * 0.9) = 0.9643 and s50[25] = 1.5 / 2 = 0.75."""
    s50 = shift_sigmas(linear_sigmas(50), 3.0)
    assert s50[5].item() == pytest.approx(2.7 / 2.8, abs=1e-6)
    assert s50[25].item() == pytest.approx(0.75, abs=1e-6)


def test_linear_sigmas_descend_evenly_from_one_to_zero():
    sigmas = linear_sigmas(28)
    assert sigmas.dtype == torch.float32
    assert sigmas.shape == (29,)
    assert (sigmas[0], sigmas[-1]) == (1, 0)
    torch.testing.assert_close(sigmas.diff(), torch.full((28,), -1 / 28), rtol=0, atol=1e-7)


def test_a_schedule_without_steps_and_a_shift_of_zero_are_refused():
    with pytest.raises(ValueError, match="at least one step, not 0"):
        linear_sigmas(0)
    for shift in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="above 0"):
            shift_sigmas(linear_sigmas(2), shift)
