"""Studies, raters and votes, kept so that an acknowledged vote is never lost and never counted twice.

A vote is keyed by (study, rater, trial) and acknowledged when its transaction is on the disk. Raters know a trial by a
ticket that the store has signed: a ticket of another rater, another study or an earlier attempt is recognised, and one
that comes a second time changes nothing. Which model made a picture stands here alone; raters get random names.
"""

from __future__ import annotations

import hmac
import json
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from srpo.studies import tables
from srpo.studies.criteria import CHOICES
from srpo.studies.schedule import Shown, Trial, schedule
from srpo.studies.schedule import pictures as pictures_of
from srpo.studies.schema import MAX_PROMPT_CHARACTERS, MAX_TEXT_CHARACTERS, Plan, Version, one_line
from srpo.studies.tables import quick_votes, raters, studies, votes
from srpo.studies.votes import Vote, check_answers, check_dwell

State = Literal["preparing", "open", "closed"]
Row = tuple[str, dict[str, Any]]  # a table's name, and the values of its columns
COPIED = (studies, tables.pictures, raters, votes)  # in the order in which they refer to one another
CODE_LETTERS = "23456789ABCDEFGHJKMNPQRSTVWXYZ"  # none that look alike, or make words
CODE_LENGTH = 8
MAX_RATERS = 10_000
MAX_FACTS = 4000  # characters, of a quick vote
NOT_BEGUN = "This study has not begun yet: come back later."
ENDED = "This study has ended: thank you, no more votes are needed."


class Refused(ValueError):
    """What a rater asked for cannot be done; one sentence says why."""


class Unknown(Refused):
    """There is no such study, or no rater with such a code."""


class Foreign(Refused):
    """The code or the trial is another rater's, or another study's."""


class Unfit(Refused):
    """The answers are none to the study's questions."""


class NotBegun(Refused):
    """The study is still being prepared."""


class Ended(Refused):
    """The study is closed."""


class Unavailable(OSError):
    """The database could not be reached or written; nothing was acknowledged, so trying again is safe."""


@dataclass(frozen=True)
class Study:
    """A study as it stands."""

    id: str
    series: str  # the id of its first version
    version: int
    plan: Plan
    sha256: str
    state: State
    created_us: int
    opened_us: int | None
    closed_us: int | None


@dataclass(frozen=True)
class Rater:
    """One person's place in a study."""

    study: str
    number: int
    code: str


@dataclass(frozen=True)
class Picture:
    """A picture as it is served, and what only the server knows of it."""

    shown: Shown
    file: str  # a random name
    sha256: str
    source_sha256: str
    width: int
    height: int


@dataclass(frozen=True)
class Showing:
    """What a rater is shown; nothing in it tells the models."""

    ticket: str
    prompt: str
    left: str  # names of files
    right: str | None
    done: int  # trials that the rater has answered
    total: int


@dataclass(frozen=True)
class Place:
    """Where a rater is in a study."""

    code: str  # as people read it
    done: int  # trials that the rater has answered
    total: int
    ahead: tuple[Showing, ...]  # the next trials; none where all are answered
    last: str | None  # the ticket of the last vote that counts, by which it can be taken back


@dataclass(frozen=True)
class Receipt:
    """What became of a vote."""

    recorded: bool  # False: it was there already, or the rater had taken it back before this copy of it came
    answers: dict[str, str] | None  # as stored; None for a vote that was taken back


@dataclass(frozen=True)
class QuickVote:
    """One answer to "Which is better?" outside of any study."""

    id: str  # the page's own, so that a second click is the same vote
    prompt: str
    seed: int
    left: str
    right: str
    answer: str  # one of CHOICES
    facts: Mapping[str, Any]  # anything else worth keeping: settings, scores
    at_us: int = 0  # set by the store


