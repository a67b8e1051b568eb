"""A network, traced as one flat ONNX graph; what is lazy in a dynamic one is still marked (see `operators`)."""

from __future__ import annotations

import contextlib
import io
import math
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace

import onnx
import torch
from torch import Tensor, nn

from dynbench.graph.masked import Masked
from dynbench.graph.names import Names, named_scopes
from dynbench.graph.operators import convolved_items, fixed_causality, leaves, whole_cells
from dynbench.graph.refused import CannotTrace
from dynbench.graph.strategy import Event, InGraph, Key, OneItem, Tracing
from dynbench.graph.symbolics import GIVEN, OPSET, OPSETS, SEEN, free_items, register_symbolics


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


@dataclass(frozen=True)
class Flat:
    """A traced network.

    Attributes:
        model: ONNX, lazy choices marked; where decisions go in, so is each place at which one takes that of its own.
        answers: names of the outputs that are the network's answer.
        decisions: how its decisions come out, and go in.
    """

    model: onnx.ModelProto
    answers: tuple[str, ...]
    decisions: tuple[DecisionOutput, ...] = ()

    def replaying(self) -> Flat:
        """With the decisions that go in."""
        return Flat(_decided(self.model, 1), self.answers, self.decisions)

    def learned(self) -> Flat:
        """With the network's own decisions."""
        model = _decided(self.model, 0)
        tables = {d.table for d in self.decisions}
        for table in [i for i in model.graph.input if i.name in tables]:
            model.graph.input.remove(table)
        return Flat(model, self.answers, tuple(replace(d, table=None) for d in self.decisions))


def _decided(model: onnx.ModelProto, which: int) -> onnx.ModelProto:
    """A copy in which each decision is the network's own (0), or that of the table (1)."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for node in result.graph.node:
        if f"{node.domain}::{node.op_type}" == GIVEN:
            node.CopyFrom(onnx.helper.make_node("Identity", [node.input[which]], node.output, name=node.name))
    return result


class _Static(nn.Module):
    """A static network, or the static twin of a dynamic one, as a plain module of tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.answers = model, 0

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The answer's tensors."""
        _print_nothing()
        with named_scopes(self.model):
            answer = leaves(self.model(*inputs))
        self.answers = len(answer)
        return tuple(answer)


class _Dynamic(nn.Module):
    """A dynamic network under a strategy, as a plain module of tensors.

    Args:
        model: the network.
        strategy: one that can be traced.
        keys: of the points whose decisions are given; none: learned.
        gates: whether what decides is part of it.
    """

    def __init__(self, model: nn.Module, strategy: InGraph | Masked, keys: list[Key], *, gates: bool = True) -> None:
        super().__init__()
        self.model, self.strategy, self.keys, self.answers, self.gates = model, strategy, keys, 0, gates
        self.events: dict[Key, list[Event]] = {}

    def forward(self, x: Tensor, *tables: Tensor) -> tuple[Tensor, ...]:
        """The answer's tensors, then for each key of decisions values and ids."""
        _print_nothing()
        given = dict(zip(self.keys, tables, strict=True)) if tables else None
        tracing = Tracing(self.strategy, given, gates=self.gates)
        with named_scopes(self.model):
            answer = leaves(tracing.run(self.model, x))
        self.answers, self.events = len(answer), tracing.events
        decided = []
        for events in self.events.values():
            decided += [_joined([e.value for e in events]), _joined([e.ids for e in events])]
        return (*answer, *decided)


@torch.no_grad()
def trace(
    model: nn.Module,
    example: Tensor,
    strategy: InGraph | Masked,
    *,
    replay: bool,
    gates: bool = True,
    opset: int = OPSET,
) -> Flat:
    """Traces a dynamic network under a strategy.

    Args:
        model: in evaluation mode, on the CPU.
        example: inputs; of any number of items, of a strategy for one item one.
        strategy: for any batch or for one item.
        replay: decisions are inputs of the graph; the model's own are still computed and come out.
        gates: whether what decides is part of the graph; where it is not, decisions are inputs.
        opset: version of the operators.

    Raises:
        CannotTrace: the exporter knows no way to write an operator down, or a point cannot be a graph.
    """
    single = isinstance(strategy, OneItem)
    with _one_sentence(model, opset):
        eager = Tracing(strategy)
        eager.run(model, example)  # which points are met, at which coordinates
        keys = list(eager.events) if replay else []
        tables = [_table(key, eager.events[key], example.shape[0]) for key in keys]
        whole = _Dynamic(model, strategy, keys, gates=gates)
        inputs = ["x", *(f"decided:{_label(key)}" for key in keys)]
        with whole_cells(model) if single else convolved_items():
            exported = _exported(whole, (example, *tables), inputs, opset, single=single)
    names = Names(exported, inputs)
    answers = [names.output(i, _answer(i)) for i in range(whole.answers)]
    decisions = []
    for i, (key, events) in enumerate(whole.events.items()):
        value = names.output(whole.answers + 2 * i, f"decision:{_label(key)}")
        ids = names.output(whole.answers + 2 * i + 1, f"items:{_label(key)}")
        known = [e.known for e in events if e.known is not None]
        always = tuple(i for k in known for i in k) if single and len(known) == len(events) else ids
        like, table = events[0].value, f"decided:{_label(key)}" if replay else None
        decisions.append(DecisionOutput(key, value, always, like.dtype, tuple(map(int, like.shape[1:])), table))
    return Flat(names.applied(), tuple(answers), tuple(decisions))


