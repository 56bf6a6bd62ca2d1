"""Memory modes in the page's services: the same pictures in each that loses nothing, coarse pairs refused, a choice."""

import json
import time
from dataclasses import replace

import pytest
import torch
from PIL import Image

from app.services import engine as engines
from app.services.compare import compare, require_comparable
from app.services.device import StopFlag, Stopped
from app.services.engine import Engine, Step
from app.services.grid import paint_grid
from app.services.models import Model
from app.services.requests import BadInput, CompareRequest, GridRequest
from app.services.studies import Studies
from app.services.study_pictures import make_pictures
from app.services.study_plans import Sources, write_sources
from app.tabs.compare import MEMORY_MODES
from app.tabs.compare import Handlers as CompareHandlers
from app.tabs.studies import Handlers as StudyHandlers
from srpo.policies.placement import (
    AUTO,
    DIFFERENCE,
    MODES,
    OFFLOAD,
    PINNED,
    QUANTIZED,
    RESIDENT,
    SWAP,
    Memory,
    Placement,
)
from tests.app.test_study_plans import saved
from tests.policies.forms import save, to_bfl, to_fp8, write_gguf
from tests.tiny import tiny_flux_pipeline

REQUEST = {"prompt": "a red ball", "seed": 5, "steps": 2, "width": 32, "height": 32, "left": "base", "right": "srpo"}
PATIENCE_S = 60


def drawn(studio, **changes):
    return list(compare(studio, CompareRequest(**REQUEST | changes), StopFlag()))


def pixels(view):
    found = []
    for path in (view.pairs[0].left, view.pairs[0].right):
        with Image.open(path) as image:
            found.append(image.tobytes())
    return found


def ready(studio):
    """The studio once its models are there."""
    studio.start()
    studio._thread.join(PATIENCE_S)
    assert studio.status().phase == "ready", studio.status()
    return studio


@pytest.fixture(scope="module")
def coarse(tmp_path_factory):
    """Weights by the name of their form."""
    root, tuned = tmp_path_factory.mktemp("forms"), tiny_flux_pipeline(seed=1).transformer
    return {
        "fp8": save(to_fp8(to_bfl(tuned)), root / "fp8.safetensors"),
        "Q4_0": write_gguf(to_bfl(tuned), root / "q4.gguf", "Q4_0"),
        "Q8_0": write_gguf(to_bfl(tuned), root / "q8.gguf", "Q8_0"),
    }


# The same pictures in every mode


@pytest.mark.parametrize(
    ("memory", "form"), [(RESIDENT, ""), (SWAP, DIFFERENCE), (SWAP, PINNED), (OFFLOAD, "")], ids=lambda value: value
)
def test_a_comparison_is_the_same_to_the_bit_in_every_mode_and_says_how_it_was_kept(
    studio, unloaded, monkeypatch, memory, form
):
    expected = pixels(drawn(studio)[-1])
    if form == PINNED:  # which a machine with one memory is never given
        monkeypatch.setattr(engines, "choose", lambda *asked: Placement(SWAP, PINNED))
    other = ready(unloaded(memory=memory))
    assert (other._engine.placement.mode, other._engine.placement.form) == (memory, form)
    views = drawn(other)
    assert pixels(views[-1]) == expected
    steps = [view.message for view in views if view.message.startswith("Step ")]
    turns = form == PINNED or memory == OFFLOAD
    # One after the other where a change of model is dear, else each step together.
    assert list(dict.fromkeys(steps)) == [f"Step {done} of {4 if turns else 2}" for done in range(1, 5 if turns else 3)]
    with Image.open(views[-1].pairs[0].right) as image:
        record = json.loads(image.text["srpo_studio"])
    assert (record["memory"], record["compile"], record["attention"], record["dtype"]) == (
        *(memory, False, "native"),
        "float32",
    )
    said = other.arrangement()
    assert said.startswith(f"Memory: {memory}") and "Attention: native, for all models alike." in said
    assert ("The last change of model took" in said) == (memory == SWAP)


def test_a_side_that_waits_for_its_turn_shows_the_noise_it_begins_with(studio, unloaded):
    other = ready(unloaded(memory=OFFLOAD))
    engine = other._engine
    policies = engine.policies([other.catalogue.find(name) for name in ("base", "srpo")])
    settings = CompareRequest(**REQUEST)
    events = list(engine.paint(policies, engine.encode("a red ball"), settings, 5, StopFlag()))
    steps = [event for event in events if isinstance(event, Step)]
    noise = engine.base.preview(engine.base.initial_noise(5, 32, 32))
    waits = [step.previews[1].tobytes() == engines.to_pil(noise).tobytes() for step in steps]
    assert waits == [True, True, False, False]
    assert steps[1].previews[0].tobytes() == steps[3].previews[0].tobytes()


