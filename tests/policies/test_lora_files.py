"""A LoRA as others write it: each layout changes the weights as diffusers' own loader changes them."""

import json

import pytest
import torch
from safetensors.torch import save_file

from srpo.policies import bfl
from srpo.policies.checkpoints import load_transformer
from srpo.policies.lora import merge_lora
from srpo.policies.lora_layouts import METADATA_KEY, to_kohya
from srpo.policies.places import TEXT_NOTICE, find
from tests.tiny import tiny_flux_pipeline

WIDTH, RANK = 32, 3
SHAPES = (2, 32), (5, 2)  # of a pair that does not fit
# A double block's layers, a single block's but for the fused one, whose sizes diffusers has fixed for FLUX.1.
MODULES = (
    *(f"transformer_blocks.0.attn.{part}" for part in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj")),
    *(f"transformer_blocks.0.{part}" for part in ("attn.add_v_proj", "attn.to_add_out", "norm1.linear")),
    *("transformer_blocks.0.ff.net.0.proj", "single_transformer_blocks.0.proj_out"),
)


@pytest.fixture
def pipe():
    return tiny_flux_pipeline()


def random_lora(transformer, modules=MODULES, rank=RANK):
    """Under diffusers' names."""
    generator, weights = torch.Generator().manual_seed(5), {}
    for module in modules:
        out, width = transformer.get_submodule(module).weight.shape
        weights[f"transformer.{module}.lora_A.weight"] = 0.3 * torch.randn(rank, width, generator=generator)
        weights[f"transformer.{module}.lora_B.weight"] = 0.3 * torch.randn(out, rank, generator=generator)
    return weights


def fused_by_diffusers(file):
    """The transformer's weights after diffusers has loaded and fused the file."""
    pipe = tiny_flux_pipeline()
    pipe.load_lora_weights(file.parent, weight_name=file.name)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    return pipe.transformer.state_dict()


def assert_close(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-6, rtol=1e-5, msg=name)


def write(weights, path, **metadata):
    save_file({name: it.contiguous() for name, it in weights.items()}, path, metadata={"format": "pt", **metadata})
    return path


@pytest.mark.parametrize("alpha", [None, 1.5])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_diffusers_own_layout(pipe, tmp_path, alpha, stored):
    weights = {name: it.to(stored) for name, it in random_lora(pipe.transformer).items()}
    settings = {"r": RANK, "lora_alpha": alpha, "target_modules": list(MODULES)}
    said = {} if alpha is None else {METADATA_KEY: json.dumps({f"transformer.{k}": v for k, v in settings.items()})}
    file = write(weights, tmp_path / "pytorch_lora_weights.safetensors", **said)
    assert (find(file).kind, find(file).layout) == ("lora", "diffusers")
    ours = load_transformer(file, pipe.transformer).state_dict()
    assert_close(ours, fused_by_diffusers(file))
    assert not torch.equal(ours["x_embedder.weight"], ours["proj_out.weight"])


@pytest.mark.parametrize("alpha", [1.0, 6.0])
def test_kohyas_layout(pipe, tmp_path, alpha):
    file = write(to_kohya(random_lora(pipe.transformer), alpha), tmp_path / "kohya.safetensors")
    assert (find(file).kind, find(file).layout) == ("lora", "bfl")
    assert_close(load_transformer(file, pipe.transformer).state_dict(), fused_by_diffusers(file))


def test_one_dense_matrix_over_q_k_and_v_gives_each_its_rows(pipe, tmp_path):
    """As kohya trains it: not the blocks on a diagonal that a conversion makes."""
    generator = torch.Generator().manual_seed(1)
    down, up = torch.randn(RANK, WIDTH, generator=generator), torch.randn(3 * WIDTH, RANK, generator=generator)
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    weights = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(1.5)}
    file = write(weights, tmp_path / "kohya.safetensors")
    ours = load_transformer(file, pipe.transformer).state_dict()
    assert_close(ours, fused_by_diffusers(file))
    changed = ours["transformer_blocks.0.attn.to_k.weight"] - pipe.transformer.transformer_blocks[0].attn.to_k.weight
    torch.testing.assert_close(changed, 0.5 * up[WIDTH : 2 * WIDTH] @ down, atol=1e-5, rtol=1e-5)


def test_the_fused_layer_of_a_single_block_gives_the_mlp_its_rows(pipe, tmp_path):
    """diffusers knows this layer at FLUX.1's width alone, so the product is computed here."""
    generator = torch.Generator().manual_seed(1)
    down, up = torch.randn(RANK, WIDTH, generator=generator), torch.randn(7 * WIDTH, RANK, generator=generator)
    name = "lora_unet_single_blocks_0_linear1"
    file = write({f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}, tmp_path / "kohya.safetensors")
    block, ours = pipe.transformer.single_transformer_blocks[0], load_transformer(file, pipe.transformer)
    for layer, rows in (("attn.to_v", slice(2 * WIDTH, 3 * WIDTH)), ("proj_mlp", slice(3 * WIDTH, None))):
        changed = ours.single_transformer_blocks[0].get_submodule(layer).weight - block.get_submodule(layer).weight
        torch.testing.assert_close(changed, up[rows] @ down, atol=1e-5, rtol=1e-5)


