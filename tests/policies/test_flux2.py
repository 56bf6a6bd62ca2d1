"""FLUX.2 klein as a policy: against Flux2KleinPipeline on a tiny random model, and under what stands on a policy."""

import json
from dataclasses import replace

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_flux2_transformer_checkpoint_to_diffusers
from safetensors.torch import save_file
from torch.nn import functional as F

from srpo.evaluation.recoveries import grid_methods, recover, schedule_shift, shifted
from srpo.evaluation.sampling import sample_images, sample_latents
from srpo.flow.packing import flux2_image_ids, flux2_text_ids, pack
from srpo.flow.schedule import flux2_mu
from srpo.policies.base import Conditioning
from srpo.policies.checkpoints import load_transformer, save_transformer
from srpo.policies.families import FLUX, FLUX2_KLEIN, family_of, is_flux1
from srpo.policies.flux import FluxPolicy
from srpo.policies.flux2 import Flux2KleinPolicy
from srpo.policies.load import load_policy
from srpo.training.assemble import assemble
from srpo.training.config import ValidationConfig
from srpo.training.presets import studio
from tests.policies.forms import save, to_bfl, to_fp8, write_gguf
from tests.tiny import save_tiny_klein, tiny_flux_pipeline, tiny_klein_pipeline

PROMPTS = ["a red ball on a beach", "a blue house in snow at sunset"]
SIZES = [(64, 64), (48, 80)]
TOKENS = 96


