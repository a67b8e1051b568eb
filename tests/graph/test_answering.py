"""A graph without outputs that say what was decided, as it is deployed: the same answers, and the same work."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dynbench.dynamic import Execution, Skip
from dynbench.graph import Session, compiled, executed_flops
from dynbench.strategies import PerSample
from tests.graph.networks import PROVED, graph_of, of_one_tensor

LEARNED = sorted({(name, single) for name, single, replay in PROVED if not replay})


@pytest.mark.parametrize("name, single", LEARNED)
def test_it_answers_as_the_graph_that_tells(name: str, single: bool) -> None:
    graph = graph_of(name, single, False)
    _, x = of_one_tensor(name)
    session = Session(graph, answers_only=True)
    outputs = {output.name for output in session.session.get_outputs()}
    assert outputs == set(graph.answers) and (graph.decisions or name == "fixed")
    for n in (1,) if single else (1, 2, 7):
        right, said = Session(graph).run(x[:n])
        got, told = session.run(x[:n])
        assert told == said
        for answers in (got, session.answer(session.feeds(x[:n]))):
            for mine, theirs in zip(answers, right, strict=True):
                assert np.allclose(mine, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize("name, single", LEARNED[:4])
def test_it_executes_the_same_flops(name: str, single: bool) -> None:
    graph = graph_of(name, single, False)
    _, x = of_one_tensor(name)
    feeds = [Session(graph).feeds(x[:1])]
    assert executed_flops(graph.answering, feeds) == executed_flops(graph, feeds) > 0


@pytest.mark.parametrize("name, single", LEARNED[:4])
def test_one_that_replays_keeps_its_gates(name: str, single: bool) -> None:
    graph = graph_of(name, single, True)
    net, x = of_one_tensor(name)
    execution = Execution(PerSample(), record=True)
    with torch.no_grad():
        execution.run(net, x)
    assert execution.trace is not None
    session = Session(graph, answers_only=True)
    outputs = {output.name for output in session.session.get_outputs()}
    assert outputs == {*graph.answers, *(d.value for d in graph.decisions)}
    feeds = [session.feeds(x[:1], execution.trace)]
    assert executed_flops(graph.answering, feeds) == executed_flops(graph, feeds) > 0
    for mine, theirs in zip(session.answer(feeds[0]), Session(graph).answer(feeds[0]), strict=True):
        assert np.allclose(mine, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))


class Recurrent(nn.Module):
    """Two Skips over maps whose gates are steps of one LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.say = nn.LSTMCell(4, 3), nn.Linear(3, 1)
        nn.init.normal_(self.cell.weight_ih, std=3.0)
        nn.init.normal_(self.say.weight, std=3.0)
        self.skips = nn.ModuleList(Skip(f"skip{i}", self._gate, nn.Conv2d(4, 4, 3, padding=1)) for i in range(2))

    def _gate(self, x: Tensor, carry: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        carry = self.cell(x.mean((2, 3)), carry)
        return self.say(carry[0]).squeeze(1), carry

    def forward(self, x: Tensor) -> Tensor:
        carry = (x.new_zeros(x.shape[0], 3),) * 2
        for skip in self.skips:
            x, carry = skip(x, carry)
        return x


def test_of_a_single_item_a_recurrent_gate_is_compared_in_the_shape_of_its_step() -> None:
    torch.manual_seed(0)
    net, x = Recurrent().eval(), 3 * torch.randn(16, 4, 6, 6)
    graph = compiled(net, x[:1], single=True)
    kinds = [node.op_type for node in graph.answering.model.graph.node]
    assert kinds.count("LSTM") == kinds.count("MatMul") == kinds.count("If") == 2
    assert not {"Squeeze", "Unsqueeze", "Flatten", "Gemm"} & set(kinds)
    session, execution = Session(graph, answers_only=True), Execution(PerSample(), record=True)
    with torch.no_grad():
        right = execution.run(net, x)
    assert execution.trace is not None
    assert all(0 < entry.value.float().mean() < 1 for entry in execution.trace.entries.values())
    got = torch.cat([session.answer(session.feeds(x[i : i + 1]))[0] for i in range(len(x))])
    assert torch.allclose(got, right, atol=1e-5)


class Scaled(Recurrent):
    """The same, where the bias counts threefold."""

    def _gate(self, x: Tensor, carry: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        carry = self.cell(x.mean((2, 3)), carry)
        said = torch.addmm(self.say.bias + 0.5, carry[0], self.say.weight.t(), beta=3)
        return said.squeeze(1), carry


def test_a_layer_with_a_factor_is_left_alone() -> None:
    torch.manual_seed(0)
    net, x = Scaled().eval(), 3 * torch.randn(16, 4, 6, 6)
    session = Session(compiled(net, x[:1], single=True), answers_only=True)
    with torch.no_grad():
        right = Execution(PerSample()).run(net, x)
    got = torch.cat([session.answer(session.feeds(x[i : i + 1]))[0] for i in range(len(x))])
    assert torch.allclose(got, right, atol=1e-5)