def test_stop_ends_sides_that_take_turns_within_a_step(unloaded, monkeypatch):
    other, stop, evaluations = ready(unloaded(memory=OFFLOAD)), StopFlag(), []
    whole = type(other._engine.base).velocity
    monkeypatch.setattr(type(other._engine.base), "velocity", lambda *a: evaluations.append(1) or whole(*a))
    settings = CompareRequest(**REQUEST)
    policies = other._engine.policies([other.catalogue.find(name) for name in ("base", "srpo")])
    painting = other._engine.paint(policies, other._engine.encode("a red ball"), settings, 5, stop)
    for _ in range(3):
        next(painting)
    stop.set()
    with pytest.raises(Stopped):
        list(painting)
    assert len(evaluations) == 3


def test_both_sides_of_a_comparison_are_run_alike_or_not_at_all(studio):
    """Whatever would give one side another precision, kernel or compilation is caught before it draws."""
    engine = studio._engine
    base, srpo = engine.policies([studio.catalogue.find(name) for name in ("base", "srpo")])
    settings, cond = CompareRequest(**REQUEST), engine.encode("a red ball")
    processor = srpo.transformer.transformer_blocks[0].attn.processor
    before = processor._attention_backend
    processor._attention_backend = "_native_math"
    try:
        with pytest.raises(RuntimeError, match="run in different ways"):
            next(engine.paint([base, srpo], cond, settings, 5, StopFlag()))
    finally:
        processor._attention_backend = before
    narrow = base.with_transformer(tiny_flux_pipeline().transformer.to(torch.bfloat16))
    with pytest.raises(RuntimeError, match="run in different ways"):
        next(engine.paint([base, narrow], cond, settings, 5, StopFlag()))
    assert isinstance(next(engine.paint([base, srpo], cond, settings, 5, StopFlag())), Step)


# What cannot be had


def test_what_cannot_work_here_is_one_sentence_before_anything_is_loaded(options, unloaded, monkeypatch):
    monkeypatch.setattr(engines.FluxPolicy, "from_pretrained", None)  # nothing may come this far
    cases = {
        "There is no device cuda here: start with --device cpu": {"device": "cuda"},
        "There is no kind of device 'warp': choose cpu": {"device": "warp"},
        "There is no attention 'flash' on cpu here: choose native, or auto": {"attention": "flash"},
        "--compile needs weights that stay as they are": {"memory": OFFLOAD, "compile": True},
    }
    for sentence, changes in cases.items():
        with pytest.raises(BadInput, match=sentence):
            Engine.load(unloaded(**changes).options)
    monkeypatch.setattr(engines, "measure", lambda device: Memory("cpu", 1000, 1000))
    with pytest.raises(BadInput, match=r"Two models take .* with any memory mode that loses nothing"):
        Engine.load(options)


def test_a_model_without_room_is_refused_before_it_is_read(studio, monkeypatch):
    studio._engine._resident.clear()
    monkeypatch.setattr(engines, "measure", lambda device: Memory("cpu", 1000, 1000))
    monkeypatch.setattr(studio._engine.models, "load", None)
    with pytest.raises(BadInput, match=r"too little free memory to load SRPO beside the base model: .* are needed"):
        drawn(studio)


# Coarse pairs


@pytest.mark.parametrize(("form", "words"), [("fp8", r"fp8 \(e4m3fn\)"), ("Q4_0", "GGUF Q4_0")])
def test_pairs_of_coarse_weights_are_refused_in_compare_and_in_the_grid_and_single_pictures_are_drawn(
    studio, coarse, form, words
):
    file = str(coarse[form])
    reason = f"is stored in {words}, which rounds weights by several times what SRPO changed"
    for sides in ({"right": file}, {"left": file, "right": "srpo"}):
        with pytest.raises(BadInput, match=reason):
            drawn(studio, **sides)
    rest = {name: REQUEST[name] for name in ("seed", "steps", "width", "height")}
    with pytest.raises(BadInput, match=reason):
        list(paint_grid(studio, GridRequest(prompts="a red ball", models=["base", file], **rest), StopFlag()))
    assert drawn(studio, left=file, right=file)[-1].phase == "done"
    alone = list(paint_grid(studio, GridRequest(prompts="a red ball", models=[file], **rest), StopFlag()))[-1]
    assert alone.phase == "done" and alone.rows[0].pictures[0] is not None


