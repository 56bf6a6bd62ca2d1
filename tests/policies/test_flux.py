"""FLUX as a policy, against FluxPipeline on a tiny random model."""

import json

import pytest
import torch
from torch.nn import functional as F

from srpo.flow.packing import pack, unpack
from srpo.flow.samplers import euler
from srpo.policies.base import Conditioning
from srpo.policies.flux import FluxPolicy
from tests.tiny import save_tiny_flux, tiny_flux_pipeline

PROMPTS = ["a red ball on a beach", "a blue house in snow at sunset"]
SIZES = [(64, 64), (48, 80)]


@pytest.fixture
def policy(pipe):
    return FluxPolicy.from_pipeline(pipe, max_sequence_length=48)


def draw(batch=2, height=4, width=6, seed=0):
    return torch.randn(batch, 16, height, width, generator=torch.Generator().manual_seed(seed))


def generate(policy, prompts, noise, height, width, num_steps=5, guidance=3.5):
    cond = policy.encode_prompts(prompts)
    with torch.no_grad():
        *_, last = euler(
            lambda x_t, sigma: policy.velocity(x_t, sigma, cond, guidance),
            noise,
            policy.schedule(num_steps, height, width),
        )
    return last.x_t


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("num_steps", [1, 5])
def test_our_euler_loop_and_the_pipeline_give_the_same_latents_from_the_same_noise(policy, height, width, num_steps):
    noise = torch.cat([policy.initial_noise(seed, height, width) for seed in (1, 2)])
    ours = generate(policy, PROMPTS, noise, height, width, num_steps)
    packed = policy.pipe(
        PROMPTS,
        height=height,
        width=width,
        num_inference_steps=num_steps,
        guidance_scale=3.5,
        latents=pack(noise),
        max_sequence_length=48,
        output_type="latent",
    ).images
    theirs = unpack(packed, *noise.shape[-2:])
    assert (theirs - noise).abs().max() > 0.1  # the model did something
    assert (ours - theirs).abs().max() <= 1e-4


def test_from_prompt_and_seed_to_pixels_our_way_equals_the_pipelines(policy):
    ours = policy.decode(generate(policy, PROMPTS[:1], policy.initial_noise(7, 64, 64), 64, 64))
    theirs = policy.pipe(
        PROMPTS[0],
        height=64,
        width=64,
        num_inference_steps=5,
        generator=torch.Generator().manual_seed(7),
        max_sequence_length=48,
        output_type="pt",
    ).images
    assert (ours - theirs).abs().max() <= 1e-4


def test_encoded_prompts_equal_the_pipelines_and_carry_no_gradient(policy):
    cond = policy.encode_prompts(PROMPTS)
    prompt_embeds, pooled, _ = policy.pipe.encode_prompt(PROMPTS, max_sequence_length=48)
    assert torch.equal(cond.prompt_embeds, prompt_embeds)
    assert torch.equal(cond.pooled, pooled)
    assert cond.prompt_embeds.shape[1] == 48
    assert not cond.prompt_embeds.requires_grad


