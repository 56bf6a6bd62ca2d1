"""The VAE: what it starts from, what its loss counts, and what polishing leaves alone."""

import copy

import pytest
import torch
import torch.nn.functional as F

from srpo.miniature.vae import (
    EDGE_WEIGHT,
    carry_colour,
    encode_all,
    new_vae,
    polish_decoder,
    reconstruction_loss,
    set_scale,
    train_vae,
)


@pytest.fixture
def vae():
    torch.manual_seed(0)
    return carry_colour(new_vae()).eval()


@torch.no_grad()
def test_a_fresh_vae_hands_the_mean_colour_of_each_block_through_its_first_three_latents(vae):
    """Pictures of 16 x 16 single-coloured tiles, so that padding and the taps beside a block see the same colour.

    Inside the tiles the latents are the colours up to one scale, which the decoder undoes. The scale is that of the
    norms on the way, so it is read off the first tile.
    """
    colours = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
    image = F.interpolate(colours, scale_factor=32, mode="nearest")
    means = F.avg_pool2d(image, 8)
    latents = vae.encode(image).latent_dist.mean[:, :3]
    assert torch.corrcoef(torch.stack((latents.flatten(), means.flatten())))[0, 1] > 0.95
    shifted = vae.encode(image.flip(-1)).latent_dist.mean[:, :3]
    assert torch.corrcoef(torch.stack((shifted.flatten(), means.flip(-1).flatten())))[0, 1] > 0.95
    decoded = F.avg_pool2d(vae.decode(vae.encode(image).latent_dist.mean).sample, 8)
    assert torch.corrcoef(torch.stack((decoded.flatten(), means.flatten())))[0, 1] > 0.95


@torch.no_grad()
def test_a_fresh_vae_is_nearly_certain_of_its_latents(vae):
    """The log variance is -6 everywhere."""
    posterior = vae.encode(torch.rand(1, 3, 32, 32)).latent_dist
    torch.testing.assert_close(posterior.logvar, torch.full_like(posterior.logvar, -6.0))


def test_the_loss_of_a_shift_and_of_a_single_pixel_in_closed_form():
    """A shift d costs |d| + 2 d^2 and no edges. One of 16 pixels off by 1 costs 1/16 + 2/16, and in each direction two
    of 12 differences."""
    target = torch.zeros(1, 1, 4, 4)
    assert reconstruction_loss(target + 0.5, target).item() == pytest.approx(0.5 + 2 * 0.25)
    output = target.clone()
    output[..., 1, 1] = 1.0
    assert reconstruction_loss(output, target).item() == pytest.approx(3 / 16 + EDGE_WEIGHT * 2 * 2 / 12)


def test_polishing_changes_the_decoder_and_neither_the_encoder_nor_the_latents(vae, pictures, cache):
    before = copy.deepcopy(vae.state_dict())
    latents = encode_all(vae, pictures, batch=32)
    after = polish_decoder(vae, pictures, updates=2, batch=4)
    changed = {name for name, value in after.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("decoder.") for name in changed)
    assert torch.equal(encode_all(after, pictures, batch=32), latents)


def test_training_changes_encoder_and_decoder(pictures, cache):
    torch.manual_seed(0)
    start = carry_colour(new_vae()).state_dict()
    trained = train_vae(pictures, updates=1, batch=4).state_dict()
    assert not torch.equal(trained["encoder.conv_in.weight"], start["encoder.conv_in.weight"])
    assert not torch.equal(trained["decoder.conv_out.weight"], start["decoder.conv_out.weight"])


def test_scaled_and_shifted_latents_have_mean_0_and_deviation_1(vae):
    latents = 3 + 2 * torch.randn(64, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    set_scale(vae, latents.half())
    scaled = (latents - vae.config.shift_factor) * vae.config.scaling_factor
    assert scaled.mean().item() == pytest.approx(0, abs=1e-3)
    assert scaled.std().item() == pytest.approx(1, abs=1e-3)
