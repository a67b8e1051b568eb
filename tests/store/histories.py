"""Made-up run directories to be recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dynbench.store.run import RunWriter
from dynbench.store.schema import Cell, Manifest
from tests.store.records import cell, manifest

MACHINE = {
    "name": "Made-up CPU",
    "architecture": "x86_64",
    "cores_usable": 2,
    "memory_bytes": 8e9,
    "clock_mhz": {"current": 2600.0},
    "caches_bytes": {"L1 Data": 49152, "L2 Unified": 2097152},
}
BASELINE = {"name": "plain", "model": "made.up:plain", "primary": True}
SPEC = {"workloads": {"net": {"model": "made.up:net", "baselines": [BASELINE]}}}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def made_up_manifest(number: int, **changes: Any) -> Manifest:
    """Of run `number`, an hour after the one before it."""
    info = {
        "name": "net",
        "title": "A net",
        "model": "made.up:net",
        "provenance": "own model",
        "inputs": "none",
        "stream_hash": "feedface",
        "stream_items": 64,
        "trace_hashes": {"learned": "cafe"},
    }
    table: dict[str, Any] = {
        "run_id": f"run-{number}",
        "started": f"2026-01-{1 + number // 24:02}T{number % 24:02}:00:00+00:00",
        "hardware": MACHINE,
        "software": {"torch": "2.13.0", "python": "3.11.7"},
        "spec": SPEC,
        "command_s": 60.0,
        "git": {"commit": f"{number:04x}{COMMIT[4:]}", "dirty": False},
        "workloads": {"net": info},
    }
    return manifest(**(table | changes))


def timed(name: str, speedup: float | None, item_ms: float = 2.0, **changes: Any) -> Cell:
    """A timed cell of a strategy; without a speed-up of the primary baseline."""
    missing = {"unavailable": "too few"}
    latency = {
        "stream_ms": 64 * item_ms,
        "item_ms": item_ms,
        "batch_p50_ms": 8 * item_ms,
        "batch_p90_ms": missing,
        "batch_p99_ms": missing,
        "device_stream_ms": missing,
    }
    kind: dict[str, Any] = {"arm": {"kind": "baseline", "baseline": name}, "primary": True}
    if speedup is not None:
        ends = {"value": speedup, "low": 0.98 * speedup, "high": 1.02 * speedup}
        kind = {"speedups": [ends | {"baseline": "plain", "primary": True}]}
    return cell(name, **({"latency": latency, "batch_paths": [3.0] * 8} | kind | changes))


def made_up_run(folder: Path, number: int = 0, speedup: float = 1.5, **changes: Any) -> Path:
    """Writes a run with a strategy, its baseline and a cell that was refused."""
    writer = RunWriter.create(folder / f"run-{number}", made_up_manifest(number, **changes))
    writer.append_cell(cell("cascading", "refused", reason="nothing halts"))
    writer.append_cell(timed("compaction", speedup, 2 / speedup * (1 + number / 1000)))
    writer.append_cell(timed("plain", None, 2 * (1 + number / 1000)))
    return writer.path
