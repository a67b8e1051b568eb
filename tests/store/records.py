"""Made-up records for tests of the store, by hand and by hypothesis."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from dynbench.store.schema import (
    Accuracy,
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
    Unavailable,
    Warning_,
)

number = st.floats(allow_nan=False, allow_infinity=False)
text = st.text(st.characters(codec="utf-8"), max_size=12)  # line separators, NUL and quotes among them
quantity = number | st.builds(Unavailable, unavailable=text)
count = st.integers(0, 2**53)


def _record(kind: type, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.builds(kind, **fields)


speedups = _record(
    Speedup, value=number, low=number, high=number, confidence=number, baseline=text, primary=st.booleans()
)
cells = _record(
    Cell,
    cell_id=text, group_id=text, workload=text, name=text, primary=st.booleans(), batch_size=count, threads=count,
    decisions=_record(
        Decisions,
        source=st.sampled_from(["learned", "synthetic"]), label=text, keep_rate=st.none() | number,
        requested=st.dictionaries(text, number | st.lists(number, max_size=2), max_size=2), provenance=st.none() | text,
    ),
    arm=st.sampled_from(["strategy", "baseline", "control"]),
    status=st.sampled_from(["ok", "refused", "failed", "interrupted"]), reason=st.none() | text,
    latency=st.none() | _record(
        Latency,
        stream_ms=number, item_ms=number, batch_p50_ms=number, batch_p90_ms=quantity, batch_p99_ms=quantity,
        device_stream_ms=quantity,
    ),
    speedups=st.lists(speedups, max_size=2), ideal=st.none() | number, efficiency=st.none() | number,
    flops=st.none() | _record(
        Flops,
        dense=quantity, required_region=quantity, required_total=quantity, executed=quantity, accounted=quantity,
        accounted_rule=st.none() | text,
    ),
    bytes_touched=st.none() | quantity, host_syncs=st.none() | quantity, params=st.none() | count,
    memory=st.none() | _record(Memory, peak_bytes=quantity),
    energy=st.none() | _record(
        Energy, item_j=quantity, idle_share=quantity, window_s=quantity, sensor=st.none() | text
    ),
    accuracy=st.none() | _record(Accuracy, value=quantity, metric=text, items=count),
    phases=st.none() | _record(Phases, body_ms=number), batch_paths=st.lists(number, max_size=3),
    max_error=st.none() | number,
    warnings=st.lists(_record(Warning_, id=text, text=text, remedy=text), max_size=2),
)  # fmt: skip
int64 = st.integers(0, 2**63 - 1)
samples = _record(
    RoundSample,
    process=count, round=count, position=count, arm=text, batch_id=count, start_ns=int64, duration_ns=int64,
    device_ns=st.none() | count,
)  # fmt: skip


def cell(name: str, status: str = "ok", group: str = "net/learned/cpu/b8/float32/t1", **changes: Any) -> Cell:
    return Cell.model_validate(
        {
            "cell_id": f"{group}/{name}", "group_id": group, "workload": "net", "arm": "strategy", "name": name,
            "decisions": {"source": "learned", "label": "learned"}, "batch_size": 8, "threads": 1, "status": status,
            **changes,
        }
    )  # fmt: skip


def manifest(**changes: Any) -> Manifest:
    return Manifest.model_validate(
        {
            "dynbench_version": "0.1.0", "run_id": "r", "command": ["dynbench", "run"], "spec": {}, "seed": 0,
            "started": "2026-01-01T00:00:00+00:00", "hardware": {}, "software": {}, "git": {}, "environment": {},
            **changes,
        }
    )  # fmt: skip


def sample(round_: int = 0, **changes: Any) -> RoundSample:
    return RoundSample.model_validate(
        {
            "process": 0, "round": round_, "position": 0, "arm": "masking", "batch_id": 0, "start_ns": 5,
            "duration_ns": 7, **changes,
        }
    )  # fmt: skip
