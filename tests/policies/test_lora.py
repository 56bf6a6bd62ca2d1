"""LoRA on the tiny transformer: what is trained, what a file says, and what it becomes when merged."""

import pytest
import torch
from safetensors.torch import save_file

from srpo.policies.checkpoints import load_transformer
from srpo.policies.flux import FluxPolicy
from srpo.policies.lora import LORA_NAME, add_lora
from tests.tiny import tiny_flux_pipeline

TARGETS = ("to_q", "to_v", "to_out.0")
PROMPT = ["a red ball"]


def with_lora(seed=0, alpha=2.0):
    policy = FluxPolicy(tiny_flux_pipeline(), max_sequence_length=16)
    add_lora(policy.transformer, rank=4, alpha=alpha, targets=TARGETS, seed=seed)
    return policy


def stirred(policy):
    """The policy with other adapters, as training leaves them."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in policy.trained_weights().values():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return policy


@torch.no_grad()
def velocity(policy):
    x_t = torch.randn(1, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    return policy.velocity(x_t, 0.7, policy.encode_prompts(PROMPT), 3.5)


def test_new_adapters_change_nothing_and_alone_take_a_gradient():
    policy, plain = with_lora(), FluxPolicy(tiny_flux_pipeline(), max_sequence_length=16)
    assert torch.equal(velocity(policy), velocity(plain))
    weights = policy.trained_weights()
    assert len(policy.parameters()) == len(weights) == 2 * 5  # one double block with three layers, a single with two
    assert {weight.dtype for weight in policy.parameters()} == {torch.float32}
    assert policy.weights_name == LORA_NAME
    policy.velocity(torch.randn(1, 16, 4, 4), 0.7, policy.encode_prompts(PROMPT), 3.5).sum().backward()
    frozen = [w for w in policy.transformer.parameters() if not any(w is own for own in policy.parameters())]
    assert all(weight.grad is None for weight in frozen)
    assert all(weight.grad is not None for weight in policy.parameters())


def test_the_first_adapters_are_a_function_of_the_seed_alone():
    torch.manual_seed(1)
    first = with_lora(seed=3).trained_weights()
    torch.manual_seed(2)
    second, other = with_lora(seed=3).trained_weights(), with_lora(seed=4).trained_weights()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_half_precision_model_keeps_float32_adapters():
    policy = FluxPolicy(tiny_flux_pipeline().to(torch.bfloat16), max_sequence_length=16)
    add_lora(policy.transformer, rank=4, alpha=4.0, targets=TARGETS, seed=0)
    assert {weight.dtype for weight in policy.parameters()} == {torch.float32}
    assert velocity(stirred(policy)).isfinite().all()


@pytest.mark.parametrize("alpha", [2.0, 8.0])
def test_its_file_merged_into_the_base_is_the_adapted_model(alpha, tmp_path):
    policy = stirred(with_lora(alpha=alpha))
    path = tmp_path / policy.weights_name
    save_file({k: v.contiguous() for k, v in policy.trained_weights().items()}, path, metadata=policy.weights_metadata)
    base = tiny_flux_pipeline()
    merged = FluxPolicy(base, max_sequence_length=16).with_transformer(load_transformer(path, base.transformer))
    torch.testing.assert_close(velocity(merged), velocity(policy), atol=1e-5, rtol=1e-5)
    assert (velocity(merged) - velocity(with_lora())).abs().max() > 1e-3
    assert torch.equal(
        velocity(FluxPolicy(base, max_sequence_length=16)), velocity(with_lora())
    )  # the base is as it was


def test_diffusers_reads_the_file_with_its_alpha(tmp_path):
    policy = stirred(with_lora(alpha=8.0))
    weights = {name: weight.contiguous() for name, weight in policy.trained_weights().items()}
    save_file(weights, tmp_path / LORA_NAME, metadata=policy.weights_metadata)
    pipe = tiny_flux_pipeline()
    pipe.load_lora_weights(tmp_path)
    loaded = FluxPolicy(pipe, max_sequence_length=16)
    torch.testing.assert_close(velocity(loaded), velocity(policy), atol=1e-5, rtol=1e-5)


def test_a_lora_for_another_model_is_refused_by_its_layer(tmp_path):
    policy = with_lora()
    weights = {name: weight.contiguous() for name, weight in policy.trained_weights().items()}
    first = next(iter(weights))
    base = tiny_flux_pipeline().transformer
    for change, message in (
        ({first: torch.zeros(4, 7)}, r"does not fit this model: transformer_blocks\.0\.\S+ is \("),
        ({"transformer.nowhere.lora_A.weight": torch.zeros(4, 4)}, "nowhere is no layer of it"),
    ):
        save_file(weights | change, tmp_path / "foreign.safetensors")
        with pytest.raises(ValueError, match=message):
            load_transformer(tmp_path / "foreign.safetensors", base)


def test_targets_that_name_no_layer_are_refused():
    with pytest.raises(ValueError, match=r"[Tt]arget modules"):
        add_lora(tiny_flux_pipeline().transformer, rank=4, alpha=4.0, targets=("nothing",), seed=0)
