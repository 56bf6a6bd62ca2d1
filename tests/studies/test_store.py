"""The store, on SQLite and on a real PostgreSQL server: what is acknowledged is there once, and for its rater alone."""

from __future__ import annotations

import json
import re
import threading
from dataclasses import asdict, replace

import pytest

from benchmarks.studies import open_study, picture_rows
from srpo.studies import store as module
from srpo.studies.criteria import PAPER
from srpo.studies.schedule import Shown, schedule
from srpo.studies.schema import Filters
from srpo.studies.simulation import example_plan, simulate
from srpo.studies.store import Foreign, QuickVote, Receipt, Refused, Store, Unknown
from tests.studies.keeping import vote_next

LEFT = {"overall": "left"}


def test_a_study_goes_from_preparation_over_voting_to_its_end(store):
    plan = example_plan(prompts=12)
    study = store.create(plan)
    assert (study.state, study.version, study.series, study.sha256) == ("preparing", 1, study.id, plan.sha256)
    with pytest.raises(Refused, match="has not begun"):
        store.join(study.id)
    with pytest.raises(Refused, match="has not begun"):
        store.end(study.id)
    rows = picture_rows(plan)
    store.add_pictures(study.id, rows[:-3])
    with pytest.raises(Refused, match="3 pictures of the study are missing"):
        store.open(study.id)
    store.add_pictures(study.id, rows[-4:])  # one of them for the second time
    assert store.open(study.id).state == store.open(study.id).state == "open"
    with pytest.raises(Refused, match="cannot change"):
        store.add_pictures(study.id, rows[:1])
    with pytest.raises(Refused, match="revealed when the study has ended"):
        store.reveal(study.id)
    ended = store.end(study.id)
    assert ended.state == "closed" and ended.created_us <= ended.opened_us <= ended.closed_us
    assert store.end(study.id) == ended
    with pytest.raises(Refused, match="has ended"):
        store.open(study.id)
    labels = store.reveal(study.id)
    assert labels == {row.file: plan.label(row.shown.model) for row in rows}
    assert store.studies() == [ended]


def test_a_picture_that_the_study_does_not_have_is_refused(store):
    plan = example_plan()
    study = store.create(plan)
    stranger = replace(picture_rows(plan)[0], shown=Shown(99, 0, "model-0"))
    with pytest.raises(Refused, match="no place in the study"):
        store.add_pictures(study.id, [stranger])


def test_all_of_a_raters_votes_come_back_as_given(store):
    plan = example_plan(prompts=12)
    study = open_study(store, plan)
    rater = store.join(study.id)
    trials = schedule(plan, rater.number)
    choices = ["left", "right", "tie", "both bad"]
    for number in range(plan.num_trials):
        (shown,) = store.showings(rater.code)
        assert (shown.done, shown.total) == (number, plan.num_trials)
        assert shown.prompt == plan.prompts[trials[number].prompt].text
        given = {"overall": choices[number % 4]}
        assert store.vote(rater.code, shown.ticket, given, 1.5 + number) == Receipt(True, given)
    assert store.showings(rater.code) == []
    kept = store.votes(study.id)
    assert [vote.trial for vote in kept] == list(trials)
    assert [vote.answers["overall"] for vote in kept] == [choices[number % 4] for number in range(len(trials))]
    assert [vote.dwell_s for vote in kept] == [1.5 + number for number in range(len(trials))]
    assert [vote.at_us for vote in kept] == sorted({vote.at_us for vote in kept})


def test_a_showing_names_the_pictures_by_their_files_and_nothing_else(store):
    plan = example_plan(prompts=12)
    study = open_study(store, plan)
    rater = store.join(study.id)
    files = {picture.file: shown for shown, picture in store.pictures(study.id).items()}
    for showing, trial in zip(store.showings(rater.code, 99), schedule(plan, 0), strict=True):
        assert (files[showing.left], files[showing.right]) == trial.pictures
        sent = json.dumps(asdict(showing))
        assert not any(text in sent for model in plan.models for text in (model.key, model.label))
        assert "spoiled" not in sent and "gold" not in sent