class Store:
    """All studies of one database. One object serves all threads of a process."""

    def __init__(self, place: str | Path) -> None:
        """place: a SQLite file, made where it is missing, or a postgresql:// URL. ValueError where it is no use."""
        self._engines = tables.open_engines(place)
        self._pictures: dict[str, dict[Shown, Picture]] = {}  # of studies whose pictures no longer change

    def close(self) -> None:
        self._engines.dispose()

    # Studies

    def create(self, plan: Plan) -> Study:
        """A new study, whose pictures are to be added before it opens."""
        identity = secrets.token_urlsafe(9)
        with self._write() as connection:
            connection.execute(studies.insert().values(**_new_row(identity, identity, Version.first(plan))))
        return self.study(identity)

    def revise(self, identity: str, plan: Plan) -> Study:
        """The study with a changed plan: itself while it is being prepared, afterwards a new version.

        The votes of the old version stay with it. ValueError where the plan says the same.
        """
        with self._write() as connection:
            old = self._locked(connection, identity)
            latest = connection.scalar(sa.select(sa.func.max(studies.c.version)).where(studies.c.series == old.series))
            new = Version(latest, old.plan, old.sha256).changed_to(plan)
            if old.state == "preparing":
                connection.execute(tables.pictures.delete().where(tables.pictures.c.study == identity))
                changed = studies.update().where(studies.c.id == identity)
                connection.execute(changed.values(plan=plan.as_text(), sha256=plan.sha256))
            else:
                identity = secrets.token_urlsafe(9)
                connection.execute(studies.insert().values(**_new_row(identity, old.series, new)))
        return self.study(identity)

    def open(self, identity: str) -> Study:
        """The study, open to raters from now on: its plan is frozen. Refused where pictures are missing."""
        with self._write() as connection:
            study = self._locked(connection, identity)
            if study.state == "closed":
                raise Refused("This study has ended: make a new version of it to go on.")
            missing = self._missing(connection, study)
            if missing:
                raise Refused(f"{len(missing)} pictures of the study are missing: finish making them first.")
            if study.state == "preparing":
                now = studies.update().where(studies.c.id == identity)
                connection.execute(now.values(state="open", opened_us=_now_us()))
        return self.study(identity)

    def end(self, identity: str) -> Study:
        """The study, closed: no vote is taken any more, and the models may be revealed."""
        with self._write() as connection:
            study = self._locked(connection, identity)
            if study.state == "preparing":
                raise Refused("This study has not begun yet.")
            if study.state == "open":
                now = studies.update().where(studies.c.id == identity)
                connection.execute(now.values(state="closed", closed_us=_now_us()))
        return self.study(identity)

    def study(self, identity: str) -> Study:
        """Refused where there is none of that name."""
        with self._read() as connection:
            return _study(connection, identity)

    def studies(self) -> list[Study]:
        """All of them, the youngest first."""
        with self._read() as connection:
            found = connection.execute(sa.select(studies).order_by(studies.c.created_us.desc(), studies.c.id))
            return [_as_study(row) for row in found]

    # Pictures

    def add_pictures(self, identity: str, made: Sequence[Picture], sha256: str | None = None) -> None:
        """Notes pictures of a study that is being prepared; one for a place that is taken replaces the other.

        sha256: of the plan that they were made for. Refused where that has been changed meanwhile: a place of the new
        one may have the same number, and shows something else.
        """
        with self._write() as connection:
            study = self._locked(connection, identity)
            if study.state != "preparing":
                raise Refused("The pictures of a study cannot change after it has begun.")
            if sha256 not in (None, study.sha256):
                raise Refused("The plan has changed since these pictures were begun: make those of the new one.")
            if not {picture.shown for picture in made} <= set(pictures_of(study.plan)):
                raise Refused("A picture has no place in the study.")
            for picture in made:
                row, table = _picture_row(identity, picture), tables.pictures
                connection.execute(table.delete().where(*(column == row[column.name] for column in table.primary_key)))
                connection.execute(table.insert().values(**row))

    def pictures(self, identity: str) -> dict[Shown, Picture]:
        """The pictures noted so far, by what they show. For the server's own use: it holds the mapping."""
        if identity in self._pictures:
            return self._pictures[identity]
        with self._read() as connection:
            study = _study(connection, identity)
            found = _pictures(connection, identity)
        if study.state != "preparing":
            self._pictures[identity] = found
        return found

    def reveal(self, identity: str) -> dict[str, str]:
        """The model's label of every served file. Refused before the study has ended."""
        study = self.study(identity)
        if study.state != "closed":
            raise Refused("The models are revealed when the study has ended.")
        return {picture.file: study.plan.label(shown.model) for shown, picture in self.pictures(identity).items()}

    # Raters

    def join(self, identity: str) -> Rater:
        """A new rater of an open study, with the code by which to come back."""
        with self._write() as connection:
            study = self._locked(connection, identity)
            _require_open(study)
            mine = raters.c.study == identity
            number = connection.scalar(sa.select(sa.func.count()).select_from(raters).where(mine))
            if number >= MAX_RATERS:
                raise Refused(f"This study has {MAX_RATERS:,} raters and takes no more.")
            code = "".join(secrets.choice(CODE_LETTERS) for _ in range(CODE_LENGTH))
            row = {"study": identity, "number": number, "code": code, "joined_us": _now_us()}
            connection.execute(raters.insert().values(**row))
        return Rater(identity, number, _spaced(code))

    def rater(self, code: str) -> Rater:
        """The rater with that code, however it is written. Refused where there is none."""
        with self._read() as connection:
            return _rater(connection, code)

    def raters(self, identity: str) -> list[Rater]:
        """All of a study, in the order of joining. For the owner of the study: a code is a key."""
        with self._read() as connection:
            found = connection.execute(sa.select(raters).where(raters.c.study == identity).order_by(raters.c.number))
            return [Rater(row.study, row.number, _spaced(row.code)) for row in found]

    # Votes

    def place(self, code: str, count: int = 1, *, study: str | None = None) -> Place:
        """Where the rater is, with at most `count` trials ahead. Refused for an unknown code.

        study: where it is named, as in `vote` and `undo`, a code of another study is refused.
        """
        with self._read() as connection:
            seat = _Seat.of(connection, code, study=study)
            _require_open(seat.study)
            given = seat.votes(connection)
        done = {number for number, row in given.items() if not row.undone}
        ahead = [trial for trial in seat.trials if trial.number not in done][:count]
        last = _last(given)
        return Place(
            *(seat.code, len(done), len(seat.trials)),
            tuple(self._showing(seat, trial, given, len(done)) for trial in ahead),
            seat.ticket(last.trial, last.attempt) if last else None,
        )

    def showings(self, code: str, count: int = 1) -> list[Showing]:
        """The next trials of the rater, at most `count`; none where all are answered. Refused for an unknown code."""
        return list(self.place(code, count).ahead)

    def vote(
        self, code: str, ticket: str, answers: Mapping[str, str], dwell_s: float, *, study: str | None = None
    ) -> Receipt:
        """A receipt, given when the vote is on the disk; a second copy of a vote changes nothing.

        Refused for an unknown code, a study that has ended, a ticket of another trial, and answers that do not fit.
        """
        with self._write() as connection:
            seat = _Seat.of(connection, code, lock=True, study=study)
            trial, attempt = seat.read_ticket(ticket)
            given = seat.votes(connection)
            row = given.get(trial)
            if row is not None and attempt <= row.attempt:
                return Receipt(False, None if row.undone else json.loads(row.answers))
            _require_open(seat.study)
            try:
                checked, dwell_s = check_answers(seat.study.plan, answers), check_dwell(dwell_s)
            except ValueError as error:
                raise Unfit(str(error)) from None
            last_us = max((known.at_us for known in given.values()), default=0)
            values = {
                "attempt": attempt,
                "undone": 0,
                "answers": json.dumps(checked),
                "dwell_s": dwell_s,
                "at_us": max(_now_us(), 1 + last_us),  # in order, also where a clock is set back
            }
            if row is None:
                connection.execute(votes.insert().values(study=seat.study.id, rater=seat.number, trial=trial, **values))
            else:
                connection.execute(votes.update().where(*seat.is_mine, votes.c.trial == trial).values(**values))
        return Receipt(True, checked)

    def undo(self, code: str, ticket: str | None = None, *, study: str | None = None) -> Showing:
        """The trial of the rater's last vote, to be answered anew; that vote no longer counts. Refused without one.

        ticket: of the vote that is meant, so that a second copy of the same wish takes no other vote back. Refused
        where a later vote counts.
        """
        with self._write() as connection:
            seat = _Seat.of(connection, code, lock=True, study=study)
            _require_open(seat.study)
            given = seat.votes(connection)
            done = sum(not row.undone for row in given.values())
            row = _last(given)
            if ticket is not None:
                trial, attempt = seat.read_ticket(ticket)
                meant = given.get(trial)
                if meant is None or meant.attempt != attempt or not (meant.undone or meant is row):
                    raise Refused("Only the last vote can be taken back.")
                row = meant
            if row is None:
                raise Refused("There is no vote to take back.")
            if not row.undone:
                mine = votes.update().where(*seat.is_mine, votes.c.trial == row.trial)
                connection.execute(mine.values(undone=1))
                done -= 1
        return self._showing(seat, seat.trials[row.trial], given, done, seat.ticket(row.trial, row.attempt + 1))

    def changes(self, identity: str) -> int:
        """How often the votes of the study have changed: it grows by 1 with every vote that is given or taken back.

        What was made of the votes holds for as long as this is the same; asking costs far less than reading them.
        """
        often = 1 + 2 * votes.c.attempt + votes.c.undone  # a row begins as 1, is taken back, given anew, and so on
        with self._read() as connection:
            return connection.scalar(sa.select(sa.func.sum(often)).where(votes.c.study == identity)) or 0

    def votes(self, identity: str) -> list[Vote]:
        """Every vote that counts, in the order in which they were given."""
        with self._read() as connection:
            plan = _study(connection, identity).plan
            mine = votes.select().where(votes.c.study == identity, votes.c.undone == 0)
            rows = connection.execute(mine.order_by(votes.c.at_us, votes.c.rater, votes.c.trial)).all()
        trials = {rater: schedule(plan, rater) for rater in {row.rater for row in rows}}
        return [
            Vote(row.rater, trials[row.rater][row.trial], json.loads(row.answers), row.dwell_s, row.at_us)
            for row in rows
        ]

    def restore(self, plan: Plan, version: int, given: Sequence[Vote], shown: Sequence[Picture] = ()) -> Study:
        """A closed study with these votes, as brought back from an export. Its raters get new codes."""
        identity, now_us = secrets.token_urlsafe(9), _now_us()
        people = 1 + max((vote.rater for vote in given), default=-1)
        if people > MAX_RATERS:
            raise Refused(f"A study has at most {MAX_RATERS:,} raters, not {people:,}.")
        row = _new_row(identity, identity, Version(version, plan, plan.sha256))
        with self._write() as connection:
            connection.execute(studies.insert().values(**row | {"state": "closed", "closed_us": now_us}))
            for number in range(people):
                code = "".join(secrets.choice(CODE_LETTERS) for _ in range(CODE_LENGTH))
                joined = {"study": identity, "number": number, "code": code, "joined_us": now_us}
                connection.execute(raters.insert().values(**joined))
            rows = [
                {
                    **{"study": identity, "rater": vote.rater, "trial": vote.trial.number, "attempt": 0, "undone": 0},
                    **{"answers": json.dumps(dict(vote.answers)), "dwell_s": vote.dwell_s, "at_us": vote.at_us},
                }
                for vote in given
            ]
            if rows:
                connection.execute(votes.insert(), rows)
            for picture in shown:
                connection.execute(tables.pictures.insert().values(**_picture_row(identity, picture)))
        return self.study(identity)

    # Quick votes

    def quick_vote(self, vote: QuickVote) -> bool:
        """True once it is on the disk; False where a vote of that id was there before, which stays as it is."""
        if vote.answer not in CHOICES:
            raise Refused(f"An answer is one of {', '.join(CHOICES)}, not {str(vote.answer)[:40]!r}.")
        facts = json.dumps(dict(vote.facts), allow_nan=False)
        if not re.fullmatch(r"[\w-]{8,64}", vote.id, re.ASCII) or len(facts) > MAX_FACTS:
            raise Refused("This quick vote has a form that cannot be stored: reload the page and try again.")
        try:
            values = {
                "id": vote.id,
                "prompt": one_line("The prompt", MAX_PROMPT_CHARACTERS)(vote.prompt),
                "seed": vote.seed,
                "left_model": one_line("A model's name", MAX_TEXT_CHARACTERS)(vote.left),
                "right_model": one_line("A model's name", MAX_TEXT_CHARACTERS)(vote.right),
                "answer": vote.answer,
                "facts": facts,
            }
        except ValueError as error:
            raise Refused(str(error)) from None
        dialect = sqlite if self._engines.is_sqlite else postgresql
        with self._write() as connection:
            insert = dialect.insert(quick_votes).values(**values, at_us=_now_us()).on_conflict_do_nothing()
            return connection.execute(insert.returning(quick_votes.c.id)).first() is not None

    def quick_votes(self) -> list[QuickVote]:
        """All of them, in the order in which they were given."""
        with self._read() as connection:
            rows = connection.execute(quick_votes.select().order_by(quick_votes.c.at_us, quick_votes.c.id)).all()
        return [
            QuickVote(
                *(row.id, row.prompt, row.seed, row.left_model, row.right_model),
                *(row.answer, json.loads(row.facts), row.at_us),
            )
            for row in rows
        ]

    # Copies elsewhere

    def rows(self, identity: str) -> list[Row]:
        """Everything that is stored of a study that has begun, as one moment had it: secrets, codes, taken back votes.

        For a copy that a store can be made of again by `merge`.
        """
        with self._read() as connection:
            if _study(connection, identity).state == "preparing":
                raise NotBegun(NOT_BEGUN)
            return [
                (table.name, dict(row._mapping))
                for table in COPIED
                for row in connection.execute(table.select().where(_of_study(table) == identity))
            ]

    def settled_us(self) -> int:
        """A moment, in microseconds, before which no vote is given that cannot be read by now.

        A vote has its time before it is stored: those that are being stored are waited for.
        """
        with self._write() as connection:  # SQLite has one writer at a time
            if not self._engines.is_sqlite:
                connection.execute(sa.text(f"LOCK TABLE {votes.name}, {quick_votes.name} IN SHARE MODE"))
            return _now_us()

    def quick_rows(self) -> list[Row]:
        """The same of all quick votes."""
        with self._read() as connection:
            return [(quick_votes.name, dict(row._mapping)) for row in connection.execute(quick_votes.select())]

    def merge(self, rows: Iterable[Row]) -> None:
        """Takes over what `rows` of another store gave, all or none of it: what is missing here, or older.

        In whatever order and however often it comes, the same is stored in the end. ValueError for anything else.
        """
        known = {table.name: table for table in (*COPIED, quick_votes)}
        by_table: dict[str, list[dict[str, Any]]] = {name: [] for name in known}
        for name, values in rows:
            if name not in known or set(values) != set(known[name].c.keys()):
                raise ValueError("A row of the copied studies is none of this program's, or of a newer version of it.")
            if name == studies.name and (values["state"], values["sha256"]) not in (
                (state, _plan(values["plan"]).sha256) for state in ("open", "closed")
            ):
                raise ValueError("A study among the copied ones was changed: its plan has another hash.")
            by_table[name].append(values)
        try:
            with self._write() as connection:
                for name, table in known.items():
                    for values in by_table[name]:
                        connection.execute(self._taking_over(table, values))
        except (sa.exc.IntegrityError, sa.exc.DataError, sa.exc.ProgrammingError) as error:
            raise ValueError("The copied studies do not fit one another, or what is here.") from error
        for values in by_table[studies.name]:
            self._pictures.pop(values["id"], None)

    def _taking_over(self, table: sa.Table, values: Mapping[str, Any]) -> Any:
        """The insertion of a row that changes a row of that key where it is older, and nothing else."""
        insert = (sqlite if self._engines.is_sqlite else postgresql).insert(table).values(**values)
        new = insert.excluded
        if table is votes:  # a vote is given, taken back, given with the next attempt, and so on
            newer = 2 * new.attempt + new.undone > 2 * votes.c.attempt + votes.c.undone
        elif table is studies:
            newer = sa.and_(new.state == "closed", studies.c.state != "closed")
        else:
            return insert.on_conflict_do_nothing(index_elements=table.primary_key)
        changed = {column.name: new[column.name] for column in table.c if not column.primary_key}
        return insert.on_conflict_do_update(index_elements=table.primary_key, set_=changed, where=newer)

    # Inside

    @contextmanager
    def _write(self) -> Iterator[sa.Connection]:
        """A transaction that is on the disk when the block has ended. Unavailable where that cannot be."""
        with _or_unavailable(), self._engines.write.begin() as connection:
            yield connection

    @contextmanager
    def _read(self) -> Iterator[sa.Connection]:
        """One moment's state of the database."""
        with _or_unavailable(), self._engines.read.connect() as connection:
            yield connection

    def _locked(self, connection: sa.Connection, identity: str) -> Study:
        """The study, which nobody else changes meanwhile."""
        return _study(connection, identity, lock=True)

    def _missing(self, connection: sa.Connection, study: Study) -> set[Shown]:
        return set(pictures_of(study.plan)) - set(_pictures(connection, study.id))

    def _showing(
        self, seat: _Seat, trial: Trial, given: Mapping[int, Any], done: int, ticket: str | None = None
    ) -> Showing:
        """How the trial looks to its rater; given: the rater's rows, by trial."""
        known = self.pictures(seat.study.id)
        files = [known[shown].file for shown in trial.pictures]
        if ticket is None:
            ticket = seat.ticket(trial.number, given[trial.number].attempt + 1 if trial.number in given else 0)
        prompt = seat.study.plan.prompts[trial.prompt].text
        return Showing(ticket, prompt, files[0], files[1] if len(files) > 1 else None, done, len(seat.trials))


