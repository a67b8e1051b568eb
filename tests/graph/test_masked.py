"""Masking as a graph, for reference: the same answers and decisions, everything computed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dynbench.counting.flops import FlopCounter
from dynbench.dynamic import Execution, Pick
from dynbench.graph import CannotTrace, Session, compiled_twice, executed_flops, prove
from dynbench.strategies import Masking
from tests.graph.networks import of_one_tensor
from tests.graph.test_export import nodes_of


@pytest.mark.parametrize("name", ["pyramid", "mixture", "ponder", "moe_exits"])
def test_a_masked_graph_is_the_network_and_does_everything(name: str) -> None:
    net, x = of_one_tensor(name)
    for graph in compiled_twice(net, x, single=False, masking=True):
        checks = prove(net, graph, x, (1, 2, 7))
        assert checks and [c for c in checks if not c.ok] == []
        assert not any(node.op_type == "If" for node in nodes_of(graph.model.graph))
    assert {c.decisions for c in checks} >= {"replayed"}


class EachPart(nn.Module):
    """A layer for each part, weighed where there are weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor, there: Tensor | None, weights: Tensor | None = None) -> Tensor:
        y = self.layer(x)
        return y if weights is None else y * weights.unsqueeze(-1)


class Picked(nn.Module):
    """Half of the parts of an item are computed; the others stay as they are."""

    def __init__(self, weigh: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__()
        self.score = nn.Linear(4, 1)
        self.pick = Pick("pick", self.scores, EachPart(), lambda t: t // 2, weigh=weigh, back=True)

    def scores(self, x: Tensor, there: Tensor | None) -> Tensor:
        return self.score(x).squeeze(-1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pick(x)


@pytest.mark.parametrize("weigh", [None, torch.tanh])
def test_parts_that_are_not_picked_stay_as_they_are(weigh: Callable[[Tensor], Tensor] | None) -> None:
    net, x = Picked(weigh).eval(), torch.randn(7, 6, 4)
    for graph in compiled_twice(net, x, single=False, masking=True):
        checks = prove(net, graph, x, (1, 2, 7))
        assert checks and [c for c in checks if not c.ok] == []


@pytest.mark.parametrize("name", ["pyramid", "one_expert"])
def test_a_masked_graph_executes_the_flops_of_masking(name: str) -> None:
    net, x = of_one_tensor(name)
    graph, _ = compiled_twice(net, x, single=False, masking=True)
    with FlopCounter() as counter, torch.no_grad():
        Execution(Masking()).run(net, x)
    assert executed_flops(graph, [Session(graph).feeds(x)]) == counter.flops > 0


def test_what_the_exporter_makes_a_constant_is_refused() -> None:
    net, x = of_one_tensor("capacity_exits")
    graph, _ = compiled_twice(net, x, single=False, masking=True)
    with pytest.raises(CannotTrace, match="ONNX Runtime fails to run the graph: Mul node"):
        prove(net, graph, x, (2, 7))
