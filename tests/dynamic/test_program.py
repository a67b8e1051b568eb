"""Program: layouts as decisions, schedules, and the three ways to execute them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dynbench.counting.flops import FlopCounter
from dynbench.dynamic import Each, Execution, Op, Program, Skip, Trace, points
from dynbench.dynamic.program import ARGUMENTS, MODULE, NONE, WORD
from dynbench.dynamic.sources import edge, keep_rate, synthetic
from dynbench.meters.cost import cost
from dynbench.meters.required import PartCosts
from dynbench.strategies import STRATEGIES, Masking, PerSample
from tests.networks import random_layouts

WAYS = ["masking", "compaction", "per_sample"]
TAKES: tuple[list[int], list[int]] = ([0, 1, 2], [1, 2])  # arguments of ops 0, 1, 2 and of heads 3, 4
D = 4


class Linear(nn.Module):
    """tanh of a linear layer of x, if it looks, and the arguments; the word shifts. Remembers the size of each call."""

    def __init__(self, arguments: int, looks: bool, out: int = D) -> None:
        super().__init__()
        self.linear, self.looks = nn.Linear(D * (arguments + looks), out), looks
        self.calls: list[int] = []

    def forward(self, what: Any) -> Tensor:
        x, args, word = what
        assert (x is not None) == self.looks
        y = self.linear(torch.cat([x, *args] if self.looks else args, 1))
        self.calls.append(y.shape[0])
        return torch.tanh(y + word[:, None] / 3)


class Net(nn.Module):
    """x [n, 4] and layouts [n, N, 4]."""

    def __init__(self, nodes: int = 6, static: Any = None) -> None:
        super().__init__()
        ops = [Op(Linear(0, True), 0), Op(Linear(1, True), 1), Op(Linear(2, False), 2, looks=False)]
        heads = [Op(Linear(1, True, 3), 1), Op(Linear(2, False, 3), 2, looks=False)]
        self.program = Program("layout", lambda cue: cue.cpu(), ops, heads, (D,), nodes, static=static)

    @property
    def calls(self) -> list[list[int]]:
        return [m.calls for m in self.program.experts]

    def forward(self, x: Tensor, layouts: Tensor) -> Tensor:
        return self.program(x, layouts)


def layouts_of(n: int, nodes: int = 6) -> Tensor:
    """Random layouts with two nodes or more: no head stands alone."""
    return random_layouts(n, nodes, *TAKES, least=2)


def make(n: int, seed: int = 0, nodes: int = 6) -> tuple[Net, Tensor, Tensor]:
    torch.manual_seed(seed)
    return Net(nodes).eval(), torch.randn(n, D), layouts_of(n, nodes)


def by_hand(net: Net, x: Tensor, layouts: Tensor) -> Tensor:
    """Each item's program as a recursion from its answer."""

    def value(i: int, j: int) -> Tensor:
        op, word, *args = layouts[i, j].tolist()
        given = [value(i, a) for a in args if a != NONE]
        expert = net.program.experts[op]
        return expert((x[i : i + 1] if expert.looks else None, given, torch.tensor([word])))

    length = (layouts[:, :, MODULE] != NONE).sum(1).tolist()
    return torch.cat([value(i, length[i] - 1) for i in range(len(x))])


def run(net: nn.Module, args: tuple[Any, ...], strategy: str, **how: Any) -> tuple[Tensor, Trace]:
    ex = Execution(STRATEGIES[strategy](), record=True, **how)
    with torch.inference_mode():
        y = ex.run(net, *args)
    assert ex.trace is not None
    return y, ex.trace


@settings(max_examples=20, deadline=None, derandomize=True)
@given(n=st.integers(1, 9), nodes=st.integers(2, 7), seed=st.integers(0, 1000))
def test_every_way_to_execute_gives_what_the_recursion_gives(n: int, nodes: int, seed: int) -> None:
    net, x, layouts = make(n, seed, nodes)
    with torch.inference_mode():
        want = by_hand(net, x, layouts)
        assert torch.allclose(net(x, layouts), want, atol=1e-6)  # the static twin: everything, then select
    for strategy in WAYS:
        y, trace = run(net, (x, layouts), strategy)
        assert torch.allclose(y, want, atol=1e-6), strategy
        value, reached = trace.entries["layout", ()]
        assert torch.equal(value, layouts) and reached.all()