@pytest.fixture
def policy():
    return Flux2KleinPolicy(tiny_klein_pipeline(), max_sequence_length=TOKENS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_klein(tmp_path_factory.mktemp("klein"))


def draw(batch=2, height=4, width=6, seed=0):
    return torch.randn(batch, 32, height, width, generator=torch.Generator().manual_seed(seed))


def as_the_pipeline_takes(latents):
    """(B, 4 C, h / 2, w / 2): one channel for each number of a token."""
    rows, columns = latents.shape[-2] // 2, latents.shape[-1] // 2
    return pack(latents).transpose(1, 2).reshape(len(latents), -1, rows, columns)


@pytest.mark.parametrize("is_distilled", [True, False])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_our_euler_loop_and_the_pipeline_give_the_same_picture_from_the_same_noise(
    is_distilled, guidance, height, width
):
    """In two passes above guidance 1, but for a distilled model, which knows none. Measured: bit for bit."""
    policy = Flux2KleinPolicy(tiny_klein_pipeline(is_distilled=is_distilled), max_sequence_length=TOKENS)
    settings = {"height": height, "width": width}
    noise, x0 = sample_latents(policy, PROMPTS, [1, 2], num_steps=4, guidance=guidance, **settings)
    asked = {"num_inference_steps": 4, "guidance_scale": guidance, "max_sequence_length": TOKENS, **settings}
    latents = as_the_pipeline_takes(noise)
    theirs = policy.pipe(prompt=PROMPTS, latents=latents, output_type="latent", **asked).images
    assert (policy._denormalized(x0) - theirs).abs().max() <= 1e-5
    assert (x0 - noise).abs().max() > 0.1  # the model did something
    image = policy.pipe(prompt=PROMPTS, latents=latents, output_type="pt", **asked).images
    assert (policy.decode(x0) - image).abs().max() <= 1e-5


def test_guidance_changes_the_picture_of_a_base_and_not_of_a_distilled_model():
    for is_distilled in (True, False):
        policy = Flux2KleinPolicy(tiny_klein_pipeline(is_distilled=is_distilled), max_sequence_length=TOKENS)
        plain, guided = (
            sample_latents(policy, PROMPTS[:1], [1], num_steps=2, guidance=value, height=64, width=64)[1]
            for value in (1.0, 4.0)
        )
        assert torch.equal(plain, guided) == is_distilled


@torch.no_grad()
def test_every_image_is_read_with_its_own_sigma_guidance_and_prompt(policy):
    cond, x_t = policy.encode_prompts(PROMPTS), draw()
    together = policy.velocity(x_t, torch.tensor([0.9, 0.2]), cond, torch.tensor([1.0, 5.0]))
    for i, (sigma, guidance) in enumerate([(0.9, 1.0), (0.2, 5.0)]):
        alone = policy.velocity(x_t[i : i + 1], sigma, cond[[i]], guidance)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-5)
    below = policy.velocity(x_t, 0.5, cond, 0.0)  # as the pipeline, which guides above 1 alone
    assert torch.equal(below, policy.velocity(x_t, 0.5, cond, 1.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_seed_draws_the_noise_that_the_pipeline_draws(dtype, height, width):
    policy = Flux2KleinPolicy(tiny_klein_pipeline().to(dtype))
    generator = torch.Generator().manual_seed(11)
    expected, _ = policy.pipe.prepare_latents(1, 32, height, width, dtype, torch.device("cpu"), generator)
    noise = policy.initial_noise(11, height, width)
    assert noise.dtype == torch.float32 and noise.shape == (1, *policy.latent_shape(height, width))
    assert torch.equal(pack(noise), expected.float())


@pytest.mark.parametrize("num_steps", [1, 4, 50])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_schedule_equals_the_one_the_pipeline_ran_with(policy, num_steps, height, width):
    """The mark of a step's number: 4 steps are shifted otherwise than 50."""
    from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu, retrieve_timesteps

    tokens, scheduler = height * width // 256, policy.pipe.scheduler
    sigmas = torch.linspace(1, 1 / num_steps, num_steps, dtype=torch.float64).numpy()
    retrieve_timesteps(scheduler, num_steps, "cpu", sigmas=sigmas, mu=compute_empirical_mu(tokens, num_steps))
    ours = policy.schedule(num_steps, height, width)
    torch.testing.assert_close(ours, scheduler.sigmas, rtol=0, atol=1e-6)


@pytest.mark.parametrize("tokens", [16, 1024, 4096, 4300, 4301, 16384])
def test_the_shift_equals_the_pipelines(tokens):
    from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

    for num_steps in (1, 4, 28, 200):
        assert flux2_mu(tokens, num_steps) == pytest.approx(compute_empirical_mu(tokens, num_steps), abs=1e-12)


def test_positions_equal_the_pipelines(policy):
    latents = torch.zeros(1, 128, 3, 5)
    assert torch.equal(flux2_image_ids(6, 10), policy.pipe._prepare_latent_ids(latents)[0].float())
    assert torch.equal(flux2_text_ids(7), policy.pipe._prepare_text_ids(torch.zeros(1, 7, 4))[0].float())


def test_encoded_prompts_equal_the_pipelines_and_have_no_vector_of_the_whole(policy):
    cond = policy.encode_prompts(PROMPTS)
    expected, _ = policy.pipe.encode_prompt(PROMPTS, max_sequence_length=TOKENS)
    torch.testing.assert_close(cond.prompt_embeds, expected, rtol=0, atol=1e-5)
    assert cond.pooled is None and not cond.prompt_embeds.requires_grad
    assert len(cond) == 2 and cond[[1]].pooled is None and Conditioning.cat([cond, cond]).pooled is None
    assert torch.equal(cond[[1]].prompt_embeds, policy.encode_prompts(PROMPTS[1:]).prompt_embeds)
    assert cond.nbytes == cond.prompt_embeds.nbytes


def test_tokens_are_counted_with_the_chat_around_them(policy):
    """The tokenizer has no merges, so each byte of the text is a token."""
    empty, limit = policy.count_tokens("")
    assert (policy.count_tokens("a red ball").tokens, limit) == (empty + 10, TOKENS)
    assert policy.count_tokens("é" * 100).tokens == empty + 200


def test_encoding_a_picture_and_decoding_it_are_the_vaes_with_its_own_statistics(policy):
    image = torch.rand(1, 3, 64, 48, generator=torch.Generator().manual_seed(0))
    latents = policy.encode_image(image)
    assert latents.shape == (1, *policy.latent_shape(64, 48)) == (1, 32, 8, 6)
    expected = policy.pipe._encode_vae_image(2 * image - 1, generator=None)
    torch.testing.assert_close(as_the_pipeline_takes(latents), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(policy._normalized(policy._denormalized(latents)), latents, rtol=0, atol=1e-5)
    assert policy.preview(latents).shape == (1, 3, 8, 6)


def test_the_gradient_of_the_decoder_equals_its_finite_difference(policy):
    policy.pipe.vae.double()
    x0, direction = draw(1).double() * 0.5, draw(1, seed=1).double()
    weights = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(2))
    x0.requires_grad_()
    (policy.decode(x0, clamp=False) * weights).sum().backward()
    with torch.no_grad():
        step = 1e-2  # decode answers in float32, so the step is long
        ahead, behind = ((policy.decode(x0 + s * direction, clamp=False) * weights).sum().item() for s in (step, -step))
    assert (x0.grad * direction).sum().item() == pytest.approx((ahead - behind) / (2 * step), rel=0.02)


def test_gradients_reach_the_weights_and_the_latents_but_no_frozen_part(policy):
    cond, x_t = policy.encode_prompts(PROMPTS), draw().requires_grad_()
    policy.decode(x_t - 0.7 * policy.velocity(x_t, 0.7, cond, 3.5)).square().sum().backward()
    assert x_t.grad.abs().sum() > 0
    assert all(weight.grad is not None for weight in policy.parameters())
    frozen = (policy.pipe.vae, policy.pipe.text_encoder)
    assert not any(weight.requires_grad for part in frozen for weight in part.parameters())
    assert not any(module.training for part in (*frozen, policy.transformer) for module in part.modules())


def test_a_second_policy_keeps_the_firsts_kind_and_settings():
    policy = Flux2KleinPolicy(tiny_klein_pipeline(is_distilled=True), max_sequence_length=TOKENS)
    second = policy.with_transformer(tiny_klein_pipeline(seed=1).transformer)
    assert type(second) is Flux2KleinPolicy and second.is_distilled and second.pipe.vae is policy.pipe.vae
    cond = policy.encode_prompts(PROMPTS)
    difference = second.velocity(draw(), 0.5, cond, 1.0) - policy.velocity(draw(), 0.5, cond, 1.0)
    assert difference.abs().max() > 0.01
    first = FluxPolicy(tiny_flux_pipeline(), max_sequence_length=16)
    for ours, theirs, said in ((policy, first, "must be 128, .* not 64"), (first, policy, "must be 64, .* not 128")):
        with pytest.raises(ValueError, match=f"in_channels {said}"):
            ours.with_transformer(theirs.transformer)


# Which family a folder holds


def test_a_folder_tells_its_family_and_the_policy_of_it_is_loaded(folder, flux_folder):
    assert family_of(folder) is FLUX2_KLEIN and family_of(flux_folder) is FLUX
    assert is_flux1(flux_folder) and not is_flux1(folder)
    assert type(load_policy(folder)) is Flux2KleinPolicy and type(load_policy(flux_folder)) is FluxPolicy


def test_a_saved_pipeline_gives_the_policy_of_the_pipeline_it_was(folder, policy):
    loaded = load_policy(folder, max_sequence_length=TOKENS)
    settings = {"num_steps": 2, "height": 48, "width": 80}
    ours, theirs = (sample_images(it, PROMPTS, [1, 2], **settings) for it in (loaded, policy))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_pipelines_of_other_classes_are_refused_in_one_sentence(tmp_path, folder):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "Flux2Pipeline"}))
    said = "holds a Flux2Pipeline; choose the folder of a FluxPipeline or a Flux2KleinPipeline"
    with pytest.raises(ValueError, match=said):
        load_policy(tmp_path)
    with pytest.raises(ValueError, match="holds a Flux2KleinPipeline, not a FluxPipeline"):
        FluxPolicy.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"is not in .*download it first"):
        load_policy("nobody/nothing")


