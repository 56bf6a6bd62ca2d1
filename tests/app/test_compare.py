"""A comparison differs in the weights alone, shows every step, stops within one, and remembers how it was made."""

import base64
import hashlib
import io
import json
import pathlib
import shutil
import threading
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from app.services.compare import compare
from app.services.device import StopFlag
from app.services.grid import paint_grid
from app.services.metadata import differences, read_request
from app.services.models import Catalogue, Model
from app.services.requests import BadInput, CompareRequest, GridRequest
from tests.tiny import tiny_flux_pipeline

REQUEST = CompareRequest(
    prompt="a red ball", seed=5, steps=3, guidance=2.5, width=64, height=32, left="base", right="srpo"
)


def run(studio, stop=None, **changes):
    return list(compare(studio, REQUEST.model_copy(update=changes), stop or StopFlag()))


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


@pytest.mark.parametrize(("side", "seed_of_weights"), [("left", 0), ("right", 1)])
def test_each_side_is_what_its_pipeline_alone_draws_from_that_seed(studio, side, seed_of_weights):
    """Up to one level of 255, as the pipeline rounds in another place."""
    pipe = tiny_flux_pipeline(seed=0)
    pipe.transformer.load_state_dict(tiny_flux_pipeline(seed=seed_of_weights).transformer.state_dict())
    alone = pipe(
        "a red ball",
        height=32,
        width=64,
        num_inference_steps=3,
        guidance_scale=2.5,
        generator=torch.Generator().manual_seed(5),
        max_sequence_length=512,
    ).images[0]
    drawn = pixels(getattr(run(studio)[-1].pairs[0], side))
    assert np.abs(drawn - np.asarray(alone).astype(int)).max() <= 1


def test_the_same_model_on_both_sides_is_one_picture_painted_once(studio, monkeypatch):
    evaluations = []
    whole = type(studio._engine.base).velocity
    monkeypatch.setattr(type(studio._engine.base), "velocity", lambda *a: evaluations.append(1) or whole(*a))
    view = run(studio, right="base")[-1]
    assert len(evaluations) == REQUEST.steps
    (pair,) = view.pairs
    assert (pixels(pair.left) == pixels(pair.right)).all()
    assert pair.mean_difference == 0
    assert all(row.left == row.right for row in pair.rows)
    assert view.names[0] != view.names[1]


def test_two_models_differ_and_the_map_says_by_how_much(studio):
    (pair,) = run(studio)[-1].pairs
    gap = np.abs(pixels(pair.left) - pixels(pair.right)).mean() / 255
    assert pair.mean_difference == pytest.approx(gap, abs=1e-4) and gap > 0.01


def test_a_seed_gives_the_same_picture_alone_and_among_others(studio):
    among = run(studio, seed=4, num_seeds=2)[-1].pairs[1]
    alone = run(studio, seed=5)[-1].pairs[0]
    assert among.seed == alone.seed == 5
    assert (pixels(among.right) == pixels(alone.right)).all()


def test_a_control_word_changes_what_both_models_read(studio):
    plain, worded = run(studio)[-1], run(studio, control_word="Photo")[-1]
    assert worded.prompt == "Photo. a red ball"
    assert (pixels(plain.pairs[0].left) != pixels(worded.pairs[0].left)).any()
    assert (pixels(plain.pairs[0].right) != pixels(worded.pairs[0].right)).any()


def test_every_step_shows_the_predicted_pictures_and_how_far_it_is(studio):
    views = [view for view in run(studio, num_seeds=2) if view.previews]
    assert [view.message for view in views] == [f"Step {n} of 3" for n in (1, 2, 3)] * 2
    assert [view.share_done for view in views] == pytest.approx([n / 6 for n in range(1, 7)])
    assert views[0].left_s > 0 and views[-1].left_s == 0
    for address in views[0].previews:
        preview = Image.open(io.BytesIO(base64.b64decode(address.split(",")[1])))
        assert preview.size == (8, 4)


