"""`dynbench history`, and runs that are recorded when they end."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import pytest

from dynbench.store.history import History
from dynbench.store.run import RunWriter
from tests.cli import QUICK, TINY, call
from tests.cli.test_bad_input import refused
from tests.report.made_up_gate import LESS, cell, gate
from tests.store.histories import COMMIT, made_up_manifest, made_up_run, timed


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A history of eight made-up runs, the last four slower."""
    runs = [made_up_run(tmp_path, i, (1.5 if i < 4 else 1.2) * (1 + i % 3 / 1000)) for i in range(8)]
    result = call("history", "add", *runs, "--db", tmp_path / "h.sqlite")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [f"{run}: 2 cells recorded" for run in runs]
    return tmp_path / "h.sqlite"


def test_adding_again_says_so_and_changes_nothing(database: Path, tmp_path: Path) -> None:
    before = database.read_bytes()
    result = call("history", "add", tmp_path / "run-3", "--db", database)
    assert result.stdout == f"{tmp_path / 'run-3'}: recorded before, all 2 cells\n"
    assert database.read_bytes() == before


def test_nothing_is_added_where_one_of_the_folders_holds_no_run(database: Path, tmp_path: Path) -> None:
    new = made_up_run(tmp_path / "more", 20)
    assert "nowhere holds no run" in refused("history", "add", new, tmp_path / "nowhere", "--db", database)
    assert len(History.open(str(database)).runs()) == 8


def test_the_database_may_lie_among_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made_up_run(Path("runs"))
    for _ in range(2):
        assert call("history", "add", *Path("runs").iterdir()).exit_code == 0
    assert "run-0" in call("history", "list").stdout and Path("runs/history.sqlite").exists()