def test_q8_is_allowed_with_a_word_of_warning(studio, coarse):
    view = drawn(studio, right=str(coarse["Q8_0"]))[-1]
    assert view.phase == "done" and "quantised to 8 bits" in view.notice


def test_a_study_of_coarse_weights_is_refused_when_it_is_planned_and_when_it_is_drawn(
    studio, options, coarse, tmp_path, monkeypatch
):
    monkeypatch.setattr(studio, "studies", Studies(replace(options, studies=tmp_path / "studies")))
    do = StudyHandlers(studio)
    with pytest.raises(BadInput, match="q4 is stored in GGUF Q4_0"):
        saved(do, models=["base", str(coarse["Q4_0"])])
    study = saved(do, models=["base", str(coarse["Q8_0"])])
    key = next(model.key for model in study.plan.models if model.key != "base")
    hashes = {model.key == "base": model.weights_sha256 for model in study.plan.models}
    write_sources(studio, study.id, Sources(weights={key: str(coarse["Q4_0"])}))  # the file was replaced meanwhile
    monkeypatch.setattr(studio.catalogue, "sha256", lambda model: hashes[model.id == "base"])
    with pytest.raises(BadInput, match="q4 is stored in GGUF Q4_0"):
        list(make_pictures(studio, study.id, StopFlag()))


def test_quantized_draws_single_pictures_and_refuses_pairs(unloaded):
    other = ready(unloaded(memory=QUANTIZED))
    with pytest.raises(BadInput, match=r"With --memory quantized all weights are rounded .* with --memory offload"):
        drawn(other)
    view = drawn(other, left="srpo")[-1]
    assert view.phase == "done"
    with Image.open(view.pairs[0].left) as image:
        record = json.loads(image.text["srpo_studio"])
    assert (record["memory"], record["rounded_to"], record["dtype"]) == (QUANTIZED, "Q8_0", "float32")


def test_one_model_twice_is_no_pair(studio, coarse):
    model = Model("x", "x", coarse["Q4_0"])
    require_comparable(studio, [model, model])
    with pytest.raises(BadInput):
        require_comparable(studio, [model, Model("base", "FLUX", None)])


# The choice on the page


def test_another_mode_can_be_chosen_while_the_app_runs_and_draws_the_same(studio, unloaded):
    expected = pixels(drawn(studio)[-1])
    other = ready(unloaded())
    do = CompareHandlers(other)
    assert do.arrangement()[0]["value"] == AUTO and "Memory: resident" in do.arrangement()[1]
    refused, status, timer = do.rearrange(SWAP)
    assert refused == "" and "Loading models" in status and timer.active
    other._thread.join(PATIENCE_S)
    assert do.arrangement()[0]["value"] == SWAP and "Memory: swap (difference)" in do.arrangement()[1]
    assert pixels(drawn(other)[-1]) == expected


def test_a_mode_that_does_not_fit_brings_the_one_before_back_and_says_why(unloaded, monkeypatch):
    other = ready(unloaded())
    choose = engines.choose

    def without_swap(asked, sizes, memory):
        if asked == SWAP:
            raise ValueError("There is no room for a swap.")
        return choose(asked, sizes, memory)

    monkeypatch.setattr(engines, "choose", without_swap)
    other.rearrange(SWAP)
    other._thread.join(PATIENCE_S)
    assert other.memory == AUTO and other.status().phase == "ready"
    assert other.status().message == "There is no room for a swap."
    assert drawn(other)[-1].phase == "done"


def test_the_mode_is_not_changed_under_work_that_runs(unloaded):
    other = ready(unloaded())
    do = CompareHandlers(other)
    assert "is one of auto" in do.rearrange("best")[0]
    working = compare(other, CompareRequest(**REQUEST), StopFlag())
    while next(working).phase != "running":
        time.sleep(0)
    assert "The device is at work" in do.rearrange(SWAP)[0]
    working.close()
    assert do.rearrange(SWAP)[0] == ""
    other._thread.join(PATIENCE_S)


def test_the_page_offers_every_mode():
    assert [mode for _, mode in MEMORY_MODES] == list(MODES)
