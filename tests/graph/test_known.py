"""Graphs without what decides: decisions go in, gates are gone, and the work of the bodies stays."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dynbench.dynamic import Execution, Exits, Trace
from dynbench.graph import Session, compiled
from dynbench.graph.work import executed_flops
from dynbench.strategies import PerSample
from tests.networks import make


@torch.no_grad()
def decided(net: nn.Module, x: Tensor) -> tuple[Trace, Tensor]:
    ex = Execution(PerSample(), record=True)
    answer = ex.run(net, x)
    assert ex.trace is not None
    return ex.trace, answer


def exits() -> tuple[nn.Module, Tensor, Trace]:
    """Of six items two leave at the first exit, one at the second."""
    torch.manual_seed(0)
    stages, heads = [nn.Linear(8, 8) for _ in range(3)], [nn.Linear(8, 2) for _ in range(3)]
    net = Exits("exit", stages, heads, lambda answer, state, k: answer[:, 0] > 0).eval()
    x = torch.randn(6, 8)
    trace, _ = decided(net, x)
    entry = next(iter(trace.entries.values()))
    entry.value.copy_(torch.tensor([[1, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0]]).bool().flatten())
    return net, x, trace


def test_a_network_known_ahead_answers_as_it_does() -> None:
    net, (x,) = make("pyramid")
    trace, right = decided(net, x)
    session = Session(compiled(net, x, single=False, gates=False))
    (answer,) = session.answer(session.feeds(x, trace))
    torch.testing.assert_close(answer, right, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("single", [False, True])
def test_heads_run_for_those_alone_who_leave_by_them(single: bool) -> None:
    net, x, trace = exits()
    graph = compiled(net, x, single=single, gates=False)
    session = Session(graph)
    size = 1 if single else 6
    feeds = [session.feeds(x[i : i + size], trace, i) for i in range(0, 6, size)]
    assert executed_flops(graph, feeds) == 2 * 8 * 8 * (6 + 4 + 3) + 2 * 8 * 2 * 6
    right = Execution(PerSample(), replay=trace).run(net, x)
    got = torch.cat([session.answer(f)[0] for f in feeds])
    torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-5)
