"""Voting on the app as it is served: killed while raters vote, crowded, ended by SIGTERM, and back from the Hub."""

import json
import urllib.error
import urllib.request
from contextlib import closing
from dataclasses import replace

import pytest

from app.services.studies import Studies
from benchmarks import app_process
from benchmarks.raters import Raters
from benchmarks.studies import drawn_study, kill_app, open_study
from srpo.studies.simulation import example_plan
from srpo.studies.store import Receipt, Store
from tests.app.serving import PATIENCE_S, served
from tests.studies.hub_server import TOKEN, hub_server


def post(address, path, body=None):
    """(status, content) of a request of the raters' page."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{address}vote/{path}", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_a_kill_of_the_whole_app_loses_no_acknowledged_vote_and_doubles_none(options, tmp_path):
    kills, acknowledged, lost, doubled = kill_app(options, tmp_path, 1)
    assert (kills, lost, doubled) == (1, 0, 0) and acknowledged > 0


def test_the_count_of_what_raters_lost_sees_a_store_that_forgets_and_one_that_lies(tmp_path, monkeypatch):
    with closing(Store(tmp_path / "studies.db")) as store:
        study = open_study(store, example_plan(prompts=12))
        code = store.join(study.id).code
        raters = Raters("", study.id, [code])
        raters._possible, raters._acknowledged = {(code, 0): {"left"}, (code, 1): {"tie"}}, {(code, 0): "left"}
        assert raters.lost_and_doubled(store) == (1, 0)
        for answer in ("right", "tie"):
            assert store.vote(code, store.showings(code)[0].ticket, {"overall": answer}, 1.0) == Receipt(
                True, {"overall": answer}
            )
        assert raters.lost_and_doubled(store) == (1, 1)


def test_a_crowd_is_refused_cleanly_and_loses_nothing(options, tmp_path):
    """Far more raters at once than there are places: each is told to come back, and is served in the end."""
    studies = Studies(replace(options, studies=tmp_path))
    study = open_study(studies.store, example_plan(prompts=12))
    codes = [studies.store.join(study.id).code for _ in range(200)]
    with app_process.started(options, studies=tmp_path) as app:
        app.wait_for_page()
        raters = Raters(app.address, study.id, codes)
        for thread in raters.vote(2):
            thread.join(PATIENCE_S)
    assert raters.acknowledged == 400
    assert raters.outcomes["refused"] > 0 and set(raters.outcomes) <= {"answered", "refused"}
    assert raters.lost_and_doubled(studies.store) == (0, 0)
    studies.store.close()


@pytest.fixture
def hub():
    with hub_server() as hub:
        yield hub


def test_votes_outlive_the_machine_when_the_app_is_asked_to_stop(options, tmp_path, hub):
    """SIGTERM commits what is left; another machine with an empty disk goes on where the raters were."""
    program = ("app.py", "--votes-dataset", "owner/votes")
    online = {"HF_ENDPOINT": hub.address, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
    first, second = (replace(options, studies=tmp_path / name) for name in ("first", "second"))
    studies = Studies(first)
    study = drawn_study(studies, example_plan(prompts=6), 8)
    with served(first, tmp_path / "first.txt", program, **online) as (address, _):
        code = post(address, f"{study.id}/join", {"claim": "0" * 32})[1]["place"]["code"]
        place = post(address, f"{study.id}/place", {"code": code, "count": 2})[1]["place"]
        for shown in place["ahead"]:
            vote = {"code": code, "ticket": shown["ticket"], "answers": {"overall": "left"}, "dwell_s": 1}
            status, receipt = post(address, f"{study.id}/vote", vote)
            assert status == 200 and set(receipt["standing"]["hub"]) == {"until_us", "problem"}
    studies.store.close()
    assert sum(line["table"] == "votes" for line in hub.journals()) == 2  # the app has ended, and well
    assert TOKEN not in (tmp_path / "first.txt").read_text()

    # A Space is told by its variables alone.
    space = online | {"SPACE_ID": "owner/studio", "SRPO_OPTIONS": "--votes-dataset owner/votes"}
    with served(second, tmp_path / "second.txt", **space) as (address, _):
        while (found := post(address, f"{study.id}/study"))[0] == 503:
            assert "on their way back from the Hub" in found[1]["sentence"]
        assert found[0] == 200 and found[1]["open"]
        status, standing = post(address, f"{study.id}/place", {"code": code, "count": 1})
        assert status == 200 and standing["place"]["done"] == 2
        file = standing["place"]["ahead"][0]["left"]
        with urllib.request.urlopen(f"{address}vote/{study.id}/pictures/{file}", timeout=PATIENCE_S) as picture:
            assert picture.read() == (studies.folder(study.id) / file).read_bytes()
        assert post(address, "nothing-here/study")[0] == 404
    assert hub.strangers == []
