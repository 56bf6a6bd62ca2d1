"""Studies that outlive their machine: committed to a dataset of a Hub on loopback, and brought back from it."""

import json
import threading
import time
from contextlib import closing

import pytest
from huggingface_hub import constants

from app.services.studies import Studies
from app.services.voting import Refusal, Voting
from app.state import Options
from benchmarks.studies import drawn_study, picture_rows
from srpo.studies import hub as module
from srpo.studies.hub import Hub, read_journal
from srpo.studies.simulation import example_plan, simulate
from srpo.studies.store import NotBegun, QuickVote, Store
from tests.studies.hub_server import TOKEN, hub_server
from tests.studies.keeping import vote_next

PATIENCE_S = 60


@pytest.fixture
def server(monkeypatch):
    """A Hub on loopback, which is the one that is asked."""
    with hub_server() as server:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server
        assert server.strangers == []


@pytest.fixture
def machine(tmp_path):
    """A machine with an empty disk of its own: `machine()` gives (its studies, their copy on the Hub)."""
    made = []

    def make(**more):
        root = tmp_path / f"machine-{len(made)}"
        studies = Studies(Options(studies=root))
        made.append(studies)
        return studies, Hub("owner/votes", studies.store, studies.folder, root / "hub", **more)

    yield make
    for studies in made:
        studies.store.close()


def everything(store):
    """All that a store holds of the studies that have begun, in an order of its own."""
    begun = [study.id for study in store.studies() if study.state != "preparing"]
    rows = [row for identity in begun for row in store.rows(identity)] + store.quick_rows()
    return sorted(json.dumps(row, sort_keys=True) for row in rows)


def until(is_so):
    ends_s = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < ends_s
        time.sleep(0.02)


def test_a_study_with_its_pictures_raters_and_votes_comes_back_on_an_empty_machine(server, machine):
    studies, hub = machine()
    hub.restore()
    assert hub.is_restored and server.exists and server.private
    store = studies.store
    study = drawn_study(studies, example_plan(prompts=4), 8)
    rater = store.join(study.id)
    for answer in ("left", "right", "tie"):
        vote_next(store, rater, answer)
    store.undo(rater.code)
    store.quick_vote(QuickVote("abcdefgh-1", "a ball", 7, "base", "srpo", "right", {"steps": 28}))
    store.create(example_plan(prompts=2))  # one that is still prepared belongs to this machine
    hub.push()

    other, copy = machine()
    copy.restore()
    assert everything(other.store) == everything(store)
    assert len(other.store.studies()) == 1
    for shown, made in store.pictures(study.id).items():
        assert other.store.pictures(study.id)[shown] == made
        served = other.folder(study.id) / made.file
        assert served.read_bytes() == (studies.folder(study.id) / made.file).read_bytes()
        assert served.stat().st_mtime == (studies.folder(study.id) / made.file).stat().st_mtime
    # The rater goes on there by the code; a late copy of the vote that was taken back does not come back.
    assert other.store.place(rater.code).done == 2
    assert vote_next(other.store, rater, "both bad")
    copy.push()
    assert len(server.commits[-1]) == 1 and server.commits[-1] != server.commits[-2]  # a journal of its own
    third, again = machine()
    again.restore()
    assert everything(third.store) == everything(other.store)
    assert [vote.answers["overall"] for vote in third.store.votes(study.id)] == ["left", "right", "both bad"]


def test_only_what_has_changed_is_committed(server, machine):
    studies, hub = machine()
    study = drawn_study(studies, example_plan(prompts=3), 8)
    rater = studies.store.join(study.id)
    hub.restore()
    hub.push()
    before = len(server.commits)
    saved_us = hub.saved.until_us
    hub.push()
    assert len(server.commits) == before and hub.saved.until_us > saved_us
    vote_next(studies.store, rater)
    hub.push()
    assert len(server.commits) == before + 1
    votes = [line for line in server.journals() if line["table"] == "votes"]
    assert len(votes) == 1
    studies.store.undo(rater.code)
    hub.push()
    assert [line["row"]["undone"] for line in server.journals() if line["table"] == "votes"] == [0, 1]
    # A restarted process says nothing twice.
    other = Hub("owner/votes", studies.store, studies.folder, studies.root / "hub")
    other.restore()
    before = len(server.commits)
    other.push()
    assert len(server.commits) == before


