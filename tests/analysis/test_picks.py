"""Counting in a run how often the picked way is as good as the best that was measured."""

from __future__ import annotations

from typing import Any

import pytest

from bench.picks import picked_ways
from dynbench.store.schema import Cell, Latency
from tests.analysis.cells import NO, cell


def timed(name: str, stream_ms: float, batch_size: int = 32, **changes: Any) -> Cell:
    latency = Latency(
        stream_ms=stream_ms, item_ms=1.0, batch_p50_ms=1.0, batch_p90_ms=NO, batch_p99_ms=NO, device_stream_ms=NO
    )
    return cell(name, latency=latency, batch_size=batch_size, **changes)


def test_each_group_with_a_pick_counts_once() -> None:
    slow = timed("compaction", 10.0, deployed=True)
    fast = timed("masking", 8.0)
    right = timed("compaction", 5.0, batch_size=1, deployed=True)
    nothing_picked = timed("compaction", 5.0, batch_size=7)
    found = picked_ways([slow, fast, right, timed("masking", 6.0, batch_size=1), nothing_picked])
    assert [(p.picked, p.best) for p in found] == [(slow, fast), (right, right)]
    assert [p.share for p in found] == pytest.approx([0.8, 1.0])


def test_what_is_no_candidate_is_not_the_best() -> None:
    pick = timed("compaction", 10.0, deployed=True)
    others = [
        timed("per_sample", 1.0),
        timed("dense", 1.0),
        timed("compaction", 1.0, kind="control"),
        timed("ResNet-38", 1.0, kind="baseline"),
        timed("masking", 1.0, status="failed"),
    ]
    (found,) = picked_ways([pick, *others])
    assert found.best is pick
