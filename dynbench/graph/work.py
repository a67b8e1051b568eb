"""FLOPs that a graph really executed, from ONNX Runtime's own record of what ran on which shapes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from torch import Tensor

from dynbench.graph.compile import Graph
from dynbench.graph.session import Feeds, Session
from dynbench.scratch import scratch

Shapes = list[list[int]]
Attributes = dict[str, Any]


def _convolution(inputs: Shapes, outputs: Shapes, said: Attributes) -> int:
    return 2 * math.prod(outputs[0]) * math.prod(inputs[1][1:])


def _transposed(inputs: Shapes, outputs: Shapes, said: Attributes) -> int:
    return 2 * math.prod(inputs[0]) * math.prod(inputs[1][1:])


def _product(inputs: Shapes, outputs: Shapes, said: Attributes) -> int:
    return 2 * math.prod(outputs[0]) * inputs[0][-1]


def _gemm(inputs: Shapes, outputs: Shapes, said: Attributes) -> int:
    return 2 * math.prod(outputs[0]) * inputs[0][0 if said.get("transA") else 1]


def _lstm(inputs: Shapes, outputs: Shapes, said: Attributes) -> int:
    (steps, n, _), weights, recurrent = inputs[0], inputs[1], inputs[2]
    return 2 * steps * n * (math.prod(weights) + math.prod(recurrent))


FORMULAS: dict[str, Callable[[Shapes, Shapes, Attributes], int]] = {
    "Conv": _convolution,
    "ConvTranspose": _transposed,
    "MatMul": _product,
    "Gemm": _gemm,
    "LSTM": _lstm,
}
UNKNOWN = frozenset({"Einsum", "GRU", "RNN", "Det", "Loop", "Scan"})  # compute, but have no formula here


def executed_flops(graph: Graph, feeds: list[Feeds]) -> int:
    """FLOPs (1 MAC = 2 FLOPs) of all these batches (`Session.feeds`), counted on the CPU.

    Raises:
        ValueError: an operator that computes and has no formula.
    """
    return sum(executed_flops_each(graph, feeds))


def executed_flops_each(graph: Graph, feeds: list[Feeds]) -> list[int]:
    """The same, of each batch.

    Raises:
        ValueError: as `executed_flops`.
    """
    said = {n.name: n for n in _all_nodes(graph.model.graph)}
    with scratch("graph") as folder:
        session = Session(graph, fast=False, profile=str(folder / "profile"))
        for batch in feeds:
            session.answer({name: t.cpu().numpy() if isinstance(t, Tensor) else t for name, t in batch.items()})
        record = Path(session.session.end_profiling()).read_text(encoding="utf-8")
    totals: list[int] = []
    batch_total = 0
    for event in _events(record):
        if event.get("cat") == "Session" and event["name"] == _END:
            totals.append(batch_total)
            batch_total = 0
        if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time"):
            continue
        kind, args = event["args"]["op_name"], event["args"]
        if kind in UNKNOWN:
            raise ValueError(f"operator {kind} has no FLOP formula")
        if kind in FORMULAS:
            node = said.get(event["name"].removesuffix("_kernel_time"))
            attributes = {} if node is None else {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            batch_total += FORMULAS[kind](
                _sizes(args["input_type_shape"]), _sizes(args["output_type_shape"]), attributes
            )
    assert len(totals) == len(feeds) and batch_total == 0, "the record has another number of batches than ran"
    return totals


_END = "model_run"  # the event at the end of each batch
_COUNTED = tuple(f'"{kind}"' for kind in (*FORMULAS, *UNKNOWN, _END))


def _events(record: str) -> list[dict[str, Any]]:
    """Of a record, those that count; most are of small operators, and reading them takes longer than running them."""
    lines = [line.rstrip(",") for line in record.splitlines() if any(kind in line for kind in _COUNTED)]
    try:
        return [json.loads(line) for line in lines]
    except ValueError:  # not an event a line, as ONNX Runtime writes it so far
        events: list[dict[str, Any]] = json.loads(record)
        return events


def _sizes(typed: list[dict[str, list[int]]]) -> Shapes:
    return [sizes for of in typed for sizes in of.values()]


def _all_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    found = []
    for node in graph.node:
        found.append(node)
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                found += _all_nodes(attribute.g)
    return found
