"""The Recoveries tab's handlers, called as plain functions."""

import logging

import gradio as gr
import pytest

from app.services.recoveries import Kept
from app.services.requests import PLAIN
from app.tabs.recoveries import FORM, PUSH, RUN, UNEXPECTED, Handlers

VALUES = {
    "prompt": "a red ball", "painter": "base", "seed": 0, "steps": 2, "guidance": 3.5, "width": 32, "height": 32,
    "source": "generate", "file": None, "example": None, "models": ["base"], "chips": [0.9, 0.5], "typed": "",
    "shifted": False, "d_sigmas": "0.025", "own_noise": False, "noise_seed": 1, "num_noises": 2, "lpips": False,
}  # fmt: skip
BUSY, FREE, AS_THEY_ARE = (False, False, False, True), (True, True, True, False), (None,) * 4


@pytest.fixture
def do(studio):
    return Handlers(studio)


def recover(do, request, kept=None, **new):
    return do.recover(request, kept or Kept(), *[(VALUES | new)[name] for name in FORM])


def buttons(output):
    """Whether Recover, Look, Push and Stop can be pressed after an output; None where it leaves them alone."""
    return tuple(button.get("interactive") for button in output[-4:])


def test_a_grid_fills_and_offers_its_sheet_and_its_levels(do, request_of):
    outputs = list(recover(do, request_of()))
    assert [buttons(output) for output in outputs] == [BUSY] * (len(outputs) - 1) + [AS_THEY_ARE]
    assert buttons(do.ready(request_of())) == FREE
    grid, _, sheet, level, model = outputs[-1][:5]
    assert grid["phase"] == "done" and grid["rows"][0]["cells"][0]["picture"].startswith("gradio_api/file=/")
    assert "charts" not in grid and "sheet" not in grid
    assert sheet["visible"] and sheet["value"].endswith("_recoveries.png")
    assert level["choices"] == [("σ 0.9", 0), ("σ 0.5", 1)] and level["value"] == 0
    assert [name for name, _ in model["choices"]] == ["FLUX (flux)"]
    drawn = [output[1]["charts"] for output in outputs if "charts" in output[1]]
    assert [bool(charts) for charts in drawn] == [False, True, True]  # cleared, then after each noise


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": ""},
        {"chips": [], "typed": ""},
        {"typed": "0.9"},
        {"typed": "2"},
        {"d_sigmas": "0"},
        {"models": None},
        {"painter": "/nowhere"},
        {"source": "upload"},
        {"source": "example", "example": "nothing"},
        {"width": 100},
        {"noise_seed": None},
    ],
)
def test_bad_input_shows_one_sentence_and_changes_nothing_else(do, request_of, change):
    (output,) = recover(do, request_of(), **change)
    assert set(output[0]) == {"phase", "message"} and output[0]["phase"] == "error"
    assert output[0]["message"].endswith(".") and "\n" not in output[0]["message"]
    assert all("value" not in other for other in output[1:]) and buttons(output) == AS_THEY_ARE


def test_a_page_does_one_thing_at_a_time(do, request_of):
    running = recover(do, request_of())
    next(running)
    (refused,) = do.look(request_of(), "0.025", *[VALUES[name] for name in RUN])
    assert "at work already" in refused[0]["message"] and buttons(do.ready(request_of())) == AS_THEY_ARE
    (refused,) = do.push(request_of(), Kept(), *[None] * len(PUSH))
    assert "at work already" in refused[0]
    assert list(running)[-1][0]["phase"] == "done"


def test_stop_and_leaving_end_the_work_of_this_page_alone(do, request_of):
    running = recover(do, request_of("one"), num_noises=16)
    while next(running)[0]["phase"] != "running":
        pass
    do.stop(request_of("two"))
    assert next(running)[0]["phase"] == "running"
    do.stop(request_of("one"))
    assert [output[0]["phase"] for output in running] == ["stopped"]


def test_a_push_and_a_film_follow(do, request_of):
    kept = Kept()
    (refused,) = do.push(request_of(), kept, None, None, "a ball", PLAIN, 4)
    assert "There is no grid yet" in refused[0] and "failed" in refused[0]
    *_, last = recover(do, request_of(), kept)
    *_, last = do.push(request_of(), kept, 1, 0, "a <b>ball</b>", "Photo", 4)
    assert last[0].count("<img") == 9 and "“Photo. a &lt;b&gt;ball&lt;/b&gt;” at σ 0.5" in last[0]
    *_, last = do.look(request_of(), "0.025", *[VALUES[name] for name in RUN])
    assert last[0]["phase"] == "done" and last[0]["sprite"].startswith("gradio_api/file=/")
    (refused,) = do.look(request_of(), "", *[VALUES[name] for name in RUN])
    assert refused[0]["phase"] == "error"


def test_a_defect_is_logged_and_leaves_a_usable_page(do, request_of, studio, monkeypatch, caplog):
    def fail(*arguments):
        raise RuntimeError("cuda is on fire")

    monkeypatch.setattr(studio._engine, "encode", fail)
    with caplog.at_level(logging.ERROR):
        *_, last = recover(do, request_of())
    assert last[0]["message"] == UNEXPECTED and "cuda is on fire" in caplog.text
    assert buttons(do.ready(request_of())) == FREE


def test_the_fields_follow_the_way_to_start(do):
    shown = [[field["visible"] for field in do.choose_source(source)] for source in ("upload", "example", "generate")]
    assert shown == [[True, False, False], [False, True, False], [False, False, True]]
    assert do.choose_example("a-red-ball-on-a-beach-at-sunset") == "a red ball on a beach at sunset"
    assert do.choose_example("nothing") == ""
    assert do.choose_cell(gr.EventData(None, {"level": 2, "model": 1})) == (2, 1)
    choices = [update["choices"] for update in do.model_choices()]
    assert choices[0] == choices[1] and len(choices[0]) == 3


def test_the_button_says_how_much_it_will_make(do):
    assert do.cost([0.9, 0.5], "0.4-0.2/3", "0.075, 0.025") == "Recover 25 cells"
    assert do.cost([0.9], "0.9", "0.025") == do.cost(None, None, None) == "Recover"
