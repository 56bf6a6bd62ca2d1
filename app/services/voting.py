"""What raters may ask for, and what they are told: the rules of voting, whatever serves them.

Nothing that leaves here tells a model: a rater gets the study's title, its questions, prompts, random names of pictures
and signed tickets. Every refusal is one sentence with the HTTP status that fits it.
"""

from __future__ import annotations

import logging
import math
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict

from app.services.requests import between, whole
from app.services.studies import Studies
from srpo.studies.criteria import CHOICES, LEVELS, Criterion
from srpo.studies.hub import Saved
from srpo.studies.store import (
    ENDED,
    NOT_BEGUN,
    Ended,
    Foreign,
    NotBegun,
    Place,
    Rater,
    Refused,
    Showing,
    Store,
    Unavailable,
    Unfit,
    Unknown,
)

log = logging.getLogger(__name__)

MAX_AHEAD = 24  # trials that are told at once
MAX_TEXT = 200  # characters of a code or a ticket
MAX_CLAIMS = 10_000
JOINS_AT_ONCE = 100
JOINS_PER_MINUTE = 30

STATUS = {Foreign: 403, NotBegun: 409, Ended: 410, Unfit: 422}  # 409 for whatever else is refused


class Refusal(Exception):
    """Why a rater does not get what was asked for: one sentence, with the HTTP status that says the same."""

    def __init__(self, status: int, sentence: str, retry_s: int | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.retry_s = retry_s  # where asking again may help: after so long


def _text(name: str, advice: str) -> Callable[[object], str]:
    def check(value: object) -> str:
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{name} is missing: {advice}.")
        if len(value) > MAX_TEXT:
            raise ValueError(f"{name} is too long: {advice}.")
        return value

    return check


def _claim(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{32}", value):
        raise ValueError("The page asked to start in a way that means nothing here: reload it.")
    return value


Code = Annotated[str, BeforeValidator(_text("The code", "type it, or start as a new rater"))]
Ticket = Annotated[str, BeforeValidator(_text("The ticket of the vote", "reload the page"))]
Count = Annotated[int, BeforeValidator(whole("The number of pairs ahead", 0, MAX_AHEAD))]


class Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class JoinRequest(Request):
    """A new rater. The claim is the page's own, so that a second copy of the wish starts nobody else."""

    claim: Annotated[str, BeforeValidator(_claim)]


class PlaceRequest(Request):
    """Where the rater is, and the next trials."""

    code: Code
    count: Count = 0


class VoteRequest(PlaceRequest):
    """The answers about one trial; `count` trials after it are told with the receipt."""

    ticket: Ticket
    answers: dict[str, str]
    dwell_s: Annotated[float, BeforeValidator(between("The time of a look", 0, 1e9))]


class UndoRequest(PlaceRequest):
    """The last vote is to be taken back; its ticket says which one is meant."""

    ticket: Ticket


@dataclass(frozen=True)
class Invitation:
    """What a study says to whoever may take part."""

    title: str
    instructions: str
    mode: str
    choices: tuple[str, ...]  # the answers to each question
    criteria: tuple[Criterion, ...]
    trials: int
    open: bool
    ended: bool  # for good
    message: str  # a sentence, where the study is not open


@dataclass(frozen=True)
class Standing:
    """Where a rater is, and how safe the votes are."""

    place: Place
    now_us: int  # by the server's clock: every vote acknowledged so far was stored before it
    hub: Saved | None  # None where votes go to no Hub


@dataclass(frozen=True)
class Voted:
    """The receipt of a vote, and what comes next."""

    recorded: bool
    standing: Standing | None  # None where the study ended, or the database failed, just after


@dataclass(frozen=True)
class Undone:
    """The trial to be answered anew, and where that leaves the rater."""

    showing: Showing
    standing: Standing | None


class Budget:
    """So many at once, and so many a minute from then on. Shared by all: addresses can be forged, or are one."""

    def __init__(self, at_once: int, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._per_s, self._clock = at_once, per_minute / 60, clock
        self._left, self._at_s = float(at_once), clock()

    def take(self) -> float:
        """0 where one is granted, else the seconds until the next one is."""
        now_s = self._clock()
        self._left = min(self._most, self._left + (now_s - self._at_s) * self._per_s)
        self._at_s = now_s
        if self._left < 1:
            return (1 - self._left) / self._per_s
        self._left -= 1
        return 0.0


class Voting:
    """The studies as raters meet them. All calls may block, and may come from many threads."""

    def __init__(self, studies: Studies) -> None:
        self._studies = studies
        self._joining = threading.Lock()
        self._budgets: dict[str, Budget] = {}  # of studies that exist
        self._claims: OrderedDict[tuple[str, str], Rater] = OrderedDict()  # the latest
        self._files: dict[str, frozenset[str]] = {}  # the pictures' names of studies that have begun

    def invitation(self, study: str) -> Invitation:
        """What the study is about, also before it begins and after its end."""
        with self._refusing():
            found = self._store().study(study)
        plan = found.plan
        said = {"preparing": NOT_BEGUN, "closed": ENDED}
        return Invitation(
            plan.title,
            plan.instructions,
            plan.mode,
            CHOICES if plan.mode == "pairwise" else LEVELS,
            plan.criteria,
            plan.num_trials,
            found.state == "open",
            found.state == "closed",
            said.get(found.state, ""),
        )

    def join(self, study: str, asked: JoinRequest) -> Standing:
        """A new rater's place, at its beginning. The same rater again for a claim that was granted before."""
        with self._refusing():
            store = self._store()
            with self._joining:
                rater = self._claims.get((study, asked.claim))
                if rater is None:
                    store.study(study)
                    budget = self._budgets.setdefault(study, Budget(JOINS_AT_ONCE, JOINS_PER_MINUTE))
                    if wait_s := budget.take():
                        raise Refusal(429, "Many are starting at this moment: try again soon.", math.ceil(wait_s))
                    rater = self._claims[study, asked.claim] = store.join(study)
                    if len(self._claims) > MAX_CLAIMS:
                        self._claims.popitem(last=False)
            return self._standing(store, study, rater.code, 0)

    def place(self, study: str, asked: PlaceRequest) -> Standing:
        with self._refusing():
            return self._standing(self._store(), study, asked.code, asked.count)

    def vote(self, study: str, asked: VoteRequest) -> Voted:
        """The receipt, once the vote is on the disk. A second copy of a vote changes nothing, and gets one as well."""
        with self._refusing():
            store = self._store()
            receipt = store.vote(asked.code, asked.ticket, asked.answers, asked.dwell_s, study=study)
            return Voted(receipt.recorded, self._standing_after(store, study, asked))

    def undo(self, study: str, asked: UndoRequest) -> Undone:
        with self._refusing():
            store = self._store()
            showing = store.undo(asked.code, asked.ticket, study=study)
            return Undone(showing, self._standing_after(store, study, asked))

    def picture(self, study: str, file: str) -> bytes:
        """A picture of a study that has begun.

        No code is asked for: a name has 128 random bits and is told only to raters whose trial shows it, an <img> can
        carry a code in its address alone, where logs and histories would keep it, and the picture tells no model.
        """
        with self._refusing():
            if file not in self._known_files(study):
                raise Refusal(404, "There is no such picture here.")
        try:
            return (self._studies.folder(study) / file).read_bytes()
        except OSError:
            log.exception("A picture of the study %s cannot be read.", study)
            raise Refusal(503, "A picture cannot be read at the moment: try again.", 5) from None

    # Inside

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """What the store refuses, as a Refusal."""
        was_whole = self._studies.is_whole  # before the store is asked: it may become whole meanwhile
        try:
            yield
        except Unknown as error:
            if not was_whole:
                raise Refusal(503, "The studies are still on their way back from the Hub.", 5) from None
            raise Refusal(404, str(error)) from None
        except Refused as error:
            raise Refusal(STATUS.get(type(error), 409), str(error)) from None
        except Unavailable as error:
            log.warning("%s", error.__cause__)
            raise Refusal(503, str(error), 2) from None

    def _store(self) -> Store:
        try:
            return self._studies.store
        except ValueError:
            log.exception("The studies cannot be opened.")
            raise Refusal(503, "The studies cannot be opened at the moment: tell whoever runs them.", 30) from None

    def _standing(self, store: Store, study: str, code: str, count: int) -> Standing:
        now_us = time.time_ns() // 1000
        hub = None if self._studies.hub is None else self._studies.hub.saved
        return Standing(store.place(code, count, study=study), now_us, hub)

    def _standing_after(self, store: Store, study: str, asked: PlaceRequest) -> Standing | None:
        """The standing after something was stored, whose receipt nothing that fails here may hold back."""
        try:
            return self._standing(store, study, asked.code, asked.count)
        except (Refused, Unavailable):
            return None

    def _known_files(self, study: str) -> frozenset[str]:
        """The names of the study's pictures, once it has begun and they no longer change."""
        if study not in self._files:
            store = self._store()
            if store.study(study).state == "preparing":
                raise NotBegun(NOT_BEGUN)
            self._files[study] = frozenset(made.file for made in store.pictures(study).values())
        return self._files[study]
