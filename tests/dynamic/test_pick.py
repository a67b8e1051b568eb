"""Pick: as many parts of each item, which of them is decided; and a Choice that the static twin does without."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dynbench.counting.flops import FlopCounter
from dynbench.dynamic import Choice, Execution, Pick, Trace
from dynbench.dynamic.sources import edge, keep_rate, synthetic
from dynbench.dynamic.trace import Entry
from dynbench.meters.cost import cost
from dynbench.meters.required import PartCosts
from dynbench.strategies import STRATEGIES, Masking, PerSample
from tests.networks import make

DYNAMIC = ["masking", "compaction", "per_sample"]


class Sum(nn.Module):
    """Each part gets the sum of all that are there."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: Tensor, there: Tensor | None, weights: Tensor | None = None) -> Tensor:
        self.seen.append(tuple(x.shape))
        if there is None:
            total = x.sum(1, keepdim=True)
        else:
            total = x.gather(1, there.unsqueeze(-1).expand(-1, -1, x.shape[-1])).sum(1, keepdim=True)
        return total.expand_as(x) if weights is None else total * weights.unsqueeze(-1)


def first_column(x: Tensor, there: Tensor | None) -> Tensor:
    return x[..., 0]


def parts() -> Tensor:
    """Two items of four parts; the scores are the first column."""
    return torch.tensor([[[3.0, 1], [1, 10], [4, 100], [2, 1000]], [[0.0, 1], [9, 10], [8, 100], [7, 1000]]])


def run(net: nn.Module, x: Any, strategy: Any, **how: Any) -> tuple[Any, Trace]:
    ex = Execution(strategy, record=True, **how)
    with torch.inference_mode():
        y = ex.run(net, *x) if isinstance(x, tuple) else ex.run(net, x)
    assert ex.trace is not None
    return y, ex.trace


@pytest.mark.parametrize("strategy", DYNAMIC)
def test_the_highest_parts_of_each_item_are_computed_together_and_the_others_stay(strategy: str) -> None:
    net = Pick("p", first_column, Sum(), lambda t: 2, back=True)
    y, trace = run(net, parts(), STRATEGIES[strategy]())
    assert trace.entries["p", ()].value.tolist() == [[0, 2], [1, 2]]
    assert y.tolist() == [[[7, 101], [1, 10], [7, 101], [2, 1000]], [[0, 1], [17, 110], [17, 110], [7, 1000]]]
    shape = {"masking": [(2, 4, 2)], "compaction": [(2, 2, 2)], "per_sample": [(1, 2, 2)] * 2}[strategy]
    assert net.body.seen == shape


@pytest.mark.parametrize("strategy", DYNAMIC)
def test_what_always_goes_on_is_neither_asked_about_nor_counted(strategy: str) -> None:
    net = Pick("p", lambda x, there: x[:, 1:, 0], Sum(), lambda t: 1, always=1, back=True)
    y, trace = run(net, parts(), STRATEGIES[strategy]())
    assert trace.entries["p", ()].value.tolist() == [[1], [0]]
    assert y.tolist() == [[[7, 101], [1, 10], [7, 101], [2, 1000]], [[9, 11], [9, 11], [8, 100], [7, 1000]]]


@pytest.mark.parametrize("strategy", DYNAMIC)
def test_weights_follow_the_decision_that_is_used(strategy: str) -> None:
    net = Pick("p", first_column, Sum(), lambda t: 2, weigh=lambda scores: 2 * scores, back=True)
    forced = run(net, parts(), PerSample())[1]
    reached = forced.entries["p", ()].reached
    forced.entries["p", ()] = Entry(torch.tensor([[1, 3], [0, 3]]), reached)
    y, _ = run(net, parts(), STRATEGIES[strategy](), replay=forced)
    assert y[0].tolist() == [[3, 1], [3 * 2, 1010 * 2], [4, 100], [3 * 4, 1010 * 4]]
    assert y[1].tolist() == [[0, 0], [9, 10], [8, 100], [7 * 14, 1001 * 14]]


@pytest.mark.parametrize("strategy", DYNAMIC)
def test_x_stays_as_it_was_unless_it_may_be_consumed(strategy: str) -> None:
    x = parts()
    run(Pick("p", first_column, Sum(), lambda t: 2, back=True), x, STRATEGIES[strategy]())
    assert torch.equal(x, parts())


