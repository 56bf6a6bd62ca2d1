"""Every published form of FLUX's weights becomes the tensors that diffusers' own loaders make of it."""

import pytest
import torch
from safetensors.torch import load_file

from srpo.policies.checkpoints import load_transformer
from srpo.policies.flux import FluxPolicy
from srpo.policies.places import FP8_NOTICE, find
from tests.policies.forms import (
    COMFY,
    by_diffusers,
    by_diffusers_gguf,
    save,
    to_bfl,
    to_fp8,
    wide_flux,
    write_gguf,
)
from tests.tiny import tiny_flux_pipeline

HALF = torch.bfloat16


@pytest.fixture
def tuned():
    """The weights that are published."""
    return wide_flux(seed=1)


@pytest.fixture
def base():
    return wide_flux(seed=0)


def assert_same(ours, theirs):
    ours, theirs = ours.state_dict(), theirs.state_dict()
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert ours[name].dtype == theirs[name].dtype, name
        assert torch.equal(ours[name], theirs[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_tencents_one_float32_file_is_what_load_state_dict_takes(base, tuned, tmp_path, dtype):
    """SRPO's own instructions: `transformer.load_state_dict(load_file(FILE))`, into a model of either precision."""
    file = save(tuned.state_dict(), tmp_path / "diffusion_pytorch_model.safetensors")
    theirs = wide_flux(seed=2).to(dtype)
    theirs.load_state_dict(load_file(file))
    found = find(file)
    assert (found.kind, found.layout, found.dtype, found.notice) == ("transformer", "diffusers", "F32", "")
    assert_same(load_transformer(file, base.to(dtype)), theirs)


def test_a_bfloat16_file_of_srpo_keeps_every_bit(base, tuned, tmp_path):
    file = save(
        {name: it.to(HALF) for name, it in tuned.state_dict().items()}, tmp_path / "flux.1-dev-SRPO-bf16.safetensors"
    )
    assert find(file).dtype == "BF16"
    assert_same(load_transformer(file, base.to(HALF)), tuned.to(HALF))


@pytest.mark.parametrize("prefix", ["", COMFY])
@pytest.mark.parametrize("stored", [torch.float32, HALF])
def test_a_single_file_of_black_forest_labs_is_what_diffusers_makes_of_it(
    base, tuned, tmp_path, monkeypatch, prefix, stored
):
    weights = {name: it.to(stored) for name, it in to_bfl(tuned, prefix).items()}
    file = save(weights, tmp_path / "flux1-dev.safetensors")
    assert (find(file).layout, find(file).kind) == ("bfl", "transformer")
    theirs = by_diffusers(file, base, tmp_path / "config", monkeypatch, dtype=HALF)
    assert_same(load_transformer(file, base.to(HALF)), theirs)
    assert_same(theirs, wide_flux(seed=1).to(HALF))


def test_the_other_parts_of_a_comfyui_checkpoint_are_passed_over(base, tuned, tmp_path):
    beside = {"vae.decoder.conv_in.bias": torch.zeros(4), "text_encoders.t5xxl.logit_scale": torch.zeros(())}
    file = save(to_bfl(tuned, COMFY) | beside, tmp_path / "everything.safetensors")
    assert_same(load_transformer(file, base), tuned)


@pytest.mark.parametrize("layout", ["diffusers", "bfl"])
def test_fp8_is_what_diffusers_reads_and_says_what_it_costs(base, tuned, tmp_path, monkeypatch, layout):
    weights = to_bfl(tuned, COMFY) if layout == "bfl" else tuned.state_dict()
    file = save(to_fp8(weights), tmp_path / "Flux1-Dev-SRPO-v1-fp8.safetensors")
    found = find(file)
    assert (found.dtype, found.layout, found.notice) == ("F8_E4M3", layout, FP8_NOTICE)
    theirs = by_diffusers(file, base, tmp_path / "config", monkeypatch, dtype=HALF)
    ours = load_transformer(file, base.to(HALF))
    assert_same(ours, theirs)
    assert not torch.equal(ours.x_embedder.weight, tuned.to(HALF).x_embedder.weight)


@pytest.mark.parametrize("scale", ["scale_weight", "weight_scale"])
def test_scaled_fp8_is_multiplied_by_its_scales(base, tuned, tmp_path, scale):
    weights = to_fp8(to_bfl(tuned), scale)
    loaded = load_transformer(save(weights, tmp_path / "scaled.safetensors"), base)
    fused = weights["double_blocks.1.img_attn.qkv.weight"].float() * weights[f"double_blocks.1.img_attn.qkv.{scale}"]
    assert torch.equal(loaded.transformer_blocks[1].attn.to_k.weight, fused[256:512])
    for name, weight in tuned.state_dict().items():
        # half a step of three bits of fraction, or of fp8's smallest number (2 ** -9 of a range of 448)
        room = weight.abs() / 16 + weight.abs().max() / 448 * 2**-10 if weight.ndim > 1 else weight.abs() / 256
        assert ((loaded.state_dict()[name] - weight).abs() <= room * 1.001).all(), name


def test_a_scale_for_each_row_follows_its_rows(base, tuned, tmp_path):
    weights = to_bfl(tuned)
    name = "single_blocks.0.linear1.weight"
    factors = torch.linspace(0.5, 2, len(weights[name]))
    scaled = weights | {
        name: weights[name].to(torch.float8_e4m3fn),
        "single_blocks.0.linear1.weight_scale": factors[:, None],
    }
    loaded = load_transformer(save(scaled, tmp_path / "rows.safetensors"), base)
    expected = scaled[name].float() * factors[:, None]
    assert torch.equal(loaded.single_transformer_blocks[0].proj_mlp.weight, expected[3 * 256 :])


@pytest.mark.parametrize(
    "kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "F16", "BF16"]
)
def test_gguf_computes_what_diffusers_computes_of_it(base, tuned, tmp_path, monkeypatch, kind):
    """Blocks stay blocks, and the model's answer is diffusers' own, bit for bit."""
    file = write_gguf(to_bfl(tuned), tmp_path / f"srpo-{kind}.gguf", kind)
    found = find(file)
    assert found.dtype == kind and found.layout == "bfl" and bool(found.notice) == kind.startswith("Q")
    ours = load_transformer(file, base)
    theirs = by_diffusers_gguf(file, base, tmp_path / "config", monkeypatch, torch.float32)
    layers = [f"transformer_blocks.0.attn.to_{part}" for part in "qkv"]
    layers += ["norm_out.linear", "single_transformer_blocks.1.proj_mlp"]
    for layer in layers:
        mine, other = ours.get_submodule(layer).weight, theirs.get_submodule(layer).weight
        if kind.startswith("Q"):
            assert mine.quant_type == other.quant_type
            assert torch.equal(mine.as_tensor(), other.as_tensor())
    assert torch.equal(answer(ours), answer(theirs))


def answer(transformer):
    generator = torch.Generator().manual_seed(0)

    def noise(*shape):
        return torch.randn(*shape, generator=generator)

    with torch.no_grad():
        return transformer(
            hidden_states=noise(1, 4, 64),
            encoder_hidden_states=noise(1, 5, 256),
            pooled_projections=noise(1, 256),
            timestep=torch.tensor([0.7]),
            guidance=torch.tensor([3.5]),
            img_ids=torch.zeros(4, 3),
            txt_ids=torch.zeros(5, 3),
            return_dict=False,
        )[0]


def test_a_gguf_model_takes_the_memory_of_its_file(base, tuned, tmp_path):
    whole = sum(it.nbytes for it in tuned.state_dict().values())
    file = write_gguf(to_bfl(tuned), tmp_path / "q8.gguf", "Q8_0")
    taken = sum(it.nbytes for it in load_transformer(file, base).state_dict().values())
    assert taken < 1.01 * file.stat().st_size < 0.3 * whole


def test_a_policy_draws_with_a_gguf_model_whose_first_layer_is_quantised(tmp_path):
    pipe = tiny_flux_pipeline()
    other = tiny_flux_pipeline(seed=1).transformer
    file = write_gguf(to_bfl(other), tmp_path / "q8.gguf", "Q8_0")
    policy = FluxPolicy(pipe, max_sequence_length=16)
    second = policy.with_transformer(load_transformer(file, pipe.transformer))
    whole = policy.with_transformer(other)
    cond, noise = policy.encode_prompts(["a red ball"]), policy.initial_noise(0, 32, 32)
    with torch.no_grad():
        drawn, exact, base = (it.velocity(noise, 0.7, cond, 3.5) for it in (second, whole, policy))
    assert (drawn - exact).norm() < 0.05 * exact.norm() < 0.1 * (base - exact).norm()


def test_gguf_without_its_package_is_one_sentence(base, tuned, tmp_path, monkeypatch):
    file = write_gguf(to_bfl(tuned), tmp_path / "q8.gguf", "Q8_0")
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    assert find(file).dtype == "Q8_0"
    with pytest.raises(ValueError, match=r"pip install gguf"):
        load_transformer(file, base)


def test_another_architecture_is_called_by_its_name(tmp_path):
    weights = {"double_blocks.0.x.weight": torch.zeros(2, 32)}
    file = write_gguf(weights, tmp_path / "other.gguf", architecture="llama")
    with pytest.raises(ValueError, match=r"holds the model 'llama', not FLUX\.1"):
        find(file)


def test_a_bfl_file_of_other_sizes_is_refused_by_the_first_weight(tuned, tmp_path):
    file = save(to_bfl(tuned), tmp_path / "wide.safetensors")
    with pytest.raises(ValueError, match=r"does not fit this model: it holds .* that do not belong to it"):
        load_transformer(file, tiny_flux_pipeline().transformer)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"double_blocks.0.stranger.weight": torch.zeros(2, 2)}, "which is no weight of FLUX"),
        ({"double_blocks.0.img_attn.qkv.weight": torch.zeros(7, 256)}, "are no 3 equal parts"),
        ({"single_blocks.0.linear1.weight": torch.zeros(9, 256)}, "are no q, k and v of 256 and an MLP's"),
        ({"img_in.scale_weight": torch.zeros(3, 3)}, "scales img_in.weight in a way that is not read here"),
    ],
)
def test_a_bfl_file_that_cannot_be_taken_apart_is_refused(base, tuned, tmp_path, change, said):
    file = save(to_bfl(tuned) | change, tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match=said):
        load_transformer(file, base)


@pytest.mark.slow
def test_at_the_width_of_flux_diffusers_own_converter_says_the_same(tmp_path):
    """Nothing of diffusers is changed here: one double and one single block of FLUX.1's real width, in bfloat16."""
    settings = {"num_layers": 1, "num_single_layers": 1, "guidance_embeds": True}
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        base = FluxTransformer2DModel(**settings)
    base = base.to(HALF).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    base.load_state_dict(
        {name: torch.randn(it.shape, generator=generator, dtype=HALF) for name, it in base.state_dict().items()}
    )
    file = save(to_bfl(base, COMFY), tmp_path / "flux.safetensors")
    base.save_config(tmp_path)
    theirs = FluxTransformer2DModel.from_single_file(file, config=str(tmp_path), local_files_only=True, dtype=HALF)
    assert_same(load_transformer(file, base), theirs)
