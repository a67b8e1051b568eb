"""Measuring one group: warm up, rounds in random order until precise enough, then the untimed passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dynbench import devices
from dynbench.analysis.gap import ideal_speedup
from dynbench.analysis.resolution import doubts, resolution
from dynbench.analysis.statistics import median_interval, percentile
from dynbench.devices.base import Device
from dynbench.devices.witnesses import Watch
from dynbench.errors import DynbenchError
from dynbench.experiment.arms import RunningArm, running_arm
from dynbench.experiment.build import Prepared, Source
from dynbench.experiment.diagnose import Facts, Work, diagnose
from dynbench.experiment.explain import explained, explained_energy
from dynbench.experiment.plan import controls_asked, controls_of, planned_cell
from dynbench.experiment.rounds import MIN_ROUNDS, Rounds, Samples, bases_of, guarded, paired, primary_of, warm_up
from dynbench.experiment.walks import Walks
from dynbench.experiment.ways import Tournament
from dynbench.meters.dispatch import operator_call_s
from dynbench.store.quantity import evaluate
from dynbench.store.run import write_samples
from dynbench.store.schema import Cell, Compiled, Flops, Interval, Latency, Speedup, Warning_, Witnesses
from dynbench.store.walks import write_walked
from dynbench.unavailable import Measured, Unavailable

MOSTLY = 0.5  # of the time: such a share is worth a warning


@dataclass(frozen=True)
class Noise:
    """What a group's measurement can tell apart.

    Attributes:
        again: the primary baseline against itself (A/A); None: it was not measured twice.
        resolution: share up to which a ratio is no difference; None: unknown.
        witnesses: what else happened meanwhile.
        warnings: doubts that follow.
    """

    again: Interval | None
    resolution: float | None
    witnesses: Witnesses
    warnings: list[Warning_]


def make_arms(p: Prepared, source: Source, cells: Iterable[Cell], device: Device) -> list[RunningArm]:
    """The arms of planned cells, and the primary baseline a second time, as written and deployed; not in the sweep."""
    cells = list(cells)
    primary = next((c for c in cells if c.primary), None)
    deployed = next((c for c in cells if c.primary and c.deployed), None)
    if not source.sweep:
        for cell in {c.cell_id: c for c in (primary, deployed) if c is not None}.values():
            cells.append(cell.model_copy(update={"arm": cell.arm.model_copy(update={"again": True})}))
    return [running_arm(p, source, cell, device) for cell in cells]


def _with_controls(
    p: Prepared, source: Source, cells: list[Cell], device: Device
) -> tuple[list[RunningArm], list[Cell]]:
    """The arms of planned cells; and as failed the cells of controls that cannot be made, which cost no other arm."""
    arms, failed = make_arms(p, source, [c for c in cells if not c.arm.only_explains], device), []
    for cell in (c for c in cells if c.arm.only_explains):
        try:
            arms.append(running_arm(p, source, cell, device))
        except DynbenchError as e:
            failed.append(cell.model_copy(update={"status": "failed", "reason": str(e)}))
    return arms, failed


def _controls_of_fastest(p: Prepared, source: Source, batch_size: int, cells: list[Cell]) -> list[Cell]:
    """The controls of the dynamic network in its fastest way, as far as they are not among the cells already.

    Where the primary baseline is fastest in another engine, it is one of them in this engine as well.
    """
    found = [c for c in cells if c.deployed and c.status == "planned"]
    fastest = next((c.arm for c in found if c.arm.kind == "strategy"), None)
    if fastest is None or not controls_asked(p, source, batch_size):
        return []
    controls = controls_of(p, fastest)
    primary = next((c for c in found if c.primary), None)
    if primary is not None and primary.arm.engine != fastest.engine:
        timed = (c.arm for c in primary.candidates if c.arm.engine == fastest.engine and c.ratio is not None)
        controls += [arm.model_copy(update={"kind": "control"}) for arm in islice(timed, 1)]
    planned = {c.arm for c in cells}
    made = (planned_cell(p, source, batch_size, arm) for arm in controls if arm not in planned)
    return [cell for cell in made if cell.status == "planned"]


@torch.inference_mode()
def measure_group(
    p: Prepared,
    source: Source,
    batch_size: int,
    cells: list[Cell],
    *,
    run: Path,
    process: int,
    without: set[str],
    tell: Callable[..., None],
    stop: Callable[[], bool],
) -> dict[str, Any]:
    """Measures the cells of a group against each other, and writes the group's samples into the run directory.

    Args:
        p: the workload.
        source: whose decisions are replayed.
        batch_size: items per batch.
        cells: as planned; refused ones are passed over.
        run: the run directory.
        process: number of this measuring process.
        without: keys of the arms that are left out because they killed an earlier process.
        tell: reports each arm before it runs and each round after it.
        stop: whether the user wants it to end after this round.

    Returns:
        `cells` as JSON-able tables, `samples`: the name of the file, and `timed_s`.
    """
    device = devices.device(p.options.device)
    planned = [c for c in cells if c.status == "planned"]
    written = {c.arm for c in planned}
    if p.options.deployed and (p.options.deployed_sweep or not source.sweep):
        planned = Tournament(p, source, batch_size, device, without=without, tell=tell, stop=stop).fastest(planned)
        planned += _controls_of_fastest(p, source, batch_size, planned)
    untimed = [c for c in planned if c.status == "failed"]  # networks that the tournament could not time in any way
    planned = [c for c in planned if c.status == "planned"]
    timed = {c.arm for cell in planned for c in cell.candidates if c.ratio is not None}  # in the tournament
    arms, unmade = _with_controls(p, source, planned, device)
    untimed += unmade
    arms = [arm for arm in arms if arm.arm.key not in without]
    for arm in arms:
        arm.written = arm.arm.model_copy(update={"again": False}) in written
        tell("arm", name=arm.arm.key)
        repeats = arm.arm.again or arm.arm.only_explains  # the same calls as those of an arm before
        guarded(arm, partial(warm_up, arm, source.sweep or repeats or arm.arm in timed))
    walks = None
    if p.options.scaling and p.spec.model_kind == "points":
        walks = Walks(p, source, batch_size, [a.arm for a in arms], device)
    watch, samples = Watch(device), Samples(process)
    timed_s = Rounds(p, source, samples, tell, stop, watch, walks).measure(arms)
    if walks is not None:
        totals = {a.arm.key: a.totals_ns() for a in arms if a.failed is None}
        write_walked(run, walks.found(p.spec.name, cells[0].group_id, totals))
    noises = Noises.of(p, arms, Witnesses(**watch.end()._asdict()))
    arms = [a for a in arms if not a.arm.again]
    work: dict[str, Work] = {}
    if not stop():
        facts = Facts.of(p, source, batch_size)
        for arm in arms:
            if arm.failed is None:
                tell("arm", name=arm.arm.key)
                found = guarded(arm, partial(diagnose, p, source, arm, facts))
                if found is not None:
                    work[arm.arm.key] = found
    measured = [_cell(p, source, arm, arms, work, noises) for arm in arms]
    if not stop():
        measured = [_with_own_quantities(p, cell, arm) for cell, arm in zip(measured, arms, strict=True)]
    return {
        "cells": [c.model_dump(mode="json") for c in (*untimed, *measured)],
        "samples": write_samples(run, cells[0].group_id, samples.columns).name,
        "timed_s": timed_s,
    }


@dataclass(frozen=True)
class Noises:
    """What can be told apart among arms as written, and among deployed ones."""

    written: Noise
    deployed: Noise

    @classmethod
    def of(cls, p: Prepared, arms: list[RunningArm], seen: Witnesses) -> Noises:
        """From the primary baselines that were measured twice."""
        primaries = [a for a in arms if a.cell.primary and not a.arm.again]
        written = next((a for a in primaries if a.written), None)
        deployed = next((a for a in primaries if a.cell.deployed), None)
        return cls(_noise(p, written, arms, seen), _noise(p, deployed, arms, seen))


def _noise(p: Prepared, once: RunningArm | None, arms: list[RunningArm], seen: Witnesses) -> Noise:
    """A primary baseline against itself, what that can tell apart, and what the witnesses saw."""
    again = None if once is None else once.arm.model_copy(update={"again": True})
    twice = next((a for a in arms if a.arm == again), None)
    if once is None or twice is None or once.failed or twice.failed or len(twice.rounds) < MIN_ROUNDS:
        return Noise(None, None, seen, doubts(seen, None))
    ratio = median_interval(paired(once, twice))
    tells = resolution(ratio, p.options.device)
    return Noise(ratio, tells, seen, doubts(seen, tells))


# --- from an arm's rounds and untimed passes to its cell -------------------------------------------------------------


def _cell(
    p: Prepared,
    source: Source,
    arm: RunningArm,
    arms: list[RunningArm],
    work: dict[str, Work],
    noises: Noises,
) -> Cell:
    """The finished cell of an arm."""
    decisions = p.decisions(source, arm.cell.batch_size)
    cell = arm.cell.model_copy(update={"decisions": decisions, "rounds": len(arm.rounds)})
    if arm.failed is not None:
        return cell.model_copy(update={"status": "failed", "reason": arm.failed})
    if len(arm.rounds) < MIN_ROUNDS:
        reason = f"stopped after {len(arm.rounds)} rounds; a result needs {MIN_ROUNDS}"
        return cell.model_copy(update={"status": "interrupted", "reason": reason, "stopped_by": arm.stopped_by})
    noise = noises.written if arm.written else noises.deployed
    speedups = [] if arm.arm.only_explains else _speedups(arm, arms, noises.written.resolution, deployed=False)
    deployed_speedups = _speedups(arm, arms, noises.deployed.resolution, deployed=True)
    update: dict[str, Any] = {
        "status": "ok",
        "stopped_by": arm.stopped_by,
        "latency": _latency(arm),
        "speedups": speedups,
        "deployed_speedups": deployed_speedups,
        "again": noise.again,
        "witnesses": noise.witnesses,
        "warnings": noise.warnings + _imprecise([*speedups, *deployed_speedups], arm.stopped_by, p.options.precision),
    }
    for name, deployed, tells in (
        ("waterfall", False, noises.written.resolution),
        ("deployed_waterfall", True, noises.deployed.resolution),
    ):
        base = primary_of(arm, arms, deployed=deployed)
        update[name], doubts_of_it = explained(arm, base, arms, work, tells)
        update["warnings"] += [w for w in doubts_of_it if w not in update["warnings"]]
        update[name.replace("waterfall", "energy_waterfall")] = explained_energy(arm, base, arms, work)
    if (mine := work.get(arm.arm.key)) is not None:
        primary = primary_of(arm, arms, deployed=not arm.written)
        dense = None if primary is None else work.get(primary.arm.key)
        update |= mine.columns | _flops(arm, mine, dense, deployed_speedups or speedups)
        update["warnings"] += mine.warnings + _mostly_dispatch(p, arm, mine.columns["operator_calls"])
        update["warnings"] += graph_breaks(mine.columns.get("compiled"))
    return cell.model_copy(update=update)


def _latency(arm: RunningArm) -> Latency:
    totals = arm.totals_ns()
    timings = [t for r in arm.rounds for t in r]
    per_batch = np.array([t.duration_ns for t in timings]) / 1e6
    device_ms: Measured = Unavailable(unavailable="a CPU has no device events")
    if all(t.device_ns is not None for t in timings):
        device_ms = float(np.median([sum(t.device_ns or 0 for t in r) for r in arm.rounds])) / 1e6
    return Latency(
        stream_ms=float(np.median(totals)) / 1e6,
        item_ms=float(np.median(totals)) / 1e6 / arm.items,
        batch_p50_ms=float(np.median(per_batch)),
        batch_p90_ms=percentile(per_batch, 0.9),
        batch_p99_ms=percentile(per_batch, 0.99),
        device_stream_ms=device_ms,
    )


def _speedups(arm: RunningArm, arms: list[RunningArm], tells: float | None, *, deployed: bool) -> list[Speedup]:
    """Against every other network that it is compared with."""
    found = []
    for base in bases_of(arm, arms, deployed=deployed):
        if base is not arm and base.failed is None:
            ratio = median_interval(paired(base, arm))
            found.append(
                Speedup(**ratio.model_dump(), baseline=base.arm.name, primary=base.cell.primary, resolution=tells)
            )
    return found


def _imprecise(speedups: list[Speedup], stopped_by: str, asked: float) -> list[Warning_]:
    """A warning where the speed-up against the primary baseline is not known as well as was asked."""
    half = max((max(s.high / s.value - 1, 1 - s.low / s.value) for s in speedups if s.primary), default=0.0)
    if half <= asked:
        return []
    return [
        Warning_(
            id="DB-PREC-01",
            text=f"stopped by {stopped_by} with a confidence interval of +-{half:.0%}; asked for was +-{asked:.0%}",
            remedy="give it more time (--time-limit) or a quieter machine",
        )
    ]


def _mostly_dispatch(p: Prepared, arm: RunningArm, operator_calls: Measured) -> list[Warning_]:
    """A warning where calling operators takes most of the time, whatever they compute."""
    if isinstance(operator_calls, Unavailable) or p.device.type != "cpu" or not arm.written:
        return []
    share = operator_calls * operator_call_s() / (float(np.median(arm.totals_ns())) / 1e9)
    if share < MOSTLY:
        return []
    return [
        Warning_(
            id="DB-SMALL-01",
            text=f"about {min(share, 1):.0%} of the time is the calling of operators, not what they compute",
            remedy="measure the network at its real size, or larger batches; such a ratio says little about either",
        )
    ]


def graph_breaks(compiled: Compiled | None) -> list[Warning_]:
    """A warning for each reason why regions were not compiled as one graph each."""
    where: dict[str, list[str]] = {}
    for found in [] if compiled is None else compiled.graph_breaks:
        where.setdefault(found.reason, []).append(repr(found.region) if found.region else "the whole network")
    return [
        Warning_(
            id="DB-BREAK-01",
            text=f"torch.compile left parts to Python in {len(regions)} region(s), {regions[0]} first: {reason}",
            remedy="write the region without it; TORCH_LOGS=graph_breaks shows the line",
        )
        for reason, regions in where.items()
    ]


def _flops(arm: RunningArm, mine: Work, dense: Work | None, speedups: list[Speedup]) -> dict[str, Any]:
    """FLOPs, the ideal speed-up and the efficiency."""
    flops = Flops(
        dense=Unavailable(unavailable="the primary baseline was not measured") if dense is None else dense.executed,
        required_region=mine.required_region,
        required_total=mine.required_total,
        executed=mine.executed,
        accounted=mine.accounted,
        accounted_rule=mine.accounted_rule,
    )
    found: dict[str, Any] = {"flops": flops}
    ideal = None if arm.arm.kind == "baseline" or arm.arm.only_explains else ideal_speedup(flops)
    if ideal is None:
        return found
    found["ideal"] = ideal
    if (against := next((s for s in speedups if s.primary), None)) is not None:
        found["efficiency"] = against.value / ideal
    return found


def _with_own_quantities(p: Prepared, cell: Cell, arm: RunningArm) -> Cell:
    """With the quantities of the user's own."""
    if cell.status != "ok" or not p.parts.quantities:
        return cell
    return cell.model_copy(update={"own": {q.key: evaluate(q, cell, arm) for q in p.parts.quantities}})
