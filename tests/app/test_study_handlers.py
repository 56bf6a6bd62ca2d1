"""The Studies tab's handlers, called as plain functions: the whole way of a study, and what is refused on it."""

import importlib.util
import json
import zipfile
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import gradio as gr
import pytest

from app.services.study_view import HIDDEN_FLAG, TELLING, blind_flags
from app.state import Looking
from app.tabs.studies import FIELDS, Handlers, Panes
from benchmarks.studies import picture_rows
from srpo.studies.criteria import PAPER, STANDARD, WHOLE
from srpo.studies.health import Flag
from srpo.studies.report import summary_lines
from srpo.studies.schedule import pictures as pictures_of
from srpo.studies.schedule import schedule
from srpo.studies.schema import FixedStop, Model, SequentialStop
from srpo.studies.simulation import World, clicks_fast, clicks_left, example_plan, simulate
from srpo.studies.store import QuickVote
from tests.app.study_forms import form_of, values_of, vote_all
from tests.app.test_study_pictures import do  # noqa: F401

EVIL = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"


def panes_of(output):
    return Panes(*output[1 : 1 + len(Panes._fields)])


def visible(panes):
    """Which of the steps, or the form, is shown."""
    return [name for name in ("form", "plan", "pictures", "voting", "results") if getattr(panes, name)["visible"]]


def save(do, request, looking, **changes):  # noqa: F811
    return list(do.save(request, looking, *form_of(do, **changes)))[-1]


def made(do, request, looking):  # noqa: F811
    return list(do.make(request, looking))


def press(**said):
    return gr.EventData(None, said)


@pytest.fixture
def opened(do, request_of):  # noqa: F811
    """(handlers, what the page looks at): a study that is open."""
    looking = Looking()
    save(do, request_of(), looking)
    made(do, request_of(), looking)
    do.open(looking)
    return do, looking


def test_a_tick_reads_and_sends_only_what_has_changed(opened, monkeypatch):
    handlers, looking = opened
    handlers.choose_step(looking, press(step="voting"))
    store, read = handlers.book.store, []
    votes = store.votes
    monkeypatch.setattr(type(store), "votes", lambda self, identity: read.append(identity) or votes(identity))
    quiet = [gr.skip()] * len(Panes._fields)

    assert list(panes_of(handlers.tick(looking))) == quiet and read == []
    rater = store.join(looking.study)
    changed = panes_of(handlers.tick(looking))
    assert changed.list == gr.skip() and rater.code in changed.seats and read == []
    for trial in schedule(store.study(looking.study).plan, 0):  # a gold pair may come first, which the list ignores
        store.vote(rater.code, store.showings(rater.code)[0].ticket, {"overall": "left"}, 1.0)
        if trial.kind == "main":
            break
    changed = panes_of(handlers.tick(looking))
    assert changed.list["rows"][0]["votes"] == 1 and changed.live != gr.skip() != changed.seats
    assert read == [looking.study]  # once for the list, the numbers and the seats
    assert list(panes_of(handlers.tick(looking))) == quiet and read == [looking.study]

    # Another page is told all of it; and a vote that was taken back is seen, although the number of rows stays.
    other = Looking(study=looking.study)
    assert panes_of(handlers.look(other)).list["rows"][0]["votes"] == 1
    store.undo(rater.code)
    assert panes_of(handlers.tick(other)).list["rows"][0]["votes"] == 0


def test_the_whole_way_of_a_study(do, request_of, tmp_path):  # noqa: F811
    request, looking = request_of(), Looking()
    panes = panes_of(do.look(looking))
    assert visible(panes) == [] and "New study" in panes.head["about"]  # the empty place says what to do
    assert not any(step["is_open"] for step in panes.head["steps"])
    new = do.new(looking)
    assert visible(panes_of(new)) == ["form"] and len(new) == 1 + len(Panes._fields) + len(FIELDS)

    output = save(do, request, looking)
    panes = panes_of(output)
    assert "Saved" in output[0] and visible(panes) == ["pictures"]
    assert panes.make["value"] == f"Make {len(pictures_of(do.book.study(looking.study).plan))} pictures"
    assert [step["is_open"] for step in panes.head["steps"]] == [True, True, False, False]

    *_, last = made(do, request, looking)
    assert last[0]["phase"] == "done" and last[0]["saves"] is False
    make, _, stop, head = do.pictures_ready(request, looking)
    assert not make["interactive"] and not stop["interactive"] and head["steps"][2]["is_open"]

    panes = panes_of(do.choose_step(looking, press(step="voting")))
    assert visible(panes) == ["voting"] and panes.open["visible"] and not panes.timer.active
    panes = panes_of(do.open(looking))
    assert panes.timer.active and panes.link == {"path": f"vote/{looking.study}"} and not panes.open["visible"]

    given = vote_all(do.book.store, looking.study)
    panes = panes_of(do.tick(looking))
    assert panes.list["rows"][0]["votes"] == 6  # the list counts as well
    assert f'data-votes="{6}"' in panes.live and "no more votes are needed" in panes.live
    for rater in do.book.store.raters(looking.study):
        assert rater.code in panes.seats
    row, question = do.ask_end(looking)
    assert row["visible"] and "for good" in question and "still lacking" not in question

    panes = panes_of(do.end(looking))
    assert visible(panes) == ["results"] and not panes.timer.active
    study = do.book.study(looking.study)
    found = do.book.results(study)
    for line in summary_lines(study.plan, found.everything)[1:]:
        assert line in panes.story
    assert [figure["key"] for figure in panes.figures["figures"]] == ["wins-overall"]

    note, files, report = do.export(looking)
    assert "The export is ready" in note
    with zipfile.ZipFile(files["value"]) as archive:
        assert {"votes.csv", "votes.jsonl", "plan.json", "report.html", "pictures.csv"} <= set(archive.namelist())
        assert len(archive.read("votes.jsonl").splitlines()) == given
    assert Path(report["value"]).read_text().startswith("<!doctype html>")
    output = do.bring_back(looking, files["value"], "")
    assert looking.study != study.id and f"{given:,} votes" in output[0]
    again = do.book.study(looking.study)
    assert do.book.results(again) == found and again.plan == study.plan


