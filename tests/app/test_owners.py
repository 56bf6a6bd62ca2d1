"""The owners of a public page: what is theirs alone, asked for over plain HTTP by them and by everybody else."""

import inspect
import json
import os
import runpy
import subprocess
import sys
from types import SimpleNamespace

import pytest

from app.owners import REFUSAL
from app.services.device import Device, StopFlag
from app.services.public import Budget, Limits, allowed_place
from app.services.requests import BadInput, parse
from app.services.study_plans import Brought, save_plan
from app.services.training_requests import TrainRequest
from tests.app.serving import PATIENCE_S, ROOT
from tests.app.signing_in import ENDED, attach_oauth, call, launched
from tests.app.test_space import names_of

OWNED = {"finetune": "app.tabs.finetune", "studies": "app.tabs.studies"}  # their modules, by the tabs' names


@pytest.fixture
def owned(unloaded, tmp_path, monkeypatch):
    """A studio whose public page is ada's."""
    monkeypatch.chdir(tmp_path)
    places = {name: tmp_path / name for name in ("runs", "studies")}
    return unloaded(local_paths=False, can_sign_in=True, owners=("ada",), **places)


def everything(folder):
    """Every file below the folder, with what is in it."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def values_for(page, event):
    """What the page itself holds for the event's inputs."""
    parts = {part["id"]: part["props"].get("value") for part in page.config["components"]}
    return [parts.get(place) for place in event["inputs"]]


def owned_events(page):
    """The events whose handlers come from the owners' tabs, read off the functions themselves."""
    modules = {number: inspect.unwrap(event.fn).__module__ for number, event in page.fns.items() if event.fn}
    return [event for event in page.config["dependencies"] if modules.get(event["id"]) in OWNED.values()]


def test_every_handler_of_the_owners_refuses_everybody_else_and_does_nothing(owned, monkeypatch, tmp_path):
    """Each event of the two tabs, asked for by nobody, by a stranger and by one whose login has ended."""
    with launched(owned, monkeypatch) as (address, page):
        ids, _ = names_of(page.config, within=set(OWNED))
        assert {"start", "delete-really", "study-save", "study-bring-back", "export"} <= ids
        events = owned_events(page)
        assert len(events) > 50
        before, said = everything(tmp_path), {"refused": 0, "skipped": 0}
        for number, event in enumerate(events):
            for account in ("", "eve", f"ada{ENDED}") if event["api_name"] == "start" else (("", "eve")[number % 2],):
                well, answer = call(address, event, values_for(page, event), account, f"page-{number}")
                if well:  # what the page fires for every visitor
                    outside = [target for target in event["targets"] if target[1] in ("load", "unload", "select")]
                    assert len(outside) == len(event["targets"]), (event["api_name"], answer)
                    data = json.loads(answer)["data"]
                    nothing = {"__type__": "update"}
                    for value in data:  # a component of ours wraps what it is told
                        assert value in (nothing, nothing | {"props": nothing}), (event["api_name"], answer)
                    said["skipped"] += 1
                else:
                    assert REFUSAL in answer, (event["api_name"], answer)
                    said["refused"] += 1
        assert everything(tmp_path) == before
        assert said["refused"] > 50 and said["skipped"] >= 3


def test_an_owner_is_shown_the_tabs_and_served_by_them(owned, monkeypatch):
    with launched(owned, monkeypatch) as (address, page):
        events = {event["api_name"]: event for event in page.config["dependencies"]}
        for account, shown in (("ada", True), ("eve", False), ("", False)):
            well, answer = call(address, events["show_workshop"], [], account)
            assert well and ('"visible":true' in answer.replace(" ", "")) is shown
        tuning = next(event for event in owned_events(page) if event["api_name"].startswith("open_page"))
        well, answer = call(address, tuning, [], "ada")
        assert well and "SRPO on the miniature" in answer
        start = next(event for event in page.config["dependencies"] if event["api_name"] == "start")
        well, answer = call(address, start, values_for(page, start), "ada")
        assert well and "name must be text" in answer, answer  # the handler was reached


def test_without_owners_a_public_page_has_nothing_of_theirs(unloaded, monkeypatch):
    from app import ui

    monkeypatch.setattr("gradio.routes.attach_oauth", attach_oauth)
    ids, names = names_of(ui.build(unloaded(local_paths=False, can_sign_in=True)).config)
    assert "start" not in ids and not {"delete", "show_workshop", "bring_back"} & names


