"""A LoRA keeps its effect in every layout: the product of its two matrices times its strength."""

import json

import pytest
import torch
from diffusers import FluxPipeline
from peft import LoraConfig
from safetensors.torch import save_file

from srpo.policies.lora import lora_metadata, lora_weights
from srpo.policies.lora_layouts import METADATA_KEY, lora_alpha, to_kohya

WIDTH, MLP, RANK = 8, 32, 2


def lora(*modules, rank=RANK, widths=None):
    """A random LoRA of these modules in diffusers' layout: input width WIDTH, output width by name."""
    generator, weights = torch.Generator().manual_seed(len(modules)), {}
    for module in modules:
        out = (widths or {}).get(module.rsplit(".", 1)[-1], MLP if module.endswith("proj_mlp") else WIDTH)
        weights[f"transformer.{module}.lora_A.weight"] = torch.randn(rank, WIDTH, generator=generator)
        weights[f"transformer.{module}.lora_B.weight"] = torch.randn(out, rank, generator=generator)
    return weights


def effect(converted, name):
    """What a kohya module adds to its weight: alpha / rank * up @ down."""
    down, up = converted[f"{name}.lora_down.weight"], converted[f"{name}.lora_up.weight"]
    return converted[f"{name}.alpha"] / down.shape[0] * up @ down


def change(weights, module, strength=1.0):
    return strength * weights[f"transformer.{module}.lora_B.weight"] @ weights[f"transformer.{module}.lora_A.weight"]


@pytest.mark.parametrize("alpha", [None, RANK, 4 * RANK, 0.5])
def test_a_fused_matrix_changes_as_its_parts_do(alpha):
    """q, k and v lie below one another in the fused matrix, so its change is theirs, stacked."""
    parts = [f"transformer_blocks.3.attn.to_{part}" for part in "qkv"]
    weights = lora(*parts)
    converted = to_kohya(weights, alpha)
    assert set(converted) == {
        f"lora_unet_double_blocks_3_img_attn_qkv.{end}" for end in ("lora_down.weight", "lora_up.weight", "alpha")
    }
    strength = 1.0 if alpha is None else alpha / RANK
    expected = torch.cat([change(weights, part, strength) for part in parts])
    assert torch.allclose(effect(converted, "lora_unet_double_blocks_3_img_attn_qkv"), expected, atol=1e-6)


def test_an_absent_part_changes_nothing():
    query = "single_transformer_blocks.0.attn.to_q"
    weights = lora(query)
    found = effect(to_kohya(weights), "lora_unet_single_blocks_0_linear1")
    assert found.shape == (3 * WIDTH + 4 * WIDTH, WIDTH)
    assert torch.allclose(found[:WIDTH], change(weights, query), atol=1e-6)
    assert not found[WIDTH:].any()


def test_only_the_mlp_of_a_single_block_tells_the_width_of_the_rest():
    mlp = "single_transformer_blocks.0.proj_mlp"
    weights = lora(mlp)
    found = effect(to_kohya(weights), "lora_unet_single_blocks_0_linear1")
    assert found.shape == (3 * WIDTH + MLP, WIDTH)
    assert torch.allclose(found[3 * WIDTH :], change(weights, mlp), atol=1e-6)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("transformer_blocks.0.attn.to_out.0", "double_blocks_0_img_attn_proj"),
        ("transformer_blocks.7.ff.net.0.proj", "double_blocks_7_img_mlp_0"),
        ("transformer_blocks.7.ff.net.2", "double_blocks_7_img_mlp_2"),
        ("transformer_blocks.0.attn.to_add_out", "double_blocks_0_txt_attn_proj"),
        ("transformer_blocks.0.ff_context.net.2", "double_blocks_0_txt_mlp_2"),
        ("transformer_blocks.0.norm1_context.linear", "double_blocks_0_txt_mod_lin"),
        ("single_transformer_blocks.37.proj_out", "single_blocks_37_linear2"),
        ("single_transformer_blocks.2.norm.linear", "single_blocks_2_modulation_lin"),
    ],
)
def test_a_module_of_its_own_keeps_its_matrices(module, name):
    weights = lora(module)
    converted = to_kohya(weights, alpha=3.0)
    assert torch.equal(converted[f"lora_unet_{name}.lora_down.weight"], weights[f"transformer.{module}.lora_A.weight"])
    assert converted[f"lora_unet_{name}.alpha"] == 3.0


