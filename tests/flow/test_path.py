"""The path from clean latents to noise."""

import pytest
import torch

from srpo.flow.path import interpolate, noise_from_velocity, velocity_between, x0_from_velocity

SIGMAS = torch.tensor([0.0, 0.3, 0.95, 1.0])


def draw(seed=0, batch=4, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, 16, 4, 6, generator=generator, dtype=dtype) for _ in range(2)]


def test_the_path_begins_at_the_clean_latents_and_ends_at_the_noise():
    x0, noise = draw()
    assert torch.equal(interpolate(x0, noise, 0.0), x0)
    assert torch.equal(interpolate(x0, noise, 1.0), noise)


def test_every_image_has_its_own_noise_level():
    x0, noise = draw()
    mixed = interpolate(x0, noise, SIGMAS)
    for index, sigma in enumerate(SIGMAS.tolist()):
        expected = (1 - sigma) * x0[index] + sigma * noise[index]
        torch.testing.assert_close(mixed[index], expected, rtol=0, atol=1e-6)


def test_the_velocity_is_the_derivative_of_the_path_by_sigma():
    x0, noise = draw(dtype=torch.float64)
    sigma, direction = SIGMAS.double(), torch.ones(4, dtype=torch.float64)
    _, slope = torch.func.jvp(lambda level: interpolate(x0, noise, level), (sigma,), (direction,))
    torch.testing.assert_close(slope, velocity_between(x0, noise), rtol=0, atol=1e-12)


def test_the_true_velocity_leads_back_to_both_ends():
    x0, noise = draw()
    x_t, velocity = interpolate(x0, noise, SIGMAS), velocity_between(x0, noise)
    torch.testing.assert_close(x0_from_velocity(x_t, velocity, SIGMAS), x0, rtol=0, atol=2e-6)
    torch.testing.assert_close(noise_from_velocity(x_t, velocity, SIGMAS), noise, rtol=0, atol=2e-6)


def test_the_two_ends_read_from_any_velocity_lie_on_one_line_through_x_t():
    x_t, velocity = draw(seed=1)  # a wrong velocity, as a model's: the ends still mix to x_t
    x0, noise = x0_from_velocity(x_t, velocity, SIGMAS), noise_from_velocity(x_t, velocity, SIGMAS)
    torch.testing.assert_close(interpolate(x0, noise, SIGMAS), x_t, rtol=0, atol=2e-6)
    torch.testing.assert_close(velocity_between(x0, noise), velocity, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_latents_are_refused_by_name(dtype):
    x0, noise = draw()
    with pytest.raises(ValueError, match="`noise` must be float32"):
        interpolate(x0, noise.to(dtype), 0.5)
    with pytest.raises(ValueError, match="`velocity` must be float32"):
        x0_from_velocity(x0, noise.to(dtype), 0.5)


def test_a_noise_level_per_image_must_have_one_number_per_image():
    x0, noise = draw()
    with pytest.raises(ValueError, match=r"\(3,\) came with latents \(4, 16, 4, 6\)"):
        interpolate(x0, noise, torch.rand(3))
