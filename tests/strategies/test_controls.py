"""Controls: what is left out is not done, what is left in is done as before, whatever network."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dynbench.counting.flops import FlopCounter
from dynbench.dynamic import Each, Execution, Exits, Program, Route, Skip, Trace, points
from dynbench.dynamic.items import tensors
from dynbench.meters.required import PartCosts
from dynbench.strategies import STRATEGIES, PerSample, Strategy
from dynbench.strategies.controls import LEFT, Without, control, filled_up, refuses_control
from tests.networks import NETWORKS, make

MOVES = ("index_select", "gather", "index_copy_", "index_copy", "scatter")
CONTROLLED = [
    (strategy, name)
    for strategy in ("cascading", "compaction", "masking")
    for name in NETWORKS
    if STRATEGIES[strategy]().refuses(make(name)[0]) is None
    and refuses_control(strategy, "everything", make(name)[0]) is None
]


class Operators(TorchDispatchMode):
    """Counts operators by name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def decided(net: nn.Module, args: tuple[Any, ...], strategy: Strategy | None = None) -> Trace:
    ex = Execution(strategy or PerSample(), record=True)
    ex.run(net, *args)
    assert ex.trace is not None
    return ex.trace


@torch.inference_mode()
def executed(ex: Execution, net: nn.Module, args: tuple[Any, ...], *, warm: int = 1) -> tuple[int, Counter[str], Any]:
    """FLOPs, operators and answer of a pass, after `warm` passes in which a control learns."""
    for _ in range(warm):
        ex.run(net, *args)
    flops, operators = FlopCounter(), Operators()
    with flops:
        answer = ex.run(net, *args)
    with operators:
        ex.run(net, *args)
    return flops.flops, operators.calls, answer


def without(strategy: str, part: Any, trace: Trace) -> Without:
    return Without(control(strategy, part), replay=trace)


