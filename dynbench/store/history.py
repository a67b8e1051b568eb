"""The history of results over commits and machines, in a database: SQLite in a file, or PostgreSQL by URL.

A run directory stays the unit of truth; what the history holds of a run can be recorded again from it.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from pydantic import ValidationError
from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from dynbench.errors import UserError
from dynbench.store.database import CELLS, CHECKS, RUNS, SECRETS, Database, server_url
from dynbench.store.gate import Gate
from dynbench.store.jsonable import first_fault, to_json, to_table
from dynbench.store.quantities import numbers
from dynbench.store.run import Run, cell_lines, parse_cell
from dynbench.store.schema import Arm, Cell, Manifest, Record, Speedup

R = TypeVar("R", bound=Record)
T = TypeVar("T")
P = ParamSpec("P")


class Key(Record):
    """What has to be the same for two results to be compared: everything but the code.

    A machine is identified by what it is made of, so that machines of one kind share their history. Versions of the
    software are no part of it: a new version of torch is a change to be seen, and is shown beside it.

    Attributes:
        workload: its name.
        decisions: their label.
        arm: what ran.
        device: 'cpu', 'cuda', ...
        batch_size: in items.
        dtype: of the numbers.
        threads: of the CPU.
        baseline: name of the primary one, that speed-ups refer to; None: there is none.
        networks: hash of the model, the primary baseline and their arguments.
        inputs: hash of the stream.
        decisions_hash: of the trace; None: none was recorded.
        machine: name, architecture, cores or multiprocessors, caches.
    """

    workload: str
    decisions: str
    arm: Arm
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
    speedups = cell.speedups or cell.deployed_speedups
    primary = next((s.baseline for s in speedups if s.primary), cell.arm.name if cell.primary else None)
    parts = ("model", "model_args", "form")
    static = [{k: b.get(k) for k in parts} for b in spec.get("baselines", []) if b.get("name") == primary]
    return Key(
        workload=cell.workload,
        decisions=cell.decisions.label,
        arm=cell.arm,
        device=cell.device,
        batch_size=cell.batch_size,
        dtype=cell.dtype,
        threads=cell.threads,
        baseline=primary,
        networks=_digest([info.model, info.model_args, static])[:16],
        inputs=info.stream_hash,
        decisions_hash=info.trace_hashes.get(cell.decisions.label),
        machine=machine_of(manifest.hardware),
    )


def machine_of(hardware: dict[str, object]) -> str:
    """What a machine is made of, in words; memory and clocks are left out, as they differ from boot to boot."""
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
    """The result of a cell in one run.

    Attributes:
        run: which one.
        item_ms: time per item.
        speedup: against the primary baseline of the same run, as written; of a cell that is only deployed, against it
            in its fastest way.
        record: the whole cell, as JSON.
    """

    run: RecordedRun
    item_ms: float
    speedup: Speedup | None
    record: str = field(default="", repr=False)

    @cached_property
    def numbers(self) -> dict[str, float]:
        """All numbers of the cell by the key of their quantity.

        Raises:
            UserError: the record is damaged.
        """
        return numbers(parse_cell(self.record, f"the record of a cell of run {self.run.run_id}"))


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
    url = server_url(address)
    return url.password is not None or not SECRETS.isdisjoint(url.query)


def record(run_dir: Path, address: str) -> Recorded:
    """Records a run directory; the database is made if there is none. Recording it again changes nothing.

    Args:
        run_dir: complete or not. A run that was resumed since it was recorded gains the cells that are new.
        address: as of `History.open`.

    Raises:
        UserError: no run is there, the database cannot be used, or `run_dir` holds nothing timed.
    """
    run = Run.open(run_dir)
    return History.open(address, create=True).record(run)


def _damage_explained(read: Callable[Concatenate[History, P], T]) -> Callable[Concatenate[History, P], T]:
    """A method that reads rows: of one that cannot be what was written, `UserError` says where it stands."""

    @functools.wraps(read)
    def explained(self: History, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return read(self, *args, **kwargs)
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as e:
            raise UserError(f"{self.where} is damaged: a row in it cannot be read: {e}") from e

    return explained


class History:
    """An open history.

    Attributes:
        where: its address as messages name it: without a password.
    """

    def __init__(self, database: Database) -> None:
        self._database, self.where = database, database.where

    @classmethod
    def open(cls, address: str, *, create: bool = False) -> History:
        """Connects, and brings an older schema up to date.

        Args:
            address: path of an SQLite file, or `postgresql://USER:PASSWORD@HOST:PORT/DATABASE`.
            create: make it if there is none.

        Raises:
            UserError: there is none, it cannot be reached, read or written, is something else, or a newer dynbench
                made it.
        """
        return cls(Database.open(address, create=create))

    def record(self, run: Run) -> Recorded:
        """Records a run, all of it or nothing.

        Raises:
            UserError: nothing in it was timed, its manifest lacks a workload, or the database cannot be written.
        """
        cells = [c for c in run.cells if c.status == "ok" and c.latency is not None]
        if not cells:
            raise UserError(f"{run.path} holds nothing that was timed, so there is nothing to record")
        if unknown := {c.workload for c in cells} - set(run.manifest.workloads):
            raise UserError(f"{run.path / 'manifest.json'}: workloads lacks {min(unknown)!r}, of which there are cells")
        row = _run_row(run)
        this_run = RUNS.c.identity == row["identity"]
        of_this_run = CELLS.c.run == row["identity"]
        with self._database.writing() as connection:
            measured_s = connection.execute(select(RUNS.c.measured_s).where(this_run)).scalar_one_or_none()
            if measured_s is None:
                connection.execute(insert(RUNS), row)
            stored = connection.execute(select(CELLS.c.cell_id, CELLS.c.record).where(of_this_run)).all()
            known = {r.cell_id: parse_cell(r.record, f"{self.where}: the record of {r.cell_id}") for r in stored}
            new = [c for c in cells if c.cell_id not in known]
            # An older copy of the directory must not undo what was recorded of a run that was resumed since.
            newer = measured_s is not None and row["measured_s"] >= measured_s
            other = [c for c in cells if newer and known.get(c.cell_id, _slim(c)) != _slim(c)]
            if other:
                gone = delete(CELLS).where(of_this_run, CELLS.c.cell_id == bindparam("gone"))
                connection.execute(gone, [{"gone": c.cell_id} for c in other])
            if new or other:
                connection.execute(insert(CELLS), [_cell_row(row["identity"], run.manifest, c) for c in (*new, *other)])
            if newer and (new or other):
                later = {name: row[name] for name in ("measured_s", "manifest")}
                connection.execute(update(RUNS).where(this_run).values(later))
        return Recorded(len(new), len(other), len(cells) - len(new) - len(other))

    def record_check(self, gate: Gate, repository: Path | None = None) -> None:
        """Records a check; the same one again changes nothing.

        Args:
            gate: what it found.
            repository: a folder of the head's repository, that names its commit; None: the working folder.

        Raises:
            UserError: the database cannot be written.
        """
        table = to_table(gate)
        subject, committed = _about_commit(gate.commit, repository) if gate.commit else (None, None)
        row = {
            "identity": _digest(table),
            "workload": gate.workload,
            "started": gate.started,
            "git_commit": gate.commit,
            "subject": subject,
            "committed": committed,
            "exit_code": gate.exit_code,
            "record": json.dumps(table, sort_keys=True),
            "recorded": _now(),
        }
        with self._database.writing() as connection:
            known = select(CHECKS.c.identity).where(CHECKS.c.identity == row["identity"])
            if connection.execute(known).scalar_one_or_none() is None:
                connection.execute(insert(CHECKS), row)

    @_damage_explained
    def checks(self, workloads: Sequence[str] = ()) -> list[RecordedCheck]:
        """All checks in the order of their commits, where that is known, else in which they were done.

        Args:
            workloads: only of these; none: of all.

        Raises:
            UserError: a record is damaged.
        """
        query = select(CHECKS)
        if workloads:
            query = query.where(CHECKS.c.workload.in_(workloads))
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
        return [
            RecordedCheck(self._parsed(Gate, r.record), r.subject, r.committed) for r in sorted(rows, key=_in_order)
        ]

    @_damage_explained
    def runs(self) -> list[tuple[RecordedRun, list[str], int]]:
        """All runs in order, each with its workloads and the number of its cells that are recorded."""
        count = select(CELLS.c.run, CELLS.c.workload, func.count().label("cells"))
        query = count.group_by(CELLS.c.run, CELLS.c.workload).order_by(CELLS.c.workload)
        with self._database.reading() as connection:
            known = _runs(connection)
            counts = connection.execute(query).all()
        found: dict[str, dict[str, int]] = {}
        for row in counts:
            found.setdefault(row.run, {})[row.workload] = row.cells
        return [(run, list(found.get(run.identity, {})), sum(found.get(run.identity, {}).values())) for run in known]

    @_damage_explained
    def series(self, workloads: Sequence[str] = ()) -> list[Series]:
        """Comparable results together.

        Args:
            workloads: only these; none: all.

        Raises:
            UserError: there is nothing of one of these, no check either, or a key is damaged.
        """
        query = select(CELLS)
        if workloads:
            query = query.where(CELLS.c.workload.in_(workloads))
        with self._database.reading() as connection:
            self._check_names(connection, workloads)
            runs = _runs(connection)
            cells = connection.execute(query).all()
        place = {run.identity: i for i, run in enumerate(runs)}
        found: dict[Key, list[tuple[int, Point]]] = {}
        for c in cells:
            key = self._parsed(Key, c.key)
            speedup = None
            if c.speedup is not None:
                ends = {"value": c.speedup, "low": c.low, "high": c.high, "confidence": c.confidence}
                speedup = Speedup(**ends, baseline=key.baseline or "", primary=True)
            at = place[c.run]
            found.setdefault(key, []).append((at, Point(runs[at], c.item_ms, speedup, c.record)))
        return [
            Series(key, [point for _, point in sorted(found[key], key=lambda pair: pair[0])])
            for key in sorted(found, key=_in_a_list)
        ]

    def _check_names(self, connection: Connection, workloads: Sequence[str]) -> None:
        """Raises `UserError` for a workload that has no results."""
        known = {
            name for t in (CELLS, CHECKS) for name in connection.execute(select(t.c.workload).distinct()).scalars()
        }
        for name in workloads:
            if name not in known:
                has = ", ".join(sorted(known)) or "nothing yet"
                raise UserError(f"{self.where} has no results of {name!r}; it has: {has}")

    def _parsed(self, kind: type[R], text: str) -> R:
        try:
            return kind.model_validate_json(text)
        except ValidationError as e:
            raise UserError(f"{self.where} is damaged: of a {kind.__name__} in it {first_fault(e)}") from e


def _in_a_list(key: Key) -> tuple[object, ...]:
    """Sorts series: of a workload strategies come first, then opaque networks, baselines and controls."""
    kind = ("strategy", "opaque", "baseline", "control").index(key.arm.kind)
    return key.workload, key.decisions, key.batch_size, kind, key.arm.key, key.model_dump_json()


def _in_order(row: Any) -> tuple[str, str, str]:
    """Sorts runs and checks by their commits, where the time of these is known, else by when they were measured."""
    return row.committed or row.started, row.started, row.identity


def _runs(connection: Connection) -> list[RecordedRun]:
    rows = connection.execute(select(*(c for c in RUNS.c if c is not RUNS.c.manifest))).all()
    return [
        RecordedRun(
            identity=r.identity,
            run_id=r.run_id,
            started=r.started,
            commit=r.git_commit,
            dirty=bool(r.dirty),
            subject=r.subject,
            committed=r.committed,
            machine=r.machine,
            dynbench_version=r.dynbench_version,
            software=json.loads(r.software),
        )
        for r in sorted(rows, key=_in_order)
    ]


def _run_row(run: Run) -> dict[str, Any]:
    m = run.manifest
    commit = m.git.get("commit")
    commit = commit if isinstance(commit, str) else None
    subject, committed = _about_commit(commit) if commit else (None, None)
    versions = m.software | {k: m.hardware[k] for k in ("cuda", "cudnn", "driver") if k in m.hardware}
    return {
        "identity": _identity(run),
        "run_id": m.run_id,
        "started": m.started,
        "measured_s": m.command_s or 0.0,
        "git_commit": commit,
        "dirty": int(bool(m.git.get("dirty"))),
        "subject": subject,
        "committed": committed,
        "machine": machine_of(m.hardware),
        "dynbench_version": m.dynbench_version,
        "software": json.dumps({k: str(v) for k, v in versions.items()}, sort_keys=True),
        "manifest": to_json(m),
        "recorded": _now(),
    }


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _slim(cell: Cell) -> Cell:
    """What is recorded of a cell: all of it but the paths of its batches."""
    return cell.model_copy(update={"batch_paths": []})


def _cell_row(identity: str, manifest: Manifest, cell: Cell) -> dict[str, Any]:
    known = numbers(cell)
    judged_by = "speedup" if "speedup" in known else "deployed_speedup"
    plain = {name: info.get_default(call_default_factory=True) for name, info in Cell.model_fields.items()}
    kept = {k: v for k, v in to_table(_slim(cell)).items() if k == "schema_version" or getattr(cell, k) != plain[k]}
    return {
        "run": identity,
        "cell_id": cell.cell_id,
        "workload": cell.workload,
        "key": json.dumps(to_table(key_of(manifest, cell)), sort_keys=True),
        "item_ms": known["latency_item_ms"],
        "speedup": known.get(judged_by),
        "low": known.get(f"{judged_by}_low"),
        "high": known.get(f"{judged_by}_high"),
        "confidence": known.get(f"{judged_by}_confidence"),
        "record": json.dumps(kept, sort_keys=True),
    }


def _identity(run: Run) -> str:
    """What makes a run this run, also after it was resumed: how it began, and the first cell that was timed.

    The cell's times distinguish runs that began in the same second in containers that are alike. The line is taken as
    it is in the file, so that a run keeps its identity when a newer dynbench migrates it.
    """
    m = run.manifest
    began = [m.run_id, m.started, m.command, m.spec, m.seed, m.software, m.git, m.environment]
    cells = (json.loads(line) for line in cell_lines(run.path)[0])
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