def test_the_next_trials_can_be_fetched_ahead(store):
    study = open_study(store, example_plan(prompts=12))
    rater = store.join(study.id)
    ahead = store.showings(rater.code, 3)
    assert len(ahead) == 3
    store.vote(rater.code, ahead[1].ticket, LEFT, 1.0)  # out of turn is fine
    assert [shown.ticket for shown in store.showings(rater.code, 2)] == [ahead[0].ticket, ahead[2].ticket]


def test_a_repeated_click_changes_nothing_whatever_it_says(store):
    study = open_study(store, example_plan(prompts=12))
    rater = store.join(study.id)
    ticket = store.showings(rater.code)[0].ticket
    assert store.vote(rater.code, ticket, LEFT, 2.0).recorded
    for again in (LEFT, {"overall": "right"}, {"nonsense": 1}):
        assert store.vote(rater.code, ticket, again, 9.0) == Receipt(False, LEFT)
    (kept,) = store.votes(study.id)
    assert (dict(kept.answers), kept.dwell_s) == (LEFT, 2.0)


def test_a_vote_can_be_taken_back_and_a_late_copy_of_it_does_not_come_back(store):
    study = open_study(store, example_plan(prompts=12))
    rater = store.join(study.id)
    first, second = (shown.ticket for shown in store.showings(rater.code, 2))
    for ticket in (first, second):
        store.vote(rater.code, ticket, LEFT, 2.0)
    again = store.undo(rater.code)
    assert again == store.showings(rater.code)[0]
    assert again.ticket != second and again.done == 1
    assert len(store.votes(study.id)) == 1
    assert store.vote(rater.code, second, LEFT, 2.0) == Receipt(False, None)
    assert len(store.votes(study.id)) == 1
    right = {"overall": "right"}
    assert store.vote(rater.code, again.ticket, right, 2.0) == Receipt(True, right)
    assert store.vote(rater.code, second, LEFT, 2.0) == Receipt(False, right)
    assert [vote.answers for vote in store.votes(study.id)] == [LEFT, right]
    for left in (1, 0):
        store.undo(rater.code)
        assert len(store.votes(study.id)) == left
    with pytest.raises(Refused, match="no vote to take back"):
        store.undo(rater.code)


def test_every_change_of_votes_counts_as_one_and_nothing_else_does(store):
    study, other = (open_study(store, example_plan(prompts=12)) for _ in range(2))
    rater = store.join(study.id)
    assert store.changes(study.id) == 0
    first, second = (shown.ticket for shown in store.showings(rater.code, 2))
    store.vote(rater.code, first, LEFT, 1.0)
    assert store.changes(study.id) == 1
    store.vote(rater.code, second, LEFT, 1.0)
    store.vote(rater.code, second, LEFT, 1.0)  # a second copy
    assert store.changes(study.id) == 2
    again = store.undo(rater.code)
    assert store.changes(study.id) == 3
    store.undo(rater.code, second)  # a second copy of the same wish
    assert store.changes(study.id) == 3
    store.vote(rater.code, again.ticket, LEFT, 1.0)  # the same answer as before it was taken back
    assert store.changes(study.id) == 4
    assert store.changes(other.id) == 0


def test_a_raters_place_tells_the_next_trials_and_the_vote_that_can_be_taken_back(store):
    study = open_study(store, example_plan(prompts=12))
    rater = store.join(study.id)
    place = store.place(rater.code, 2)
    assert (place.done, place.total, place.last) == (0, study.plan.num_trials, None)
    assert list(place.ahead) == store.showings(rater.code, 2)
    first, second = (shown.ticket for shown in place.ahead)
    for ticket in (first, second):
        store.vote(rater.code, ticket, LEFT, 1.0)
        assert store.place(rater.code).last == ticket
    assert store.place(rater.code, 0).ahead == ()
    store.undo(rater.code, second)
    assert (store.place(rater.code).done, store.place(rater.code).last) == (1, first)


