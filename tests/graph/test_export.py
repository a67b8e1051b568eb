"""Names in a graph, where weights and gates lie, the FLOPs that it executes, and what cannot be one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from dynbench.counting.flops import FlopCounter
from dynbench.dynamic import Execution, Loop, Skip
from dynbench.graph import CannotTrace, Graph, Session, compiled, executed_flops, prove, static_graph
from dynbench.strategies import STRATEGIES
from tests.graph.networks import FORMS, GRAPHS, graph_of, of_one_tensor
from tests.graph.test_session import recorded

COUNTED = [n for n in GRAPHS if n not in ("mixture", "widths", "picking")]  # Einsum; sliced for all; see `networks`


def nodes_of(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from nodes_of(attribute.g)


def weights_of(graph: onnx.GraphProto, depth: int = 0) -> Iterator[tuple[str, int]]:
    """(name, how many branches it lies in) of each weight."""
    yield from ((w.name, depth) for w in graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from weights_of(attribute.g, depth + 1)


class Blocks(nn.Module):
    """`layer1.0.conv1` in a Skip, called twice; a module and a weight with names of inputs and outputs."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.Sequential()
        block.add_module("conv1", nn.Conv2d(3, 3, 3, padding=1))
        self.layer1 = nn.Sequential(block)
        self.x, self.answer = nn.Parameter(torch.ones(1, 3, 1, 1)), nn.Flatten()
        self.skip = Skip("gated", lambda x, carry: (x.mean((1, 2, 3)), carry), self.layer1)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        y, _ = self.skip(x * self.x)
        y, _ = self.skip(y)
        return self.answer(y), {"again": y}


def test_nodes_are_named_after_modules_and_outputs_have_stable_names() -> None:
    graph = compiled(Blocks().eval(), torch.randn(7, 3, 6, 6), single=False, replay=True)
    nodes = list(nodes_of(graph.model.graph))
    names = [n.name for n in nodes]
    assert len(set(names)) == len(names)
    assert {n.name for n in nodes if n.op_type == "Conv"} == {"/layer1/0/conv1/Conv", "/layer1/0/conv1_1/Conv"}
    assert {n.name for n in nodes if n.op_type == "If"} == {"/skip/Either", "/skip_1/Either"}
    assert [i.name for i in graph.model.graph.input] == ["x", "decided:gated"]
    assert [o.name for o in graph.model.graph.output] == ["answer", "answer.1", "decision:gated", "items:gated"]
    assert graph.answers == ("answer", "answer.1")
    assert {"layer1.0.conv1.weight", "layer1.0.conv1.bias"} <= {n for n, _ in weights_of(graph.model.graph)}
    onnx.checker.check_model(graph.model)


def test_names_are_those_of_the_static_network_too() -> None:
    graph = static_graph(Blocks().eval(), torch.randn(7, 3, 6, 6))
    assert {"/layer1/0/conv1/Conv", "/answer/Flatten"} <= {n.name for n in nodes_of(graph.model.graph)}
    assert [o.name for o in graph.model.graph.output] == ["answer", "answer.1"]


def test_an_answer_that_is_the_input_or_comes_twice_is_an_output_all_the_same() -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            y = x + 1
            return y, x, y

    x = torch.randn(3, 2)
    session = Session(static_graph(Twice(), x))
    a, b, c = session.answer(session.feeds(x))
    assert torch.equal(a, x + 1) and torch.equal(b, x) and torch.equal(c, x + 1)


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_is_plain_onnx(name: str) -> None:
    model = graph_of(name, True, True).model
    onnx.checker.check_model(model)
    assert {n.domain for n in nodes_of(model.graph)} == {""}


@pytest.mark.parametrize("single", [True, False])
def test_weights_lie_in_the_branches_that_use_them(single: bool) -> None:
    graph = graph_of("pyramid", single, False).model.graph
    depth = dict(weights_of(graph))
    assert depth["stages.0.down.weight"] == 0
    assert depth["stages.0.wide.body.weight"] == depth["stages.0.wide.otherwise.weight"] == 1
    assert depth["stages.1.down.weight"] == 1  # behind an exit
    assert depth["stages.1.wide.body.weight"] == 2
    assert depth["stages.2.down.weight"] == (2 if single else 1)  # for any batch, steps are branches side by side


@pytest.mark.parametrize("single, replay", FORMS)
@pytest.mark.parametrize("name", COUNTED)
def test_a_graph_executes_the_flops_of_compaction(name: str, single: bool, replay: bool) -> None:
    net, _ = of_one_tensor(name)
    x, trace = recorded(name, 1 if single else 7)
    replayed = trace if replay else None
    with FlopCounter() as counter, torch.no_grad():
        Execution(STRATEGIES["compaction"](), replay=replayed).run(net, x)
    graph = graph_of(name, single, replay)
    assert executed_flops(graph, [Session(graph).feeds(x, replayed)]) == counter.flops > 0


