"""Sampling many prompts at once."""

from __future__ import annotations

import pytest
import torch

from srpo.evaluation.sampling import sample_images
from srpo.policies.flux import FluxPolicy

PROMPTS = ["a red ball", "a blue cube", "a tree"]


def test_a_picture_depends_on_its_prompt_and_seed_alone_not_on_its_batch(pipe):
    policy = FluxPolicy.from_pipeline(pipe, max_sequence_length=32)
    together = sample_images(policy, PROMPTS, [5, 6, 7], num_steps=3, height=32, width=48)
    alone = sample_images(policy, PROMPTS, [5, 6, 7], num_steps=3, height=32, width=48, batch=1)
    assert together.shape == (3, 3, 32, 48)
    assert torch.allclose(together, alone, atol=1e-4)


def test_prompts_and_seeds_must_pair_up(pipe):
    with pytest.raises(ValueError, match="3 prompts came with 2 seeds"):
        sample_images(FluxPolicy.from_pipeline(pipe), PROMPTS, [1, 2])
