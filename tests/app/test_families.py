"""The whole studio over FLUX.2 klein: `--model FOLDER` is all that it takes."""

import json

import pytest
import torch
from PIL import Image

from app.services.compare import compare
from app.services.device import StopFlag
from app.services.metadata import read_request
from app.services.models import Catalogue
from app.services.recoveries import Kept, recoveries
from app.services.recovery_requests import RecoverRequest
from app.services.requests import BadInput, CompareRequest, parse
from app.services.studio import DISTILLED, Studio
from app.state import Options
from srpo.evaluation.sheets import KEY
from srpo.policies.checkpoints import save_transformer
from srpo.policies.flux2 import Flux2KleinPolicy
from tests.tiny import save_tiny_flux, save_tiny_klein, tiny_flux_pipeline, tiny_klein_pipeline

REQUEST = CompareRequest(prompt="a red ball", seed=5, steps=2, width=48, height=32, left="base", right="srpo")


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    root = tmp_path_factory.mktemp("klein")
    save_tiny_klein(root / "klein")
    save_transformer(tiny_klein_pipeline(seed=1).transformer, root / "srpo.safetensors", torch.float32)
    return Options(
        model=root / "klein", srpo=root / "srpo.safetensors", runs=root / "runs", studies=root / "studies", device="cpu"
    )


@pytest.fixture(scope="module")
def studio(options):
    studio = Studio(options)
    studio.start()
    studio._thread.join()
    assert studio.status().phase == "ready", studio.status()
    yield studio
    studio.pictures.close()


def test_a_pair_is_painted_and_its_pictures_restore_the_comparison(studio):
    views = list(compare(studio, REQUEST, StopFlag()))
    assert views[-1].phase == "done", views[-1].message
    assert any(view.phase == "running" and view.message.startswith("Step 1 of 2") for view in views)
    pair = views[-1].pairs[0]
    assert pair.mean_difference > 0.001
    with Image.open(pair.right) as image:
        assert image.size == (48, 32)
        record, texts = json.loads(image.text[KEY]), image.text
    assert read_request(pair.right).settings == REQUEST
    assert record["base"]["name"] == "FLUX.2 klein (klein)" and "workflow" not in texts  # ComfyUI's is FLUX.1's


def test_the_same_seed_paints_the_same_pair_by_the_pipelines_own_call(studio):
    pair = list(compare(studio, REQUEST, StopFlag()))[-1].pairs[0]
    policy = studio._engine.base
    assert type(policy) is Flux2KleinPolicy
    theirs = policy.pipe(
        prompt=REQUEST.prompt,
        num_inference_steps=2,
        guidance_scale=REQUEST.guidance,
        width=48,
        height=32,
        generator=torch.Generator().manual_seed(5),
    ).images[0]
    with Image.open(pair.left) as ours:
        worst = max(abs(a - b) for a, b in zip(ours.convert("RGB").tobytes(), theirs.tobytes(), strict=True))
    assert worst <= 1  # of 255


def test_recoveries_fill_their_grid(studio):
    asked = {"source": "generate", "models": ["base", "srpo"], "sigmas": [0.9, 0.5], "d_sigmas": "0.075"}
    plain = {"prompt": "a red ball", "painter": "base", "seed": 5, "steps": 2, "guidance": 3.5, "width": 48}
    request = parse(RecoverRequest, asked | plain | {"height": 32, "noise_seed": 9})
    last = list(recoveries(studio, request, None, None, Kept(), StopFlag()))[-1]
    assert last.phase == "done", last.message
    with Image.open(last.original) as image:
        assert image.size == (48, 32)


def test_a_prompt_that_is_too_long_is_counted_with_its_chat(studio):
    empty, limit = studio.count_tokens("")
    assert studio.count_tokens("abc") == (empty + 3, limit) and empty > 10
    with pytest.raises(BadInput, match=f"this model reads {limit}"):
        list(compare(studio, REQUEST.model_copy(update={"prompt": "x" * limit}), StopFlag()))


def test_weights_of_another_family_are_refused_in_one_sentence(studio, tmp_path):
    foreign = save_transformer(tiny_flux_pipeline().transformer, tmp_path / "flux.safetensors", torch.float32)
    with pytest.raises(BadInput, match=r"flux\.safetensors does not fit this model: it lacks"):
        list(compare(studio, REQUEST.model_copy(update={"right": str(foreign)}), StopFlag()))


def test_a_visitor_of_a_distilled_model_is_told_of_its_steps_and_guidance(studio, tmp_path):
    assert studio.notice(REQUEST) == ""
    for folder, says in (
        (save_tiny_klein(tmp_path / "distilled", is_distilled=True), DISTILLED),
        (save_tiny_flux(tmp_path / "flux"), ""),
    ):
        other = Studio(Options(model=folder))
        try:
            assert other.notice(REQUEST) == says
        finally:
            other.pictures.close()


def test_the_catalogue_names_the_family_of_an_unknown_model(options, tmp_path):
    assert Catalogue(options).base_name == "FLUX.2 klein (klein)"
    assert Catalogue(Options(model=save_tiny_flux(tmp_path / "mine"))).base_name == "FLUX (mine)"


def test_a_pipeline_of_another_class_is_one_sentence_on_the_page(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "QwenImagePipeline"}))
    studio = Studio(Options(model=tmp_path))
    try:
        studio.start()
        studio._thread.join()
        status = studio.status()
        assert status.phase == "failed"
        assert (
            "holds a QwenImagePipeline; choose the folder of a FluxPipeline or a Flux2KleinPipeline" in status.message
        )
    finally:
        studio.pictures.close()