def test_a_second_copy_of_an_undo_takes_no_other_vote_back(store):
    study = open_study(store, example_plan(prompts=12))
    rater, neighbour = store.join(study.id), store.join(study.id)
    first, second = (shown.ticket for shown in store.showings(rater.code, 2))
    for ticket in (first, second):
        store.vote(rater.code, ticket, LEFT, 1.0)
    with pytest.raises(Refused, match="Only the last"):
        store.undo(rater.code, first)
    once = store.undo(rater.code, second)
    assert store.undo(rater.code, second) == once and once.done == 1
    assert len(store.votes(study.id)) == 1
    store.vote(rater.code, once.ticket, LEFT, 1.0)
    for stale in (second, first, store.showings(rater.code)[0].ticket):  # the last has not been answered at all
        with pytest.raises(Refused, match="Only the last"):
            store.undo(rater.code, stale)
    with pytest.raises(Foreign):
        store.undo(rater.code, store.showings(neighbour.code)[0].ticket)
    assert len(store.votes(study.id)) == 2


def test_a_code_works_in_its_own_study_alone_where_one_is_named(store):
    one, other = open_study(store, example_plan(prompts=12)), open_study(store, example_plan(prompts=12, seed=1))
    rater = store.join(one.id)
    ticket = store.showings(rater.code)[0].ticket
    for ask in (
        lambda study: store.place(rater.code, study=study),
        lambda study: store.vote(rater.code, ticket, LEFT, 1.0, study=study),
        lambda study: store.undo(rater.code, study=study),
    ):
        with pytest.raises(Foreign, match="belongs to another study"):
            ask(other.id)
        with pytest.raises(Unknown, match="no such study"):
            ask("nothing")
    assert store.vote(rater.code, ticket, LEFT, 1.0, study=one.id).recorded


def test_a_rater_comes_back_by_the_code_however_it_is_written(store):
    study = open_study(store, example_plan(prompts=12))
    rater = store.join(study.id)
    assert re.fullmatch(r"[2-9A-Z]{4}-[2-9A-Z]{4}", rater.code)
    for written in (rater.code.lower(), rater.code.replace("-", ""), f"  {rater.code.replace('-', ' ')} "):
        assert store.rater(written) == rater
    assert store.join(study.id).number == 1
    assert store.raters(study.id)[0] == rater


@pytest.mark.parametrize("code", ["", "ABCD-EFGH", "x" * 10_000, "a\0b", "\ud800", "' OR 1=1 --", None, 7])
def test_a_code_that_does_not_exist_is_refused(store, code):
    open_study(store, example_plan(prompts=12))
    for ask in (store.rater, store.showings, store.undo, lambda text: store.vote(text, "0-0-x", LEFT, 1.0)):
        with pytest.raises(Refused, match="no rater with this code"):
            ask(code)


@pytest.mark.parametrize("identity", ["", "nothing", "a\0b", "\ud800", None])
def test_a_study_that_does_not_exist_is_refused(store, identity):
    for ask in (store.study, store.join, store.votes, store.open, store.end, store.reveal):
        with pytest.raises(Refused, match="no such study"):
            ask(identity)


def test_a_vote_for_a_foreign_trial_is_refused(store):
    """A ticket of another rater, of another study, of a trial that is not there, and invented ones."""
    one, other = open_study(store, example_plan(prompts=12)), open_study(store, example_plan(prompts=12, seed=1))
    rater, neighbour, stranger = store.join(one.id), store.join(one.id), store.join(other.id)
    own = store.showings(rater.code)[0].ticket
    tickets = [store.showings(who.code)[0].ticket for who in (neighbour, stranger)]
    tickets += [
        own.replace("0-0", "999-0", 1),
        own.replace("0-0", "0-1", 1),
        own[:-1],
        "",
        "0-0-" + "0" * 24,
        None,
        "é",
        own.replace("0-0", "\u0660-0", 1),  # a digit, and int() reads it
    ]
    for ticket in tickets:
        with pytest.raises(Refused, match="another rater or study"):
            store.vote(rater.code, ticket, LEFT, 1.0)
    assert store.votes(one.id) == store.votes(other.id) == []