def test_parquet_is_in_the_export_where_it_can_be_written_and_else_the_page_says_how(opened, monkeypatch):
    pytest.importorskip("pyarrow")
    do, looking = opened  # noqa: F811
    vote_all(do.book.store, looking.study, raters=1)
    do.end(looking)
    note, files, _ = do.export(looking)
    with zipfile.ZipFile(files["value"]) as archive:
        assert "votes.parquet" in archive.namelist()
    assert "pip install" not in note
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pyarrow" else find(name))
    note, files, _ = do.export(looking)
    with zipfile.ZipFile(files["value"]) as archive:
        assert "votes.parquet" not in archive.namelist()
    assert "pip install pyarrow" in note


def test_while_a_study_is_open_nothing_tells_who_leads(opened):
    do, looking = opened  # noqa: F811
    vote_all(do.book.store, looking.study)
    panes = panes_of(do.choose_step(looking, press(step="results")))
    assert visible(panes) == ["results"] and "when the study has ended" in panes.story
    assert panes.figures == {} and panes.tables == "" and not panes.filtered["visible"]
    live = panes_of(do.choose_step(looking, press(step="voting"))).live
    for model in do.book.study(looking.study).plan.models:
        assert model.label not in live
    note, *_ = do.export(looking)
    assert "exported when it has ended" in note


def test_flags_that_name_the_one_ahead_are_told_at_the_end():
    flags = [Flag(kind, (0,), f"Model A is ahead ({kind}).") for kind in TELLING]
    flags.append(Flag("side", (1,), "Rater 1 chose the left side."))
    assert blind_flags(flags) == (HIDDEN_FLAG, "Rater 1 chose the left side.")


def test_an_open_study_is_planned_anew_as_another_version(opened, request_of):
    do, looking = opened  # noqa: F811
    first = looking.study
    output = do.edit(looking)
    assert "new version" in output[0] and visible(panes_of(output)) == ["form"]
    filled = dict(zip(FIELDS, output[1 + len(Panes._fields) :], strict=True))
    assert filled["title"]["value"] == values_of(do)["title"] and filled["votes_per_item"]["value"] == 2
    output = save(do, request_of(), looking, votes_per_item=3)
    assert "Saved as version 2" in output[0] and looking.study != first
    assert do.book.study(first).state == "open" and do.book.study(looking.study).version == 2


def test_a_refusal_leaves_the_page_and_what_was_typed(do, request_of):  # noqa: F811
    looking = Looking()
    do.new(looking)
    output = save(do, request_of(), looking, title="")
    assert "The title is empty" in output[0] and "failed" in output[0]
    assert all(value == gr.skip() for value in panes_of(output)) and looking.is_editing
    assert do.book.rows() == []


@pytest.mark.parametrize("action", ["open", "end", "export", "edit"])
@pytest.mark.parametrize("study", [None, "gone", "../../etc", "x" * 500])
def test_a_study_that_is_not_there_is_one_sentence(do, action, study):  # noqa: F811
    note = getattr(do, action)(Looking(study=study))[0]
    assert "failed" in note and ("No study is shown" in note or "no such study" in note)


def test_a_study_ends_only_after_it_began_and_opens_only_with_its_pictures(do, request_of):  # noqa: F811
    looking = Looking()
    save(do, request_of(), looking)
    assert "pictures of the study are missing" in do.open(looking)[0]
    assert "not begun yet" in do.end(looking)[0]
    assert "exported when it has ended" in do.export(looking)[0]