@dataclass(frozen=True)
class _Seat:
    """A rater in a study, within a transaction."""

    study: Study
    number: int
    code: str
    secret: str

    @classmethod
    def of(cls, connection: sa.Connection, code: str, *, lock: bool = False, study: str | None = None) -> _Seat:
        """The seat of a code, in that study where one is named. lock: no other vote of this rater comes in between."""
        rater = _rater(connection, code, lock=lock)
        if study not in (None, rater.study):
            _study(connection, study)  # one that does not exist is the better answer
            raise Foreign("This code belongs to another study: open that one, or start here as a new rater.")
        row = connection.execute(studies.select().where(studies.c.id == rater.study)).one()
        return cls(_as_study(row), rater.number, rater.code, row.secret)

    @property
    def trials(self) -> tuple[Trial, ...]:
        return schedule(self.study.plan, self.number)

    @property
    def is_mine(self) -> tuple[Any, ...]:
        """The condition that a vote is this rater's."""
        return votes.c.study == self.study.id, votes.c.rater == self.number

    def votes(self, connection: sa.Connection) -> dict[int, Any]:
        """All rows of this rater, those taken back included, by trial."""
        return {row.trial: row for row in connection.execute(votes.select().where(*self.is_mine))}

    def ticket(self, trial: int, attempt: int) -> str:
        """A name for this attempt at a trial, which nobody else can make."""
        said = f"{self.study.id}/{self.number}/{trial}/{attempt}"
        return f"{trial}-{attempt}-{hmac.digest(self.secret.encode(), said.encode(), 'sha256').hex()[:24]}"

    def read_ticket(self, ticket: str) -> tuple[int, int]:
        """(trial, attempt) of a ticket that was made for this rater. Refused for any other."""
        found = re.fullmatch(r"([0-9]{1,6})-([0-9]{1,6})-[0-9a-f]{24}", ticket) if isinstance(ticket, str) else None
        if found:
            trial, attempt = int(found[1]), int(found[2])
            if hmac.compare_digest(self.ticket(trial, attempt), ticket) and trial < len(self.trials):
                return trial, attempt
        raise Foreign("This vote belongs to another rater or study: reload the page and vote again.")


