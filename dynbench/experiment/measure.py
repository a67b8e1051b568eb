"""Measuring one group: warm up, rounds in random order until precise enough, then the untimed passes."""

from __future__ import annotations

import random
import time
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
from dynbench.analysis.statistics import median_interval, percentile, ratio_of_totals
from dynbench.analysis.stopping import Stopping
from dynbench.devices.base import Device
from dynbench.devices.witnesses import Watch
from dynbench.errors import DynbenchError
from dynbench.experiment.arms import RunningArm, running_arm
from dynbench.experiment.build import Prepared, Source
from dynbench.experiment.diagnose import Facts, Work, diagnose
from dynbench.experiment.explain import explained, explained_energy, is_control
from dynbench.experiment.plan import SWEEP_TIME_SHARE, controls_asked, controls_of, planned_cell
from dynbench.experiment.walks import Walks
from dynbench.experiment.ways import SHORT_PASS_S, Tournament
from dynbench.meters.dispatch import operator_call_s
from dynbench.meters.latency import Timing, time_batches
from dynbench.store.quantity import evaluate
from dynbench.store.run import write_samples
from dynbench.store.schema import Cell, Compiled, Flops, Interval, Latency, RoundSample, Speedup, Warning_, Witnesses
from dynbench.store.walks import write_walked
from dynbench.unavailable import Measured, Unavailable

WARM_UP_MIN, WARM_UP_MAX = 2, 6  # passes
WARM_UP_STEADY = 0.1  # until two passes differ by less than this share
WARM_UP_ITEMS = 32  # of the stream
WARM_UP_BATCHES = 8  # at most
WARM_UP_S = 0.5  # or so many seconds
MOSTLY = 0.5  # of the time: such a share is worth a warning
MIN_ROUNDS = 3  # a result needs at least so many
ALONE_SHARE = 0.3  # of a group's time: rounds of deployed networks alone, which strategies as written slow down


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


class Samples:
    """The columns of a group's sample file, in memory."""

    def __init__(self, process: int) -> None:
        self._process = process
        self.columns: dict[str, list[Any]] = {name: [] for name in RoundSample.model_fields}

    def add(self, arm: RunningArm, position: int, timings: list[Timing]) -> None:
        """Keeps the timings of the arm's last round, in which it had this position."""
        for batch_id, timing in enumerate(timings):
            row = RoundSample(
                process=self._process,
                round=len(arm.rounds) - 1,
                position=position,
                arm=arm.arm.key,
                batch_id=batch_id,
                start_ns=timing.start_ns,
                duration_ns=timing.duration_ns,
                device_ns=timing.device_ns,
            )
            for name, values in self.columns.items():
                values.append(getattr(row, name))


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


def _guarded(arm: RunningArm, work: Callable[[], Any]) -> Any:
    """Runs a part of an arm's work; what goes wrong costs the arm, not the group."""
    try:
        return work()
    except (MemoryError, torch.OutOfMemoryError) as e:
        arm.failed = f"out of memory: {e}".splitlines()[0]
    except RuntimeError as e:
        arm.failed = ("out of memory: " if "can't allocate memory" in str(e) else "") + f"{e}".splitlines()[0]
    except DynbenchError as e:
        arm.failed = str(e)
    except Exception as e:  # noqa: BLE001 (a user's model may raise anything)
        arm.failed = f"{type(e).__name__}: {e}"
    return None