@torch.no_grad()
def trace_static(model: nn.Module, example: Tensor, opset: int = OPSET) -> Flat:
    """Traces a static network, or a dynamic one's static twin, with operators of a version.

    Raises:
        CannotTrace: the exporter knows no way to write an operator down.
    """
    return _traced_static(model, (example,), opset, single=False)


@torch.no_grad()
def trace_part(model: nn.Module, *examples: Tensor) -> Flat:
    """Traces a part of a static network for exactly one item; its inputs are called `x`, `x.1`, ...

    Raises:
        CannotTrace: the exporter knows no way to write an operator down.
    """
    return _traced_static(model, examples, OPSET, single=True)


def _traced_static(model: nn.Module, examples: tuple[Tensor, ...], opset: int, *, single: bool) -> Flat:
    whole, inputs = _Static(model), [f"x.{i}" if i else "x" for i in range(len(examples))]
    with _one_sentence(model, opset):
        exported = _exported(whole, examples, inputs, opset, single=single)
    names = Names(exported, inputs)
    answers = [names.output(i, _answer(i)) for i in range(whole.answers)]
    return Flat(names.applied(), tuple(answers))


def _exported(
    whole: nn.Module, args: tuple[Tensor, ...], names: list[str], opset: int, *, single: bool
) -> onnx.ModelProto:
    """What the exporter writes down, with a free number of items unless it is a single one."""
    if opset not in OPSETS:
        raise CannotTrace(f"graphs are written in opset {OPSETS[0]} to {OPSETS[-1]}, not in {opset}")
    register_symbolics()
    buffer = io.BytesIO()
    with warnings.catch_warnings(), fixed_causality(), contextlib.nullcontext() if single else free_items():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            whole.eval(),  # or the exporter would leave the model in training mode
            args,
            buffer,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=opset,
            input_names=names,
            dynamic_axes={} if single else {name: {0: f"items of {name}"} for name in names},
        )
    model = onnx.load_from_string(buffer.getvalue())
    for node in model.graph.node:
        if f"{node.domain}::{node.op_type}" == SEEN:
            node.domain, node.op_type = "", "Identity"
    for output in [] if single else model.graph.output:  # where the exporter infers nothing, it has the example's sizes
        for dim in output.type.tensor_type.shape.dim[:1]:
            if dim.HasField("dim_value"):
                dim.dim_param = f"rows of {output.name}"
    return model


def _print_nothing() -> None:
    """To be called while tracing: the exporter turns its log on at its start, and prints the graph of a failure."""
    torch._C._jit_set_onnx_log_enabled(False)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _answer(i: int) -> str:
    return f"answer.{i}" if i else "answer"


def _label(key: Key) -> str:
    name, sizes = key
    return name + "".join(f"/{n}" for n in sizes)


def _table(key: Key, events: list[Event], items: int) -> Tensor:
    """The model's own decisions at a point, as a table over all items; a mask of zeros would trace nothing."""
    like = events[0].value
    table = torch.zeros((items * math.prod(key[1]), *like.shape[1:]), dtype=like.dtype)
    for event in events:
        table[event.ids] = event.value
    return table


@contextlib.contextmanager
def _one_sentence(model: nn.Module, opset: int) -> Iterator[None]:
    """Inside this block whatever fails is a `CannotTrace` that names the operator, or the module."""
    try:
        yield
    except CannotTrace:
        raise
    except Exception as e:
        raise CannotTrace(f"the network cannot be a graph: {_reason(e, opset)}{_place(model, e)}") from e


def _reason(e: Exception, opset: int) -> str:
    text = " ".join(str(e).split())
    if isinstance(e, NotImplementedError) and text:
        return text
    if "requires grad as a constant" in text:
        return "it computes with parameters of a module that is not among its own"
    if found := re.search(r"[Oo]perator '([\w:.]+)'", text):
        since = re.search(r"was added in version (\d+)", text)
        return f"the exporter does not know operator {found[1]} in opset {opset}" + (
            f", but in {since[1]}" if since else ""
        )
    if found := re.search(r"ONNX export of (.+?)\. ", text):
        return f"the exporter does not know {found[1]}"
    return f"{type(e).__name__}: {text.partition(' [Caused by')[0]}" if text else type(e).__name__


def _place(model: nn.Module, e: Exception) -> str:
    """The innermost module of the model in which it happened, if it was in one."""
    names = {module: name for name, module in model.named_modules() if name}
    found, frames = "", e.__traceback__
    while frames is not None:
        module = frames.tb_frame.f_locals.get("self")
        if isinstance(module, nn.Module) and module in names:
            found = f" (in {type(module).__name__} {names[module]!r})"
        frames = frames.tb_next
    return found