@contextmanager
def _or_unavailable() -> Iterator[None]:
    try:
        yield
    except (sa.exc.OperationalError, sa.exc.TimeoutError) as error:
        raise Unavailable("The database of the studies does not answer: nothing was stored, try again.") from error


def _last(given: Mapping[int, Any]) -> Any | None:
    """The row of the last vote that counts, None where there is none."""
    return max((row for row in given.values() if not row.undone), key=lambda row: row.at_us, default=None)


def _study(connection: sa.Connection, identity: str, *, lock: bool = False) -> Study:
    query = studies.select().where(studies.c.id == _plain(identity))
    row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        raise Unknown("There is no such study here.")
    return _as_study(row)


def _of_study(table: sa.Table) -> sa.Column:
    """The column that names the study."""
    return table.c.id if table is studies else table.c.study


def _as_study(row: Any) -> Study:
    return Study(
        *(row.id, row.series, row.version, _plan(row.plan), row.sha256),
        *(row.state, row.created_us, row.opened_us, row.closed_us),
    )


def _rater(connection: sa.Connection, code: str, *, lock: bool = False) -> Rater:
    bare = re.sub(r"[\s-]", "", code).upper() if isinstance(code, str) else ""
    query = raters.select().where(raters.c.code == _plain(bare))
    row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        raise Unknown("There is no rater with this code: check it, or ask whoever runs the study.")
    return Rater(row.study, row.number, _spaced(row.code))


