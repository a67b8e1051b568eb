"""Counting in a run how often the picked way is as good as the best that was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.picks import picked_ways
from dynbench.store.run import Run, write_samples
from dynbench.store.schema import Cell, Latency
from tests.analysis.cells import NO, cell
from tests.store.records import manifest


def timed(name: str, stream_ms: float, batch_size: int = 32, **changes: Any) -> Cell:
    latency = Latency(
        stream_ms=stream_ms, item_ms=1.0, batch_p50_ms=1.0, batch_p90_ms=NO, batch_p99_ms=NO, device_stream_ms=NO
    )
    return cell(name, latency=latency, batch_size=batch_size, **changes)


def ran(path: Path, cells: list[Cell]) -> Run:
    return Run(path, manifest(), cells)


def test_each_group_with_a_pick_counts_once(tmp_path: Path) -> None:
    slow = timed("compaction", 10.0, deployed=True)
    fast = timed("masking", 8.0)
    right = timed("compaction", 5.0, batch_size=1, deployed=True)
    nothing_picked = timed("compaction", 5.0, batch_size=7)
    found = picked_ways(ran(tmp_path, [slow, fast, right, timed("masking", 6.0, batch_size=1), nothing_picked]))
    assert [(p.picked, p.best) for p in found] == [(slow, fast), (right, right)]
    assert [p.share for p in found] == pytest.approx([0.8, 1.0])


def test_what_is_no_candidate_is_not_the_best(tmp_path: Path) -> None:
    pick = timed("compaction", 10.0, deployed=True)
    others = [
        timed("per_sample", 1.0),
        timed("dense", 1.0),
        timed("compaction", 1.0, kind="control"),
        timed("ResNet-38", 1.0, kind="baseline"),
        timed("masking", 1.0, status="failed"),
    ]
    (found,) = picked_ways(ran(tmp_path, [pick, *others]))
    assert found.best is pick


@pytest.mark.parametrize(("best_ns", "wrong"), [([8, 8, 8], True), ([8, 8, 12], False)])
def test_a_better_arm_counts_as_far_as_its_rounds_tell(tmp_path: Path, best_ns: list[int], wrong: bool) -> None:
    pick, best = timed("compaction", 10.0, deployed=True), timed("masking", 8.0)
    columns = {name: [0] * 6 for name in ("process", "position", "batch_id", "start_ns", "device_ns")}
    columns |= {"round": [0, 1, 2] * 2, "duration_ns": [10, 10, 10, *best_ns]}
    (tmp_path / "samples").mkdir()
    write_samples(tmp_path, pick.group_id, columns | {"arm": [pick.arm.key] * 3 + [best.arm.key] * 3})
    (found,) = picked_ways(ran(tmp_path, [pick, best]))
    assert found.share == pytest.approx(0.8) and found.surely_wrong == wrong
    assert found.told is not None and found.told.value == pytest.approx(0.8)