def test_prompts_encoded_together_or_alone_are_the_same(policy):
    together = policy.encode_prompts(PROMPTS)
    alone = Conditioning.cat([policy.encode_prompts([prompt]) for prompt in PROMPTS])
    torch.testing.assert_close(together.prompt_embeds, alone.prompt_embeds, rtol=0, atol=1e-5)
    torch.testing.assert_close(together.pooled, alone.pooled, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_seed_draws_the_noise_that_the_pipeline_draws(dtype, height, width):
    policy = FluxPolicy.from_pipeline(tiny_flux_pipeline().to(dtype))
    expected, _ = policy.pipe.prepare_latents(
        1, 16, height, width, dtype, torch.device("cpu"), torch.Generator().manual_seed(11)
    )
    noise = policy.initial_noise(11, height, width)
    assert noise.dtype == torch.float32
    assert torch.equal(pack(noise), expected.float())
    assert not torch.equal(noise, policy.initial_noise(12, height, width))


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_schedule_equals_the_one_the_pipeline_ran_with(pipe, dynamic, height, width):
    pipe.scheduler.register_to_config(use_dynamic_shifting=dynamic)
    pipe("", height=height, width=width, num_inference_steps=7, max_sequence_length=8, output_type="latent")
    torch.testing.assert_close(
        FluxPolicy.from_pipeline(pipe).schedule(7, height, width), pipe.scheduler.sigmas, rtol=0, atol=1e-7
    )


def test_a_schedule_that_flux_does_not_have_is_refused(policy):
    policy.pipe.scheduler.register_to_config(use_karras_sigmas=True)
    with pytest.raises(ValueError, match="unset use_karras_sigmas"):
        policy.schedule(4, 64, 64)


@torch.no_grad()
def test_numbers_and_tensors_of_sigma_and_guidance_mean_the_same(policy):
    cond, x_t = policy.encode_prompts(PROMPTS), draw()
    expected = policy.velocity(x_t, 0.7, cond, 3.5)
    assert torch.equal(policy.velocity(x_t, torch.tensor(0.7), cond, torch.tensor([3.5, 3.5])), expected)
    assert torch.equal(policy.velocity(x_t, torch.tensor([0.7, 0.7]), cond, torch.tensor(3.5)), expected)


@torch.no_grad()
def test_every_image_is_read_with_its_own_sigma_guidance_and_prompt(policy):
    cond, x_t = policy.encode_prompts(PROMPTS), draw()
    together = policy.velocity(x_t, torch.tensor([0.9, 0.2]), cond, torch.tensor([1.0, 5.0]))
    for i, (sigma, guidance) in enumerate([(0.9, 1.0), (0.2, 5.0)]):
        alone = policy.velocity(x_t[i : i + 1], sigma, cond[[i]], guidance)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-5)
    for other in (
        policy.velocity(x_t, torch.tensor([0.8, 0.2]), cond, torch.tensor([1.0, 5.0])),
        policy.velocity(x_t, torch.tensor([0.9, 0.2]), cond, torch.tensor([2.0, 5.0])),
        policy.velocity(x_t, torch.tensor([0.9, 0.2]), cond[[1, 1]], torch.tensor([1.0, 5.0])),
    ):
        assert (other[0] - together[0]).abs().max() > 1e-4
        torch.testing.assert_close(other[1], together[1], rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_half_precision_model_still_answers_in_float32(policy):
    cond, x_t = policy.encode_prompts(PROMPTS), draw()
    exact = policy.velocity(x_t, 0.7, cond, 3.5)
    policy.transformer.to(torch.bfloat16)
    rounded = policy.velocity(x_t, 0.7, cond, 3.5)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.1


@torch.no_grad()
def test_two_policies_of_different_precision_each_keep_their_own(policy):
    cond, x_t = policy.encode_prompts(PROMPTS), draw()
    exact = policy.velocity(x_t, 0.7, cond, 3.5)
    half = policy.with_transformer(tiny_flux_pipeline().transformer.to(torch.bfloat16))
    assert 0 < (half.velocity(x_t, 0.7, cond, 3.5) - exact).abs().max() < 0.1
    assert torch.equal(policy.velocity(x_t, 0.7, cond, 3.5), exact)


def test_gradients_reach_the_weights_and_the_latents_but_no_frozen_part(policy):
    cond, x_t = policy.encode_prompts(PROMPTS), draw().requires_grad_()
    policy.decode(x_t - 0.7 * policy.velocity(x_t, 0.7, cond, 3.5)).square().sum().backward()
    assert x_t.grad.abs().sum() > 0
    assert all(weight.grad is not None for weight in policy.parameters())
    frozen = (policy.pipe.vae, policy.pipe.text_encoder, policy.pipe.text_encoder_2)
    assert not any(weight.requires_grad for part in frozen for weight in part.parameters())
    assert not any(module.training for part in (*frozen, policy.transformer) for module in part.modules())


def test_the_gradient_of_the_decoder_equals_its_finite_difference(policy):
    policy.pipe.vae.double()
    x0, direction = draw(1).double() * 0.5, draw(1, seed=1).double()
    weights = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(2))
    x0.requires_grad_()
    (policy.decode(x0) * weights).sum().backward()
    with torch.no_grad():
        step = 1e-2  # decode answers in float32, so the step is long
        ahead, behind = ((policy.decode(x0 + s * direction) * weights).sum().item() for s in (step, -step))
    assert (x0.grad * direction).sum().item() == pytest.approx((ahead - behind) / (2 * step), rel=0.02)


