"""Recoveries through the services: cell by cell, stopped within one, and each file says how it was made."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from app.services import recoveries as service
from app.services.device import StopFlag
from app.services.metadata import read_request
from app.services.recoveries import NO_STEP, CellView, Kept, examples, film, pushes, recoveries
from app.services.recovery_requests import (
    D_SIGMAS,
    MAX_LEVELS,
    SIGMAS,
    FilmRequest,
    PushRequest,
    RecoverRequest,
    levels_of,
)
from app.services.requests import BadInput, parse
from srpo.evaluation import recoveries as library
from srpo.evaluation.recoveries import grid_methods, recover
from srpo.evaluation.recovery_errors import psnr
from srpo.evaluation.recovery_push import push
from srpo.evaluation.sheets import KEY
from srpo.rewards.base import image_tensor, to_pil

RUN = {"prompt": "a red ball", "painter": "base", "seed": 5, "steps": 3, "guidance": 2.5, "width": 48, "height": 32}
GOOD = RUN | {
    "source": "generate",
    "models": ["base"],
    "sigmas": [0.95, 0.5],
    "d_sigmas": "0.075, 0.025",
    "noise_seed": 9,
}


def run(studio, stop=None, kept=None, file=None, example=None, **changes):
    request = parse(RecoverRequest, GOOD | changes)
    return list(recoveries(studio, request, file, example, kept or Kept(), stop or StopFlag()))


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def record_of(path):
    with Image.open(path) as image:
        return json.loads(image.text[KEY])


# Requests


def test_the_defaults_are_those_of_the_library():
    assert (SIGMAS, D_SIGMAS) == (library.SIGMAS, library.D_SIGMAS)


def test_levels_are_read_from_chips_and_from_text():
    assert levels_of([0.9, "0.5 0.7,0.6"]) == (0.9, 0.7, 0.6, 0.5)
    assert levels_of("0.4-0.2/3; 0.95") == (0.95, 0.4, 0.3, 0.2)
    assert levels_of("0.9 to 0.5 / 2") == levels_of("0.9–0.5/2") == (0.9, 0.5)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("sigmas", [1.0], "A noise level must be above 0 and below 1, not 1."),
        ("sigmas", [0.0], "above 0 and below 1, not 0"),
        ("sigmas", "-0.5", "must lie between 0 and 1"),
        ("sigmas", "1.5", "must lie between 0 and 1"),
        ("sigmas", "0.00001", "above 0 and below 1"),
        ("sigmas", [float("nan")], "must be a finite number"),
        ("sigmas", "inf", "must be a finite number"),
        ("sigmas", "half", "must be a number, not 'half'"),
        ("sigmas", [], "There are no noise levels"),
        ("sigmas", ["", " , "], "There are no noise levels"),
        ("sigmas", [0.9, "0.9"], "The noise level 0.9 is named twice"),
        ("sigmas", [0.9, 0.90001], "is named twice"),
        ("sigmas", [0.01 * place for place in range(1, 20)], f"At most {MAX_LEVELS} noise levels are taken, not 19"),
        ("sigmas", "0.9-0.5/1000000", "a whole number from 2 to 12"),
        ("sigmas", "0.9-0.5/x", "must be a number"),
        ("sigmas", None, "must be a number"),
        ("sigmas", [[0.5]], "must be a number"),
        ("d_sigmas", "0", "A step Δσ must be above 0 and below 1, not 0."),
        ("d_sigmas", "-0.1", "must lie between 0 and 1"),
        ("d_sigmas", "nan", "finite"),
        ("d_sigmas", "", "There is no step Δσ"),
        ("d_sigmas", None, "There is no step Δσ"),
        ("d_sigmas", "0.1 0.1", "named twice"),
        ("d_sigmas", "0.1 0.2 0.3 0.4 0.05", "At most 4 steps"),
        ("d_sigmas", "0.95", "reaches the clean picture from every level"),
        ("models", [], "at least one model"),
        ("models", ["a", "b", "c"], "At most 2 models"),
        ("models", 3, "at least one model"),
        ("num_noises", 0, "from 1 to 16"),
        ("num_noises", 17, "from 1 to 16"),
        ("noise_seed", -1, "The seed must be"),
        ("source", "steal", "'source' has a form"),
        ("prompt", " ", "The prompt is empty"),
        ("width", 100, "multiple of 16"),
        ("painter", "", "Choose a model"),
    ],
)
def test_bad_input_is_answered_by_one_sentence(field, value, says):
    with pytest.raises(BadInput) as refused:
        parse(RecoverRequest, GOOD | {field: value})
    assert says in str(refused.value) and "\n" not in str(refused.value)


def test_only_a_generated_picture_has_a_noise_of_its_own():
    own = parse(RecoverRequest, GOOD | {"own_noise": True, "num_noises": 2})
    assert own.noise_seeds == [5, 6]
    assert parse(RecoverRequest, GOOD | {"own_noise": True, "source": "upload"}).noise_seeds == [9]


# The grid


def test_every_cell_appears_in_turn_and_is_what_the_library_gives(studio):
    kept = Kept()
    views = run(studio, kept=kept)
    filled = [sum(isinstance(cell, CellView) for row in view.rows for cell in row.cells) for view in views]
    assert sorted(set(filled)) == list(range(11)) and filled == sorted(filled)
    last = views[-1]
    assert last.phase == "done" and "10 cells in" in last.message and last.share_done == 1
    assert [row.name for row in last.rows] == [method.name for method in grid_methods()]

    policy = studio._engine.base
    cond, noise = policy.encode_prompts(["a red ball"]), policy.initial_noise(9, 32, 48)
    assert torch.equal(kept.last.noise, noise)
    with torch.no_grad():
        original = policy.decode(kept.last.x0)
    assert (pixels(last.original) == np.asarray(to_pil(original)).astype(int)).all()
    for cell in recover(policy, kept.last.x0, noise, cond, (0.95, 0.5), guidance=2.5):
        row = next(row for row in last.rows if row.name == cell.method.name)
        shown = row.cells[(0.95, 0.5).index(cell.sigma)]
        assert (pixels(shown.picture) == np.asarray(to_pil(cell.image)).astype(int)).all()
        assert shown.psnr == pytest.approx(psnr(cell.image, original).item(), abs=1e-3)


def test_the_time_left_falls_and_the_painting_is_shown(studio):
    views = run(studio)
    assert any(view.preview and "Painting" in view.message for view in views)
    shares = [view.share_done for view in views]
    assert shares == sorted(shares) and views[-1].preview is None and views[-1].left_s is None
    assert all(view.left_s >= 0 for view in views if view.phase == "running" and view.share_done)


def test_two_models_stand_side_by_side_and_share_the_noisy_input(studio):
    last = run(studio, models=["base", "srpo"])[-1]
    assert [(row.name, row.model) for row in last.rows][:3] == [
        ("Noisy input", "FLUX (flux)"),
        ("One-step prediction", "FLUX (flux)"),
        ("One-step prediction", "SRPO"),
    ]
    assert len(last.rows) == 9
    base, tuned = (pixels(last.rows[place].cells[0].picture) for place in (1, 2))
    assert np.abs(base - tuned).max() > 5
    reward = next(chart for chart in last.charts if chart.key == "recovery-reward")
    assert [line.name for line in reward.lines][1:3] == [
        "One-step prediction, FLUX (flux)",
        "One-step prediction, SRPO",
    ]


def test_several_noises_give_the_curves_intervals(studio):
    alone, several = run(studio)[-1], run(studio, num_noises=3)[-1]
    keys = ["recovery-psnr", "recovery-ssim", "recovery-embedding", "recovery-reward", "recovery-weight"]
    assert [chart.key for chart in alone.charts] == [chart.key for chart in several.charts] == keys
    assert all(low is None for line in alone.charts[0].lines for low in line.low)
    for line in several.charts[0].lines:
        assert all(low < y < high for low, y, high in zip(line.low, line.y, line.high, strict=True))
    weights = {line.name: line.y for line in alone.charts[-1].lines}
    assert weights["One-step prediction"] == [0.95, 0.5]
    assert weights["Direct-Align, Δσ 0.025"] == pytest.approx([0.025 / 0.075, 0.025 / 0.525])
    # The pictures are those of the first noise, however many follow it.
    assert (pixels(alone.rows[2].cells[0].picture) == pixels(several.rows[2].cells[0].picture)).all()


def test_shifted_levels_are_those_of_the_schedule(studio):
    last = run(studio, shifted=True)[-1]
    policy = studio._engine.base
    assert last.levels == ("0.95", "0.5")
    assert last.sigmas[1] == pytest.approx(policy.schedule(2, 32, 48)[1].item(), abs=1e-5)
    assert last.sigmas[0] == pytest.approx(policy.schedule(20, 32, 48)[1].item(), abs=1e-5)


def test_a_shortened_step_says_so_and_an_impossible_one_has_no_cell(studio):
    last = run(studio, sigmas=[0.995, 0.98, 0.05])[-1]
    _, _, long, short, inversion = last.rows
    assert inversion.cells[0] == NO_STEP
    assert inversion.cells[1].note == "step cut short at σ 0.99"
    assert long.cells[2].note == "step cut short at σ 0" and short.cells[2].note == ""
    record = record_of(last.sheet)
    assert record["notes"]["Direct-Align, Δσ 0.075, σ 0.05"] == "step cut short at σ 0"
    assert record_of(inversion.cells[1].picture)["cell"]["shortened"]


def test_the_sheet_carries_every_setting(studio):
    last = run(studio, models=["base", "srpo"], own_noise=True, shifted=True)[-1]
    record = record_of(last.sheet)
    assert record["kind"] == "recoveries" and record["models"] == ["FLUX (flux)", "SRPO"]
    assert parse(RecoverRequest, record["request"]).own_noise
    assert record["sigmas"] == list(last.sigmas) and record["weights_sha256"]
    with Image.open(last.sheet) as image:
        assert image.width > 3 * 256 and image.height > 9 * 256
    for path in (last.sheet, last.original):
        with pytest.raises(BadInput, match="drop a single picture to restore its settings"):
            read_request(path)


def test_an_uploaded_picture_is_encoded_and_what_was_cut_is_said(studio, tmp_path):
    Image.effect_noise((160, 100), 80).convert("RGB").save(tmp_path / "mine.png")
    kept = Kept()
    last = run(studio, kept=kept, source="upload", file=str(tmp_path / "mine.png"), own_noise=True)[-1]
    assert "The picture has 160 × 100 pixels; its middle, resized to 48 × 32" in last.notice
    assert "its noise is that of seed 9" in last.notice
    policy = studio._engine.base
    picture = image_tensor(service.fit(service.open_picture(tmp_path / "mine.png"), 32, 48))
    with torch.no_grad():
        assert torch.allclose(kept.last.x0, policy.encode_image(picture), atol=1e-5)


@pytest.mark.parametrize(
    ("source", "file", "says"),
    [
        ("upload", None, "No picture was uploaded"),
        ("upload", "notes.txt", "cannot be read as a picture"),
        ("example", None, "no example of that name"),
    ],
)
def test_a_picture_that_is_not_there_is_answered_by_one_sentence(studio, tmp_path, source, file, says):
    (tmp_path / "notes.txt").write_text("not a picture")
    with pytest.raises(BadInput, match=says):
        run(studio, source=source, file=file and str(tmp_path / file), example="../../etc/passwd")


def test_every_shipped_picture_can_be_started_from(studio):
    assert len(examples()) >= 4
    for entry in examples():
        assert entry.prompt.startswith("a ")
        last = run(studio, source="example", example=entry.name, sigmas=[0.9])[-1]
        assert last.phase == "done" and "192 × 192" in last.notice


def test_stopped_early_nothing_more_is_computed_and_what_there_is_has_a_sheet(studio):
    stop, kept = StopFlag(), Kept()
    running = recoveries(studio, parse(RecoverRequest, GOOD | {"num_noises": 16}), None, None, kept, stop)
    view = next(view for view in running if view.rows and isinstance(view.rows[1].cells[0], CellView))
    stop.set()
    (last,) = running
    assert last.phase == "stopped" and last.sheet and last.rows == view.rows
    assert kept.last is not None and not studio.device._turns


def test_missing_lpips_is_answered_by_one_sentence(studio):
    if service.has_lpips():
        pytest.skip("lpips is installed")
    with pytest.raises(BadInput, match="LPIPS cannot be measured: LPIPS needs the package lpips"):
        run(studio, lpips=True)


def test_without_a_reward_the_grid_has_fewer_curves_and_no_push(studio, monkeypatch):
    kept = Kept()
    monkeypatch.setattr(studio._engine.scorer, "reward", None)
    last = run(studio, kept=kept)[-1]
    assert [chart.key for chart in last.charts] == ["recovery-psnr", "recovery-ssim", "recovery-weight"]
    with pytest.raises(BadInput, match="start the app with --reward FOLDER"):
        list(pushes(studio, parse(PushRequest, {"level": 0, "text": "a ball"}), kept, StopFlag()))


# A run, and a push


def test_a_film_is_one_picture_of_all_levels(studio):
    *views, last = film(studio, parse(FilmRequest, RUN | {"d_sigmas": "0.05"}), StopFlag())
    assert last.phase == "done" and last.steps == (1, 2, 3) and last.sigmas[0] == 1
    with Image.open(last.sprite) as sprite:
        assert sprite.size == (3 * 48, 3 * 32)
        assert (last.width, last.height) == (48, 32)
        first = np.asarray(sprite)[:, :48].astype(int)
    policy = studio._engine.base
    with torch.no_grad():
        noise = to_pil(policy.decode(policy.initial_noise(5, 32, 48)))
    assert (first[:32] == np.asarray(noise).astype(int)).all()
    assert (first[32:64] == first[64:]).mean() > 0.9  # from pure noise both are the model's own prediction
    assert [view.share_done for view in views] == sorted(view.share_done for view in views)


def test_a_film_stops_within_a_step(studio):
    stop = StopFlag()
    running = film(studio, parse(FilmRequest, RUN | {"d_sigmas": "0.05", "steps": 50}), stop)
    next(view for view in running if view.phase == "running")
    stop.set()
    assert [view.phase for view in running] == ["stopped"]


def test_a_push_is_the_librarys_of_the_cell_that_was_asked_for(studio):
    kept = Kept()
    run(studio, kept=kept, models=["base", "srpo"])
    request = parse(PushRequest, {"level": 1, "model": 1, "text": "a red ball", "word": "Photo", "step": 2})
    last = list(pushes(studio, request, kept, StopFlag()))[-1]
    assert last.title == "“Photo. a red ball” at σ 0.5, by SRPO"
    names = ["One-step prediction", "Direct-Align, Δσ 0.075", "Direct-Align, Δσ 0.025", "The original itself"]
    assert [column.name for column in last.columns] == names
    found = push(studio._engine.scorer.reward, kept.last.original, "Photo. a red ball", 2 / 255)
    assert (last.columns[-1].before, last.columns[-1].after) == pytest.approx((found.before, found.after))
    assert last.columns[-1].agreement is None
    assert all(-1 <= column.agreement <= 1 and column.after > column.before for column in last.columns[:-1])
    assert record_of(last.columns[0].heat)["push"]["word"] == "Photo"


def test_a_push_needs_a_grid_and_a_cell_of_it(studio):
    request = parse(PushRequest, {"level": 1, "text": "a ball"})
    with pytest.raises(BadInput, match="There is no grid yet"):
        list(pushes(studio, request, Kept(), StopFlag()))
    kept = Kept()
    run(studio, kept=kept, sigmas=[0.5])
    with pytest.raises(BadInput, match="no such cell"):
        list(pushes(studio, request, kept, StopFlag()))
    kept.last = replace(kept.last, models=())
    with pytest.raises(BadInput, match="no such cell"):
        list(pushes(studio, parse(PushRequest, {"level": 0, "text": "a ball"}), kept, StopFlag()))


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("level", 12, "The level's place"),
        ("level", None, "The level's place must be a number"),
        ("step", 0, "between 0.5 and 32"),
        ("step", float("nan"), "finite"),
        ("text", "", "The prompt is empty"),
        ("word", "w" * 99, "at most 60"),
    ],
)
def test_a_bad_push_is_answered_by_one_sentence(field, value, says):
    with pytest.raises(BadInput, match=says):
        parse(PushRequest, {"level": 0, "text": "a ball"} | {field: value})
