"""Measuring one group: warm up, rounds in random order until precise enough, then the untimed passes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dynbench import devices
from dynbench.analysis.resolution import doubts, resolution
from dynbench.analysis.statistics import median_interval, percentile, ratio_of_totals
from dynbench.analysis.stopping import Stopping
from dynbench.devices.base import Device
from dynbench.devices.witnesses import Watch
from dynbench.dynamic import Execution, Trace
from dynbench.experiment.build import Prepared, Source
from dynbench.experiment.diagnose import Facts, Work, diagnose
from dynbench.experiment.plan import SWEEP_TIME_SHARE, planned_cells
from dynbench.meters.latency import Timing, time_batches
from dynbench.store.schema import Cell, Flops, Latency, RoundSample, Speedup, Unavailable, Warning_, Witnesses
from dynbench.strategies import STRATEGIES

WARM_UP_MIN, WARM_UP_MAX = 2, 6  # passes
WARM_UP_STEADY = 0.1  # until two passes differ by less than this share
WARM_UP_ITEMS = 32  # of the stream
WARM_UP_BATCHES = 8  # at most
WARM_UP_S = 0.5  # or so many seconds
MIN_ROUNDS = 3  # below this nothing is said
Batch = tuple[int, Tensor]


@dataclass
class Arm:
    """One cell being measured."""

    cell: Cell
    model: nn.Module
    call: Callable[[int, Tensor], Any]  # (index of the first item, inputs) -> answer
    execution: Execution | None = None  # None: a baseline
    again: bool = False  # the primary baseline a second time: A/A
    rounds: list[list[Timing]] = field(default_factory=list)
    failed: str | None = None

    def totals_ns(self) -> np.ndarray:
        """Stream totals per round."""
        return np.array([sum(t.duration_ns for t in r) for r in self.rounds], dtype=np.int64)


class _Baseline:
    """Calls a static network."""

    __slots__ = ("_net",)

    def __init__(self, net: nn.Module) -> None:
        self._net = net

    def __call__(self, start: int, x: Tensor) -> Any:
        return self._net(x)


class _Dynamic:
    """Calls a model under a strategy."""

    __slots__ = ("_ex", "_items", "_model")

    def __init__(self, ex: Execution, model: nn.Module, items: int) -> None:
        self._ex, self._model, self._items = ex, model, items

    def __call__(self, start: int, x: Tensor) -> Any:
        return self._ex.run(self._model, x, start=start, items=self._items)


def make_arms(p: Prepared, source: Source, batch_size: int, trace: Trace) -> tuple[list[Arm], list[Cell]]:
    """The arms of a group, and its refused cells."""
    arms, refused = [], []
    for cell in planned_cells(p, source, batch_size):
        if cell.status == "refused":
            refused.append(cell)
        elif cell.arm == "baseline":
            net = p.baselines[cell.name]
            arms.append(Arm(cell, net, _Baseline(net)))
        else:
            live = cell.arm == "control"
            strategy = STRATEGIES[cell.name.split(",")[0]]()
            ex = Execution(strategy, replay=None if live else trace)
            arms.append(Arm(cell, p.model, _Dynamic(ex, p.model, p.items), ex))
    primary = next((a for a in arms if a.cell.primary), None)
    if primary is not None and not source.sweep:
        arms.append(Arm(primary.cell, primary.model, primary.call, again=True))
    return arms, refused


def _guarded(arm: Arm, work: Callable[[], Any]) -> Any:
    """Runs a part of an arm's work; what goes wrong costs the arm, not the group."""
    try:
        return work()
    except (MemoryError, torch.OutOfMemoryError) as e:
        arm.failed = f"out of memory: {e}".splitlines()[0]
    except RuntimeError as e:
        arm.failed = ("out of memory: " if "can't allocate memory" in str(e) else "") + f"{e}".splitlines()[0]
    except Exception as e:  # noqa: BLE001 (a user's model may raise anything)
        arm.failed = f"{type(e).__name__}: {e}"
    return None