def _pictures(connection: sa.Connection, identity: str) -> dict[Shown, Picture]:
    found = {}
    for row in connection.execute(tables.pictures.select().where(tables.pictures.c.study == identity)):
        shown = Shown(row.prompt, row.seed, row.model, bool(row.spoiled))
        found[shown] = Picture(shown, row.file, row.sha256, row.source_sha256, row.width, row.height)
    return found


def _picture_row(identity: str, picture: Picture) -> dict[str, Any]:
    shown = picture.shown
    return {
        **{"study": identity, "prompt": shown.prompt, "seed": shown.seed, "model": shown.model},
        **{"spoiled": int(shown.spoiled), "file": picture.file, "sha256": picture.sha256},
        **{"source_sha256": picture.source_sha256, "width": picture.width, "height": picture.height},
    }


def _new_row(identity: str, series: str, version: Version) -> dict[str, Any]:
    return {
        **{"id": identity, "series": series, "version": version.number, "plan": version.plan.as_text()},
        **{"sha256": version.sha256, "state": "preparing", "secret": secrets.token_hex(16), "created_us": _now_us()},
    }


def _require_open(study: Study) -> None:
    if study.state == "preparing":
        raise NotBegun(NOT_BEGUN)
    if study.state == "closed":
        raise Ended(ENDED)


def _plain(text: object) -> str:
    """The text, or nothing for what no database can hold."""
    return text if isinstance(text, str) and len(text) < 100 and re.fullmatch(r"[\w-]*", text, re.ASCII) else ""


def _spaced(code: str) -> str:
    """A code as people read it: "K7QM-3XPA"."""
    return f"{code[:4]}-{code[4:]}"


def _now_us() -> int:
    return time.time_ns() // 1000


@lru_cache(maxsize=64)
def _plan(text: str) -> Plan:
    return Plan.from_text(text)
