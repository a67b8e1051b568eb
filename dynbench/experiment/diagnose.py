"""The untimed passes of a cell: is the answer right, how much work was done, where does the time go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dynbench import hooks
from dynbench.counting.flops import FlopCounter
from dynbench.counting.params import count_params
from dynbench.dynamic import Execution, Trace
from dynbench.errors import DynbenchError
from dynbench.experiment.arms import Call, GraphCall, RunningArm
from dynbench.experiment.build import Prepared, Source
from dynbench.experiment.graphs import TOLERANCE as GRAPH_TOLERANCE
from dynbench.experiment.memory import ProbeRequest, cell_peak_bytes
from dynbench.experiment.oracle import Oracle, answers, output_error
from dynbench.experiment.plan import control_strategy
from dynbench.graph import executed_flops
from dynbench.meters.energy import measure_energy
from dynbench.meters.memory import peak_bytes
from dynbench.meters.phases import PhaseTimer
from dynbench.meters.required import PartCosts
from dynbench.meters.syncs import count_syncs
from dynbench.store.schema import Memory, Phases
from dynbench.strategies import PerSample
from dynbench.unavailable import Measured, Unavailable


@dataclass
class Facts:
    """What all strategies of a group share: the right answer, and the work that the decisions ask for, per item."""

    answer: list[Tensor] | None  # per_sample in float64, same decisions; None in the keep-rate sweep: not checked
    tolerance: float
    required_region: Measured
    required_total: Measured
    accounted: Measured
    accounted_rule: str | None
    path_label: str
    batch_paths: list[float]

    @classmethod
    @torch.inference_mode()
    def of(cls, p: Prepared, source: Source, batch_size: int) -> Facts:
        """Works it out; what does not depend on the batch size only once."""
        answer, tolerance = None, 0.0
        if not source.sweep:
            key = (source.decisions.label, batch_size if p.batch_scope else 0)
            if key not in p.right_answers:
                p.right_answers[key] = _right_answer(p, source, batch_size)
            answer, tolerance = p.right_answers[key]
        trace = p.trace(source, batch_size)
        batches = p.batches(batch_size)
        costs = PartCosts(p.model, batches[0][1])
        required = costs.required(trace)
        depths, label = costs.path_depths(trace)
        accounted, rule = _accounted(p, trace)
        return cls(
            answer=answer,
            tolerance=tolerance,
            required_region=_per_item(required.region, p.items),
            required_total=_per_item(required.total, p.items),
            accounted=accounted,
            accounted_rule=rule,
            path_label=label,
            batch_paths=[float(depths[i : i + len(x)].mean()) for i, x in batches],
        )


def _right_answer(p: Prepared, source: Source, batch_size: int) -> tuple[list[Tensor], float]:
    """`per_sample` in float64, and the tolerance."""
    oracle = Oracle(p.model, p.batches(batch_size), p.items, p.dtype)
    return oracle.answer(Execution(PerSample(), replay=p.trace(source, batch_size))), oracle.tolerance


@dataclass
class Work:
    """FLOPs per item of a cell, and the other columns that untimed passes give."""

    executed: Measured
    required_region: Measured
    required_total: Measured
    accounted: Measured
    accounted_rule: str | None
    columns: dict[str, Any]


def diagnose(p: Prepared, source: Source, arm: RunningArm, facts: Facts) -> Work:
    """Measures all that takes no time sample."""
    if isinstance(arm.call, GraphCall):
        return _of_graph(p, source, arm, arm.call, facts)
    counted = _count(p, source, arm)
    executed = _per_item(counted.counter.flops, counted.items)
    columns: dict[str, Any] = {
        "bytes_touched": counted.counter.bytes_touched / counted.items,
        "operator_calls": counted.counter.operator_calls * p.items / counted.items,
        "params": count_params(arm.as_written),
        "energy": measure_energy(lambda: _stream(arm), arm.device, items=p.items, idle_w=p.idle_w),
        "memory": Memory(peak_bytes=_peak_bytes(p, source, arm)),
    }
    columns["host_syncs"], columns["kernel_launches"] = count_syncs(lambda: _stream(arm), arm.device)
    if outside := hooks.of(arm.as_written).outside_torch:  # a baseline that torch's operators do not show
        executed = columns["bytes_touched"] = Unavailable(unavailable=f"it computes in {outside}, outside torch")
    if arm.arm.kind == "baseline":  # a static network requires, and accounts for, what it executes
        return Work(executed, executed, executed, executed, None, columns)
    columns |= {"path_label": facts.path_label, "batch_paths": facts.batch_paths}
    if arm.arm.kind == "strategy" and facts.answer is not None:
        columns["phases"] = _phases(arm)
        if not arm.cell.static_twin:  # that one is another function of the input, by intention
            got = counted.answer if p.parts.engine(arm.arm.engine).as_written else answers(arm.call, arm.batches)
            columns |= {"max_error": output_error(got, facts.answer), "tolerance": facts.tolerance}
    return Work(executed, facts.required_region, facts.required_total, facts.accounted, facts.accounted_rule, columns)


def _of_graph(p: Prepared, source: Source, arm: RunningArm, call: GraphCall, facts: Facts) -> Work:
    """The same of a network that is one graph, as far as it shows what is inside."""
    inside = Unavailable(unavailable="a graph is one call; what happens inside it is counted for FLOPs only")
    columns: dict[str, Any] = {
        "bytes_touched": inside,
        "operator_calls": inside,
        "params": count_params(arm.as_written),
        "energy": measure_energy(lambda: _stream(arm), arm.device, items=p.items, idle_w=p.idle_w),
        "memory": Memory(peak_bytes=_peak_bytes(p, source, arm)),
        "host_syncs": inside,
        "kernel_launches": inside,
    }
    executed = _executed(p, source, arm, call)
    if arm.arm.kind == "baseline":
        return Work(executed, executed, executed, executed, None, columns)
    columns |= {"path_label": facts.path_label, "batch_paths": facts.batch_paths}
    if facts.answer is not None:
        columns |= {
            "max_error": output_error(answers(call, arm.batches), facts.answer),
            "tolerance": max(facts.tolerance, GRAPH_TOLERANCE),
        }
    return Work(executed, facts.required_region, facts.required_total, facts.accounted, facts.accounted_rule, columns)


def _executed(p: Prepared, source: Source, arm: RunningArm, call: GraphCall) -> Measured:
    """FLOPs per item that the graph really executed; a static one does the same for every batch of a size."""
    static = arm.arm.kind == "baseline"
    batches = arm.batches[:1] if static else arm.batches
    key = ("graph", arm.arm.baseline, None if static else source.decisions.label, arm.arm.live, arm.cell.batch_size)
    if key not in p.counted:
        try:
            total = executed_flops(call.session.graph, [call.feeds(start, x) for start, x in batches])
            p.counted[key] = total / sum(len(x) for _, x in batches)
        except (DynbenchError, ValueError) as e:
            p.counted[key] = Unavailable(unavailable=str(e))
    found: Measured = p.counted[key]
    return found


@dataclass(frozen=True)
class Counted:
    """Work that was executed.

    Attributes:
        answer: of the network as it was written.
        counter: what was executed for it.
        items: for how many.
    """

    answer: list[Tensor]
    counter: FlopCounter
    items: int


def _count(p: Prepared, source: Source, arm: RunningArm) -> Counted:
    """What was executed, by the network as it was written: once where neither decisions nor batch make a difference.

    A static network does the same for every batch of a size: one is counted.
    """
    batch_size, strategy = arm.cell.batch_size, arm.strategy
    assert isinstance(arm.call, Call)
    static = arm.cell.static_twin or arm.arm.kind == "baseline" or (strategy.fixed_work and source.sweep)
    one_by_one = strategy.item_by_item and not p.batch_scope
    key = (
        arm.arm.baseline,
        arm.arm.strategy,  # a live control does the work of the strategy it repeats
        None if static else source.decisions.label,
        None if one_by_one else batch_size,
    )
    if key in p.counted:
        found: Counted = p.counted[key]
        return found
    batches = arm.batches
    if static and len(batches[-1][1]) == batch_size:
        batches = batches[:1]
    counter = FlopCounter()
    with counter:
        answer = answers(arm.call.profiled(counter, arm.as_written), batches)
    counted = Counted(answer, counter, sum(len(x) for _, x in batches))
    again = static or one_by_one or strategy.fixed_work or arm.arm.strategy == control_strategy(p)
    if again or len(p.parts.engines) > 1:
        p.counted[key] = counted
    return counted


def _peak_bytes(p: Prepared, source: Source, arm: RunningArm) -> Measured:
    """Of one batch: on a CPU in a fresh process, because this one remembers what others needed."""
    if source.sweep or arm.cell.batch_size < max(p.batch_sizes):
        return Unavailable(unavailable="measured at the largest batch size, outside the keep-rate sweep, only")
    start, x = arm.batches[0]
    if isinstance(arm.call, GraphCall):
        return Unavailable(unavailable="ONNX Runtime keeps the memory of earlier calls, so one call does not show it")
    if p.device.type != "cpu":
        return peak_bytes(lambda: arm.call(start, x), arm.device)
    return cell_peak_bytes(
        ProbeRequest(
            spec=p.spec,
            options=p.options,
            arm=arm.arm,
            inputs=x,
            trace=arm.call.execution.replay,
            start=start,
            items=p.items,
        )
    )


def _stream(arm: RunningArm) -> None:
    for start, x in arm.batches:
        arm.call(start, x)


def _per_item(total: Measured | int, items: int) -> Measured:
    return total if isinstance(total, Unavailable) else float(total) / items


def _accounted(p: Prepared, trace: Trace) -> tuple[Measured, str | None]:
    found = hooks.of(p.model).accounted_macs(trace, tuple(p.inputs.shape[1:]))
    if found is None:
        return Unavailable(unavailable="the model file does not say what its paper counts"), None
    macs, rule = found
    return 2.0 * macs, rule


def _phases(arm: RunningArm) -> Phases:
    assert isinstance(arm.call, Call)
    timer = PhaseTimer(arm.device)
    call = arm.call.profiled(timer)
    with timer:
        answers(call, arm.batches)
    return timer.phases()
