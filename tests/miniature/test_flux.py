"""The miniature's FLUX: texts as FluxPipeline reads them, the distillation's target, and that padding is drawn anew."""

import copy

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline

from srpo.flow.path import interpolate
from srpo.miniature import flux
from srpo.miniature.data import training_scenes
from srpo.miniature.flux import FluxText, distil_guidance, new_scheduler, save_flux, train_flux, velocity
from tests.tiny import tiny_flux_pipeline

SCENES = training_scenes(64, 3)


@pytest.fixture(scope="module")
def text():
    torch.manual_seed(0)
    return FluxText().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def latents():
    return torch.randn(64, 16, 4, 4, generator=torch.Generator().manual_seed(0)).half()


@pytest.fixture
def teacher():
    """One layer of each kind, for the widths of `FluxText`."""
    torch.manual_seed(0)
    config = dict(tiny_flux_pipeline().transformer.config) | {"joint_attention_dim": 128, "pooled_projection_dim": 128}
    return flux.FluxTransformer2DModel.from_config(config).eval()


@pytest.mark.parametrize("length", [32, 128])
def test_texts_are_encoded_as_the_stored_pipeline_encodes_them(length, text, teacher, tmp_path):
    save_flux(tmp_path, text, teacher, tiny_flux_pipeline().vae)
    pipe = FluxPipeline.from_pretrained(tmp_path)
    texts = ["a red ball on a beach at sunset", ""]
    theirs, their_pooled, _ = pipe.encode_prompt(texts, texts, max_sequence_length=length)
    ours, pooled = text(texts, length)
    assert ours.shape == (2, length, 128)
    torch.testing.assert_close(ours, theirs, atol=2e-2, rtol=1e-2)  # the stored weights are rounded to 16 bit
    torch.testing.assert_close(pooled, their_pooled, atol=2e-2, rtol=1e-2)


def test_encoders_read_back_from_a_pipeline_are_those_that_were_stored(text, teacher, tmp_path):
    save_flux(tmp_path, text, teacher, tiny_flux_pipeline().vae)
    again = FluxText.from_pipeline(FluxPipeline.from_pretrained(tmp_path))
    for name, value in text.state_dict().items():
        assert torch.equal(again.state_dict()[name], value.half().float()), name


def test_a_long_text_is_learnt_in_fewer_pictures(latents, monkeypatch):
    """At most 32 pictures, and about as many tokens in any update: 4096 / (64 + length). Lengths come equally often."""
    monkeypatch.setattr(flux, "TEXT_LENGTHS", tuple((length, 0.2) for length, _ in flux.TEXT_LENGTHS))
    batch = flux._Batch(latents, SCENES, seed=5)
    sizes = {}
    for update in range(60):
        x0, captions, length, _ = batch.draw(update, empty_share=0.1)
        assert len(captions) == len(x0)
        sizes[length] = len(x0)
    assert sizes == {32: 32, 64: 32, 128: 21, 256: 12, 512: 7}


def test_an_updates_draws_follow_from_its_number_alone(latents):
    early = flux._Batch(latents, SCENES, seed=5)
    for update in range(7):
        x0, captions, length, generator = early.draw(update, empty_share=0.1)
    late = flux._Batch(latents, SCENES, seed=5).draw(6, empty_share=0.1)
    assert torch.equal(late[0], x0)
    assert (late[1], late[2]) == (captions, length)
    assert torch.equal(torch.rand(3, generator=late[3]), torch.rand(3, generator=generator))


def losses_of(curve):
    return [point["loss"] for point in curve]


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_target_of_distillation_is_the_guided_velocity_and_at_1_the_one_with_text(
    guidance, text, teacher, latents, cache, monkeypatch
):
    """With the student still the teacher, the first loss is |v(g) - v_empty - g (v_text - v_empty)|^2 / g.

    At g = 1 student and target are the same, v_text, and the loss is 0.
    """
    monkeypatch.setattr(flux, "GUIDANCE_RANGE", (guidance, guidance))
    monkeypatch.setattr(flux, "TEXT_LENGTHS", ((32, 1.0),))
    monkeypatch.setitem(flux.train.__kwdefaults__, "log_every", 1)
    seen = {}

    def first_loss(stage, modules, step, **settings):
        seen["loss"] = step(0)[0].item()

    monkeypatch.setattr(flux, "train", first_loss)
    distil_guidance(text, teacher, latents, SCENES, updates=1)

    x0, captions, length, generator = flux._Batch(latents, SCENES, 20).draw(0, empty_share=0.0)
    noise = torch.randn(x0.shape, generator=generator)
    sigma = flux._draw_sigma(len(x0), generator)
    x_t, one = interpolate(x0, noise, sigma), torch.ones(len(x0))
    with torch.no_grad():
        v_text = velocity(teacher, x_t, sigma, text(captions, length), one)
        v_empty = velocity(teacher, x_t, sigma, text([""] * len(x0), length), one)
        student = velocity(teacher, x_t, sigma, text(captions, length), guidance * one)
    target = v_empty + guidance * (v_text - v_empty)
    assert seen["loss"] == pytest.approx((student - target).square().mean().item() / guidance, rel=1e-4, abs=1e-12)
    assert (seen["loss"] < 1e-12) == (guidance == 1.0)


def test_distillation_leaves_teacher_and_texts_as_they_are(text, teacher, latents, cache):
    before, words = copy.deepcopy(teacher.state_dict()), copy.deepcopy(text.state_dict())
    student = distil_guidance(text, teacher, latents, SCENES, updates=1)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(torch.equal(value, words[name]) for name, value in text.state_dict().items())
    assert any(not torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_a_new_teacher_does_not_get_the_old_student(text, teacher, latents, cache):
    distil_guidance(text, teacher, latents, SCENES, updates=1)
    other = copy.deepcopy(teacher)
    with torch.no_grad():
        other.proj_out.bias += 0.1
    with pytest.raises(ValueError, match=r"guidance.* belongs to another training \(start"):
        distil_guidance(text, other, latents, SCENES, updates=1)
    with pytest.raises(ValueError, match=r"guidance.* belongs to another training \(latents"):
        distil_guidance(text, teacher, latents + 1, SCENES, updates=1)


def test_training_reaches_text_encoders_and_transformer(teacher, latents, cache, monkeypatch):
    monkeypatch.setattr(flux, "TEXT_LENGTHS", ((32, 1.0),))
    torch.manual_seed(0)
    start = FluxText()
    before = copy.deepcopy(start.state_dict()), copy.deepcopy(teacher.state_dict())
    trained = train_flux(latents, SCENES, updates=1, start=(start, teacher))
    for module, old in zip(trained, before, strict=True):
        assert any(not torch.equal(value, old[name]) for name, value in module.state_dict().items())


def test_the_schedule_is_that_of_flux_dev():
    """At 4096 image tokens FLUX.1-dev's mu is 1.15, at 256 it is 0.5: shift exp(mu)."""
    scheduler = new_scheduler()
    for mu in (0.5, 1.15):
        scheduler.set_timesteps(sigmas=np.array([0.5]), mu=mu)
        shift = float(np.exp(mu))
        assert scheduler.sigmas[0].item() == pytest.approx(shift * 0.5 / (1 + (shift - 1) * 0.5))
