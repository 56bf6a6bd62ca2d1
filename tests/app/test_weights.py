"""Weights of every form in the page's services: their notices, a LoRA's weight, ids of the hub, the first download."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from app.arguments import as_arguments
from app.services.compare import compare
from app.services.device import StopFlag, Stopped
from app.services.engine import Engine
from app.services.models import Catalogue, Model, is_full_size
from app.services.requests import BadInput, CompareRequest
from app.services.studio import Studio
from app.state import Options
from app.tabs.compare import Handlers
from srpo.policies import conversion
from srpo.policies.flux import FluxPolicy
from srpo.policies.places import FP8_NOTICE
from tests.policies.forms import save, to_bfl, to_fp8, write_gguf
from tests.policies.hub_server import COMMIT, Hub, Repository, put_into, running
from tests.tiny import save_tiny_flux, tiny_flux_pipeline

FLUX, SRPO = "black-forest-labs/FLUX.1-dev", "tencent/SRPO"
REQUEST = {"prompt": "a red ball", "seed": 5, "steps": 2, "width": 32, "height": 32, "left": "base"}


def drawn(studio, right, left="base"):
    request = CompareRequest(**REQUEST | {"left": str(left)}, right=str(right))
    return list(compare(studio, request, StopFlag()))[-1]


@pytest.fixture(scope="module")
def tuned():
    return tiny_flux_pipeline(seed=1).transformer


@pytest.mark.parametrize("form", ["fp8", "gguf", "bfl"])
def test_a_form_is_drawn_with_and_what_its_rounding_costs_is_said(studio, tuned, tmp_path, form):
    if form == "gguf":
        file = write_gguf(to_bfl(tuned), tmp_path / "srpo.gguf", "Q8_0")
    else:
        weights = to_bfl(tuned, "model.diffusion_model.")
        file = save(to_fp8(weights) if form == "fp8" else weights, tmp_path / "srpo.safetensors")
    view = drawn(studio, file, left=file)
    assert view.phase == "done", view.message
    whole = drawn(studio, "srpo", left="srpo")
    with Image.open(view.pairs[0].left) as ours, Image.open(whole.pairs[0].left) as theirs:
        near = np.abs(np.asarray(ours, dtype=float) - np.asarray(theirs, dtype=float)).mean() / 255
    assert near < (0.02 if form == "fp8" else 0.005)
    assert (FP8_NOTICE in view.notice) == (form == "fp8")
    assert ("quantised to 8 bits" in view.notice) == (form == "gguf")
    assert whole.notice == ""


@pytest.fixture
def lora(tmp_path):
    generator = torch.Generator().manual_seed(0)
    weights = {
        "transformer.x_embedder.lora_A.weight": torch.randn(4, 64, generator=generator),
        "transformer.x_embedder.lora_B.weight": 0.1 * torch.randn(32, 4, generator=generator),
    }
    return save(weights, tmp_path / "style.safetensors")


def test_a_lora_takes_a_weight_behind_its_path(studio, lora):
    model = studio.catalogue.find(f"{lora}@0.5")
    assert (model.label, model.weights, model.weight) == ("style × 0.5", lora, 0.5)
    differences = [drawn(studio, place).pairs[0].mean_difference for place in (f"{lora}@0", f"{lora}@0.5", lora)]
    assert differences[0] == 0 and 0 < differences[1] < differences[2]


def test_a_weight_that_is_none_is_refused_or_part_of_the_name(studio, lora):
    with pytest.raises(BadInput, match=r"weight of a LoRA must lie between -4 and 4, not at 40"):
        studio.catalogue.find(f"{lora}@40")
    with pytest.raises(BadInput, match="There is no model at"):
        studio.catalogue.find(f"{lora}@much")


def test_the_srpo_option_takes_a_weight_too(options, lora):
    named = Options(model=options.model, srpo=Path(f"{lora}@0.8"))
    (_, model) = Catalogue(named).models()
    assert (model.label, model.weights, model.weight) == ("SRPO × 0.8", lora, 0.8)
    assert f"{lora}@0.8" in as_arguments(named)
    catalogue = Catalogue(named)
    for weight, name in ((0.8, "srpo"), (1.0, "srpo@1.00"), (0.25, "srpo@0.25")):
        weighed = catalogue.weighted(model, weight)
        assert (weighed.id, weighed.weight) == (name, weight) and catalogue.find(name) == weighed
    with pytest.raises(BadInput, match="may be at most 4, not 5"):
        catalogue.find("srpo@5.00")


def test_a_large_float32_file_is_converted_before_the_first_picture_and_read_from_there(
    tmp_path, tuned, monkeypatch, options
):
    monkeypatch.setenv("SRPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(conversion, "SHARD_BYTES", 1000)
    file = save(tuned.state_dict(), tmp_path / "srpo.safetensors")
    pipe = tiny_flux_pipeline()
    pipe.transformer.to(torch.bfloat16)
    engine = Engine(FluxPolicy(pipe, max_sequence_length=16), None, 1024)
    model = Model("srpo", "SRPO", file)
    said = list(engine.convert([model], StopFlag()))
    assert said[-1].startswith("Converting SRPO, this once: ") and len(said) > 10
    assert list(engine.convert([model], StopFlag())) == []
    assert engine._place(model) == next((tmp_path / "cache" / "weights").iterdir())
    (policy,) = engine.policies([model])
    expected = tiny_flux_pipeline(seed=1).transformer.to(torch.bfloat16).state_dict()
    assert all(torch.equal(it, expected[name]) for name, it in policy.transformer.state_dict().items())


def test_a_conversion_stops_and_a_full_disk_is_no_end(tmp_path, tuned, monkeypatch):
    monkeypatch.setenv("SRPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(conversion, "SHARD_BYTES", 1000)
    model = Model("srpo", "SRPO", save(tuned.state_dict(), tmp_path / "srpo.safetensors"))
    pipe = tiny_flux_pipeline()
    pipe.transformer.to(torch.bfloat16)
    engine, stop = Engine(FluxPolicy(pipe, max_sequence_length=16), None, 1024), StopFlag()
    steps = engine.convert([model], stop)
    next(steps)
    stop.set()
    with pytest.raises(Stopped):
        next(steps)
    steps.close()
    monkeypatch.setattr(conversion, "_require_room", without_room)
    assert list(engine.convert([model], StopFlag())) == []
    assert engine._place(model) == model.weights and len(engine.policies([model])) == 1


def test_a_second_use_waits_for_the_conversion_under_way(tmp_path, tuned, monkeypatch):
    monkeypatch.setenv("SRPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(conversion, "SHARD_BYTES", 1000)
    model = Model("srpo", "SRPO", save(tuned.state_dict(), tmp_path / "srpo.safetensors"))
    pipe = tiny_flux_pipeline()
    pipe.transformer.to(torch.bfloat16)
    engine = Engine(FluxPolicy(pipe, max_sequence_length=16), None, 1024)
    first, second = engine.convert([model], StopFlag()), engine.convert([model], StopFlag())
    next(first)
    assert next(second) == "Waiting for weights that are being converted, this once."
    list(first)
    assert list(second) == []
    foreign = Model("other", "Other", save({"x_embedder.weight": torch.zeros(5000)}, tmp_path / "other.safetensors"))
    with pytest.raises(BadInput, match="does not fit this model"):
        list(engine.convert([foreign], StopFlag()))


def without_room(*arguments):
    raise ValueError("too little room")


# Ids of the hub


@pytest.fixture
def cache(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))  # for the download's own process
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return tmp_path / "hub"


def test_ids_that_were_downloaded_are_used_where_they_lie_and_keep_their_names(cache, tuned):
    flux = put_into(cache, FLUX, save_tiny_flux)
    srpo = put_into(
        cache, SRPO, lambda folder: save(tuned.state_dict(), folder / "diffusion_pytorch_model.safetensors")
    )
    options = Options(model=Path(FLUX), srpo=Path(SRPO), device="cpu")
    assert (options.model, options.srpo, options.absent) == (flux, srpo, [])
    catalogue = Catalogue(options)
    assert [model.label for model in catalogue.models()] == ["FLUX.1-dev", "SRPO"]
    said = catalogue.licences()
    assert "<b>FLUX.1-dev</b> weights: FLUX.1 [dev] Non-Commercial License" in said and "academic use only" in said
    assert len(Engine.load(options).policies(catalogue.models())) == 2


@pytest.mark.parametrize(
    ("model", "name"),
    [("black-forest-labs/FLUX.1-Krea-dev", "FLUX.1-Krea-dev"), (FLUX, "FLUX.1-dev"), ("someone/other", "other")],
)
def test_an_id_that_is_not_here_keeps_its_name_and_size(cache, model, name):
    options = Options(model=Path(model), srpo=Path(SRPO))
    assert options.absent == [model, SRPO]
    catalogue = Catalogue(options)
    assert catalogue.base_name == name and is_full_size(options.model) and catalogue.native_side == 1024
    assert ("Non-Commercial License of Black Forest Labs" in catalogue.licences()) == (name != "other")
    assert [it.id for it in catalogue.models()] == ["base"]
    with pytest.raises(BadInput, match=rf"tencent/SRPO is not in {cache}; download it first, with `python -m srpo"):
        catalogue.find("srpo")
    with pytest.raises(BadInput, match=rf"{model} is not in {cache}"):
        Engine.load(options)


def test_nothing_is_downloaded_at_the_start_and_everything_at_the_first_use(cache, tuned, tmp_path, monkeypatch):
    files = contents(save_tiny_flux(tmp_path / "flux"))
    weights = save(tuned.state_dict(), tmp_path / "srpo.safetensors").read_bytes()
    repositories = {FLUX: Repository(files), SRPO: Repository({"diffusion_pytorch_model.safetensors": weights})}
    with running(Hub(repositories)) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.address)
        studio = Studio(Options(model=Path(FLUX), srpo=Path(SRPO)))
        try:
            studio.start()
            studio._thread.join()
            assert served.asked == []
            status = studio.status()
            assert (status.phase, status.message) == (
                "loading",
                f"Not here yet: {FLUX} and {SRPO}. The first picture downloads it.",
            )
            request = CompareRequest(**REQUEST, right="base")
            said = [view.message for view in compare(studio, request, StopFlag())]
            assert any(text.startswith(f"Downloading {FLUX}: ") and " GB" in text for text in said), said
            assert said[-1].startswith("1 pair in ")
            assert studio.options.absent == [] and studio.options.model.name == COMMIT
            while studio.status().phase != "ready":
                time.sleep(0.05)
            assert drawn(studio, "srpo").pairs[0].mean_difference > 0.001
        finally:
            studio.pictures.close()


def test_stop_ends_a_download_and_the_next_use_begins_it_again(cache, tmp_path, monkeypatch):
    repositories = {FLUX: Repository(contents(save_tiny_flux(tmp_path / "flux")))}
    with running(Hub(repositories, wait_s=60)) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.address)
        studio, stop = Studio(Options(model=Path(FLUX))), StopFlag()
        try:
            request = CompareRequest(**REQUEST, right="base")
            began_s = time.monotonic()
            for view in compare(studio, request, stop):
                if view.message.startswith("Downloading"):
                    stop.set()
            assert view.phase == "stopped"
            studio._thread.join(10)
            assert not studio._thread.is_alive() and time.monotonic() - began_s < 30
            served.wait_s = 0
            assert list(compare(studio, request, StopFlag()))[-1].phase == "done"
        finally:
            studio.pictures.close()


def test_a_gated_model_says_where_the_token_goes(cache, monkeypatch):
    repository = Repository({"model_index.json": b"{}"}, gated="auto", token="hf_good")
    with running(Hub({FLUX: repository})) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.address)
        studio = Studio(Options(model=Path(FLUX)))
        try:
            with pytest.raises(BadInput, match=r"is gated: accept its licence on huggingface.co/.* set HF_TOKEN"):
                list(compare(studio, CompareRequest(**REQUEST, right="base"), StopFlag()))
        finally:
            studio.pictures.close()


def test_offline_says_where_it_looked(cache):
    studio = Studio(Options(model=Path(FLUX), downloads=False))
    try:
        with pytest.raises(BadInput, match=rf"black-forest-labs/FLUX.1-dev is not in {cache}; download it first"):
            list(compare(studio, CompareRequest(**REQUEST, right="base"), StopFlag()))
        assert studio.status().phase == "failed"
    finally:
        studio.pictures.close()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(it.relative_to(folder)): it.read_bytes() for it in sorted(folder.rglob("*")) if it.is_file()}


# The slider


@pytest.fixture
def lora_run(options, tmp_path, lora):
    """A studio with a finished run whose weights are a LoRA."""
    from tests.app.folders import make_run

    run = make_run(tmp_path / "runs", "style", config={"weights": "lora"})
    (run.path / "pytorch_lora_weights.safetensors").write_bytes(lora.read_bytes())
    studio = Studio(Options(model=options.model, srpo=options.srpo, reward=options.reward, runs=tmp_path / "runs"))
    yield studio
    studio.pictures.close()


def test_a_run_that_trained_a_lora_takes_a_weight(lora_run):
    catalogue = lora_run.catalogue
    half = catalogue.find("run:style@0.50")
    assert (half.id, half.label, half.weight) == ("run:style@0.50", "Run style × 0.5", 0.5)
    assert catalogue.weighted(half, 1.0) == catalogue.find("run:style")
    assert catalogue.weighted(half, -0.25).id == "run:style@-0.25"
    with pytest.raises(BadInput, match="SRPO is no LoRA, so it has no weight"):
        catalogue.find("srpo@0.50")
    with pytest.raises(BadInput, match="no finished run 'style@7'"):
        catalogue.find("run:style@7")


def test_the_slider_shows_for_a_lora_and_sets_its_weight(lora_run):
    do = Handlers(lora_run)
    assert do.weight_of("base", "srpo")["visible"] is False
    assert do.weight_of("base", "nowhere")["visible"] is False
    shown = do.weight_of("base", "run:style@0.30")
    assert (shown["visible"], shown["value"]) == (True, 0.3)
    left, right = do.weigh(0.65, "base", "run:style@0.30")
    assert right["value"] == "run:style@0.65" and ("Run style × 0.65", "run:style@0.65") in right["choices"]
    assert "value" not in left
    assert do.weigh(1, "base", "run:style@0.65")[1]["value"] == "run:style"
    assert "value" not in do.weigh("much", "base", "run:style")[1]