def test_everything_stored_before_the_moment_that_is_told_is_there(server, machine):
    studies, hub = machine()
    hub.restore()
    study = drawn_study(studies, example_plan(prompts=30), 8)
    rater = studies.store.join(study.id)
    stop = threading.Event()

    def work():
        while not stop.is_set() and vote_next(studies.store, rater):
            pass

    thread = threading.Thread(target=work)
    thread.start()
    for _ in range(5):
        hub.push()
        there = {line["row"]["trial"] for line in server.journals() if line["table"] == "votes"}
        told = [vote.trial.number for vote in studies.store.votes(study.id) if vote.at_us < hub.saved.until_us]
        assert set(told) <= there
    stop.set()
    thread.join()


def test_a_hub_that_does_not_answer_costs_no_vote_and_is_asked_again(server, machine, monkeypatch):
    monkeypatch.setattr(module, "LOOK_S", 0.05)
    studies, hub = machine(every_s=0.05)
    server.fails = True
    study = drawn_study(studies, example_plan(prompts=6), 8)
    rater = studies.store.join(study.id)
    hub.start()
    until(lambda: hub.saved.problem)
    assert not hub.is_restored and "votes are safe here" in hub.saved.problem and hub.saved.until_us is None
    assert vote_next(studies.store, rater)
    server.fails = False
    until(lambda: hub.saved.until_us)
    assert hub.saved.problem == ""
    server.fails = True
    assert vote_next(studies.store, rater)
    until(lambda: hub.saved.problem)
    server.fails = False
    until(lambda: sum(line["table"] == "votes" for line in server.journals()) == 2)
    hub.stop()


def test_the_end_of_a_study_and_of_the_process_are_committed_at_once(server, machine, monkeypatch):
    monkeypatch.setattr(module, "LOOK_S", 0.05)
    studies, hub = machine(every_s=3600)
    study = drawn_study(studies, example_plan(prompts=6), 8)
    other = drawn_study(studies, example_plan(prompts=6, seed=1), 8)
    rater = studies.store.join(study.id)
    hub.start()
    until(lambda: hub.saved.until_us)
    vote_next(studies.store, rater)
    studies.store.end(study.id)
    until(lambda: any(line["row"].get("state") == "closed" for line in server.journals()))
    assert sum(line["table"] == "votes" for line in server.journals()) == 1
    vote_next(studies.store, studies.store.join(other.id))
    hub.stop()
    assert sum(line["table"] == "votes" for line in server.journals()) == 2


def test_a_study_brought_back_without_its_pictures_keeps_no_votes_of_others_from_the_hub(server, machine):
    """An export holds no pictures, so those of the study it becomes lie nowhere."""
    studies, hub = machine()
    plan = example_plan(12)
    ended = studies.store.restore(plan, 1, simulate(plan, 1, 1), picture_rows(plan))
    hub.restore()
    hub.push()
    study = drawn_study(studies, example_plan(prompts=3), 8)
    assert vote_next(studies.store, studies.store.join(study.id))
    hub.push()
    other, copy = machine()
    copy.restore()
    assert len(other.store.votes(study.id)) == 1
    assert other.store.votes(ended.id) == studies.store.votes(ended.id)


def test_a_dataset_that_anybody_may_read_is_refused(server, machine):
    server.exists, server.private = True, False
    _, hub = machine()
    with pytest.raises(ValueError, match="is public"):
        hub.restore()
    assert server.commits == []


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("journals/a.jsonl", b"{}\n", "is damaged"),
        ("journals/a.jsonl", b"not json\n", "is damaged"),
        ("journals/a.jsonl", b'{"format": 2, "table": "votes", "row": {}}\n', "format 2"),
        ("journals/a.jsonl", b'{"format": 1, "table": "votes", "row": {}}\n', "none of this program's"),
        ("journals/a.jsonl", b'{"format": 1, "table": "secrets", "row": {"a": 1}}\n', "none of this program's"),
    ],
)
def test_a_dataset_that_is_none_of_ours_changes_nothing(server, machine, name, data, says):
    server.exists, server.files[name] = True, data
    studies, hub = machine()
    with pytest.raises(ValueError, match=says):
        hub.restore()
    assert studies.store.studies() == [] and not hub.is_restored


