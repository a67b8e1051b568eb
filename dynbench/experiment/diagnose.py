"""The untimed passes of a cell: is the answer right, how much work was done, where does the time go."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynbench import hooks
from dynbench.analysis.rounding import by_rounding
from dynbench.counting.flops import FlopCounter
from dynbench.counting.params import count_params
from dynbench.dynamic import Execution, Trace, points
from dynbench.dynamic.items import first
from dynbench.engines import RegionReport, compiled_regions
from dynbench.errors import DynbenchError, UserError
from dynbench.experiment.alike import decided_alike, flipped, joined, same_rows
from dynbench.experiment.arms import Call, GraphCall, RunningArm
from dynbench.experiment.build import Prepared, Source
from dynbench.experiment.explain import leaves_out_bodies
from dynbench.experiment.graphs import TOLERANCE as GRAPH_TOLERANCE
from dynbench.experiment.memory import ProbeRequest, cell_peak_bytes
from dynbench.experiment.oracle import OPAQUE_TOLERANCE, Oracle, Reference, answers, left_out, output_error
from dynbench.experiment.plan import control_strategy
from dynbench.experiment.trust import Finding
from dynbench.graph import executed_flops
from dynbench.meters.energy import measure_energy
from dynbench.meters.memory import peak_bytes
from dynbench.meters.phases import PhaseTimer
from dynbench.meters.required import PartCosts, Required
from dynbench.meters.syncs import count_syncs
from dynbench.store.schema import Arm, Compiled, GraphBreak, Memory, Phases, Warning_
from dynbench.strategies import PerSample
from dynbench.unavailable import Measured, Unavailable

INSIDE = Unavailable(unavailable="a graph is one call; what happens inside it is counted for FLOPs only")
UNSEEN = Unavailable(unavailable="an opaque network does not show which work its decisions ask for")


@dataclass
class Facts:
    """What all strategies of a group share: the right answer, and the work that the decisions ask for, per item."""

    reference: Reference  # of per_sample, same decisions; in the keep-rate sweep without an answer: not checked
    finding: Finding | None  # why the network has no right answer
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
        if p.spec.model_kind == "opaque":  # what is found about it is asked for with its arm
            return cls(Reference(None), None, UNSEEN, UNSEEN, UNSEEN, None, "", [])
        reference = Reference(None)
        if not source.sweep:
            key = (source.decisions.label, batch_size if p.batch_scope else 0)
            if key not in p.right_answers:
                p.right_answers[key] = _right_answer(p, source, batch_size)
            reference = p.right_answers[key]
        trace = p.trace(source, batch_size)
        batches = p.batches(batch_size)
        required, depths, label = _asked_for(p, trace, batches[0][1])
        accounted, rule = _accounted(p, trace)
        return cls(
            reference=reference,
            finding=_finding(p),
            required_region=_per_item(required.region, p.items),
            required_total=_per_item(required.total, p.items),
            accounted=accounted,
            accounted_rule=rule,
            path_label=label,
            batch_paths=[float(depths[i : i + len(x)].mean()) for i, x in batches],
        )


def _right_answer(p: Prepared, source: Source, batch_size: int) -> Reference:
    """That of `per_sample`; what goes wrong costs the comparison, not the group."""
    try:
        oracle = Oracle(p.model, p.batches(batch_size), p.items)
        return oracle.reference(Execution(PerSample(), replay=p.trace(source, batch_size)))
    except Exception as e:  # noqa: BLE001 (a user's model may raise anything)
        why = str(e) if isinstance(e, UserError) else f"per_sample raised {type(e).__name__}: {e}"
        return Reference(None, note=why.splitlines()[0])


def _finding(p: Prepared, opaque: str | None = None) -> Finding | None:
    """About the workload's network, or an opaque one."""
    try:
        return p.finding if opaque is None else p.finding_about(opaque)
    except Exception:  # noqa: BLE001 (a user's model may raise anything; then no answer is compared, which is said)
        return None


def _asked_for(p: Prepared, trace: Trace, x: Any) -> tuple[Required, np.ndarray, str]:
    """The FLOPs that a trace requires, and how deep the paths are; unavailable, where the probing pass raises."""
    try:
        costs = PartCosts(p.model, x)
        return costs.required(trace), *costs.path_depths(trace)
    except Exception as e:  # noqa: BLE001 (a user's model may raise anything)
        reason = f"the pass over a single item raised {type(e).__name__}: {e}".splitlines()[0]
        why = Unavailable(unavailable=reason)
        return Required(why, why), np.zeros(p.items), ""


