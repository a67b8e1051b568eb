"""Every quantity of a cell in one table.

The columns, legend and result tables of a report, its list of what was not measured, exports, the exact gates of
`compare`, `reproduce` and `check`, and the numbers of the history follow from `QUANTITIES`. A user's own quantity is a
row like any other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from dynbench.store.quantity import Quantity, columns, flat
from dynbench.store.schema import Cell, Flops, Interval, OwnQuantity, Speedup, WorkloadInfo
from dynbench.unavailable import Measured, Unavailable


def stored(path: str) -> Callable[[Cell], Any]:
    """Reads 'latency.item_ms', say; None where a record on the way is not there."""

    def read(cell: Cell) -> Any:
        found: Any = cell
        for name in names:
            if found is None:
                return None
            found = getattr(found, name)
        return found

    names = path.split(".")
    return read


def _primary(cell: Cell) -> Speedup | None:
    return next((s for s in cell.speedups if s.primary), None)


def _deployed(cell: Cell) -> Speedup | None:
    return next((s for s in cell.deployed_speedups if s.primary), None)


def _ideal(cell: Cell) -> Measured | None:
    if cell.arm.kind == "baseline":
        return None
    return cell.ideal if cell.flops is None else ideal_of(cell.flops)


def ideal_of(flops: Flops) -> Measured:
    """Dense FLOPs / required region FLOPs."""
    dense, required = flops.dense, flops.required_region
    for found in (dense, required):
        if isinstance(found, Unavailable):
            return found
    assert not isinstance(dense, Unavailable) and not isinstance(required, Unavailable)
    for whose, number in (("the decisions require", required), ("the primary baseline executes", dense)):
        if not number:
            return Unavailable(unavailable=f"{whose} no FLOPs: only products of numbers are counted as such")
    ratio = dense / required
    return ratio if math.isfinite(ratio) else Unavailable(unavailable="the ratio is too large for a number")


def _resolution(cell: Cell) -> float | None:
    found = _primary(cell) or _deployed(cell)
    return None if found is None else found.resolution


_SPEED = [
    Quantity(
        key="decisions_keep_rate",
        read=stored("decisions.keep_rate"),
        header="keep-rate",
        definition="Share of the decisions asked that ran the body or stayed in the loop; for experts k / number of "
        "experts. Counted in the trace.",
        is_not="Not the share of computation kept: bodies differ in size, and fixed parts always run.",
        certain=True,
        places=("speed", "sweep"),
    ),
    Quantity(
        key="deployed_speedup",
        read=_deployed,
        header="deployed speed-up",
        unit="x (95 % CI)",
        kind="interval",
        definition="Time of the primary baseline in its fastest way / time of this network in its fastest way, in the "
        "same rounds. The fastest way (form, engine, control, strategy) is found by a tournament before the "
        "group is measured.",
        is_not="Not the fastest of all ways there are: the report lists those that were tried.",
        better="up",
        certain=True,
        places=("speed",),
    ),
    Quantity(
        key="speedup",
        read=_primary,
        header="speed-up",
        unit="x (95 % CI)",
        kind="interval",
        definition="Time of the primary baseline / time of this arm, both as written, for the whole stream within one "
        "round; the median over rounds with its confidence interval (order statistics). Above 1 is faster.",
        is_not="The interval covers the rounds of this run, not another machine, process or day.",
        better="up",
        certain=True,
        places=("speed", "sweep"),
    ),
    Quantity(
        key="resolution",
        read=_resolution,
        header="resolution",
        unit="%",
        scale=0.01,
        digits=2,
        definition="The primary baseline is measured twice in every round; a ratio nearer to 1 than the two may differ "
        "(the far end of their interval, at least 1 % on a CPU and 0.5 % on a GPU) is called no difference.",
        is_not="Not the width of this ratio's own interval.",
        better="down",
        certain=True,
        places=("speed",),
    ),
    Quantity(
        key="ideal_speedup",
        read=_ideal,
        header="ideal",
        unit="x",
        kind="ratio",
        definition="Dense FLOPs / required FLOPs of the bodies and fixed parts: the speed-up if time followed "
        "computation.",
        is_not="Not a bound: a baseline may use the hardware badly.",
        places=("speed", "sweep"),
    ),
    Quantity(
        key="efficiency_speedup_over_ideal",
        read=stored("efficiency"),
        header="efficiency",
        unit="speed-up / ideal",
        digits=2,
        definition="Which part of the ideal became time.",
        better="up",
        certain=True,
        places=("speed", "sweep"),
    ),
]
_LATENCY = [
    Quantity(
        key="latency_item_ms",
        read=stored("latency.item_ms"),
        header="time",
        unit="ms/item",
        definition="Median over rounds of the time of the whole stream, device drained, / items.",
        is_not="Not the latency of one item at batch sizes above 1.",
        better="down",
        certain=True,
        places=("latency", "sweep"),
    ),
    Quantity(
        key="latency_batch_p50_ms",
        read=stored("latency.batch_p50_ms"),
        header="p50",
        unit="ms/batch",
        definition="Median time of one batch over all rounds and batches.",
        better="down",
        certain=True,
        places=("latency",),
    ),
    Quantity(
        key="latency_batch_p90_ms",
        read=stored("latency.batch_p90_ms"),
        header="p90",
        name="p90 latency",
        unit="ms/batch",
        definition="The time that 90 % of the batches did not exceed; needs 64 samples.",
        is_not="Closed loop: each batch starts when the one before is done, so there is no queueing in it.",
        better="down",
        places=("latency", "not measured"),
    ),
    Quantity(
        key="latency_batch_p99_ms",
        read=stored("latency.batch_p99_ms"),
        header="p99",
        name="p99 latency",
        unit="ms/batch",
        definition="As p90, for 99 %; needs 662 samples.",
        better="down",
        places=("latency", "not measured"),
    ),
    Quantity(
        key="latency_device_stream_ms",
        read=stored("latency.device_stream_ms"),
        header="device time",
        unit="ms/stream",
        definition="Time by the device's own events, median over rounds.",
        is_not="Not what a user waits for: it leaves out the host.",
        better="down",
        places=("latency", "not measured"),
    ),
    Quantity(
        key="latency_stream_ms",
        read=stored("latency.stream_ms"),
        header="time of the stream",
        unit="ms/stream",
        definition="Median over rounds of the time of the whole stream, device drained.",
        better="down",
        certain=True,
        places=(),
    ),
    Quantity(
        key="rounds",
        read=stored("rounds"),
        header="rounds",
        kind="count",
        definition="How often the whole stream was timed, interleaved with the other arms.",
        certain=True,
        places=("latency",),
    ),
]
_FLOPS = [
    Quantity(
        key="executed_flops_per_item",
        read=stored("flops.executed"),
        header="executed",
        name="executed FLOPs",
        unit="MFLOP/item",
        per="item",
        scale=1e6,
        definition="FLOPs the arm really ran, gates included, counted operator by operator. 1 MAC = 2 FLOPs.",
        is_not="Not FLOP/s, and not what the decisions asked for.",
        exact=True,
        better="down",
        places=("work", "sweep", "not measured"),
    ),
    Quantity(
        key="dense_flops_per_item",
        read=stored("flops.dense"),
        header="dense",
        name="dense FLOPs",
        unit="MFLOP/item",
        per="item",
        scale=1e6,
        definition="Of the primary baseline.",
        places=("flops", "not measured"),
    ),
    Quantity(
        key="required_region_flops_per_item",
        read=stored("flops.required_region"),
        header="required: bodies",
        name="required FLOPs of the bodies",
        unit="MFLOP/item",
        per="item",
        scale=1e6,
        definition="Of reached, active bodies and the fixed parts, work shared between items counted once.",
        places=("flops",),
    ),
    Quantity(
        key="required_total_flops_per_item",
        read=stored("flops.required_total"),
        header="required: with gates",
        name="required FLOPs",
        unit="MFLOP/item",
        per="item",
        scale=1e6,
        definition="Those of the bodies, and of gates, heads and policies.",
        exact=True,
        better="down",
        places=("flops", "not measured"),
    ),
    Quantity(
        key="accounted_flops_per_item",
        read=stored("flops.accounted"),
        header="accounted in the paper",
        name="accounted FLOPs",
        unit="MFLOP/item",
        per="item",
        scale=1e6,
        definition="What the paper counts.",
        places=("flops", "not measured"),
    ),
]
_WORK = [
    Quantity(
        key="bytes_touched_per_item",
        read=stored("bytes_touched"),
        header="bytes touched",
        unit="MB/item",
        per="item",
        scale=1e6,
        definition="Tensor bytes read and written by operators.",
        is_not="An upper bound on memory traffic: caches are not seen.",
        better="down",
    ),
    Quantity(
        key="operator_calls_per_stream",
        read=stored("operator_calls"),
        header="operator calls",
        unit="per stream",
        per="stream",
        kind="count",
        definition="Calls of tensor operators: what the host has to issue.",
        exact=True,
        depends_on_software=True,
        better="down",
    ),
    Quantity(
        key="compiled_regions",
        read=stored("compiled.regions"),
        header="compiled regions",
        kind="count",
        definition="Parts of the network that torch.compile made code of, each on its own.",
        certain=True,
        places=("work",),
    ),
    Quantity(
        key="compiled_compilations",
        read=stored("compiled.compilations"),
        header="compilations",
        kind="count",
        definition="How often torch.compile made code of a region: for a first number of items, any number, one item.",
        is_not="Not timed: it is over before the rounds begin.",
        better="down",
        certain=True,
        places=("work",),
    ),
    Quantity(
        key="compiled_graph_breaks_count",
        read=lambda c: None if c.compiled is None else len(c.compiled.graph_breaks),
        header="graph breaks",
        kind="count",
        definition="Reasons, by region, why code runs in Python between compiled graphs; the warnings name them.",
        better="down",
        certain=True,
        places=("work",),
    ),
    Quantity(
        key="host_syncs_per_stream",
        read=stored("host_syncs"),
        header="host waits",
        unit="per stream",
        per="stream",
        kind="count",
        definition="Times the host waited for the device.",
        exact=True,
        depends_on_software=True,
        better="down",
    ),
    Quantity(
        key="kernel_launches_per_stream",
        read=stored("kernel_launches"),
        header="launches",
        name="kernel launches",
        unit="per stream",
        per="stream",
        kind="count",
        definition="Kernels launched on the device.",
        better="down",
    ),
    Quantity(
        key="peak_memory_bytes",
        read=stored("memory.peak_bytes"),
        header="peak memory",
        unit="MB",
        scale=1e6,
        definition="Highest memory in use during a call, 1 MB = 10^6 bytes.",
        better="down",
    ),
    Quantity(
        key="energy_item_j",
        read=stored("energy.item_j"),
        header="energy",
        unit="mJ/item",
        per="item",
        scale=1e-3,
        definition="From the device's energy counter over a window long enough for it.",
        is_not="Never an estimate, and not the energy of the whole machine.",
        better="down",
    ),
    Quantity(
        key="energy_idle_share",
        read=stored("energy.idle_share"),
        header="idle share",
        name="idle share of energy",
        unit="% of energy",
        scale=0.01,
        digits=2,
        definition="What the device would have used in the same time doing nothing.",
        better="down",
    ),
    Quantity(
        key="params",
        read=stored("params"),
        header="parameters",
        unit="M",
        scale=1e6,
        definition="Parameters of the network, all experts and all levels counted.",
        exact=True,
        certain=True,
        places=("work",),
    ),
    Quantity(
        key="max_error",
        read=stored("max_error"),
        header="error",
        unit="relative",
        digits=2,
        definition="Largest difference of the answer from per_sample in float64 with the same decisions, / the largest "
        "value of the answer.",
        is_not="Not a difference in accuracy.",
        better="down",
        certain=True,
        places=("work",),
    ),
    Quantity(
        key="tolerance",
        read=stored("tolerance"),
        header="tolerance",
        unit="relative",
        digits=2,
        definition="The error up to which the answer counts as the same.",
        certain=True,
        places=("work",),
    ),
]


def _phase(name: str, definition: str) -> Quantity:
    return Quantity(
        key=f"phases_{name}_ms",
        read=stored(f"phases.{name}_ms"),
        header=name,
        name=f"time of {name} in the profile",
        unit="ms/stream",
        definition=f"{definition} One profiled pass over the stream.",
        is_not="Profiling itself adds time.",
        certain=True,
        places=(),
    )


def _witness(name: str, unit: str, definition: str, *, certain: bool = False) -> Quantity:
    return Quantity(
        key=f"witnesses_{name}",
        read=stored(f"witnesses.{name}"),
        header=name.replace("_", " "),
        unit=unit,
        definition=definition,
        is_not="Of the whole group, not of one arm.",
        certain=certain,
        places=(),
    )


_STORED_ONLY = [  # of use to other programs, and behind warnings; no column of a report
    Quantity(
        key="energy_window_s",
        read=stored("energy.window_s"),
        header="energy window",
        unit="s",
        definition="How long the energy was counted.",
        places=(),
    ),
    Quantity(
        key="accuracy_value",
        read=stored("accuracy.value"),
        header="accuracy",
        definition="Of the metric beside it, on held-out labelled inputs; where its unit is %, a share of 0 to 1.",
        places=(),
    ),
    Quantity(
        key="again_value",
        read=stored("again"),
        header="baseline against itself",
        unit="x (95 % CI)",
        kind="interval",
        definition="The primary baseline against itself in the same rounds; its true value is 1.",
        certain=True,
        places=(),
    ),
    _phase("decide", "Gates and policies."),
    _phase("gather", "Picking the items that go on."),
    _phase("body", "Bodies of the decision points."),
    _phase("scatter", "Putting results back in their places."),
    _phase("sync", "Waiting for decisions."),
    _phase("head", "Heads that answer."),
    _phase("other", "The fixed parts of the model, and the host."),
    _witness("window_s", "s", "How long the group was measured.", certain=True),
    _witness("waited", "share of time", "Some process waited for a core."),
    _witness("stolen", "share of a core's time", "The hypervisor gave it to others."),
    _witness("switched_per_s", "per s", "How often the measuring process had to give its core to another."),
    _witness("control_us", "us", "Median time of the control kernel: the same arithmetic in every run."),
    _witness("control_drift", "share", "How much slower the control kernel was in the second half than in the first."),
    _witness("clock_mhz", "MHz", "Median of the readings of the clock."),
    _witness("clock_low_mhz", "MHz", "The lowest reading of the clock."),
    _witness("clock_drift", "share", "How much faster the clock was in the second half than in the first."),
    _witness("temperature_c", "degrees Celsius", "At the end."),
]


def _lost_to(field: str, name: str) -> Callable[[Cell], Interval | None]:
    """Reads a factor of one of a cell's waterfalls."""

    def read(cell: Cell) -> Interval | None:
        found = whole(cell)
        return None if found is None else next((f for f in found.factors if f.name == name), None)

    whole = stored(field)
    return read


