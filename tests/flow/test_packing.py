"""Packing, against FluxPipeline's."""

import pytest
import torch
from diffusers import FluxPipeline

from srpo.flow.packing import image_ids, pack, text_ids, unpack

LATENTS = torch.randn(2, 16, 6, 10, generator=torch.Generator().manual_seed(0))


def test_packing_equals_the_pipelines():
    assert torch.equal(pack(LATENTS), FluxPipeline._pack_latents(LATENTS, 2, 16, 6, 10))


def test_unpacking_equals_the_pipelines_and_undoes_packing():
    packed = pack(LATENTS)
    assert torch.equal(unpack(packed, 6, 10), FluxPipeline._unpack_latents(packed, 48, 80, vae_scale_factor=8))
    assert torch.equal(unpack(packed, 6, 10), LATENTS)


def test_positions_equal_the_pipelines():
    expected = FluxPipeline._prepare_latent_image_ids(1, 3, 5, torch.device("cpu"), torch.float32)
    assert torch.equal(image_ids(6, 10), expected)
    assert image_ids(6, 10).dtype == torch.float32


def test_text_has_no_position():
    assert torch.equal(text_ids(7), torch.zeros(7, 3))


def test_sizes_that_cannot_be_packed_are_refused():
    with pytest.raises(ValueError, match="even, not 5 x 10"):
        pack(LATENTS[:, :, :5])
    with pytest.raises(ValueError, match="24 tokens, not 15"):
        unpack(pack(LATENTS), 8, 12)
    with pytest.raises(ValueError, match="even"):
        image_ids(6, 9)
