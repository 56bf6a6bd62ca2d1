"""The rules of voting and their addresses, over real stores: what is stored, what is refused, what is told."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from app.services.requests import BadInput, parse
from app.services.studies import Studies
from app.services.voting import (
    Budget,
    JoinRequest,
    PlaceRequest,
    Refusal,
    UndoRequest,
    VoteRequest,
    Voting,
)
from app.state import Options
from app.voting import routes as served
from benchmarks.studies import drawn_study
from srpo.studies import store as keeping
from srpo.studies.criteria import PAPER, STANDARD
from srpo.studies.simulation import example_plan

LEFT = {"overall": "left"}


@pytest.fixture
def studies(tmp_path):
    made = Studies(Options(studies=tmp_path / "studies"))
    yield made
    made.store.close()


@pytest.fixture
def study(studies):
    return drawn_study(studies, example_plan(prompts=12), side=8)


@pytest.fixture
def voting(studies):
    return Voting(studies)


@pytest.fixture
def client(voting):
    with TestClient(Starlette(routes=served.routes(voting))) as client:
        yield client


def claim(number):
    return f"{number:032x}"


def join(client, study, number=0):
    """The code of a new rater."""
    answer = client.post(f"/vote/{study.id}/join", json={"claim": claim(number)})
    assert answer.status_code == 200, answer.text
    return answer.json()["place"]["code"]


def ahead(client, study, code, count=1):
    answer = client.post(f"/vote/{study.id}/place", json={"code": code, "count": count})
    assert answer.status_code == 200, answer.text
    return answer.json()["place"]["ahead"]


def vote(client, study, code, ticket, answers=LEFT, **more):
    body = {"code": code, "ticket": ticket, "answers": answers, "dwell_s": 2.5} | more
    return client.post(f"/vote/{study.id}/vote", json=body)


def test_an_invitation_says_what_is_asked_and_nothing_of_the_models(client, studies):
    plan = example_plan(prompts=12, criteria=STANDARD, settings={"steps": 28})
    told = client.get(f"/vote/{drawn_study(studies, plan, 8).id}/study")
    content = told.json()
    assert (content["title"], content["trials"], content["open"]) == (plan.title, plan.num_trials, True)
    assert [asked["question"] for asked in content["criteria"]] == [asked.question for asked in STANDARD]
    assert content["choices"] == ["left", "right", "tie", "both bad"]
    assert set(content) == {
        "title",
        "instructions",
        "mode",
        "choices",
        "criteria",
        "trials",
        "open",
        "ended",
        "message",
    }
    assert "model" not in told.text.lower() and "steps" not in told.text


def test_a_rater_goes_through_the_whole_study(client, studies, study):
    code = join(client, study)
    shown = ahead(client, study, code, count=3)
    seen = 0
    while shown:
        seen += 1
        answer = vote(client, study, code, shown[0]["ticket"], count=3)
        assert answer.status_code == 200 and answer.json()["recorded"]
        place = answer.json()["standing"]["place"]
        assert (place["done"], place["total"]) == (seen, study.plan.num_trials)
        shown = place["ahead"]
    assert seen == study.plan.num_trials == len(studies.store.votes(study.id))
    assert {kept.dwell_s for kept in studies.store.votes(study.id)} == {2.5}


def test_a_second_copy_of_a_vote_changes_nothing_and_is_acknowledged(client, studies, study):
    code = join(client, study)
    ticket = ahead(client, study, code)[0]["ticket"]
    assert vote(client, study, code, ticket).json()["recorded"] is True
    again = vote(client, study, code, ticket, {"overall": "right"})
    assert again.status_code == 200 and again.json()["recorded"] is False
    assert [kept.answers for kept in studies.store.votes(study.id)] == [LEFT]


def test_a_stored_vote_is_acknowledged_after_the_end_as_well(client, studies, study):
    code = join(client, study)
    first, second = ahead(client, study, code, 2)
    vote(client, study, code, first["ticket"])
    studies.store.end(study.id)
    again = vote(client, study, code, first["ticket"])
    assert again.status_code == 200 and again.json() == {"recorded": False, "standing": None}
    refused = vote(client, study, code, second["ticket"])
    assert refused.status_code == 410 and "has ended" in refused.json()["sentence"]


def test_an_undo_names_its_vote_so_that_a_second_copy_takes_nothing_else_back(client, studies, study):
    code = join(client, study)
    for shown in ahead(client, study, code, 3):
        last = vote(client, study, code, shown["ticket"]).json()["standing"]["place"]["last"]
        assert last == shown["ticket"]
    body = {"code": code, "ticket": last, "count": 2}
    first, second = (client.post(f"/vote/{study.id}/undo", json=body).json() for _ in range(2))
    assert first["showing"] == second["showing"]
    assert first["showing"]["ticket"] != last and first["showing"]["done"] == 2
    assert first["standing"]["place"]["ahead"][0] == first["showing"]
    assert len(studies.store.votes(study.id)) == 2
    assert vote(client, study, code, last).json()["recorded"] is False  # a late copy of what was taken back
    earlier = ahead(client, study, code)[0]["ticket"]
    assert vote(client, study, code, earlier).json()["recorded"]
    stale = client.post(f"/vote/{study.id}/undo", json=body)
    assert stale.status_code == 409 and "Only the last vote" in stale.json()["sentence"]


def test_one_claim_is_one_rater_however_often_it_is_made(voting, studies, study):
    asked = parse(JoinRequest, {"claim": claim(7)})
    with ThreadPoolExecutor(8) as pool:
        codes = set(pool.map(lambda _: voting.join(study.id, asked).place.code, range(16)))
    assert len(codes) == 1 and len(studies.store.raters(study.id)) == 1
    assert join_code(voting, study, 8) not in codes


def join_code(voting, study, number):
    return voting.join(study.id, parse(JoinRequest, {"claim": claim(number)})).place.code


def test_raters_start_from_one_budget_whatever_their_address(voting, study, monkeypatch):
    monkeypatch.setattr("app.services.voting.JOINS_AT_ONCE", 3)
    for number in range(3):
        join_code(voting, study, number)
    with pytest.raises(Refusal) as refused:
        join_code(voting, study, 4)
    assert refused.value.status == 429 and 1 <= refused.value.retry_s <= 3
    assert join_code(voting, study, 0)  # who has started already is not held back


def test_a_full_study_takes_no_more_raters_and_keeps_those_it_has(client, study, monkeypatch):
    monkeypatch.setattr(keeping, "MAX_RATERS", 1)
    code = join(client, study)
    answer = client.post(f"/vote/{study.id}/join", json={"claim": claim(1)})
    assert answer.status_code == 409 and "takes no more" in answer.json()["sentence"]
    assert vote(client, study, code, ahead(client, study, code)[0]["ticket"]).status_code == 200


def test_a_budget_refills_with_time():
    now = [0.0]
    budget = Budget(2, per_minute=30, clock=lambda: now[0])
    assert [budget.take(), budget.take()] == [0, 0]
    assert budget.take() == pytest.approx(2)
    now[0] = 1.9
    assert budget.take() == pytest.approx(0.1)
    now[0] = 2.1
    assert budget.take() == 0
    now[0] = 1e6
    assert [budget.take() > 0 for _ in range(3)] == [False, False, True]


@pytest.mark.parametrize(
    ("case", "status", "says"),
    [
        ("no study", 404, "no such study"),
        ("no rater", 404, "no rater with this code"),
        ("a rater of another study", 403, "belongs to another study"),
        ("a ticket of another rater", 403, "another rater or study"),
        ("an invented ticket", 403, "another rater or study"),
        ("answers that are none", 422, "answers every question"),
        ("an answer that is none", 422, "An answer is one of"),
        ("a look that is no time", 422, "time of a look"),
        ("a study that has not begun", 409, "has not begun"),
        ("a study that has ended", 410, "has ended"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_with_its_status(client, studies, study, case, status, says):
    other = drawn_study(studies, example_plan(prompts=12, seed=1), 8)
    mine, neighbour, stranger = join(client, study), join(client, study, 1), join(client, other)
    ticket = ahead(client, study, mine)[0]["ticket"]
    asked = {"study": study, "code": mine, "ticket": ticket, "answers": LEFT}
    if case == "no study":
        answer = client.post("/vote/nothing/place", json={"code": mine})
    elif case == "a study that has not begun":
        preparing = studies.store.create(example_plan(prompts=3))
        answer = client.post(f"/vote/{preparing.id}/join", json={"claim": claim(3)})
    else:
        asked |= {
            "no rater": {"code": "AAAA-AAAA"},
            "a rater of another study": {"code": stranger},
            "a ticket of another rater": {"ticket": ahead(client, study, neighbour)[0]["ticket"]},
            "an invented ticket": {"ticket": "0-0-" + "0" * 24},
            "answers that are none": {"answers": {"realism": "left"}},
            "an answer that is none": {"answers": {"overall": "middle"}},
            "a look that is no time": {"dwell_s": -1},
            "a study that has ended": {},
        }[case]
        if case == "a study that has ended":
            studies.store.end(study.id)
        answer = vote(client, **asked)
    assert answer.status_code == status
    assert says in answer.json()["sentence"] and list(answer.json()) == ["sentence"]
    assert studies.store.votes(study.id) == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"[]", 400),
        (b"null", 400),
        (b"\xff\xfe", 400),
        (b"[" * 10_000, 400),
        (b"x" * 20_000, 413),
        (b"{}", 422),
        (b'{"code": 7}', 422),
        (b'{"code": "\\ud800"}', 404),
        (b'{"code": "AAAA-AAAA", "count": 1000}', 422),
        (b'{"code": "AAAA-AAAA", "count": "\\ud800"}', 422),
        (b'{"code": "AAAA-AAAA", "model": "x"}', 422),
    ],
)
def test_requests_that_are_none_are_one_sentence(client, study, body, status):
    answer = client.post(f"/vote/{study.id}/place", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    assert answer.json()["sentence"].endswith((".", "!")) and len(answer.json()["sentence"]) < 200


def test_a_form_of_another_page_is_no_request(client, study):
    """A page elsewhere can post plain text without asking, but no JSON."""
    answer = client.post(f"/vote/{study.id}/place", content=b"{}", headers={"Content-Type": "text/plain"})
    assert answer.status_code == 415


def test_pictures_have_one_set_of_headers_and_nothing_but_pixels(client, studies, study):
    code = join(client, study)
    headers, chunks = set(), set()
    for shown in ahead(client, study, code, 12):
        for file in (shown["left"], shown["right"]):
            answer = client.get(f"/vote/{study.id}/pictures/{file}")
            assert answer.status_code == 200
            headers.add(tuple((name, value) for name, value in answer.headers.items() if name != "content-length"))
            chunks |= set(png_chunks(answer.content))
    assert len(headers) == 1
    names = {name for name, _ in headers.pop()}
    assert not names & {"etag", "last-modified", "set-cookie", "content-disposition"}
    assert chunks == {b"IHDR", b"IDAT", b"IEND"}


def png_chunks(data):
    """The types of the chunks of a PNG."""
    at = 8
    while at < len(data):
        yield data[at + 4 : at + 8]
        at += 12 + int.from_bytes(data[at : at + 4], "big")


def test_no_file_but_the_studys_pictures_is_served(client, studies, study):
    stranger = studies.folder(study.id) / f"{'0' * 32}.png"
    stranger.write_bytes(b"not noted")
    other = drawn_study(studies, example_plan(prompts=2, seed=5), 8)
    file = next(iter(studies.store.pictures(study.id).values())).file
    for path in (
        f"{study.id}/pictures/{stranger.name}",
        f"{study.id}/pictures/",
        f"{study.id}/pictures/..%2f..%2fstudies.db",
        f"{other.id}/pictures/{file}",
        f"nothing/pictures/{file}",
        "files/vote.html",
        "files/routes.py",
        "files/..%2froutes.py",
    ):
        assert client.get(f"/vote/{path}").status_code == 404, path
    preparing = studies.store.create(example_plan(prompts=2, seed=9))
    answer = client.get(f"/vote/{preparing.id}/pictures/{file}")
    assert answer.status_code == 409


def test_a_picture_that_is_gone_is_a_sentence(client, studies, study, caplog):
    file = next(iter(studies.store.pictures(study.id).values())).file
    (studies.folder(study.id) / file).unlink()
    answer = client.get(f"/vote/{study.id}/pictures/{file}")
    assert answer.status_code == 503 and "try again" in answer.json()["sentence"]
    assert str(studies.root) not in answer.text


def test_the_page_loads_nothing_from_elsewhere_and_runs_nothing_inline(client, study):
    page = client.get(f"/vote/{study.id}")
    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "script-src 'self';" in policy
    assert "http" not in page.text and " style=" not in page.text and " onclick" not in page.text
    assert client.get("/vote/anything-else").text == page.text  # it says nothing of any study
    for name in ("vote.js", "vote.css"):
        file = client.get(f"/vote/files/{name}")
        assert file.status_code == 200 and "nosniff" in file.headers["x-content-type-options"]
        assert "innerHTML" not in file.text and "//" not in file.text.replace("// ", "").replace("//$", "")


def test_an_address_with_a_slash_at_its_end_leads_to_the_page_behind_any_proxy(client, study):
    answer = client.get(f"/vote/{study.id}/", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (307, f"../{study.id}")
    assert client.get(f"/vote/{study.id}/").status_code == 200


@pytest.mark.parametrize("name", ["%E2%82%AC", "%0d%0aSet-Cookie:%20a=b", "%00", "%23", "%5cexample.org"])
def test_a_slash_behind_a_name_that_is_none_puts_nothing_into_the_headers(client, name):
    answer = client.get(f"/vote/{name}/", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"].lower()) == (
        307,
        f"../{name}".replace(":", "%3a").replace("=", "%3d").lower(),
    )
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("prefix", ["", "/some/where"])
def test_the_page_is_found_below_a_root_path_whether_the_proxy_keeps_it_or_not(voting, study, prefix):
    with TestClient(Starlette(routes=served.routes(voting)), root_path="/some/where") as client:
        assert client.get(f"{prefix}/vote/{study.id}/study").json()["open"]
        assert client.get(f"{prefix}/vote/{study.id}").status_code == 200


def test_what_is_too_much_at_once_is_refused_and_nothing_of_it_is_stored(voting, studies, study, monkeypatch):
    """More requests than there are places, while the store is held up: the rest is told to come back."""
    monkeypatch.setattr(served, "PLACES", 5)
    monkeypatch.setattr(served, "THREADS", 2)
    code = join_code(voting, study, 0)
    tickets = [
        shown.ticket for shown in voting.place(study.id, parse(PlaceRequest, {"code": code, "count": 12})).place.ahead
    ]
    held, whole = threading.Event(), studies.store.vote

    def slow(*arguments, **more):
        held.wait(10)
        return whole(*arguments, **more)

    monkeypatch.setattr(studies.store, "vote", slow)
    with TestClient(Starlette(routes=served.routes(voting))) as client, ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(vote, client, study, code, ticket) for ticket in tickets]
        while sum(one.done() for one in asked) < len(asked) - 5:
            threading.Event().wait(0.02)
        held.set()
        answers = [one.result() for one in asked]
        refused = [answer for answer in answers if answer.status_code == 503]
        assert len(refused) == len(tickets) - 5
        assert all("trying again" in answer.json()["sentence"] and answer.headers["retry-after"] for answer in refused)
        assert sum(answer.status_code == 200 for answer in answers) == 5 == len(studies.store.votes(study.id))
        assert vote(client, study, code, tickets[-1]).status_code == 200  # the places are free again


def test_a_database_that_does_not_answer_acknowledges_nothing(client, studies, study, monkeypatch):
    code = join(client, study)
    ticket = ahead(client, study, code)[0]["ticket"]

    def fail(*arguments, **more):
        raise keeping.Unavailable("The database of the studies does not answer: nothing was stored, try again.")

    with monkeypatch.context() as broken:
        broken.setattr(studies.store, "vote", fail)
        answer = vote(client, study, code, ticket)
        assert answer.status_code == 503 and answer.headers["retry-after"] == "2"
    assert vote(client, study, code, ticket).json()["recorded"]


def test_a_vote_is_acknowledged_although_what_comes_next_cannot_be_told(client, studies, study, monkeypatch):
    code = join(client, study)
    ticket = ahead(client, study, code)[0]["ticket"]

    def fail(*arguments, **more):
        raise keeping.Unavailable("The database of the studies does not answer: nothing was stored, try again.")

    monkeypatch.setattr(studies.store, "place", fail)
    answer = vote(client, study, code, ticket)
    assert answer.status_code == 200 and answer.json() == {"recorded": True, "standing": None}


def test_what_nobody_foresaw_is_a_sentence_without_a_word_of_the_inside(client, studies, study, monkeypatch):
    monkeypatch.setattr(studies.store, "study", lambda identity: 1 / 0)
    answer = client.get(f"/vote/{study.id}/study")
    assert answer.status_code == 500 and answer.json() == {"sentence": served.UNEXPECTED}


def test_studies_that_cannot_be_opened_name_no_path(tmp_path, caplog):
    place = tmp_path / "secret-place"
    place.mkdir()
    (place / "studies.db").write_text("no database")
    with TestClient(Starlette(routes=served.routes(Voting(Studies(Options(studies=place)))))) as client:
        answer = client.get("/vote/anything/study")
    assert answer.status_code == 503 and "secret-place" not in answer.text


def test_a_study_that_may_still_come_back_from_the_hub_is_not_said_to_be_unknown(tmp_path):
    """Also in the moment between the page's first answer and the first question to the Hub."""
    studies = Studies(Options(studies=tmp_path, votes_dataset="owner/votes"))
    with TestClient(Starlette(routes=served.routes(Voting(studies)))) as client:
        answer = client.get("/vote/anything/study")
    assert answer.status_code == 503 and answer.headers["retry-after"] == "5"
    studies.store.close()


def test_a_study_of_ratings_takes_a_level_for_each_question(client, studies):
    study = drawn_study(studies, example_plan(prompts=12, mode="rating", criteria=PAPER), 8)
    code = join(client, study)
    (shown,) = ahead(client, study, code)
    assert shown["right"] is None
    levels = {"alignment": "Good", "realism": "Fail", "detail": "Pass", "aesthetics": "Excellent"}
    assert vote(client, study, code, shown["ticket"], levels).json()["recorded"]
    assert studies.store.votes(study.id)[0].answers == levels


@pytest.mark.parametrize("kind", [PlaceRequest, VoteRequest, UndoRequest])
def test_fields_that_mean_nothing_are_refused(kind):
    good = {"code": "AAAA-AAAA", "ticket": "0-0-x", "answers": LEFT, "dwell_s": 1.0, "count": 1}
    fields = {name: good[name] for name in kind.model_fields}
    assert parse(kind, fields).code == "AAAA-AAAA"
    with pytest.raises(BadInput, match="means nothing"):
        parse(kind, fields | {"rater": 3})