def test_the_table_holds_the_scores_of_the_pictures(studio):
    """The relative preference is the difference of the two rows above it; the last one is that of the plain text."""
    (pair,) = run(studio, control_word="Photo")[-1].pairs
    rows = {row.name: row for row in pair.rows}
    reward = studio._engine.scorer.reward
    image = torch.from_numpy(pixels(pair.right) / 255).float().permute(2, 0, 1)[None]
    alone = float(reward.score(image, ["a red ball"]))
    assert rows["Reward of the prompt alone"].right == pytest.approx(alone, abs=2e-2)
    for side in ("left", "right"):
        photo, drawing = (rows[f"Reward with {words} words in front"] for words in ("photo", "drawing"))
        gap = getattr(photo, side) - getattr(drawing, side)
        assert getattr(rows["Photo words − drawing words"], side) == pytest.approx(gap, abs=1e-6)
    assert 0 <= rows["Judged photo"].left <= 1
    assert rows["Judged content"].right.count(" · ") == 3


def test_without_a_reward_and_a_judge_the_pictures_come_alone_and_the_page_says_why(unloaded, options):
    studio = unloaded(reward=None, judge=None)
    view = run(studio)[-1]
    assert view.phase == "done" and view.pairs[0].rows == ()
    assert "Scores are off" in view.scores_note and "--reward FOLDER" in view.scores_note


def test_a_reward_that_cannot_be_loaded_is_named_and_the_judge_still_speaks(unloaded, tmp_path):
    view = run(unloaded(reward=tmp_path))[-1]
    assert str(tmp_path) in view.scores_note
    assert [row.name for row in view.pairs[0].rows] == ["Judged photo", "Judged style", "Judged content"]


def test_the_miniatures_reward_and_judge_score_the_miniature_alone(tmp_path):
    from app.state import Options
    from srpo.miniature import paths

    own, other = Options(), Options(model=tmp_path)
    assert (own.srpo, own.reward, own.judge) == (paths.SRPO, paths.REWARD, paths.JUDGE)
    assert (other.srpo, other.reward, other.judge) == (None, None, None)
    assert Options(reward=tmp_path).reward == tmp_path


def test_a_finished_picture_restores_its_comparison(studio, options):
    pair = run(studio, num_seeds=2, right="run:first-run")[-1].pairs[1]
    for path in (pair.left, pair.right, pair.difference):
        found = read_request(path)
        assert found.settings == REQUEST.model_copy(update={"seed": 6, "right": "run:first-run"})
        assert differences(found.made_with, studio.made_with()) == ""
    with Image.open(pair.right) as image:
        assert "Model: Run first-run" in image.text["parameters"]
        record = json.loads(image.text["srpo_studio"])
    base, trained = (
        hashlib.sha256((folder / "diffusion_pytorch_model.safetensors").read_bytes()).hexdigest()
        for folder in (options.model / "transformer", options.runs / "first-run")
    )
    assert record["base"] == {"name": "FLUX (flux)", "sha256": base}
    assert record["weights_sha256"] == {"base": base, "run:first-run": trained}
    assert (record["text_tokens"], record["dtype"], record["device"]) == (512, "float32", "cpu")


@pytest.mark.parametrize("at", [1, 2, 3])
def test_stop_lets_no_model_take_another_step(studio, monkeypatch, at):
    evaluations = []
    base = studio._engine.base
    whole = type(base).velocity
    monkeypatch.setattr(type(base), "velocity", lambda *a: evaluations.append(1) or whole(*a))
    stop, views = StopFlag(), []
    for view in compare(studio, REQUEST.model_copy(update={"num_seeds": 3}), stop):
        views.append(view)
        if view.message == f"Step {at} of 3" and not stop:
            stop.set()
            evaluations.clear()
    assert evaluations == []
    assert views[-1].phase == "stopped" and views[-1].pairs == ()
    with studio.device.turn() as turn:
        assert turn.ahead() == 0


def without_memory_of_a_gpu(*arguments, **keywords):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def without_memory(*arguments, **keywords):
    torch.empty(2**50)