class Gate(nn.Module):
    """A gate with work of its own: a product of which there is no other of this kind in the network."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(d))

    def forward(self, x: Tensor, carry: Any) -> tuple[Tensor, Any]:
        return torch.mv(x, self.weight), carry


class Blocks(nn.Module):
    """Three Skips over linear bodies; 3 of 8 items run each."""

    def __init__(self, d: int = 16) -> None:
        super().__init__()
        self.skips = nn.ModuleList([Skip(f"s{i}", Gate(d), nn.Linear(d, d)) for i in range(3)])
        self.head = nn.Linear(d, 4)

    def forward(self, x: Tensor) -> Tensor:
        for skip in self.skips:
            x, _ = skip(x)
        return self.head(x)


def blocks() -> tuple[nn.Module, Tensor, Trace]:
    torch.manual_seed(0)
    net, x = Blocks().eval(), torch.randn(8, 16)
    trace = decided(net, (x,))
    for entry in trace.entries.values():
        entry.value.copy_(torch.tensor([1, 0, 0, 1, 0, 0, 1, 0], dtype=torch.bool))
    return net, x, trace


def test_dense_at_the_active_count_does_exactly_the_work_of_the_bodies() -> None:
    net, x, trace = blocks()
    flops, operators, _ = executed(without("compaction", "everything", trace), net, (x,))
    assert flops == 3 * 3 * 2 * 16 * 16 + 8 * 2 * 16 * 4  # bodies for three items each, the head for all
    assert operators["addmm"] + operators["linear"] == 4 and operators["mv"] == 0
    assert not any(operators[name] for name in (*MOVES, "nonzero", "clone"))


def test_known_ahead_moves_and_asks_no_gate_and_waits_for_nothing() -> None:
    net, x, trace = blocks()
    whole, usual, right = executed(Execution(STRATEGIES["compaction"](), replay=trace), net, (x,))
    flops, operators, answer = executed(without("compaction", "deciding", trace), net, (x,))
    assert usual["mv"] == 3 and operators["mv"] == 0
    assert usual["nonzero"] == 3 and operators["nonzero"] == 0
    assert operators["index_select"] == usual["index_select"] and operators["index_copy_"] == usual["index_copy_"]
    assert whole - flops == 3 * 2 * 8 * 16  # the gates, for all items
    torch.testing.assert_close(answer, right)


def test_no_wait_asks_the_gates_and_waits_for_nothing() -> None:
    net, x, trace = blocks()
    whole, usual, right = executed(Execution(STRATEGIES["compaction"](), replay=trace), net, (x,))
    flops, operators, answer = executed(without("compaction", "waiting", trace), net, (x,))
    assert (flops, operators["mv"], operators["nonzero"]) == (whole, 3, 0)
    torch.testing.assert_close(answer, right)


def test_nothing_moved_decides_and_waits_and_moves_nothing() -> None:
    net, x, trace = blocks()
    whole, usual, _ = executed(Execution(STRATEGIES["compaction"](), replay=trace), net, (x,))
    flops, operators, _ = executed(without("compaction", "moving", trace), net, (x,))
    assert (flops, operators["mv"], operators["nonzero"]) == (whole, 3, usual["nonzero"])
    assert not any(operators[name] for name in (*MOVES, "clone"))


@pytest.mark.parametrize(("strategy", "name"), CONTROLLED)
def test_a_control_does_the_work_that_is_left_in(strategy: str, name: str) -> None:
    net, args = make(name)
    trace = decided(net, args)
    if any(p.scope == "batch" for p in points(net).values()):
        trace = decided(net, args, STRATEGIES[strategy]())
    if strategy == "masking":
        trace = filled_up(trace, decided(net, args, STRATEGIES[strategy]()))
    whole, _, right = executed(Execution(STRATEGIES[strategy](), replay=trace), net, args)
    found = {
        p: executed(without(strategy, p, trace), net, args) for p in LEFT if refuses_control(strategy, p, net) is None
    }
    bare, known = found["everything"][0], found["deciding"][0]
    assert bare <= known <= whole
    assert found["moving"][0] <= whole
    if "waiting" in found:
        assert found["waiting"][0] == whole
        for got, wanted in zip(tensors(found["waiting"][2]), tensors(right), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strategy", ["cascading", "compaction"])
@pytest.mark.parametrize("name", ["pyramid", "ponder"])
def test_known_ahead_answers_as_the_network_where_no_weights_follow_from_scores(strategy: str, name: str) -> None:
    net, args = make(name)
    trace = decided(net, args)
    _, _, right = executed(Execution(STRATEGIES[strategy](), replay=trace), net, args)
    _, _, got = executed(without(strategy, "deciding", trace), net, args)
    torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-5)


def leaving() -> tuple[nn.Module, Tensor, Trace]:
    """Four stages; of 6 items, two leave after the first, none after the second, one after the third."""
    torch.manual_seed(0)
    stages, heads = [nn.Linear(8, 8) for _ in range(4)], [nn.Linear(8, 2) for _ in range(4)]
    net = Exits("exit", stages, heads, lambda answer, state, k: answer[:, 0] > 0).eval()
    x = torch.randn(6, 8)
    trace = decided(net, (x,))
    rows = [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    next(iter(trace.entries.values())).value.copy_(torch.tensor(rows).bool().flatten())
    return net, x, trace


def test_compaction_of_a_loop_moves_as_often_with_its_decisions_known_as_without() -> None:
    net, x, trace = leaving()
    _, usual, right = executed(Execution(STRATEGIES["compaction"](), replay=trace), net, (x,))
    found = {p: executed(without("compaction", p, trace), net, (x,)) for p in LEFT}
    states_back = 3  # after each step that follows the first who leave
    assert usual["index_copy_"] == states_back + 3  # and the answers of these steps
    assert found["waiting"][1]["index_copy_"] == usual["index_copy_"]
    assert found["deciding"][1]["index_copy_"] == states_back + 3  # and the answers of those who leave, by three heads
    for part in ("everything", "moving"):
        assert not any(found[part][1][name] for name in MOVES if name != "index_select" or part == "everything")
    for part in ("everything", "deciding", "waiting"):
        assert not any(found[part][1][name] for name in ("nonzero", "masked_select", "index"))
    for part in ("deciding", "waiting"):
        torch.testing.assert_close(found[part][2], right)
    assert found["everything"][0] == 2 * 8 * 8 * (6 + 4 + 4 + 3) + 2 * 8 * 2 * 6  # an answer for each item, once
    assert found["moving"][0] == found["waiting"][0] == 2 * 8 * 10 * (6 + 4 + 4 + 3)


def test_a_loop_of_compaction_moves_more_than_one_of_cascading_and_is_else_the_same() -> None:
    net, x, trace = leaving()
    for part in LEFT:
        ours, theirs = (executed(without(s, part, trace), net, (x,)) for s in ("compaction", "cascading"))
        assert ours[0] == theirs[0]
        put_back = [calls["index_copy_"] for _, calls, _ in (ours, theirs)]
        assert put_back[0] > put_back[1] if LEFT[part].moves else put_back == [0, 0]


def test_the_heads_of_exits_run_for_those_alone_who_leave_by_them() -> None:
    torch.manual_seed(0)
    stages, heads = [nn.Linear(8, 8) for _ in range(3)], [nn.Linear(8, 2) for _ in range(3)]
    net = Exits("exit", stages, heads, lambda answer, state, k: answer[:, 0] > 0).eval()
    x = torch.randn(6, 8)
    trace = decided(net, (x,))
    entry = next(iter(trace.entries.values()))
    entry.value.copy_(torch.tensor([[1, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0]]).bool().flatten())
    flops, operators, answer = executed(without("cascading", "everything", trace), net, (x,))
    assert flops == 2 * 8 * 8 * (6 + 4 + 3) + 2 * 8 * 2 * 6  # an answer for each item, once
    assert answer.shape == (6, 2) and not any(operators[name] for name in MOVES)
    right = executed(Execution(STRATEGIES["cascading"](), replay=trace), net, (x,))[2]
    torch.testing.assert_close(executed(without("cascading", "deciding", trace), net, (x,))[2], right)


def test_work_at_the_active_count_is_the_required_work_of_the_bodies() -> None:
    net, x, trace = blocks()
    required = PartCosts(net, x).required(trace)
    assert executed(without("compaction", "everything", trace), net, (x,))[0] == required.region


def test_experts_get_as_many_items_as_go_to_them() -> None:
    torch.manual_seed(0)
    experts = [nn.Linear(8, 8) for _ in range(4)]
    route = Route("moe", nn.Linear(8, 4), experts, 2, lambda s, c: s.gather(1, c).softmax(-1))
    net, x = Each(route).eval(), torch.randn(3, 5, 8)
    trace = decided(net, (x,))
    flops, operators, _ = executed(without("compaction", "everything", trace), net, (x,))
    assert flops == 15 * 2 * 2 * 8 * 8  # two experts for each token, no router
    assert not any(operators[name] for name in (*MOVES, "sort", "bincount"))


def test_what_means_nothing_is_refused_with_the_reason() -> None:
    net = make("pyramid")[0]
    assert "waits for nothing" in (refuses_control("masking", "waiting", net) or "")
    assert refuses_control("compaction", "everything", net) is None
    assert "no control of per_sample" in (refuses_control("per_sample", "everything", net) or "")
    assert "in the course of its own work" in (refuses_control("compaction", "deciding", make("programs")[0]) or "")
    assert any(isinstance(p, Program) for p in points(make("programs")[0]).values())
    assert refuses_control("cascading", "deciding", net) is None


def test_each_batch_of_a_stream_is_known_by_itself() -> None:
    net, x, trace = blocks()
    for entry in trace.entries.values():
        entry.value.copy_(torch.tensor([1, 1, 1, 0, 0, 0, 1, 0], dtype=torch.bool))
    usual, ex = Execution(STRATEGIES["compaction"](), replay=trace), without("compaction", "deciding", trace)
    with torch.inference_mode():
        for _ in range(2):
            for start in (0, 4):
                part = x[start : start + 4]
                right = usual.run(net, part, start=start, items=8)
                torch.testing.assert_close(ex.run(net, part, start=start, items=8), right)
