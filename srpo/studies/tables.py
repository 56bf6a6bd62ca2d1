"""The tables of studies, how a database file or server is opened for them, and how an older one is brought up to date.

SQLite is one file: write-ahead log, every commit on the disk before it is acknowledged, one writing connection per
process that takes the write lock at BEGIN. (Deferred transactions that read and then write fail under load; several
connections that checkpoint can meet the WAL-reset defect of SQLite up to 3.51.2.) PostgreSQL is named by a URL.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy import Column, ForeignKey, ForeignKeyConstraint, MetaData, Table, Text, event

SCHEMA = 1
# What lifts a database from that schema to the next. All of them run in one transaction.
MIGRATIONS: dict[int, Callable[[sa.Connection], None]] = {}
APPLICATION = 0x5352504F  # "SRPO": whose file it is, in SQLite's header
BUSY_S = 30.0
LOCK = 7_307_175  # any number: of PostgreSQL's advisory lock while tables are made

WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # STRICT tables know no other name for it
NUMBER = sa.Double().with_variant(sa.REAL(), "sqlite")
STRICT = {"sqlite_strict": True}

metadata = MetaData()

studies = Table(
    "studies",
    metadata,
    Column("id", Text, primary_key=True),
    Column("series", Text, nullable=False),  # the id of the first version
    Column("version", WHOLE, nullable=False),
    Column("plan", Text, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("secret", Text, nullable=False),  # signs the tickets of trials
    Column("created_us", WHOLE, nullable=False),
    Column("opened_us", WHOLE),
    Column("closed_us", WHOLE),
    sa.UniqueConstraint("series", "version"),
    sa.CheckConstraint("state IN ('preparing', 'open', 'closed')"),
    **STRICT,
)
raters = Table(
    "raters",
    metadata,
    Column("study", Text, ForeignKey("studies.id"), primary_key=True),
    Column("number", WHOLE, primary_key=True, autoincrement=False),
    Column("code", Text, nullable=False, unique=True),
    Column("joined_us", WHOLE, nullable=False),
    **STRICT,
)
pictures = Table(
    "pictures",
    metadata,
    Column("study", Text, ForeignKey("studies.id"), primary_key=True),
    Column("prompt", WHOLE, primary_key=True, autoincrement=False),
    Column("seed", WHOLE, primary_key=True, autoincrement=False),
    Column("model", Text, primary_key=True),
    Column("spoiled", WHOLE, primary_key=True, autoincrement=False),
    Column("file", Text, nullable=False),
    Column("sha256", Text, nullable=False),  # of the file's bytes
    Column("source_sha256", Text, nullable=False),  # of the file it was made from
    Column("width", WHOLE, nullable=False),
    Column("height", WHOLE, nullable=False),
    sa.UniqueConstraint("study", "file"),
    **STRICT,
)
votes = Table(
    "votes",
    metadata,
    Column("study", Text, primary_key=True),
    Column("rater", WHOLE, primary_key=True, autoincrement=False),
    Column("trial", WHOLE, primary_key=True, autoincrement=False),
    Column("attempt", WHOLE, nullable=False),  # how often the vote was taken back before this one
    Column("undone", WHOLE, nullable=False),  # 1: taken back, and not given again
    Column("answers", Text, nullable=False),
    Column("dwell_s", NUMBER, nullable=False),
    Column("at_us", WHOLE, nullable=False),
    ForeignKeyConstraint(["study", "rater"], ["raters.study", "raters.number"]),
    sa.CheckConstraint("undone IN (0, 1)"),
    **STRICT,
)
quick_votes = Table(
    "quick_votes",
    metadata,
    Column("id", Text, primary_key=True),
    Column("prompt", Text, nullable=False),
    Column("seed", WHOLE, nullable=False),
    Column("left_model", Text, nullable=False),
    Column("right_model", Text, nullable=False),
    Column("answer", Text, nullable=False),
    Column("facts", Text, nullable=False),
    Column("at_us", WHOLE, nullable=False),
    **STRICT,
)
# PostgreSQL has no place of its own for the number of the schema, as SQLite has in user_version.
schema_number = Table("studies_schema", MetaData(), Column("number", WHOLE, primary_key=True, autoincrement=False))


@dataclass(frozen=True)
class Engines:
    """How the database is written and read; with PostgreSQL both are one."""

    write: sa.Engine
    read: sa.Engine

    @property
    def is_sqlite(self) -> bool:
        return self.write.dialect.name == "sqlite"

    def dispose(self) -> None:
        self.read.dispose()
        self.write.dispose()  # last: the last connection to close writes the log back into the file


def open_engines(place: str | Path) -> Engines:
    """The engines of a file or of a postgresql:// URL, its tables made or brought up to date.

    ValueError, one sentence, for what cannot be opened: another program's file, a damaged one, a newer schema. Such a
    database is left untouched.
    """
    if isinstance(place, str) and "://" in place:
        return _open_postgresql(place)
    return _open_sqlite(Path(place))


# SQLite


def _open_sqlite(path: Path) -> Engines:
    found = _schema_of_file(path)
    if found is not None and found < SCHEMA:
        backup(path, path.with_name(f"{path.name}.schema-{found}.{time.strftime('%Y%m%d-%H%M%S')}.backup"))
    path.parent.mkdir(parents=True, exist_ok=True)
    engines = Engines(_sqlite_engine(path, writes=True), _sqlite_engine(path, writes=False))
    try:
        with engines.write.begin() as connection:
            number = connection.exec_driver_sql("PRAGMA user_version").scalar()
            if number == 0:
                metadata.create_all(connection)
                connection.exec_driver_sql(f"PRAGMA application_id = {APPLICATION}")
            _migrate(connection, number)
            connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA}")
    except sa.exc.OperationalError as error:
        engines.dispose()
        raise ValueError(f"The studies in {path} cannot be opened for writing: {_reason(error)}.") from error
    return engines


def _schema_of_file(path: Path) -> int | None:
    """The schema's number, None where there is no file yet or nothing in it. ValueError for what we may not open."""
    try:
        if not path.exists() or path.stat().st_size == 0:
            return None
        connection = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True)
        try:
            application, number, tables = (
                connection.execute(query).fetchone()[0]
                for query in ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_master")
            )
        finally:
            connection.close()
    except (sqlite3.Error, OSError) as error:
        raise ValueError(f"{path} holds no studies, or is damaged: {error}.") from error
    if application != APPLICATION:
        if tables == number == 0:
            return None  # a database in which nothing has been made yet
        raise ValueError(f"{path} is another program's database: name another file for the studies.")
    _refuse_newer(number, str(path))
    return number