@dataclass
class Work:
    """FLOPs per item of a cell, and the other columns that untimed passes give."""

    executed: Measured
    required_region: Measured
    required_total: Measured
    accounted: Measured
    accounted_rule: str | None
    columns: dict[str, Any]
    warnings: list[Warning_] = field(default_factory=list)


def diagnose(p: Prepared, source: Source, arm: RunningArm, facts: Facts) -> Work:
    """Measures all that takes no time sample."""
    if arm.arm.only_explains:
        return _of_control(p, source, arm, facts)
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
    if regions := compiled_regions(arm.model):
        columns["compiled"] = compiled_record(regions)
    columns["host_syncs"], columns["kernel_launches"] = count_syncs(lambda: _stream(arm), arm.device)
    if outside := hooks.of(arm.as_written).outside_torch:  # a baseline that torch's operators do not show
        executed = columns["bytes_touched"] = Unavailable(unavailable=f"it computes in {outside}, outside torch")
    if arm.arm.kind == "baseline":  # a static network requires, and accounts for, what it executes
        return Work(executed, executed, executed, executed, None, columns)
    if arm.arm.kind == "opaque":
        columns |= _compared(p, arm, counted.answer, facts) | _distrusted(arm, _finding(p, arm.arm.baseline))
        return Work(executed, UNSEEN, UNSEEN, UNSEEN, None, columns)
    columns |= {"path_label": facts.path_label, "batch_paths": facts.batch_paths}
    if arm.arm.kind == "strategy" and not source.sweep:
        columns["phases"] = _phases(arm)
        if not arm.cell.static_twin:  # that one is another function of the input, by intention
            written = p.parts.engine(arm.arm.engine).as_written
            got = counted.answer if written else answers(arm.call, arm.batches, left_out(p.model, p.inputs))
            columns |= _checked(arm, got, facts)
    return _work(executed, arm, facts, columns)


def _of_control(p: Prepared, source: Source, arm: RunningArm, facts: Facts) -> Work:
    """What an arm executed that only explains another one, and nothing else: no answer of it is a result."""
    calls: Measured = INSIDE
    if isinstance(arm.call, GraphCall):
        executed = _executed(p, source, arm, arm.call)
    else:
        counted = _count(p, source, arm)
        executed = _per_item(counted.counter.flops, counted.items)
        calls = counted.counter.operator_calls * p.items / counted.items
    accounted = Unavailable(unavailable="a paper counts no controls")
    columns: dict[str, Any] = {
        "operator_calls": calls,
        "energy": measure_energy(lambda: _stream(arm), arm.device, items=p.items, idle_w=p.idle_w),
    }
    if arm.arm.baseline is not None:
        return Work(executed, executed, executed, executed, None, columns)
    if leaves_out_bodies(executed, facts.required_region):
        columns |= {"status": "refused", "reason": "it leaves out bodies too, whose answers nothing follows from"}
    return Work(executed, facts.required_region, facts.required_total, accounted, None, columns)


def compiled_record(regions: list[RegionReport]) -> Compiled:
    """What engine 'compile' made of a network, in the terms of a cell."""
    return Compiled(
        regions=len(regions),
        compilations=sum(r.compilations for r in regions),
        most_compilations=max(r.compilations for r in regions),
        graph_breaks=[GraphBreak(region=r.name, reason=reason) for r in regions for reason in r.breaks],
    )


def _work(executed: Measured, arm: RunningArm, facts: Facts, columns: dict[str, Any]) -> Work:
    """Of an arm that runs the workload's own network, with the doubts about its answers."""
    return Work(
        executed,
        facts.required_region,
        facts.required_total,
        facts.accounted,
        facts.accounted_rule,
        columns | _distrusted(arm, facts.finding),
        _doubts(arm, facts.reference),
    )


def _checked(arm: RunningArm, answer: list[Tensor], facts: Facts, least: float = 0.0) -> dict[str, Any]:
    """An answer against the right one, with a tolerance of at least so much: the cell fails where they differ."""
    reference = facts.reference
    if reference.answer is None:
        return {}
    error, tolerance = output_error(answer, reference.answer), max(reference.tolerance, least)
    known = math.isfinite(error)
    columns: dict[str, Any] = {"max_error": error if known else None, "tolerance": tolerance}
    if error <= tolerance:
        return columns
    right = "the dynamic network" if arm.arm.kind == "opaque" else "per_sample"
    by = (
        f"by {error:.2g} of its largest value, tolerance {tolerance:.2g}" if known else "in its shape, or by NaN or inf"
    )
    return columns | {"status": "failed", "reason": f"wrong answer: differs from {right} in {reference.type} {by}"}


