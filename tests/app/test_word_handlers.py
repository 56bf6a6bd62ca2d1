"""The Control words tab's handlers, called as plain functions."""

import logging
from urllib.parse import unquote

import pytest

from app import ui
from app.tabs import words as tab
from app.tabs.compare import UNEXPECTED
from app.tabs.words import Handlers
from srpo.rewards.word_sets import read_word_set

SET = {"name": "Mine", "positive": ["Real", {"word": "Detail", "weight": 3}], "negative": ["Oil"], "levels": "paper"}
BAD = SET | {"negative": ["Real"]}


@pytest.fixture
def do(studio):
    return Handlers(studio)


@pytest.fixture
def alone(unloaded, tmp_path):
    """Handlers with a runs folder of their own, no model loaded."""
    return Handlers(unloaded(runs=tmp_path / "runs"))


def edited(words=SET):
    return {"set": words}


def is_skip(value):
    return isinstance(value, dict) and set(value) == {"__type__"}


def test_a_page_opens_with_the_first_set_and_what_its_curve_is_drawn_over(alone):
    editor, picker = alone.open_page()
    assert editor["set"]["name"] == "The paper's" and picker["value"] == "paper"
    assert [recipe["key"] for recipe in editor["recipes"]] == ["studio", "paper", "pickscore", "later"]
    assert set(editor["forms"]) == {"sgp", "srp", "cfg_like", "cfg_like_paper"}
    assert len(picker["choices"]) == 7


def test_choosing_saving_and_opening_a_set(alone, tmp_path):
    editor, note = alone.choose("comic")
    assert editor["set"]["name"] == "Comic" and "Comic is loaded" in note
    picker, note = alone.save(edited())
    assert picker["value"] == "own/mine" and "Mine is saved" in note
    assert alone.choose("own/mine")[0]["set"]["positive"][1] == {"word": "Detail", "weight": 3.0, "enabled": True}
    (tmp_path / "set.yaml").write_text("positive: [Real]\nnegative: [Oil]\nname: From a file")
    editor, note = alone.upload(str(tmp_path / "set.yaml"))
    assert editor["set"]["name"] == "From a file" and "read from the file" in note


def test_what_does_not_fit_leaves_the_editor_as_it_is(alone, tmp_path):
    for editor, note in (alone.choose("nothing"), alone.upload(None)):
        assert is_skip(editor) and "failed" in note
    (tmp_path / "set.yaml").write_text("a: &a [*a]")
    editor, note = alone.upload(str(tmp_path / "set.yaml"))
    assert is_skip(editor) and "aliases" in note
    picker, note = alone.save(edited(BAD))
    assert is_skip(picker) and "on both sides" in note and not alone.shelf.own_folder.exists()


def test_a_set_is_judged_as_it_is_edited_and_offered_as_a_file(alone):
    note, link = alone.check(edited())
    assert "positive: Real 5, Detail 15" in note and 'download="mine.yaml"' in link
    address = link.partition('href="data:text/yaml;charset=utf-8,')[2].partition('"')[0]
    assert read_word_set(unquote(address)).name == "Mine"
    note, link = alone.check(edited(BAD))
    assert "on both sides" in note and "failed" in note and link == ""
    assert "no word set" in alone.check({})[0]


def test_a_sets_name_cannot_break_out_of_its_link(alone):
    _, link = alone.check(edited(SET | {"name": '"><script>x'}))
    assert "<script" not in link and link.count('"') == 6


def test_a_set_goes_into_the_form_of_a_run_and_what_else_is_there_stays(alone):
    more = "objective.levels.kind=uniform\nobjective.levels.sigma_min=0.7\nlr=1e-5\nsignal.form=srp"
    note, tabs, positive, negative, lines = alone.send(edited(), more)
    assert "in the form of a run" in note and tabs["selected"] == "finetune"
    assert (positive, negative) == ("Real\nDetail", "Oil")
    settings = dict(line.split("=", 1) for line in lines.splitlines())
    assert settings["lr"] == "1e-5" and settings["signal.form"] == '"cfg_like"'
    assert settings["signal.words.positive_weights"] == "[1.0, 3.0]"
    assert settings["objective.levels.kind"] == '"table"' and "objective.levels.sigma_min" not in settings
    refused = alone.send(edited(BAD), more)
    assert "on both sides" in refused[0] and all(map(is_skip, refused[1:]))