def test_runs_are_listed(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYNBENCH_HISTORY", str(database))
    text = call("history", "list").stdout
    assert all(f"run-{i}" in text for i in range(8))
    rows = json.loads(call("history", "list", "--json").stdout)
    assert [r["run_id"] for r in rows] == [f"run-{i}" for i in range(8)]
    assert rows[0]["workloads"] == ["net"] and rows[0]["cells"] == 2
    assert rows[0]["commit"] == "0000" + COMMIT[4:] and rows[0]["dirty"] is False


def test_a_cell_is_shown_over_the_commits_with_its_change(database: Path) -> None:
    text = call("history", "show", "net", "--db", database).stdout
    assert "net, learned, batch 8: compaction" in text
    assert "against plain; cpu, float32, 1 threads" in text
    rows = [line for line in text.splitlines() if "2026-01-01" in line]
    assert len(rows) == 8
    assert ["-20" in row or "-19.9 %" in row for row in rows] == [i == 4 for i in range(8)]
    assert rows[0].startswith("00004567") and "1.50x (1.47 to 1.53)" in rows[0]


def test_cells_are_chosen_and_shown_as_json(database: Path) -> None:
    both = ("--strategy", "plain,compaction", "--json")
    shown = json.loads(call("history", "show", "net", *both, "--db", database).stdout)
    assert [s["key"]["arm"]["strategy"] or s["key"]["arm"]["baseline"] for s in shown] == ["compaction", "plain"]
    points = shown[0]["points"]
    assert [p["speedup"]["value"] for p in points[:2]] == [1.5, 1.5 * 1.001]
    assert points[4]["change"] == pytest.approx(-0.2, abs=0.002)
    assert [p["change"] for p in points].count(None) == 7
    assert all(p["speedup"] is None for p in shown[1]["points"])
    assert points[0]["numbers"]["latency_item_ms"] == points[0]["item_ms"]


def test_other_quantities_are_shown_by_their_key(tmp_path: Path) -> None:
    writer = RunWriter.create(tmp_path / "run", made_up_manifest(0))
    writer.append_cell(timed("compaction", 1.5, own={"padded_share": 0.25}, operator_calls=1234.0))
    assert call("history", "add", writer.path, "--db", tmp_path / "h.sqlite").exit_code == 0
    asked = ("history", "show", "net", "--db", tmp_path / "h.sqlite", "--quantity")
    header, _, row = call(*asked, "own_padded_share,operator_calls_per_stream").stdout.splitlines()[-3:]
    assert "own padded share" in header and "operator calls per stream" in header
    assert "0.25" in row and "1,234" in row
    assert "did you mean own_padded_share" in refused(*asked, "own_paded_share")


def test_a_history_of_an_older_dynbench_goes_on(tmp_path: Path) -> None:
    here = Path(__file__).parents[1] / "store"
    file = tmp_path / "h.sqlite"
    with sqlite3.connect(file) as connection:
        connection.executescript((here / "history_v2.sql").read_text(encoding="utf-8"))
    assert "recorded before, all 13 cells" in call("history", "add", here / "run_v2", "--db", file).stdout
    shown = call("history", "show", "tiny", "--strategy", "masking", "--db", file).stdout
    assert "tiny, learned, batch 4: masking\n" in shown and "tiny, learned, batch 4: masking, compile\n" in shown


def test_a_page_is_written(database: Path, tmp_path: Path) -> None:
    result = call("history", "report", "net", "--db", database, "--out", tmp_path / "page", "--format", "html")
    assert result.stdout == f"report: {tmp_path / 'page' / 'history.html'}\n"
    assert "compaction" in (tmp_path / "page" / "history.html").read_text(encoding="utf-8")
    assert sorted(p.name for p in (tmp_path / "page").iterdir()) == ["history.html"]


def test_what_cannot_be_is_told_in_one_sentence(database: Path, tmp_path: Path) -> None:
    sentence = refused("history", "show", "net", "--batch", "1", "--db", database)
    assert "no such cell" in sentence and "compaction at batch 8, learned" in sentence
    assert "no results of 'nett'; it has: net" in refused("history", "show", "nett", "--db", database)
    assert "no history at" in refused("history", "list", "--db", tmp_path / "nowhere.sqlite")
    assert "'hmtl'" in refused("history", "report", "--format", "hmtl", "--db", database, "--out", tmp_path / "o")
    assert "is no SQLite database" in refused("history", "list", "--db", tmp_path / "run-0" / "cells.jsonl")
    assert "accepted: a path, or postgresql://" in refused("history", "list", "--db", "mysql://a/b")
    assert not (tmp_path / "nowhere.sqlite").exists()


def test_a_newer_history_is_refused_by_every_command(database: Path, tmp_path: Path) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE dynbench_history SET version = 99")
    before = database.read_bytes()
    for words in (["list"], ["show", "net"], ["report", "--out", tmp_path / "o"], ["add", tmp_path / "run-0"]):
        sentence = refused("history", *words, "--db", database)
        assert "newer dynbench" in sentence and "version 99" in sentence and "update dynbench" in sentence
    assert database.read_bytes() == before


def test_a_server_that_is_not_there_is_told() -> None:
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    assert "refused" in refused("history", "list", "--db", "postgresql://127.0.0.1:1/team")


def test_a_run_is_recorded_when_it_ends_and_can_be_added_again(tmp_path: Path) -> None:
    database = tmp_path / "h.sqlite"
    result = call("run", TINY, *QUICK, "--out", tmp_path / "run", "--history", database)
    assert result.exit_code == 0, result.output
    assert f"cells recorded in {database}" in result.stdout
    assert "recorded before" in call("history", "add", tmp_path / "run", "--db", database).stdout
    ((run, workloads, cells),) = History.open(str(database)).runs()
    assert (run.run_id, workloads) == ("run", ["tiny"])
    assert cells >= 2
    again = shutil.copytree(tmp_path / "run", tmp_path / "copy")
    assert "recorded before" in call("history", "add", again, "--db", database).stdout


def test_a_history_that_cannot_be_is_told_before_anything_is_measured(tmp_path: Path) -> None:
    for address, words in (
        ("mysql://a/b", "accepted: a path"),
        ("postgresql://me:secret@127.0.0.1/team", "PGPASSWORD"),
        (tmp_path, "not a file"),
    ):
        sentence = refused("run", TINY, *QUICK, "--out", tmp_path / "run", "--history", address)
        assert words in sentence and "secret" not in sentence
    assert not (tmp_path / "run").exists()


def test_checks_are_shown(tmp_path: Path) -> None:
    file = tmp_path / "h.sqlite"
    History.open(str(file), create=True).record_check(gate(cell("SLOWER", 1.1, LESS), commit=COMMIT))
    text = call("history", "checks", "--db", file).stdout
    for said in (COMMIT[:8], "origin/main (4f2a91c0)", "+10.0 % (+9.0 to +11.0)", "SLOWER", "executed FLOPs: 9 -> 8"):
        assert said in text
    (row,) = json.loads(call("history", "checks", "my_net", "--json", "--db", file).stdout)
    assert row["commit"] == COMMIT and row["cells"][0]["outcome"] == "SLOWER"
    assert "no check of net is recorded" in refused("history", "checks", "net", "--db", file)
    assert "only checks" in refused("history", "show", "my_net", "--db", file)
