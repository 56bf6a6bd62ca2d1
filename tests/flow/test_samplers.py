"""Samplers, on flows whose solution is known and against diffusers' scheduler."""

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from srpo.flow.path import interpolate, velocity_between
from srpo.flow.samplers import euler
from srpo.flow.schedule import flux_mu, flux_sigmas, linear_sigmas

NOISE = torch.randn(2, 16, 4, 4, generator=torch.Generator().manual_seed(0))
X0 = torch.randn(2, 16, 4, 4, generator=torch.Generator().manual_seed(1))


def test_a_straight_flow_is_solved_by_any_schedule():
    for sigmas in ([1.0, 0.0], linear_sigmas(7), flux_sigmas(5, 64)):
        *_, last = euler(lambda x_t, sigma: velocity_between(X0, NOISE), NOISE, sigmas)
        torch.testing.assert_close(last.x_t, X0, rtol=0, atol=2e-6)


def test_a_curved_flow_ends_where_the_product_of_its_steps_says():
    """velocity = a x: every step multiplies by 1 + a (sigma_next - sigma)."""
    sigmas = flux_sigmas(6, 256)
    factor = torch.prod(1 + 0.7 * sigmas.double().diff()).item()
    *_, last = euler(lambda x_t, sigma: 0.7 * x_t, NOISE, sigmas)
    torch.testing.assert_close(last.x_t, factor * NOISE, rtol=1e-5, atol=1e-6)


def test_every_step_equals_the_scheduler_of_diffusers_bit_for_bit():
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 9, 9), mu=flux_mu(64))
    x_t = NOISE
    steps = euler(lambda x, sigma: torch.sin(3 * x), NOISE, flux_sigmas(9, 64))
    for step, timestep in zip(steps, scheduler.timesteps, strict=True):
        x_t = scheduler.step(torch.sin(3 * x_t), timestep, x_t, return_dict=False)[0]
        assert torch.equal(step.x_t, x_t)


def test_the_steps_tell_where_they_are():
    steps = list(euler(lambda x_t, sigma: torch.full_like(x_t, sigma), NOISE, [1.0, 0.75, 0.0]))
    assert [(s.index, s.num_steps, s.sigma, s.sigma_next) for s in steps] == [(0, 2, 1.0, 0.75), (1, 2, 0.75, 0.0)]
    assert torch.equal(steps[1].velocity, torch.full_like(NOISE, 0.75))


def test_a_step_predicts_the_clean_latents_as_seen_from_its_beginning():
    x_t = NOISE
    for step in euler(lambda x, sigma: torch.cos(x), NOISE, linear_sigmas(4)):
        torch.testing.assert_close(step.x0, x_t - step.sigma * torch.cos(x_t), rtol=0, atol=1e-6)
        x_t = step.x_t
    assert torch.equal(step.x0, step.x_t)


def test_a_rising_schedule_puts_the_noise_back():
    *_, last = euler(lambda x_t, sigma: velocity_between(X0, NOISE), X0, [0.0, 0.5, 0.9])
    torch.testing.assert_close(last.x_t, interpolate(X0, NOISE, 0.9), rtol=0, atol=2e-6)


def test_the_model_is_asked_only_for_the_steps_that_are_taken():
    asked = []
    steps = euler(lambda x_t, sigma: asked.append(sigma) or x_t, NOISE, linear_sigmas(4))
    next(steps)
    assert asked == [1.0]


def test_gradients_pass_through_all_steps():
    """x_t after one step of size -1/2 twice, velocity = w x: (1 - w / 2)^2 x, so d/dw = -(1 - w / 2) x."""
    weight = torch.tensor(0.4, requires_grad=True)
    *_, last = euler(lambda x_t, sigma: weight * x_t, NOISE, [1.0, 0.5, 0.0])
    last.x_t.sum().backward()
    assert weight.grad.item() == pytest.approx(-0.8 * NOISE.sum().item(), rel=1e-4)


def test_half_precision_and_impossible_noise_levels_are_refused():
    with pytest.raises(ValueError, match="`noise` must be float32"):
        next(euler(lambda x_t, sigma: x_t, NOISE.bfloat16(), [1.0, 0.0]))
    for sigmas in ([1.0], [1.5, 0.0], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="two or more noise levels"):
            next(euler(lambda x_t, sigma: x_t, NOISE, sigmas))
