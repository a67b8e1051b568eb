"""The sparse mixture-of-experts decoder: routing, balance, capacity, and the same answer under every strategy."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dynbench.dynamic import Execution, Route, points
from dynbench.models.moe_gpt import (
    GPT,
    Balance,
    Router,
    accounted_macs,
    dense_gpt,
    load_balancing_loss,
    moe_gpt,
)
from dynbench.strategies import STRATEGIES, Compaction
from tests.models.same_answer import DYNAMIC, assert_same_answer, decided_both_ways, forced, run

SMALL: dict[str, Any] = {"layers": 2, "width": 16, "heads": 2, "context": 8, "vocab": 11}


def make(**args: Any) -> GPT:
    torch.manual_seed(0)
    net = moe_gpt(**SMALL, experts=4, **args).eval()
    for name, p in net.named_parameters():
        if "router" in name:
            torch.nn.init.normal_(p, std=0.5)
    return net


def tokens(n: int = 3, length: int = 8) -> Tensor:
    return torch.randint(0, 11, (n, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("strategy", DYNAMIC)
@pytest.mark.parametrize("capacity_factor", [None, 0.75])
def test_every_strategy_answers_alike(capacity_factor: float | None, strategy: str) -> None:
    net = make(capacity_factor=capacity_factor)
    assert decided_both_ways(run(net, tokens(), "per_sample")[1])
    assert_same_answer(net, tokens(), strategy)


def routed(net: GPT, x: Tensor, strategy: str = "compaction") -> list[tuple[Route, Tensor, Tensor]]:
    """Scores and decisions of a forward pass."""
    observed: list[tuple[Any, Tensor, Tensor]] = []
    with torch.no_grad():
        Execution(STRATEGIES[strategy](), observe=lambda *what: observed.append(what)).run(net, x)
    return observed


def test_a_token_gets_the_chosen_experts_weighted_by_a_softmax_over_them() -> None:
    net = make()
    moe = points(net)["moe0"]
    assert isinstance(moe, Route)
    x = torch.randn(5, 16)
    with torch.no_grad():
        y = Execution(Compaction()).run(moe, x)
        scores = x @ moe.router.weight.T
        for i in range(5):
            best = scores[i].sort(descending=True).indices[:2]
            w = scores[i, best].exp() / scores[i, best].exp().sum()
            want = sum(w[j] * moe.experts[int(best[j])](x[i : i + 1]) for j in range(2))
            assert torch.allclose(y[i : i + 1], want, atol=1e-6)


def test_under_dense_every_expert_sees_every_token_weighted_over_all() -> None:
    moe = points(make())["moe0"]
    assert isinstance(moe, Route)
    x = torch.randn(5, 16)
    with torch.no_grad():
        w = (x @ moe.router.weight.T).softmax(-1)
        want = sum(w[:, e : e + 1] * expert(x) for e, expert in enumerate(moe.experts))
        assert torch.allclose(moe(x), want, atol=1e-6)


def test_a_later_token_changes_no_earlier_answer() -> None:
    net, x = make(), tokens(1)
    other = x.clone()
    other[0, 5] = (x[0, 5] + 1) % 11
    a, b = (run(net, t, "compaction")[0] for t in (x, other))
    assert torch.allclose(a[:, :5], b[:, :5], atol=1e-6) and not torch.allclose(a[:, 5:], b[:, 5:], atol=1e-3)


def test_shorter_sequences_are_accepted() -> None:
    net, x = make(), tokens(2)
    short = run(net, x[:, :4], "compaction")[0]
    assert short.shape == (2, 4, 11)
    assert torch.allclose(short, run(net, x, "compaction")[0][:, :4], atol=1e-6)


@pytest.mark.parametrize("factor", [0.5, 1.0])
def test_an_expert_takes_no_more_than_its_capacity_and_the_rest_is_dropped_in_the_trace(factor: float) -> None:
    net, x = make(capacity_factor=factor), tokens(4)
    _, trace = run(net, x, "compaction")
    room = math.ceil(factor * 2 * x.numel() / 4)
    for name in ("moe0", "moe1"):
        chosen = trace.entries[name, (8,)].value
        taken = chosen[chosen >= 0].bincount(minlength=4)
        assert int(taken.max()) == room
        assert 0 < int((chosen == -1).sum()) == chosen.numel() - int(taken.sum())


def test_a_token_dropped_everywhere_goes_through_the_residual_alone() -> None:
    net = make(capacity_factor=0.25)
    moe = points(net)["moe0"]
    assert isinstance(moe, Route)
    x = torch.randn(16, 16)
    ex = Execution(Compaction(), record=True)
    with torch.no_grad():
        y = ex.run(moe, x)
    assert ex.trace is not None
    dropped = (ex.trace.entries["moe0", ()].value == -1).all(1)
    assert 0 < int(dropped.sum()) < 16
    assert not y[dropped].any() and bool(y[~dropped].any(1).all())


def test_a_dropped_choice_keeps_the_weight_of_the_other() -> None:
    scores, chosen = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[0, 1]])
    router = Router(4, 3)
    whole = router.weigh(scores, chosen)
    half = router.weigh(scores, torch.tensor([[-1, 1]]))
    assert half[0, 0] == 0 and torch.allclose(whole.sum(), torch.tensor(1.0))
    assert torch.equal(half[0, 1], whole[0, 1])


@pytest.mark.parametrize("strategy", ["compaction", "per_sample"])
def test_an_expert_that_nobody_chose_does_no_work(strategy: str) -> None:
    net, x = make(), tokens()
    everybody_to_0_and_1 = dict(forced(net, x))["all"]
    asked: set[int] = set()
    for point in points(net).values():
        assert isinstance(point, Route)
        for e, expert in enumerate(point.experts):
            assert expert is not None
            expert.register_forward_hook(lambda *_, e=e: asked.add(e))
    run(net, x, strategy, everybody_to_0_and_1)
    assert asked == {0, 1}


def test_balance_of_an_even_spread_is_alpha() -> None:
    experts = 4
    even = 1e-4 * torch.eye(experts).repeat(5, 1)  # each token prefers another expert, hardly
    assert float(load_balancing_loss(even, 1, alpha=0.01)) == pytest.approx(0.01, rel=1e-3)
    assert float(load_balancing_loss(even, experts, alpha=0.01)) == pytest.approx(0.01, rel=1e-6)


@pytest.mark.parametrize("k", [1, 2])
def test_balance_where_all_agree_is_n_over_k_times_worse(k: int) -> None:
    scores = torch.full((12, 8), -50.0)
    scores[:, :k] = 50.0
    assert float(load_balancing_loss(scores, k, alpha=0.01)) == pytest.approx(0.01 * 8 / k, rel=1e-5)


def test_balance_pushes_probability_away_from_the_busiest_expert() -> None:
    scores = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.5, 0.0], [0.0, 1.0, 0.0]], requires_grad=True)
    load_balancing_loss(scores, 1).backward()
    assert scores.grad is not None and float(scores.grad[:, 0].min()) > 0 and float(scores.grad[:, 2].max()) < 0


def test_balance_adds_up_all_routers_and_reaches_their_weights() -> None:
    net, x = make().train(), tokens()
    balance = Balance(net.routes, alpha=0.5)
    Execution(Compaction(), observe=balance).run(net, x)
    parts = [load_balancing_loss(scores, 2, 0.5) for _, scores, _ in routed(net, x)]
    assert isinstance(balance.loss, Tensor)
    assert len(parts) == 2 and float(balance.loss.detach()) == pytest.approx(float(sum(parts)))
    balance.loss.backward()
    for point in points(net).values():
        assert isinstance(point, Route) and float(point.router.weight.grad.abs().max()) > 0


def test_balance_is_of_what_was_wanted_before_anything_is_dropped() -> None:
    x, losses = torch.randn(9, 16), []
    for factor in (None, 0.25):
        (route, _) = make(capacity_factor=factor).routes
        balance = Balance([route])
        with torch.no_grad():
            Execution(Compaction(), observe=balance).run(route, x)
        losses.append(balance.loss)
    assert losses[0] == losses[1]


def test_the_router_computes_in_float32_in_a_model_of_half_precision() -> None:
    net = make().bfloat16()
    observed = routed(net, tokens())
    assert all(scores.dtype == torch.float32 for _, scores, _ in observed)
    for strategy in ("compaction", "masking", "per_sample", "dense"):
        assert Execution(STRATEGIES[strategy]()).run(net, tokens()).dtype == torch.bfloat16


def test_the_dense_twin_has_as_many_active_parameters() -> None:
    net = make(k=2, ff_multiple=1.5)
    twin = dense_gpt(**SMALL, ff_multiple=3)
    _, trace = run(net, tokens(), "compaction")
    routers = 2 * 4 * 16
    linear = sum(m.weight.numel() for m in twin.modules() if isinstance(m, torch.nn.Linear))
    macs, rule = accounted_macs(net, trace, (net.context,))
    assert macs == 8 * (linear + routers) and "active parameters" in rule


def test_dropped_choices_are_not_accounted_for() -> None:
    free, tight = make(), make(capacity_factor=0.5)
    macs = [accounted_macs(net, run(net, tokens(4), "compaction")[1], (net.context,))[0] for net in (free, tight)]
    assert macs[1] < macs[0]


@pytest.mark.parametrize(("args", "message"), [({"heads": 3}, "heads=3"), ({"k": 9}, "k=9 of 4 experts")])
def test_a_decoder_there_is_not_is_refused_with_the_reason(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        moe_gpt(**{**SMALL, "experts": 4, **args})
