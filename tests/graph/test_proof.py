"""A graph is the network: all forms, all decisions, all batch sizes; and what is not the network is caught."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from torch import Tensor, nn

from dynbench.dynamic import Execution, Skip, points
from dynbench.dynamic.items import tensors
from dynbench.dynamic.sources import synthetic
from dynbench.graph import CannotTrace, Graph, Session, compiled, prove, static_graph
from dynbench.strategies import Dense, Masking, PerSample
from tests.graph.networks import FORMS, GRAPHS, PROVED, SIZES, graph_of, of_one_tensor

ITEMS = 7
CONSTANT_ITEMS = (
    "moe_exits",
    "capacity_exits",
)  # the exporter writes the example's number of items into the static twin


@pytest.mark.parametrize("name, single, replay", PROVED)
def test_every_form_of_every_network_is_proved_at_sizes_that_were_not_traced(
    name: str, single: bool, replay: bool
) -> None:
    net, x = of_one_tensor(name)
    checks = prove(net, graph_of(name, single, replay), x, SIZES)
    assert [c for c in checks if not c.ok] == []
    kinds = {"learned"} if not replay else {"replayed"}
    if replay and points(net) and all(p.can_be_made_up for p in points(net).values()):
        kinds |= {"none", "all", "one"}
    if name == "fixed":  # decides nothing
        kinds = {"learned"}
    assert {(c.decisions, c.items) for c in checks} == {(k, n) for k in kinds for n in ((1,) if single else SIZES)}


@functools.cache
def _masked(name: str) -> tuple[nn.Module, Tensor, Execution]:
    net, x = of_one_tensor(name)
    execution = Execution(Masking(), record=True)
    with torch.no_grad():
        execution.run(net, x)
    return net, x, execution


@functools.cache
def _session(name: str, single: bool) -> Session:
    return Session(graph_of(name, single, replay=True))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**16), keep=st.floats(0, 1), start=st.integers(0, ITEMS - 1), data=st.data())
@pytest.mark.parametrize("name", ["moe_exits", "pyramid", "ponder", "ahead", "widths", "one_expert"])
def test_random_decisions_are_replayed_at_any_place_of_a_stream(
    name: str, seed: int, keep: float, start: int, data: st.DataObject
) -> None:
    net, x, masked = _masked(name)
    single = data.draw(st.booleans())
    n = 1 if single else data.draw(st.integers(1, ITEMS - start))
    assert masked.trace is not None
    trace = synthetic(masked.trace, net, keep_rate=keep, seed=seed)
    forced = Execution(PerSample(), replay=trace)
    with torch.no_grad():
        right = list(tensors(forced.run(net, x[start : start + n], start=start, items=ITEMS)))
    got, _ = _session(name, single).run(x[start : start + n], trace, start)
    for a, b in zip(got, right, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-4 * float(b.abs().max()))


@pytest.mark.parametrize("name", [n for n in GRAPHS if n not in ("fixed", *CONSTANT_ITEMS)])
def test_a_static_graph_is_the_static_twin(name: str) -> None:
    net, x = of_one_tensor(name)
    graph = static_graph(net, x[:1])
    session = Session(graph)
    assert graph.decisions == () and not graph.single and not graph.replays
    for n in SIZES:
        with torch.no_grad():
            right = list(tensors(Execution(Dense()).run(net, x[:n])))
        for a, b in zip(session.answer(session.feeds(x[:n])), right, strict=True):
            assert np.allclose(a, b, rtol=0, atol=1e-4 * float(b.abs().max()))


@pytest.mark.parametrize("name", CONSTANT_ITEMS)
def test_a_static_graph_with_a_constant_number_of_items_does_not_answer_for_another(name: str) -> None:
    net, x = of_one_tensor(name)
    session = Session(static_graph(net, x))
    for n in SIZES:
        with pytest.raises(CannotTrace, match="ONNX Runtime fails to run the graph: "):
            session.answer(session.feeds(x[:n]))


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_rates_change_no_answer(rate: float) -> None:
    net, x = of_one_tensor("pyramid")
    rates = {name: rate for name, point in points(net).items() if isinstance(point, Skip)}
    graph = compiled(net, x, single=False, replay=True, rates=rates)
    plain = graph_of("pyramid", False, True)
    assert len(graph.model.graph.node) != len(plain.model.graph.node)  # there are branches for the usual case
    assert all(c.ok for c in prove(net, graph, x, SIZES))


def _changed(graph: Graph, change: Callable[[onnx.GraphProto], bool]) -> Graph:
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    assert change(model.graph)
    return dataclasses.replace(graph, model=model)


def _branches(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """All branches, at any depth."""
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield attribute.g
                yield from _branches(attribute.g)


def _flip(graph: onnx.GraphProto) -> bool:
    """Changes the sign of the largest weight of the first branch that has weights."""
    branch = next(b for b in _branches(graph) if b.initializer)
    weight = max(branch.initializer, key=lambda w: np.prod(w.dims))
    weight.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weight), weight.name))
    return True


def _swap(graph: onnx.GraphProto) -> bool:
    """Exchanges the two branches of the first If."""
    node = next(n for n in graph.node if n.op_type == "If")
    for attribute in node.attribute:
        attribute.name = {"then_branch": "else_branch", "else_branch": "then_branch"}[attribute.name]
    return True


def _no_number(graph: onnx.GraphProto) -> bool:
    """Puts NaN in the answer, as 0 / 0 of its own values."""
    answer = next(n for n in graph.node if "answer" in n.output)
    answer.output[list(answer.output).index("answer")] = "answer/before"
    zero = onnx.helper.make_node("Sub", ["answer/before", "answer/before"], ["answer/zero"], name="zero")
    graph.node.extend([zero, onnx.helper.make_node("Div", ["answer/zero", "answer/zero"], ["answer"], name="nan")])
    return True


@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("change", [_flip, _swap, _no_number])
def test_a_wrong_graph_is_caught(change: Callable[[onnx.GraphProto], bool], single: bool) -> None:
    net, x = of_one_tensor("pyramid")
    graph = graph_of("pyramid", single, replay=True)
    wrong = _changed(graph, change)
    try:
        checks = prove(net, wrong, x, SIZES)
    except CannotTrace as e:
        assert "ONNX Runtime" in str(e)
    else:
        assert not all(c.ok for c in checks)


def test_no_number_is_no_pass_even_where_the_network_has_none_either() -> None:
    class Nothing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x - x) / (x - x)

    x = torch.randn(7, 3)
    checks = prove(Nothing(), static_graph(Nothing(), x), x, SIZES)
    assert not any(c.ok for c in checks)


def test_infinite_values_must_be_the_same_ones() -> None:
    class Infinite(nn.Module):
        def __init__(self, sign: float) -> None:
            super().__init__()
            self.sign = sign

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, torch.full_like(x, self.sign * torch.inf)], 1)

    x = torch.randn(7, 3)
    graph = static_graph(Infinite(1.0), x)
    assert all(c.ok for c in prove(Infinite(1.0), graph, x, SIZES))
    assert not any(c.ok for c in prove(Infinite(-1.0), graph, x, SIZES))


def test_a_network_that_decides_otherwise_is_caught() -> None:
    net, x = of_one_tensor("one_expert")
    graph = graph_of("one_expert", False, replay=False)
    with torch.no_grad():
        net.router.weight.mul_(-1)
    checks = prove(net, graph, x, SIZES)
    assert not any(c.ok for c in checks) and any(c.differ > 0 for c in checks)


@pytest.mark.parametrize("name", ["programs", "programs_of_parts"])
@pytest.mark.parametrize("single, replay", FORMS)
def test_a_program_is_refused(name: str, single: bool, replay: bool) -> None:
    net, x = of_one_tensor(name)
    with pytest.raises(CannotTrace, match="Program 'program' is scheduled on the host"):
        compiled(net, x, single=single, replay=replay)