# What stands on a policy


def test_weights_are_saved_and_read_back_and_flux_1s_are_refused(policy, tmp_path):
    other = tiny_klein_pipeline(seed=1).transformer
    file = save_transformer(other, tmp_path / "klein.safetensors", torch.float32)
    loaded = load_transformer(file, policy.transformer)
    assert type(loaded) is type(other)
    assert all(torch.equal(weight, loaded.state_dict()[name]) for name, weight in other.state_dict().items())
    foreign = save_transformer(tiny_flux_pipeline().transformer, tmp_path / "flux.safetensors", torch.float32)
    with pytest.raises(ValueError, match="does not fit this model"):
        load_transformer(foreign, policy.transformer)


@pytest.mark.parametrize("form", ["bfl", "comfyui", "fp8", "gguf"])
def test_weights_of_every_published_form_are_read(policy, tmp_path, form):
    tuned = tiny_klein_pipeline(seed=1).transformer
    weights = to_bfl(tuned, "model.diffusion_model." if form == "comfyui" else "")
    if form == "gguf":
        file = write_gguf(weights, tmp_path / "klein.gguf", "Q8_0")
    else:
        file = save(to_fp8(weights, "scale_weight") if form == "fp8" else weights, tmp_path / "klein.safetensors")
    read = policy.with_transformer(load_transformer(file, policy.transformer))
    cond, x_t = policy.encode_prompts(PROMPTS), draw()
    expected, base = (it.velocity(x_t, 0.5, cond, 1.0) for it in (policy.with_transformer(tuned), policy))
    error = (read.velocity(x_t, 0.5, cond, 1.0) - expected).abs().max() / (base - expected).abs().max()
    assert error <= {"fp8": 0.1, "gguf": 0.03}.get(form, 0)  # bit for bit where nothing is rounded


