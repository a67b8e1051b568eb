"""What a model costs on paper, counted from its modules: no weights are multiplied."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from dynbench.dynamic import Choice, Exits, Loop, Pick, Program, Route, Skip, Weights, outside
from dynbench.dynamic.items import map_items, row
from dynbench.meters.flops import FlopCounter
from dynbench.meters.params import count_params
from dynbench.meters.required import PartCosts, Visit, evaluating
from dynbench.store.schema import Unavailable


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
        `required_macs`: with its decisions, gates included; only where these (Pick, Choice) always ask for as much.
        A count is `{"unavailable": reason}` where an operator has no formula.
    """
    one = [row(part, 0) for part in example]
    with evaluating(model):
        try:
            fake = FakeTensorMode(allow_non_fake_inputs=True)
            inputs = [map_items(fake.from_tensor, part) for part in one]
            with fake:
                return _counted(model, inputs)
        except Exception:  # noqa: BLE001  (a model may look at values, in its own ways; then it is run in earnest)
            return _counted(model, one)


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
    return bool(parts.points) and all(isinstance(p, (Choice, Pick)) for p in parts.points.values())


def _is_dense(visit: Visit, parts: PartCosts) -> bool:
    """Whether the visit lies in no gate and in nothing that stands for a skipped body."""
    return not any(
        v.phase == "decide" or (v.phase == "body" and v.index == 0 and isinstance(parts.points[str(v.point)], Skip))
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
        if isinstance(point, Exits)
        for k in range(point.max_steps)
    ]


def _decision_points(parts: PartCosts) -> list[dict[str, Any]]:
    table = []
    for name, point in parts.points.items():
        times = sum(v.items for v in parts.visits if v.point == name and v.phase == "body" and v.index in (0, None))
        region, gate = _macs(parts, ("body",), name), _macs(parts, ("decide",), name)
        if isinstance(point, (Route, Program)):
            region /= len(point.experts)
        by_code = parts.macs_by_code(name) if isinstance(point, Weights) else None
        if by_code is not None:
            region = times * sum(by_code) / len(by_code)
        asked = times * (point.max_steps - 1) if isinstance(point, Loop) else times
        table.append(
            {
                "name": name,
                "kind": type(point).__name__,
                "region_macs": round(region / max(times, 1)),
                "gate_macs": round(gate / max(asked, 1)),
            }
        )
    return table
