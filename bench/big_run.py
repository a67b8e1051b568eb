"""What a large run costs its readers: a made-up run directory of 10,000 cells, opened, reported and exported."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.paired import Row
from dynbench.files import write_text
from dynbench.store.jsonable import to_json
from dynbench.store.run import RunWriter, write_samples
from dynbench.store.schema import (
    Accuracy,
    Arm,
    Cell,
    Claim,
    Decisions,
    Energy,
    Flops,
    Interval,
    Latency,
    Manifest,
    Memory,
    Phases,
    Speedup,
    Warning_,
    WorkloadInfo,
)
from dynbench.unavailable import Unavailable

CELLS, WORKLOADS, ITEMS, ROUNDS = 10_000, 63, 64, 8
MOST_CPU_S, MOST_MB = 30, 1000
BATCH_SIZES = (1, 8, 32)
RATES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
STRATEGIES = ("dense", "masking", "compaction", "cascading", "batch_union", "specialised", "per_sample")
NOT_HERE = Unavailable(unavailable="this made-up machine has none")
ARMS = (
    *(Arm(kind="strategy", strategy=name) for name in STRATEGIES),
    Arm(kind="control", strategy="compaction", live=True),
    Arm(kind="baseline", baseline="large"),
    Arm(kind="baseline", baseline="small"),
    Arm(kind="baseline", baseline="small", form="folded"),
)


@dataclass(frozen=True)
class Cost:
    """What a process took: CPU seconds of all its threads, and its peak memory."""

    cpu_s: float
    peak_mb: float


def read_it() -> Iterator[Row]:
    """CPU time and peak memory of reading the run, each in a fresh process."""
    with tempfile.TemporaryDirectory(prefix="dynbench-bench-") as scratch:
        run, out = Path(scratch) / "run", Path(scratch) / "out"
        make_run(run)
        main = "from dynbench.cli import main; main({!r}, standalone_mode=False)"
        steps = {
            "opened": f"from dynbench.store.run import Run; Run.open({str(run)!r})",
            "reported": main.format(["report", str(run), "--out", str(out)]),
            "exported": main.format(["export", str(run), "--out", str(out)]),
        }
        costs = {step: _cost(code) for step, code in steps.items()}
    for step, cost in costs.items():
        yield Row(
            f"{CELLS:,} cells {step}: CPU seconds", _exactly(cost.cpu_s), note=f"peak memory {cost.peak_mb:.0f} MB"
        )
    both = costs["reported"], costs["exported"]
    total = sum(cost.cpu_s for cost in both)
    yield Row("reported and exported: CPU seconds", _exactly(total), "<=", MOST_CPU_S, "in fresh processes")
    peak = max(cost.peak_mb for cost in both)
    yield Row("reported and exported: peak memory, MB", _exactly(peak), "<=", MOST_MB)


def _exactly(value: float) -> Interval:
    return Interval(value=value, low=value, high=value)


def _cost(code: str) -> Cost:
    """Runs Python code in a fresh process; its peak is the kernel's VmHWM, as `ru_maxrss` starts from its parent's."""
    status = "import pathlib; print(pathlib.Path('/proc/self/status').read_text())"
    with subprocess.Popen([sys.executable, "-c", f"{code}\n{status}"], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        said = child.stdout.read()
        _, ended, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(ended)
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, child.args)
    peak_kib = next(line.split()[1] for line in said.splitlines() if line.startswith("VmHWM:"))
    return Cost(used.ru_utime + used.ru_stime, int(peak_kib) * 1024 / 1e6)


# --- the run ---------------------------------------------------------------------------------------------------------


def make_run(path: Path, count: int = CELLS) -> None:
    """Writes a made-up run directory: workloads, decisions, batch sizes and arms as in a run of all workloads."""
    names = [f"made_up_{i:02}" for i in range(WORKLOADS)]
    writer = RunWriter.create(path, _manifest(names))
    draw = np.random.default_rng(0)
    groups = (_group(name, decisions, size) for name in names for decisions, size in _settings())
    cells = list(itertools.islice(itertools.chain.from_iterable(groups), count))
    write_text(writer.path / "cells.jsonl", "".join(f"{to_json(cell)}\n" for cell in cells))
    for group_id, members in itertools.groupby(cells, key=lambda c: c.group_id):
        write_samples(path, group_id, _samples(list(members), draw))


def _settings() -> Iterator[tuple[Decisions, int]]:
    """Decisions and batch size of every group of a workload."""
    for source in ("learned", "published"):
        decisions = Decisions.model_validate({"source": source, "label": source, "keep_rate": 0.6})
        yield from ((decisions, size) for size in BATCH_SIZES)
    for rate in RATES:
        label, asked = f"synthetic keep={rate:.2f}", {"keep_rate": rate}
        yield Decisions(source="synthetic", label=label, keep_rate=rate, requested=asked, sweep=True), BATCH_SIZES[-1]


def _group(workload: str, decisions: Decisions, size: int) -> Iterator[Cell]:
    group_id = f"{workload}/{decisions.label}/cpu/b{size}/float32/t1"
    for i, arm in enumerate(ARMS):
        cell = Cell(
            cell_id=f"{group_id}/{arm.key}",
            group_id=group_id,
            workload=workload,
            decisions=decisions,
            arm=arm,
            primary=arm.baseline == "large",
            static_twin=arm.strategy == "dense",
            item_by_item=arm.strategy == "per_sample",
            batch_size=size,
            threads=1,
            status="refused",
            reason="this model has no Loop and no Exits",
        )
        refused = arm.strategy in ("cascading", "batch_union") or (arm.strategy == "per_sample" and size > 1)
        yield cell if refused else cell.model_copy(update=_results(cell, stream_ms=60.0 + 5 * i + size / 8))


def _results(cell: Cell, stream_ms: float) -> dict[str, object]:
    """What was measured of a cell, as far as there is any."""
    ratio, dense, bodies = 80.0 / stream_ms, 80e6, 20e6 + 60e6 * (cell.decisions.keep_rate or 1.0)
    against = {"low": ratio * 0.98, "high": ratio * 1.02, "value": ratio}
    noisy = Warning_(id="DB-PREC-01", text="confidence interval of +-3 %; asked for was +-2 %", remedy="more time")
    dynamic = cell.arm.kind != "baseline"
    return {
        "status": "ok",
        "reason": None,
        "stopped_by": "precision",
        "rounds": ROUNDS,
        "stream_items": ITEMS,
        "latency": Latency(
            stream_ms=stream_ms,
            item_ms=stream_ms / ITEMS,
            batch_p50_ms=stream_ms / ITEMS * cell.batch_size,
            batch_p90_ms=stream_ms / ITEMS * cell.batch_size * 1.2,
            batch_p99_ms=Unavailable(unavailable=f"p99 needs 662 samples, there are {ROUNDS * ITEMS}"),
            device_stream_ms=NOT_HERE,
        ),
        "speedups": [
            Speedup(**against, baseline="large", primary=True, resolution=0.015),
            Speedup(**against, baseline="small", primary=False),
        ],
        "ideal": dense / bodies if dynamic else None,
        "efficiency": ratio * bodies / dense if dynamic else None,
        "flops": Flops(
            dense=dense,
            required_region=bodies,
            required_total=bodies + 1e6,
            executed=bodies + 1e6,
            accounted=bodies,
            accounted_rule="bodies",
        ),
        "bytes_touched": 3e6,
        "operator_calls": 7000.0,
        "host_syncs": NOT_HERE,
        "kernel_launches": NOT_HERE,
        "params": 600_000,
        "memory": Memory(peak_bytes=3e7),
        "energy": Energy(item_j=NOT_HERE, idle_share=NOT_HERE, window_s=NOT_HERE),
        "phases": Phases(decide_ms=4, gather_ms=3, body_ms=40, scatter_ms=3, other_ms=9) if dynamic else None,
        "path_label": "bodies run of 17",
        "batch_paths": [float(7 + i % 9) for i in range(ITEMS // cell.batch_size)] if dynamic else [],
        "max_error": 2e-7,
        "tolerance": 1e-5,
        "warnings": [noisy] if cell.batch_size == 1 else [],
    }


def _samples(cells: list[Cell], draw: np.random.Generator) -> dict[str, np.ndarray | list[object]]:
    """The columns of the samples of a group: every round, arm and batch."""
    timed = [c for c in cells if c.latency is not None]
    batches = ITEMS // cells[0].batch_size
    shape = (ROUNDS, len(timed), batches)
    rounds, arms, batch_ids = (axis.ravel() for axis in np.indices(shape))
    middle_ms = np.array([c.latency.stream_ms / batches for c in timed if c.latency is not None])[arms]
    duration_ns = (middle_ms * 1e6 * draw.lognormal(0, 0.03, arms.size)).astype(np.int64)
    return {
        "process": np.ones(arms.size, np.int64),
        "round": rounds,
        "position": arms,
        "arm": [timed[i].arm.key for i in arms],
        "batch_id": batch_ids,
        "start_ns": np.cumsum(duration_ns) - duration_ns,
        "duration_ns": duration_ns,
        "device_ns": [None] * arms.size,
    }


def _manifest(names: list[str]) -> Manifest:
    return Manifest(
        dynbench_version="0",
        run_id="made-up",
        command=["dynbench", "run", "all"],
        spec={"workloads": {name: {"run": {"batch_sizes": list(BATCH_SIZES)}} for name in names}},
        started="2026-01-01T00:00:00+00:00",
        status="complete",
        seed=0,
        hardware={"name": "Made-up CPU"},
        software={"python": "3", "torch": "2"},
        git={},
        environment={"threads": 1},
        workloads={name: _info(name) for name in names},
    )


def _info(name: str) -> WorkloadInfo:
    accuracy = Accuracy(value=0.9, metric="top-1 accuracy", items=1000)
    return WorkloadInfo(
        name=name,
        title=name.replace("_", " "),
        model="made.up:network",
        provenance="paper",
        points={"Skip": 17},
        inputs="made-up images",
        stream_hash="feedfacefeedface",
        stream_items=ITEMS,
        weights="made_up.safetensors",
        claims=[Claim(metric="computation", value=60, unit="% of blocks", where="table 1", how="counted")],
        accuracies={"dynamic": accuracy, "large": accuracy, "small": accuracy},
        trace_hashes={"learned": "cafecafecafecafe"},
    )
