"""Deployed against deployed: the dynamic network in its fastest way against the static one in its fastest way.

Every row is a run of `dynbench run --strategy auto`: the tournament chooses both ways, and the group measures them in
turns.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.paired import Row
from dynbench.analysis.gap import deployed_speedup
from dynbench.experiment import Options, run_experiment
from dynbench.store.run import Run
from dynbench.store.schema import Cell


@dataclass(frozen=True)
class Goal:
    """What a workload is to reach.

    Attributes:
        workload: its name.
        decisions: their source.
        least: speed-up over the fastest static way, by batch size.
        of_ideal: `least` is a share of the ideal.
    """

    workload: str
    decisions: str
    least: dict[int, float]
    of_ideal: bool = False


GOALS = (
    Goal("skipnet38_digits", "learned", {1: 1.45, 32: 1.5}),
    Goal("idk_digits", "learned", {1: 2.05, 32: 2.18}),
    Goal("moe_text", "learned", {1: 1.4, 32: 1.9}),
    Goal("msdnet_digits", "learned", {1: 1.5, 32: 1.7}),
    Goal("epnet_digits", "learned", {1: 1.1, 32: 1.3}),
    Goal("blockdrop110_published", "published", {1: 2.2, 32: 2.4}),
    Goal("skipnet110_synthetic", "synthetic", {32: 1.7, 128: 1.7}),
    Goal("skipnet_imagenet_published", "published", {1: 0.95}, of_ideal=True),
)


def against_deployed(seconds: float, names: list[str] | None = None) -> Iterator[Row]:
    """Rows for each workload and batch size.

    Args:
        seconds: inside timed samples, for each.
        names: only these workloads.
    """
    for goal in GOALS:
        if names and goal.workload not in names:
            continue
        begin = time.monotonic()
        cells = _measured(goal, seconds)
        took = f"{time.monotonic() - begin:.0f} s in all"
        for batch, least in goal.least.items():
            yield _row(goal, batch, least, cells, took)


def _measured(goal: Goal, seconds: float) -> list[Cell]:
    options = Options(
        deployed=True,
        automatic=True,
        batch_sizes=list(goal.least),
        decisions=[goal.decisions],
        time_limit_s=seconds,
        precision=0.005,
        controls="all",
    )
    with tempfile.TemporaryDirectory() as folder:
        run_experiment([goal.workload], options, Path(folder) / "run", command=[])
        return Run.open(Path(folder) / "run").cells


def _row(goal: Goal, batch: int, least: float, cells: list[Cell], took: str) -> Row:
    name = f"{goal.workload}, {goal.decisions}, batch {batch}: deployed " + (
        "efficiency" if goal.of_ideal else "speed-up"
    )
    mine = [c for c in cells if c.batch_size == batch and c.deployed]
    cell = next((c for c in mine if c.arm.kind == "strategy"), None)
    static = next((c for c in mine if c.primary), None)
    found = None if cell is None else deployed_speedup(cell)
    if cell is None or static is None or found is None:
        why = next((c.reason for c in cells if c.batch_size == batch and c.status == "failed"), "nothing was timed")
        return Row(name, f"not measured: {why}", ">=", least)
    if goal.of_ideal and cell.ideal:
        scaled = {end: getattr(found, end) / cell.ideal for end in ("value", "low", "high")}
        found = found.model_copy(update=scaled)
    ideal = "" if cell.ideal is None else f", ideal {cell.ideal:.2f}x"
    note = f"{cell.arm.title} against {static.arm.title}{ideal}{_lost(cell)}, {cell.rounds} rounds, {took}"
    return Row(name, found, ">=", least, note)


def _lost(cell: Cell) -> str:
    """The factors between ideal and speed-up, as controls say: where a goal is missed, what the limit is."""
    found = cell.deployed_waterfall
    if found is None:
        return ""
    factors = [f"{f.name} {f.value:.2f} ({f.low:.2f} to {f.high:.2f})" for f in found.factors]
    return f"; lost by {', '.join(factors)}"
