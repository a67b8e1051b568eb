"""Made-up run directories to be recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dynbench.store.run import RunWriter
from dynbench.store.schema import Manifest
from tests.store.records import cell, manifest

MACHINE = {
    "name": "Made-up CPU", "architecture": "x86_64", "cores_usable": 2, "memory_bytes": 8e9,
    "clock_mhz": {"current": 2600.0}, "caches_bytes": {"L1 Data": 49152, "L2 Unified": 2097152},
}  # fmt: skip
SPEC = {
    "workloads": {
        "net": {"model": "made.up:net", "baselines": [{"name": "plain", "model": "made.up:plain", "primary": True}]}
    }
}  # fmt: skip
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def made_up_manifest(number: int, **changes: Any) -> Manifest:
    """Of run `number`, a minute after the one before it."""
    info = {
        "name": "net", "title": "A net", "model": "made.up:net", "provenance": "own model", "inputs": "none",
        "stream_hash": "feedface", "stream_items": 64, "trace_hashes": {"learned": "cafe"},
    }  # fmt: skip
    table: dict[str, Any] = {
        "run_id": f"run-{number}", "started": f"2026-01-{1 + number // 24:02}T{number % 24:02}:00:00+00:00",
        "hardware": MACHINE, "software": {"torch": "2.13.0", "python": "3.11.7"}, "spec": SPEC, "command_s": 60.0,
        "git": {"commit": f"{number:04x}{COMMIT[4:]}", "dirty": False}, "workloads": {"net": info},
    }  # fmt: skip
    return manifest(**(table | changes))


def timed(name: str, speedup: float | None, item_ms: float = 2.0, **changes: Any) -> Any:
    """A timed cell; without a speed-up it is the primary baseline."""
    latency = {"stream_ms": 64 * item_ms, "item_ms": item_ms, "batch_p50_ms": 8 * item_ms}
    missing = {"unavailable": "too few"}
    latency |= dict.fromkeys(("batch_p90_ms", "batch_p99_ms", "device_stream_ms"), missing)  # type: ignore[arg-type]
    ratio = {"value": speedup, "low": 0.98 * (speedup or 1), "high": 1.02 * (speedup or 1), "baseline": "plain"}
    kind = {"speedups": [ratio | {"primary": True}]} if speedup else {"arm": "baseline", "primary": True}
    return cell(name, **({"latency": latency, "batch_paths": [3.0] * 8} | kind | changes))


def made_up_run(folder: Path, number: int = 0, speedup: float = 1.5, **changes: Any) -> Path:
    """Writes a run with a strategy, its baseline and a cell that was refused."""
    writer = RunWriter.create(folder / f"run-{number}", made_up_manifest(number, **changes))
    writer.append_cell(cell("cascading", "refused", reason="nothing halts"))
    writer.append_cell(timed("compaction", speedup, 2 / speedup * (1 + number / 1000)))
    writer.append_cell(timed("plain", None, 2 * (1 + number / 1000)))
    return writer.path
