"""A decision point of a user's own: what it says about itself is enough to take part in everything."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dynbench.counting.flops import FlopCounter
from dynbench.dynamic import (
    DecisionPoint,
    Draw,
    Each,
    Execution,
    Exits,
    Label,
    Skip,
    Trace,
    TraceError,
    actions,
    current,
    points,
)
from dynbench.dynamic.sources import EDGES, edge, keep_rate, synthetic
from dynbench.dynamic.trace import Entry
from dynbench.meters.cost import cost
from dynbench.meters.required import PartCosts
from dynbench.strategies import STRATEGIES

DYNAMIC = ["masking", "compaction", "cascading", "per_sample"]
D, MOST = 4, 3
ONCE = 2 * D * D  # FLOPs of the body for one item
GATE = 2 * D


class Rounds(DecisionPoint):
    """The same body 0 to `most` times; how often is decided at once, [n] long. A round is a coordinate of its own."""

    path = Label(5, "rounds run")
    rates = 1

    def __init__(self, name: str, gate: nn.Module, body: nn.Module, most: int) -> None:
        super().__init__(name)
        self.gate, self.body, self.most = gate, body, most
        self.otherwise, self.consumes = None, False  # what the strategies' `skip` looks at ...
        self.experts = [None, body]  # ... or `route`, of two

    def parts(self) -> Iterator[nn.Module]:
        yield self.gate
        yield self.body

    def forward(self, x: Tensor) -> Tensor:
        ex = current()
        if ex is None:
            for _ in range(self.most):
                x = self.body(x)
            return x
        with ex.phase("decide", self.name):
            rounds = ex.decide(self, self.gate(x).squeeze(1), self.rule)
        for k in range(self.most):
            with ex.at(k, self.most):
                x = ex.strategy.skip(ex, self, x, rounds > k, None)
        return x

    def rule(self, scores: Tensor) -> Tensor:
        return (scores.sigmoid() * (self.most + 1)).long().clamp(max=self.most)

    def make_up(self, draw: Draw, like: Entry, rate: Tensor) -> Tensor:
        visits = draw.visits(like)
        return (draw.uniform(visits * self.most) < rate).view(-1, self.most).sum(1)

    def edges(self, like: Entry) -> tuple[Tensor, Tensor]:
        return torch.tensor(self.most), torch.tensor(0)

    def kept(self, decisions: Tensor) -> float:
        return float(decisions.sum()) / self.most

    def needed(self, trace: Trace, phase: str, index: int, sizes: tuple[int, ...]) -> Tensor | None:
        rounds = self.decided(trace, sizes[:-1]) if phase == "body" else None
        if rounds is None:
            return None
        runs = rounds[:, None] > torch.arange(self.most)
        return (runs if index else ~runs).flatten()

    def added(self, trace: Trace, index: int, sizes: tuple[int, ...]) -> tuple[int, int]:
        return index, index

    def in_static_twin(self, index: int) -> bool:
        return index == 1

    def action(self, item: str) -> Label:
        return Label(5, f"repeats a step as often as each {item} needs")


class Net(nn.Module):
    """Rounds for each of two parts of a sample, then an exit, so that not every item comes to the second Rounds."""

    def __init__(self) -> None:
        super().__init__()
        first = Each(Rounds("first", nn.Linear(D, 1, bias=False), nn.Linear(D, D, bias=False), MOST))
        second = Rounds("second", nn.Linear(D, 1, bias=False), nn.Linear(D, D, bias=False), MOST)
        self.first = first
        self.exits = Exits("exit", [nn.Identity(), second], [nn.Identity()] * 2, lambda a, s, k: a[:, 0] > 0)

    def forward(self, x: Tensor) -> Any:
        return self.exits(self.first(x).sum(1))


def make(n: int = 6, seed: int = 0) -> tuple[Net, Tensor]:
    torch.manual_seed(seed)
    return Net().eval(), torch.randn(n, 2, D)


def run(net: nn.Module, x: Tensor, strategy: str, replay: Trace | None = None) -> tuple[Tensor, Trace, int]:
    """Answer, decisions asked, FLOPs executed."""
    ex = Execution(STRATEGIES[strategy](), replay=replay, record=True)
    with torch.inference_mode(), FlopCounter(strict=True) as work:
        y = ex.run(net, x)
    assert ex.trace is not None and isinstance(work.flops, int)
    return y, ex.trace, work.flops


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    strategy=st.sampled_from(DYNAMIC),
    n=st.integers(1, 7),
    seed=st.integers(0, 99),
    rate=st.floats(0, 1),
    kind=st.sampled_from([*EDGES, "random", "drawn", "own"]),
)
def test_every_strategy_gives_the_answer_of_per_sample_and_required_work_is_what_that_executes(
    strategy: str, n: int, seed: int, rate: float, kind: str
) -> None:
    net, x = make(n, seed)
    like, trace = run(net, x, "masking")[1], None
    if kind == "drawn":
        trace = synthetic(like, net, keep_rate=rate, seed=seed)
    elif kind != "own":
        trace = edge(like, net, kind, seed)
    want, asked, flops = run(net, x, "per_sample", trace)
    got, recorded, _ = run(net, x, strategy, trace)
    assert torch.allclose(got, want, atol=1e-5) and recorded == asked
    costs = PartCosts(net, x)
    assert costs.required(asked).total == flops
    assert costs.required(asked if trace is None else trace).total == flops


@settings(max_examples=20, deadline=None, derandomize=True)
@given(rate=st.floats(0, 1), items=st.floats(0, 1), seed=st.integers(0, 99))
def test_made_up_decisions_have_the_rate_that_was_asked_for(rate: float, items: float, seed: int) -> None:
    net, x = make(3)
    like = Trace({("first", (200,)): Entry(torch.zeros(600, dtype=torch.long), torch.zeros(600) > 0)}, 3)
    made = synthetic(like, net, keep_rate=rate, item_correlation=items, seed=seed)
    value, reached = made.entries["first", (200,)]
    assert reached.all() and value.dtype == torch.long and 0 <= int(value.min()) <= int(value.max()) <= MOST
    found = keep_rate(made, net)
    assert found is not None
    independent = 200 * MOST  # visits and rounds; the three items may be alike
    assert abs(found - rate) <= 4.5 * math.sqrt(rate * (1 - rate) / independent) + 1e-9


def test_rates_of_own_points_are_taken_in_module_order() -> None:
    net, x = make()
    made = synthetic(run(net, x, "masking")[1], net, keep_rate=[1.0, 0.0, 0.0])  # first, exit, second
    assert bool((made.entries["first", (2,)].value == MOST).all())
    assert bool(made.entries["exit", (2,)].value[::2].all())
    assert not made.entries["second", (2,)].value.any()
    with pytest.raises(ValueError, match="keep_rate of Rounds 'first' has 2 values; it takes a single one"):
        synthetic(made, net, keep_rate=[[0.5, 0.5], 0.5, 0.5])


def test_edges_are_those_of_the_point() -> None:
    net, x = make(3)
    like = run(net, x, "masking")[1]
    found = {kind: edge(like, net, kind).entries["first", (2,)].value.tolist() for kind in EDGES}
    assert found == {"all": [MOST] * 6, "none": [0] * 6, "one": [MOST] * 2 + [0] * 4}


def test_paths_and_work_have_their_closed_form() -> None:
    torch.manual_seed(0)
    point, x = Rounds("r", nn.Linear(D, 1, bias=False), nn.Linear(D, D, bias=False), MOST).eval(), torch.randn(8, D)
    _, trace, _ = run(point, x, "per_sample")
    rounds = trace.entries["r", ()].value
    assert len(rounds.unique()) > 1
    costs = PartCosts(point, x)
    depths, label = costs.path_depths(trace)
    assert depths.tolist() == rounds.tolist() and label == f"rounds run of {MOST}"
    assert costs.required(trace).region == int(rounds.sum()) * ONCE
    assert costs.required(trace).total == int(rounds.sum()) * ONCE + 8 * GATE
    assert keep_rate(trace, point) == pytest.approx(float(rounds.sum()) / MOST / 8)
    assert cost(point, x)["macs"] == MOST * D * D


def test_a_path_is_counted_by_the_first_kind_of_points() -> None:
    net, x = make()
    trace = run(net, x, "masking")[1]
    assert PartCosts(net, x).path_depths(trace)[1] == "stages run of 2"  # the exit's label comes before the rounds'
    assert PartCosts(net.first, x).path_depths(run(net.first, x, "masking")[1])[1] == f"rounds run of {2 * MOST}"


def test_actions_name_each_once_in_their_order() -> None:
    net, _ = make()
    assert actions(net) == [
        "leaves early",
        "repeats a step as often as each item needs",
        "repeats a step as often as each token needs",
    ]
    assert actions(nn.Linear(2, 2)) == []


class Bare(DecisionPoint):
    """Says nothing about itself."""

    def parts(self) -> Iterator[nn.Module]:
        return iter(())

    def forward(self, x: Tensor) -> Tensor:
        ex = current()
        return x if ex is None else x + ex.decide(self, x[:, 0], lambda scores: scores > 0)[:, None]


def test_a_point_that_says_nothing_is_measured_by_its_own_decisions_only() -> None:
    net, x = Bare("bare"), torch.randn(5, D)
    _, trace, _ = run(net, x, "compaction")
    assert keep_rate(trace, net) is None
    depths, label = PartCosts(net, x).path_depths(trace)
    assert not depths.any() and label == ""
    assert actions(net) == ["decides what to compute"]
    assert not net.can_be_made_up
    for make_up in (lambda: synthetic(trace, net), lambda: edge(trace, net, "all")):
        with pytest.raises(TraceError, match=r"decisions of point 'bare' \(Bare\) cannot be made up; replay a trace"):
            make_up()


def test_vague_actions_are_left_out_where_another_point_is_definite() -> None:
    skip = Skip("s", None, nn.Identity())
    assert actions(nn.ModuleList([Bare("bare"), skip])) == ["skips"]


def test_a_trace_of_a_point_that_the_model_has_not_is_refused() -> None:
    net, x = make()
    like = run(net, x, "masking")[1]
    with pytest.raises(TraceError, match="has a point 'second', which the model has not"):
        synthetic(like, nn.ModuleList([net.first, Skip("exit", None, nn.Identity())]))


def test_own_points_are_found_like_any_other() -> None:
    assert list(points(make()[0])) == ["first", "exit", "second"]