_OF_TIME = (
    "How many times as long it takes for {what}, by controls: arms of the same rounds with a part left out. The "
    "product of all such factors is ideal / speed-up."
)
_OF_ENERGY = (
    "How many times the joules it takes for {what}, by controls: arms with a part left out, each metered in a window "
    "of its own. The product of all such factors is ideal / (energy of the primary baseline / energy of the arm)."
)
_WHY = [
    Quantity(
        key=f"{field}_{name}",
        read=_lost_to(field, name),
        header=f"{how}lost to {what}",
        unit="x (95 % CI)",
        kind="interval",
        definition=definition.format(what=what),
        better="down",
        certain=True,
        places=(),
    )
    for field, how, definition in (
        ("waterfall", "", _OF_TIME),
        ("deployed_waterfall", "deployed, ", _OF_TIME),
        ("energy_waterfall", "energy ", _OF_ENERGY),
        ("deployed_energy_waterfall", "deployed, energy ", _OF_ENERGY),
    )
    for name, what in (
        ("surplus", "surplus work"),
        ("fewer_items", "fewer items per call"),
        ("moving", "moving items"),
        ("deciding", "deciding"),
        ("waiting", "waiting and launching"),
        ("engine", "another engine than the baseline's"),
        ("rest", "what no control tells apart"),
    )
]