def test_outside_an_execution_every_part_is_picked_and_no_gate_asked() -> None:
    def gate(x: Tensor, there: Tensor | None) -> Tensor:
        raise AssertionError

    assert Pick("p", gate, Sum(), lambda t: 1, back=True)(parts())[0].tolist() == [[10, 1111]] * 4


def test_more_than_there_is_cannot_be_picked() -> None:
    net = Pick("p", first_column, Sum(), lambda t: 9, back=True)
    assert run(net, parts(), STRATEGIES["compaction"]())[1].entries["p", ()].value.shape == (2, 4)


def test_parts_that_always_go_on_have_nothing_to_be_weighed_by() -> None:
    with pytest.raises(ValueError, match="no score"):
        Pick("p", first_column, Sum(), lambda t: 1, weigh=lambda s: s, always=1)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    strategy=st.sampled_from(DYNAMIC),
    n=st.integers(1, 5),
    seed=st.integers(0, 50),
    kind=st.sampled_from(["own", "all", "none", "one", "random"]),
)
def test_any_trace_gives_the_answer_of_per_sample(strategy: str, n: int, seed: int, kind: str) -> None:
    net, args = make("picking", n, seed)
    tables = run(net, args, Masking())[1]
    trace = None if kind == "own" else edge(tables, net, kind, seed)
    want, asked = run(net, args, PerSample(), replay=trace)
    got, recorded = run(net, args, STRATEGIES[strategy](), replay=trace)
    assert float((got - want).abs().max()) < 2e-6 and recorded == asked


@pytest.mark.parametrize("kind", ["all", "none", "one", "random"])
def test_traces_that_are_made_up_pick_as_many_different_parts_in_order(kind: str) -> None:
    net, args = make("picking", 6)
    tables = run(net, args, Masking())[1]
    made = edge(tables, net, kind)
    for key, (value, reached) in made.entries.items():
        like = tables.entries[key].value
        assert value.shape == like.shape and bool(reached.all())
        assert bool((value.diff(dim=1) > 0).all()) and int(value.min()) >= 0 and int(value.max()) <= int(like.max())
    if kind in ("one", "random"):
        assert any(bool((e.value != e.value[:1]).any()) for e in made.entries.values())


def test_items_that_have_all_in_common_pick_the_same() -> None:
    net, args = make("picking", 6)
    made = synthetic(run(net, args, Masking())[1], net, item_correlation=1.0)
    assert all(torch.equal(e.value, e.value[:1].expand_as(e.value)) for e in made.entries.values())


def test_every_item_asks_for_the_same_work_which_is_what_is_executed() -> None:
    net, args = make("picking", 6)
    y, trace = run(net, args, STRATEGIES["compaction"]())
    counter = FlopCounter()
    with torch.inference_mode(), counter:
        Execution(STRATEGIES["compaction"](), profile=counter).run(net, *args)
    required = PartCosts(net, *args).required(trace)
    assert required.total == counter.flops == 6 * 2 * cost(net, *args)["required_macs"]
    assert keep_rate(trace, net) is None


@pytest.mark.parametrize("strategy", ["masking", "compaction"])
def test_no_strategy_looks_at_the_decision_on_the_host(strategy: str) -> None:
    net, args = make("picking", 6)
    asked: list[str] = []

    class Waits:
        def enter(self, phase: str, point: str | None, index: int | None) -> None:
            asked.append(phase)

        def exit(self) -> None:
            pass

    with torch.inference_mode():
        Execution(STRATEGIES[strategy](), profile=Waits()).run(net, *args)
    assert asked and "sync" not in asked


class Chosen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.choice = Choice("c", nn.Linear(3, 4), lambda s: s.argmax(-1), gate=True)

    def forward(self, x: Tensor) -> Tensor:
        value = self.choice(x)
        return x if value is None else x + value.unsqueeze(-1)


def test_a_choice_by_a_gate_is_not_made_by_the_static_twin() -> None:
    torch.manual_seed(0)
    net, x = Chosen(), torch.randn(5, 3)
    assert torch.equal(net(x), x)
    y, trace = run(net, x, STRATEGIES["compaction"]())
    assert torch.allclose(y - x, trace.entries["c", ()].value.unsqueeze(-1).expand(-1, 3).float(), atol=1e-6)
    found = cost(net, x)
    assert found["macs"] == 0 and found["required_macs"] == 12
    assert found["decision_points"] == [{"name": "c", "kind": "Choice", "region_macs": 0, "gate_macs": 12}]
