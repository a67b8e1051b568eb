"""The history: the same behaviour on SQLite and on a real PostgreSQL server."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import Connection

from dynbench.errors import UserError
from dynbench.store import database
from dynbench.store.history import History, Key, Recorded, has_password, key_of, machine_of, record
from dynbench.store.run import Run, RunWriter
from dynbench.store.schema import Arm, Cell
from tests.report.made_up_gate import ANSWERS, cell, gate
from tests.store.histories import BASELINE, COMMIT, MACHINE, SPEC, made_up_manifest, made_up_run, timed

HERE = Path(__file__).parent
NEWEST = len(database.MIGRATIONS)
MASKING = "tiny/learned/cpu/b4/float32/t1/masking"
STRATEGIES, SWEEP = ("dense", "compaction", "per_sample", "masking"), "synthetic keep=0.50"  # of run_v2


@pytest.fixture(params=["sqlite", "postgresql"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty database; one of each kind."""
    if request.param == "sqlite":
        return str(tmp_path / "deep" / "history.sqlite")
    make: Callable[[str], str] = request.getfixturevalue("postgresql")
    return make("history")


def contents(address: str) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of all tables."""
    engine, _ = database.connect(address, create=False)
    with engine.connect() as c:
        tables = sqlalchemy.inspect(c).get_table_names()
        return {t: sorted(map(tuple, c.exec_driver_sql(f"SELECT * FROM {t}")), key=repr) for t in sorted(tables)}


def statement(address: str, *statements: str) -> None:
    engine, _ = database.connect(address, create=False)
    with engine.begin() as c:
        for s in statements:
            c.exec_driver_sql(s)


# --- recording -------------------------------------------------------------------------------------------------------


def test_what_is_recorded_is_read_in_order(address: str, tmp_path: Path) -> None:
    for number in (2, 0, 1):
        assert record(made_up_run(tmp_path, number, 1 + number / 10), address) == Recorded(2, 0, 0)
    history = History.open(address)
    assert [(r.run_id, w, n) for r, w, n in history.runs()] == [(f"run-{i}", ["net"], 2) for i in range(3)]
    run = history.runs()[1][0]
    assert (run.commit, run.dirty, run.subject) == (f"0001{COMMIT[4:]}", False, None)
    assert (run.software["torch"], run.label) == ("2.13.0", "00014567"[:4] + COMMIT[4:8])
    by_name = {s.key.arm.name: s for s in history.series()}
    assert by_name.keys() == {"compaction", "plain"}
    found = [p.speedup for p in by_name["compaction"].points]
    assert [(f.value, f.low, f.baseline, f.primary) for f in found if f] == [
        (1 + i / 10, 0.98 * (1 + i / 10), "plain", True) for i in range(3)
    ]
    assert [p.item_ms for p in by_name["plain"].points] == [2 * (1 + i / 1000) for i in range(3)]
    assert all(p.speedup is None for p in by_name["plain"].points)


def test_cells_of_a_workload_that_the_manifest_lacks_are_told(tmp_path: Path) -> None:
    run = made_up_run(tmp_path)
    file = run / "manifest.json"
    file.write_text(file.read_text().replace('"net": {', '"other": {'))
    with pytest.raises(UserError, match=r"manifest.json: workloads lacks 'net', of which there are cells"):
        record(run, str(tmp_path / "history.sqlite"))


def test_recording_again_changes_nothing(address: str, tmp_path: Path) -> None:
    run = made_up_run(tmp_path)
    record(run, address)
    before = contents(address)
    assert record(run, address) == Recorded(0, 0, 2)
    moved = run.rename(tmp_path / "moved")
    assert record(moved, address) == Recorded(0, 0, 2)
    assert contents(address) == before


def test_a_run_that_went_on_gains_what_is_new_and_an_old_copy_undoes_nothing(address: str, tmp_path: Path) -> None:
    run = made_up_run(tmp_path)
    record(run, address)
    old = Run.open(run)
    writer = RunWriter.resume(run)
    writer.append_cell(timed("masking", 0.8))
    writer.append_cell(timed("compaction", 1.7))  # its group was measured again
    writer.write_manifest(writer.manifest.model_copy(update={"command_s": 90.0}))
    assert record(run, address) == Recorded(1, 1, 1)
    before = contents(address)
    History.open(address).record(old)
    assert contents(address) == before
    (compaction,) = (s for s in History.open(address).series() if s.key.arm.name == "compaction")
    assert [p.speedup.value for p in compaction.points if p.speedup] == [1.7]


def test_runs_that_began_alike_are_two_if_their_times_differ(address: str, tmp_path: Path) -> None:
    record(made_up_run(tmp_path / "one", speedup=1.5), address)
    record(made_up_run(tmp_path / "two", speedup=1.6), address)
    (compaction,) = (s for s in History.open(address).series() if s.key.arm.name == "compaction")
    assert sorted(p.speedup.value for p in compaction.points if p.speedup) == [1.5, 1.6]


def test_a_run_in_which_nothing_was_timed_is_refused(address: str, tmp_path: Path) -> None:
    empty = RunWriter.create(tmp_path / "empty", made_up_manifest(0)).path
    with pytest.raises(UserError, match="holds nothing that was timed"):
        record(empty, address)


def test_the_whole_record_is_kept_but_for_the_paths(address: str, tmp_path: Path) -> None:
    record(made_up_run(tmp_path), address)
    rows = contents(address)["dynbench_cells"]
    kept = next(json.loads(row[-1]) for row in rows if row[1].endswith("/compaction"))
    (cell,) = (c for c in Run.open(tmp_path / "run-0").cells if c.arm.name == "compaction")
    assert type(cell).model_validate(kept) == cell.model_copy(update={"batch_paths": []})
    manifest = next(json.loads(row[-2]) for row in contents(address)["dynbench_runs"])
    assert manifest == json.loads((tmp_path / "run-0" / "manifest.json").read_text())


def test_a_cell_that_is_only_deployed_is_followed_by_its_deployed_speedup(address: str, tmp_path: Path) -> None:
    for number in range(2):
        path = made_up_run(tmp_path, number)
        against = {"value": 1.2, "low": 1.1, "high": 1.3, "baseline": "plain", "primary": True}
        way = {"kind": "strategy", "strategy": "compaction", "engine": "onnxruntime", "control": "graph"}
        ways = [{"arm": way, "ratio": 1.0}]
        fastest = timed("compaction", 1.0, arm=way, speedups=[], deployed=True, deployed_speedups=[against])
        fastest = fastest.model_copy(update={"cell_id": f"{fastest.group_id}/{fastest.arm.key}"})
        with (path / "cells.jsonl").open("a", encoding="utf-8") as file:
            file.write(fastest.model_validate(fastest.model_dump() | {"candidates": ways}).model_dump_json() + "\n")
        record(path, address)
    series = {s.key.arm.title: s for s in History.open(address).series()}
    assert series.keys() == {"compaction", "plain", "compaction, onnxruntime, graph"}
    deployed, written = series["compaction, onnxruntime, graph"], series["compaction"]
    assert [p.speedup.value for p in deployed.points if p.speedup] == [1.2, 1.2]
    assert [p.speedup.value for p in written.points if p.speedup] == [1.5, 1.5]
    assert deployed.key.baseline == written.key.baseline == "plain"
    assert deployed.points[0].numbers["deployed_speedup"] == 1.2 and "speedup" not in deployed.points[0].numbers


def test_all_numbers_of_a_cell_are_there_a_users_own_among_them(address: str, tmp_path: Path) -> None:
    writer = RunWriter.create(tmp_path / "run", made_up_manifest(0))
    missing = {"unavailable": "no sensor"}
    writer.append_cell(timed("compaction", 1.5, own={"padded_share": 0.25, "noise": missing}, bytes_touched=7.0))
    record(writer.path, address)
    ((point,),) = (s.points for s in History.open(address).series())
    expected = {"own_padded_share": 0.25, "bytes_touched_per_item": 7.0, "latency_item_ms": 2.0, "speedup": 1.5}
    assert expected.items() <= point.numbers.items()
    assert "own_noise" not in point.numbers and "latency_batch_p90_ms" not in point.numbers


def test_commits_are_named_and_ordered_where_the_repository_is(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str, **env: str) -> str:
        who = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
        return subprocess.check_output(["git", *who, *words], env={**os.environ, **env}, text=True).strip()

    monkeypatch.chdir(tmp_path)
    git("init", "--quiet")
    commits = []
    for day in (1, 2):
        git(
            *("commit", "--quiet", "--allow-empty", "-m", f"Day {day}: it's {{{{"),
            GIT_COMMITTER_DATE=f"2026-01-0{day}T12:00Z",
        )
        commits.append(git("rev-parse", "HEAD"))
    # The older commit is measured later.
    record(made_up_run(tmp_path, 30, git={"commit": commits[1], "dirty": True}), address)
    record(made_up_run(tmp_path, 50, git={"commit": commits[0], "dirty": False}), address)
    runs = [run for run, _, _ in History.open(address).runs()]
    assert [r.commit for r in runs] == commits
    assert [r.subject for r in runs] == ["Day 1: it's {{", "Day 2: it's {{"]
    assert [r.label for r in runs] == [commits[0][:8], commits[1][:8] + "+"]
    assert runs[0].committed == "2026-01-01T12:00:00+00:00"


def test_without_a_repository_a_run_is_named_by_its_time(address: str, tmp_path: Path) -> None:
    record(made_up_run(tmp_path, git={"unavailable": "no git"}), address)
    ((run, _, _),) = History.open(address).runs()
    assert (run.commit, run.label) == (None, "2026-01-01 00:00")


# --- what is comparable ----------------------------------------------------------------------------------------------


def key(cell: dict[str, Any] | None = None, arm: dict[str, Any] | None = None, **changes: Any) -> Key:
    """Of a made-up cell, with what is changed in it, its arm and its manifest."""
    table = timed("compaction", 1.5).model_dump()
    table |= (cell or {}) | {"arm": table["arm"] | (arm or {})}
    return key_of(made_up_manifest(0, **changes), Cell.model_validate(table))


def info(**changes: Any) -> dict[str, Any]:
    known = made_up_manifest(0).workloads["net"].model_dump()
    return {"workloads": {"net": known | changes}}


def with_baselines(*baselines: dict[str, Any]) -> dict[str, Any]:
    return {"spec": {"workloads": {"net": {"baselines": list(baselines)}}}}


@pytest.mark.parametrize(
    "other",
    [
        key({"batch_size": 1}),
        key({"dtype": "float64"}),
        key({"threads": 2}),
        key({"device": "cuda"}),
        key(arm={"engine": "compile"}),
        key(arm={"form": "channels_last"}),
        key(arm={"strategy": "masking"}),
        key(arm={"kind": "control"}),
        key(arm={"live": True}),
        key(arm={"control": "graph"}),
        key(arm={"load": "poisson 20/s"}),
        key({"decisions": {"source": "synthetic", "label": "synthetic"}}),
        key(hardware=MACHINE | {"name": "Another CPU"}),
        key(hardware=MACHINE | {"cores_usable": 4}),
        key(hardware=MACHINE | {"caches_bytes": {"L2 Unified": 1048576}}),
        key(**info(stream_hash="0")),
        key(**info(trace_hashes={"learned": "0"})),
        key(**info(model_args={"depth": 8})),
        key(**with_baselines(BASELINE | {"model": "made.up:other"})),
    ],
    ids=lambda other: next(f for f, v in other.model_dump().items() if v != key().model_dump()[f]),
)
def test_results_of_something_else_are_not_compared(other: Key) -> None:
    assert other != key()


@pytest.mark.parametrize(
    "same",
    [
        key(software={"torch": "2.14.0"}),
        key(git={"commit": "f" * 40}),
        key(dynbench_version="9"),
        key(seed=7),
        key(hardware=MACHINE | {"clock_mhz": {"current": 800.0}, "memory_bytes": 8.1e9}),
        key({"rounds": 40}),
        key(spec=SPEC | {"options": {"time_limit_s": 3}}),
        key(**with_baselines(BASELINE, {"name": "second"})),
    ],
)
def test_what_is_watched_is_no_part_of_the_key(same: Key) -> None:
    assert same == key()


def test_other_machines_have_other_series(address: str, tmp_path: Path) -> None:
    record(made_up_run(tmp_path, 0), address)
    record(made_up_run(tmp_path, 1, hardware=MACHINE | {"name": "Another CPU"}), address)
    series = History.open(address).series(["net"])
    assert sorted((s.key.arm.name, len(s.points)) for s in series) == [("compaction", 1)] * 2 + [("plain", 1)] * 2


def test_a_machine_is_told_by_what_it_is_made_of() -> None:
    assert machine_of(MACHINE) == "Made-up CPU, x86_64, 2 cores, L2 Unified 2048 KiB"
    assert machine_of({}) == "unnamed"
    gpu = {"name": "A GPU", "multiprocessors": 108, "memory_bytes": 8e10, "caches_bytes": "unavailable: why"}
    assert machine_of(gpu) == "A GPU, 108 multiprocessors"


# --- two at once -----------------------------------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
from dynbench.store.history import record
for run in sys.argv[2:]:
    print(record(Path(run), sys.argv[1]).added)
"""