def _warm_up(arm: RunningArm, warm: bool) -> None:
    """Until steady; one pass where another group, arm or the tournament has done so with the same shapes (`warm`)."""
    before, begin = 0, time.monotonic()
    few = arm.batches[: min(WARM_UP_BATCHES, max(WARM_UP_ITEMS // len(arm.batches[0][1]), 1))]
    for n in range(WARM_UP_MAX):
        now = sum(t.duration_ns for t in time_batches(arm.call, few, arm.device))
        arm.pass_s = now / 1e9 * len(arm.batches) / len(few)
        steady = n + 1 >= WARM_UP_MIN and abs(now - before) < WARM_UP_STEADY * before
        if steady or warm or time.monotonic() - begin > WARM_UP_S:
            return
        before = now


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
        _guarded(arm, partial(_warm_up, arm, source.sweep or repeats or arm.arm in timed))
    walks = None
    if p.options.scaling and p.spec.model_kind == "points":
        walks = Walks(p, source, batch_size, [a.arm for a in arms], device)
    watch, samples = Watch(device), Samples(process)
    timed_s = _Rounds(p, source, samples, tell, stop, watch, walks).measure(arms)
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
                found = _guarded(arm, partial(diagnose, p, source, arm, facts))
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


class _Rounds:
    """Times the arms of a group in rounds: first all, then those that are deployed alone.

    A strategy that calls a network item by item may take as long as ten deployed networks; these are what a verdict is
    about, and get rounds of their own where the time did not suffice. Where networks are walked, this is done between
    the arms of each round, and does not count as a sample.
    """

    def __init__(
        self,
        p: Prepared,
        source: Source,
        samples: Samples,
        tell: Callable[..., None],
        stop: Callable[[], bool],
        watch: Watch,
        walks: Walks | None,
    ) -> None:
        self._p, self._samples, self._tell, self._stop, self._watch, self._walks = p, samples, tell, stop, watch, walks
        self._limit_s = p.options.time_limit_s * (SWEEP_TIME_SHARE if source.sweep else 1.0)
        self._order = random.Random(p.options.seed)

    def measure(self, arms: list[RunningArm]) -> float:
        """Measures until precise enough, or the time is over; returns the seconds inside timed samples."""
        deployed = [a for a in arms if _of_deployed(a, arms)]
        share = ALONE_SHARE if 0 < len(deployed) < len(arms) else 0.0
        begin = time.monotonic()
        spent_s = self._until(arms, begin, (1 - share) * self._limit_s)
        if share and any(a.stopped_by == "time limit" for a in deployed):
            limit_s = max(self._limit_s, time.monotonic() - begin + share * self._limit_s)
            spent_s += self._until(deployed, begin, limit_s)
        return spent_s

    def _until(self, arms: list[RunningArm], begin: float, limit_s: float) -> float:
        """Rounds of these arms until their ratios are precise, or so many seconds have passed since the first."""
        rule = Stopping(precision=self._p.options.precision, time_limit_s=limit_s)
        spent_ns = 0
        while True:
            spent_ns += self._round([a for a in arms if a.failed is None])
            rounds = max((len(a.rounds) for a in arms if a.failed is None), default=0)
            elapsed = time.monotonic() - begin
            self._tell("round", n=rounds, elapsed_s=elapsed, limit_s=limit_s)
            why = "interrupt" if self._stop() else rule.finished(rounds, elapsed, _ratios(arms))
            all_failed = all(a.failed is not None for a in arms)
            if all_failed or why == "interrupt" or (why is not None and rounds >= MIN_ROUNDS):
                for arm in arms:
                    arm.stopped_by = why or "time limit"
                return spent_ns / 1e9

    def _round(self, arms: list[RunningArm]) -> int:
        """Each of the arms once, in random order; returns the nanoseconds inside timed samples.

        Where passes are short, each begins with a batch that is not timed: another network ran just before, and where
        it is used, a network follows itself.
        """
        spent_ns, short = 0, any(arm.pass_s < SHORT_PASS_S for arm in arms)
        self._order.shuffle(arms)
        self._watch.tick()
        for position, arm in enumerate(arms):
            if self._walks is not None:
                self._walks.before(arm.arm.key, position, len(arms))
            self._tell("arm", name=arm.arm.key)
            if short and _guarded(arm, partial(time_batches, arm.call, arm.batches[:1], arm.device)) is None:
                continue
            timings = _guarded(arm, partial(self._p.parts.load.issue, arm.call, arm.batches, arm.device))
            if timings is None:
                continue
            arm.rounds.append(timings)
            spent_ns += sum(t.duration_ns for t in timings)
            self._samples.add(arm, position, timings)
        return spent_ns


def _of_deployed(arm: RunningArm, arms: list[RunningArm]) -> bool:
    """Whether it is a deployed network, or a control of one."""
    return arm.cell.deployed or not arm.written or any(is_control(arm.arm, a.arm) for a in arms if a.cell.deployed)


def _bases(arm: RunningArm, arms: list[RunningArm], *, deployed: bool) -> list[RunningArm]:
    """What an arm is compared with: the other networks of its own engine as written, or all deployed baselines."""
    compared = ("baseline",) if deployed else ("baseline", "opaque")
    found = [a for a in arms if a.arm.kind in compared and not a.arm.again]
    if deployed:
        return [a for a in found if a.cell.deployed] if arm.cell.deployed else []
    return [a for a in found if a.written and a.arm.engine == arm.arm.engine] if arm.written else []


def _primary(arm: RunningArm, arms: list[RunningArm], *, deployed: bool) -> RunningArm | None:
    return next((a for a in _bases(arm, arms, deployed=deployed) if a.cell.primary), None)


def _ratio(base: RunningArm, arm: RunningArm) -> np.ndarray:
    """[rounds] of the baseline over the arm, in those that both have: the first ones."""
    shared = min(len(base.rounds), len(arm.rounds))
    return ratio_of_totals(base.totals_ns()[:shared], arm.totals_ns()[:shared])


def _ratios(arms: list[RunningArm]) -> list[np.ndarray]:
    """[rounds] primary baseline over arm, for every arm but controls of which a part is left out; both ways of it."""
    found = []
    for arm in (a for a in arms if not a.arm.only_explains):
        for deployed in (False, True):
            primary = _primary(arm, arms, deployed=deployed)
            if primary is not None and primary is not arm and primary.failed is None and arm.failed is None:
                found.append(_ratio(primary, arm))
    return found


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
    ratio = median_interval(_ratio(once, twice))
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
        base = _primary(arm, arms, deployed=deployed)
        update[name], doubts_of_it = explained(arm, base, arms, work, tells)
        update["warnings"] += [w for w in doubts_of_it if w not in update["warnings"]]
        update[name.replace("waterfall", "energy_waterfall")] = explained_energy(arm, base, arms, work)
    if (mine := work.get(arm.arm.key)) is not None:
        primary = _primary(arm, arms, deployed=not arm.written)
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
    for base in _bases(arm, arms, deployed=deployed):
        if base is not arm and base.failed is None:
            ratio = median_interval(_ratio(base, arm))
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
