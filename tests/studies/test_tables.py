"""Database files: how they are opened, brought up to date with a backup, and refused untouched."""

from __future__ import annotations

import hashlib
import os
import sqlite3

import psycopg
import pytest
import sqlalchemy as sa

from benchmarks.studies import open_study
from srpo.studies import tables
from srpo.studies.simulation import example_plan
from srpo.studies.store import Store, Unavailable
from tests.studies.keeping import vote_next


def pragma(path, name):
    connection = sqlite3.connect(path)
    try:
        return connection.execute(f"PRAGMA {name}").fetchone()[0]
    finally:
        connection.close()


def used_file(path):
    """A file with a study and a vote; (the study's id, the votes)."""
    store = Store(path)
    study = open_study(store, example_plan(prompts=12))
    vote_next(store, store.join(study.id))
    kept = store.votes(study.id)
    store.close()
    return study.id, kept


def test_a_file_is_durable_strict_and_ours(tmp_path):
    path = tmp_path / "a folder" / "studies?.db"
    used_file(path)
    assert pragma(path, "journal_mode") == "wal"
    assert pragma(path, "user_version") == tables.SCHEMA
    assert pragma(path, "application_id") == tables.APPLICATION
    assert pragma(path, "integrity_check") == "ok"
    connection = sqlite3.connect(path)
    definitions = dict(connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'").fetchall())
    assert set(definitions) == set(tables.metadata.tables)
    assert all(definition.rstrip().endswith("STRICT") for definition in definitions.values())
    with pytest.raises(sqlite3.IntegrityError, match="cannot store TEXT"):
        connection.execute("UPDATE votes SET rater = 'someone'")
    connection.close()


def test_the_writer_waits_for_the_disk_and_readers_cannot_write(tmp_path):
    engines = tables.open_engines(tmp_path / "studies.db")
    with engines.write.begin() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
    with engines.read.connect() as connection, pytest.raises(sa.exc.OperationalError, match="readonly"):
        connection.execute(tables.quick_votes.delete())
    engines.dispose()


def test_a_vote_without_its_rater_is_refused_by_the_database_itself(place):
    engines = tables.open_engines(place)
    row = {"study": "x", "rater": 0, "trial": 0, "attempt": 0, "undone": 0, "answers": "{}", "dwell_s": 1.0, "at_us": 1}
    with pytest.raises(sa.exc.IntegrityError), engines.write.begin() as connection:
        connection.execute(tables.votes.insert().values(**row))
    engines.dispose()


def add_a_column(connection):
    connection.exec_driver_sql("ALTER TABLE raters ADD COLUMN note TEXT")


@pytest.fixture
def next_schema(monkeypatch):
    """The program as it will be when a column has been added."""
    monkeypatch.setattr(tables, "SCHEMA", 2)
    monkeypatch.setattr(tables, "MIGRATIONS", {1: add_a_column})


def test_an_older_file_is_backed_up_and_brought_up_to_date(tmp_path, next_schema, monkeypatch):
    path = tmp_path / "studies.db"
    with monkeypatch.context() as older:
        older.setattr(tables, "SCHEMA", 1)
        study, kept = used_file(path)
    store = Store(path)
    assert store.votes(study) == kept
    store.close()
    assert pragma(path, "user_version") == 2
    (copy,) = tmp_path.glob("studies.db.schema-1.*.backup")
    assert pragma(copy, "user_version") == 1
    assert pragma(copy, "integrity_check") == "ok"
    monkeypatch.undo()
    old = Store(copy)  # by the program as it is now
    assert old.votes(study) == kept
    old.close()
    with pytest.raises(ValueError, match="newer version"):
        Store(path)


def test_a_migration_that_fails_changes_nothing(tmp_path, next_schema, monkeypatch):
    path = tmp_path / "studies.db"
    with monkeypatch.context() as older:
        older.setattr(tables, "SCHEMA", 1)
        study, kept = used_file(path)

    def half(connection):
        add_a_column(connection)
        connection.exec_driver_sql("ALTER TABLE absent ADD COLUMN note TEXT")

    monkeypatch.setattr(tables, "MIGRATIONS", {1: half})
    with pytest.raises(ValueError, match="no such table"):
        Store(path)
    monkeypatch.undo()
    store = Store(path)
    assert store.votes(study) == kept
    store.close()


def test_a_newer_file_is_refused_untouched(tmp_path):
    path = tmp_path / "studies.db"
    used_file(path)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=r"newer version of this program \(schema 99, this one knows 1\)"):
        Store(path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before
    assert not list(tmp_path.glob("*.backup"))


def test_another_programs_file_is_refused_untouched(tmp_path):
    path = tmp_path / "other.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE things (a)")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    with pytest.raises(ValueError, match="another program's database"):
        Store(path)
    assert path.read_bytes() == before