def test_processes_that_record_at_once_lose_nothing_and_record_nothing_twice(address: str, tmp_path: Path) -> None:
    runs = [made_up_run(tmp_path, number) for number in range(24)]
    shares = [runs[0:16], runs[8:24], runs[::2]]  # each run is recorded by one or two; the database is made by all
    jobs = [
        subprocess.Popen([sys.executable, "-c", WRITER, address, *map(str, share)], stdout=subprocess.PIPE, text=True)
        for share in shares
    ]
    said = [job.communicate(timeout=120)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0, 0]
    assert sum(int(n) for text in said for n in text.split()) == 2 * len(runs)
    assert {r.run_id: n for r, _, n in History.open(address).runs()} == {f"run-{i}": 2 for i in range(24)}


DIES = """
import os
from sqlalchemy import Engine, event
seen = []
@event.listens_for(Engine, "before_cursor_execute")
def statement(connection, cursor, text, *rest):
    if text.startswith("INSERT INTO dynbench_"):
        seen.append(text)
    if len(seen) == 2 and MOMENT == "before the cells":
        os._exit(9)
@event.listens_for(Engine, "commit")
def end(connection):
    if seen:
        os._exit(9)
"""


@pytest.mark.parametrize("moment", ["before the cells", "before the end"])
def test_a_writer_that_dies_leaves_nothing_half(address: str, tmp_path: Path, moment: str) -> None:
    record(made_up_run(tmp_path, 0), address)
    before = contents(address)
    code = DIES.replace("MOMENT", repr(moment)) + WRITER
    run = made_up_run(tmp_path, 1)
    assert subprocess.run([sys.executable, "-c", code, address, str(run)], timeout=60).returncode == 9
    assert contents(address) == before
    assert record(run, address) == Recorded(2, 0, 0)