@pytest.mark.parametrize("exhausted", [without_memory_of_a_gpu, without_memory])
def test_a_device_without_memory_is_named_with_the_size_and_given_back(studio, monkeypatch, exhausted):
    monkeypatch.setattr(type(studio._engine.base), "velocity", exhausted)
    with pytest.raises(BadInput, match="too little free memory to draw 64 × 32 pixels: choose a smaller size"):
        run(studio)
    with studio.device.turn() as turn:
        assert turn.ahead() == 0


def test_weights_that_do_not_fit_into_memory_are_named(studio, monkeypatch):
    from srpo.policies import residency

    studio._engine._resident.clear()
    monkeypatch.setattr(residency, "load_transformer", without_memory)
    with pytest.raises(BadInput, match="too little free memory to load SRPO beside the base model"):
        run(studio)


def test_running_out_of_memory_gives_the_tensors_of_the_work_back():
    from app.services.engine import memory_named

    made = []

    def work():
        tensor = torch.zeros(3)
        made.append(weakref.ref(tensor))
        torch.empty(2**50)

    with pytest.raises(BadInput) as error, memory_named("work"):
        work()
    assert made[0]() is None, error


def test_another_defect_is_not_taken_for_a_lack_of_memory():
    from app.services.engine import memory_named

    with pytest.raises(RuntimeError, match="must match"), memory_named("work"):
        torch.zeros(2) + torch.zeros(3)


def test_stop_after_the_first_seed_keeps_its_pair(studio):
    stop = StopFlag()
    for view in compare(studio, REQUEST.model_copy(update={"num_seeds": 3}), stop):
        if view.pairs:
            stop.set()
    assert view.phase == "stopped" and view.message == "Stopped after 1 of 3 seeds."
    assert [pair.seed for pair in view.pairs] == [5]


def test_a_page_that_is_closed_gives_the_device_back(studio):
    views = compare(studio, REQUEST, StopFlag())
    while next(views).phase != "running":
        pass
    views.close()
    with studio.device.turn() as turn:
        assert turn.ahead() == 0


def test_a_second_comparison_waits_and_can_be_stopped_while_it_waits(studio):
    with studio.device.turn():
        stop = StopFlag()
        views = compare(studio, REQUEST, stop)
        assert next(views).message == "Waiting for the device: 1 ahead of you."
        stop.set()
        assert list(views)[-1].phase == "stopped"


def test_steps_may_be_taken_on_different_threads(studio):
    """As Gradio does: a generator is resumed by whichever thread is free, and gradients belong to a thread."""
    views, seen = compare(studio, REQUEST, StopFlag()), []

    def resume():
        seen.append(next(views, None))

    while not seen or seen[-1] is not None:
        thread = threading.Thread(target=resume)
        thread.start()
        thread.join()
    assert seen[-2].phase == "done"


def test_generating_before_the_models_are_there_waits_for_them(unloaded):
    views = run(unloaded())
    assert views[0].phase == "waiting" and "still loading" in views[0].message
    assert views[-1].phase == "done"


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("prompt", "ball " * 600, "tokens and this model reads 512"),
        ("right", "/nowhere/model.safetensors", "There is no model at"),
        ("right", "run:unknown", "no finished run 'unknown'"),
        ("right", "x" * 300, "cannot be opened .File name too long"),
        ("right", "~nobody-of-that-name/x", "cannot be opened"),
        ("width", 528, "at most 512 pixels with this model, not 528 × 32"),
    ],
)
def test_what_only_the_models_can_tell_is_one_sentence_too(studio, field, value, says):
    with pytest.raises(BadInput, match=says):
        run(studio, **{field: value})


def test_a_folder_that_is_closed_to_us_is_one_sentence_too(studio, monkeypatch):
    def closed(path):  # as Path.exists does; a test that runs as root may open everything
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(pathlib.Path, "exists", closed)
    with pytest.raises(BadInput, match=r"'/closed/model' cannot be opened \(Permission denied\)"):
        Catalogue(replace(studio.options, srpo=None)).find("/closed/model")


def test_weights_that_vanish_after_they_were_chosen_are_one_sentence_too(studio, tmp_path):
    gone = tmp_path / "gone.safetensors"
    with pytest.raises(BadInput, match=r"gone\.safetensors cannot be read \(No such file"):
        studio._engine.policies([Model("gone", "gone", gone)])