def test_a_checkpointed_decoder_gives_the_same_gradient_and_keeps_less():
    results = []
    for checkpoint_decode in (False, True):
        policy = FluxPolicy.from_pipeline(tiny_flux_pipeline(), checkpoint_decode=checkpoint_decode)
        x0, kept = draw(1, 8, 8).requires_grad_(), []

        def keep(tensor, kept=kept):
            kept.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            image = policy.decode(x0)
        image.square().sum().backward()
        results.append((image.detach(), x0.grad, sum(kept)))
    (image, gradient, kept), (image_2, gradient_2, kept_2) = results
    torch.testing.assert_close(image_2, image, rtol=0, atol=1e-6)
    torch.testing.assert_close(gradient_2, gradient, rtol=1e-4, atol=1e-5)
    assert kept_2 < kept / 2


def test_encoding_is_the_mode_of_the_posterior_scaled_and_shifted_as_flux_does(policy):
    image = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    mean = policy.pipe.vae.encode(2 * image - 1).latent_dist.mean
    assert torch.equal(policy.encode_image(image), (mean - 0.1159) * 0.3611)


def test_decoding_undoes_the_scale_and_the_shift_of_encoding(policy):
    x0 = draw(1)
    expected = policy.pipe.vae.decode(x0 / 0.3611 + 0.1159).sample / 2 + 0.5
    torch.testing.assert_close(policy.decode(x0), expected.clamp(0, 1), rtol=0, atol=1e-6)
    assert policy.decode(50 * x0).min() >= 0
    assert policy.decode(50 * x0).max() <= 1