def test_diffusers_reads_back_what_it_would_have_read_before():
    """At FLUX.1's widths, which diffusers' own converter takes for granted."""
    width = 3072
    modules = [f"single_transformer_blocks.5.attn.to_{part}" for part in "qkv"]
    modules += ["single_transformer_blocks.5.proj_mlp", "transformer_blocks.2.attn.to_out.0"]
    modules += [f"transformer_blocks.2.attn.add_{part}_proj" for part in "qkv"]
    generator, weights = torch.Generator().manual_seed(0), {}
    for module in modules:
        out = 4 * width if module.endswith("mlp") else width
        weights[f"transformer.{module}.lora_A.weight"] = torch.randn(RANK, width, generator=generator)
        weights[f"transformer.{module}.lora_B.weight"] = torch.randn(out, RANK, generator=generator)
    read = FluxPipeline.lora_state_dict(to_kohya(weights, alpha=RANK / 2))
    assert read.keys() == weights.keys()
    for module in modules:
        assert torch.allclose(change(read, module), change(weights, module, 0.5), rtol=1e-4, atol=1e-4)


def test_a_pipeline_draws_the_same_with_either_layout(pipe, tmp_path):
    """Of a LoRA on the parts that diffusers' converter reads at any width: all of a double block."""
    targets = ["attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "ff.net.2", "attn.add_q_proj"]
    targets = [f"transformer_blocks.0.{target}" for target in targets]
    pipe.transformer.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False))
    weights = {name: value.clone() for name, value in lora_weights(pipe.transformer).items()}
    metadata = lora_metadata(pipe.transformer)
    assert lora_alpha(metadata, 4) == 8
    save_file(weights, tmp_path / "a.safetensors", metadata=metadata)
    save_file(to_kohya(weights, lora_alpha(metadata, 4)), tmp_path / "b.safetensors")
    pipe.transformer.delete_adapters("default")

    def draw():
        generator = torch.Generator().manual_seed(0)
        settings = {"height": 32, "width": 32, "num_inference_steps": 2, "generator": generator, "output_type": "pt"}
        return pipe("a red ball", max_sequence_length=16, **settings).images

    pictures = [draw()]
    for name in "ab":
        pipe.load_lora_weights(tmp_path, weight_name=f"{name}.safetensors", adapter_name=name)
        pipe.set_adapters(name)
        pictures.append(draw())
        pipe.delete_adapters(name)
    plain, ours, kohya = pictures
    assert not torch.allclose(plain, ours, atol=1e-4)
    assert torch.allclose(ours, kohya, atol=1e-5)


def test_alpha_is_read_from_the_file_and_is_the_rank_without_it():
    assert lora_alpha({METADATA_KEY: json.dumps({"transformer.lora_alpha": 8})}, 4) == 8
    assert lora_alpha(None, 4) == lora_alpha({"format": "pt"}, 4) == 4
    odd = {METADATA_KEY: json.dumps({"transformer.lora_alpha": 8, "transformer.alpha_pattern": {"proj_out": 2}})}
    with pytest.raises(ValueError, match="alpha of their own"):
        lora_alpha(odd, 4)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({}, "no LoRA weight"),
        ({"transformer.proj_out.weight": torch.zeros(1, 1)}, "no weight of a LoRA"),
        ({"transformer.x_embedder.lora_A.weight": torch.zeros(1, 1)}, "no weight of a LoRA"),
        (lora("x_embedder"), "x_embedder has no place"),
        (lora("transformer_blocks.0.attn.norm_q"), "norm_q has no place"),
        (
            lora("transformer_blocks.0.attn.to_q") | lora("transformer_blocks.0.attn.to_k", rank=3),
            "different ranks",
        ),
    ],
)
def test_what_cannot_be_converted_is_named(weights, said):
    with pytest.raises(ValueError, match=said):
        to_kohya(weights)
