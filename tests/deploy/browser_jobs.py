"""A small job, and a result of it as a page sends it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dynbench.deploy.bundle import sha256

JOB_ID = "0123456789abcdef" * 2
CLIENT = "c" * 32


def write(folder: Path, job_id: str = JOB_ID) -> Path:
    """A job of two arms; what its files hold is of no concern to a server."""
    files = {"inputs.npy": b"inputs", "dynamic.onnx": b"graph", "expected/000.npy": b"right"}
    (folder / "expected").mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    arm = {
        "network": "dynamic",
        "graphs": {"any": "dynamic.onnx"},
        "answers": [{"output": "answer", "file": "expected/000.npy"}],
        "decisions": [],
    }
    job = {
        "job_id": job_id,
        "workload": "made_up",
        "title": "Made up",
        "input": {"name": "x", "file": "inputs.npy", "dtype": "float32", "item_shape": [3], "items": 4},
        "tolerance": 1e-4,
        "arms": [{"name": "dynamic", **arm}, {"name": "plain", **arm}],
        "batch_sizes": [2],
        "sha256": {name: sha256(content) for name, content in files.items()},
    }
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    return folder


def result(**changes: Any) -> dict[str, Any]:
    """What a page sends."""
    arm = {"batch_size": 2, "load_ms": 1.5, "first_run_ms": 2.5, "download_ms": 0.5}
    return {
        "schema_version": 1,
        "job_id": JOB_ID,
        "status": "ok",
        "reason": None,
        "agent": {
            "name": "browser",
            "version": "1",
            "runtime": "onnxruntime-web",
            "runtime_version": "1.30.0",
            "provider": "WebAssembly",
            "notes": ["clock: steps of 5.0 us"],
        },
        "device": {"name": "Phone", "architecture": "aarch64", "cores": 8, "os": "Android 16", "browser": "Chrome 156"},
        "emulated": False,
        "threads": 1,
        "cpus": None,
        "started_unix_s": 1.0,
        "ended_unix_s": 2.0,
        "clock_jumps": 0,
        "stopped_by": "precision",
        "checks": [{"arm": "dynamic", "batch_size": 2, "error": 1e-7, "decisions": 0, "decisions_differ": 0}],
        "arms": [{"name": n, **arm, "rounds": [[5, 6], [7, 8]], "positions": [0, 1]} for n in ("dynamic", "plain")],
        "sustained": None,
        "memory_bytes": 1 << 20,
    } | changes


def said(**changes: Any) -> bytes:
    """What a page says of itself."""
    usual = {"client": CLIENT, "name": "Phone", "browser": "Chrome 156", "state": "measuring"}
    return json.dumps(usual | {"text": "round 1", "share": 0.5, "left_s": 3.0} | changes).encode()
