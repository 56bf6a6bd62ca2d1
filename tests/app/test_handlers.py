"""The Compare tab's handlers, called as plain functions."""

import logging

import pytest
from PIL import Image

from app.services.requests import PLAIN
from app.state import Session
from app.tabs.compare import RESTORED, SETTINGS, UNEXPECTED, Handlers

VALUES = {"num_seeds": 1, "steps": 2, "guidance": 3.5, "width": 32, "height": 32, "control_word": PLAIN}


@pytest.fixture
def do(studio):
    return Handlers(studio)


def generate(
    do, request, session=None, seed_mode="fixed", seed=3, prompt="a red ball", left="base", right="srpo", **new
):
    settings = [(VALUES | new)[name] for name in SETTINGS]
    return list(do.generate(request, session or Session(), seed_mode, seed, prompt, left, right, *settings))


BUSY, FREE, AS_THEY_ARE = (False, True), (True, False), (None, None)


def buttons(output):
    """Whether the start and the stop button can be pressed after an output; None where it leaves them alone."""
    return tuple(button.get("interactive") for button in output[-2:])


def test_generate_shows_each_step_and_its_buttons_come_back_after_it(do, request_of):
    outputs = generate(do, request_of())
    assert [buttons(output) for output in outputs] == [BUSY] * (len(outputs) - 1) + [AS_THEY_ARE]
    assert buttons(do.ready(request_of())) == FREE
    stage = outputs[-1][0]
    assert stage["phase"] == "done"
    assert stage["pairs"][0]["left"].startswith("gradio_api/file=/")


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": ""},
        {"prompt": "ball " * 600},
        {"width": 100},
        {"guidance": float("nan")},
        {"steps": 101},
        {"left": "/nowhere"},
        {"seed": None},
        {"seed_mode": "last"},
        {"control_word": "w" * 99},
    ],
)
def test_bad_input_shows_one_sentence_and_changes_nothing_else(do, request_of, change):
    session = Session()
    last = generate(do, request_of(), session, **change)[-1]
    assert set(last[0]) == {"phase", "message"} and last[0]["phase"] == "error"
    assert last[0]["message"].endswith(".") and "\n" not in last[0]["message"]
    assert buttons(last) == AS_THEY_ARE and buttons(do.ready(request_of())) == FREE
    assert session.last_seed is None


def test_a_random_seed_can_be_used_again(do, request_of):
    session = Session()
    first = generate(do, request_of(), session, seed_mode="random")[-1][0]["pairs"][0]["seed"]
    again = generate(do, request_of(), session, seed_mode="last")[-1][0]["pairs"][0]["seed"]
    assert first == again == session.last_seed


def test_stop_reaches_its_own_page_only(do, request_of):
    running = do.generate(
        request_of("one"), Session(), "fixed", 3, "a ball", "base", "srpo", *(VALUES | {"steps": 50}).values()
    )
    while next(running)[0]["phase"] != "running":
        pass
    do.stop(request_of("two"))
    do.stop_grid(request_of("one"))
    assert next(running)[0]["phase"] == "running"
    do.stop(request_of("one"))
    assert [output[0]["phase"] for output in running] == ["stopped"]


def test_a_second_start_from_the_same_page_leaves_the_first_alone(do, request_of):
    first = do.generate(request_of(), Session(), "fixed", 3, "a ball", "base", "srpo", *VALUES.values())
    next(first)
    (second,) = generate(do, request_of())
    assert "at work already" in second[0]["message"]
    assert buttons(second) == buttons(do.ready(request_of())) == AS_THEY_ARE
    assert buttons(do.ready(request_of("page-2"))) == buttons(do.ready_grid(request_of())) == FREE
    assert list(first)[-1][0]["phase"] == "done"


def test_whoever_sees_the_end_can_start_again(do, request_of):
    """The last output of the first run is out, and its generator not yet asked for more: Gradio may be slow to."""
    comparison = do.generate(request_of(), Session(), "fixed", 3, "a ball", "base", "srpo", *VALUES.values())
    grid = do.paint_grid(request_of(), Session(), "fixed", 3, "a ball", ["base"], 1, *VALUES.values())
    assert any(output[0]["phase"] == "done" for output in comparison)
    assert any(output[0]["phase"] == "done" for output in grid)
    assert generate(do, request_of())[-1][0]["phase"] == "done"
    assert draw(do, request_of())[-1][0]["phase"] == "done"


def test_leaving_the_page_stops_its_work(do, request_of):
    running = do.generate(request_of(), Session(), "fixed", 3, "a ball", "base", "srpo", *VALUES.values())
    next(running)
    do.leave(request_of())
    assert list(running)[-1][0]["phase"] == "stopped"