# --- checks ----------------------------------------------------------------------------------------------------------


def test_checks_are_recorded_once_and_read_in_order(address: str, tmp_path: Path) -> None:
    later = gate(cell("SLOWER", 1.1, ANSWERS), commit=f"0002{COMMIT[4:]}", started="2026-01-02T00:00:00+00:00")
    first = gate(cell(), workload="another", dirty=True, commit=COMMIT)
    history = History.open(address, create=True)
    for found in (later, first, later):
        history.record_check(found, tmp_path)
    assert [c.gate for c in History.open(address).checks()] == [first, later]
    assert [(c.label, c.subject) for c in history.checks()] == [("01234567+", None), ("00024567", None)]
    assert [c.gate for c in history.checks(["my_net"])] == [later] and history.checks(["net"]) == []
    assert history.runs() == [] and history.series(["my_net"]) == []
    rows = contents(address)["dynbench_checks"]
    assert sorted(row[6] for row in rows) == [0, 1]  # exit codes
    record(made_up_run(tmp_path), address)
    assert len(history.checks()) == 2 and len(history.runs()) == 1


def test_checks_are_named_by_the_commit_where_the_repository_is(address: str, tmp_path: Path) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=A", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "-m", "it's {{{{"], check=True)
    commit = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()
    history = History.open(address, create=True)
    history.record_check(gate(cell(), commit=commit), tmp_path)
    (found,) = history.checks()
    assert (found.subject, found.label) == ("it's {{{{", commit[:8]) and found.committed is not None


