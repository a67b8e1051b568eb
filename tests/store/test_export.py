"""Exports are flat, carry units, and say why a number is missing."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from bench.big_run import make_run
from dynbench.errors import UserError
from dynbench.store.export import export
from dynbench.store.run import Run, RunWriter
from dynbench.store.schema import SCHEMA_VERSION, Cell
from tests.store.records import cell, manifest, sample, store_samples

OTHER = "net/learned/cpu/b1/float32/t1"
PRIMARY = {"value": 1.2, "low": 1.17, "high": 1.24, "baseline": "ResNet", "primary": True}
SECOND = {"value": 0.9, "low": 0.8, "high": 1.0, "baseline": "small, static", "primary": False}
NO = {"unavailable": "no sensor"}


EARLIER = """
schema_version cell_id group_id workload decisions_source decisions_label decisions_keep_rate decisions_requested
decisions_provenance arm name primary engine form device batch_size_items dtype threads status reason stopped_by
rounds stream_items latency_stream_ms latency_item_ms latency_batch_p50_ms latency_batch_p90_ms
latency_batch_p90_ms_unavailable latency_batch_p99_ms latency_batch_p99_ms_unavailable latency_device_stream_ms
latency_device_stream_ms_unavailable speedup speedup_low speedup_high speedup_confidence speedup_baseline
ideal_speedup efficiency_speedup_over_ideal dense_flops_per_item dense_flops_per_item_unavailable
required_region_flops_per_item required_region_flops_per_item_unavailable required_total_flops_per_item
required_total_flops_per_item_unavailable executed_flops_per_item executed_flops_per_item_unavailable
accounted_flops_per_item accounted_flops_per_item_unavailable accounted_rule bytes_touched_per_item
bytes_touched_per_item_unavailable operator_calls_per_stream operator_calls_per_stream_unavailable
host_syncs_per_stream host_syncs_per_stream_unavailable kernel_launches_per_stream
kernel_launches_per_stream_unavailable params peak_memory_bytes peak_memory_bytes_unavailable energy_item_j
energy_item_j_unavailable energy_idle_share energy_idle_share_unavailable energy_window_s energy_window_s_unavailable
energy_sensor accuracy_value accuracy_value_unavailable accuracy_metric accuracy_unit accuracy_higher_is_better
accuracy_items phases_decide_ms phases_gather_ms phases_body_ms phases_scatter_ms phases_sync_ms phases_head_ms
phases_other_ms path_label batch_paths max_error tolerance again_value again_low again_high again_confidence
witnesses_window_s witnesses_waited witnesses_waited_unavailable witnesses_stolen witnesses_stolen_unavailable
witnesses_switched_per_s
witnesses_switched_per_s_unavailable witnesses_control_us witnesses_control_us_unavailable witnesses_control_drift
witnesses_control_drift_unavailable witnesses_clock_mhz witnesses_clock_mhz_unavailable witnesses_clock_low_mhz
witnesses_clock_low_mhz_unavailable witnesses_clock_drift witnesses_clock_drift_unavailable witnesses_temperature_c
witnesses_temperature_c_unavailable witnesses_governor warnings
"""  # the columns of cells.csv of schema 2, which other programs may rely on


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
    store_samples(writer.path, full.group_id, [sample(0), sample(1, device_ns=10**15 + 1)])
    return Run.open(writer.path)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_cells_are_flat_with_reasons_beside_missing_numbers(run: Run, tmp_path: Path) -> None:
    files = export(run, ["csv"], tmp_path / "out")
    assert [f.name for f in files] == ["cells.csv", "speedups.csv", "samples.csv"]
    full, refused = rows(files[0])
    expected = {
        "name": "compaction",
        "arm": "strategy",
        "batch_size_items": "8",
        "decisions_label": "learned",
        "speedup": "1.2",
        "speedup_low": "1.17",
        "speedup_baseline": "ResNet",
        "dense_flops_per_item": "10.0",
        "params": "3",
        "accounted_flops_per_item": "",
        "accounted_flops_per_item_unavailable": "no sensor",
        "energy_item_j": "",
        "energy_item_j_unavailable": "no sensor",
        "energy_idle_share": "0.4",
        "peak_memory_bytes": "1024.0",
        "bytes_touched_per_item": "7.0",
        "batch_paths": "[1.0, 2.5]",
        "warnings": "DB-NOISE-01: noisy",
        "latency_stream_ms": "",
    }
    assert {k: full[k] for k in expected} == expected
    assert (refused["status"], refused["reason"], refused["speedup"]) == ("refused", 'no "Loop", no Exits', "")
    assert refused["energy_item_j_unavailable"] == ""


def test_deployed_speedups_and_the_ways_tried_are_exported(tmp_path: Path) -> None:
    writer = RunWriter.create(tmp_path / "run", manifest())
    way = {"kind": "strategy", "strategy": "compaction", "engine": "onnxruntime", "control": "graph"}
    tried = [{"arm": way, "ratio": 1.0}, {"arm": way | {"control": "host"}, "reason": "no such operator"}]
    writer.append_cell(
        cell("compaction", arm=way, deployed=True, deployed_speedups=[PRIMARY, SECOND], candidates=tried)
    )
    cells, speedups, _ = export(Run.open(writer.path), ["csv"], tmp_path / "out")
    (found,) = rows(cells)
    assert (found["deployed"], found["deployed_speedup"], found["speedup"]) == ("True", "1.2", "")
    assert found["speedup_baseline"] == "ResNet"
    assert json.loads(found["candidates"])[1] == {
        "arm": "compaction, onnxruntime",
        "ratio": None,
        "reason": "no such operator",
    }
    assert [(r["baseline"], r["deployed"]) for r in rows(speedups)] == [("ResNet", "True"), ("small, static", "True")]


def test_every_field_of_a_cell_has_a_column(run: Run, tmp_path: Path) -> None:
    header = list(rows(export(run, ["csv"], tmp_path / "out")[0])[0])
    assert len(set(header)) == len(header)
    for name in Cell.model_fields:
        if name == "own":  # a column for each quantity that the manifest describes; see test_own_quantity
            continue
        stem = {
            "speedups": "speedup",
            "deployed_speedups": "deployed_speedup",
            "memory": "peak_memory",
            "flops": "executed_flops",
        }.get(name, name)
        assert any(column.startswith(stem) for column in header), name


def test_columns_of_earlier_versions_remain(run: Run, tmp_path: Path) -> None:
    header = list(rows(export(run, ["csv"], tmp_path / "out")[0])[0])
    assert set(EARLIER.split()) - set(header) == set()


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
    described = {q["key"]: q for q in document["quantities"]}
    assert described["energy_item_j"]["unit"] == "mJ/item" and described["energy_item_j"]["scale"] == 1e-3


def test_an_empty_run_still_has_headers(tmp_path: Path) -> None:
    writer = RunWriter.create(tmp_path / "run", manifest())
    files = export(Run.open(writer.path), ["csv", "json"], tmp_path / "out")
    assert len(files) == 4
    assert all(f.read_text(encoding="utf-8").count("\n") == 1 for f in files[:3])


def test_an_unknown_format_is_refused_with_the_nearest(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown export format 'jsn'; did you mean json"):
        export(run, ["jsn"], tmp_path / "out")
    with pytest.raises(UserError, match="unknown export format 'x'; accepted: csv, json"):
        export(run, ["x"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unwritable_folder_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write to .*file"):
        export(run, ["csv"], tmp_path / "file")


def test_a_run_of_many_groups_is_exported_whole(tmp_path: Path) -> None:
    make_run(tmp_path / "run", count=150)
    found = Run.open(tmp_path / "run")
    cells, speedups, samples = (rows(file) for file in export(found, ["csv"], tmp_path / "out"))
    assert [r["cell_id"] for r in cells] == [c.cell_id for c in found.cells] and len(cells) == 150
    assert len(speedups) == sum(len(c.speedups) for c in found.cells)
    groups = dict.fromkeys(c.group_id for c in found.cells)
    assert list(dict.fromkeys(r["group_id"] for r in samples)) == list(groups) and len(groups) > 10
    assert len(samples) == sum(len(found.samples(group)) for group in groups)