def test_after_the_end_no_vote_is_taken_but_a_stored_one_is_still_acknowledged(store):
    study = open_study(store, example_plan(prompts=12))
    rater = store.join(study.id)
    first, second = (shown.ticket for shown in store.showings(rater.code, 2))
    store.vote(rater.code, first, LEFT, 1.0)
    store.end(study.id)
    assert store.vote(rater.code, first, LEFT, 1.0) == Receipt(False, LEFT)
    for refused in (
        lambda: store.vote(rater.code, second, LEFT, 1.0),
        lambda: store.showings(rater.code),
        lambda: store.undo(rater.code),
        lambda: store.join(study.id),
    ):
        with pytest.raises(Refused, match="has ended"):
            refused()
    assert len(store.votes(study.id)) == 1


@pytest.mark.parametrize("answers", [{}, {"overall": "middle"}, {"overall": "left", "more": "left"}, None, "left"])
def test_answers_that_do_not_fit_are_refused_and_the_trial_stays_open(store, answers):
    study = open_study(store, example_plan(prompts=12))
    rater = store.join(study.id)
    ticket = store.showings(rater.code)[0].ticket
    with pytest.raises(Refused):
        store.vote(rater.code, ticket, answers, 1.0)
    with pytest.raises(Refused, match="number of seconds"):
        store.vote(rater.code, ticket, LEFT, float("nan"))
    assert store.showings(rater.code)[0].ticket == ticket
    assert store.vote(rater.code, ticket, LEFT, 1.0).recorded


def test_a_rating_study_shows_one_picture_and_stores_a_level_for_each_criterion(store):
    plan = example_plan(prompts=12, mode="rating", criteria=PAPER)
    study = open_study(store, plan)
    rater = store.join(study.id)
    (shown,) = store.showings(rater.code)
    assert shown.right is None
    levels = {"alignment": "Good", "realism": "Fail", "detail": "Pass", "aesthetics": "Excellent"}
    assert store.vote(rater.code, shown.ticket, levels, 1.0).recorded
    assert store.votes(study.id)[0].answers == levels


def test_a_changed_plan_replaces_itself_while_it_is_prepared_and_is_a_new_version_afterwards(store):
    plan = example_plan(prompts=12)
    study = store.create(plan)
    with pytest.raises(ValueError, match="has not changed"):
        store.revise(study.id, plan)
    changed = example_plan(prompts=13)
    same = store.revise(study.id, changed)
    assert (same.id, same.version, same.plan) == (study.id, 1, changed)
    store.add_pictures(study.id, picture_rows(changed))
    store.open(study.id)
    rater = store.join(study.id)
    vote_next(store, rater)
    second = store.revise(study.id, example_plan(prompts=14))
    assert (second.version, second.series, second.state) == (2, study.id, "preparing")
    third = store.revise(study.id, example_plan(prompts=13, filters=Filters(min_gold=None)))
    assert third.version == 3
    assert store.study(study.id).plan == changed
    assert len(store.votes(study.id)) == 1 and store.votes(second.id) == []
    assert {known.id for known in store.studies()} == {study.id, second.id, third.id}


def test_many_raters_at_once_lose_nothing_and_share_nothing(store):
    """Ten threads join and give all of their votes, each of them twice."""
    plan = example_plan(prompts=8)
    study = open_study(store, plan)
    errors = []

    def work():
        try:
            rater = store.join(study.id)
            while shown := store.showings(rater.code):
                for _ in range(2):
                    store.vote(rater.code, shown[0].ticket, LEFT, 1.0)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sorted(rater.number for rater in store.raters(study.id)) == list(range(10))
    kept = store.votes(study.id)
    assert len(kept) == len({(vote.rater, vote.trial.number) for vote in kept}) == 10 * plan.num_trials


