"""Made-up cells."""

from __future__ import annotations

from typing import Any

from dynbench.store.schema import Accuracy, Arm, Cell, Decisions, Flops, Latency, Speedup, WorkloadInfo
from dynbench.unavailable import Unavailable

NO = Unavailable(unavailable="not measured here")
RESNET = "ResNet-38"


def decisions(label: str = "learned", keep_rate: float | None = 0.6) -> Decisions:
    source = "synthetic" if label.startswith("synthetic") else label
    return Decisions.model_validate({"source": source, "label": label, "keep_rate": keep_rate})


def flops(dense: float = 100.0, region: float = 50.0, total: float = 60.0, executed: float = 60.0) -> Flops:
    return Flops(dense=dense, required_region=region, required_total=total, executed=executed, accounted=NO)


def arm(name: str, kind: str = "strategy", **fields: Any) -> Arm:
    """The arm of a strategy, baseline or control of that name."""
    return Arm.model_validate({"kind": kind, "baseline" if kind == "baseline" else "strategy": name, **fields})


def cell(name: str, speedup: tuple[float, float, float] | None = None, kind: str = "strategy", **changes: Any) -> Cell:
    """A strategy's cell; `speedup` is (value, low, high) against ResNet-38, None: not measured.

    Args:
        name: of the strategy, or of the baseline.
        speedup: of which no more is said.
        kind: of the arm.
        changes: fields of the cell; `engine`, `form`, `live` and `control` of its arm.
    """
    what = arm(name, kind, **{key: changes.pop(key) for key in ("engine", "form", "live", "control") if key in changes})
    batch_size = changes.pop("batch_size", 32)
    label = changes.pop("decisions", decisions())
    group = f"skipnet38/{label.label}/cpu/b{batch_size}/float32/t1"
    speedups = []
    if speedup is not None:
        value, low, high = speedup
        speedups = [Speedup(value=value, low=low, high=high, baseline=RESNET, primary=True)]
    fields = {
        "cell_id": f"{group}/{what.key}",
        "group_id": group,
        "workload": "skipnet38",
        "decisions": label,
        "arm": what,
        "static_twin": what.strategy == "dense",
        "item_by_item": what.strategy == "per_sample",
        "batch_size": batch_size,
        "threads": 1,
        "status": "ok",
        "speedups": speedups,
    }
    return Cell.model_validate(fields | changes)


def baseline(batch_size: int = 32, label: Decisions | None = None, **changes: Any) -> Cell:
    return cell(RESNET, kind="baseline", primary=True, batch_size=batch_size, decisions=label or decisions(), **changes)


def latency(stream_ms: float = 10.0) -> Latency:
    return Latency(
        stream_ms=stream_ms,
        item_ms=stream_ms / 64,
        batch_p50_ms=stream_ms / 2,
        batch_p90_ms=NO,
        batch_p99_ms=NO,
        device_stream_ms=NO,
    )


def info(**changes: Any) -> WorkloadInfo:
    fields = {
        "name": "skipnet38",
        "title": "SkipNet-38",
        "model": "m:f",
        "provenance": "paper",
        "points": {"Skip": 17},
        "actions": ["skips"],
        "inputs": "1000 cluttered digits",
        "stream_hash": "abc",
        "stream_items": 64,
        "weights": "w.safetensors",
        "accuracies": {"dynamic": accuracy(0.921), RESNET: accuracy(0.925)},
    }
    return WorkloadInfo.model_validate(fields | changes)


def accuracy(value: float | Unavailable, items: int = 100_000, **changes: Any) -> Accuracy:
    return Accuracy.model_validate({"value": value, "metric": "top-1 accuracy", "items": items, **changes})