def test_a_second_start_from_the_same_page_leaves_the_first_alone(do, request_of):  # noqa: F811
    looking = Looking()
    save(do, request_of(), looking)
    first = do.make(request_of(), looking)
    next(first)
    (second,) = made(do, request_of(), looking)
    assert "at work already" in second[0]["message"]
    assert do.pictures_ready(request_of(), looking)[0] == gr.skip()
    do.stop(request_of("page-2"))
    assert list(first)[-1][0]["phase"] == "done"


def test_the_strip_of_another_study_is_left_alone(do, request_of):  # noqa: F811
    first, second = Looking(), Looking()
    save(do, request_of(), first)
    save(do, request_of(), second, title="Another")
    making = do.make(request_of(), first)
    assert next(making)[0]["phase"] in ("waiting", "running")
    first.study = second.study  # the visitor has gone on to it
    outputs = list(making)
    assert all(output[0] == gr.skip() for output in outputs) and outputs


def test_the_answer_to_an_older_press_shows_nothing(do, request_of, monkeypatch):  # noqa: F811
    looking = Looking()
    save(do, request_of(), looking)
    rows = do.book.rows

    def slow():
        monkeypatch.setattr(do.book, "rows", rows)
        assert visible(panes_of(do.new(looking))) == ["form"]  # pressed while the list is still being read
        return rows()

    monkeypatch.setattr(do.book, "rows", slow)
    output = do.look(looking)
    assert output[0] == gr.skip() and all(value == gr.skip() for value in panes_of(output))


def test_a_study_brought_back_says_that_its_pictures_are_not_here(do):  # noqa: F811
    plan = example_plan(12)
    study = do.book.store.restore(plan, 1, simulate(plan, 2, 1), picture_rows(plan))
    panes = panes_of(do.choose_step(Looking(study=study.id), press(step="pictures")))
    assert "do not lie here" in panes.strip["message"]
    assert not panes.make["visible"] and not panes.bring["visible"]


def test_what_is_no_export_is_refused(do, tmp_path):  # noqa: F811
    (tmp_path / "text.zip").write_text("hello")
    for upload, folder, says in (
        (str(tmp_path / "text.zip"), "", "is no exported study"),
        (None, str(tmp_path / "nowhere"), "is no exported study"),
        (None, " ", "Nothing was chosen"),
        (None, "~nobody-of-that-name/study", "home directory"),
    ):
        output = do.bring_back(Looking(), upload, folder)
        assert says in output[0] and "failed" in output[0]
    assert do.book.rows() == []


FOREIGN = [True, 5, -1, float("nan"), "x", ["a"], [[]], {"a": 1}, "\0", "\ud800", "../.."]


@pytest.mark.parametrize("value", FOREIGN, ids=repr)
def test_values_that_no_page_sends_are_answered_and_change_no_study(do, value):  # noqa: F811
    study = do.book.store.create(example_plan(3))
    looking = Looking(study=study.id)
    assert visible(panes_of(do.choose_step(looking, press(step=value)))) == ["pictures"]
    assert "failed" in do.choose(looking, press(study=value))[0]
    for name in ("models", "criteria", "prompt_source", "stop", "width"):
        assert do.outline(*form_of(do, **{name: value}))
    assert [row.id for row in do.book.rows()] == [study.id]


def test_a_database_of_somebody_else_is_one_sentence(unloaded, tmp_path):
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "studies.db").write_bytes(b"not a database, but long enough to be read as one" * 40)
    other = Handlers(unloaded(studies=tmp_path / "studies"))
    assert "holds no studies, or is damaged" in other.look(Looking())[0]
    assert "holds no studies" in other.quick()[0]


# Results of every kind, and texts of anybody


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.names = set()

    def handle_starttag(self, tag, attributes):
        self.names |= {tag, *(name for name, _ in attributes if name.startswith("on"))}


def tags_of(*parts):
    parser = Tags()
    for part in parts:
        parser.feed(part)
    return parser.names