def test_the_other_spellings_of_the_same_lora_change_the_same(pipe, tmp_path):
    weights = random_lora(pipe.transformer)
    expected = load_transformer(write(weights, tmp_path / "a.safetensors"), pipe.transformer).state_dict()
    kohya = to_kohya(weights)
    dotted = {}
    for name in bfl.names_in_blocks({"double_blocks": 1, "single_blocks": 1}):
        for end in ("lora_down.weight", "lora_up.weight", "alpha"):
            if (key := f"lora_unet_{name.replace('.', '_')}.{end}") in kohya:
                dotted[f"diffusion_model.{name}.{end}"] = kohya[key]
    assert len(dotted) == len(kohya)
    spellings = {
        "peft": {name.replace("transformer.", "base_model.model.", 1): it for name, it in weights.items()},
        "named": {
            name.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default."): it
            for name, it in weights.items()
        },
        "old": {name.replace("lora_A", "lora.down").replace("lora_B", "lora.up"): it for name, it in weights.items()},
        "comfyui": dotted,
    }
    for name, spelled in spellings.items():
        file = write(spelled, tmp_path / f"{name}.safetensors")
        assert_close(load_transformer(file, pipe.transformer).state_dict(), expected)


def test_whole_differences_and_biases_are_added(pipe, tmp_path):
    """ComfyUI's diff and diff_b, and the swapped halves of the last adaLN."""
    transformer = pipe.transformer
    diff = torch.randn(2 * WIDTH, WIDTH)
    bias = torch.randn(3 * WIDTH)
    weights = {
        "diffusion_model.final_layer.adaLN_modulation.1.diff": diff,
        "diffusion_model.double_blocks.0.txt_attn.qkv.diff_b": bias,
    }
    ours = load_transformer(write(weights | lora_of_one(transformer), tmp_path / "diff.safetensors"), transformer)
    before, after = transformer.state_dict(), ours.state_dict()
    swapped = torch.cat([diff[WIDTH:], diff[:WIDTH]])
    torch.testing.assert_close(after["norm_out.linear.weight"] - before["norm_out.linear.weight"], swapped)
    name = "transformer_blocks.0.attn.add_v_proj.bias"
    torch.testing.assert_close(after[name] - before[name], bias[2 * WIDTH :])


def lora_of_one(transformer):
    return random_lora(transformer, ("x_embedder",))


def test_a_bias_and_a_norm_in_diffusers_layout_are_read_as_diffusers_reads_them(pipe, tmp_path):
    transformer = pipe.transformer
    weights = random_lora(transformer)
    for module in MODULES:
        rows = len(weights[f"transformer.{module}.lora_B.weight"])
        weights[f"transformer.{module}.lora_B.bias"] = torch.randn(rows)
    weights["transformer.transformer_blocks.0.attn.norm_q.weight"] = torch.rand(16)
    file = write(weights, tmp_path / "bias.safetensors")
    ours = load_transformer(file, transformer).state_dict()
    theirs = tiny_flux_pipeline()
    theirs.load_lora_weights(file.parent, weight_name=file.name)
    theirs.fuse_lora()
    norm = "transformer_blocks.0.attn.norm_q.weight"
    torch.testing.assert_close(ours[norm], theirs.transformer.state_dict()[norm])
    for module in MODULES:
        fused = theirs.transformer.get_submodule(module)
        fused = getattr(fused, "base_layer", fused)
        torch.testing.assert_close(ours[f"{module}.weight"], fused.weight.data, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(ours[f"{module}.bias"], fused.bias.data, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, -1.0])
def test_its_weight_is_diffusers_scale(pipe, tmp_path, weight):
    file = write(random_lora(pipe.transformer), tmp_path / "lora.safetensors")
    ours = load_transformer(file, pipe.transformer, weight=weight).state_dict()
    theirs = tiny_flux_pipeline()
    theirs.load_lora_weights(file.parent, weight_name=file.name, adapter_name="a")
    theirs.set_adapters("a", weight)
    theirs.fuse_lora()
    theirs.unload_lora_weights()
    assert_close(ours, theirs.transformer.state_dict())


def test_rank_stabilised_lora_is_divided_by_the_root_of_its_rank(pipe):
    weights = random_lora(pipe.transformer, ("x_embedder",))
    said = {METADATA_KEY: json.dumps({"transformer.lora_alpha": 6, "transformer.use_rslora": True})}
    ours = dict(pipe.transformer.state_dict())
    before = ours["x_embedder.weight"].clone()
    merge_lora(ours, weights, said)
    product = weights["transformer.x_embedder.lora_B.weight"] @ weights["transformer.x_embedder.lora_A.weight"]
    torch.testing.assert_close(ours["x_embedder.weight"] - before, 6 / RANK**0.5 * product, atol=1e-5, rtol=1e-5)


