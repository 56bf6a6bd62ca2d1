"""A page that anyone may open: less per request, device time per hour, and nothing that is the machine's own."""

import json
import time
from types import SimpleNamespace

import pytest

from app.services.compare import compare
from app.services.device import Device, StopFlag, wait_for_device
from app.services.grid import paint_grid
from app.services.public import HOUR_S, Budget, Limits
from app.services.recovery_requests import RecoverRequest
from app.services.requests import BadInput, CompareRequest, GridRequest
from app.state import Options
from app.tabs.compare import Handlers, account

ASKED = {"prompt": "a red ball", "seed": 3, "steps": 2, "width": 32, "height": 32, "left": "base", "right": "srpo"}


@pytest.fixture
def public(unloaded, studio):
    """A public studio on the models that are loaded already."""
    public = unloaded(local_paths=False)
    public._engine, public._thread = studio._engine, studio._thread
    return public


class Clock:
    """A time of day that stands still until it is moved."""

    def __init__(self):
        self.s = 1_800_000_000.0  # a whole minute: 08:00 UTC

    def __call__(self):
        return self.s


def spent(budget, user):
    """The sentence of a spent budget; "" where there is time."""
    try:
        budget.require(user)
    except BadInput as error:
        return str(error)
    return ""


def test_all_who_have_not_signed_in_share_a_budget_and_each_other_has_one():
    clock = Clock()
    budget = Budget(can_sign_in=True, shared_s=100, own_s=50, now=clock)
    budget.charge(None, 60)
    assert spent(budget, None) == ""
    budget.charge(None, 60)
    assert "visitors who have not signed in are spent" in spent(budget, None)
    assert spent(budget, None).endswith("Sign in for time of your own.")
    assert spent(budget, "ada") == ""
    budget.charge("ada", 50)
    assert "for ada are spent" in spent(budget, "ada") and "Sign in" not in spent(budget, "ada")
    assert spent(budget, "grace") == ""


def test_there_is_more_at_the_time_that_is_said_and_not_before():
    clock = Clock()
    budget = Budget(shared_s=100, now=clock)
    start = clock.s
    for seconds in (30, 30, 80):  # the first two have to be an hour old before less than 100 remain
        clock.s += 300
        budget.charge(None, seconds)
    said = spent(budget, None)
    again = start + 600 + HOUR_S
    assert time.strftime("there is more at %H:%M UTC.", time.gmtime(again)) in said
    clock.s = again - 1
    assert spent(budget, None)
    clock.s = again
    assert not spent(budget, None)
    clock.s = start + 2 * HOUR_S
    budget.require(None)
    assert budget._spent == {}  # nothing is kept of accounts that come no more


def test_a_turn_is_charged_to_the_visitor_for_as_long_as_it_holds_the_device():
    budget = Budget(own_s=0.05)
    device = Device("public-test", budget)
    with device.turn() as turn:
        assert list(wait_for_device(turn, StopFlag("ada"))) == []
        time.sleep(0.1)
    with device.turn() as turn, pytest.raises(BadInput, match="for ada are spent"):
        list(wait_for_device(turn, StopFlag("ada")))
    with device.turn() as turn:
        assert list(wait_for_device(turn, StopFlag("grace"))) == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"width": 272}, "at most 256 pixels per side, not 272"),
        ({"steps": 41}, "at most 40 steps, not 41"),
        ({"prompt": "x" * 501}, "at most 500 characters of a prompt, not 501"),
    ],
)
def test_a_request_beyond_the_limits_is_refused_before_any_work(public, changed, said):
    public.limits = Limits(side=256, steps=40, prompt_characters=500, pictures=12)
    started = time.monotonic()
    with pytest.raises(BadInput, match=said):
        list(compare(public, CompareRequest(**(ASKED | changed)), StopFlag()))
    assert time.monotonic() - started < 5 and public.device.budget._spent == {}


def test_a_grid_has_fewer_pictures_than_at_home(public):
    assert public.limits is not None and public.limits.pictures == 24  # this tiny model is not the miniature
    settings = {name: ASKED[name] for name in ("seed", "steps", "width", "height")}
    asked = GridRequest(prompts=("a", "b", "c", "d"), models=("base", "srpo"), num_seeds=4, **settings)
    with pytest.raises(BadInput, match="at most 24 pictures at once, not 32"):
        list(paint_grid(public, asked, StopFlag()))


