"""Exports are flat, carry units, and say why a number is missing."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from dynbench.errors import UserError
from dynbench.store.export import export
from dynbench.store.run import Run, RunWriter
from dynbench.store.schema import SCHEMA_VERSION, Cell
from tests.store.records import cell, manifest, sample

OTHER = "net/learned/cpu/b1/float32/t1"
PRIMARY = {"value": 1.2, "low": 1.17, "high": 1.24, "baseline": "ResNet", "primary": True}
SECOND = {"value": 0.9, "low": 0.8, "high": 1.0, "baseline": "small, static", "primary": False}
NO = {"unavailable": "no sensor"}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    writer = RunWriter.create(tmp_path / "run", manifest())
    full = cell(
        "compaction",
        speedups=[SECOND, PRIMARY],
        flops={"dense": 10.0, "required_region": 5.0, "required_total": 6.0, "executed": 6.0, "accounted": NO},
        energy={"item_j": NO, "idle_share": 0.4, "window_s": 2.0},
        memory={"peak_bytes": 1024},
        bytes_touched=7.0,
        params=3,
        batch_paths=[1.0, 2.5],
        warnings=[{"id": "DB-NOISE-01", "text": "noisy", "remedy": "wait"}],
    )
    for c in (full, cell("cascading", "refused", group=OTHER, reason='no "Loop", no Exits')):
        writer.append_cell(c)
    writer.write_samples(full.group_id, [sample(0), sample(1, device_ns=10**15 + 1)])
    return Run.open(writer.path)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_cells_are_flat_with_reasons_beside_missing_numbers(run: Run, tmp_path: Path) -> None:
    files = export(run, ["csv"], tmp_path / "out")
    assert [f.name for f in files] == ["cells.csv", "speedups.csv", "samples.csv"]
    full, refused = rows(files[0])
    expected = {
        "name": "compaction", "batch_size_items": "8", "decisions_label": "learned", "speedup": "1.2",
        "speedup_low": "1.17", "speedup_baseline": "ResNet", "dense_flops_per_item": "10.0", "params": "3",
        "accounted_flops_per_item": "", "accounted_flops_per_item_unavailable": "no sensor",
        "energy_item_j": "", "energy_item_j_unavailable": "no sensor", "energy_idle_share": "0.4",
        "peak_memory_bytes": "1024.0", "bytes_touched_per_item": "7.0", "batch_paths": "[1.0, 2.5]",
        "warnings": "DB-NOISE-01: noisy", "latency_stream_ms": "",
    }  # fmt: skip
    assert {k: full[k] for k in expected} == expected
    assert (refused["status"], refused["reason"], refused["speedup"]) == ("refused", 'no "Loop", no Exits', "")
    assert refused["energy_item_j_unavailable"] == ""


def test_every_field_of_a_cell_has_a_column(run: Run, tmp_path: Path) -> None:
    header = list(rows(export(run, ["csv"], tmp_path / "out")[0])[0])
    assert len(set(header)) == len(header)
    for name in Cell.model_fields:
        stem = {"speedups": "speedup", "memory": "peak_memory", "flops": "executed_flops"}.get(name, name)
        assert any(column.startswith(stem) for column in header), name


def test_columns_that_carry_amounts_carry_units(run: Run, tmp_path: Path) -> None:
    header = list(rows(export(run, ["csv"], tmp_path / "out")[0])[0])
    amounts = [
        h for h in header if re.match(r"latency|energy_item|phases|.*flops|bytes|operator|host_s|kernel|.*memory", h)
    ]
    assert len(amounts) > 25
    unit = re.compile(r"_(ms|j|bytes|per_item|per_stream)(_unavailable)?$")
    assert [h for h in amounts if not unit.search(h)] == []


def test_speedups_against_every_baseline_are_rows(run: Run, tmp_path: Path) -> None:
    found = rows(export(run, ["csv"], tmp_path / "out")[1])
    assert [(r["name"], r["baseline"], r["value"], r["primary"]) for r in found] == [
        ("compaction", "small, static", "0.9", "False"),
        ("compaction", "ResNet", "1.2", "True"),
    ]


def test_samples_keep_their_nanoseconds(run: Run, tmp_path: Path) -> None:
    found = rows(export(run, ["csv"], tmp_path / "out")[2])
    assert [(r["group_id"], r["round"], r["duration_ns"], r["device_ns"]) for r in found] == [
        ("net/learned/cpu/b8/float32/t1", "0", "7", ""),
        ("net/learned/cpu/b8/float32/t1", "1", "7", str(10**15 + 1)),
    ]


def test_json_is_one_document_that_holds_the_run(run: Run, tmp_path: Path) -> None:
    (file,) = export(run, ["json"], tmp_path / "out")
    document = json.loads(file.read_text(encoding="utf-8"))
    assert document["schema_version"] == SCHEMA_VERSION
    assert document["manifest"]["run_id"] == "r"
    assert [Cell.model_validate(c) for c in document["cells"]] == run.cells


def test_an_empty_run_still_has_headers(tmp_path: Path) -> None:
    writer = RunWriter.create(tmp_path / "run", manifest())
    files = export(Run.open(writer.path), ["csv", "json"], tmp_path / "out")
    assert len(files) == 4
    assert all(f.read_text(encoding="utf-8").count("\n") == 1 for f in files[:3])


def test_an_unknown_format_is_refused_with_the_nearest(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown export format 'jsn'; did you mean 'json'"):
        export(run, ["jsn"], tmp_path / "out")
    with pytest.raises(UserError, match="unknown export format 'x'; accepted: csv, json"):
        export(run, ["x"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unwritable_folder_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write to .*file"):
        export(run, ["csv"], tmp_path / "file")
