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
from tests.networks import FOR_WEIGHTS, NETWORKS, make

REFUSED = {  # where a strategy means nothing
    "cascading": ["lets items leave a Loop"],
    "batch_union": ["slices a layer"],
    "specialised": ["keeps a layer"],
}
DYNAMIC = [s for s in STRATEGIES if s != "dense"]


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


@pytest.mark.parametrize("strategy", DYNAMIC)
@pytest.mark.parametrize("name", NETWORKS)
@torch.inference_mode()
def test_own_decisions_and_replay_equal_per_sample(name: str, strategy: str) -> None:
    net, args = make(name)
    run = STRATEGIES[strategy]()
    y, trace = oracle(net, args)
    if why := run.refuses(net):
        assert any(f"{strategy} {does}" in why for does in REFUSED.get(strategy, [])), why
        return
    own = Execution(run, record=True)
    assert difference(own.run(net, *args), y) < 2e-6
    assert own.trace == trace
    replayed = Execution(run, replay=trace, record=True)
    assert difference(replayed.run(net, *args), y) < 2e-6
    assert replayed.trace == trace


@pytest.mark.parametrize("strategy", DYNAMIC)
@pytest.mark.parametrize("kind", ["none", "all", "one", "random"])
@pytest.mark.parametrize("name", NETWORKS)
@torch.inference_mode()
def test_edge_traces_equal_per_sample(name: str, kind: str, strategy: str) -> None:
    net, args = make(name)
    if STRATEGIES[strategy]().refuses(net):
        pytest.skip("refused")
    tables = all_tables(net, args)
    trace = edge(tables, net, kind)
    y, asked = oracle(net, args, trace)
    ex = Execution(STRATEGIES[strategy](), replay=trace, record=True)
    assert difference(ex.run(net, *args), y) < 2e-6
    assert ex.trace == asked


@pytest.mark.parametrize("strategy", DYNAMIC)
@pytest.mark.parametrize("name", [n for n in NETWORKS if n != "capacity_exits"])
@torch.inference_mode()
def test_a_batch_of_one_equals_its_row(name: str, strategy: str) -> None:
    net, args = make(name)
    if STRATEGIES[strategy]().refuses(net):
        pytest.skip("refused")
    whole, _ = oracle(net, args)
    one = take(args, torch.tensor([1]))
    assert difference(Execution(STRATEGIES[strategy]()).run(net, *one), take(whole, torch.tensor([1]))) < 2e-6


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(list(NETWORKS)),
    strategy=st.sampled_from(DYNAMIC),
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
    name: str, strategy: str, n: int, cut: int, keep: float, items: float, layers: float, skew: float, seed: int
) -> None:
    net, args = make(name, n, seed)
    if STRATEGIES[strategy]().refuses(net):
        return
    trace = synthetic(
        all_tables(net, args), net, keep_rate=keep, item_correlation=items, layer_correlation=layers,
        expert_skew=skew, seed=seed,
    )  # fmt: skip
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
    """A body that answers NaN where it should not be asked."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x[:, :1] > 0, x * 2, torch.full_like(x, float("nan")))


@pytest.mark.parametrize("strategy", [s for s in DYNAMIC if s not in FOR_WEIGHTS])
@torch.inference_mode()
def test_nothing_leaks_from_a_branch_not_selected(strategy: str) -> None:
    from dynbench.dynamic import Route, Skip

    if strategy == "cascading":
        pytest.skip("refused: nothing to leave")
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