QUANTITIES: tuple[Quantity, ...] = (*_SPEED, *_LATENCY, *_FLOPS, *_WORK, *_STORED_ONLY, *_WHY)
"""All quantities that come with dynbench; in a table, in this order."""

EXACT_WORK = tuple(q.name for q in QUANTITIES if q.exact and q.better == "down")
"""Names of what is counted exactly and should not grow: more of it is a regression for `check`."""


def quantities(workloads: Iterable[WorkloadInfo] = ()) -> list[Quantity]:
    """All quantities of some workloads: those that come with dynbench, then the workloads' own ones, each key once.

    The key of an own one is `own_<key>` here, so that it is never that of another column.
    """
    own = {d.key: _from_description(d) for info in workloads for d in info.quantities}
    return [*QUANTITIES, *own.values()]


def _own_key(key: str) -> str:
    return f"own_{key}"


def _from_description(found: OwnQuantity) -> Quantity:
    said = found.model_dump() | {"key": _own_key(found.key)}
    return Quantity(**said, read=lambda cell: cell.own.get(found.key))


def numbers(cell: Cell) -> dict[str, float]:
    """All numbers of a cell by column, unscaled, ends of intervals and a user's own among them: the history's.

    What does not apply or is unavailable is left out.
    """
    found: dict[str, object] = {}
    for quantity in QUANTITIES:
        found |= zip(columns(quantity), flat(quantity, cell), strict=True)
    found |= {_own_key(key): value for key, value in cell.own.items()}
    return {name: float(value) for name, value in found.items() if isinstance(value, float | int)}
