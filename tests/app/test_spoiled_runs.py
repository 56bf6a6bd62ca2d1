"""Run folders that anything may have happened to, under a page that watches them: a sentence, and never a traceback."""

import json
import shutil
import time
import traceback

import pytest
import torch
from safetensors.torch import save_file

from app.services.device import StopFlag
from app.services.requests import BadInput
from app.state import Resumption, Watching
from app.tabs.finetune import Handlers
from tests.app.folders import checkpoint, make_run, pretend_to_run

RECORDS = (
    "state.json", "job.json", "heartbeat.json", "best.json", "kept.json", "config.json", "environment.json",
    "samples/samples.json",
)  # fmt: skip
LOGS = ("progress.jsonl", "validation.jsonl")
TEXTS = ("", "null", "[]", '{"a": 1}', "[" * 100_000, "\0" * 4096, "5", '"x"', "{", "\ud800", "9" * 5000)
ODD = (None, -1, float("inf"), "<img src=x>", {}, [1], True, 1e308, 2**70, float("nan"), "", [], {"a": 1})
PLACES = (
    *RECORDS, *LOGS, "checkpoints", "checkpoints/update-000002/manifest.json", "log.txt", "samples",
    "checkpoints/update-000002/transformer.safetensors", "samples/update-000003", "samples/update-000003/00.png",
)  # fmt: skip
FEW = 5  # of the texts and values, in the default suite


@pytest.fixture
def do(unloaded, tmp_path):
    return Handlers(unloaded(runs=tmp_path / "runs"))


@pytest.fixture
def run(do, tmp_path):
    """A run that has everything a run may have, and looks alive."""
    run = make_run(do.tune.root, status="running")
    save_file({"weight": torch.zeros(2)}, tmp_path / "weights.safetensors")
    checkpoint(run, 2, (tmp_path / "weights.safetensors").read_bytes())
    run.keep(2)
    pretend_to_run(run, time.time(), 3)
    make_run(do.tune.root, "whole")
    return run


def looks(do):
    """What a page asks of the run, each on its own."""
    tune = do.tune
    return {
        "look": lambda: do.show(Watching(), "one"),
        "living": lambda: do.look(Watching()),
        "compare": lambda: do.compare(["one", "whole"]),
        "open": lambda: tune.model_id("one"),
        "forms": lambda: tune.export_forms("one"),
        "copy": lambda: tune.settings_like("one"),
        "fill": lambda: do.copy(Watching(run="one")),
        "keep": lambda: tune.keep("one", 2),
        "ask": lambda: do.ask_delete(Watching(run="one")),
        "models": lambda: do.studio.catalogue.models(),
        "find": lambda: do.studio.catalogue.find("run:one@2"),
        "resume": lambda: [*tune.resume(Resumption("one", from_update=2), StopFlag())],
        "extend": lambda: [*tune.resume(Resumption("one", updates=99), StopFlag())],
        "planned": lambda: tune.planned("one"),
        "export": lambda: tune.export("one", "full", 2, "float32"),
    }


def defects(do, what):
    """What of a page's questions does not end as it may: in an answer, or in a sentence."""
    found = []
    for name, look in looks(do).items():
        try:
            look()
        except BadInput as error:
            if "\n" in str(error) or len(str(error)) > 1000:
                found.append((what, name, "no sentence", str(error)[:200]))
        except Exception as error:
            found.append((what, name, repr(error)[:200], traceback.extract_tb(error.__traceback__)[-1].line))
    return found


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch):
    def refuse(*_, **__):
        raise ValueError("no process is started here")

    monkeypatch.setattr("srpo.runs.control._spawn", refuse)


# Each fault in turn, and all of a page's questions after it


def spoil(do, run, name, few):
    """What is met with each text in the place of the file, and with each value in the place of each field."""
    file, found = run.path / name, []
    whole = file.read_bytes()
    for text in TEXTS[:few]:
        file.write_bytes((text + "\n").encode("utf-8", "surrogatepass") * 2 + whole)
        found += defects(do, text[:30])
    content = json.loads(whole.splitlines()[-1] if name in LOGS else whole)
    for field in content if isinstance(content, dict) else ():
        for odd in ODD[:few]:
            file.write_text(whole.decode() * (name in LOGS) + json.dumps(content | {field: odd}) + "\n")
            found += defects(do, (field, odd))
        file.write_text(json.dumps({key: value for key, value in content.items() if key != field}) + "\n")
        found += defects(do, (field, "missing"))
    return found


@pytest.mark.parametrize("name", (*RECORDS, *LOGS))
def test_whatever_a_file_says_the_page_answers(do, run, name):
    assert not (found := spoil(do, run, name, FEW)), "\n".join(map(str, found))


@pytest.mark.slow
@pytest.mark.parametrize("name", (*RECORDS, *LOGS))
def test_whatever_at_all_a_file_says_the_page_answers(do, run, name):
    assert not (found := spoil(do, run, name, None)), "\n".join(map(str, found))


@pytest.mark.parametrize("name", PLACES)
def test_whatever_stands_in_the_place_of_a_file_the_page_answers(do, run, name, tmp_path):
    place, found = run.path / name, []
    if place.exists():
        shutil.move(place, tmp_path / "kept")
    found += defects(do, "missing")
    place.unlink(missing_ok=True)  # what is kept was noted anew
    place.mkdir()
    found += defects(do, "a folder")
    place.rmdir()
    place.touch()
    found += defects(do, "empty")
    for link in (place.name, tmp_path / "nowhere", run.path):
        place.unlink()
        place.symlink_to(link)
        found += defects(do, f"a link to {link}")
    assert not found, "\n".join(map(str, found))


@pytest.mark.parametrize("name", ("x1", "1_0", "²1", "--1", "-1", "9" * 200))
@pytest.mark.parametrize("parent", ("checkpoints", "samples"))
def test_folders_that_are_named_by_no_update_are_left_out(do, run, parent, name):
    folder = run.path / parent / f"update-{name}"
    folder.mkdir()
    for file in ("manifest.json", "transformer.safetensors", "00.png", "01.png"):
        (folder / file).write_text("{}")
    assert not (found := defects(do, name)), "\n".join(map(str, found))
    assert run.checkpoint_updates() == [2] and list(run.samples().pictures) == [0, 3]


def test_pictures_that_go_while_they_are_listed_leave_the_others(do, run):
    """A run that goes back removes its samples under the page."""
    snapshot, listed = do.tune.snapshot("one"), run.samples()
    shutil.rmtree(run.path / "samples" / "update-000003")
    snapshot.reader.run = type("Listed", (), {"name": "one", "samples": lambda self: listed})()
    assert snapshot.film().updates == (0,)


def test_a_clock_that_was_set_back_hides_no_run(do, run):
    """Signs of life of tomorrow, by a clock that was wrong."""
    pretend_to_run(run, time.time() + 86_400, 3)
    assert 'data-status="running"' in do.show(Watching(), "one").head