def run(graph: Graph, folder: Path, x: Tensor, **more: object) -> set[str]:
    """Names of the nodes that ONNX Runtime ran."""
    session = Session(graph, fast=False, profile=str(folder / "profile"))
    session.answer(session.feeds(x, **more))  # type: ignore[arg-type]
    events = json.loads(Path(session.session.end_profiling()).read_text(encoding="utf-8"))
    return {e["name"].removesuffix("_kernel_time") for e in events if e["name"].endswith("_kernel_time")}


@pytest.mark.parametrize("single", [True, False])
def test_gates_run_where_decisions_are_replayed_and_bodies_only_where_decided(single: bool, tmp_path: Path) -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Linear(3, 1)
            self.skip = Skip("skip", lambda x, carry: (self.gate(x)[:, 0], carry), nn.Linear(3, 3))
            self.norm = nn.Sequential(*(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)) for _ in range(3)))
            self.long = Skip("long", lambda x, carry: (self.gate(x)[:, 0], carry), self.norm)

        def forward(self, x: Tensor) -> Tensor:
            return self.long(self.skip(x)[0])[0]

    net, x = Gated().eval(), torch.randn(1 if single else 5, 3)
    graph = compiled(net, x, single=single, replay=True)
    execution = Execution(STRATEGIES["masking"](), record=True)
    with torch.no_grad():
        execution.run(net, x)
    assert execution.trace is not None
    for entry in execution.trace.entries.values():
        entry.value[:] = False
    nobody = run(graph, tmp_path, x, trace=execution.trace)
    for entry in execution.trace.entries.values():
        entry.value[:] = True
    everybody = run(graph, tmp_path, x, trace=execution.trace)
    assert {"/gate/Gemm", "/gate/Gemm_1"} <= nobody & everybody
    assert any(name.startswith("/norm/2/1") for name in everybody)
    assert not any(name.startswith("/norm") for name in nobody)


def test_parameters_of_an_unknown_module_are_refused_without_a_word(capfd: pytest.CaptureFixture[str]) -> None:
    net, x = of_one_tensor("fixed_loop")
    with pytest.raises(CannotTrace, match="parameters of a module that is not among its own"):
        compiled(net, x, single=False)
    assert capfd.readouterr() == ("", "")


class Inverse(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.inv(x)


class Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("not today\nnor tomorrow")


@pytest.mark.parametrize(
    "module, said",
    [
        (
            Inverse(),
            "^the network cannot be a graph: the exporter does not know operator aten::linalg_inv in opset 17$",
        ),
        (Fails(), r"^the network cannot be a graph: RuntimeError: not today nor tomorrow \(in Fails '1'\)$"),
    ],
)
def test_what_cannot_be_written_down_is_named_without_a_word(
    module: nn.Module, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    net, x = nn.Sequential(nn.Linear(3, 3), module), torch.randn(4, 3, 3)
    for make in (static_graph, lambda net, x: compiled(net, x, single=False)):
        with pytest.raises(CannotTrace, match=said):
            make(net, x)
    assert capfd.readouterr() == ("", "")


def test_an_example_without_items_is_refused() -> None:
    with pytest.raises(CannotTrace, match="the example has no items"):
        static_graph(nn.Linear(3, 3), torch.randn(0, 3))


class Counted(nn.Module):
    """A Loop whose state holds whole numbers, which the exporter takes for floats where `full` made them."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.loop = Loop("loop", self._step, lambda answer, state, k: answer[:, 0] > 0.5, 3, self._head)

    def _step(self, state: tuple[Tensor, Tensor], k: int) -> tuple[Tensor, Tensor]:
        x, at = state
        return x, torch.where(x[:, 0] > 0, at, (at + 1).clamp(max=4))

    def _head(self, state: tuple[Tensor, Tensor], k: int) -> Tensor:
        x, at = state
        return x + self.table(at)

    def forward(self, x: Tensor) -> Tensor:
        return self.loop((x, torch.full((x.shape[0],), 1)))


@pytest.mark.parametrize("single, replay", FORMS)
def test_whole_numbers_in_a_state_stay_whole_numbers(single: bool, replay: bool) -> None:
    torch.manual_seed(0)
    net, x = Counted().eval(), torch.randn(7, 4)
    assert [c for c in prove(net, compiled(net, x, single=single, replay=replay), x, (1, 2, 7)) if not c.ok] == []
