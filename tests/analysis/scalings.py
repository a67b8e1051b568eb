"""Made-up scalings: times follow from a law, so that tests know what must come out."""

from __future__ import annotations

from typing import Any

from dynbench.analysis.cost_model import NONE, Levers, terms
from dynbench.store.scaling import Constants, Network, Part, Scaling, Usage
from dynbench.store.schema import Arm, Cell
from tests.analysis.cells import RESNET, cell, decisions, latency

CONSTANTS = Constants(operator_us=1.0, region_us=1.0, point_us=20.0, wait_us=2.0, gather_us=3.0, moved_bytes_per_s=1e10)
BLOCKS, ITEMS = 4, 64
LAW = {"body": 1.1, "decide": 0.9, "moving": 1.5, "operators": 1.0, "products": 1.0, "waiting": 2.0, "points": 0.6}
SIZES = [1, 2, 4, 8, 16, 32]


def part(name: str, fixed_us: float, item_us: float, **changes: Any) -> Part:
    """A region that takes fixed_us + n * item_us."""
    us = [fixed_us + n * item_us for n in SIZES]
    return Part.model_validate({"name": name, "sizes": SIZES, "us": us, "low_us": us, "high_us": us} | changes)


def usage(strategy: str, batch_size: int, keep: float, label: str, **changes: Any) -> Usage:
    """A network of 4 blocks, each with a gate; `keep` of the items of a batch run each block."""
    batches, active = ITEMS // batch_size, max(round(keep * batch_size), 1)
    n = batch_size if strategy == "masking" else active
    moves = strategy != "masking" and active < batch_size
    fields: dict[str, Any] = {
        "arm": Arm(kind="strategy", strategy=strategy),
        "label": label,
        "keep_rate": keep,
        "made_up": label.startswith("synthetic"),
        "batch_size": batch_size,
        "items": ITEMS,
        "calls": {
            "gate": {batch_size: BLOCKS * batches},
            "body": {n: BLOCKS * batches},
            "stem": {batch_size: batches},
        },
        "movings": 2 * BLOCKS * batches if moves else 0,
        "moved_bytes": 4 * 65536 * active * BLOCKS * batches if moves else 0,
        "operators": BLOCKS * batches * (3 if strategy == "masking" else 1),
        "operator_bytes": 0,
        "waits": 0 if strategy == "masking" else BLOCKS * batches,
        "points": BLOCKS * batches,
    }
    return Usage.model_validate(fields | changes)


def networks() -> list[Network]:
    own = [
        part("gate", 10, 1, role="decide", operators=4),
        part("body", 60, 40, operators=5),
        part("stem", 20, 10, operators=1),
    ]
    return [Network(parts=own), Network(baseline=RESNET, parts=[part("", 240, 170)])]


def graph() -> Network:
    """The same network as one graph: its regions are faster, its stem is folded away, and rows are moved in between."""
    own = [part("gate", 1, 0.5, role="decide"), part("body", 10, 30)]
    own += [part("(between)", 8, 0.1, role="points"), part("(moving)", 4, 2, role="moving")]
    return Network(engine="onnxruntime", control="graph", parts=own)


def made_up() -> tuple[list[Cell], Scaling]:
    """Cells at batch 1 to 32 with learned decisions, and a sweep at 32, whose times follow from `LAW` exactly."""
    usages, cells = [], []
    asked = [(size, 0.6, "learned") for size in (1, 4, 8, 16, 32)]
    asked += [(32, rate, f"synthetic keep={rate:.2f}") for rate in (0.25, 0.5, 0.75, 1.0)]
    measured = set(asked)
    asked += [(size, rate, f"synthetic keep={rate:.2f}") for size in (4, 8) for rate in (0.25, 0.5, 0.75, 1.0)]
    for size, keep, label in asked:
        for strategy in ("masking", "compaction"):
            seen = usage(strategy, size, keep, label)
            usages.append(seen)
            if (size, keep, label) in measured:
                cells.append(timed(seen))
    return cells, Scaling(
        workload="skipnet38",
        machine="Made-up CPU",
        device="cpu",
        threads=1,
        dtype="float32",
        constants=CONSTANTS,
        networks=networks(),
        usages=usages,
    )


def by_law(seen: Usage, levers: Levers = NONE) -> float:
    """Microseconds of one pass over the stream."""
    found = terms(seen, networks()[0], CONSTANTS, levers)
    return sum(LAW[name] * us for name, us in found.items())


def timed(seen: Usage, kind: str = "strategy", **changes: Any) -> Cell:
    """A cell whose time follows from the law."""
    made = decisions(seen.label, seen.keep_rate)
    made = made.model_copy(update={"sweep": seen.made_up})
    fields = {"batch_size": seen.batch_size, "decisions": made, "latency": latency(by_law(seen) / 1e3)} | changes
    return cell(str(seen.arm.strategy), kind=kind, **fields)