# --- schemas ---------------------------------------------------------------------------------------------------------


def _next_version(connection: Connection) -> None:
    """As a later version might: a column made from what is there."""
    connection.exec_driver_sql("ALTER TABLE dynbench_cells ADD COLUMN slower INTEGER")
    connection.exec_driver_sql("UPDATE dynbench_cells SET slower = CASE WHEN speedup < 1 THEN 1 ELSE 0 END")


def test_an_older_schema_is_migrated_with_nothing_lost(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        record(made_up_run(tmp_path, number, 0.9 + number / 10), address)
    before = contents(address)
    series = History.open(address).series()
    monkeypatch.setattr(database, "MIGRATIONS", (*database.MIGRATIONS, _next_version))
    assert History.open(address).series() == series
    after = contents(address)
    assert after.pop("dynbench_history") == [(NEWEST + 1,)]
    assert after["dynbench_runs"] == before["dynbench_runs"]
    assert [row[:-1] for row in after["dynbench_cells"]] == before["dynbench_cells"]
    assert sum(row[-1] for row in after["dynbench_cells"]) == 1
    before = contents(address)
    History.open(address)
    assert contents(address) == before


def test_a_migration_that_fails_leaves_the_older_schema(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(made_up_run(tmp_path), address)
    before = contents(address)

    def fails(connection: Connection) -> None:
        _next_version(connection)
        connection.exec_driver_sql("SELECT * FROM nowhere")

    with monkeypatch.context() as patch:
        patch.setattr(database, "MIGRATIONS", (*database.MIGRATIONS, fails))
        with pytest.raises(UserError, match="nowhere"):
            History.open(address)
    assert contents(address) == before
    assert len(History.open(address).runs()) == 1


def written_by(version: int, address: str) -> None:
    """Makes the database as an older dynbench left it."""
    script = (HERE / f"history_v{version}.sql").read_text(encoding="utf-8")
    if "://" not in address:
        Path(address).parent.mkdir(parents=True, exist_ok=True)
        with sqlite3.connect(address) as file:
            file.executescript(script)
        return
    engine, _ = database.connect(address, create=False)
    with engine.connect() as c:
        c.connection.driver_connection.execute(script)  # type: ignore[union-attr]
        c.connection.driver_connection.commit()  # type: ignore[union-attr]


def test_version_1_as_it_was_first_written_is_read(tmp_path: Path) -> None:
    address = str(tmp_path / "history.sqlite")
    written_by(1, address)
    history = History.open(address)
    assert [(r.label, n) for r, _, n in history.runs()] == [("00004567", 2), ("00014567", 2)]
    (compaction, plain) = history.series()
    assert compaction.key.arm == Arm(kind="strategy", strategy="compaction")
    assert plain.key.arm == Arm(kind="baseline", baseline="plain")
    assert [p.speedup.value for p in compaction.points if p.speedup] == [1.5, 1.6]
    assert [p.item_ms for p in plain.points] == [2.0, 2.002]
    assert contents(address)["dynbench_history"] == [(NEWEST,)] and NEWEST > 1
    assert history.checks() == []
    history.record_check(gate(cell()))
    assert len(history.checks()) == 1


def test_version_2_as_it_was_written_is_read(address: str) -> None:
    written_by(2, address)
    before = contents(address)
    history = History.open(address)
    after = contents(address)
    assert after["dynbench_history"] == [(NEWEST,)] and NEWEST > 2
    for table in ("dynbench_runs", "dynbench_checks"):
        assert after[table] == before[table]
    (check,) = history.checks()
    assert (check.gate.exit_code, check.gate.cells[0].outcome) == (1, "SLOWER")
    series = history.series(["tiny"])
    ways = [{"engine": engine} for engine in ("compile", "eager")]
    strategies = [Arm(kind="strategy", strategy=s, **w) for s in STRATEGIES for w in ways]
    baselines = [Arm(kind="baseline", baseline="plain", **w) for w in ways]
    baselines += [Arm(kind="baseline", baseline="plain, laid out", form="channels_last", **w) for w in ways]
    controls = [Arm(kind="control", strategy="compaction", live=True, **w) for w in ways]
    found = {label: {s.key.arm for s in series if s.key.decisions == label} for label in ("learned", SWEEP)}
    assert found == {"learned": {*strategies, *baselines, *controls}, SWEEP: {*strategies, *baselines}}
    assert len(series) == 26 and all(len(s.points) == 1 for s in series)


def stored_numbers(address: str) -> list[tuple[Any, ...]]:
    columns = "run, workload, item_ms, speedup, low, high, confidence, record"
    engine, _ = database.connect(address, create=False)
    with engine.connect() as c:
        return sorted(map(tuple, c.exec_driver_sql(f"SELECT {columns} FROM dynbench_cells")), key=repr)


def test_migrating_changes_no_number(address: str) -> None:
    written_by(2, address)
    before = stored_numbers(address)
    History.open(address)
    assert stored_numbers(address) == before and len(before) == 26


def test_series_continue_across_a_migration(address: str, tmp_path: Path) -> None:
    """A run of today lands in the series of the same thing that an older dynbench measured and recorded."""
    written_by(2, address)
    old = Run.open(HERE / "run_v2")
    writer = RunWriter.create(
        tmp_path / "run", old.manifest.model_copy(update={"started": "2026-02-01T00:00:00+00:00"})
    )
    for c in old.cells:
        writer.append_cell(c)
    assert record(writer.path, address) == Recorded(13, 0, 0)
    series = History.open(address).series()
    assert {s.key.arm.engine for s in series if len(s.points) == 2} == {"eager"}
    assert {s.key.arm.engine for s in series if len(s.points) == 1} == {"compile"}
    assert len(series) == 26
    for s in series:
        assert len({p.item_ms for p in s.points}) == 1  # the copy has the same times


def test_an_old_run_that_was_recorded_before_is_not_recorded_twice(address: str) -> None:
    written_by(2, address)
    History.open(address)
    before = contents(address)
    assert record(HERE / "run_v2", address) == Recorded(0, 0, 13)
    assert contents(address) == before


def test_what_old_records_hold_can_be_read(address: str) -> None:
    written_by(2, address)
    for s in History.open(address).series():
        (point,) = s.points
        assert point.numbers["latency_item_ms"] == point.item_ms
        assert point.numbers.get("speedup") == (point.speedup and point.speedup.value)


def test_tables_are_the_same_as_those_of_older_versions(tmp_path: Path) -> None:
    def tables(address: str) -> dict[str, Any]:
        engine, _ = database.connect(address, create=False)
        found = sqlalchemy.MetaData()
        with engine.connect() as c:
            found.reflect(c)
        return {
            table.name: (
                [(c.name, str(c.type), c.nullable and not c.primary_key, c.primary_key) for c in table.columns],
                [f.target_fullname for f in table.foreign_keys],
            )
            for table in found.tables.values()
        }

    old, new = str(tmp_path / "old.sqlite"), str(tmp_path / "new.sqlite")
    written_by(2, old)
    History.open(new, create=True)
    assert tables(old) == tables(new) and len(tables(new)) == 4


@pytest.mark.parametrize(
    ("column", "text", "says"),
    [
        ("key", "{}", "arm: field required"),
        ("key", "[1]", "valid dictionary"),
        ("key", "{", "Expecting"),
        ("record", '{"arm": "strategy"}', "name: field required"),
        ("record", "null", "valid dictionary"),
    ],
)
def test_a_damaged_row_of_an_old_history_is_told_and_nothing_is_changed(
    address: str, column: str, text: str, says: str
) -> None:
    written_by(2, address)
    statement(address, f"UPDATE dynbench_cells SET {column} = '{text}' WHERE cell_id = '{MASKING}'")
    before = contents(address)
    with pytest.raises(UserError) as e:
        History.open(address)
    assert "cannot be brought up to date, a row is damaged: " in str(e.value) and says in str(e.value)
    assert "\n" not in str(e.value)
    assert contents(address) == before


def test_a_damaged_key_or_record_is_told(address: str, tmp_path: Path) -> None:
    record(made_up_run(tmp_path), address)
    statement(address, "UPDATE dynbench_cells SET record = '{}'")
    (point,) = (p for s in History.open(address).series() for p in s.points if p.speedup)
    with pytest.raises(UserError, match="the record of a cell of run run-0 is corrupt: "):
        _ = point.numbers
    statement(address, "UPDATE dynbench_cells SET key = '{}'")
    with pytest.raises(UserError, match="is damaged: of a Key in it workload: field required"):
        History.open(address).series()


def test_a_newer_schema_is_refused(address: str, tmp_path: Path) -> None:
    run = made_up_run(tmp_path)
    record(run, address)
    statement(address, "UPDATE dynbench_history SET version = 99")
    before = contents(address)
    for use in (lambda: History.open(address), lambda: record(run, address)):
        with pytest.raises(UserError, match=f"newer dynbench: .* version 99, this one knows up to {NEWEST};"):
            use()
    assert contents(address) == before


# --- what can go wrong -----------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    """An SQLite history of one run."""
    path = tmp_path / "history.sqlite"
    record(made_up_run(tmp_path / "first", 0), str(path))
    yield path


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("not a database, but as long as its header would have to be\n" * 30)
    before = file.read_bytes()
    with pytest.raises(UserError, match="notes.txt is no SQLite database"):
        record(made_up_run(tmp_path), str(file))
    assert file.read_bytes() == before


def test_a_database_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "other.sqlite"
    with sqlite3.connect(file) as database:
        database.execute("CREATE TABLE birds (name TEXT)")
    before = file.read_bytes()
    with pytest.raises(UserError, match="another program: its tables are birds"):
        record(made_up_run(tmp_path), str(file))
    assert file.read_bytes() == before


def test_a_servers_database_may_be_shared(postgresql: Callable[[str], str], tmp_path: Path) -> None:
    address = postgresql("shared")
    statement(address, "CREATE TABLE birds (name TEXT)")
    assert record(made_up_run(tmp_path), address) == Recorded(2, 0, 0)


def test_a_database_that_stays_locked_is_told(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "WAIT_S", 0.2)
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(UserError, match="locked by another program"):
        record(made_up_run(tmp_path, 1), str(file))
    other.close()
    assert len(History.open(str(file)).runs()) == 1


def test_a_server_that_stays_locked_is_told(
    postgresql: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = postgresql("locked")
    record(made_up_run(tmp_path, 0), address)
    monkeypatch.setattr(database, "WAIT_S", 1)
    with History.open(address)._database.writing(), pytest.raises(UserError, match="locked by another program"):
        record(made_up_run(tmp_path, 1), address)
    assert len(History.open(address).runs()) == 1


def test_on_a_full_disk_nothing_is_lost(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, connect = contents(str(file)), database.connect

    def small(address: str, *, create: bool) -> Any:
        made, where = connect(address, create=create)
        pages = f"PRAGMA max_page_count = {-(-file.stat().st_size // 4096)}"  # SQLite then says that the disk is full
        sqlalchemy.event.listen(made, "connect", lambda connection, _: connection.execute(pages))
        return made, where

    run = made_up_run(tmp_path, 1, software={"torch": "x" * 100_000})
    with monkeypatch.context() as patch:
        patch.setattr(database, "connect", small)
        with pytest.raises(UserError, match="the disk is full; nothing was recorded, and what was recorded before is"):
            record(run, str(file))
    assert contents(str(file)) == before
    assert record(run, str(file)) == Recorded(2, 0, 0)


def test_where_a_file_cannot_grow_nothing_is_lost(file: Path, tmp_path: Path) -> None:
    before = contents(str(file))
    run = made_up_run(tmp_path, 1, software={"torch": "x" * 100_000})
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({file.stat().st_size},) * 2)"
    done = subprocess.run(
        [sys.executable, "-c", limit + WRITER, str(file), str(run)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "UserError: cannot write to" in done.stderr.splitlines()[-1]
    assert contents(str(file)) == before


def test_a_file_that_may_only_be_read_is_read_and_not_written(file: Path, tmp_path: Path) -> None:
    run = made_up_run(tmp_path, 1)
    before = contents(str(file))
    connect = database.connect

    def read_only(address: str, *, create: bool) -> Any:
        made, where = connect(address, create=create)
        sqlalchemy.event.listen(made, "connect", lambda connection, _: connection.execute("PRAGMA query_only = 1"))
        return made, where

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database, "connect", read_only)
        assert len(History.open(str(file)).runs()) == 1
        with pytest.raises(UserError, match="may only be read; nothing was recorded"):
            record(run, str(file))
    assert contents(str(file)) == before


def test_a_folder_in_the_place_of_the_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a file"):
        record(made_up_run(tmp_path), str(tmp_path))


def test_where_there_is_no_history_that_is_told_and_none_is_made(
    tmp_path: Path, postgresql: Callable[[str], str]
) -> None:
    with pytest.raises(UserError, match="there is no history at .*nowhere.sqlite yet; `dynbench history add"):
        History.open(str(tmp_path / "nowhere.sqlite"))
    assert not list(tmp_path.iterdir())
    address = postgresql("empty")
    with pytest.raises(UserError, match="holds no history yet"):
        History.open(address)
    assert contents(address) == {}


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("me:secret@127.0.0.1:1/team", "me:***@127.0.0.1:1/team"),
        ("127.0.0.1:1/team?password=secret", "127.0.0.1:1/team"),
        ("127.0.0.1:1/team?sslpassword=secret", "127.0.0.1:1/team"),
    ],
)
def test_a_server_that_cannot_be_reached_is_told_without_its_password(address: str, shown: str, tmp_path: Path) -> None:
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    with pytest.raises(UserError) as e:
        record(made_up_run(tmp_path), f"postgresql://{address}")
    assert f"the history at postgresql://{shown} cannot be used: " in str(e.value)
    assert "refused" in str(e.value)
    assert "secret" not in str(e.value)
    assert "\n" not in str(e.value)


def test_a_database_that_a_server_does_not_have_is_told(postgresql: Callable[[str], str]) -> None:
    address = postgresql("there").replace("/postgres?", "/elsewhere?")
    with pytest.raises(UserError, match='database "elsewhere" does not exist'):
        History.open(address)


@pytest.mark.parametrize(
    "address", ["mysql://a/b", "postgresql://a:b:c/d", "://", "https://example.org/x", "postgresql+asyncpg://a/b"]
)
def test_other_kinds_of_databases_are_refused(address: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="accepted: a path, or postgresql://"):
        History.open(address)


def test_without_psycopg_its_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(UserError, match=r"needs psycopg: pip install 'dynbench\[postgresql\]'"):
        History.open("postgresql://a/b")


def test_a_workload_without_results_is_told_with_those_that_have_some(file: Path) -> None:
    with pytest.raises(UserError, match="no results of 'nett'; it has: net"):
        History.open(str(file)).series(["nett"])


def test_a_password_in_an_address_is_seen() -> None:
    assert has_password("postgresql://me:secret@host/db") and has_password("postgresql://me@host/db?password=secret")
    assert not any(map(has_password, ("postgresql://me@host:5432/db", "a:b@c.sqlite", "postgresql:///db")))


def test_neither_torch_nor_pandas_is_needed(file: Path) -> None:
    code = """
import sys
class Heavy:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('torch', 'pandas', 'matplotlib'): raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Heavy())
from dynbench.store.history import History
print(len(History.open(sys.argv[1]).series()))
"""
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=False)
    assert done.stdout == "2\n", done.stderr


def test_series_of_one_key_are_one(file: Path) -> None:
    keys = [s.key for s in History.open(str(file)).series()]
    assert len(set(keys)) == len(keys) == 2
    assert keys[0].model_copy(update={"threads": 2}) not in keys


def test_an_error_that_sqlite_has_no_word_for_is_a_sentence() -> None:
    with (
        pytest.raises(UserError, match="h.db is damaged: it holds a text that is none"),
        database._errors_explained("h.db"),
    ):
        b"\xe4 ".decode()