def test_a_file_of_black_forest_labs_is_what_diffusers_makes_of_it(policy, tmp_path):
    weights = to_bfl(tiny_klein_pipeline(seed=1).transformer)
    theirs = convert_flux2_transformer_checkpoint_to_diffusers(dict(weights))
    ours = load_transformer(save(weights, tmp_path / "klein.safetensors"), policy.transformer).state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_lora_under_comfyuis_names_is_what_diffusers_makes_of_it(policy, tmp_path):
    """q, k and v of a double block are one matrix there; of a single block they are one in diffusers too."""
    generator, adapters = torch.Generator().manual_seed(0), {}
    for name, out in (("double_blocks.0.img_attn.qkv", 96), ("single_blocks.0.linear1", 288), ("img_in", 32)):
        inner = 128 if name == "img_in" else 32
        adapters[f"diffusion_model.{name}.lora_A.weight"] = torch.randn(4, inner, generator=generator)
        adapters[f"diffusion_model.{name}.lora_B.weight"] = 0.2 * torch.randn(out, 4, generator=generator)
    file = save(adapters, tmp_path / "lora.safetensors")
    ours = policy.with_transformer(load_transformer(file, policy.transformer))
    theirs = tiny_klein_pipeline()
    theirs.load_lora_weights(str(file))
    cond, x_t = policy.encode_prompts(PROMPTS), draw()
    with torch.no_grad():
        expected = Flux2KleinPolicy(theirs, max_sequence_length=TOKENS).velocity(x_t, 0.5, cond, 1.0)
        torch.testing.assert_close(ours.velocity(x_t, 0.5, cond, 1.0), expected, rtol=1e-4, atol=1e-5)
        assert (policy.velocity(x_t, 0.5, cond, 1.0) - expected).abs().max() > 0.01


def test_recoveries_fill_the_grid_and_no_noise_gives_the_picture_back(policy):
    """Where the model's velocity is the true one, Direct-Align returns the clean latents."""
    _, x0 = sample_latents(policy, PROMPTS[:1], [3], num_steps=2, guidance=1.0, height=64, width=64)
    noise = policy.initial_noise(4, 64, 64)
    sigmas, methods = (0.9, 0.5), grid_methods((0.075,))
    cells = list(recover(policy, x0, noise, policy.encode_prompts(PROMPTS[:1]), sigmas, methods))
    assert len(cells) == len(sigmas) * len(methods)
    assert all(cell.image.shape == (1, 3, 64, 64) and cell.x0.isfinite().all() for cell in cells)
    policy.velocity = lambda x_t, sigma, cond, guidance: (noise - x0).expand_as(x_t)
    exact = recover(policy, x0, noise, policy.encode_prompts(PROMPTS[:1]), sigmas, methods[1:])
    assert all(F.mse_loss(cell.x0, x0) < 1e-8 for cell in exact)


def test_shifted_levels_lie_on_the_schedule_of_so_many_steps(policy):
    for num_steps in (2, 5, 20):
        shift = schedule_shift(policy, 64, 48, num_steps)
        expected = policy.schedule(num_steps, 64, 48)[1:-1].tolist()
        plain = [1 - index / num_steps for index in range(1, num_steps)]
        assert shifted(plain, shift) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("weights", ["full", "lora"])
def test_two_updates_of_srpo_train_it_and_leave_a_file_that_is_read_back(weights, folder, clip_folder, tmp_path):
    """The trainer is FLUX.1's; guidance 3.5 of the preset is two passes here, and both carry a gradient."""
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    base = studio()
    objective = replace(base.objective, height=32, width=32, rollout_steps=2)
    places = {"model": str(folder), "reward": str(clip_folder), "prompts": str(tmp_path / "prompts.txt")}
    config = replace(
        base,
        objective=objective,
        weights=weights,
        lr=1e-2,
        updates=2,
        prompts_per_update=2,
        max_sequence_length=TOKENS,
        validation=ValidationConfig(),
        device="cpu",
        **places,
    )
    trainer = assemble(config)
    assert type(trainer.policy) is Flux2KleinPolicy
    before = trainer.weights()
    records = list(trainer.updates())
    assert all(0 < record.grad_norm < float("inf") for record in records)
    moved = [name for name, value in trainer.weights().items() if not torch.equal(before[name], value)]
    assert moved and all(name.startswith("transformer.") for name in moved) == (weights == "lora")
    assert any("single_transformer_blocks" in name for name in moved)  # whose q, k and v are one layer here

    file = tmp_path / trainer.weights_name
    save_file(trainer.weights(), file, metadata=trainer.weights_metadata)
    plain = load_policy(folder, max_sequence_length=TOKENS)
    read = plain.with_transformer(load_transformer(file, plain.transformer))
    cond = plain.encode_prompts(PROMPTS)
    with torch.no_grad():
        ours, theirs = (it.velocity(draw(), 0.5, cond, 3.5) for it in (trainer.policy, read))
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
    assert (ours - plain.velocity(draw(), 0.5, cond, 3.5)).abs().max() > 1e-4
