"""Masked scores: the softmax of a row of which a part is masked, written down so that nothing in it is tiny."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dynbench.graph import Graph, Session, static_graph


class Attention(nn.Module):
    """softmax over scores x [n, 4, 4] of which what lies after the diagonal is masked."""

    def __init__(self, fill: float, *, added: bool) -> None:
        super().__init__()
        self.fill, self.added = fill, added

    def forward(self, x: Tensor) -> Tensor:
        later = torch.ones(4, 4, dtype=torch.bool).triu(1)
        if self.added:
            return (x + torch.zeros(4, 4).masked_fill(later, self.fill)).softmax(-1)
        return x.masked_fill(later, self.fill).softmax(-1)


class Causal(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)


def kinds(graph: Graph) -> set[str]:
    return {node.op_type for node in graph.model.graph.node}


def answer(graph: Graph, x: Tensor) -> Tensor:
    session = Session(graph)
    return session.answer(session.feeds(x))[0]


@pytest.mark.parametrize("opset", [13, 17, 18, 20])
@pytest.mark.parametrize("fill", [-float("inf"), -1e9])
@pytest.mark.parametrize("added", [True, False])
def test_a_mask_is_raised_and_changes_nothing(added: bool, fill: float, opset: int) -> None:
    net = Attention(fill, added=added)
    for size in (1.0, 30.0, 1e3):
        x = size * torch.randn(5, 4, 4, generator=torch.Generator().manual_seed(0))
        graph = static_graph(net, x, opset)
        assert {"Max", "ReduceMax"} <= kinds(graph)
        assert torch.allclose(answer(graph, x), net(x), rtol=1e-5, atol=1e-7)


def test_attention_that_is_causal_is_raised() -> None:
    x = torch.randn(3, 2, 4, 8, generator=torch.Generator().manual_seed(0))
    graph = static_graph(Causal(), x)
    assert "Max" in kinds(graph) and torch.allclose(answer(graph, x), Causal()(x), atol=1e-6)


def test_a_row_that_is_masked_as_a_whole_has_no_answer_in_either() -> None:
    net, x = Attention(-float("inf"), added=True), torch.randn(2, 4, 4)
    x[1, 2] = -float("inf")
    got, right = answer(static_graph(net, x), x), net(x)
    assert torch.equal(got.isnan(), right.isnan()) and got[1, 2].isnan().all() and not got[0].isnan().any()


@pytest.mark.parametrize("fill", [0.0, -1.0, -5e3])
def test_what_is_no_mask_stays_as_it_is(fill: float) -> None:
    net, x = Attention(fill, added=True), torch.randn(2, 4, 4)
    graph = static_graph(net, x)
    assert "Max" not in kinds(graph) and torch.allclose(answer(graph, x), net(x), atol=1e-6)
