"""A real PostgreSQL server, where its programs are installed."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PLACES = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/usr/local/pgsql/bin", "/opt/homebrew/opt/postgresql*/bin")
USERS = ("postgres", "nobody")  # who runs the server if we are root, as which PostgreSQL refuses to run


def _program(name: str) -> str | None:
    """Where a program of PostgreSQL lies: on the path, or where distributions put it."""
    placed = (str(p) for place in PLACES for p in sorted(Path("/").glob(f"{place[1:]}/{name}"), reverse=True))
    return shutil.which(name) or next(placed, None)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Callable[[str], str]]:
    """Makes an empty schema on a server of our own, and gives its URL; its name begins as given."""
    initdb, server = _program("initdb"), _program("pg_ctl")
    if initdb is None or server is None:
        pytest.skip("PostgreSQL is not installed: there is no initdb and pg_ctl")
    psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed")
    user: dict[str, object] = {}
    folder = Path(tempfile.mkdtemp(prefix="dynbench-pg-"))  # short: the path of a socket is limited
    if os.geteuid() == 0:
        owner = next((u for u in pwd.getpwall() if u.pw_name in USERS), None)
        if owner is None:
            pytest.skip(f"PostgreSQL does not run as root, and there is no user {' or '.join(USERS)}")
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        user = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}

    def call(*words: object) -> None:
        with tempfile.TemporaryFile("w+") as log:  # a pipe would be held open by the server
            done = subprocess.run(
                [str(w) for w in words], cwd="/", stdout=log, stderr=log, stdin=subprocess.DEVNULL, timeout=120, **user
            )  # type: ignore[call-overload]
            log.seek(0)
            assert done.returncode == 0, log.read()

    data = folder / "data"
    settings = f"-k {folder} -c listen_addresses='' -c fsync=off -c max_connections=30"
    try:
        call(initdb, "-D", data, "-U", "dynbench", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync")
        call(server, "-D", data, "-w", "-t", "60", "-o", settings, "-l", folder / "log", "start")
        try:
            numbers = itertools.count()

            def database(begin: str) -> str:
                name = f"{begin}_{next(numbers)}"  # a schema of its own: a database takes a server longer to make
                with psycopg.connect(f"host={folder} user=dynbench dbname=postgres", autocommit=True) as connection:
                    connection.execute(f"CREATE SCHEMA {name}")
                return f"postgresql://dynbench@/postgres?host={folder}&options=-csearch_path%3D{name}"

            yield database
        finally:
            call(server, "-D", data, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
