"""The weights in assets/miniature, as they lie there."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from diffusers import FluxPipeline
from safetensors import safe_open
from safetensors.torch import load_file

from srpo.evaluation.sampling import sample_images
from srpo.flow.samplers import euler
from srpo.miniature import paths
from srpo.miniature.card import CARD, FIGURES, README
from srpo.miniature.figures import judged, styled
from srpo.miniature.judge import Judge
from srpo.miniature.world import neutral_prompts
from srpo.policies.checkpoints import load_transformer
from srpo.policies.flux import FluxPolicy

PROMPT = "Photo. a red ball on a beach at sunset"


@pytest.fixture(scope="module")
def miniature() -> FluxPolicy:
    return FluxPolicy.from_pretrained(paths.FLUX, max_sequence_length=64)


def test_the_pipeline_runs_with_nothing_of_this_project_imported():
    code = (
        "import sys; from diffusers import FluxPipeline\n"
        f"pipe = FluxPipeline.from_pretrained({str(paths.FLUX)!r}, local_files_only=True)\n"
        f"image = pipe({PROMPT!r}, height=128, width=128, num_inference_steps=2, max_sequence_length=32).images[0]\n"
        "assert image.size == (128, 128), image.size\n"
        "assert not [m for m in sys.modules if m.split('.')[0] in ('srpo', 'app')]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=paths.ROOT)


def test_our_loop_and_the_pipeline_give_the_same_latents(miniature):
    noise, cond = miniature.initial_noise(7, 128, 128), miniature.encode_prompts([PROMPT])
    with torch.no_grad():
        *_, last = euler(
            lambda x_t, sigma: miniature.velocity(x_t, sigma, cond, 3.5), noise, miniature.schedule(28, 128, 128)
        )
    theirs = miniature.pipe(
        PROMPT,
        height=128,
        width=128,
        num_inference_steps=28,
        guidance_scale=3.5,
        max_sequence_length=64,
        generator=torch.Generator().manual_seed(7),
        output_type="latent",
    ).images
    unpacked = FluxPipeline._unpack_latents(theirs, 128, 128, miniature.pipe.vae_scale_factor)
    assert (last.x_t - unpacked).abs().max() < 1e-4


@pytest.mark.parametrize("length", [32, 64, 512])
def test_a_styled_prompt_is_followed_at_any_length_of_the_padding(length):
    policy = FluxPolicy.from_pretrained(paths.FLUX, max_sequence_length=length)
    prompts = styled(neutral_prompts("test"), 8, seed=1)
    images = sample_images(policy, [text for text, _ in prompts], range(8), num_steps=12)
    verdicts = Judge.from_pretrained(paths.JUDGE).verdict(images)
    assert sum(said["style"] == scene.style for said, (_, scene) in zip(verdicts, prompts, strict=True)) >= 7


def test_srpo_makes_photos_of_neutral_prompts_and_keeps_what_they_show(miniature):
    """Of 16 prompts the base's photos are few, SRPO's many: measured on 512 in the card, here on seeds of its own."""
    srpo = miniature.with_transformer(load_transformer(paths.SRPO, miniature.transformer))
    judge, prompts = Judge.from_pretrained(paths.JUDGE), neutral_prompts("test")[-16:]
    before, after = (judged(judge, policy, prompts, first_seed=4_000) for policy in (miniature, srpo))
    assert after.photo.sum() >= before.photo.sum() + 5
    assert after.content.sum() >= 12


def test_guidance_of_one_and_of_five_give_different_pictures(miniature):
    weak, strong = (sample_images(miniature, [PROMPT], [3], num_steps=8, guidance=g) for g in (1.0, 5.0))
    assert (weak - strong).abs().mean() > 0.01


def test_the_srpo_weights_need_no_more_than_load_state_dict():
    pipe = FluxPipeline.from_pretrained(paths.FLUX, local_files_only=True)
    before = {name: weight.clone() for name, weight in pipe.transformer.state_dict().items()}
    pipe.transformer.load_state_dict(load_file(paths.SRPO))
    changed = [name for name, weight in pipe.transformer.state_dict().items() if not torch.equal(weight, before[name])]
    assert len(changed) > len(before) / 2


def test_all_parts_are_stored_in_sixteen_bits_and_stay_small():
    files = sorted(paths.ROOT.rglob("*.safetensors"))
    assert sum(file.stat().st_size for file in files) < 40e6
    for file in files:
        with safe_open(file, "pt") as weights:
            kinds = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
        assert kinds <= {"F16", "BF16", "I64"}, (file, kinds)


def test_the_card_and_the_readme_show_the_measured_figures():
    photo = json.loads(FIGURES.read_text())["alignment"]["SRPO"]["photo"][0]
    assert f"{photo:.1%}" in CARD.read_text(encoding="utf-8")
    assert f"{photo:.1%}" in README.read_text(encoding="utf-8")
