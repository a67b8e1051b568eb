"""Made-up records for tests of the store, by hand and by hypothesis."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from dynbench.store.run import COLUMNS, write_samples
from dynbench.store.schema import (
    LEAST,
    MOST,
    Accuracy,
    Arm,
    Cell,
    Decisions,
    Energy,
    Flops,
    Latency,
    Manifest,
    Memory,
    Phases,
    RoundSample,
    Speedup,
    Warning_,
)
from dynbench.unavailable import Unavailable

number = st.floats(LEAST, MOST)
text = st.text(st.characters(codec="utf-8"), max_size=12)  # line separators, NUL and quotes among them
quantity = number | st.builds(Unavailable, unavailable=text)
count = st.integers(1, 2**53)
flag = st.booleans()

speedups = st.builds(Speedup, value=number, low=number, high=number, confidence=number, baseline=text, primary=flag)
decisions = st.builds(
    Decisions,
    source=st.sampled_from(["learned", "synthetic"]),
    label=text,
    keep_rate=st.none() | number,
    requested=st.dictionaries(text, number | st.lists(number, max_size=2), max_size=2),
    sweep=flag,
    provenance=st.none() | text,
)
arms = st.builds(
    Arm,
    kind=st.sampled_from(["strategy", "baseline", "control"]),
    strategy=st.none() | text,
    baseline=st.none() | text,
    form=text,
    engine=text,
    control=st.sampled_from(["host", "graph"]),
    live=flag,
    again=flag,
    load=text,
)
latencies = st.builds(
    Latency,
    stream_ms=number,
    item_ms=number,
    batch_p50_ms=number,
    batch_p90_ms=quantity,
    batch_p99_ms=quantity,
    device_stream_ms=quantity,
)
flops = st.builds(
    Flops,
    dense=quantity,
    required_region=quantity,
    required_total=quantity,
    executed=quantity,
    accounted=quantity,
    accounted_rule=st.none() | text,
)
energies = st.builds(Energy, item_j=quantity, idle_share=quantity, window_s=quantity, sensor=st.none() | text)
cells = st.builds(
    Cell,
    cell_id=text,
    group_id=text,
    workload=text,
    decisions=decisions,
    arm=arms,
    primary=flag,
    static_twin=flag,
    item_by_item=flag,
    batch_size=count,
    threads=count,
    status=st.sampled_from(["ok", "refused", "failed", "interrupted"]),
    reason=st.none() | text,
    latency=st.none() | latencies,
    speedups=st.lists(speedups, max_size=2),
    ideal=st.none() | number,
    efficiency=st.none() | number,
    flops=st.none() | flops,
    bytes_touched=st.none() | quantity,
    host_syncs=st.none() | quantity,
    params=st.none() | count,
    memory=st.none() | st.builds(Memory, peak_bytes=quantity),
    energy=st.none() | energies,
    accuracy=st.none() | st.builds(Accuracy, value=quantity, metric=text, items=count),
    phases=st.none() | st.builds(Phases, body_ms=number),
    batch_paths=st.lists(number, max_size=3),
    max_error=st.none() | number,
    warnings=st.lists(st.builds(Warning_, id=text, text=text, remedy=text), max_size=2),
)
int64 = st.integers(0, 2**63 - 1)
samples = st.builds(
    RoundSample,
    process=count,
    round=count,
    position=count,
    arm=text,
    batch_id=count,
    start_ns=int64,
    duration_ns=int64,
    device_ns=st.none() | count,
)


def cell(name: str, status: str = "ok", group: str = "net/learned/cpu/b8/float32/t1", **changes: Any) -> Cell:
    """A cell of a strategy, or of another arm if `changes` has one."""
    arm = Arm.model_validate(changes.pop("arm", {"kind": "strategy", "strategy": name}))
    table = {
        "cell_id": f"{group}/{arm.key}",
        "group_id": group,
        "workload": "net",
        "arm": arm,
        "decisions": {"source": "learned", "label": "learned"},
        "batch_size": 8,
        "threads": 1,
        "status": status,
    }
    return Cell.model_validate(table | changes)


def manifest(**changes: Any) -> Manifest:
    table = {
        "dynbench_version": "0.1.0",
        "run_id": "r",
        "command": ["dynbench", "run"],
        "spec": {},
        "seed": 0,
        "started": "2026-01-01T00:00:00+00:00",
        "hardware": {},
        "software": {},
        "git": {},
        "environment": {},
    }
    return Manifest.model_validate(table | changes)


def sample(round_: int = 0, **changes: Any) -> RoundSample:
    table = {
        "process": 0,
        "round": round_,
        "position": 0,
        "arm": "masking",
        "batch_id": 0,
        "start_ns": 5,
        "duration_ns": 7,
    }
    return RoundSample.model_validate(table | changes)


def store_samples(run: Path, group_id: str, rows: Sequence[RoundSample]) -> Path:
    """Stores samples given row by row."""
    return write_samples(run, group_id, {name: [getattr(row, name) for row in rows] for name in COLUMNS})
