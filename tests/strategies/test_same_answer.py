"""Every strategy returns what running each item alone returns, and asks the same decisions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dynbench.dynamic import Execution, Trace
from dynbench.dynamic.items import take, tensors
from dynbench.dynamic.sources import edge, synthetic
from dynbench.strategies import STRATEGIES, Masking, PerSample
from tests.networks import NETWORKS, REFUSALS, accepted, make

WITHOUT_EARLY_EXIT = {"generated", "widths", "mixture", "fixed_loop", "one_expert", "picking"}
ACCEPTED_BY = {  # by the strategies that do not apply to every network
    "cascading": NETWORKS.keys() - WITHOUT_EARLY_EXIT,
    "batch_union": {"widths"},
    "specialised": {"widths", "generated"},
}


def difference(a: Any, b: Any) -> float:
    return max(float((u - v).abs().max()) for u, v in zip(tensors(a), tensors(b), strict=True))


def all_tables(net: torch.nn.Module, args: Any) -> Trace:
    ex = Execution(Masking(), record=True)
    ex.run(net, *args)
    assert ex.trace is not None
    return ex.trace


def oracle(net: torch.nn.Module, args: Any, replay: Trace | None = None) -> tuple[Any, Trace]:
    ex = Execution(PerSample(), replay=replay, record=True)
    y = ex.run(net, *args)
    assert ex.trace is not None
    return y, ex.trace


def test_a_strategy_refuses_exactly_the_networks_it_does_not_apply_to_and_says_why() -> None:
    for strategy in STRATEGIES:
        reasons = {name: STRATEGIES[strategy]().refuses(make(name)[0]) for name in NETWORKS}
        assert {name for name, why in reasons.items() if why is None} == ACCEPTED_BY.get(strategy, NETWORKS.keys())
        assert all(why is None or f"{strategy} {REFUSALS[strategy]}" in why for why in reasons.values())


@pytest.mark.parametrize(("name", "strategy"), accepted())
@torch.inference_mode()
def test_own_decisions_and_replay_equal_per_sample(name: str, strategy: str) -> None:
    net, args = make(name)
    run = STRATEGIES[strategy]()
    y, trace = oracle(net, args)
    own = Execution(run, record=True)
    assert difference(own.run(net, *args), y) < 2e-6
    assert own.trace == trace
    replayed = Execution(run, replay=trace, record=True)
    assert difference(replayed.run(net, *args), y) < 2e-6
    assert replayed.trace == trace


@pytest.mark.parametrize("kind", ["none", "all", "one", "random"])
@pytest.mark.parametrize(("name", "strategy"), accepted())
@torch.inference_mode()
def test_edge_traces_equal_per_sample(name: str, kind: str, strategy: str) -> None:
    net, args = make(name)
    tables = all_tables(net, args)
    trace = edge(tables, net, kind)
    y, asked = oracle(net, args, trace)
    ex = Execution(STRATEGIES[strategy](), replay=trace, record=True)
    assert difference(ex.run(net, *args), y) < 2e-6
    assert ex.trace == asked


@pytest.mark.parametrize(("name", "strategy"), accepted(without=["capacity_exits"]))
@torch.inference_mode()
def test_a_batch_of_one_equals_its_row(name: str, strategy: str) -> None:
    net, args = make(name)
    whole, _ = oracle(net, args)
    one = take(args, torch.tensor([1]))
    assert difference(Execution(STRATEGIES[strategy]()).run(net, *one), take(whole, torch.tensor([1]))) < 2e-6


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    pair=st.sampled_from(accepted()),
    n=st.integers(1, 9),
    cut=st.integers(0, 8),
    keep=st.floats(0, 1),
    items=st.floats(0, 0.5),
    layers=st.floats(0, 0.5),
    skew=st.floats(0, 3),
    seed=st.integers(0, 100),
)
@torch.inference_mode()
def test_any_synthetic_trace_in_any_batching_equals_per_sample(
    pair: tuple[str, str], n: int, cut: int, keep: float, items: float, layers: float, skew: float, seed: int
) -> None:
    name, strategy = pair
    net, args = make(name, n, seed)
    drawn = {"keep_rate": keep, "item_correlation": items, "layer_correlation": layers, "expert_skew": skew}
    trace = synthetic(all_tables(net, args), net, **drawn, seed=seed)
    y, asked = oracle(net, args, trace)
    ex = Execution(STRATEGIES[strategy](), replay=trace, record=True)
    cut = min(cut, n - 1)
    batches = [torch.arange(cut), torch.arange(cut, n)] if cut else [torch.arange(n)]
    start = 0
    for rows in batches:
        part = ex.run(net, *take(args, rows), start=start, items=n)
        assert difference(part, take(y, rows)) < 3e-6
        start += len(rows)
    assert ex.trace == asked


class Spoilt(torch.nn.Module):
    """A body that returns NaN for inputs it should not get."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x[:, :1] > 0, x * 2, torch.full_like(x, float("nan")))


@pytest.mark.parametrize("strategy", ["masking", "compaction", "per_sample"])
@torch.inference_mode()
def test_nothing_leaks_from_a_branch_not_selected(strategy: str) -> None:
    from dynbench.dynamic import Route, Skip

    x = torch.randn(8, 3)
    skip = Skip("s", lambda x, c: (x[:, 0], c), Spoilt())
    assert torch.isfinite(Execution(STRATEGIES[strategy]()).run(_First(skip), x)).all()
    experts = [Spoilt(), torch.nn.Identity()]
    route = Route("r", lambda x: torch.cat([x[:, :1], -x[:, :1]], 1), experts, 1, lambda s, e: s.gather(1, e))
    assert torch.isfinite(Execution(STRATEGIES[strategy]()).run(route.eval(), x)).all()


class _First(torch.nn.Module):
    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        return self.inner(x)[0]
