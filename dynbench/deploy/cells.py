"""From what an agent sent to the cells and samples of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dynbench.analysis.resolution import resolution
from dynbench.analysis.statistics import half_width, median_interval, percentile, ratio_of_totals
from dynbench.analysis.waterfall import Arms, Timed, waterfall
from dynbench.deploy.bundle import Manifest
from dynbench.deploy.job import KNOWN_AHEAD, ArmResult, Job, Result, again
from dynbench.store.schema import (
    Arm,
    Cell,
    Decisions,
    Energy,
    Flops,
    Interval,
    Latency,
    Memory,
    Speedup,
    Startup,
    Warning_,
    Waterfall,
)
from dynbench.unavailable import Measured, Unavailable

FEWEST_ROUNDS = 5  # of a result, as on this machine
STOPPED: dict[str, Literal["precision", "time limit"]] = {"precision": "precision"}  # all else: time was over
NO_EVENTS = Unavailable(unavailable="an agent has no device events")
ONE_PROCESS = Unavailable(
    unavailable="an agent holds all networks of a workload at once; the peak of its process is under On devices"
)
IDLE = Unavailable(unavailable="energy of a device is stated with what it draws when idle included")
NOT_COUNTED = Unavailable(unavailable="the graph holds an operator without a formula")
NO_RULE = Unavailable(unavailable="what the paper counts is not part of a bundle")


@dataclass(frozen=True)
class Subject:
    """What the cells of a workload have in common on all devices.

    Attributes:
        manifest: of its bundle.
        decisions: that the network makes for the stored inputs.
        arms: what runs, by network of the bundle.
        job: that was sent.
        no_controls: why it does not say what deciding takes; None: it does.
    """

    manifest: Manifest
    decisions: Decisions
    arms: Mapping[str, Arm]
    job: Job
    no_controls: str | None = None

    def refused(self, device: str, batch_size: int, threads: int) -> list[Cell]:
        """The cell of the network that does not decide, where there is none, with the reason."""
        if self.no_controls is None:
            return []
        return [self.cell(KNOWN_AHEAD, batch_size, device, threads, status="refused", reason=self.no_controls)]

    def cell(self, network: str, batch_size: int, device: str, threads: int, **fields: Any) -> Cell:
        """A cell with its address."""
        job, arm = self.job, self.arms[network]
        dtype = self.manifest.input_dtype if self.manifest.input_dtype.startswith("float") else "float32"
        group = f"{job.workload}/{self.decisions.label}/{device}/b{batch_size}/{dtype}/t{threads}"
        return Cell(
            cell_id=f"{group}/{arm.key}",
            group_id=group,
            workload=job.workload,
            decisions=self.decisions,
            arm=arm,
            primary=arm.kind == "baseline" and network == self.manifest.primary,
            device=device,
            batch_size=batch_size,
            dtype=dtype,
            threads=threads,
            stream_items=job.input.items // batch_size * batch_size,
            deployed=True,
            **fields,
        )


def failed(subject: Subject, device: str, reason: str) -> list[Cell]:
    """The cells of a job that gave no result."""
    job = subject.job
    return [
        subject.cell(arm.name, size, device, job.threads, status="failed", reason=reason)
        for size in job.batch_sizes
        for arm in job.arms
        if arm.name in subject.arms
    ] + [cell for size in job.batch_sizes for cell in subject.refused(device, size, job.threads)]


def measured(subject: Subject, result: Result, device: str) -> tuple[list[Cell], dict[str, dict[str, list[Any]]]]:
    """The cells of a job that gave a result.

    Returns:
        The cells, and the samples by group: columns of `store.schema.RoundSample`.
    """
    cells: list[Cell] = []
    samples: dict[str, dict[str, list[Any]]] = {}
    for size in subject.job.batch_sizes:
        lanes = {arm.name: arm for arm in result.arms if arm.batch_size == size}
        made = _Group(subject, result, device, size, lanes).cells()
        cells += made
        if made and (columns := _samples(subject, lanes))["round"]:
            samples[made[0].group_id] = columns
    return cells, samples


@dataclass(frozen=True)
class _Group:
    """The arms of a batch size, which were timed in the same rounds."""

    subject: Subject
    result: Result
    device: str
    size: int
    lanes: Mapping[str, ArmResult]

    def cells(self) -> list[Cell]:
        """One of each network."""
        told = self._again()
        tells = None if told is None else resolution(told)
        names = [arm.name for arm in self.subject.job.arms if arm.name in self.subject.arms]
        refused = self.subject.refused(self.device, self.size, self.result.threads)
        return [self._cell(name, told, tells) for name in names] + refused

    def _cell(self, name: str, told: Interval | None, tells: float | None) -> Cell:
        subject, lane = self.subject, self.lanes.get(name)
        check = next((c for c in self.result.checks if (c.arm, c.batch_size) == (name, self.size)), None)
        known: dict[str, Any] = {"tolerance": subject.job.tolerance} if check else {}
        if check is not None and check.error != "nan":
            known["max_error"] = check.error
        if lane is not None:
            known["startup"] = Startup(**lane.model_dump(include=set(Startup.model_fields)))
        why = self._why_not(lane)
        if why is not None:
            status = "refused" if self.result.emulated else "failed"
            return subject.cell(name, self.size, self.device, self.result.threads, status=status, reason=why, **known)
        assert lane is not None
        speedups = [] if name == KNOWN_AHEAD else self._speedups(name, tells)
        stopped_by = STOPPED.get(self.result.stopped_by, "time limit")
        cell = subject.cell(
            name,
            self.size,
            self.device,
            self.result.threads,
            status="ok",
            stopped_by=stopped_by,
            rounds=len(lane.rounds),
            latency=self._latency(lane),
            deployed_speedups=speedups,
            memory=Memory(peak_bytes=ONE_PROCESS),
            energy=self._energy(name),
            again=told,
            **known,
        )
        cell = cell.model_copy(update=self._work(cell) | {"warnings": self._imprecise(speedups, stopped_by)})
        return cell.model_copy(update={"deployed_waterfall": self._waterfall(cell)})

    def _waterfall(self, cell: Cell) -> Waterfall | None:
        """What deciding takes, and the rest, of a dynamic network whose decisions were also known ahead."""
        primary, known = self.subject.manifest.primary, self._totals(KNOWN_AHEAD)
        if cell.arm.kind != "strategy" or primary is None or known is None or cell.flops is None:
            return None
        static, dynamic, flops = self._totals(primary), self._totals("dynamic"), cell.flops
        if static is None or dynamic is None or isinstance(flops.dense, Unavailable):
            return None
        required, total, executed = flops.required_region, flops.required_total, flops.executed
        if isinstance(required, Unavailable) or required <= 0:
            return None
        surplus = None
        if not isinstance(executed, Unavailable) and not isinstance(total, Unavailable):
            surplus = (executed - (total - required)) / required
        rounds = min(len(static), len(dynamic), len(known))
        arms = Arms(
            name=primary,
            baseline=Timed(static[:rounds], flops.dense),
            dynamic=Timed(dynamic[:rounds]),
            without={"deciding": Timed(known[:rounds])},
            twin=None,
            required=required,
            waits=False,
            surplus=surplus if surplus is None or surplus > 0 else None,
        )
        return waterfall(arms)

    def _why_not(self, lane: ArmResult | None) -> str | None:
        if lane is None:
            return "the agent sent nothing about it"
        if lane.reason is not None:
            return lane.reason
        if self.result.emulated:
            return "the device is emulated: answers were compared, and times would mean nothing"
        if len(lane.rounds) < FEWEST_ROUNDS:
            return f"stopped after {len(lane.rounds)} rounds; a result needs {FEWEST_ROUNDS}"
        return None

    def _totals(self, name: str) -> np.ndarray | None:
        """[rounds] ns of the whole stream; None: it was not timed."""
        lane = self.lanes.get(name)
        return None if lane is None or self._why_not(lane) else np.array([sum(r) for r in lane.rounds], float)

    def _ratio(self, above: str, below: str) -> Interval | None:
        a, b = self._totals(above), self._totals(below)
        if a is None or b is None:
            return None
        rounds = min(len(a), len(b))  # all arms of a group are in every round
        return median_interval(ratio_of_totals(a[:rounds], b[:rounds]))

    def _again(self) -> Interval | None:
        primary = self.subject.manifest.primary
        return None if primary is None else self._ratio(primary, again(primary))

    def _speedups(self, name: str, tells: float | None) -> list[Speedup]:
        """Against every static network but itself."""
        found = []
        for other, arm in self.subject.arms.items():
            if arm.kind != "baseline" or other == name or (ratio := self._ratio(other, name)) is None:
                continue
            primary = other == self.subject.manifest.primary
            found.append(Speedup(**ratio.model_dump(), baseline=arm.name, primary=primary, resolution=tells))
        return found

    def _latency(self, lane: ArmResult) -> Latency:
        per_batch = np.array(lane.rounds, float) / 1e6
        stream_ms = float(np.median(per_batch.sum(1)))
        return Latency(
            stream_ms=stream_ms,
            item_ms=stream_ms / (per_batch.shape[1] * self.size),
            batch_p50_ms=float(np.median(per_batch)),
            batch_p90_ms=percentile(per_batch.ravel(), 0.9),
            batch_p99_ms=percentile(per_batch.ravel(), 0.99),
            device_stream_ms=NO_EVENTS,
        )

    def _energy(self, name: str) -> Energy:
        said = self.result.readings.get("energy_j")
        mine = said.get(name, said) if isinstance(said, dict) else {}
        if isinstance(mine, dict) and isinstance(joules := mine.get("joules_per_item"), int | float) and joules > 0:
            sensor = f"{mine.get('scope', 'unknown scope')}{' (an estimate)' if mine.get('estimate') else ''}"
            seconds: Measured = Unavailable(unavailable="an agent does not tell it")
            if self.subject.job.sustained_s:
                seconds = self.subject.job.sustained_s
            return Energy(item_j=float(joules), idle_share=IDLE, window_s=seconds, sensor=sensor)
        why = mine.get("unavailable") if isinstance(mine, dict) else None
        none = Unavailable(unavailable=str(why or "the agent reads no sensor of power"))
        return Energy(item_j=none, idle_share=none, window_s=none)

    def _work(self, cell: Cell) -> dict[str, Any]:
        """FLOPs per item according to the bundle, paths, and what follows from them."""
        if cell.arm.kind == "control":
            return {}
        manifest, name = self.subject.manifest, cell.arm.baseline or "dynamic"
        counted = {
            graph.network: graph.flops_per_item
            for graph in manifest.graphs
            if graph.optimised_for is None and graph.single == (self.size == 1 and graph.network == "dynamic")
        }
        executed, dense = _or(counted.get(name)), _or(counted.get(manifest.primary or ""))
        if cell.arm.kind == "baseline":
            return {"flops": _flops(dense, executed, executed, executed)}
        region, total = _or(manifest.required_region_flops_per_item), _or(manifest.required_flops_per_item)
        update: dict[str, Any] = {"flops": _flops(dense, region, total, executed)}
        if not isinstance(dense, Unavailable) and not isinstance(region, Unavailable) and region > 0:
            update["ideal"] = dense / region
            primary = next((s for s in cell.deployed_speedups if s.primary), None)
            update["efficiency"] = None if primary is None else primary.value * region / dense
        if manifest.path_label:
            depths = np.array(manifest.path_depths[: cell.stream_items]).reshape(-1, self.size)
            update |= {"path_label": manifest.path_label, "batch_paths": [float(d) for d in depths.mean(1)]}
        return update

    def _imprecise(self, speedups: list[Speedup], stopped_by: str) -> list[Warning_]:
        asked = self.subject.job.precision
        half = max((half_width(s) for s in speedups if s.primary), default=0.0)
        if half <= asked:
            return []
        text = f"stopped by {stopped_by} with a confidence interval of +-{half:.0%}; asked for was +-{asked:.0%}"
        remedy = "give it more time (--time-limit), or let nothing else run on the device"
        return [Warning_(id="DB-PREC-01", text=text, remedy=remedy)]


def _flops(dense: Measured, region: Measured, total: Measured, executed: Measured) -> Flops:
    return Flops(dense=dense, required_region=region, required_total=total, executed=executed, accounted=NO_RULE)


def _or(value: float | None) -> Measured:
    return NOT_COUNTED if value is None else value


def _samples(subject: Subject, lanes: Mapping[str, ArmResult]) -> dict[str, list[Any]]:
    """Columns of samples, in the order in which they were taken; an agent keeps durations only."""
    primary = subject.manifest.primary
    arms = dict(subject.arms)
    if primary is not None:
        arms[again(primary)] = arms[primary].model_copy(update={"again": True})
    turns = sorted(
        (number, lane.positions[number], arms[name].key, batches)
        for name, lane in lanes.items()
        for number, batches in enumerate(lane.rounds)
        if name in arms
    )
    columns: dict[str, list[Any]] = {name: [] for name in ("round", "position", "arm", "batch_id", "duration_ns")}
    for number, position, key, batches in turns:
        columns["round"] += [number] * len(batches)
        columns["position"] += [position] * len(batches)
        columns["arm"] += [key] * len(batches)
        columns["batch_id"] += range(len(batches))
        columns["duration_ns"] += batches
    ends = np.cumsum(np.array(columns["duration_ns"], np.int64))
    rows = len(columns["round"])
    columns["start_ns"] = [int(end) - ns for end, ns in zip(ends, columns["duration_ns"], strict=True)]
    return columns | {"process": [0] * rows, "device_ns": [None] * rows}