PLANS = {
    "pairs": example_plan(prompts=20, criteria=STANDARD),
    "three": example_plan(prompts=15, models=3, seeds=2),
    "sequential": example_plan(prompts=30, stop=SequentialStop(votes_per_item=2)),
    "rating": example_plan(prompts=12, models=3, mode="rating", criteria=PAPER),
    "few ratings": example_plan(prompts=4, mode="rating", criteria=PAPER),
    "few": example_plan(prompts=4, stop=FixedStop(votes_per_item=2)),
    "evil": example_plan(
        [f"{EVIL} {number}" for number in range(12)],
        title=EVIL,
        instructions=EVIL,
        settings={EVIL: EVIL},
        models=[Model(key="</script>" + EVIL, label=EVIL), Model(key="b", label="javascript:alert(1)")],
    ),
}


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("which", ["all", "filtered"])
def test_results_of_every_kind_are_shown_and_texts_are_only_text(do, name, which):  # noqa: F811
    plan = PLANS[name]
    votes = simulate(
        plan, 4, 1, World(strengths={"model-1": 0.8}), {2: clicks_fast, 3: clicks_left} if name == "pairs" else {}
    )
    study = do.book.store.restore(plan, 1, votes)
    looking = Looking(study=study.id)
    panes = panes_of(do.choose_votes(looking, which))
    assert visible(panes) == ["results"]
    keys = [figure["key"] for figure in panes.figures["figures"]]
    rated = [f"ratings-{criterion.key}" for criterion in (*PAPER, WHOLE)]
    expected = {
        "three": ["wins-overall", "rank-overall"],
        "rating": rated,
        "few ratings": rated,
        "pairs": ["wins-alignment"],
    }
    assert keys == expected.get(name, ["wins-overall"])
    assert ("too few prompts for intervals" in panes.figures["figures"][0]["title"]) == (name == "few")
    assert ("Not enough to compare them: 4 of the at least 10 prompts" in panes.story) == (name == "few ratings")
    assert not tags_of(panes.story, panes.tables) & {"script", "img", "onerror"}
    for figure in panes.figures["figures"]:  # Plotly reads some HTML in these; the rest is put in as text
        assert "<script>" not in json.dumps([figure["data"], figure["layout"]])
    if name == "few":
        assert "Not enough" in panes.story
    if name == "pairs":
        assert ("Rater 2 answered" in panes.story) == (which == "all")
    panes = panes_of(do.choose_step(looking, press(step="plan")))
    assert not tags_of(panes.plan_text) & {"script", "img", "onerror"}
    panes = panes_of(do.choose_step(looking, press(step="voting")))
    assert visible(panes) == ["voting"] and panes.link == {} and not panes.end["visible"]


def test_the_outline_follows_the_form(do):  # noqa: F811
    assert "3 prompts × 1 seed = 3 pairs, 6 votes." in do.outline(*form_of(do))
    assert "3 prompts" in do.outline(*form_of(do, title=""))
    assert "Width must be" in do.outline(*form_of(do, width=33))
    assert "no prompts" in do.outline(*form_of(do, prompts=""))
    assert "once the pictures are read" in do.outline(*form_of(do, source="bring"))
    assert not tags_of(do.outline(*form_of(do, models=[EVIL]))) & {"script", "img"}


def test_the_fields_follow_the_choices(do):  # noqa: F811
    makes, brings, file, typed, stop, criteria, *labels = do.kinds("make", "typed here", "pairwise", ["overall"])
    assert (makes["visible"], brings["visible"], file["visible"], typed["visible"]) == (True, False, False, True)
    assert stop["interactive"] and criteria == gr.skip()
    assert [label["label"] for label in labels] == ["Votes on each pair", "Pairs per rater (0: all)", "Gold pairs, %"]
    makes, brings, _, _, stop, criteria, *labels = do.kinds("bring", None, "rating", ["overall"])
    assert (makes["visible"], brings["visible"], stop["interactive"], stop["value"]) == (False, True, False, "fixed")
    assert labels[0]["label"] == "Votes on each picture"
    # The Overall of ratings is derived: whoever had chosen it alone gets the criteria that it is derived from.
    assert criteria["value"] == [known.key for known in PAPER]
    *_, criteria, _, _, _ = do.kinds("bring", None, "rating", ["overall", "detail"])
    assert criteria["value"] == ["detail"]


def test_the_timer_rests_while_another_tab_is_shown(do):  # noqa: F811
    assert do.left(press(value="Studies")) == gr.skip()
    assert not do.left(press(value="Compare")).active


def test_a_public_page_has_no_studies(options, unloaded):
    from app import ui

    def names(studio):
        return {entry["api_name"] for entry in ui.build(studio).get_config_file()["dependencies"]}

    local, public = names(unloaded()), names(unloaded(local_paths=False))
    assert {"vote", "bring_back", "make"} <= local
    assert not {"vote", "bring_back", "make", "choose_step"} & public


def test_the_table_of_quick_votes_lies_where_nobody_guesses(do):  # noqa: F811
    """On a public page anyone who has a picture's address knows the folder of all; the prompts are visitors' own."""
    vote = QuickVote("a" * 16, "a secret ball", 1, "base", "srpo", "left", {})
    assert do.book.store.quick_vote(vote)
    first, again = (Path(do.quick()[1]["value"]) for _ in range(2))
    assert first == again and "a secret ball" in first.read_text(encoding="utf-8-sig")
    assert len(first.parent.name) >= 16 and "quick" not in first.parent.name
    assert do.book.store.quick_vote(replace(vote, id="b" * 16))
    assert Path(do.quick()[1]["value"]) != first
