"""The database behind the history: how it is reached, its tables, and how older ones are brought up to date.

    dynbench_history   one row: the version of this schema
    dynbench_runs      a row per run: commit, machine, software, the whole manifest
    dynbench_cells     a row per timed cell of a run: its key, its most used numbers, the whole record
    dynbench_checks    a row per `dynbench check`: commit, verdict, the whole record

Writers take turns: each takes a lock on the database before it reads, so that two that record at once lose nothing and
record nothing twice. SQLite keeps its rollback journal: write-ahead logging needs memory that processes share, which
network folders do not have.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from sqlalchemy import (
    DOUBLE_PRECISION,
    INTEGER,
    TEXT,
    URL,
    Column,
    Connection,
    Engine,
    ForeignKey,
    MetaData,
    Table,
    bindparam,
    create_engine,
    event,
    func,
    insert,
    inspect,
    make_url,
    select,
    update,
)
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from dynbench.errors import UserError
from dynbench.files import make_folder
from dynbench.reading import ordinary
from dynbench.store import migrate
from dynbench.store.jsonable import first_fault

SECRETS = {"password", "sslpassword"}  # of a server's address: never shown or stored
WAIT_S = 30  # for another writer
CONNECT_S = 10  # for a server
LOCK = 0x64796E62  # PostgreSQL's number of the writers' lock: "dynb"

_TABLES = MetaData()
VERSION = Table("dynbench_history", _TABLES, Column("version", INTEGER, nullable=False))
RUNS = Table(
    "dynbench_runs",
    _TABLES,
    Column("identity", TEXT, primary_key=True),
    Column("run_id", TEXT, nullable=False),
    Column("started", TEXT, nullable=False),
    Column("measured_s", DOUBLE_PRECISION, nullable=False),
    Column("git_commit", TEXT),
    Column("dirty", INTEGER, nullable=False),
    Column("subject", TEXT),
    Column("committed", TEXT),
    Column("machine", TEXT, nullable=False),
    Column("dynbench_version", TEXT, nullable=False),
    Column("software", TEXT, nullable=False),  # JSON, as are `manifest`, `key` and `record` below
    Column("manifest", TEXT, nullable=False),
    Column("recorded", TEXT, nullable=False),
)
CELLS = Table(
    "dynbench_cells",
    _TABLES,
    Column("run", TEXT, ForeignKey(RUNS.c.identity), primary_key=True),
    Column("cell_id", TEXT, primary_key=True),
    Column("workload", TEXT, nullable=False),
    Column("key", TEXT, nullable=False),
    Column("item_ms", DOUBLE_PRECISION, nullable=False),
    Column("speedup", DOUBLE_PRECISION),  # against the primary baseline, with its confidence interval
    Column("low", DOUBLE_PRECISION),
    Column("high", DOUBLE_PRECISION),
    Column("confidence", DOUBLE_PRECISION),
    Column("record", TEXT, nullable=False),
)
CHECKS = Table(
    "dynbench_checks",
    _TABLES,
    Column("identity", TEXT, primary_key=True),
    Column("workload", TEXT, nullable=False),
    Column("started", TEXT, nullable=False),
    Column("git_commit", TEXT),
    Column("subject", TEXT),
    Column("committed", TEXT),
    Column("exit_code", INTEGER, nullable=False),
    Column("record", TEXT, nullable=False),
    Column("recorded", TEXT, nullable=False),
)


class Database:
    """A database that holds a history in the newest version of its schema.

    Attributes:
        where: its address as messages name it: without a password.
    """

    def __init__(self, engine: Engine, where: str) -> None:
        self._engine, self.where = engine, where

    @classmethod
    def open(cls, address: str, *, create: bool) -> Database:
        """Connects, and brings an older schema up to date.

        Args:
            address: path of an SQLite file, or `postgresql://USER:PASSWORD@HOST:PORT/DATABASE`.
            create: make the database if there is none.

        Raises:
            UserError: there is none, it cannot be reached, read or written, is something else, or a newer dynbench
                made it.
        """
        database = cls(*connect(address, create=create))
        with database.reading() as connection:
            version = _version(connection, database.where)
        if version is None and not create:
            raise UserError(f"{database.where} holds no history yet; `dynbench history add RUN` begins one")
        if version is None or version < len(MIGRATIONS):
            with database.writing() as connection:
                _migrate(connection, database.where)
        return database

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database.

        Raises:
            UserError: the database cannot be used, in one sentence; the transaction has been undone.
        """
        with _errors_explained(self.where), self._engine.connect() as connection, connection.begin():
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction beside which no other writer runs.

        Raises:
            UserError: as `reading`.
        """
        with _errors_explained(self.where), self._engine.connect() as plain:
            connection = plain.execution_options(dynbench_writes=True)
            with connection.begin():
                if connection.dialect.name == "postgresql":
                    connection.execute(select(func.set_config("lock_timeout", f"{WAIT_S}s", True)))
                    connection.execute(select(func.pg_advisory_xact_lock(LOCK)))
                yield connection


# --- versions of the schema ------------------------------------------------------------------------------------------


def _first(connection: Connection) -> None:
    """Version 1."""
    RUNS.create(connection)
    CELLS.create(connection)


def _checks(connection: Connection) -> None:
    """Version 2: what `dynbench check` found."""
    CHECKS.create(connection)


def _identities(connection: Connection) -> None:
    """Version 3: the key and the id of a cell are made of the arm's identity. Records stay as they were written."""
    stored = connection.execute(select(CELLS.c.run, CELLS.c.cell_id, CELLS.c.key, CELLS.c.record)).all()
    rows = [
        {
            "of_run": row.run,
            "of_cell": row.cell_id,
            "cell_id": migrate.cell(json.loads(row.record))["cell_id"],
            "key": json.dumps(migrate.history_key(json.loads(row.key)), sort_keys=True),
        }
        for row in stored
    ]
    if rows:
        this = (CELLS.c.run == bindparam("of_run"), CELLS.c.cell_id == bindparam("of_cell"))
        connection.execute(update(CELLS).where(*this), rows)


