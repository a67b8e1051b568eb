"""What a session takes, what it refuses in one sentence, and that optimising a graph changes no answer."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dynbench.dynamic import Execution, Skip, Trace
from dynbench.engines.providers import refusal
from dynbench.graph import CannotTrace, Graph, Session, compiled, prove, static_graph
from dynbench.graph.branches import into_branches
from dynbench.graph.export import trace as flat
from dynbench.graph.session import CannotFeed
from dynbench.graph.strategy import InGraph, OneItem
from dynbench.strategies import PerSample
from tests.graph.networks import PROVED, graph_of, of_one_tensor

NAME = "pyramid"


def recorded(name: str, n: int = 7) -> tuple[Tensor, Trace]:
    net, x = of_one_tensor(name)
    execution = Execution(PerSample(), record=True)
    with torch.no_grad():
        execution.run(net, x[:n])
    assert execution.trace is not None
    return x[:n], execution.trace


def alike(a: Session, b: Session, x: Tensor, trace: Trace | None) -> None:
    for start, stop in [(0, 1)] if a.graph.single else [(0, 1), (0, 7), (2, 4)]:
        (got, said), (right, told) = (s.run(x[start:stop], trace, start) for s in (a, b))
        for mine, theirs in zip(got, right, strict=True):
            assert np.allclose(mine, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))
        assert said == told


@pytest.mark.parametrize("name, single, replay", PROVED)
def test_layouts_for_this_machine_change_no_answer_and_no_decision(name: str, single: bool, replay: bool) -> None:
    graph = graph_of(name, single, replay)
    x, trace = recorded(name)
    alike(Session(graph), Session(graph, fast=False), x, trace if replay else None)


@pytest.mark.cuda
@pytest.mark.parametrize("name, single, replay", PROVED)
def test_a_graph_on_a_gpu_answers_and_decides_as_per_sample(name: str, single: bool, replay: bool) -> None:
    if why := refusal("cuda:0"):
        pytest.skip(why)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    net, x = of_one_tensor(name)
    checks = prove(copy.deepcopy(net).cuda(), graph_of(name, single, replay), x.cuda(), (1, 2, 7))
    assert [c for c in checks if not c.ok] == []


@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("name", ["moe_exits", "pyramid"])  # LSTM cells; means over maps
def test_simplifying_changes_no_answer_and_no_decision(name: str, single: bool) -> None:
    net, x = of_one_tensor(name)
    traced = flat(net, x[:1] if single else x[:4], OneItem() if single else InGraph(), replay=False)
    plain = Graph(into_branches(traced.model), traced.answers, traced.decisions, single)
    graph = graph_of(name, single, False)
    assert plain.model != graph.model
    alike(Session(graph, fast=False), Session(plain, fast=False), x, None)


class Wide(nn.Module):
    """A Skip over maps of so many channels, between convolutions, and a mean over them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, channels, 3, padding=1)
        body = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU())
        other = nn.Conv2d(channels, channels, 1)
        self.skip = Skip("skip", lambda x, carry: (x.mean((1, 2, 3)), carry), body, other)
        self.plain = Skip("plain", lambda x, carry: (-x.mean((1, 2, 3)), carry), nn.Conv2d(channels, channels, 1))
        self.last = nn.Conv2d(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.plain(self.skip(self.first(x))[0])[0]
        return self.last(y).mean((2, 3))


@pytest.mark.parametrize("channels", [8, 16, 20, 32])  # blocks are of 8 or of 16
@pytest.mark.parametrize("single", [True, False])
def test_blocks_that_are_filled_up_are_no_channels(channels: int, single: bool) -> None:
    torch.manual_seed(0)
    net, x = Wide(channels).eval(), torch.randn(7, 3, 8, 8)
    graph = compiled(net, x, single=single, replay=True)
    checks = prove(net, graph, x, (1, 2, 7))
    assert [c for c in checks if not c.ok] == []


WRONG_INPUT = [
    (lambda x: x[:0], "at least one item"),
    (lambda x: x[0, 0, 0, 0], "at least one item"),
    (lambda x: x[..., :-1], r"takes items of shape \(4, 16, 16\), not \(4, 16, 15\)"),
    (lambda x: x[:, 0], r"takes items of shape \(4, 16, 16\), not \(16, 16\)"),
    (lambda x: x.double(), "takes float32, not float64"),
    (lambda x: x.bfloat16(), "takes float32, not bfloat16"),
    (lambda x: x.to("meta"), "the graph runs on cpu and takes no input on meta"),
]


@pytest.mark.parametrize("change, said", WRONG_INPUT)
def test_another_input_is_refused_in_a_sentence(change: object, said: str) -> None:
    _, x = of_one_tensor(NAME)
    for graph in (graph_of(NAME, False, False), graph_of(NAME, True, False)):
        with pytest.raises(CannotFeed, match=said):
            Session(graph).feeds(change(x[:1]))  # type: ignore[operator]


def test_several_items_are_refused_where_the_graph_is_for_one() -> None:
    _, x = of_one_tensor(NAME)
    with pytest.raises(CannotFeed, match="for a single item, not for 3"):
        Session(graph_of(NAME, True, False)).feeds(x[:3])


def test_missing_decisions_are_refused_in_a_sentence() -> None:
    x, trace = recorded(NAME)
    session = Session(graph_of(NAME, False, True))
    with pytest.raises(CannotFeed, match="takes decisions of point 'block0', and there is no trace"):
        session.feeds(x)
    with pytest.raises(CannotFeed, match="the trace is of another model"):
        session.feeds(x, recorded("one_expert")[1])
    with pytest.raises(CannotFeed, match="decisions for 7 items, not for items 3 to 9"):
        session.feeds(x, trace, 3)
    key = next(k for k in trace.entries if k[0] == "block0")
    floats = {k: e._replace(value=e.value.float()) if k == key else e for k, e in trace.entries.items()}
    with pytest.raises(CannotFeed, match=r"'block0' are float32 \[\] in the trace, and bool \[\] in the graph"):
        session.feeds(x, Trace(floats, trace.items, "", trace.covers))


def test_a_point_that_nobody_reached_takes_any_decisions() -> None:
    x, trace = recorded(NAME)
    some = {k: e for k, e in trace.entries.items() if k[0] != "block2"}
    feeds = Session(graph_of(NAME, False, True)).feeds(x, Trace(some, trace.items, "", trace.covers))
    assert not feeds["decided:block2/3"].any()


class Ignored(nn.Module):
    """What is decided depends on x, the answer does not."""

    def __init__(self) -> None:
        super().__init__()
        self.skip = Skip("skip", lambda x, carry: (x[:, 0], carry), nn.Linear(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(torch.ones_like(x))[0]


@pytest.mark.parametrize("single", [True, False])
def test_an_input_that_only_gates_or_nobody_reads_is_no_obstacle(single: bool) -> None:
    net, x = Ignored().eval(), torch.randn(7, 3)
    assert all(c.ok for c in prove(net, compiled(net, x, single=single, replay=True), x, (1, 7)))


def test_a_graph_that_is_none_is_refused_in_a_sentence() -> None:
    graph = static_graph(nn.Linear(3, 3), torch.randn(2, 3))
    broken = dataclasses.replace(graph, model=type(graph.model)())
    with pytest.raises(CannotTrace, match="ONNX Runtime does not load the graph: "):
        Session(broken)
