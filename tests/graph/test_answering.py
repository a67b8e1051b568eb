"""A graph without outputs that say what was decided, as it is deployed: the same answers, and the same work."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dynbench.dynamic import Execution
from dynbench.graph import Session, executed_flops
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