def test_a_preview_reads_the_colours_back_from_an_encoder_that_mixes_them_linearly(policy):
    """With an encoder of mean colours times a random 3 -> 16 matrix, the least-squares map is the matrix's inverse."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy.pipe.vae.encoder = torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.Conv2d(3, 32, 1))
    picture = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(3))
    picture[1] = torch.linspace(0, 1, 96)  # all greys, black and white included
    shown = policy.preview(policy.encode_image(picture))
    torch.testing.assert_close(shown, F.avg_pool2d(picture, 8), rtol=0, atol=0.01)


def test_a_preview_is_fitted_once_and_shared_by_both_policies(policy, monkeypatch):
    second = policy.with_transformer(tiny_flux_pipeline(seed=1).transformer)
    first = policy.preview(draw())
    monkeypatch.setattr(FluxPolicy, "_fit_preview", lambda self: pytest.fail("fitted again"))
    assert torch.equal(second.preview(draw()), first)


@torch.no_grad()
def test_a_second_policy_differs_in_its_transformer_only(policy):
    second = policy.with_transformer(tiny_flux_pipeline(seed=1).transformer)
    assert second.pipe.vae is policy.pipe.vae
    assert second.pipe.text_encoder_2 is policy.pipe.text_encoder_2
    assert second.pipe.transformer is not policy.pipe.transformer
    cond, x_t = policy.encode_prompts(PROMPTS), draw()
    first = policy.velocity(x_t, 0.7, cond, 3.5)
    assert (second.velocity(x_t, 0.7, cond, 3.5) - first).abs().max() > 0.01
    assert torch.equal(policy.velocity(x_t, 0.7, cond, 3.5), first)


def test_a_transformer_for_other_texts_is_refused(policy):
    config = dict(policy.transformer.config) | {"joint_attention_dim": 48}
    other = type(policy.transformer).from_config(config)
    with pytest.raises(ValueError, match="joint_attention_dim must be 32, as the first one's, not 48"):
        policy.with_transformer(other)


def test_tokens_are_counted_with_their_end_mark_and_beyond_the_limit(policy):
    """The tiny tokenizer knows these words whole; the end mark is one more."""
    assert policy.count_tokens("a red ball") == (4, 48)
    assert policy.count_tokens("") == (1, 48)
    assert policy.count_tokens("red " * 100) == (101, 48)


@pytest.mark.parametrize(("height", "width"), [(72, 64), (64, 100), (0, 64), (-16, 64), (8, 8)])
def test_sizes_that_are_not_multiples_of_16_are_refused(policy, height, width):
    for call in (
        policy.latent_shape,
        lambda h, w: policy.schedule(4, h, w),
        lambda h, w: policy.initial_noise(0, h, w),
    ):
        with pytest.raises(ValueError, match=f"multiples of 16 pixels, not {height} x {width}"):
            call(height, width)


def test_latents_have_an_eighth_of_the_pixels(policy):
    assert policy.latent_shape(64, 96) == (16, 8, 12)
    assert policy.encode_image(torch.rand(1, 3, 64, 96)).shape == (1, 16, 8, 12)
    assert policy.decode(draw(1, 8, 12)).shape == (1, 3, 64, 96)


def test_inputs_that_do_not_belong_together_are_refused(policy):
    cond = policy.encode_prompts(PROMPTS)
    with pytest.raises(ValueError, match="2 prompts came with 3 latents"):
        policy.velocity(draw(3), 0.5, cond, 3.5)
    with pytest.raises(ValueError, match="`sigma` must be a number or one number per image"):
        policy.velocity(draw(), torch.rand(3), cond, 3.5)
    with pytest.raises(ValueError, match="`x_t` must be float32"):
        policy.velocity(draw().bfloat16(), 0.5, cond, 3.5)
    with pytest.raises(ValueError, match="A list of one or more prompts"):
        policy.encode_prompts("a red ball")
    with pytest.raises(ValueError, match=r"must be \(B, 3, H, W\), not \(3, 64, 64\)"):
        policy.encode_image(torch.rand(3, 64, 64))
    with pytest.raises(ValueError, match="1 to 512 tokens, not 513"):
        FluxPolicy.from_pipeline(policy.pipe, max_sequence_length=513)


@torch.no_grad()
def test_a_saved_pipeline_gives_the_policy_of_the_pipeline_it_was(flux_folder, policy):
    loaded = FluxPolicy.from_pretrained(flux_folder, max_sequence_length=48)
    cond, x_t = policy.encode_prompts(PROMPTS), draw()
    torch.testing.assert_close(loaded.encode_prompts(PROMPTS).prompt_embeds, cond.prompt_embeds, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        loaded.velocity(x_t, 0.6, cond, 3.5), policy.velocity(x_t, 0.6, cond, 3.5), rtol=0, atol=1e-5
    )
    assert loaded.device == torch.device("cpu")


@pytest.mark.parametrize("stored", [torch.float16, torch.float32])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
def test_a_saved_pipeline_is_loaded_in_the_precision_asked_for(tmp_path, stored, wanted):
    tiny_flux_pipeline().to(stored).save_pretrained(tmp_path)
    pipe = FluxPolicy.from_pretrained(tmp_path, dtype=wanted).pipe
    parts = (pipe.transformer, pipe.vae, pipe.text_encoder, pipe.text_encoder_2)
    assert {weight.dtype for part in parts for weight in part.parameters()} == {wanted}


def test_what_is_no_flux_pipeline_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="no readable model_index"):
        FluxPolicy.from_pretrained(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(ValueError, match="holds a StableDiffusionPipeline"):
        FluxPolicy.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a file; choose the folder"):
        FluxPolicy.from_pretrained(tmp_path / "model_index.json")
    with pytest.raises(ValueError, match="There is no folder"):
        FluxPolicy.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="'nobody/nothing' is no folder and not downloaded"):
        FluxPolicy.from_pretrained("nobody/nothing")


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_damaged_pipeline_is_refused_by_its_name(tmp_path, damage):
    folder = save_tiny_flux(tmp_path / "flux")
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000]) if damage == "cut" else weights.unlink()
    with pytest.raises(ValueError, match=r"flux' is incomplete or damaged"):
        FluxPolicy.from_pretrained(folder)


def test_a_pipeline_without_its_text_encoder_is_refused_by_name(pipe):
    pipe.text_encoder_2 = None
    with pytest.raises(ValueError, match="lacks text_encoder_2"):
        FluxPolicy.from_pipeline(pipe)