def options_of(monkeypatch, *words, **environment):
    for name in ("SPACE_ID", "GRADIO_SERVER_NAME", "OAUTH_CLIENT_ID", "SPACE_AUTHOR_NAME", "SRPO_OWNERS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return runpy.run_path(str(ROOT / "app.py"))["parse_options"](list(words))[0]


SPACE = {"SPACE_ID": "ada/studio", "SPACE_AUTHOR_NAME": "ada", "GRADIO_SERVER_NAME": "0.0.0.0"}
LOGIN = SPACE | {"OAUTH_CLIENT_ID": "id"}


def test_owners_are_named_or_the_spaces_author_and_only_where_the_login_is_real(monkeypatch):
    assert options_of(monkeypatch, **LOGIN).owners == ("ada",)
    assert options_of(monkeypatch, "--owners", "grace, eve", **LOGIN).owners == ("grace", "eve")
    assert options_of(monkeypatch, SRPO_OWNERS="grace", **LOGIN).owners == ("grace",)
    no_login = options_of(monkeypatch, **SPACE)
    assert no_login.owners == () and not no_login.has_workshop
    assert options_of(monkeypatch).has_workshop  # at home
    assert not options_of(monkeypatch, "--host", "0.0.0.0").has_workshop


@pytest.mark.parametrize(
    ("words", "environment"),
    [
        (["--owners", "ada", "--host", "0.0.0.0"], {}),
        (["--owners", "ada", "--public"], {"OAUTH_CLIENT_ID": "id"}),
        ([], {"SRPO_OWNERS": "ada", "GRADIO_SERVER_NAME": "0.0.0.0"}),
        ([], {"SRPO_OPTIONS": "--owners ada", "SPACE_ID": "ada/studio"}),
    ],
)
def test_owners_without_a_login_are_refused_in_one_sentence(words, environment):
    ours = ("SPACE", "OAUTH", "GRADIO", "SRPO")
    plain = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    command = [sys.executable, "app.py", *words]
    done = subprocess.run(
        command, cwd=ROOT, env=plain | environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 2 and done.stdout == ""
    assert "--owners needs a login that can be trusted" in done.stderr and "Traceback" not in done.stderr


def test_the_words_of_a_space_stand_before_those_of_the_command_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["app.py", "--device", "mps"])
    monkeypatch.setenv("SRPO_OPTIONS", "--device cuda --text-tokens '77'")
    parsed = runpy.run_path(str(ROOT / "app.py"))["parse_options"]()[0]
    assert (parsed.device, parsed.text_tokens) == ("mps", 77)


def test_an_owner_names_what_lies_in_the_working_folder_and_no_more(owned, tmp_path_factory, monkeypatch):
    here, away = owned.options.runs.parent, tmp_path_factory.mktemp("away")
    (here / "mine").mkdir()
    (here / "link").symlink_to(away)
    options = owned.options
    assert allowed_place(options, "mine") and allowed_place(options, here / "mine" / "not-yet")
    assert allowed_place(options, ROOT / "assets" / "miniature" / "flux")
    assert allowed_place(options, options.srpo)  # what the app was started with
    for place in (
        "/etc/passwd",
        "..",
        "mine/../../x",
        str(away),
        "link",
        "link/x",
        "~",
        "~nobody-of-that-name",
        "a\0b",
    ):
        with pytest.raises(BadInput):
            allowed_place(options, place)
    home = SimpleNamespace(local_paths=True)
    assert allowed_place(home, away) == away


def test_neither_a_run_nor_a_study_of_an_owner_reads_beyond_it(owned, tmp_path_factory):
    away = tmp_path_factory.mktemp("away")
    (away / "prompts.txt").write_text("a ball\n")
    for line in (f"prompts={away / 'prompts.txt'}", f"reward=clip:{away}", f"offline.folder={away}", f"model={away}"):
        with pytest.raises(BadInput, match="in its working folder alone"):
            owned.finetune.check(parse(TrainRequest, {"preset": "studio", "more": line}))
    assert owned.finetune.check(parse(TrainRequest, {"preset": "studio"}))
    request = SimpleNamespace(source="bring")
    with pytest.raises(BadInput, match="in its working folder alone"):
        list(save_plan(owned, request, [Brought("a", away)], None, None, StopFlag()))


def test_an_owner_has_neither_a_budget_nor_a_limit(owned):
    budget = Budget(True, ("ada",), shared_s=1, own_s=1)
    budget.charge("ada", 100)
    budget.charge("eve", 100)
    budget.require("ada")
    with pytest.raises(BadInput, match="for eve are spent"):
        budget.require("eve")
    assert isinstance(owned.limits, Limits) and isinstance(owned.device, Device)
    assert owned.options.is_owner("ada") and not owned.options.is_owner("eve") and not owned.options.is_owner(None)