def _sqlite_engine(path: Path, *, writes: bool) -> sa.Engine:
    size = {"pool_size": 1, "max_overflow": 0} if writes else {}
    engine = sa.create_engine(
        sa.URL.create("sqlite+pysqlite", database=str(path)),
        connect_args={"timeout": BUSY_S, "check_same_thread": False},
        pool_timeout=BUSY_S,
        **size,
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, record: object) -> None:
        connection.isolation_level = None  # the driver begins nothing by itself; the listener below does
        for pragma in ("foreign_keys = ON", "trusted_schema = OFF", f"busy_timeout = {int(1000 * BUSY_S)}"):
            connection.execute(f"PRAGMA {pragma}")
        if not writes:
            connection.execute("PRAGMA query_only = ON")
            return
        if connection.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
            raise ValueError(f"The disk of {path} has no shared memory, as network disks: choose a local one.")
        connection.execute("PRAGMA synchronous = FULL")

    @event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def backup(path: Path, target: Path) -> Path:
    """A whole copy of a database file at one moment, made while others may be writing. Returns the copy's path."""
    source, copy = sqlite3.connect(path), sqlite3.connect(target)
    try:
        source.backup(copy)
    finally:
        copy.close()
        source.close()
    return target


# PostgreSQL


def _open_postgresql(url: str) -> Engines:
    try:
        named = sa.make_url(url)
    except sa.exc.ArgumentError:
        raise ValueError("The address of the studies' database is no URL: write postgresql://user@host/name.") from None
    if named.get_backend_name() != "postgresql":
        raise ValueError(f"Studies are kept in a SQLite file or in PostgreSQL, not in {named.get_backend_name()}.")
    engine = sa.create_engine(named.set(drivername="postgresql+psycopg"), pool_pre_ping=True, pool_timeout=BUSY_S)

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, record: object) -> None:
        with connection.cursor() as cursor:  # a commit is on the disk when it returns, whatever the server's default
            cursor.execute("SET synchronous_commit TO on")
        connection.commit()

    try:
        with engine.begin() as connection:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))
            schema_number.create(connection, checkfirst=True)
            number = connection.scalar(sa.select(schema_number.c.number)) or 0
            _refuse_newer(number, str(named.render_as_string(hide_password=True)))
            if number == 0:
                metadata.create_all(connection)
            _migrate(connection, number)
            connection.execute(schema_number.delete())
            connection.execute(schema_number.insert().values(number=SCHEMA))
    except sa.exc.OperationalError as error:
        engine.dispose()
        raise ValueError(f"The studies' database cannot be reached: {_reason(error)}.") from error
    except ValueError:
        engine.dispose()
        raise
    return Engines(engine, engine)


def _migrate(connection: sa.Connection, number: int) -> None:
    """From schema `number` (0: tables just made) to ours."""
    for step in range(number, SCHEMA) if number else ():
        MIGRATIONS[step](connection)


def _refuse_newer(number: int, place: str) -> None:
    if number > SCHEMA:
        raise ValueError(
            f"The studies in {place} were written by a newer version of this program (schema {number}, this one knows "
            f"{SCHEMA}): update it, or name another place."
        )


def _reason(error: sa.exc.OperationalError) -> str:
    return " ".join(str(error.orig).split()).rstrip(".")