def test_weights_that_cannot_be_read_are_one_sentence_too(studio, tmp_path):
    """A broken disk answers a read with EIO, and so does Linux at the first byte of a process's memory."""
    broken = tmp_path / "broken.safetensors"
    broken.symlink_to("/proc/self/mem")
    with pytest.raises(BadInput, match=r"cannot be read \(Input/output error\): choose another model"):
        studio._engine.policies([Model("broken", "broken", broken)])


def test_damaged_srpo_weights_leave_the_other_models_working(unloaded, tmp_path, caplog):
    (tmp_path / "notes.txt").write_text("no weights at all")
    studio = unloaded(srpo=tmp_path / "notes.txt")
    studio.start()
    studio._thread.join()
    assert studio.status().phase == "ready"
    assert "SRPO cannot be used" in studio.status().message and "notes.txt" in studio.status().message
    assert run(studio, right="run:first-run")[-1].phase == "done"
    with pytest.raises(BadInput, match=r"notes\.txt is damaged"):
        run(studio)
    assert [record.exc_info for record in caplog.records] == [None]  # the sentence alone, no traceback


def test_the_least_used_weights_make_room_within_the_budget(studio, options, tmp_path, monkeypatch):
    from app.services import engine

    base = studio._engine.base
    num_bytes = sum(weight.nbytes for weight in base.transformer.parameters())
    monkeypatch.setattr(engine, "CPU_BUDGET", 2 * num_bytes)
    ours = engine.Engine(base, studio._engine.scorer, 512)
    models = [Model(name, name, tmp_path / f"{name}.safetensors") for name in "abc"]
    for model in models:
        shutil.copy(options.srpo, model.weights)
    a, b, c = models
    first_a, first_b = ours.policies([a, b])
    assert ours.policies([a])[0] is first_a
    ours.policies([c])  # b was not used for the longest time
    assert ours.policies([a])[0] is first_a
    assert ours.policies([b])[0] is not first_b
    assert len({id(policy) for policy in ours.policies([a, b, c])}) == 3  # what is asked for together stays together
    assert len(ours._resident) == 3
    ours.policies([a])
    assert len(ours._resident) == 2


def test_the_miniature_keeps_full_precision_on_a_gpu(tmp_path):
    from app.services.engine import dtype_for
    from app.state import Options

    assert dtype_for(Options(device="cuda")) == torch.float32
    assert dtype_for(Options(model=tmp_path, device="cuda")) == torch.bfloat16
    assert dtype_for(Options(model=tmp_path)) == torch.float32


@pytest.mark.parametrize("content", [b"", b"plain text, no weights", b"\xff" * 64])
def test_a_foreign_checkpoint_is_refused_by_name(studio, tmp_path, content):
    path = tmp_path / "foreign.safetensors"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"foreign\.safetensors"):
        run(studio, right=str(path))


