"""What is put back where it came from: ONNX Runtime's ScatterND lets several threads add to one row at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dynbench.dynamic import Route
from dynbench.graph import Graph, Session, compiled, prove, static_graph
from dynbench.models.moe_gpt import moe_gpt
from tests.graph.networks import PROVED, graph_of
from tests.graph.test_export import nodes_of


def scatters(graph: Graph) -> list[tuple[str, str]]:
    """(operator, reduction) of every node that puts something into rows."""
    found = [node for node in nodes_of(graph.model.graph) if node.op_type.startswith("Scatter")]
    return [(n.op_type, next((a.s.decode() for a in n.attribute if a.name == "reduction"), "none")) for n in found]


@pytest.mark.parametrize("name, single, replay", PROVED)
def test_nothing_is_added_to_rows_by_several_threads(name: str, single: bool, replay: bool) -> None:
    assert all(reduction == "none" for _, reduction in scatters(graph_of(name, single, replay)))


@pytest.mark.parametrize("single", [True, False])
def test_tokens_that_go_to_several_experts_have_a_row_for_each(single: bool) -> None:
    torch.manual_seed(0)
    model = moe_gpt(vocab=11, layers=1, width=16, heads=2, experts=4, k=2, context=8).eval()
    x = torch.randint(11, (7, 8))
    graph = compiled(model, x, single=single)
    assert set(scatters(graph)) == {("ScatterND", "none")}
    assert [c for c in prove(model, graph, x, (1, 2, 7)) if not c.ok] == []


class Two(nn.Module):
    """Each item goes to two of three experts."""

    def __init__(self) -> None:
        super().__init__()
        experts = [nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Tanh()), None]
        self.route = Route("two", nn.Linear(4, 3), experts, 2, lambda s, chosen: s.softmax(-1).gather(1, chosen))

    def forward(self, x: Tensor) -> Tensor:
        return self.route(x)


def test_a_single_item_moves_nowhere_whatever_its_experts() -> None:
    torch.manual_seed(0)
    model, x = Two().eval(), torch.randn(7, 4)
    graph = compiled(model, x, single=True, replay=True)
    kinds = {node.op_type for node in nodes_of(graph.model.graph)}
    assert scatters(graph) == [] and "NonZero" not in kinds
    checks = [check for i in range(7) for check in prove(model, graph, x[i : i + 1])]
    assert [c for c in checks if not c.ok] == []


class Sums(nn.Module):
    """Rows of an item added up in pairs; each pair's place occurs twice."""

    def forward(self, x: Tensor) -> Tensor:
        n, rows = x.shape[0], x.shape[1]
        place = torch.arange(n, device=x.device).unsqueeze(1) * (rows // 2) + torch.arange(rows) // 2
        flat = x.flatten(0, 1)
        return flat[: n * (rows // 2)].mul(0).index_add(0, place.flatten(), flat).unflatten(0, (-1, rows // 2))


@pytest.mark.parametrize("threads", [1, 2])
def test_rows_that_occur_again_are_added_one_after_the_other(threads: int) -> None:
    x = torch.randn(7, 6, 8)
    graph = static_graph(Sums(), x)
    assert scatters(graph) == [("ScatterElements", "add")]
    session = Session(graph, threads=threads)
    for n in (1, 2, 7):
        (got,) = session.answer(session.feeds(x[:n]))
        torch.testing.assert_close(got, x[:n, ::2] + x[:n, 1::2])