def test_a_folder_that_peft_saved_keeps_its_alpha_beside_the_file(pipe, tmp_path):
    from peft import LoraConfig, get_peft_model

    model = tiny_flux_pipeline().transformer
    wrapped = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=7, target_modules=["to_q", "to_v"]))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if ".lora_B." in name:
                weight.copy_(torch.randn(weight.shape, generator=generator))
    wrapped.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} >= {"adapter_model.safetensors", "adapter_config.json"}
    assert_close(load_transformer(tmp_path, pipe.transformer).state_dict(), wrapped.merge_and_unload().state_dict())


def test_a_text_encoders_part_is_left_out_and_said(pipe, tmp_path):
    weights = random_lora(pipe.transformer)
    expected = load_transformer(write(weights, tmp_path / "a.safetensors"), pipe.transformer).state_dict()
    text = {"lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.zeros(2, 2)}
    file = write(weights | text, tmp_path / "b.safetensors")
    assert find(file).notice == TEXT_NOTICE
    assert_close(load_transformer(file, pipe.transformer).state_dict(), expected)
    with pytest.raises(ValueError, match="a LoRA of the text encoders alone"):
        find(write(text, tmp_path / "c.safetensors"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lora_unet_x.lokr_w1": torch.zeros(2, 2)}, "holds a LoKr; of adapters, only LoRA is read"),
        ({"lora_unet_x.hada_w1_a": torch.zeros(2, 2)}, "holds a LoHa"),
        ({"lora_unet_x.dora_scale": torch.zeros(2)}, "holds a DoRA"),
        ({"stranger.weight": torch.zeros(2)}, "holds a LoRA and stranger.weight, which belongs to none"),
        ({"transformer.x_embedder.lora_A.weight": torch.zeros(RANK, 64, dtype=torch.int8)}, "as I8; choose weights in"),
        ({"transformer.x_embedder.lora_A.weight": torch.zeros(RANK, 64)}, "x_embedder is no layer of it, or lacks one"),
        ({"lora_unet_double_blocks_7_img_mlp_0.lora_down.weight": torch.zeros(2, 32)}, "_7_img_mlp_0 is no layer"),
        ({"diffusion_model.img_in.diff_b": torch.zeros(7)}, "img_in has 32 rows, not"),
        (
            {
                f"transformer.proj_out.lora_{side}.weight": torch.zeros(shape)
                for side, shape in zip("AB", SHAPES, strict=True)
            },
            r"proj_out is \(64, 32\), not \(5, 2\) times",
        ),
    ],
)
def test_what_is_no_lora_of_this_model_is_named(pipe, tmp_path, change, said):
    file = write(random_lora(pipe.transformer) | change, tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match=said):
        load_transformer(file, pipe.transformer)


@pytest.mark.parametrize("settings", ["{", "[1]", json.dumps({"transformer.alpha_pattern": {"x": 1}})])
def test_settings_that_cannot_be_followed_are_said(pipe, tmp_path, settings):
    file = write(random_lora(pipe.transformer), tmp_path / "a.safetensors", **{METADATA_KEY: settings})
    with pytest.raises(ValueError, match=r"does not fit this model: (the settings in its header|this LoRA gives)"):
        load_transformer(file, pipe.transformer)


@pytest.mark.parametrize("shapes", [((2**32, 64), (32, 2**32)), ((3, 2**34), (32, 3))])
def test_a_giant_lora_is_refused_before_anything_is_read(pipe, tmp_path, shapes):
    """Sparse files of many GiB: one of an impossible rank, one of another width."""
    header, end = {}, 0
    for side, shape in zip("AB", shapes, strict=True):
        size = 4 * shape[0] * shape[1]
        header[f"transformer.x_embedder.lora_{side}.weight"] = {
            "dtype": "F32", "shape": list(shape), "data_offsets": [end, end + size]
        }  # fmt: skip
        end += size
    text = json.dumps(header).encode()
    with (tmp_path / "giant.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    with pytest.raises(ValueError, match=r"x_embedder is \(32, 64\), not \(32, \d+\) times \(\d+, \d+\)"):
        load_transformer(tmp_path / "giant.safetensors", pipe.transformer)


def test_whole_weights_have_no_weight(pipe, tmp_path):
    file = write(pipe.transformer.state_dict(), tmp_path / "whole.safetensors")
    with pytest.raises(ValueError, match=r"holds whole weights, not a LoRA, so it has no weight; leave out “@0\.5”"):
        load_transformer(file, pipe.transformer, weight=0.5)
