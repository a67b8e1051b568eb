"""From a network to its graphs: a dynamic one's for any batch and for a single item, a static one's for any batch."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import cached_property

import onnx
import torch
from torch import Tensor, nn

from dynbench.graph.branches import into_branches
from dynbench.graph.export import DecisionOutput, Flat, trace, trace_part, trace_static
from dynbench.graph.known import KnownInGraph, KnownOneItem
from dynbench.graph.layout import for_this_machine
from dynbench.graph.levels import Level, without_dead, written_back
from dynbench.graph.masked import Masked
from dynbench.graph.refused import CannotTrace
from dynbench.graph.simplify import of_one_item, simplified
from dynbench.graph.strategy import InGraph, OneItem
from dynbench.graph.symbolics import EXAMPLES, OPSET


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
        gates: whether what only decides is part of it; without it, decisions are inputs.
    """

    model: onnx.ModelProto
    answers: tuple[str, ...]
    decisions: tuple[DecisionOutput, ...]
    single: bool
    gates: bool = True

    @property
    def replays(self) -> bool:
        """Whether decisions are inputs."""
        return any(decision.table is not None for decision in self.decisions)

    @cached_property
    def answering(self) -> Graph:
        """The same network without outputs that say what was decided: what is deployed, as they cost a few percent.

        A graph that replays still says what its gates would decide, which is all that keeps them, but not for whom.
        """
        if not self.decisions:
            return self
        said = {decision.value for decision in self.decisions} if self.replays and self.gates else set()
        wanted = {*self.answers, *said}
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        root = Level.read(model.graph)
        root.outputs = [name for name in root.outputs if name in wanted]
        without_dead(root)
        model = written_back(model, root)
        kept = [output for output in model.graph.output if output.name in wanted]
        del model.graph.output[:]
        model.graph.output.extend(kept)
        model = of_one_item(model) if self.single else model
        return Graph(model, self.answers, self.decisions if self.replays else (), self.single, self.gates)

    @cached_property
    def here(self) -> onnx.ModelProto:
        """The model as ONNX Runtime runs it fastest on the CPU of this machine; to be loaded as it is."""
        return for_this_machine(self.model)


def compiled(
    model: nn.Module,
    example: Tensor,
    *,
    single: bool,
    replay: bool = False,
    gates: bool = True,
    rates: dict[str, float] | None = None,
    opset: int = OPSET,
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
        opset: version of ONNX's operators, one of `OPSETS`.

    Raises:
        CannotTrace: no graph can be made of it; the message names the operator or the point.
    """
    strategy = _skipping(single=single, gates=gates, rates=rates)
    flat = _traced(model, example, strategy, replay=replay or not gates, gates=gates, opset=opset)
    return replace(_graph(flat.replaying(), single=single), gates=gates)


def compiled_twice(
    model: nn.Module,
    example: Tensor,
    *,
    single: bool,
    rates: dict[str, float] | None = None,
    masking: bool = False,
    opset: int = OPSET,
) -> tuple[Graph, Graph]:
    """A dynamic network as a graph that decides by itself, and as the same with decisions as inputs; traced once.

    Args:
        model: as of `compiled`.
        example: as of `compiled`.
        single: as of `compiled`.
        rates: as of `compiled`.
        masking: everything is computed for everyone, and what was not decided for is dropped; for any batch.
        opset: as of `compiled`.

    Raises:
        CannotTrace: as of `compiled`.
    """
    assert not (masking and single), "a masked graph is for any batch"
    strategy = Masked() if masking else _skipping(single=single, gates=True, rates=rates)
    flat = _traced(model, example, strategy, replay=True, gates=True, opset=opset)
    return _graph(flat.learned(), single=single), _graph(flat.replaying(), single=single)


def _skipping(*, single: bool, gates: bool, rates: dict[str, float] | None) -> InGraph:
    one, many = (OneItem, InGraph) if gates else (KnownOneItem, KnownInGraph)
    return one() if single else many(rates)


def _traced(
    model: nn.Module, example: Tensor, strategy: InGraph | Masked, *, replay: bool, gates: bool, opset: int
) -> Flat:
    model, example = _on_cpu(model, example)
    few = _items(example, 1 if isinstance(strategy, OneItem) else EXAMPLES)
    return trace(model, few, strategy, replay=replay, gates=gates, opset=opset)


def _graph(flat: Flat, *, single: bool) -> Graph:
    return Graph(simplified(into_branches(flat.model)), flat.answers, flat.decisions, single)


def part_graph(model: nn.Module, *examples: Tensor) -> Graph:
    """A part of a static network as a graph for a single item; its inputs are `x`, `x.1`, ...

    Args:
        model: in evaluation mode, on the CPU.
        examples: its inputs for one item.

    Raises:
        CannotTrace: no graph can be made of it; the message names the operator.
    """
    return _graph(trace_part(model, *examples), single=True)


def static_graph(model: nn.Module, example: Tensor, opset: int = OPSET) -> Graph:
    """A static network as one graph for any batch; of a dynamic one its static twin.

    Args:
        model: in evaluation mode, on any device.
        example: inputs of some items.
        opset: as of `compiled`.

    Raises:
        CannotTrace: no graph can be made of it; the message names the operator.
    """
    model, example = _on_cpu(model, example)
    flat = trace_static(model, _items(example, EXAMPLES), opset)
    return _graph(flat, single=False)


def _on_cpu(model: nn.Module, example: Tensor) -> tuple[nn.Module, Tensor]:
    """Both on the CPU: themselves, or copies."""
    return (model, example) if example.device.type == "cpu" else (copy.deepcopy(model).cpu(), example.cpu())


def _items(example: Tensor, n: int) -> Tensor:
    """n of the example's items, its own ones over and over: a trace of a single one hides what does not broadcast."""
    if not example.dim() or not example.shape[0]:
        raise CannotTrace("the example has no items")
    return example[torch.arange(n) % example.shape[0]]