def test_weights_of_another_model_are_refused(studio, tmp_path):
    from safetensors.torch import save_file

    save_file({"some.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(BadInput) as error:
        run(studio, right=str(tmp_path / "other.safetensors"))
    assert "\n" not in str(error.value)


def test_a_local_folder_can_be_a_side_and_a_public_page_opens_none(studio, unloaded, options):
    folder = str(options.model / "transformer")
    (pair,) = run(studio, right=folder)[-1].pairs
    assert pair.mean_difference == 0
    with pytest.raises(BadInput, match="does not open folders"):
        run(unloaded(local_paths=False), right=folder)


def test_a_checkpoint_that_was_replaced_is_read_anew(studio, tmp_path):
    import os

    from srpo.policies.checkpoints import save_transformer

    path = tmp_path / "mine.safetensors"
    save_transformer(tiny_flux_pipeline(seed=0).transformer, path, torch.float32)
    assert run(studio, right=str(path))[-1].pairs[0].mean_difference == 0
    save_transformer(tiny_flux_pipeline(seed=1).transformer, path, torch.float32)
    os.utime(path, (1e9, 1e9))
    assert run(studio, right=str(path))[-1].pairs[0].mean_difference > 0


def test_missing_weights_are_named_and_looked_for_again(unloaded, options, tmp_path, caplog):
    studio = unloaded(model=tmp_path / "later")
    for _ in range(2):
        with pytest.raises(BadInput, match="The base model is not at"):
            run(studio)
    assert studio.status().phase == "failed"
    assert {record.exc_info for record in caplog.records} == {None}
    (tmp_path / "later").symlink_to(options.model)
    assert run(studio)[-1].phase == "done"


def test_the_catalogue_offers_the_base_srpo_and_finished_runs_only(unloaded, options, tmp_path):
    from srpo.runs import RunFolder

    labels = [model.label for model in unloaded().catalogue.models()]
    assert labels == ["FLUX (flux)", "SRPO", "Run first-run"]
    RunFolder.create(tmp_path / "unfinished", {})
    without = unloaded(srpo=tmp_path / "none", runs=tmp_path)
    assert [model.id for model in without.catalogue.models()] == ["base"]
    with pytest.raises(BadInput, match="There is no SRPO model here, as none are at"):
        without.catalogue.find("srpo")
    with pytest.raises(BadInput, match="as no SRPO weights are named"):
        unloaded(srpo=None).catalogue.find("srpo")


@pytest.fixture
def miniature():
    from app.services.studio import Studio
    from app.state import Options

    studio = Studio(Options())
    yield studio
    studio.pictures.close()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, ""),
        ({"width": 64}, "trained at 128 × 128"),
        ({"guidance": 1.0}, ""),
        ({"guidance": 7.0}, ""),
        ({"guidance": 7.1}, "learnt guidance 1 to 7; 7.1 is beyond"),
        ({"guidance": 0.5}, "learnt guidance 1 to 7; 0.5 is beyond"),
    ],
)
def test_the_miniature_says_where_its_training_ends(miniature, change, says):
    notice = miniature.notice(REQUEST.model_copy(update={"width": 128, "height": 128} | change))
    assert says in notice and bool(says) == bool(notice)


def test_the_page_and_the_miniatures_training_agree_on_its_guidance():
    from app.services.models import MINIATURE_GUIDANCE
    from srpo.miniature.flux import GUIDANCE_RANGE

    assert MINIATURE_GUIDANCE == GUIDANCE_RANGE


def test_a_visitor_of_another_model_hears_nothing_of_the_miniatures_limits(studio):
    assert studio.notice(REQUEST.model_copy(update={"guidance": 12.0})) == ""


@pytest.mark.parametrize(
    ("model", "srpo", "says", "is_silent_on"),
    [
        (None, None, "Apache-2.0", "Tencent"),
        (None, "mine.safetensors", "Check the licence of <b>mine.safetensors</b>", "Tencent"),
        ("FLUX.1-dev", None, "Non-Commercial License of Black Forest Labs", "Tencent"),
        ("models--black-forest-labs--FLUX.1-dev/snapshots/0", None, "Non-Commercial License", "Apache"),
        ("FLUX.1-dev", "tencent/SRPO/diffusion_pytorch_model.safetensors", "Tencent: academic use only", "Check the"),
        ("FLUX.1-dev", "SRPO/mine.safetensors", "Check the licence of <b>mine.safetensors</b>", "Tencent"),
        ("other", None, "Check the licence of <b>other</b>", "Black Forest"),
        ("FLUX.2-klein-4B", None, "<b>FLUX.2-klein-4B</b> weights: Apache-2.0.", "Non-Commercial"),
        ("models--black-forest-labs--FLUX.2-klein-base-9B/snapshots/0", None, "FLUX Non-Commercial License", "Apache"),
        ("FLUX.2-klein-9B-tuned", None, "Check the licence of <b>FLUX.2-klein-9B-tuned</b>", "Black Forest"),
        ("a<b>", None, "Check the licence of <b>a&lt;b&gt;</b>", "a<b>"),
    ],
)
def test_only_weights_known_by_name_are_given_a_licence(tmp_path, model, srpo, says, is_silent_on):
    from app.state import Options

    named = {name: tmp_path / path for name, path in (("model", model), ("srpo", srpo)) if path}
    said = Catalogue(Options(**named)).licences()
    assert says in said and is_silent_on not in said


