"""The untimed passes of a cell: is the answer right, how much work was done, where does the time go."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dynbench.devices.base import Device
from dynbench.dynamic import Execution, Trace
from dynbench.dynamic.items import tensors
from dynbench.experiment.build import Prepared, Source, module_of
from dynbench.experiment.memory import cell_peak_bytes
from dynbench.meters.energy import measure_energy
from dynbench.meters.flops import FlopCounter
from dynbench.meters.params import count_params
from dynbench.meters.phases import PhaseTimer
from dynbench.meters.required import PartCosts
from dynbench.meters.syncs import count_syncs
from dynbench.store.schema import Memory, Phases, Quantity, Unavailable
from dynbench.strategies import Dense, PerSample

if TYPE_CHECKING:
    from dynbench.experiment.measure import Arm, Batch

ERROR_FACTOR = 4.0  # a strategy may be this much further from float64 than the static net is
ERROR_FLOOR = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def answers(model: nn.Module, batches: list[Batch], execution: Execution | None, items: int) -> list[Tensor]:
    """The answer to the whole stream: its tensors, batch after batch."""
    parts = []
    for start, x in batches:
        y = model(x) if execution is None else execution.run(model, x, start=start, items=items)
        parts.append(list(tensors(y)))
    return [torch.cat(same) for same in zip(*parts, strict=True)]


def output_error(got: list[Tensor], reference: list[Tensor]) -> float:
    """Largest difference from the reference, relative to its largest value; NaN and Inf count as infinite."""
    worst = 0.0
    for a, b in zip(got, reference, strict=True):
        scale = float(b.abs().max().clamp(min=1e-30))
        difference = float((a.to(b.dtype) - b).abs().max()) / scale
        worst = max(worst, difference if difference == difference else float("inf"))
    return worst


@dataclass
class Reference:
    """What a strategy's answer is compared with."""

    answer: list[Tensor]  # per_sample in float64, same decisions
    tolerance: float

    @classmethod
    @torch.inference_mode()
    def of(cls, p: Prepared, source: Source, batch_size: int) -> Reference:
        """Runs `per_sample` in float64; the tolerance follows from the static net's own rounding error."""
        trace = p.trace(source, batch_size)
        precise = copy.deepcopy(p.model).double()
        batches = p.batches(batch_size)
        batches64 = [(i, x.double() if x.is_floating_point() else x) for i, x in batches]
        answer = answers(precise, batches64, Execution(PerSample(), replay=trace), p.items)
        static = output_error(
            answers(p.model, batches, Execution(Dense()), p.items),
            answers(precise, batches64, Execution(Dense()), p.items),
        )
        return cls(answer, ERROR_FACTOR * static + ERROR_FLOOR[p.dtype])


@dataclass
class Work:
    """FLOPs per item of a cell, and the other columns that untimed passes give."""

    executed: Quantity
    required_region: Quantity
    required_total: Quantity
    accounted: Quantity
    accounted_rule: str | None = None
    error: float | None = None
    tolerance: float | None = None
    columns: dict[str, Any] = field(default_factory=dict)


def diagnose(p: Prepared, source: Source, arm: Arm, batches: list[Batch], device: Device, reference: Reference) -> Work:
    """Measures all that takes no time sample."""
    batch_size = int(batches[0][1].shape[0])
    trace = p.trace(source, batch_size)
    counter = FlopCounter()
    with counter:
        answers(arm.model, batches, _again(arm, counter), p.items)
    columns: dict[str, Any] = {
        "bytes_touched": counter.bytes_touched / p.items,
        "operator_calls": float(counter.operator_calls),
        "params": count_params(arm.model),
        "energy": measure_energy(lambda: _stream(arm, batches), device, items=p.items),
        "memory": Memory(peak_bytes=_peak_bytes(p, source, arm, batch_size)),
    }
    columns["host_syncs"], columns["kernel_launches"] = count_syncs(lambda: _stream(arm, batches), device)
    work = Work(_per_item(counter.flops, p), *_static_work(counter, p))
    if arm.execution is not None:
        costs = PartCosts(p.model, batches[0][1])
        required = costs.required(trace)
        work.required_region, work.required_total = _per_item(required.region, p), _per_item(required.total, p)
        work.accounted, work.accounted_rule = _accounted(p, trace)
        depths, label = costs.path_depths(trace)
        columns["path_label"] = label
        columns["batch_paths"] = [float(depths[i : i + len(x)].mean()) for i, x in batches]
        columns["phases"] = _phases(p, arm, batches, device)
        work.error = output_error(answers(arm.model, batches, arm.execution, p.items), reference.answer)
        if arm.cell.name == "dense":  # computes the static twin: another function of the input by intention
            work.error = None
        else:
            work.tolerance = columns["tolerance"] = reference.tolerance
            columns["max_error"] = work.error
    work.columns = columns
    return work


def _again(arm: Arm, profile: Any) -> Execution | None:
    ex = arm.execution
    return None if ex is None else Execution(ex.strategy, replay=ex.replay, profile=profile)


def _peak_bytes(p: Prepared, source: Source, arm: Arm, batch_size: int) -> Quantity:
    if source.sweep:
        return Unavailable(unavailable="not measured in the keep-rate sweep")
    return cell_peak_bytes(p, arm, batch_size)


def _stream(arm: Arm, batches: list[Batch]) -> None:
    for start, x in batches:
        arm.call(start, x)


def _per_item(total: Quantity | int, p: Prepared) -> Quantity:
    return total if isinstance(total, Unavailable) else float(total) / p.items


def _static_work(counter: FlopCounter, p: Prepared) -> tuple[Quantity, Quantity, Quantity]:
    """A static network requires and accounts for what it executes."""
    same = _per_item(counter.flops, p)
    return same, same, same


def _accounted(p: Prepared, trace: Trace) -> tuple[Quantity, str | None]:
    rule = getattr(module_of(p.model), "accounted_macs", None)
    if rule is None:
        return Unavailable(unavailable="the model file does not say what its paper counts"), None
    macs, words = rule(p.model, trace)
    return 2.0 * macs, words


def _phases(p: Prepared, arm: Arm, batches: list[Batch], device: Device) -> Phases:
    timer = PhaseTimer(device)
    again = _again(arm, timer)
    with timer:
        answers(arm.model, batches, again, p.items)
    return timer.phases()