@settings(max_examples=20, deadline=None, derandomize=True)
@given(n=st.integers(1, 12), nodes=st.integers(2, 7), seed=st.integers(0, 1000))
def test_a_schedule_has_every_node_once_after_its_arguments_and_a_module_once_per_depth(
    n: int, nodes: int, seed: int
) -> None:
    net, _, layouts = make(n, seed, nodes)
    groups, table = net.program.schedule(layouts)
    rows = [row for group in groups for row in table[group.rows].tolist()]
    at = [(sample, node) for sample, node, *_ in rows]
    assert Counter(at) == Counter(map(tuple, (layouts[:, :, MODULE] != NONE).nonzero().tolist()))
    done: dict[tuple[int, int], int] = {}  # node -> its depth
    called = []
    for op, rows_of in groups:
        depths = set()
        for sample, node, word, *args in table[rows_of].tolist():
            own = layouts[sample, node].tolist()
            assert own[MODULE] == op and word == max(own[WORD], 0)
            below = [done[sample, a] for a in own[ARGUMENTS:] if a != NONE]  # a KeyError: not computed yet
            assert args[: len(below)] == own[ARGUMENTS : ARGUMENTS + len(below)]
            depths.add(max(below, default=-1) + 1)
        (depth,) = depths
        called.append((depth, op))
        done |= {(s, j): depth for s, j, *_ in table[rows_of].tolist()}
    assert called == sorted(set(called))


LAYOUTS = torch.tensor(
    [
        [[0, 0, -1, -1], [3, 0, 0, -1], [-1] * 4, [-1] * 4],
        [[0, 1, -1, -1], [0, 2, -1, -1], [2, 0, 0, 1], [3, 0, 2, -1]],
        [[0, 2, -1, -1], [3, 0, 0, -1], [-1] * 4, [-1] * 4],  # wired as the first, other words
    ]
)


def test_how_often_modules_are_called_for_how_many_items() -> None:
    expected = {
        "per_sample": [[1, 1, 1, 1], [], [1], [1, 1, 1], []],
        "compaction": [[4], [], [1], [2, 1], []],  # the head at depth 1 for two items, at depth 2 for one
        "masking": [[3, 3, 3], [], [3], [3, 3], []],  # two layouts, each on the whole batch
    }
    for strategy, calls in expected.items():
        torch.manual_seed(0)
        net = Net(4).eval()
        run(net, (torch.randn(3, D), LAYOUTS), strategy)
        assert net.calls == calls, strategy


def test_work_that_is_required_is_what_running_each_item_alone_executes() -> None:
    net, x, layouts = make(10, seed=3)
    executed = {}
    for strategy in WAYS:
        with FlopCounter(strict=True) as work:
            _, trace = run(net, (x, layouts), strategy)
        executed[strategy] = work.flops
    parts = PartCosts(net, x, layouts)
    assert parts.required(trace).region == executed["per_sample"] == executed["compaction"] < executed["masking"]
    depths, label = parts.path_depths(trace)
    length = (layouts[:, :, MODULE] != NONE).sum(1)
    assert depths.tolist() == length.tolist() and label == "nodes run of 6"
    assert keep_rate(trace, net) == pytest.approx(float(length.double().mean()) / 6)
    (point,) = cost(net, x, layouts)["decision_points"]
    macs = [4 * 4, 8 * 4, 8 * 4, 8 * 3, 8 * 3]
    assert point["kind"] == "Program" and point["region_macs"] == round(sum(macs) / 5)


def test_a_replayed_layout_is_run_instead_of_the_item_s_own() -> None:
    net, x, layouts = make(7)
    _, other = run(net, (x, layouts.flip(0)), "per_sample")
    with torch.inference_mode():
        want = by_hand(net, x, layouts.flip(0))
    for strategy in WAYS:
        y, trace = run(net, (x, layouts), strategy, replay=other)
        assert torch.allclose(y, want, atol=1e-6) and trace == other


def test_a_layout_can_be_chosen_and_is_told() -> None:
    net, x, layouts = make(5)
    told: list[Tensor] = []
    chosen = layouts[:1].expand_as(layouts)
    ex = Execution(
        Masking(), choose=lambda point, own: chosen, observe=lambda point, own, used: told.extend((own, used))
    )
    with torch.inference_mode():
        assert torch.allclose(ex.run(net, x, layouts), by_hand(net, x, chosen), atol=1e-6)
    assert torch.equal(told[0], layouts) and torch.equal(told[1], chosen)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(items=st.floats(0, 1), skew=st.floats(0, 4), seed=st.integers(0, 100))