# The step at index v makes version v + 1 of version v. A step is not changed once it was released: where a later one
# changes a table, the earlier ones keep a copy of its definition as they knew it.
MIGRATIONS: tuple[Callable[[Connection], None], ...] = (_first, _checks, _identities)


def _version(connection: Connection, where: str) -> int | None:
    """Of the schema; None: the database holds no history."""
    tables = inspect(connection).get_table_names()
    if VERSION.name not in tables:
        if tables and connection.dialect.name == "sqlite":  # a server's database may be shared, a file is not
            raise UserError(f"{where} is a database of another program: its tables are {', '.join(sorted(tables)[:5])}")
        return None
    stored = connection.execute(select(VERSION.c.version)).scalar_one()
    try:
        version = int(stored)
    except (TypeError, ValueError, OverflowError) as e:
        raise UserError(f"{where} is damaged: its version is {stored!r}") from e
    if version > len(MIGRATIONS):
        raise UserError(
            f"{where} was written by a newer dynbench: it has schema version {version}, this one knows up to "
            f"{len(MIGRATIONS)}; update dynbench"
        )
    return version


def _migrate(connection: Connection, where: str) -> None:
    """Brings the schema up to date, all steps or none: both kinds of database change tables in the transaction."""
    version = _version(connection, where)  # another writer may have been faster
    if version is None:
        VERSION.create(connection)
        connection.execute(insert(VERSION).values(version=0))
    for step in MIGRATIONS[version or 0 :]:
        try:
            step(connection)
        except ValueError as e:
            fault = first_fault(e) if isinstance(e, ValidationError) else e
            raise UserError(f"{where} cannot be brought up to date, a row is damaged: {fault}") from e
    connection.execute(update(VERSION).values(version=len(MIGRATIONS)))


# --- connections -----------------------------------------------------------------------------------------------------


def server_url(address: str) -> URL:
    """Of a server.

    Raises:
        UserError: it is no URL, or of a kind of database that is not supported.
    """
    try:
        url = make_url(address)
    except (ArgumentError, ValueError):
        raise UserError(
            "the address of the history is no URL; accepted: a path, or postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
        ) from None
    if url.drivername not in ("postgresql", "postgres", "postgresql+psycopg"):
        raise UserError(f"the history cannot be kept in {url.drivername!r}; accepted: a path, or postgresql://...")
    return url.set(drivername="postgresql+psycopg")


def connect(address: str, *, create: bool) -> tuple[Engine, str]:
    """Of an address: the engine, and what messages call it."""
    if "://" in address:
        return _server(server_url(address))
    path = ordinary(Path(address).expanduser())
    if create:
        make_folder(path.parent)
    elif not path.exists():
        raise UserError(f"there is no history at {path} yet; `dynbench history add RUN` begins one")
    return _file(path), str(path)


def _server(url: URL) -> tuple[Engine, str]:
    where = url.set(drivername="postgresql").difference_update_query(SECRETS).render_as_string(hide_password=True)
    try:
        import psycopg  # noqa: F401
    except ImportError as e:
        raise UserError(f"{where} needs psycopg: pip install 'dynbench[postgresql]'") from e
    options = {} if "connect_timeout" in url.query else {"connect_timeout": CONNECT_S}
    return create_engine(url, connect_args=options, poolclass=NullPool), where


def _file(path: Path) -> Engine:
    url = URL.create("sqlite", database=str(path.absolute()))  # ':memory:' is a file like any other
    engine = create_engine(url, connect_args={"timeout": WAIT_S}, poolclass=NullPool)

    @event.listens_for(engine, "connect")
    def leave_transactions_to_us(connection: Any, _: Any) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("dynbench_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


@contextlib.contextmanager
def _errors_explained(where: str) -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as e:
        raise UserError(_sentence(where, e)) from e
    except UnicodeDecodeError as e:  # of a statement in the file itself, for which sqlite3 has no error
        raise UserError(f"{where} is damaged: it holds a text that is none: {e.reason}") from e


def _sentence(where: str, error: SQLAlchemyError) -> str:
    said = " ".join(str(getattr(error, "orig", None) or error).split())
    kept = "; nothing was recorded, and what was recorded before is kept"
    locked = f"{where} is locked by another program for more than {WAIT_S} s{kept}; try again"
    read_only = f"cannot write to {where}: it may only be read{kept}"
    known = {
        "file is not a database": f"{where} is no SQLite database, or is damaged",
        "malformed": f"{where} is damaged: {said}",
        "database is locked": locked,
        "lock timeout": locked,
        "disk is full": f"cannot write to {where}: the disk is full{kept}",
        "disk I/O error": f"cannot write to {where}: the disk is full or broken{kept}",
        "readonly": read_only,
        "read-only transaction": read_only,
        "unable to open database file": f"cannot open {where}: no permission, or it is not a file",
    }
    other = f"the history at {where} cannot be used: {said}"
    return next((sentence for words, sentence in known.items() if words in said), other)
