"""A dynamic network, traced as one flat ONNX graph; what is lazy in it is still marked (see `operators`)."""

from __future__ import annotations

import contextlib
import io
import warnings
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from dynbench.graph.operators import fixed_causality, leaves, whole_cells
from dynbench.graph.strategy import CannotTrace, InGraph, Key, Tracing
from dynbench.graph.symbolics import OPSET, register_symbolics


@dataclass(frozen=True)
class DecisionOutput:
    """How the decisions at one point come out of a graph, and go in.

    Attributes:
        key: the point's name, and the sizes of the coordinates below the sample.
        value: name of the output with what was decided.
        ids: name of the output with whom it was decided for; or the ids themselves, where they are always the same.
        dtype: of a decision.
        shape: of one.
        table: name of the input with decisions to use instead; None: learned.
    """

    key: Key
    value: str
    ids: str | tuple[int, ...]
    dtype: torch.dtype
    shape: tuple[int, ...]
    table: str | None


@dataclass
class Flat:
    """A traced network.

    Attributes:
        model: ONNX, lazy choices marked.
        inputs: names of the network's own inputs.
        answers: names of its own outputs.
        decisions: how its decisions come out, and go in.
    """

    model: onnx.ModelProto
    inputs: list[str]
    answers: list[str]
    decisions: list[DecisionOutput]


class _Whole(nn.Module):
    """A model under a strategy, as a plain module of tensors."""

    def __init__(self, model: nn.Module, strategy: InGraph, keys: list[Key]) -> None:
        super().__init__()
        self.model, self.strategy, self.keys = model, strategy, keys
        self.ran: Tracing | None = None
        self.answers = 0

    def forward(self, x: Tensor, *tables: Tensor) -> tuple[Tensor, ...]:
        """The answer's tensors, then for each key of decisions values and ids."""
        self.ran = Tracing(self.strategy, dict(zip(self.keys, tables, strict=True)) if tables else None)
        answer = leaves(self.ran.run(self.model, x))
        self.answers = len(answer)
        decided = []
        for events in self.ran.events.values():
            alone = len(events) == 1
            decided += [events[0].value if alone else torch.cat([e.value for e in events])]
            decided += [events[0].ids if alone else torch.cat([e.ids for e in events])]
        return (*answer, *decided)


@torch.no_grad()
def trace(model: nn.Module, example: Tensor, strategy: InGraph, *, replay: bool) -> Flat:
    """Traces a model under a strategy.

    Args:
        model: in evaluation mode, on the CPU.
        example: inputs; of any number of items, of a strategy for one item one.
        strategy: for any batch or for one item.
        replay: decisions are inputs of the graph; the model's own are still computed and come out.

    Raises:
        CannotTrace: the exporter knows no way to write an operator down, or a point cannot be a graph.
    """
    register_symbolics()
    eager = Tracing(strategy)
    eager.run(model, example)  # which points are met, at which coordinates
    keys = list(eager.events) if replay else []
    tables = [_table(key, eager, example.shape[0]) for key in keys]
    whole = _Whole(model, strategy, keys).eval()  # or the exporter would leave the model in training mode
    single = strategy.name == "one_item"
    inputs = ["x", *(f"decided:{_label(k)}" for k in keys)]
    buffer = io.BytesIO()
    names: list[str] = [f"answer{i}" for i in range(64)]
    try:
        with warnings.catch_warnings(), fixed_causality(), whole_cells(model) if single else contextlib.nullcontext():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                whole, (example, *tables), buffer, dynamo=False, opset_version=OPSET, input_names=inputs,
                custom_opsets={"dynbench": 1},
                dynamic_axes={} if single else {name: {0: f"items of {name}"} for name in inputs},
            )  # fmt: skip
    except CannotTrace:
        raise
    except Exception as e:
        raise CannotTrace(_reason(e)) from e
    onnx_model = onnx.load_from_string(buffer.getvalue())
    assert whole.ran is not None
    outputs = [o.name for o in onnx_model.graph.output]
    decisions = []
    for i, (key, events) in enumerate(whole.ran.events.items()):
        value, ids = outputs[whole.answers + 2 * i : whole.answers + 2 * i + 2]
        known = [e.known for e in events]
        fixed = single and all(k is not None for k in known) and len(known) > 0
        constant = tuple(i for k in known if k is not None for i in k) if fixed else ids
        like = events[0].value
        table = f"decided:{_label(key)}" if replay else None
        decisions.append(DecisionOutput(key, value, constant, like.dtype, tuple(map(int, like.shape[1:])), table))
    return Flat(onnx_model, ["x"], outputs[: whole.answers], decisions)


class _Static(nn.Module):
    """A static network as a plain module of tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """The answer's tensors."""
        return tuple(leaves(self.model(x)))


@torch.no_grad()
def trace_static(model: nn.Module, example: Tensor) -> Flat:
    """Traces a static network, or a dynamic one's static twin.

    Raises:
        CannotTrace: the exporter knows no way to write an operator down.
    """
    register_symbolics()
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings(), fixed_causality():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _Static(model).eval(),
                (example,),
                buffer,
                dynamo=False,
                opset_version=OPSET,
                input_names=["x"],
                dynamic_axes={"x": {0: "items"}},
            )
    except Exception as e:
        raise CannotTrace(_reason(e)) from e
    found = onnx.load_from_string(buffer.getvalue())
    return Flat(found, ["x"], [o.name for o in found.graph.output], [])


def _label(key: Key) -> str:
    name, sizes = key
    return name + "".join(f"/{n}" for n in sizes)


def _table(key: Key, eager: Tracing, items: int) -> Tensor:
    like = eager.events[key][0].value
    size = items
    for n in key[1]:
        size *= n
    return torch.zeros((size, *like.shape[1:]), dtype=like.dtype)


def _reason(e: Exception) -> str:
    text = str(e).strip().splitlines()
    return f"{type(e).__name__}: {text[0] if text else ''}"