def test_work_is_charged_and_refused_once_the_hour_is_spent(public):
    *_, last = compare(public, CompareRequest(**ASKED), StopFlag("ada"))
    assert last.phase == "done" and set(public.device.budget._spent) == {"ada"}
    public.device.budget.charge(None, 10_000)
    with pytest.raises(BadInput, match="there is more at"):
        list(compare(public, CompareRequest(**ASKED), StopFlag()))


def test_the_page_shows_the_sentence_and_the_signed_in_still_paint(public, request_of):
    public.device.budget.charge(None, 10_000)
    do = Handlers(public)
    values = (None, "fixed", 3, "a red ball", "base", "srpo", 1, 2, 3.5, 32, 32, "none")
    session = SimpleNamespace(last_seed=None, choose_seed=lambda mode, typed: typed)
    *_, last = do.generate(request_of(), session, *values[1:])
    assert "there is more at" in json.dumps(last[0], default=str)
    *_, last = do.generate(signed_in("ada"), session, *values[1:])
    assert "there is more at" not in json.dumps(last[0], default=str)
    assert set(public.device.budget._spent) == {None, "ada"}


def signed_in(name, expires_at=None):
    """A request whose signed cookie says who it is, as Gradio hands it on."""
    info = {"userinfo": {"preferred_username": name}, "expires_at": expires_at or time.time() + 60}
    return SimpleNamespace(session_hash="page-2", request=SimpleNamespace(scope={"session": {"oauth_info": info}}))


def test_an_account_is_what_the_signed_session_says_until_it_expires(request_of):
    assert account(signed_in("ada")) == "ada"
    assert account(signed_in("ada", expires_at=time.time() - 1)) is None
    assert account(request_of()) is None
    assert account(SimpleNamespace(session_hash="page", request=SimpleNamespace(scope={}))) is None


def test_at_home_there_is_no_limit_and_no_budget(studio):
    assert studio.limits is None and studio.device.budget is None and studio.max_steps == 100


def test_a_public_page_is_public_however_it_is_asked_for(monkeypatch):
    import runpy

    from tests.app.serving import ROOT

    parse_options = runpy.run_path(str(ROOT / "app.py"))["parse_options"]
    for name in ("SPACE_ID", "GRADIO_SERVER_NAME", "OAUTH_CLIENT_ID"):
        monkeypatch.delenv(name, raising=False)
    assert not parse_options([])[0].is_public
    assert parse_options(["--public"])[0].is_public
    monkeypatch.setenv("OAUTH_CLIENT_ID", "id")
    assert not parse_options(["--public"])[0].can_sign_in  # Gradio only pretends to, off a Space
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    options, served = parse_options([])
    assert options.is_public and served.host == "0.0.0.0"
    monkeypatch.setenv("SPACE_ID", "someone/studio")
    assert parse_options([])[0].can_sign_in


@pytest.mark.parametrize("can_sign_in", [True, False])
def test_the_page_offers_what_it_gives_and_to_sign_in_where_that_is_real(unloaded, monkeypatch, can_sign_in):
    from app import ui

    # The routes of the login come with gradio[oauth], which Spaces bring and this page needs nowhere else.
    monkeypatch.setattr("gradio.routes.attach_oauth", lambda app: None)
    public = unloaded(local_paths=False, can_sign_in=can_sign_in)
    parts = ui.build(public).config["components"]
    assert any(part["props"].get("elem_id") == "login" for part in parts) is can_sign_in
    [said] = [part["props"]["value"] for part in parts if part["props"].get("elem_id") == "limits"]
    assert "40 steps" in said and ("each who signs in" in said) is can_sign_in
    [steps] = [part["props"]["maximum"] for part in parts if part["props"].get("elem_id") == "steps"]
    assert steps == 40


def test_the_miniature_and_flux_have_limits_of_their_own():
    assert Limits.of(Options(), 128) is None
    assert Limits.of(Options(local_paths=False), 128) == Limits(256, 40, 500, 160)


def test_recoveries_count_as_pictures():
    asked = RecoverRequest(
        **{name: ASKED[name] for name in ("prompt", "seed", "steps", "width", "height")},
        **{"painter": "base", "source": "generate", "models": ("base", "srpo"), "num_noises": 16},
        sigmas="0.95-0.5/12",
        d_sigmas="0.075, 0.025",
    )
    assert asked.num_pictures == 2 * 12 * 4 * 16
    with pytest.raises(BadInput, match="at most 160 pictures at once, not 1,536"):
        Limits(256, 40, 500, 160).check(asked, [asked.prompt])
