"""Two-pass guidance: closed forms."""

import pytest
import torch

from srpo.flow.guidance import cfg_velocity
from srpo.flow.packing import pack

COND, UNCOND = torch.randn(2, 2, 16, 4, 6, generator=torch.Generator().manual_seed(0))


def test_scale_1_is_the_velocity_with_the_prompt():
    torch.testing.assert_close(cfg_velocity(COND, UNCOND, 1.0), COND)


@pytest.mark.parametrize("scale", [0.0, 4.0])
def test_every_token_keeps_the_length_it_has_with_the_prompt_and_turns_to_the_guided_direction(scale):
    guided = pack(cfg_velocity(COND, UNCOND, scale))
    wanted = pack(UNCOND + scale * (COND - UNCOND))
    torch.testing.assert_close(guided.norm(dim=-1), pack(COND).norm(dim=-1))
    torch.testing.assert_close(torch.cosine_similarity(guided, wanted, dim=-1), torch.ones(guided.shape[:2]))


def test_a_velocity_of_nothing_stays_nothing():
    nothing = torch.zeros(1, 16, 2, 2)
    assert torch.equal(cfg_velocity(nothing, nothing, 4.0), nothing)


def test_half_precision_is_refused():
    with pytest.raises(ValueError, match="`uncond` must be float32"):
        cfg_velocity(COND, UNCOND.bfloat16(), 4.0)
