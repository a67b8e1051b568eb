"""A made-up run: no number in it was measured. Times follow from a formula, so that tests know what must come out."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from dynbench.store.run import RunWriter
from dynbench.store.schema import (
    Accuracy,
    Candidate,
    Cell,
    Claim,
    Decisions,
    Energy,
    Flops,
    Latency,
    Manifest,
    Memory,
    NotMeasured,
    Phases,
    RoundSample,
    Speedup,
    Warning_,
    WorkloadInfo,
)
from dynbench.unavailable import Unavailable
from tests.analysis.cells import arm
from tests.store.records import store_samples

ITEMS, ROUNDS = 64, 20
DENSE = 111.2e6
SKIPPED, CASCADED, EXPERTS = "made_up_skipnet", "made_up_cascade", "made_up_experts"
TITLES = {SKIPPED: "Made-up SkipNet-38", CASCADED: "Made-up cascade", EXPERTS: "Made-up experts"}
SPEED = {  # strategy: speed-up at batch 1, 8, 32
    "dense": {1: 0.99, 8: 1.0, 32: 1.0},
    "masking": {1: 0.71, 8: 0.86, 32: 0.91},
    "compaction": {1: 1.28, 8: 1.09, 32: 1.21},
    "per_sample": {1: 1.31},
}
NO_RAPL = Unavailable(unavailable="this made-up machine has no energy counter")
CPU = Unavailable(unavailable="a CPU has no device events")


def manifest(*workloads: WorkloadInfo, **changes: Any) -> Manifest:
    """Of a made-up machine."""
    fields: dict[str, Any] = {
        "dynbench_version": "0.1.0",
        "run_id": "made-up",
        "command": ["dynbench", "run", "a b.toml", "--device", "cpu"],
        "spec": {"options": {"batch_sizes": None}, "workloads": {SKIPPED: {"run": {"batch_sizes": [1, 8, 32]}}}},
        "started": "2026-01-01T00:00:00+00:00",
        "finished": "2026-01-01T00:03:20+00:00",
        "status": "complete",
        "seed": 7,
        "hardware": {"name": "Made-up CPU", "cores_usable": 2, "memory_bytes": 8e9, "caches_bytes": {"L2": 1048576}},
        "software": {"python": "3.11.7", "torch": "2.13.0", "pyarrow": "26.0.1"},
        "git": {"commit": "0123456789abcdef", "dirty": True},
        "environment": {"threads": 1, "load_average_1min": 0.25},
        "workloads": {w.name: w for w in workloads},
        "not_measured": [NotMeasured(what="workload gone", why="its weights file is not there")],
        "warnings": [Warning_(id="DB-LOAD-01", text="The machine was busy.", remedy="Close other programs.")],
        "command_s": 200.0,
        "timed_s": 151.0,
    }
    return Manifest.model_validate(fields | changes)


def info(name: str = SKIPPED, **changes: Any) -> WorkloadInfo:
    """A made-up workload."""
    fields: dict[str, Any] = {
        "name": name,
        "title": TITLES.get(name, name),
        "paper": "Nobody et al., A Made-up Paper, 2026",
        "model": "made.up:network",
        "model_args": {"depth": 38},
        "provenance": "reconstruction from memory",
        "points": {"Skip": 17},
        "actions": ["skips"],
        "inputs": "2000 made-up scenes of 32 x 32",
        "stream_hash": "feedfacefeedface",
        "stream_items": ITEMS,
        "weights": "made_up.safetensors",
        "weights_sha256": "0011223344556677",
        "card": {"accuracy": 0.9, "training": {"epochs": 12}},
        "claims": [
            Claim(metric="computation", value=70.272, unit="% of blocks", where="table 1", how="counted"),
            Claim(
                metric="speed-up",
                value=1.5,
                unit="x",
                where="figure 2",
                how="timed",
                status="recalled",
                batch_size=32,
                hardware="made-up GPU",
            ),
        ],
        "accuracies": {
            "dynamic": Accuracy(value=0.901, metric="top-1 accuracy", items=1000),
            "ResNet-38": Accuracy(value=0.905, metric="top-1 accuracy", items=1000),
            "ResNet-20": Accuracy(value=0.887, metric="top-1 accuracy", items=1000),
        },
        "trace_hashes": {"learned": "cafecafecafecafe"},
    }
    return WorkloadInfo.model_validate(fields | changes)


def cell(
    name: str, batch: int, speed: float | None, *, kind: str = "strategy", workload: str = SKIPPED, **changes: Any
) -> Cell:
    """A measured cell.

    Args:
        name: of the strategy or the baseline.
        batch: in items.
        speed: against ResNet-38; None for ResNet-38 itself.
        kind: of the arm.
        workload: its name.
        changes: fields of the cell; `engine`, `form`, `live` and `control` of its arm.
    """
    what = arm(name, kind, **{key: changes.pop(key) for key in ("engine", "form", "live", "control") if key in changes})
    decisions = changes.pop("decisions", Decisions(source="learned", label="learned", keep_rate=0.69))
    keep = decisions.keep_rate or 0.5
    group = f"{workload}/{decisions.label}/cpu/b{batch}/float32/t1"
    stream_ms = 320.0 / (speed or 1.0)
    bodies = DENSE * (0.05 + 0.95 * keep)
    executed = {"masking": DENSE + 1e5, "dense": DENSE}.get(name, bodies + 1e5)
    if changes.get("primary"):
        bodies = executed = DENSE
    fields: dict[str, Any] = {
        "cell_id": f"{group}/{what.key}",
        "group_id": group,
        "workload": workload,
        "decisions": decisions,
        "arm": what,
        "static_twin": what.strategy == "dense",
        "item_by_item": what.strategy == "per_sample",
        "batch_size": batch,
        "threads": 1,
        "status": "ok",
        "stopped_by": "precision",
        "rounds": ROUNDS,
        "stream_items": ITEMS,
        "latency": Latency(
            stream_ms=stream_ms,
            item_ms=stream_ms / ITEMS,
            batch_p50_ms=stream_ms / ITEMS * batch,
            batch_p90_ms=stream_ms / ITEMS * batch * 1.3,
            batch_p99_ms=Unavailable(unavailable="p99 needs 662 samples, there are 160") if batch > 1 else 9.5,
            device_stream_ms=CPU,
        ),
        "speedups": [] if speed is None else [speedup(speed)],
        "flops": Flops(
            dense=DENSE,
            required_region=bodies,
            required_total=bodies + 1e5,
            executed=executed,
            accounted=0.7 * DENSE,
            accounted_rule="(blocks run + 1) / blocks",
        ),
        "bytes_touched": 3.4e6,
        "operator_calls": 7611.0,
        "host_syncs": CPU,
        "kernel_launches": CPU,
        "params": 620_000,
        "memory": Memory(peak_bytes=31.5e6 if batch == 32 else Unavailable(unavailable="only at the largest batch")),
        "energy": Energy(item_j=NO_RAPL, idle_share=NO_RAPL, window_s=NO_RAPL),
    }
    if kind != "baseline":
        ideal = DENSE / bodies
        fields |= {"ideal": ideal, "efficiency": None if speed is None else speed / ideal}
        fields |= {"path_label": "bodies run of 17", "batch_paths": PATHS if batch == 1 else []}
        fields |= {"phases": Phases(decide_ms=20, gather_ms=9, body_ms=170, scatter_ms=14, sync_ms=6, other_ms=60)}
        fields |= {"max_error": 2.4e-7, "tolerance": 1.1e-5}
    return Cell.model_validate(fields | changes)


PATHS = [float(random.Random(i).choice((9, 10, 11, 12, 12, 12, 13, 14))) for i in range(ITEMS)]


def speedup(value: float, baseline: str = "ResNet-38", primary: bool = True) -> Speedup:
    """With an interval of 3 % to either side."""
    return Speedup(value=value, low=value * 0.97, high=value * 1.03, baseline=baseline, primary=primary)


def refused(name: str, batch: int, reason: str, *, status: str = "refused", **changes: Any) -> Cell:
    """A cell without a measurement."""
    bare = cell(name, batch, 1.0, **changes)
    kept = {k: getattr(bare, k) for k in ("cell_id", "group_id", "workload", "decisions", "arm", "batch_size")}
    return Cell.model_validate({**kept, "threads": 1, "status": status, "reason": reason})


def group(batch: int, *, workload: str = SKIPPED, primary: bool = True, **changes: Any) -> list[Cell]:
    """All cells of a batch size."""
    found = [cell(n, batch, s[batch], workload=workload, **changes) for n, s in SPEED.items() if batch in s]
    if primary:
        found.append(cell("ResNet-38", batch, None, workload=workload, kind="baseline", primary=True, **changes))
    less = 0.72 * DENSE
    small = Flops(dense=DENSE, required_region=less, required_total=less, executed=less, accounted=less)
    found.append(cell("ResNet-20", batch, 1.4, workload=workload, kind="baseline", **changes | {"flops": small}))
    found.append(refused("cascading", batch, "this model has none that halts", workload=workload, **changes))
    if batch > 1:
        found.append(refused("per_sample", batch, "measured at batch 1", workload=workload, **changes))
    return found


def deployed(batch: int, speed: float, *, strategy: str = "compaction", workload: str = SKIPPED) -> list[Cell]:
    """Each network as one graph, twice as fast as it is written: the dynamic one, ResNet-38 and ResNet-20."""
    graph = {"engine": "onnxruntime", "control": "graph", "workload": workload, "deployed": True}
    dynamic = cell(strategy, batch, None, live=True, **graph)
    primary = cell("ResNet-38", batch, None, kind="baseline", primary=True, **graph)
    small = cell("ResNet-20", batch, None, kind="baseline", **graph)
    ratios = [
        (dynamic, speed, [speedup(speed), speedup(speed / 1.4, "ResNet-20", primary=False)]),
        (primary, 1.0, [speedup(1 / 1.4, "ResNet-20", primary=False)]),
        (small, 1.4, [speedup(1.4)]),
    ]
    found = []
    for c, ratio, speedups in ratios:
        assert c.latency is not None
        stream_ms = 160.0 / ratio
        latency = c.latency.model_copy(update={"stream_ms": stream_ms, "item_ms": stream_ms / ITEMS})
        tried = [
            Candidate(arm=c.arm, ratio=1.0),
            Candidate(arm=c.arm.model_copy(update={"engine": "eager", "control": "host"}), ratio=2.0),
            Candidate(arm=c.arm.model_copy(update={"control": "host"}), reason="a layer has no such operator"),
        ]
        found.append(c.model_copy(update={"latency": latency, "deployed_speedups": speedups, "candidates": tried}))
    return found


def sweep(workload: str = SKIPPED) -> list[Cell]:
    """Compaction breaks even at a keep-rate of 0.8, masking never."""
    found = []
    for rate in (0.25, 0.5, 0.75, 1.0):
        decisions = Decisions(
            source="synthetic",
            label=f"synthetic keep={rate:.2f}",
            keep_rate=rate,
            sweep=True,
            requested={"keep_rate": rate},
        )
        found += [
            cell("dense", 32, 1.0, workload=workload, decisions=decisions),
            cell("masking", 32, 0.9, workload=workload, decisions=decisions),
            cell("compaction", 32, 1 / (0.2 + rate), workload=workload, decisions=decisions),
            cell("ResNet-38", 32, None, workload=workload, decisions=decisions, kind="baseline", primary=True),
        ]
    return found


def samples(cells: list[Cell], rounds: int = ROUNDS) -> dict[str, list[RoundSample]]:
    """Raw times of the groups at batch 1: the deeper, the longer."""
    random_ = random.Random(0)
    found: dict[str, list[RoundSample]] = {}
    for c in cells:
        if c.status != "ok" or c.batch_size != 1 or c.latency is None:
            continue
        dynamic = c.arm.strategy in ("compaction", "per_sample", "cascading")
        for r in range(rounds):
            for b in range(ITEMS):
                depth = c.batch_paths[b] / 12 if dynamic and c.batch_paths else 1.0
                ns = int(c.latency.item_ms * 1e6 * depth * random_.lognormvariate(0, 0.06))
                found.setdefault(c.group_id, []).append(
                    RoundSample(process=1, round=r, position=0, arm=c.arm.key, batch_id=b, start_ns=0, duration_ns=ns)
                )
    return found


def write_run(path: Path, about: Manifest, cells: list[Cell]) -> Path:
    """Writes a run directory as measuring would."""
    writer = RunWriter.create(path, about)
    for c in cells:
        writer.append_cell(c)
    for group_id, rows in samples(cells).items():
        store_samples(path, group_id, rows)
    return path


def whole_run(path: Path) -> Path:
    """Three workloads: one with everything, a cascade with deployed cells, and experts at one batch size only."""
    noisy = Warning_(id="DB-PREC-01", text="confidence interval of +-4 %; asked for was +-2 %", remedy="more time")
    skipped = [c for b in (1, 8, 32) for c in group(b)] + sweep()
    skipped += [cell("compaction", 32, 1.2, kind="control", live=True, warnings=[noisy])]
    cascaded = [
        cell("cascading", c.batch_size, SPEED["compaction"][c.batch_size], workload=CASCADED)
        if c.arm.strategy == "compaction"
        else c
        for b in (1, 8)
        for c in group(b, workload=CASCADED)
        if c.arm.strategy != "cascading"
    ]
    cascaded += [c for b in (1, 8) for c in deployed(b, 1.1, strategy="cascading", workload=CASCADED)]
    same = [128.0] * ITEMS
    experts = group(1, workload=EXPERTS, batch_paths=same, path_label="experts visited of 512")
    about = manifest(
        info(),
        info(CASCADED, points={"Exits": 1}, actions=["leaves early"], provenance="paper"),
        info(
            EXPERTS,
            points={"Route": 4},
            actions=["uses 2 of 8 experts per item"],
            claims=[],
            model_args={"experts": 8, "k": 2},
            accuracies={},
            card={},
        ),
    )
    return write_run(path, about, [*skipped, *cascaded, *experts])
