"""Quick votes: stored once, counted by pair of models, safe to open in a spreadsheet."""

import csv
import io

import gradio as gr
import pytest

from app.services.compare import compare
from app.services.device import StopFlag
from app.services.requests import BadInput, CompareRequest
from app.services.study_quick import offers, quick_csv, quick_vote, tallies
from app.state import Session
from app.tabs.compare import Handlers
from srpo.studies.estimates import clustered
from srpo.studies.store import QuickVote
from tests.app.test_study_pictures import do as studies_do  # noqa: F401

REQUEST = CompareRequest(
    prompt="a red ball", left="base", right="srpo", seed=3, num_seeds=2, steps=1, width=32, height=32
)


@pytest.fixture
def fresh(studies_do):  # noqa: F811
    """The loaded studio over studies of its own."""
    return studies_do.studio


@pytest.fixture
def offered(fresh):
    (*_, last) = compare(fresh, REQUEST, StopFlag())
    return offers(last, REQUEST)


def test_one_click_is_stored_with_the_settings_and_a_second_changes_nothing(fresh, offered):
    first, second = offered
    assert "Stored" in quick_vote(fresh, offered, {"pair": first, "answer": "right"})
    assert "already" in quick_vote(fresh, offered, {"pair": first, "answer": "left"})
    assert "Stored" in quick_vote(fresh, offered, {"pair": second, "answer": "both bad"})
    votes = fresh.studies.store.quick_votes()
    assert [(vote.seed, vote.answer) for vote in votes] == [(3, "right"), (4, "both bad")]
    assert votes[0].prompt == "a red ball" and votes[0].left != votes[0].right
    assert votes[0].facts["steps"] == 1 and votes[0].facts["right_model"] == "srpo"


@pytest.mark.parametrize(
    "raw",
    [
        {"pair": "not-on-the-stage", "answer": "left"},
        {"pair": None, "answer": "left"},
        {"pair": "x" * 100, "answer": "left"},
        {"pair": ["a"], "answer": "left"},
    ],
)
def test_a_pair_that_is_not_on_the_stage_takes_no_vote(fresh, offered, raw):
    with pytest.raises(BadInput):
        quick_vote(fresh, offered, raw)
    assert fresh.studies.store.quick_votes() == []


@pytest.mark.parametrize("answer", ["up", None, "", 1, "LEFT"])
def test_an_answer_that_is_none_is_refused(fresh, offered, answer):
    with pytest.raises(BadInput):
        quick_vote(fresh, offered, {"pair": next(iter(offered)), "answer": answer})
    assert fresh.studies.store.quick_votes() == []


def test_two_sides_of_one_model_are_not_voted_on(fresh):
    request = REQUEST.model_copy(update={"right": "base"})
    (*_, last) = compare(fresh, request, StopFlag())
    assert last.is_one_model and offers(last, request) == {}


def test_the_page_offers_its_own_pairs_alone(fresh, request_of):
    handlers, session = Handlers(fresh), Session()
    values = ["fixed", 3, "a red ball", "base", "srpo", 1, 1, 3.5, 32, 32, "none"]
    (*_, last) = handlers.generate(request_of(), session, *values)
    (name,) = session.offers
    assert last[0]["pairs"][0]["id"] == name
    press = gr.EventData(None, {"pair": name, "answer": "left"})
    assert handlers.vote(Session(), press)["voted"]["stored"] is False
    said = handlers.vote(session, press)["voted"]
    assert said["stored"] and "not blind" in said["message"]
    assert len(fresh.studies.store.quick_votes()) == 1


def vote(number, prompt, left="A", right="B", answer="left", **facts):
    return QuickVote(f"vote-{number:04}", prompt, 0, left, right, answer, facts, number)


def test_votes_are_counted_by_pair_whatever_the_sides(fresh):
    votes = [vote(0, "p"), vote(1, "p", "B", "A"), vote(2, "q", answer="tie"), vote(3, "q", "B", "A", "both bad")]
    votes += [vote(4, "p", "A", "C")]
    first, second = tallies(votes)
    assert (first.first, first.second, first.votes) == ("A", "B", 4)
    assert (first.first_won, first.second_won, first.ties, first.both_bad) == (1, 1, 1, 1)
    assert first.share.value == 0.5 and not first.share.is_enough
    assert (second.first, second.second, second.first_won) == ("A", "C", 1)


def test_the_interval_takes_a_prompt_as_one_observation():
    votes = [
        vote(20 * prompt + n, f"p{prompt}", answer="left" if prompt % 3 else "right")
        for prompt in range(12)
        for n in range(5)
    ]
    (tally,) = tallies(votes)
    prompts = [f"p{prompt}" for prompt in range(12) for _ in range(5)]
    scores = [float(prompt % 3 > 0) for prompt in range(12) for _ in range(5)]
    assert tally.share == clustered(prompts, scores) and tally.share.prompts == 12


def test_the_table_is_safe_to_open():
    votes = [vote(0, "=1+1", "@A", "B", steps=1), vote(1, "a ball", steps=2, guidance=3.5)]
    first, second = csv.DictReader(io.StringIO(quick_csv(votes).decode("utf-8-sig")))
    assert (first["prompt"], first["left"], first["steps"]) == ("'=1+1", "'@A", "1")
    assert (second["guidance"], first["guidance"]) == ("3.5", "")
