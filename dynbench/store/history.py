"""The history of results over commits and machines: a database, SQLite in a file or PostgreSQL by URL.

    dynbench_history   one row: the version of this schema
    dynbench_runs      a row per run: commit, machine, software, the whole manifest
    dynbench_cells     a row per timed cell of a run: its `Key`, its numbers, the whole record
    dynbench_checks    a row per `dynbench check`: commit, verdict, the whole record

A run directory stays the unit of truth; what is in here of a run can be recorded again from it. Writers take turns: one
takes a lock on the database before it looks, so that two that record at once lose nothing and record nothing twice.
SQLite keeps its rollback journal: write-ahead logging needs memory that processes share, which network folders do not
have.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynbench.errors import UserError
from dynbench.store.files import make_folder
from dynbench.store.gate import Gate
from dynbench.store.jsonable import to_json, to_table
from dynbench.store.run import Run
from dynbench.store.schema import Cell, Manifest, Speedup

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection, Engine
    from sqlalchemy.exc import SQLAlchemyError

DEFAULT = "runs/history.sqlite"
PATIENCE_S = 30  # to wait for another writer
CONNECT_S = 10  # to wait for a server
LOCK = 0x64796E62  # PostgreSQL's number of the writers' lock: "dynb"


@dataclass(frozen=True)
class Key:
    """What has to be the same for two results to be compared: everything but the code.

    A machine is told by what it is made of, so that machines of one kind share their history. Versions of the software
    are no part of it: a new version of torch is a change to be seen, and told beside it.

    Attributes:
        workload: its name.
        decisions: their label.
        arm: 'strategy', 'baseline' or 'control'.
        name: of the arm.
        form: layout and the like.
        engine: what executes the regions.
        device: 'cpu', 'cuda', ...
        batch_size: in items.
        dtype: of the numbers.
        threads: of the CPU.
        baseline: the primary one, that speed-ups refer to; None: there is none.
        networks: hash of the model, the primary baseline and their arguments.
        inputs: hash of the stream.
        decisions_hash: of the trace; None: none was recorded.
        machine: name, architecture, cores or multiprocessors, caches.
    """

    workload: str
    decisions: str
    arm: str
    name: str
    form: str
    engine: str
    device: str
    batch_size: int
    dtype: str
    threads: int
    baseline: str | None
    networks: str
    inputs: str
    decisions_hash: str | None
    machine: str


def key_of(manifest: Manifest, cell: Cell) -> Key:
    """The comparability key of a cell; see `Key` for what is in it, and what is not."""
    info = manifest.workloads[cell.workload]
    specs = manifest.spec.get("workloads")
    spec = specs.get(cell.workload, {}) if isinstance(specs, dict) else {}
    primary = next((s.baseline for s in cell.speedups if s.primary), cell.name if cell.primary else None)
    parts = ("model", "model_args", "form")
    static = [{k: b.get(k) for k in parts} for b in spec.get("baselines", []) if b.get("name") == primary]
    return Key(
        workload=cell.workload, decisions=cell.decisions.label, arm=cell.arm, name=cell.name, form=cell.form,
        engine=cell.engine, device=cell.device, batch_size=cell.batch_size, dtype=cell.dtype, threads=cell.threads,
        baseline=primary, networks=_digest([info.model, info.model_args, static])[:16], inputs=info.stream_hash,
        decisions_hash=info.trace_hashes.get(cell.decisions.label), machine=machine_of(manifest.hardware),
    )  # fmt: skip


def machine_of(hardware: dict[str, object]) -> str:
    """What a machine is made of, in words; memory and clocks are left out, as they differ from start to start."""
    parts = [str(hardware.get("name") or "unnamed"), str(hardware.get("architecture") or "")]
    if (cores := hardware.get("cores_usable")) is not None:
        parts.append(f"{cores} core{'' if cores == 1 else 's'}")
    if (parts_of_gpu := hardware.get("multiprocessors")) is not None:
        parts.append(f"{parts_of_gpu} multiprocessors")
    if isinstance(caches := hardware.get("caches_bytes"), dict):
        parts += [
            f"{name} {int(size) // 1024} KiB" for name, size in sorted(caches.items()) if name[:2] in ("L2", "L3")
        ]
    return ", ".join(filter(None, parts))


@dataclass(frozen=True)
class RecordedRun:
    """A run as the history knows it.

    Attributes:
        identity: hash; the same run recorded from a copy of its directory has the same.
        run_id: name of its directory.
        started: ISO 8601, UTC.
        commit: of the repository it ran in; None: in none.
        dirty: whether there were changes that were not committed.
        subject: of the commit, if the repository was there when it was recorded.
        committed: when, ISO 8601, UTC; None as for `subject`.
        machine: see `machine_of`.
        software: versions.
    """

    identity: str
    run_id: str
    started: str
    commit: str | None
    dirty: bool
    subject: str | None
    committed: str | None
    machine: str
    dynbench_version: str
    software: dict[str, str]

    @property
    def label(self) -> str:
        """The short commit, '+' behind it for changes not committed; without one the day and time."""
        return _label(self.commit, self.dirty, self.started)


@dataclass(frozen=True)
class RecordedCheck:
    """A check as the history knows it.

    Attributes:
        gate: what was found.
        subject: of the head's commit, if the repository was there when it was recorded.
        committed: when, ISO 8601, UTC; None as for `subject`.
    """

    gate: Gate
    subject: str | None
    committed: str | None

    @property
    def label(self) -> str:
        """Of the head, as of a run."""
        return _label(self.gate.commit, self.gate.dirty, self.gate.started)


def _label(commit: str | None, dirty: bool, started: str) -> str:
    return commit[:8] + "+" * dirty if commit else started[:16].replace("T", " ")


@dataclass(frozen=True)
class Point:
    """The result of a cell in one run; `speedup` is against the primary baseline of the same run."""

    run: RecordedRun
    item_ms: float
    speedup: Speedup | None


@dataclass(frozen=True)
class Series:
    """Comparable results, in the order of their commits, where that is known, else in which they were measured."""

    key: Key
    points: list[Point]


@dataclass(frozen=True)
class Recorded:
    """What recording a run has changed: numbers of cells."""

    added: int
    changed: int
    same: int


def has_password(address: str) -> bool:
    """Whether an address holds a password, which must not get into a run's manifest.

    Raises:
        UserError: it is no address of a history.
    """
    if "://" not in address:
        return False
    url = _url(address)
    return url.password is not None or "password" in url.query


def record(run_dir: Path, address: str = DEFAULT) -> Recorded:
    """Records a run directory; the database is made if it is not there. Again, it changes nothing.

    Args:
        run_dir: complete or not. A run that went on since it was recorded gains the cells that are new.
        address: as of `History.open`.

    Raises:
        UserError: no run is there, the database cannot be used, or `run_dir` holds nothing timed.
    """
    run = Run.open(run_dir)
    return History.open(address, create=True).record(run)


class History:
    """An open database, at the version of schema that this dynbench knows."""

    def __init__(self, engine: Engine, where: str) -> None:
        self._engine, self.where = engine, where

    @classmethod
    def open(cls, address: str = DEFAULT, *, create: bool = False) -> History:
        """Connects, and brings an older schema up to date.

        Args:
            address: path of an SQLite file, or `postgresql://USER:PASSWORD@HOST:PORT/DATABASE`.
            create: make it if there is none.

        Raises:
            UserError: there is none, it cannot be reached, read or written, is something else, or a newer dynbench
                made it.
        """
        engine, where = _engine(address, create)
        history = cls(engine, where)
        with history._reading() as connection:
            version = _version(connection, where)
        if version is None and not create:
            raise UserError(f"{where} holds no history yet; `dynbench history add RUN` begins one")
        if version is None or version < len(MIGRATIONS):
            with history._writing() as connection:
                _migrate(connection, _version(connection, where) or 0)  # another may have been faster
        return history

    def record(self, run: Run) -> Recorded:
        """Records a run, all of it or nothing.

        Raises:
            UserError: nothing in it was timed, or the database cannot be written.
        """
        from sqlalchemy import text

        cells = [c for c in run.cells if c.status == "ok" and c.latency is not None]
        if not cells:
            raise UserError(f"{run.path} holds nothing that was timed, so there is nothing to record")
        row = _run_row(run)
        rows = [_cell_row(row["identity"], run.manifest, c) for c in cells]
        with self._writing() as connection:
            given = {"identity": row["identity"]}
            found = connection.execute(text("SELECT measured_s FROM dynbench_runs WHERE identity = :identity"), given)
            before = found.scalar_one_or_none()
            if before is None:
                connection.execute(_insert("dynbench_runs", row), row)
            known = connection.execute(text("SELECT cell_id, record FROM dynbench_cells WHERE run = :identity"), given)
            records = {r.cell_id: r.record for r in known}
            new = [r for r in rows if r["cell_id"] not in records]
            # An older copy of the directory must not undo what was recorded of a run that has gone on since.
            newer = before is not None and row["measured_s"] >= before
            other = [r for r in rows if newer and records.get(r["cell_id"], r["record"]) != r["record"]]
            if new:
                connection.execute(_insert("dynbench_cells", new[0]), new)
            if other:
                gone = text("DELETE FROM dynbench_cells WHERE run = :run AND cell_id = :cell_id")
                connection.execute(gone, [{"run": r["run"], "cell_id": r["cell_id"]} for r in other])
                connection.execute(_insert("dynbench_cells", other[0]), other)
            if newer and (new or other):
                again = (
                    "UPDATE dynbench_runs SET measured_s = :measured_s, manifest = :manifest WHERE identity = :identity"
                )
                connection.execute(text(again), row)
        return Recorded(len(new), len(other), len(rows) - len(new) - len(other))

    def record_check(self, gate: Gate, repository: Path | None = None) -> None:
        """Records a check; the same one again changes nothing.

        Args:
            gate: what it found.
            repository: a folder of the head's repository, that names its commit; None: the working folder.

        Raises:
            UserError: the database cannot be written.
        """
        from sqlalchemy import text

        table = to_table(gate)
        subject, committed = _about_commit(gate.commit, repository) if gate.commit else (None, None)
        row = {
            "identity": _digest(table), "workload": gate.workload, "started": gate.started, "git_commit": gate.commit,
            "subject": subject, "committed": committed, "exit_code": gate.exit_code,
            "record": json.dumps(table, sort_keys=True), "recorded": _now(),
        }  # fmt: skip
        with self._writing() as connection:
            known = text("SELECT COUNT(*) FROM dynbench_checks WHERE identity = :identity")
            if not connection.execute(known, {"identity": row["identity"]}).scalar_one():
                connection.execute(_insert("dynbench_checks", row), row)

    def checks(self, workloads: Sequence[str] = ()) -> list[RecordedCheck]:
        """All checks in the order of their commits, where that is known, else in which they were done.

        Args:
            workloads: only of these; none: of all.
        """
        query = "SELECT workload, record, subject, committed, started, identity FROM dynbench_checks"
        with self._reading() as connection:
            rows = connection.exec_driver_sql(query).all()
        ordered = sorted(rows, key=lambda r: (r.committed or r.started, r.started, r.identity))
        return [
            RecordedCheck(Gate.model_validate_json(r.record), r.subject, r.committed)
            for r in ordered
            if not workloads or r.workload in workloads
        ]

    def runs(self) -> list[tuple[RecordedRun, list[str], int]]:
        """All runs in order, each with its workloads and how many cells of it are here."""
        from sqlalchemy import text

        counted = "SELECT run, workload, COUNT(*) AS cells FROM dynbench_cells GROUP BY run, workload ORDER BY workload"
        with self._reading() as connection:
            known = _runs(connection)
            counts = connection.execute(text(counted)).all()
        return [
            (run, [c.workload for c in counts if c.run == run.identity],
             sum(c.cells for c in counts if c.run == run.identity))
            for run in known
        ]  # fmt: skip

    def series(self, workloads: Sequence[str] = ()) -> list[Series]:
        """Comparable results together.

        Args:
            workloads: only these; none: all.

        Raises:
            UserError: there is nothing of one of these, no check either.
        """
        from sqlalchemy import text

        query = "SELECT run, workload, key, item_ms, speedup, low, high, confidence FROM dynbench_cells"
        with self._reading() as connection:
            runs = _runs(connection)
            cells = connection.execute(text(query)).all()
            checked = connection.execute(text("SELECT DISTINCT workload FROM dynbench_checks")).scalars().all()
        for name in workloads:
            if name not in (names := sorted({*(c.workload for c in cells), *checked})):
                raise UserError(f"{self.where} has no results of {name!r}; it has: {', '.join(names) or 'nothing yet'}")
        place = {run.identity: i for i, run in enumerate(runs)}
        found: dict[Key, list[tuple[int, Point]]] = {}
        for c in cells:
            if workloads and c.workload not in workloads:
                continue
            key = Key(**json.loads(c.key))
            speedup = None
            if c.speedup is not None:
                speedup = Speedup(value=c.speedup, low=c.low, high=c.high, confidence=c.confidence,
                                  baseline=key.baseline or "", primary=True)  # fmt: skip
            at = place[c.run]
            found.setdefault(key, []).append((at, Point(runs[at], c.item_ms, speedup)))
        arms = ("strategy", "baseline", "control")
        by_name = sorted(
            found, key=lambda k: (k.workload, k.decisions, k.batch_size, arms.index(k.arm), k.name, repr(k))
        )
        return [Series(k, [p for _, p in sorted(found[k], key=lambda pair: pair[0])]) for k in by_name]

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Connection]:
        with _told(self.where), self._engine.connect() as connection, connection.begin():
            yield connection

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Connection]:
        """A transaction that no other writer runs beside."""
        with _told(self.where), self._engine.connect() as plain:
            connection = plain.execution_options(dynbench_writes=True)
            with connection.begin():
                if connection.dialect.name == "postgresql":
                    connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{PATIENCE_S}s'")
                    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK})")
                yield connection


def _first(connection: Connection) -> None:
    """Version 1."""
    for statement in (
        """CREATE TABLE dynbench_runs (
            identity TEXT PRIMARY KEY, run_id TEXT NOT NULL, started TEXT NOT NULL,
            measured_s DOUBLE PRECISION NOT NULL, git_commit TEXT, dirty INTEGER NOT NULL, subject TEXT,
            committed TEXT, machine TEXT NOT NULL, dynbench_version TEXT NOT NULL, software TEXT NOT NULL,
            manifest TEXT NOT NULL, recorded TEXT NOT NULL)""",
        """CREATE TABLE dynbench_cells (
            run TEXT NOT NULL REFERENCES dynbench_runs (identity), cell_id TEXT NOT NULL, workload TEXT NOT NULL,
            key TEXT NOT NULL, item_ms DOUBLE PRECISION NOT NULL, speedup DOUBLE PRECISION, low DOUBLE PRECISION,
            high DOUBLE PRECISION, confidence DOUBLE PRECISION, record TEXT NOT NULL, PRIMARY KEY (run, cell_id))""",
    ):
        connection.exec_driver_sql(statement)


def _with_checks(connection: Connection) -> None:
    """Version 2: what `dynbench check` found."""
    connection.exec_driver_sql(
        """CREATE TABLE dynbench_checks (
            identity TEXT PRIMARY KEY, workload TEXT NOT NULL, started TEXT NOT NULL, git_commit TEXT, subject TEXT,
            committed TEXT, exit_code INTEGER NOT NULL, record TEXT NOT NULL, recorded TEXT NOT NULL)"""
    )


# The step at index v makes version v + 1 of version v. A step that was ever released is not changed any more.
MIGRATIONS: tuple[Callable[[Connection], None], ...] = (_first, _with_checks)


def _version(connection: Connection, where: str) -> int | None:
    """Of the schema; None: there is none of ours."""
    from sqlalchemy import inspect

    tables = inspect(connection).get_table_names()
    if "dynbench_history" not in tables:
        if tables and connection.dialect.name == "sqlite":  # a server's database may be shared, a file is not
            raise UserError(f"{where} is a database of another program: its tables are {', '.join(sorted(tables)[:5])}")
        return None
    version = int(connection.exec_driver_sql("SELECT version FROM dynbench_history").scalar_one())
    if version > len(MIGRATIONS):
        raise UserError(
            f"{where} was written by a newer dynbench: it has schema version {version}, this one knows up to "
            f"{len(MIGRATIONS)}; update dynbench"
        )
    return version


def _migrate(connection: Connection, version: int) -> None:
    """Brings the schema up to date, all steps or none: both kinds of database do this in the transaction."""
    if version == 0:
        connection.exec_driver_sql("CREATE TABLE dynbench_history (version INTEGER NOT NULL)")
        connection.exec_driver_sql("INSERT INTO dynbench_history VALUES (0)")
    for step in MIGRATIONS[version:]:
        step(connection)
    connection.exec_driver_sql(f"UPDATE dynbench_history SET version = {len(MIGRATIONS)}")


def _url(address: str) -> URL:
    """Of a server.

    Raises:
        UserError: it is none, or of a kind that is not supported.
    """
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(address)
    except (ArgumentError, ValueError):
        raise UserError(
            "the address of the history is no URL; accepted: a path, or postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
        ) from None
    if url.drivername not in ("postgresql", "postgres", "postgresql+psycopg"):
        raise UserError(f"the history cannot be kept in {url.drivername!r}; accepted: a path, or postgresql://...")
    return url.set(drivername="postgresql+psycopg")


def _engine(address: str, create: bool) -> tuple[Engine, str]:
    """Of an address, and what to call it: without a password."""
    from sqlalchemy import URL, create_engine, event
    from sqlalchemy.pool import NullPool

    if "://" in address:
        url = _url(address)
        shown = url.set(drivername="postgresql").difference_update_query(["password"])
        where = shown.render_as_string(hide_password=True)
        try:
            import psycopg  # noqa: F401
        except ImportError as e:
            raise UserError(f"{where} needs psycopg: pip install 'dynbench[postgresql]'") from e
        options = {} if "connect_timeout" in url.query else {"connect_timeout": CONNECT_S}
        return create_engine(url, connect_args=options, poolclass=NullPool), where
    path = Path(address).expanduser()
    if create:
        make_folder(path.parent)
    elif not path.exists():
        raise UserError(f"there is no history at {path} yet; `dynbench history add RUN` begins one")
    engine = create_engine(URL.create("sqlite", database=str(path)), connect_args={"timeout": PATIENCE_S},
                           poolclass=NullPool)  # fmt: skip

    @event.listens_for(engine, "connect")
    def leave_transactions_to_us(connection: Any, _: Any) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("dynbench_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine, str(path)


@contextlib.contextmanager
def _told(where: str) -> Iterator[None]:
    """Tells what went wrong in the database in one sentence; the transaction has been undone by then."""
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except SQLAlchemyError as e:
        raise UserError(_sentence(where, e)) from e


def _sentence(where: str, error: SQLAlchemyError) -> str:
    said = " ".join(str(getattr(error, "orig", None) or error).split())
    kept = "; nothing was recorded, and what was recorded before is kept"
    known = {
        "file is not a database": f"{where} is no SQLite database, or is damaged",
        "malformed": f"{where} is damaged: {said}",
        "database is locked": f"{where} is locked by another program for more than {PATIENCE_S} s{kept}; try again",
        "lock timeout": f"{where} is locked by another program for more than {PATIENCE_S} s{kept}; try again",
        "disk is full": f"cannot write to {where}: the disk is full{kept}",
        "disk I/O error": f"cannot write to {where}: the disk is full or broken{kept}",
        "readonly": f"cannot write to {where}: it may only be read{kept}",
        "unable to open database file": f"cannot open {where}: no permission, or it is not a file",
        "read-only transaction": f"cannot write to {where}: it may only be read{kept}",
    }
    for words, sentence in known.items():
        if words in said:
            return sentence
    return f"the history at {where} cannot be used: {said}"


def _insert(table: str, row: dict[str, Any]) -> Any:
    from sqlalchemy import text

    return text(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join(f':{name}' for name in row)})")


def _runs(connection: Connection) -> list[RecordedRun]:
    columns = "identity, run_id, started, git_commit, dirty, subject, committed, machine, dynbench_version, software"
    rows = connection.exec_driver_sql(f"SELECT {columns} FROM dynbench_runs").all()
    ordered = sorted(rows, key=lambda r: (r.committed or r.started, r.started, r.identity))
    return [
        RecordedRun(
            identity=r.identity, run_id=r.run_id, started=r.started, commit=r.git_commit, dirty=bool(r.dirty),
            subject=r.subject, committed=r.committed, machine=r.machine, dynbench_version=r.dynbench_version,
            software=json.loads(r.software),
        )
        for r in ordered
    ]  # fmt: skip


def _run_row(run: Run) -> dict[str, Any]:
    m = run.manifest
    commit = m.git.get("commit")
    commit = commit if isinstance(commit, str) else None
    subject, committed = _about_commit(commit) if commit else (None, None)
    versions = m.software | {k: m.hardware[k] for k in ("cuda", "cudnn", "driver") if k in m.hardware}
    return {
        "identity": _identity(run), "run_id": m.run_id, "started": m.started, "measured_s": m.command_s or 0.0,
        "git_commit": commit, "dirty": int(bool(m.git.get("dirty"))), "subject": subject, "committed": committed,
        "machine": machine_of(m.hardware), "dynbench_version": m.dynbench_version,
        "software": json.dumps({k: str(v) for k, v in versions.items()}, sort_keys=True), "manifest": to_json(m),
        "recorded": _now(),
    }  # fmt: skip


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _cell_row(identity: str, manifest: Manifest, cell: Cell) -> dict[str, Any]:
    assert cell.latency is not None
    found = next((s for s in cell.speedups if s.primary), None)
    plain = {name: field.get_default(call_default_factory=True) for name, field in Cell.model_fields.items()}
    told = {name for name, value in plain.items() if getattr(cell, name) != value or name == "schema_version"}
    slim = {k: v for k, v in to_table(cell).items() if k in told - {"batch_paths"}}
    return {
        "run": identity, "cell_id": cell.cell_id, "workload": cell.workload,
        "key": json.dumps(asdict(key_of(manifest, cell)), sort_keys=True), "item_ms": cell.latency.item_ms,
        "speedup": found and found.value, "low": found and found.low, "high": found and found.high,
        "confidence": found and found.confidence, "record": json.dumps(slim, sort_keys=True),
    }  # fmt: skip


def _identity(run: Run) -> str:
    """What makes a run this run, also after it went on: how it began, and the first cell that was timed.

    The cell's times tell runs apart that began in the same second in containers that are alike.
    """
    m = run.manifest
    began = [m.run_id, m.started, m.command, m.spec, m.seed, m.software, m.git, m.environment]
    with (run.path / "cells.jsonl").open(encoding="utf-8") as lines:
        cells = (json.loads(line) for line in lines)
        first = next(cell for cell in cells if cell["status"] == "ok")
    return _digest([began, first])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _about_commit(commit: str, repository: Path | None = None) -> tuple[str | None, str | None]:
    """Subject and time of a commit, if the repository, by default that of the working folder, has it."""
    command = ["git", "show", "--no-patch", "--format=%ct%n%s", f"{commit}^{{commit}}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10, cwd=repository)
        seconds, subject = done.stdout.rstrip("\n").split("\n", 1)
        return subject, datetime.datetime.fromtimestamp(int(seconds), datetime.UTC).isoformat()
    except (OSError, subprocess.SubprocessError, ValueError):
        return None, None
