"""From a network to its graphs: a dynamic one's for any batch and for a single item, a static one's for any batch."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import onnx
import torch
from torch import Tensor, nn

from dynbench.graph.branches import into_branches
from dynbench.graph.export import DecisionOutput, Flat, trace, trace_static
from dynbench.graph.known import KnownInGraph, KnownOneItem
from dynbench.graph.simplify import simplified
from dynbench.graph.strategy import CannotTrace, InGraph, OneItem
from dynbench.graph.symbolics import EXAMPLES


@dataclass(frozen=True)
class Graph:
    """A whole network as one portable ONNX graph.

    Attributes:
        model: standard operators only; what is not decided for is not computed. Its nodes are named after the modules
            of the network.
        answers: names of the outputs that are the network's answer: `answer`, `answer.1`, ...
        decisions: how decisions come out (`decision:<point>`, `items:<point>`), and go in (`decided:<point>`); of a
            static network there are none.
        single: whether it takes one item, not any number of them.
    """

    model: onnx.ModelProto
    answers: tuple[str, ...]
    decisions: tuple[DecisionOutput, ...]
    single: bool

    @property
    def replays(self) -> bool:
        """Whether decisions are inputs."""
        return any(decision.table is not None for decision in self.decisions)


def compiled(
    model: nn.Module,
    example: Tensor,
    *,
    single: bool,
    replay: bool = False,
    gates: bool = True,
    rates: dict[str, float] | None = None,
) -> Graph:
    """A dynamic network as one graph.

    Args:
        model: with decision points, in evaluation mode, on any device; the graph is the same.
        example: inputs of some items.
        single: for one item, where each choice is a branch; else for any batch, where items are gathered.
        replay: decisions are inputs; the gates still run, and what they say comes out.
        gates: False: decisions are inputs, and gates are left out (a control).
        rates: how often each Skip runs its body, by name: for any batch, where nearly all or hardly any item does, a
            batch in which all do alike is not gathered.

    Raises:
        CannotTrace: no graph can be made of it; the message names the operator or the point.
    """
    flat = _traced(model, example, single=single, replay=replay or not gates, gates=gates, rates=rates)
    return _graph(flat.replaying(), single=single)


def compiled_twice(
    model: nn.Module, example: Tensor, *, single: bool, rates: dict[str, float] | None = None
) -> tuple[Graph, Graph]:
    """A dynamic network as a graph that decides by itself, and as the same with decisions as inputs; traced once.

    Args:
        model: as of `compiled`.
        example: as of `compiled`.
        single: as of `compiled`.
        rates: as of `compiled`.

    Raises:
        CannotTrace: as of `compiled`.
    """
    flat = _traced(model, example, single=single, replay=True, gates=True, rates=rates)
    return _graph(flat.learned(), single=single), _graph(flat.replaying(), single=single)


def _traced(
    model: nn.Module, example: Tensor, *, single: bool, replay: bool, gates: bool, rates: dict[str, float] | None
) -> Flat:
    model, example = _on_cpu(model, example)
    one, many = (OneItem, InGraph) if gates else (KnownOneItem, KnownInGraph)
    strategy = one() if single else many(rates)
    return trace(model, _items(example, 1 if single else EXAMPLES), strategy, replay=replay, gates=gates)


def _graph(flat: Flat, *, single: bool) -> Graph:
    return Graph(simplified(into_branches(flat.model)), flat.answers, flat.decisions, single)


def static_graph(model: nn.Module, example: Tensor) -> Graph:
    """A static network as one graph for any batch; of a dynamic one its static twin.

    Args:
        model: in evaluation mode, on any device.
        example: inputs of some items.

    Raises:
        CannotTrace: no graph can be made of it; the message names the operator.
    """
    model, example = _on_cpu(model, example)
    flat = trace_static(model, _items(example, EXAMPLES))
    return _graph(flat, single=False)


def _on_cpu(model: nn.Module, example: Tensor) -> tuple[nn.Module, Tensor]:
    """Both on the CPU: themselves, or copies."""
    return (model, example) if example.device.type == "cpu" else (copy.deepcopy(model).cpu(), example.cpu())


def _items(example: Tensor, n: int) -> Tensor:
    """n of the example's items, its own ones over and over: a trace of a single one hides what does not broadcast."""
    if not example.dim() or not example.shape[0]:
        raise CannotTrace("the example has no items")
    return example[torch.arange(n) % example.shape[0]]