def test_a_damaged_file_is_refused_untouched(tmp_path):
    path = tmp_path / "studies.db"
    path.write_bytes(b"not a database, but long enough to look like one" * 100)
    with pytest.raises(ValueError, match="holds no studies, or is damaged"):
        Store(path)
    assert path.read_bytes().startswith(b"not a database")
    with pytest.raises(ValueError, match="holds no studies, or is damaged"):
        Store(tmp_path)


def test_an_empty_file_becomes_a_database(tmp_path):
    path = tmp_path / "studies.db"
    path.touch()
    used_file(path)
    assert pragma(path, "user_version") == 1


def test_a_locked_file_says_that_nothing_was_stored(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BUSY_S", 0.2)
    path = tmp_path / "studies.db"
    store = Store(path)
    study = open_study(store, example_plan(prompts=12))
    rater = store.join(study.id)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="nothing was stored, try again"):
        vote_next(store, rater)
    other.execute("ROLLBACK")
    other.close()
    assert vote_next(store, rater)
    store.close()


def test_a_copy_made_while_others_write_is_whole(tmp_path):
    path = tmp_path / "studies.db"
    store = Store(path)
    study = open_study(store, example_plan(prompts=12))
    rater = store.join(study.id)
    for _ in range(5):
        vote_next(store, rater)
    copy = Store(tables.backup(path, tmp_path / "copy.db"))
    assert copy.votes(study.id) == store.votes(study.id)
    copy.close()
    store.close()


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("mysql://user@host/name", "in a SQLite file or in PostgreSQL, not in mysql"),
        ("://", "is no URL"),
        ("postgresql://nobody@127.0.0.1:1/nothing", "cannot be reached"),
    ],
)
def test_an_address_that_is_no_use_is_refused(place, says):
    with pytest.raises(ValueError, match=says):
        Store(place)


def test_a_newer_schema_on_the_server_is_refused_untouched(new_database):
    store = Store(new_database)
    study = open_study(store, example_plan(prompts=12))
    store.close()
    with psycopg.connect(new_database) as connection:
        connection.execute("UPDATE studies_schema SET number = 99")
    with pytest.raises(ValueError, match="schema 99, this one knows 1"):
        Store(new_database)
    with psycopg.connect(new_database) as connection:
        assert connection.execute("SELECT number FROM studies_schema").fetchall() == [(99,)]
        assert connection.execute("SELECT id FROM studies").fetchall() == [(study.id,)]


def test_a_server_of_an_older_schema_is_brought_up_to_date(new_database, next_schema, monkeypatch):
    with monkeypatch.context() as older:
        older.setattr(tables, "SCHEMA", 1)
        study, kept = used_file(new_database)
    store = Store(new_database)
    assert store.votes(study) == kept
    store.close()
    with psycopg.connect(new_database) as connection:
        assert connection.execute("SELECT note FROM raters").fetchall() == [(None,)]


def test_a_commit_on_the_server_is_on_the_disk_when_it_returns(new_database):
    engines = tables.open_engines(new_database)
    with engines.write.begin() as connection:
        assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"
    engines.dispose()


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises((ValueError, OSError)):
        Store(tmp_path / "studies.db")
    tmp_path.chmod(0o700)