@pytest.mark.parametrize(
    ("reward", "says"),
    [
        ("hpsv2.1:models/HPS_v2.1_compressed.pt", "Reward <b>HPSv2.1</b>: Apache-2.0."),
        ("models/PickScore_v1", "Reward <b>PickScore v1</b>: MIT."),
        ("models/some-clip", "<b>some-clip</b> before you use"),
        ("hpsv9:x", "<b>hpsv9:x</b> before you use"),
    ],
)
def test_a_reward_known_by_its_name_is_given_its_licence(tmp_path, reward, says):
    from app.state import Options

    assert says in Catalogue(Options(model=tmp_path / "FLUX.1-dev", reward=pathlib.Path(reward))).licences()


def test_only_of_the_shipped_pair_a_visitor_is_told_what_to_look_for(tmp_path):
    from app.state import Options
    from srpo.miniature import paths

    assert "looks like a photo" in Catalogue(Options()).look_for
    assert Catalogue(Options(srpo=paths.FLUX)).look_for == Catalogue(Options(model=tmp_path)).look_for == ""


@pytest.mark.parametrize(
    ("config", "side", "longest"),
    [("{}", 1024, 2048), ('{"num_attention_heads": 2, "attention_head_dim": 16}', 128, 512), ("[]", 128, 512)],
)
def test_the_size_a_model_was_trained_for_is_told_by_its_width(tmp_path, config, side, longest):
    """diffusers leaves out what is FLUX.1's own: 24 heads of 128."""
    from app.state import Options

    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text(config)
    catalogue = Catalogue(Options(model=tmp_path))
    assert (catalogue.native_side, catalogue.max_side) == (side, longest)


GRID = GridRequest(
    prompts="a red ball\na tree", models=("base", "srpo", "base"), seed=5, num_seeds=2, steps=2, width=32, height=32
)


def test_a_grid_fills_row_by_row_and_ends_in_one_sheet(studio):
    views = list(paint_grid(studio, GRID, StopFlag()))
    last = views[-1]
    assert last.models == ("FLUX (flux)", "SRPO")
    assert [(row.prompt, row.seed) for row in last.rows] == [
        (prompt, seed) for prompt in ("a red ball", "a tree") for seed in (5, 6)
    ]
    assert all(path.is_file() for row in last.rows for path in row.pictures)
    filled = [sum(all(row.pictures) for row in view.rows) for view in views]
    assert filled == sorted(filled) and filled[0] == 0 and filled[-1] == 4
    shares = [view.share_done for view in views if view.phase == "running"]
    assert shares == sorted(shares) and views[-1].share_done == 1
    with Image.open(last.sheet) as sheet:
        assert sheet.height > 4 * 256 and sheet.width > 2 * 256
    with pytest.raises(BadInput, match="sheet of many pictures"):
        read_request(last.sheet)


def test_a_cell_is_the_picture_that_a_comparison_draws(studio):
    row = list(paint_grid(studio, GRID, StopFlag()))[-1].rows[1]
    found = read_request(row.pictures[1]).settings
    assert (found.left, found.right, found.seed, found.prompt) == ("base", "srpo", 6, "a red ball")
    (pair,) = list(compare(studio, found, StopFlag()))[-1].pairs
    assert (pixels(pair.left) == pixels(row.pictures[0])).all()
    assert (pixels(pair.right) == pixels(row.pictures[1])).all()


def test_a_grid_that_is_stopped_has_a_sheet_of_what_was_drawn(studio):
    stop = StopFlag()
    for view in paint_grid(studio, GRID, stop):
        if all(view.rows[0].pictures):
            stop.set()
    assert view.phase == "stopped"
    assert [all(row.pictures) for row in view.rows] == [True, False, False, False]
    with Image.open(view.sheet) as sheet:
        assert sheet.height < 2 * 256 + 200