def test_made_up_programs_are_those_of_the_stream(items: float, skew: float, seed: int) -> None:
    net, x, layouts = make(12, seed)
    _, tables = run(net, (x, layouts), "masking")
    trace = synthetic(tables, net, item_correlation=items, expert_skew=skew, seed=seed)
    value, reached = trace.entries["layout", ()]
    known = {tuple(layout.flatten().tolist()) for layout in layouts}
    assert reached.all() and {tuple(v.flatten().tolist()) for v in value} <= known
    if items == 1:
        assert len(value.unique(dim=0)) == 1


def test_a_skew_prefers_the_layout_that_is_most_frequent() -> None:
    net, x, layouts = make(200)
    layouts[50:] = layouts[0]
    _, tables = run(net, (x, layouts), "masking")
    for skew, least in ((0.0, 0.0), (6.0, 0.9)):
        value = synthetic(tables, net, expert_skew=skew, seed=1).entries["layout", ()].value
        share = float((value == layouts[0]).flatten(1).all(1).double().mean())
        assert share >= least and (skew > 0 or share < 0.2)


def test_at_the_edges_are_the_largest_and_the_smallest_program() -> None:
    net, x, layouts = make(9, seed=1)
    _, tables = run(net, (x, layouts), "masking")
    length = (layouts[:, :, MODULE] != NONE).sum(1)
    assert length.min() < length.max()
    for kind, expected in (("all", [length.max()] * 9), ("none", [length.min()] * 9)):
        value = edge(tables, net, kind).entries["layout", ()].value
        assert (value[:, :, MODULE] != NONE).sum(1).tolist() == expected
    one = edge(tables, net, "one").entries["layout", ()].value
    assert (one[:, :, MODULE] != NONE).sum(1).tolist() == [length.max()] + [length.min()] * 8


