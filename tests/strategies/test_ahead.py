"""Ahead: several Skips decided at once, and one wait for all of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dynbench.dynamic import Ahead, Execution, Skip
from dynbench.dynamic.sources import edge, synthetic
from dynbench.meters.required import PartCosts
from dynbench.strategies import STRATEGIES, Compaction, Masking
from tests.strategies.test_same_answer import all_tables, difference, oracle

K, D = 5, 6


class Chain(nn.Module):
    """K Skips, decided together (`Ahead`) or each by its own row of the same policy; some have an `otherwise`."""

    def __init__(self, together: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.policy, self.together = nn.Linear(D, K), together
        gates = [None if together else _row(k) for k in range(K)]
        others = [nn.Linear(D, D) if k % 2 else None for k in range(K)]
        self.skips = nn.ModuleList(Skip(f"s{k}", gates[k], nn.Linear(D, D), others[k]) for k in range(K))
        self.ahead = Ahead("policy", self.policy, self.skips) if together else None

    def forward(self, x: Tensor) -> Tensor:
        carry: Any = self.policy(x) if self.ahead is None else self.ahead(x)
        for skip in self.skips:
            x, carry = skip(x, carry)
        return x


def _row(k: int) -> Any:
    return lambda x, scores: (scores[:, k], scores)


class Waits:
    """A profile that counts phases."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def enter(self, phase: str, point: str | None, index: int | None) -> None:
        self.seen.append(phase)

    def exit(self) -> None:
        pass


def waits(net: nn.Module, x: Tensor) -> int:
    profile = Waits()
    Execution(Compaction(), profile=profile).run(net, x)
    return profile.seen.count("sync")


@pytest.mark.parametrize("n", [1, 8])
@torch.inference_mode()
def test_compaction_waits_once_for_all_that_was_decided_ahead(n: int) -> None:
    x = torch.randn(n, D)
    one_by_one = waits(Chain(together=False).eval(), x)
    assert waits(Chain(together=True).eval(), x) == 1
    assert one_by_one >= K


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 9),
    strategy=st.sampled_from(["masking", "compaction", "per_sample"]),
    keep=st.floats(0, 1),
    seed=st.integers(0, 99),
)
@torch.inference_mode()
def test_together_and_one_by_one_are_the_same_network(n: int, strategy: str, keep: float, seed: int) -> None:
    torch.manual_seed(seed)
    together, apart, x = Chain(together=True).eval(), Chain(together=False).eval(), torch.randn(n, D)
    made_up = synthetic(all_tables(together, (x,)), together, keep_rate=keep, seed=seed)
    for replay in (None, made_up):
        want, asked = oracle(apart, (x,), replay)
        ex = Execution(STRATEGIES[strategy](), replay=replay, record=True)
        assert difference(ex.run(together, x), want) < 2e-6
        assert ex.trace is not None
        assert ex.trace.reached_only().keys() == asked.reached_only().keys() and ex.trace == asked


@torch.inference_mode()
def test_a_second_decision_for_the_same_items_is_not_mistaken_for_the_first() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.chain = Chain(together=True)

        def forward(self, x: Tensor) -> Tensor:
            first = self.chain.ahead(x)
            self.chain.ahead(-x)
            for skip in self.chain.skips:
                x, first = skip(x, first)
            return x

    net, x = Twice().eval(), torch.randn(6, D)
    assert difference(Execution(Compaction()).run(net, x), Execution(Masking()).run(net, x)) < 2e-6


@torch.inference_mode()
def test_outside_an_execution_nothing_is_decided_and_every_body_runs() -> None:
    net, x = Chain(together=True).eval(), torch.randn(3, D)
    assert net.ahead is not None and net.ahead(x) is None
    everything = edge(all_tables(net, (x,)), net, "all")
    assert difference(net(x), Execution(Compaction(), replay=everything).run(net, x)) < 2e-6


def test_the_policy_learns_through_every_skip() -> None:
    net = Chain(together=True).train()
    Execution(Masking()).run(net, torch.randn(6, D)).square().sum().backward()
    assert net.policy.weight.grad is not None and bool((net.policy.weight.grad.abs().sum(1) > 0).all())


@torch.inference_mode()
def test_required_work_counts_the_policy_once_and_the_bodies_that_run() -> None:
    net, x = Chain(together=True).eval(), torch.randn(4, D)
    costs = PartCosts(net, x)
    for kind, bodies in (("all", K), ("none", K // 2)):  # none: what stands for every other body
        required = costs.required(edge(all_tables(net, (x,)), net, kind))
        assert required.region == 4 * bodies * 2 * D * D
        assert required.total == required.region + 4 * 2 * D * K  # type: ignore[operator]


def test_a_skip_with_a_gate_of_its_own_is_refused() -> None:
    with pytest.raises(ValueError, match="'s0', which has a gate of its own"):
        Ahead("policy", nn.Linear(D, 1), [Skip("s0", _row(0), nn.Linear(D, D))])