def _warm_up(arm: Arm, batches: list[Batch], device: Device, warm: bool) -> None:
    """Until steady; one pass where another group has done so with the same shapes (`warm`)."""
    before, begin = 0, time.monotonic()
    few = batches[: min(WARM_UP_BATCHES, max(WARM_UP_ITEMS // len(batches[0][1]), 1))]
    for n in range(WARM_UP_MAX):
        now = sum(t.duration_ns for t in time_batches(arm.call, few, device))
        steady = n + 1 >= WARM_UP_MIN and abs(now - before) < WARM_UP_STEADY * before
        if steady or warm or time.monotonic() - begin > WARM_UP_S:
            return
        before = now


@torch.inference_mode()
def measure_group(
    p: Prepared,
    source: Source,
    batch_size: int,
    *,
    process: int,
    without: set[str],
    tell: Callable[..., None],
    stop: Callable[[], bool],
) -> dict[str, Any]:
    """Measures all cells of a group against each other.

    Args:
        p: the workload.
        source: whose decisions are replayed.
        batch_size: items per batch.
        process: number of this measuring process.
        without: cells that are left out because they killed an earlier process.
        tell: told each arm before it runs and each round after it.
        stop: whether the user wants it to end after this round.

    Returns:
        `cells` and `samples` as JSON-able tables, and `timed_s`.
    """
    device = devices.device(p.options.device)
    trace = p.trace(source, batch_size)
    batches = p.batches(batch_size)
    arms, refused = make_arms(p, source, batch_size, trace)
    arms = [a for a in arms if a.cell.name not in without]
    for arm in arms:
        tell("arm", name=arm.cell.name)
        _guarded(arm, partial(_warm_up, arm, batches, device, source.sweep))
    watch = Watch(device)
    timed_s, stopped_by, samples = _rounds(p, source, arms, batches, device, process, tell, stop, watch)
    noise = _noise(p, arms, watch)
    arms = [a for a in arms if not a.again]
    work: dict[str, Work] = {}
    if not stop():
        facts = Facts.of(p, source, batch_size)
        for arm in arms:
            if arm.failed is None:
                tell("arm", name=arm.cell.name)
                found = _guarded(arm, partial(diagnose, p, source, arm, batches, device, facts))
                if found is not None:
                    work[arm.cell.name] = found
    cells = [_cell(p, source, batch_size, arm, arms, work, stopped_by, noise) for arm in arms]
    return {
        "cells": [c.model_dump(mode="json") for c in cells],
        "samples": [s.model_dump() for s in samples],
        "timed_s": timed_s,
    }


def _rounds(
    p: Prepared,
    source: Source,
    arms: list[Arm],
    batches: list[Batch],
    device: Device,
    process: int,
    tell: Callable[..., None],
    stop: Callable[[], bool],
    watch: Watch,
) -> tuple[float, str, list[RoundSample]]:
    limit = p.options.time_limit_s * (SWEEP_TIME_SHARE if source.sweep else 1.0)
    rule = Stopping(precision=p.options.precision, time_limit_s=limit)
    order = random.Random(p.options.seed)
    samples: list[RoundSample] = []
    begin = time.monotonic()
    spent_ns = 0
    while True:
        alive = [a for a in arms if a.failed is None]
        order.shuffle(alive)
        watch.tick()
        for position, arm in enumerate(alive):
            tell("arm", name=arm.cell.name)
            timings = _guarded(arm, partial(time_batches, arm.call, batches, device))
            if timings is None:
                continue
            arm.rounds.append(timings)
            spent_ns += sum(t.duration_ns for t in timings)
            name = f"baseline:{arm.cell.name}" if arm.cell.arm == "baseline" else arm.cell.name
            name = f"{name}, again" if arm.again else name
            samples += [
                RoundSample(
                    process=process,
                    round=len(arm.rounds) - 1,
                    position=position,
                    arm=name,
                    batch_id=b,
                    start_ns=t.start_ns,
                    duration_ns=t.duration_ns,
                    device_ns=t.device_ns,
                )  # fmt: skip
                for b, t in enumerate(timings)
            ]
        rounds = max((len(a.rounds) for a in arms if a.failed is None), default=0)
        elapsed = time.monotonic() - begin
        primary = next((a for a in arms if a.cell.primary and not a.again and a.failed is None), None)
        ratios = [
            ratio_of_totals(primary.totals_ns(), a.totals_ns())
            for a in arms
            if primary is not None and a is not primary and a.failed is None
        ]
        tell("round", n=rounds, elapsed_s=elapsed, limit_s=limit)
        why = "interrupt" if stop() else rule.finished(rounds, elapsed, ratios)
        nobody = all(a.failed is not None for a in arms)
        if nobody or why == "interrupt" or (why is not None and rounds >= MIN_ROUNDS):
            return spent_ns / 1e9, why or "time limit", samples


def _noise(p: Prepared, arms: list[Arm], watch: Watch) -> dict[str, Any]:
    """Of the group: the primary baseline against itself, what that can tell apart, and what the witnesses saw."""
    seen = Witnesses.model_validate(
        {k: Unavailable(unavailable=v[13:]) if str(v).startswith("unavailable: ") and k != "governor" else v
         for k, v in watch.end()._asdict().items()}
    )  # fmt: skip
    found: dict[str, Any] = {"witnesses": seen}
    once, twice = (
        [a for a in arms if a.cell.primary and a.again is again and a.failed is None] for again in (False, True)
    )
    if once and twice and len(twice[0].rounds) >= MIN_ROUNDS:
        again = median_interval(ratio_of_totals(once[0].totals_ns(), twice[0].totals_ns()))
        tells = resolution(again, p.options.device)
        return found | {"again": again, "resolution": tells, "warnings": doubts(seen, tells)}
    return found | {"resolution": None, "warnings": doubts(seen, None)}


def _cell(
    p: Prepared,
    source: Source,
    batch_size: int,
    arm: Arm,
    arms: list[Arm],
    work: dict[str, Work],
    stopped_by: str,
    noise: dict[str, Any],
) -> Cell:
    cell = arm.cell.model_copy(update={"decisions": p.decisions(source, batch_size), "rounds": len(arm.rounds)})
    if arm.failed is not None:
        return cell.model_copy(update={"status": "failed", "reason": arm.failed})
    if len(arm.rounds) < MIN_ROUNDS:
        reason = f"stopped after {len(arm.rounds)} rounds; a result needs {MIN_ROUNDS}"
        return cell.model_copy(update={"status": "interrupted", "reason": reason, "stopped_by": stopped_by})
    totals = arm.totals_ns()
    per_batch = np.array([t.duration_ns for r in arm.rounds for t in r]) / 1e6
    device_ns = [sum(t.device_ns or 0 for t in r) for r in arm.rounds]
    on_device = all(t.device_ns is not None for r in arm.rounds for t in r)
    latency = Latency(
        stream_ms=float(np.median(totals)) / 1e6,
        item_ms=float(np.median(totals)) / 1e6 / p.items,
        batch_p50_ms=float(np.median(per_batch)),
        batch_p90_ms=percentile(per_batch, 0.9),
        batch_p99_ms=percentile(per_batch, 0.99),
        device_stream_ms=float(np.median(device_ns)) / 1e6
        if on_device
        else Unavailable(unavailable="a CPU has no device events"),
    )
    speedups = []
    for base in arms:
        if base.cell.arm == "baseline" and base is not arm and base.failed is None:
            found = median_interval(ratio_of_totals(base.totals_ns(), totals))
            speedups.append(
                Speedup(
                    baseline=base.cell.name,
                    primary=base.cell.primary,
                    value=found.value,
                    low=found.low,
                    high=found.high,
                    confidence=found.confidence,
                    resolution=noise["resolution"],
                )  # fmt: skip
            )
    update: dict[str, Any] = {
        "status": "ok", "reason": None, "stopped_by": stopped_by, "latency": latency, "speedups": speedups,
        **{k: v for k, v in noise.items() if k != "resolution"},
    }  # fmt: skip
    half = max((max(s.high / s.value - 1, 1 - s.low / s.value) for s in speedups if s.primary), default=0.0)
    if half > p.options.precision:
        update["warnings"] = [
            *noise["warnings"],
            Warning_(
                id="DB-PREC-01",
                text=f"stopped by {stopped_by} with a confidence interval of +-{half:.0%}; asked for was "
                f"+-{p.options.precision:.0%}",
                remedy="give it more time (--time-limit) or a quieter machine",
            ),
        ]
    primary = next((a for a in arms if a.cell.primary), None)
    if (mine := work.get(arm.cell.name)) is not None:
        update |= mine.columns
        dense = work[primary.cell.name].executed if primary is not None and primary.cell.name in work else None
        update["flops"] = flops = Flops(
            dense=Unavailable(unavailable="the primary baseline was not measured") if dense is None else dense,
            required_region=mine.required_region, required_total=mine.required_total, executed=mine.executed,
            accounted=mine.accounted, accounted_rule=mine.accounted_rule,
        )  # fmt: skip
        if arm.cell.arm != "baseline" and isinstance(flops.dense, float) and isinstance(flops.required_region, float):
            update["ideal"] = flops.dense / flops.required_region
            against = next((s for s in speedups if s.primary), None)
            if against is not None:
                update["efficiency"] = against.value / update["ideal"]
        if "tolerance" in update and not update["max_error"] <= update["tolerance"]:
            update["status"] = "failed"
            update["reason"] = (
                f"wrong answer: differs from per_sample in float64 by {update['max_error']:.2g} of its largest value, "
                f"tolerance {update['tolerance']:.2g}"
            )
    return Cell.model_validate({**cell.model_dump(), **{k: _plain(v) for k, v in update.items()}})


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return value.model_dump() if hasattr(value, "model_dump") else value
