"""Graphs in the oldest and the newest set of operators are the same network; what a set lacks is refused by name."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dynbench.graph import OPSETS, CannotTrace, compiled_twice, opset_of, prove, static_graph
from tests.graph.networks import of_one_tensor
from tests.graph.test_export import nodes_of


@pytest.mark.parametrize(
    "opset, name", [(OPSETS[0], "pyramid"), (OPSETS[0], "mixture"), (OPSETS[-1], "pyramid"), (OPSETS[-1], "ponder")]
)
def test_a_network_is_the_same_in_the_oldest_and_the_newest_operators(opset: int, name: str) -> None:
    net, x = of_one_tensor(name)
    for single in (True, False):
        for graph in compiled_twice(net, x, single=single, opset=opset):
            assert opset_of(graph.model) == opset
            assert [c for c in prove(net, graph, x, (1, 2, 7)) if not c.ok] == []


class Maps(nn.Module):
    """Means over maps, and a norm by the root of mean squares."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3), nn.RMSNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x).mean((2, 3)))


@pytest.mark.parametrize("opset", [13, 17, 18, 20])
def test_means_are_found_where_axes_are_attributes_and_where_they_are_inputs(opset: int) -> None:
    net, x = Maps().eval(), torch.randn(5, 2, 6, 6)
    graph = static_graph(net, x, opset)
    assert [c for c in prove(net, graph, x, (1, 2, 5)) if not c.ok] == []
    assert [n.op_type for n in nodes_of(graph.model.graph)].count("GlobalAveragePool") == 1


class Adds(nn.Module):
    """Adds to one row several times."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x).index_add(0, torch.zeros(5, dtype=torch.long), x)


class Attends(nn.Module):
    """Attention by torch's own function."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(x, x, x)


@pytest.mark.parametrize(
    "net, opset, sentence",
    [
        (Adds(), 15, "the network cannot be a graph: index_add needs opset 16"),
        (
            Attends(),
            13,
            "the exporter does not know operator aten::scaled_dot_product_attention in opset 13, but in 14",
        ),
        (Maps(), 12, "graphs are written in opset 13 to 20, not in 12"),
        (Maps(), 21, "graphs are written in opset 13 to 20, not in 21"),
    ],
)
def test_what_an_old_or_unknown_set_of_operators_lacks_is_named(net: nn.Module, opset: int, sentence: str) -> None:
    x = torch.randn(5, 2, 6, 6)
    with pytest.raises(CannotTrace, match=sentence):
        static_graph(net.eval(), x, opset)
    assert opset_of(static_graph(net, x).model) == 17  # where it is known