def test_what_was_sent_is_a_run_that_could_start(alone):
    """The request that the Fine-tune form makes of it passes the very check of a start."""
    from app.services.requests import parse
    from app.services.training_requests import TrainRequest, lines_of

    tune = alone.studio.finetune
    presets = tune.presets
    name = next(iter(presets))
    _, _, positive, negative, more = alone.send(edited(), "\n".join(lines_of(presets[name].settings)))
    prompt_set = tune.prompt_sets()[0][1]
    kept = "\n".join(
        line for line in more.splitlines() if not line.startswith(("signal.words.positive=", "signal.words.negative="))
    )
    asked = {"preset": name, "positive": positive, "negative": negative, "more": kept, "prompt_set": prompt_set}
    given = tune.check(parse(TrainRequest, asked))
    assert 'objective.levels.kind="table"' in given and "signal.words.positive_weights=[1.0, 3.0]" in given


def see(do, request, words=SET, **changes):
    values = {"lines": "a red ball", "model": "base", "files": None, "num_seeds": 1, "seed": 0, "steps": 1} | changes
    return list(do.see(request, edited(words), *values.values()))


def test_scoring_shows_its_steps_and_its_end_after_the_work_has_left(do, request_of):
    steps = see(do, request_of())
    assert [value["phase"] for value, *_ in steps][-1] == "done"
    assert all(start["interactive"] is False and stop["interactive"] for _, start, stop in steps[:-1])
    assert is_skip(steps[-1][1]) and steps[-1][0]["pictures"][0]["path"].startswith("gradio_api/file=")
    assert do.ready("words/see")(request_of())[0]["interactive"]


def test_bad_input_is_one_sentence_and_nothing_else_changes(do, request_of):
    ((value, *buttons),) = see(do, request_of(), BAD)
    assert value == {"phase": "error", "message": "The word 'Real' is on both sides: take one of them out."}
    assert all(map(is_skip, buttons))


def test_a_second_start_on_the_same_page_is_refused(do, request_of):
    first = do.see(request_of(), edited(), "a red ball", "base", None, 1, 0, 1)
    next(first)
    assert all(map(is_skip, do.ready("words/see")(request_of())))
    ((value, *_),) = see(do, request_of())
    assert "at work already" in value["message"]
    first.close()


def test_what_nobody_expected_is_logged_and_said_without_its_words(do, request_of, monkeypatch, caplog):
    def broken(*_):
        raise RuntimeError("secret")
        yield

    monkeypatch.setattr(tab, "see", broken)
    with caplog.at_level(logging.ERROR):
        ((value, *_),) = see(do, request_of())
    assert value["message"] == UNEXPECTED and "secret" in caplog.text


def test_words_are_checked_and_shown_as_the_browser_reads_them(do, request_of):
    *_, (value, *_) = do.perceive(request_of(), edited(), "base", "Dark", 8, 0, 1)
    assert value["phase"] == "done" and [row["word"] for row in value["rows"]] == ["Real", "Detail", "Oil", "Dark"]
    assert all(path.startswith("gradio_api/file=") for path in (*value["without"], *value["rows"][0]["pictures"]))


def test_a_preview_says_what_is_wrong_with_it(do, request_of):
    ((note, film, *buttons),) = do.preview(request_of(), edited(), "", 5, 0)
    assert "one to 4 prompts" in note and is_skip(film) and all(map(is_skip, buttons))


def test_a_stop_reaches_the_work_of_its_own_page_alone(do, request_of):
    with do.studio.jobs.flag("page-1/words/check") as mine, do.studio.jobs.flag("page-2/words/check") as other:
        do.stop("words/check")(request_of("page-1"))
        assert mine and not other
        do.leave(request_of("page-2"))
        assert other


@pytest.mark.parametrize(
    ("arguments", "label"),
    [
        (("a\nb", 4, None), "Paint and score 8 pictures"),
        (("a", 1, None), "Paint and score 1 picture"),
        (("a", 4, ["x.png", "y.png"]), "Score 2 pictures"),
        ((None, None, None), "Paint and score 0 pictures"),
    ],
)
def test_the_score_button_says_what_it_will_do(do, arguments, label):
    assert do.cost(*arguments) == label


def test_the_check_button_says_how_many_pictures_it_paints(do):
    assert do.check_cost(edited(), "Dark", 10) == "Paint 50 pictures and check"
    assert do.check_cost(edited(BAD), "Dark", 10) == "Paint and check"


def test_a_page_beyond_the_loopback_saves_sends_and_trains_nothing(unloaded):
    def functions(studio):
        return {block.api_name for block in ui.build(studio).fns.values()}

    here, public = functions(unloaded()), functions(unloaded(local_paths=False))
    assert {"save", "send", "preview"} <= here - public
    assert {"check", "upload", "perceive"} <= public