def test_what_cannot_be_brought_back_keeps_nothing_from_being_saved(server, machine):
    server.exists, server.files["journals/a.jsonl"] = True, b"not json\n"
    studies, hub = machine(every_s=3600)
    study = drawn_study(studies, example_plan(prompts=2), 8)
    vote_next(studies.store, studies.store.join(study.id))
    hub.start()
    until(lambda: hub.saved.problem)
    hub.stop()
    assert not hub.is_restored
    ours = next(data for name, data in server.files.items() if name.startswith("journals/2"))
    assert b'"votes"' in ours


def test_pictures_that_were_changed_or_are_missing_bring_no_study_back(server, machine):
    studies, hub = machine()
    drawn_study(studies, example_plan(prompts=2), 8)
    hub.restore()
    hub.push()
    name = next(name for name in server.files if name.endswith(".png"))
    for data in (server.files[name] + b"more", None):
        server.files.pop(name)
        if data:
            server.files[name] = data
        other, copy = machine()
        with pytest.raises(ValueError, match="missing, or was changed"):
            copy.restore()
        assert other.store.studies() == []


def test_a_study_that_comes_back_while_it_is_asked_for_is_never_unknown(server, machine, tmp_path, monkeypatch):
    """A rater who is told 404 leaves; one who is told 503 is asked to come again."""
    studies, hub = machine()
    study = drawn_study(studies, example_plan(prompts=2), 8)
    hub.restore()
    hub.push()
    other = Studies(Options(studies=tmp_path / "other", votes_dataset="owner/votes"))
    with closing(other.store) as store:
        other.hub = Hub("owner/votes", store, other.folder, tmp_path / "other-hub")

        def found_just_before_it_comes_back(identity, find=store.study):
            try:
                return find(identity)
            finally:
                other.hub.restore()

        monkeypatch.setattr(store, "study", found_just_before_it_comes_back)
        voting = Voting(other)
        with pytest.raises(Refusal, match="on their way back") as refused:
            voting.invitation(study.id)
        assert refused.value.status == 503 and other.is_whole
        assert voting.invitation(study.id).open
        with pytest.raises(Refusal) as refused:
            voting.invitation("nothing-here")
        assert refused.value.status == 404


@pytest.mark.parametrize("dataset", ["votes", "a/b/c", "../votes", "a b/c", ""])
def test_a_name_that_is_none_is_refused_at_once(dataset, machine):
    studies, _ = machine()
    with pytest.raises(ValueError, match="OWNER/NAME"):
        Hub(dataset, studies.store, studies.folder, studies.root)


def test_rows_can_be_merged_in_any_order_and_however_often(store, tmp_path):
    """The same is stored in the end, also where an older state comes after a newer one; on either database."""
    with closing(Store(tmp_path / "source.db")) as source:
        from benchmarks.studies import open_study

        study = open_study(source, example_plan(prompts=12))
        rater = source.join(study.id)
        states = []
        for answer in ("left", "right"):
            vote_next(source, rater, answer)
            states.append(source.rows(study.id))
        source.undo(rater.code)
        states.append(source.rows(study.id))
        vote_next(source, rater, "tie")
        states.append(source.rows(study.id))
        source.end(study.id)
        states.append(source.rows(study.id))
        for state in (states[1], states[4], states[0], states[2], states[3], states[4]):
            store.merge(state)
        assert sorted(map(repr, store.rows(study.id))) == sorted(map(repr, source.rows(study.id)))
        assert store.study(study.id).state == "closed"
        assert [vote.answers["overall"] for vote in store.votes(study.id)] == ["left", "tie"]
        with pytest.raises(NotBegun):
            store.rows(store.create(example_plan(prompts=2)).id)


def test_rows_that_do_not_belong_together_are_refused_whole(store, tmp_path):
    with closing(Store(tmp_path / "source.db")) as source:
        from benchmarks.studies import open_study

        study = open_study(source, example_plan(prompts=12))
        vote_next(source, source.join(study.id))
        rows = source.rows(study.id)
    changed = [
        (name, values | {"plan": example_plan(prompts=3).as_text()} if name == "studies" else values)
        for name, values in rows
    ]
    orphans = [(name, values) for name, values in rows if name == "votes"]
    odd = [(name, values | {"trial": "first"} if name == "votes" else values) for name, values in rows]
    for some in (changed, orphans, odd):
        with pytest.raises(ValueError):
            store.merge(some)
        assert store.studies() == []


def test_a_journal_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [("votes", {"study": "a", "answers": '{"overall": "left"}', "dwell_s": 0.1, "at_us": 2**53})]
    path.write_text("".join(module._line(*row) for row in rows), encoding="utf-8")
    assert read_journal(path) == rows