def test_one_vote_clicked_by_many_threads_is_recorded_once(store):
    study = open_study(store, example_plan(prompts=12))
    rater = store.join(study.id)
    ticket = store.showings(rater.code)[0].ticket
    receipts = []
    threads = [
        threading.Thread(target=lambda: receipts.append(store.vote(rater.code, ticket, LEFT, 1.0))) for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(receipt.recorded for receipt in receipts) == [False] * 11 + [True]
    assert len(store.votes(study.id)) == 1


def test_two_stores_on_one_place_see_each_others_votes(store, place):
    study = open_study(store, example_plan(prompts=12))
    rater = store.join(study.id)
    other = Store(place)
    try:
        assert vote_next(other, rater)
        assert vote_next(store, rater)
        assert len(store.votes(study.id)) == len(other.votes(study.id)) == 2
        store.end(study.id)
        with pytest.raises(Refused, match="has ended"):
            vote_next(other, rater)
    finally:
        other.close()


def test_everything_is_there_after_closing_and_opening(place):
    first = Store(place)
    study = open_study(first, example_plan(prompts=12))
    rater = first.join(study.id)
    vote_next(first, rater)
    before = first.votes(study.id)
    first.close()
    again = Store(place)
    assert again.votes(study.id) == before
    assert again.showings(rater.code)[0].done == 1
    again.close()


def test_a_full_study_takes_no_more_raters(store, monkeypatch):
    monkeypatch.setattr(module, "MAX_RATERS", 2)
    study = open_study(store, example_plan(prompts=12))
    store.join(study.id), store.join(study.id)
    with pytest.raises(Refused, match="takes no more"):
        store.join(study.id)


def test_hostile_text_is_stored_as_text(store):
    evil = "'; DROP TABLE votes; -- <script>alert(1)</script> =cmd|' /C calc'!A0"
    study = open_study(store, example_plan([evil, "a ball"], title=evil))
    rater = store.join(study.id)
    assert evil in {shown.prompt for shown in store.showings(rater.code, 9)}
    assert vote_next(store, rater)
    assert store.study(study.id).plan.title == evil


def test_a_restored_study_is_closed_and_has_the_same_votes(store):
    plan = example_plan(prompts=12)
    given = simulate(plan, 3, 0)
    rows = picture_rows(plan)
    study = store.restore(plan, 2, given, rows)
    assert (study.state, study.version) == ("closed", 2)
    assert set(map(repr, store.votes(study.id))) == set(map(repr, given))
    assert len(store.raters(study.id)) == 3
    assert len(store.reveal(study.id)) == len(rows)
    assert store.votes(store.restore(plan, 1, []).id) == []


def test_a_quick_vote_is_stored_once(store):
    vote = QuickVote("abcdefgh-1", "a ball", 7, "base", "srpo", "right", {"steps": 28})
    assert store.quick_vote(vote)
    assert not store.quick_vote(replace(vote, answer="left"))
    assert store.quick_vote(replace(vote, id="abcdefgh-2", answer="tie"))
    first, second = store.quick_votes()
    assert (first.answer, second.answer, dict(first.facts)) == ("right", "tie", {"steps": 28})
    assert 0 < first.at_us <= second.at_us


@pytest.mark.parametrize(
    "changes",
    [
        {"answer": "middle"},
        {"id": "short"},
        {"id": "x" * 65},
        {"id": "a\0bcdefgh"},
        {"facts": {"x": "y" * 5000}},
        {"prompt": "a\0b"},
        {"prompt": "\ud800"},
        {"left": ""},
    ],
)
def test_a_quick_vote_that_does_not_fit_is_refused(store, changes):
    vote = QuickVote("abcdefgh-1", "a ball", 7, "base", "srpo", "right", {})
    with pytest.raises(Refused):
        store.quick_vote(replace(vote, **changes))
    assert store.quick_votes() == []