def test_a_defect_is_logged_and_leaves_a_usable_page(do, request_of, studio, monkeypatch, caplog):
    def fail(*arguments):
        raise RuntimeError("cuda is on fire")

    monkeypatch.setattr(studio._engine, "encode", fail)
    with caplog.at_level(logging.ERROR):
        last = generate(do, request_of())[-1]
    assert last[0] == {"phase": "error", "message": UNEXPECTED} and buttons(do.ready(request_of())) == FREE
    assert "cuda is on fire" in caplog.text


def draw(do, request, lines="a ball\na tree", models=("base", "srpo"), num_seeds=1):
    return list(do.paint_grid(request, Session(), "fixed", 3, lines, list(models), num_seeds, *VALUES.values()))


def test_the_grid_has_its_own_number_of_seeds_and_offers_the_sheet_at_the_end(do, request_of):
    outputs = draw(do, request_of(), num_seeds=2)
    assert len(outputs[-1][0]["rows"]) == 4
    assert [output[1]["visible"] for output in outputs] == [False] * (len(outputs) - 1) + [True]
    with Image.open(outputs[-1][1]["value"]) as sheet:
        assert sheet.format == "PNG"


@pytest.mark.parametrize("change", [{"lines": ""}, {"models": []}, {"num_seeds": 99}, {"lines": "x\n" * 13}])
def test_a_bad_grid_shows_one_sentence(do, request_of, change):
    (output,) = draw(do, request_of(), **change)
    assert output[0]["phase"] == "error" and output[0]["message"].endswith(".")
    assert buttons(do.ready_grid(request_of())) == FREE


def restored(outputs):
    _, note, seed_mode, *fields = outputs
    values = {name: field["value"] for name, field in zip(RESTORED, fields, strict=True) if "value" in field}
    return note, seed_mode, values


def test_a_dropped_picture_restores_the_page(do, request_of, studio):
    generate(do, request_of(), seed=9, prompt="a blue boat", num_seeds=2, width=48, control_word="Photo")
    newest = list(studio.pictures._folders)[-1]
    (path,) = newest.glob("*seed-10_srpo.png")
    note, seed_mode, values = restored(do.restore(str(path)))
    assert "Restored every setting" in note and seed_mode == "fixed"
    assert values == VALUES | {
        "prompt": "a blue boat", "seed": 10, "width": 48, "control_word": "Photo", "left": "base", "right": "srpo"
    }  # fmt: skip


def test_a_picture_of_a_model_that_is_gone_restores_the_rest(do, request_of, unloaded, options):
    generate(do, request_of(), right="run:first-run")
    (path,) = list(do.studio.pictures._folders)[-1].glob("*first-run.png")
    elsewhere = Handlers(unloaded(runs=options.runs / "none"))
    note, _, values = restored(elsewhere.restore(str(path)))
    assert "all but the right model" in note
    assert "right" not in values and values["left"] == "base"


def test_a_picture_made_with_fewer_text_tokens_says_so_when_it_is_restored(do, request_of, unloaded):
    generate(do, request_of())
    (path,) = list(do.studio.pictures._folders)[-1].glob("*srpo.png")
    assert "text tokens" not in restored(do.restore(str(path)))[0]
    note, _, values = restored(Handlers(unloaded(text_tokens=64)).restore(str(path)))
    assert "Restored every setting" in note and "512 text tokens, not 64" in note
    assert values["prompt"] == "a red ball"


@pytest.mark.parametrize("content", [b"plain text", b"", b"\x89PNG\r\n\x1a\n broken"])
def test_a_text_file_where_a_picture_belongs_changes_nothing(do, tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    note, seed_mode, values = restored(do.restore(str(tmp_path / "a.png")))
    assert "not a PNG picture" in note
    assert values == {} and "value" not in seed_mode


def test_a_note_is_text_and_never_markup(do, tmp_path):
    from app.components.note import note_html

    assert "<script>" not in note_html("<script>alert(1)</script>", "failed")


def test_tokens_are_counted_with_the_control_word(do, unloaded):
    plain, worded = do.tokens("a red ball", PLAIN), do.tokens("a red ball", "Photo")
    assert plain.endswith(" of 512 tokens") and int(worded.split()[0]) > int(plain.split()[0])
    assert "too long" in do.tokens("ball " * 600, PLAIN)
    assert do.tokens("", PLAIN) == ""
    assert "20,000 of 4,000 characters: too long" in do.tokens("x" * 20_000, PLAIN)
    assert Handlers(unloaded()).tokens("a red ball", PLAIN) == ""


def test_the_buttons_say_what_they_will_make(do):
    assert do.cost(1) == "Generate"
    assert do.cost(4) == "Generate 4 pairs"
    assert do.grid_cost("a\n\nb", ["base"], 1) == "Draw 2 pictures"
    assert "at most 96" in do.grid_cost("a\nb\nc", ["base"] * 4, 16)


def test_the_page_stops_asking_once_the_models_are_there(do, unloaded):
    line, timer = do.status()
    assert "Models ready" in line and not timer.active
    line, timer = Handlers(unloaded()).status()
    assert "Loading" in line and timer.active
