"""The databases that studies are tested on: a SQLite file, and a PostgreSQL server of our own where it is installed."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from srpo.studies.store import Store

PATIENCE_S = 60


def postgresql_programs() -> Path | None:
    """The folder of `initdb` and `postgres`: on the path, or where Debian puts the newest version."""
    found = shutil.which("initdb")
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name))
    candidates = [Path(found).resolve().parent] if found else folders[::-1]
    return next((folder for folder in candidates if (folder / "postgres").exists()), None)


@pytest.fixture(scope="session")
def postgresql():
    """The URL of a server on loopback, without the name of a database. Its files are gone after the tests."""
    programs = postgresql_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed")
    who = {}
    if os.getuid() == 0:  # the server refuses to run as root; Debian's package brings a user for it
        try:
            pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        who = {"user": "postgres", "group": "postgres", "extra_groups": []}
    folder = Path(tempfile.mkdtemp(prefix="srpo-postgresql-"))
    if who:
        shutil.chown(folder, "postgres", "postgres")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data, log = folder / "data", folder / "log"
    quiet = {"cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(
        [programs / "initdb", "-D", data, "-A", "trust", "-U", "tests", "-E", "UTF8", "--locale=C", "-N"],
        check=True,
        **quiet,
        **who,
    )
    options = [
        "-c",
        "listen_addresses=127.0.0.1",
        "-c",
        f"unix_socket_directories={folder}",
        "-c",
        "shared_buffers=16MB",
    ]
    server = subprocess.Popen([programs / "postgres", "-D", data, "-p", str(port), *options], **quiet, **who)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while subprocess.run([programs / "pg_isready", "-h", "127.0.0.1", "-p", str(port)], **quiet).returncode:
            assert server.poll() is None and time.monotonic() < deadline, log
            time.sleep(0.1)
        yield f"postgresql://tests@127.0.0.1:{port}"
    finally:
        server.send_signal(signal.SIGINT)  # a fast shutdown
        server.wait(PATIENCE_S)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def new_database(postgresql):
    """The URL of an empty database on that server."""
    import psycopg

    url = f"{postgresql}/postgres"
    with psycopg.connect(url, autocommit=True) as connection:  # far quicker than a database for each test
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request, tmp_path):
    """Where studies are kept: a file that is not there yet, or an empty database."""
    if request.param == "sqlite":
        return str(tmp_path / "studies.db")
    return request.getfixturevalue("new_database")


@pytest.fixture
def store(place):
    opened = Store(place)
    yield opened
    opened.close()
