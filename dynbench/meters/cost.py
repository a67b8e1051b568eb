"""What a model costs on paper, counted from its modules: no weights are multiplied."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn.parameter import is_lazy

from dynbench.counting.flops import FlopCounter
from dynbench.counting.params import count_params
from dynbench.dynamic import outside
from dynbench.dynamic.items import map_items, row
from dynbench.meters.required import PartCosts, Visit, evaluating
from dynbench.unavailable import Unavailable


def cost(model: nn.Module, *example: Any) -> dict[str, Any]:
    """Parameters and multiply-accumulates (MACs) of a model for one sample.

    Args:
        model: its mode is put back afterwards.
        *example: the model's inputs, states of tensors; of each the first sample is used, and only shapes matter.

    Returns:
        `params`: of the whole model, gates included.
        `macs`, `flops`: of the dense network, the static twin without gates; 1 MAC = 2 FLOPs.
        `exits`: for each exit of each Exits, the MACs of a sample that leaves there: everything outside the Exits,
            and its stages and heads so far. Bodies of nested points are run; gates and policies are not counted.
        `decision_points`: `name`, `kind`, `region_macs` (Skip: its body; Route, Program: one module, on average;
            Loop, Exits: all steps; Weights of known codes: the layer made for one, on average) and `gate_macs` (gate,
            router or policy), for one item of that point (a token, say), one visit.
        `required_macs`: with its decisions, gates included; only where these always ask for as much (Pick, Choice).
        A count is `{"unavailable": reason}` where an operator has no formula.
    """
    one = [row(part, 0) for part in example]
    with evaluating(model), _unlogged():
        if any(map(is_lazy, model.parameters())):  # its first pass makes its weights, which must be real ones
            return _counted(model, one)
        try:
            fake = FakeTensorMode(allow_non_fake_inputs=True)
            inputs = [map_items(fake.from_tensor, part) for part in one]
            with fake:
                return _counted(model, inputs)
        except Exception:  # noqa: BLE001  (a model may look at values: then it is really run)
            return _counted(model, one)


@contextmanager
def _unlogged() -> Iterator[None]:
    """Inside, torch does not log, with a traceback, what fails on tensors without memory: it is said in a sentence."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _counted(model: nn.Module, inputs: list[Any]) -> dict[str, Any]:
    with torch.no_grad(), outside(), FlopCounter() as dense:
        model(*inputs)
    flops, parts = dense.flops, PartCosts(model, *inputs)
    known = not parts.uncounted and not isinstance(flops, Unavailable)
    return {
        "params": count_params(model),
        "macs": flops.model_dump() if isinstance(flops, Unavailable) else flops // 2,
        "flops": flops.model_dump() if isinstance(flops, Unavailable) else flops,
        "exits": _exits(parts) if known else [],
        "decision_points": _decision_points(parts) if known else [],
        **({"required_macs": sum(parts.flops.values()) // 2} if known and _is_fixed(parts) else {}),
    }


def _is_fixed(parts: PartCosts) -> bool:
    return bool(parts.points) and all(point.fixed_work for point in parts.points.values())


def _is_dense(visit: Visit, parts: PartCosts) -> bool:
    """Whether the static twin runs the visit: it lies in no gate and in no body that the twin leaves out."""
    return not any(
        v.phase == "decide" or (v.phase == "body" and not parts.points[str(v.point)].in_static_twin(v.index or 0))
        for v in visit.ancestors()
    )


def _macs(parts: PartCosts, phases: tuple[str, ...], point: str, upto: int | None = None) -> float:
    """MACs of one sample inside a point's parts of these phases, up to a step."""
    dense = "decide" not in phases
    return sum(
        flops / 2
        for visit, flops in parts.flops.items()
        if visit is not None
        and (not dense or _is_dense(visit, parts))
        and any(
            v.phase in phases and v.point == point and (upto is None or (v.index or 0) <= upto)
            for v in visit.ancestors()
        )
    )


def _exits(parts: PartCosts) -> list[int]:
    total = sum(flops / 2 for v, flops in parts.flops.items() if v is None or _is_dense(v, parts))
    return [
        round(total - _macs(parts, ("body", "head"), name) + _macs(parts, ("body", "head"), name, k))
        for name, point in parts.points.items()
        for k in range(point.exits)
    ]


def _decision_points(parts: PartCosts) -> list[dict[str, Any]]:
    table = []
    for name, point in parts.points.items():
        times = sum(v.items for v in parts.visits if v.point == name and v.phase == "body" and v.index in (0, None))
        region, gate = point.per_visit(_macs(parts, ("body",), name), _macs(parts, ("decide",), name))
        by_code = parts.macs_by_code(name)
        if by_code is not None:
            region = times * sum(by_code) / len(by_code)
        table.append(
            {
                "name": name,
                "kind": type(point).__name__,
                "region_macs": round(region / max(times, 1)),
                "gate_macs": round(gate / max(times, 1)),
            }
        )
    return table