def _distrusted(arm: RunningArm, finding: Finding | None) -> dict[str, Any]:
    """The cell fails where its network has no right answer: for any batch, or for one of several items."""
    if finding is None or arm.cell.static_twin:
        return {}
    if finding.name == "depends on the batch" and (arm.strategy.item_by_item or arm.cell.batch_size == 1):
        return {}
    return {"status": "failed", "reason": str(finding)}


def _doubts(arm: RunningArm, reference: Reference) -> list[Warning_]:
    """Warnings where the answers were not compared in float64, or hold NaN."""
    if arm.arm.kind != "strategy" or arm.cell.static_twin:
        return []
    doubts = _without_number(reference)
    return doubts if reference.note is None else [_coarsely_compared(reference), *doubts]


def _without_number(reference: Reference) -> list[Warning_]:
    answer = reference.answer or []
    real = [t for t in answer if t.is_floating_point() or t.is_complex()]
    bad = [t.isnan().reshape(len(t), -1).any(1) for t in real if t.numel()]
    if not any(bool(rows.any()) for rows in bad):
        return []
    share = max(float(rows.double().mean()) for rows in bad)
    text = f"the right answers to {share:.0%} of the items hold NaN, which equals any other NaN"
    return [Warning_(id="DB-CHECK-04", text=text, remedy="look for an overflow or a division by 0 in the model")]


def _coarsely_compared(reference: Reference) -> Warning_:
    if reference.answer is None:
        text = f"the answers were not compared: {reference.note}"
        return Warning_(id="DB-CHECK-02", text=text, remedy="`dynbench verify` shows what raises")
    text = f"the answers were compared in {reference.type}: {reference.note}"
    remedy = "none is needed; a model that can be copied and follows `.double()` is compared more sharply, in float64"
    return Warning_(id="DB-CHECK-01", text=text, remedy=remedy)


def _compared(p: Prepared, arm: RunningArm, answer: list[Tensor], facts: Facts) -> dict[str, Any]:
    """How an opaque network answers, where it is to answer as the workload's model does with learned decisions.

    Of several tensors the first ones are compared: authors' code returns its decisions beside the answer.

    Raises:
        UserError: the answers have other shapes.
    """
    asked = next(o.same_answer_as for o in p.spec.opaque_networks if o.name == arm.arm.baseline)
    right = facts.reference.answer
    if asked is None or right is None:
        return {}
    ours, theirs = ([tuple(t.shape) for t in answers] for answers in (right, answer[: len(right)]))
    if ours != theirs:
        raise UserError(f"answers {theirs}, the dynamic network answers {ours}")
    return _checked(arm, answer[: len(right)], facts, OPAQUE_TOLERANCE)


def _of_graph(p: Prepared, source: Source, arm: RunningArm, call: GraphCall, facts: Facts) -> Work:
    """The same of a network that is one graph, as far as it shows what is inside."""
    columns: dict[str, Any] = {
        "bytes_touched": INSIDE,
        "operator_calls": INSIDE,
        "params": count_params(arm.as_written),
        "energy": measure_energy(lambda: _stream(arm), arm.device, items=p.items, idle_w=p.idle_w),
        "memory": Memory(peak_bytes=_peak_bytes(p, source, arm)),
        "host_syncs": INSIDE,
        "kernel_launches": INSIDE,
    }
    executed = _executed(p, source, arm, call)
    if arm.arm.kind == "baseline":
        return Work(executed, executed, executed, executed, None, columns)
    columns |= {"path_label": facts.path_label, "batch_paths": facts.batch_paths}
    work = _work(executed, arm, facts, columns)
    if source.sweep:
        return work
    if call.replay is None and not p.batch_scope:
        checked, doubts = _checked_alike(p, source, arm, call, facts)
        work.warnings += doubts
    else:
        checked = _checked(arm, answers(call, arm.batches), facts, GRAPH_TOLERANCE)
    work.columns = checked | work.columns  # that there is no right answer is the first reason
    return work