class Halved(nn.Module):
    """A module with a Skip, asked once for each node that it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.skip = Skip("half", lambda a, carry: (a[:, 0], carry), nn.Linear(D, D))

    def forward(self, what: Any) -> Tensor:
        _, (a,), _ = what
        return self.skip(a)[0]


def nested() -> Net:
    torch.manual_seed(0)
    net = Net(5).eval()
    heads = net.program.ops[3:]
    ops = [net.program.ops[0], Op(Halved(), 1, looks=False), net.program.ops[2]]
    net.program = Program("layout", lambda cue: cue.cpu(), ops, heads, (D,), 5)
    return net


def test_a_point_inside_a_module_is_asked_at_the_node() -> None:
    net = nested()
    layouts = torch.full((3, 5, 4), NONE)
    layouts[0, :4] = torch.tensor([[0, 0, -1, -1], [1, 0, 0, -1], [1, 0, 1, -1], [3, 0, 2, -1]])
    layouts[1, :2] = torch.tensor([[0, 0, -1, -1], [3, 0, 0, -1]])
    layouts[2, :4] = torch.tensor([[0, 1, -1, -1], [0, 0, -1, -1], [1, 0, 0, -1], [4, 0, 1, 2]])
    x = torch.randn(3, D)
    answer, oracle = run(net, (x, layouts), "per_sample")
    asked = oracle.entries["half", (5,)].reached.view(3, 5)
    assert asked.nonzero().tolist() == [[0, 1], [0, 2], [2, 2]]
    for strategy in WAYS:
        for replay in (None, edge(oracle, net, "all"), edge(oracle, net, "none")):
            want, trace = run(net, (x, layouts), "per_sample", replay=replay)
            y, own = run(net, (x, layouts), strategy, replay=replay)
            assert torch.allclose(y, want, atol=1e-6) and own == trace
    with FlopCounter() as work:
        run(net, (x, layouts), "per_sample")
    assert PartCosts(net, x, layouts).required(oracle).region == work.flops
    assert not torch.allclose(answer, run(net, (x, layouts), "masking", replay=edge(oracle, net, "none"))[0])
    assert set(points(net)) == {"layout", "half"}


def test_a_program_for_each_part_of_a_sample() -> None:
    net, x, layouts = make(12, seed=5)

    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net
            self.each = Each(self.both)

        def both(self, state: Any) -> Tensor:
            return self.net(*state)

        def forward(self, x: Tensor, layouts: Tensor) -> Tensor:
            return self.each((x, layouts))

    for strategy in WAYS:
        y, trace = run(Parts(), (x.view(4, 3, D), layouts.view(4, 3, 6, 4)), strategy)
        assert torch.allclose(y.flatten(0, 1), run(net, (x, layouts), strategy)[0], atol=1e-6)
        assert torch.equal(trace.entries["layout", (3,)].value, layouts)


class Poison(nn.Module):
    """NaN for words that are not its own."""

    def forward(self, what: Any) -> Tensor:
        x, _, word = what
        return torch.where(word[:, None] == 1, x, torch.full_like(x, float("nan")))


@pytest.mark.parametrize("strategy", WAYS)
def test_nothing_leaks_from_the_program_of_another(strategy: str) -> None:
    net = Net(2)
    net.program = Program(
        "layout",
        lambda cue: cue.cpu(),
        [Op(Poison(), 0), Op(nn.Identity(), 0)],
        [Op(Linear(1, False), 1, False)],
        (D,),
        2,
    )
    net.program.experts[1] = Plain()
    layouts = torch.tensor([[[0, 1, -1], [2, 0, 0]], [[1, 0, -1], [2, 0, 0]], [[1, 2, -1], [2, 0, 0]]])
    y, _ = run(net, (torch.randn(3, D), layouts), strategy)
    assert torch.isfinite(y).all()


class Plain(nn.Module):
    def forward(self, what: Any) -> Tensor:
        return what[0]


@pytest.mark.parametrize("strategy", [*WAYS, "dense"])
def test_modules_learn_from_the_items_that_compose_them(strategy: str) -> None:
    grads = []
    for s in (strategy, "per_sample"):
        net, x, layouts = make(8, seed=2)
        net.train()
        Execution(STRATEGIES[s]()).run(net, x, layouts).square().sum().backward()
        grads.append([torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters()])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*grads, strict=True))
    assert sum(bool(g.any()) for g in grads[0]) >= 8


GOOD = [[0, 0, -1, -1], [0, 1, -1, -1], [2, 0, 0, 1], [3, 0, 2, -1]]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([[-1] * 4] * 4, "one node or more"),
        ([GOOD[0], [-1] * 4, GOOD[3], [-1] * 4], "nothing between"),
        ([[9, 0, -1, -1], *GOOD[1:]], "modules are 0 to 4"),
        ([*GOOD[:3], [2, 0, 0, 1]], "is a head"),
        ([GOOD[0], [3, 0, 0, -1], *GOOD[2:]], "is a head"),
        ([*GOOD[:2], [2, 0, 0, 2], GOOD[3]], "earlier nodes"),
        ([*GOOD[:2], [2, 0, 0, -1], GOOD[3]], "takes 2"),
        ([[0, 0, 0, -1], *GOOD[1:]], "takes 0"),
        (GOOD[:3], "a layout is"),
    ],
)
def test_what_is_no_layout_is_told_what_is_wrong(rows: list[list[int]], says: str) -> None:
    net = Net(4)
    net.program.check(torch.tensor(GOOD))
    with pytest.raises(ValueError, match=says):
        net.program.check(torch.tensor(rows))


def test_a_program_without_a_head_or_room_is_refused() -> None:
    with pytest.raises(ValueError, match="no head"):
        Program("p", lambda cue: cue, [Op(Plain(), 0)], [], (D,), 2)
    with pytest.raises(ValueError, match="at least one"):
        Program("p", lambda cue: cue, [], [Op(Plain(), 0)], (D,), 0)


def test_a_static_twin_of_one_s_own_is_used_outside_an_execution() -> None:
    torch.manual_seed(0)
    net = Net(6, static=lambda x, layouts: x.sum(1) + layouts[:, 0, MODULE])
    x, layouts = torch.randn(3, D), layouts_of(3)
    assert torch.equal(net(x, layouts), x.sum(1) + layouts[:, 0, MODULE])
    assert torch.equal(Execution(STRATEGIES["dense"]()).run(net, x, layouts), net(x, layouts))


def test_the_oracle_is_recorded_once_per_item() -> None:
    net, x, layouts = make(6)
    ex = Execution(PerSample(), record=True)
    with torch.inference_mode():
        for start in (0, 3):
            ex.run(net, x[start : start + 3], layouts[start : start + 3], start=start, items=6)
    assert ex.trace is not None and ex.trace == run(net, (x, layouts), "compaction")[1]
