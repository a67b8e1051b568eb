"""Executed FLOPs of a bundle's graphs are those of running every item, though few are run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dynbench.deploy import counted
from dynbench.deploy.counted import flops_per_item
from dynbench.dynamic import Execution
from dynbench.graph import Graph, Session, compiled, executed_flops, static_graph
from dynbench.strategies import PerSample
from tests.graph.networks import of_one_tensor


def batches_run(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that are run to be counted."""
    sizes: list[int] = []
    of = counted._of

    def told(graph: Graph, batches: list[Tensor]) -> list[int]:
        sizes.extend(map(len, batches))
        return of(graph, batches)

    monkeypatch.setattr(counted, "_of", told)
    return sizes


def test_items_that_are_decided_alike_are_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    net, few = of_one_tensor("pyramid")
    x = few.repeat(3, *[1] * (few.dim() - 1))
    execution = Execution(PerSample(), record=True)
    with torch.no_grad():
        execution.run(net, x)
    graph = compiled(net, x, single=True)
    session, run = Session(graph, fast=False), batches_run(monkeypatch)
    every = executed_flops(graph, [session.feeds(x[i : i + 1]) for i in range(len(x))])
    assert every > 0
    assert flops_per_item(graph, x, execution.trace) == every / len(x)
    assert 1 < len(run) <= len(few)
    assert flops_per_item(graph, x, None) == every / len(x)


class Static(nn.Module):
    """A layer for each item, and work that does not depend on how many there are."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.shared = nn.Linear(4, 4), nn.Parameter(torch.randn(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + (self.shared @ self.layer(x).mean(0, keepdim=True).T).sum()


class Pairs(nn.Module):
    """Compares each item with each."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ x.transpose(0, 1)


@pytest.mark.parametrize("net, largest", [(Static(), 3), (Pairs(), 9)])
def test_a_static_network_is_run_on_few_items_where_each_costs_the_same(
    net: nn.Module, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(9, 4)
    graph, run = static_graph(net.eval(), x), batches_run(monkeypatch)
    found = flops_per_item(graph, x, None)
    assert max(run) == largest
    assert found == executed_flops(graph, [Session(graph, fast=False).feeds(x)]) / len(x)