def _checked_alike(
    p: Prepared, source: Source, arm: RunningArm, call: GraphCall, facts: Facts
) -> tuple[dict[str, Any], list[Warning_]]:
    """The answers of a graph that decides by itself, of those items about which it decides as `per_sample` does.

    What is timed does not say what it decided; an item that it answers otherwise than the graph that does counts as one
    about which they decide otherwise. The cell fails where more decisions differ than equal scores explain, or no item
    is decided alike.
    """
    reference = facts.reference
    if reference.answer is None:
        return {}, []
    passes = [call.decided(start, x) for start, x in arm.batches]
    said, right = joined([trace for _, trace in passes]), p.trace(source, arm.cell.batch_size)
    told = [torch.cat(parts) for parts in zip(*(answer for answer, _ in passes), strict=True)]
    got, alike = answers(call, arm.batches), decided_alike(said, right, GRAPH_TOLERANCE)
    if any(len(t) != p.items for t in (*got, *reference.answer)):
        return _checked(arm, got, facts, GRAPH_TOLERANCE), []
    pairs = [(_numbers(a), _numbers(b)) for a, b in zip(got, told, strict=True)]
    otherwise = alike & ~torch.stack([same_rows(a, b, GRAPH_TOLERANCE).cpu() for a, b in pairs]).all(0)
    if bool((alike & ~otherwise).all()):
        return _checked(arm, got, facts, GRAPH_TOLERANCE), []
    if "status" in (columns := _checked_some(arm, told, facts, alike)):
        return columns, []
    differ, total = flipped(said, right, GRAPH_TOLERANCE, points(p.model))
    differ += int(otherwise.sum())
    alike &= ~otherwise
    shown = f"{differ} of {total} decisions ({differ / max(total, 1):.2%})"
    if not by_rounding(differ, total) or not bool(alike.any()):
        reason = f"wrong decisions: the graph makes {shown} otherwise than per_sample"
        return {"status": "failed", "reason": reason}, []
    columns = _checked_some(arm, got, facts, alike)
    text = (
        f"the graph made {shown} otherwise than per_sample, as scores do that are equal up to rounding; the answers "
        f"to the {int(alike.sum())} of {p.items} items that were decided alike were compared"
    )
    return columns, [Warning_(id="DB-CHECK-03", text=text, remedy="none is needed where the share is small")]


def _checked_some(arm: RunningArm, answer: list[Tensor], facts: Facts, which: Tensor) -> dict[str, Any]:
    """As `_checked`, of some of the items."""
    right = facts.reference.answer
    if right is None or not bool(which.any()):
        return {}
    some = replace(facts.reference, answer=[t[which.to(t.device)] for t in right])
    return _checked(arm, [t[which.to(t.device)] for t in answer], replace(facts, reference=some), GRAPH_TOLERANCE)


def _numbers(t: Tensor) -> Tensor:
    """With 0 for NaN, which equals nothing; whether NaN is right is compared elsewhere."""
    return torch.where(t.isnan(), 0, t) if t.is_floating_point() else t


def _executed(p: Prepared, source: Source, arm: RunningArm, call: GraphCall) -> Measured:
    """FLOPs per item that the graph really executed; a static one does the same for every batch of a size."""
    static = _is_static(arm.arm)
    batches = arm.batches[:1] if static else arm.batches
    decisions = None if static else source.decisions.label
    size = arm.arm.micro_batch or arm.cell.batch_size
    key = ("graph", arm.arm.baseline, decisions, arm.arm.live, arm.arm.without, size)
    if key not in p.counted:
        try:
            total = executed_flops(call.session.graph, [f for start, x in batches for f in call.feeds(start, x)])
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
    static = arm.cell.static_twin or _is_static(arm.arm) or (strategy.fixed_work and source.sweep)
    one_by_one = strategy.item_by_item and not p.batch_scope
    key = (
        arm.arm.baseline,
        arm.arm.form,
        arm.arm.strategy,  # a live control does the work of the strategy it repeats
        arm.arm.without,
        None if static else source.decisions.label,
        None if one_by_one else batch_size,
    )
    if key in p.counted:
        found: Counted = p.counted[key]
        return found
    batches = arm.batches
    if static and len(batches[-1][1]) == batch_size:
        batches = batches[:1]
    without = left_out(arm.as_written if arm.arm.kind == "opaque" else p.model, p.inputs)
    counter = FlopCounter()
    with counter:
        answer = answers(arm.call.profiled(counter, arm.as_written), batches, without)
    counted = Counted(answer, counter, sum(len(x) for _, x in batches))
    again = static or one_by_one or strategy.fixed_work
    again = again or (arm.arm.strategy == control_strategy(p) and arm.arm.without is None)
    if again or len(p.parts.engines) > 1:
        p.counted[key] = counted
    return counted


def _is_static(arm: Arm) -> bool:
    return arm.baseline is not None and arm.kind != "opaque"


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
    found = hooks.of(p.model).accounted_macs(trace, tuple(first(p.inputs).shape[1:]))
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
