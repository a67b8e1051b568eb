"""What a decision point says: static twins, straight-through gradients, capacity, names and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynbench.dynamic import (
    DecisionPoint,
    Each,
    Execution,
    Exits,
    Loop,
    Refused,
    Route,
    Shared,
    Skip,
    Trace,
    Weights,
    points,
    straight_through,
    widest_scope,
)
from dynbench.strategies import STRATEGIES, Compaction, Masking
from tests.networks import ScaledLinear, top_softmax


class Scores(nn.Module):
    """A gate whose scores are its parameters, one per item."""

    def __init__(self, *scores: float) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.tensor(scores))

    def forward(self, x: Tensor, carry: Any) -> tuple[Tensor, Any]:
        return self.scores[: x.shape[0]], carry


class First(nn.Module):
    """A Skip's answer without the carry."""

    def __init__(self, inner: Skip) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[0]


def test_straight_through_is_the_decision_with_the_gradient_of_its_probability() -> None:
    scores = torch.tensor([-2.0, -0.1, 0.3, 4.0], requires_grad=True)
    soft = straight_through(scores > 0, scores)
    assert soft.tolist() == pytest.approx([0, 0, 1, 1], abs=1e-6)
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0])
    (soft * weight).sum().backward()
    p = torch.sigmoid(scores.detach())
    assert torch.allclose(scores.grad, weight * p * (1 - p))


@pytest.mark.parametrize("otherwise", [False, True])
def test_masking_trains_a_gate_by_the_closed_form(otherwise: bool) -> None:
    torch.manual_seed(0)
    body, other = nn.Linear(3, 3), nn.Linear(3, 3) if otherwise else None
    gate = Scores(-1.0, 0.5, 2.0, -0.2)
    x, weight = torch.randn(4, 3), torch.randn(4, 3)
    y = Execution(Masking()).run(First(Skip("s", gate, body, other)), x)
    with torch.no_grad():
        yes, no = body(x), x if other is None else other(x)
        keep = gate.scores > 0
        assert torch.allclose(y, torch.where(keep[:, None], yes, no), atol=1e-6)
        p = torch.sigmoid(gate.scores)
        expected = p * (1 - p) * (weight * (yes - no)).sum(1)  # dL/ds = dL/dvalue dvalue/ds, L = sum weight y
    (y * weight).sum().backward()
    assert torch.allclose(gate.scores.grad, expected, atol=1e-6)
    used = torch.zeros_like(keep, dtype=torch.float).masked_fill(keep, 1.0)
    assert torch.allclose(body.bias.grad, (weight * used[:, None]).sum(0), atol=1e-5)  # as if only the kept had run


def test_masking_trains_a_network_with_batch_norm_and_its_gate() -> None:
    torch.manual_seed(0)
    gate = nn.Linear(4, 1)
    body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    net = First(Skip("s", lambda x, c: (gate(x).squeeze(1), c), body)).train()
    x, target = torch.randn(64, 4), torch.zeros(64, 4)  # the body is in the way where x is near 0 already
    learned = [*gate.parameters(), *body.parameters()]
    losses = []
    for _ in range(30):
        loss = (Execution(Masking()).run(net, x) - target).square().mean()
        for p, grad in zip(learned, torch.autograd.grad(loss, learned), strict=True):
            p.data -= 0.5 * grad
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize("strategy", ["compaction", "cascading", "per_sample"])
def test_fewer_items_in_batch_norm_that_trains_are_refused(strategy: str) -> None:
    skip = First(Skip("s", Scores(1.0, -1.0), nn.BatchNorm1d(3)))
    net = Exits("e", [skip], [nn.Identity()], lambda a, s, k: a[:, 0] > 0).train()
    assert "batch norm in training mode" in str(STRATEGIES[strategy]().refuses(net))
    with pytest.raises(Refused, match="masking is the form that trains"):
        Execution(STRATEGIES[strategy]()).run(net, torch.randn(2, 3))
    assert STRATEGIES[strategy]().refuses(net.eval()) is None


@pytest.mark.parametrize("strategy", [s for s, kind in STRATEGIES.items() if kind.trains])
def test_what_trains_does_not_refuse(strategy: str) -> None:
    assert STRATEGIES[strategy]().refuses(First(Skip("s", Scores(1.0), nn.BatchNorm1d(3))).train()) is None


def test_cascading_is_refused_where_nobody_can_leave() -> None:
    fixed = Loop("l", lambda s, k: s, None, 2)
    assert "this model has none that halts" in str(STRATEGIES["cascading"]().refuses(fixed.eval()))


# What a point is outside any execution.


def test_the_static_twin_of_a_skip_is_its_body() -> None:
    y, carry = Skip("s", Scores(-1.0), nn.Linear(2, 2))(torch.ones(1, 2), "carried")
    assert y.grad_fn is not None
    assert carry == "carried"


def test_the_static_twin_of_exits_runs_every_stage_and_the_last_head() -> None:
    class Add(nn.Module):
        def __init__(self, n: float) -> None:
            super().__init__()
            self.n = n

        def forward(self, x: Tensor) -> Tensor:
            return x + self.n

    net = Exits("e", [Add(1), Add(2)], [Add(100), Add(1000)], lambda a, s, k: a > 0)
    assert net(torch.zeros(1)).tolist() == [1003]
    assert Exits("e", [Add(1)], [Add(1)], lambda a, s, k: a > 0, static=Add(7))(torch.zeros(1)).tolist() == [7]


def test_the_static_twin_of_a_route_is_every_expert_weighted() -> None:
    x = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    net = Route("r", nn.Identity(), [None, nn.Sequential()], 1, lambda s, chosen: s.gather(1, chosen))
    assert torch.equal(net(x), x * x.sum(1, keepdim=True))
    unweighted = Route("r", nn.Identity(), [None, nn.Sequential()])
    assert torch.allclose(unweighted(x), x)  # softmax adds up to one
    assert Route("r", nn.Identity(), [None], static=nn.ReLU())(-x).abs().sum() == 0


def test_the_static_twins_of_weights_and_each_are_their_layers() -> None:
    layer = ScaledLinear(3, 2)
    x = torch.randn(4, 5, 3)
    net = Each(Weights("w", lambda c: c, lambda c: c, layer))
    assert torch.allclose(net(x), layer(x), atol=1e-6)


def test_each_takes_a_state_and_passes_on_what_is_shared() -> None:
    seen: list[Any] = []

    class Inner(nn.Module):
        def forward(self, state: Any) -> Any:
            seen.append(state)
            return {"sum": state[0] + state[2].value, "double": 2 * state[1]}

    a, b, table = torch.randn(4, 5, 3), torch.randn(4, 5), Shared(torch.ones(3))
    out = Each(Inner())((a, b, table))
    assert torch.equal(out["sum"], a + 1) and torch.equal(out["double"], 2 * b)
    assert seen[0][0].shape == (20, 3) and seen[0][1].shape == (20,) and seen[0][2] is table


# Weights follow the decision that was used.


def test_weights_follow_the_decision_that_was_used() -> None:
    scores = torch.tensor([[1.0, 2.0, 4.0]])
    net = Route("r", lambda x: scores, [None, None, None], 1, lambda s, chosen: s.gather(1, chosen))
    to_the_first = Execution(Compaction(), choose=lambda point, s: torch.tensor([[0]]))
    assert to_the_first.run(net, torch.ones(1, 1)).tolist() == [[1]]
    assert Execution(Compaction()).run(net, torch.ones(1, 1)).tolist() == [[4]]


# Capacity: at most ceil(factor * k * items / E) items per expert, slot by slot, first come first served.

PREFERENCES = torch.tensor(
    [  # first, second choice; room for ceil(1.0 * 2 * 4 / 4) = 2 items per expert
        [9.0, 5.0, 1.0, 0.0],  # 0, 1
        [9.0, 5.0, 1.0, 0.0],  # 0, 1
        [9.0, 1.0, 5.0, 0.0],  # 0 is full; 2
        [5.0, 9.0, 1.0, 0.0],  # 1; 0 is full
    ]
)
SEATED = [[0, 1], [0, -1], [-1, 2], [1, -1]]  # expert 1 takes the first choice of item 3 before any second choice


class Times(nn.Module):
    def __init__(self, n: float) -> None:
        super().__init__()
        self.n = n

    def forward(self, x: Tensor) -> Tensor:
        return self.n * x


def limited(factor: float | None) -> Route:
    ones = lambda s, chosen: (chosen >= 0).float()  # noqa: E731
    experts = map(Times, (1.0, 10.0, 100.0, 1000.0))
    return Route("r", lambda x: PREFERENCES[x[:, 0].long()], experts, 2, ones, capacity_factor=factor)


STREAM = torch.tensor([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0], [3.0, 1.0]])  # (which preferences, value)


@pytest.mark.parametrize("strategy", ["masking", "compaction", "per_sample"])
def test_drops_are_first_come_first_served_slot_by_slot_and_in_the_trace(strategy: str) -> None:
    ex = Execution(STRATEGIES[strategy](), record=True)
    y = ex.run(limited(1.0), STREAM)
    assert isinstance(ex.trace, Trace)
    assert ex.trace.entries["r", ()].value.tolist() == SEATED
    assert y[:, 1].tolist() == [11, 1, 100, 10]


@pytest.mark.parametrize("strategy", ["masking", "compaction", "per_sample"])
def test_dropped_items_stay_dropped_on_replay(strategy: str) -> None:
    ex = Execution(STRATEGIES["per_sample"](), record=True)
    y = ex.run(limited(1.0), STREAM)
    replayed = Execution(STRATEGIES[strategy](), replay=ex.trace).run(limited(None), STREAM)
    assert replayed.tolist() == y.tolist()


def test_room_is_shared_by_a_batch_not_by_the_stream() -> None:
    ex = Execution(Compaction(), record=True)
    for start in range(4):  # alone, everybody finds room
        ex.run(limited(1.0), STREAM[start : start + 1], start=start, items=4)
    assert ex.trace is not None
    assert ex.trace.entries["r", ()].value.tolist() == [[0, 1], [0, 1], [0, 2], [1, 0]]


@pytest.mark.parametrize("strategy", ["masking", "compaction"])
def test_only_items_that_count_take_up_room(strategy: str) -> None:
    stages = [nn.Identity(), limited(1.0)]
    first_leaves = Exits("e", stages, [nn.Identity(), nn.Identity()], lambda a, s, k: a[:, 0] == 0)
    ex = Execution(STRATEGIES[strategy](), record=True)
    ex.run(first_leaves, STREAM)
    assert ex.trace is not None
    value, reached = ex.trace.entries["r", (2,)]
    assert reached.tolist() == [False, False, False, True, False, True, False, True]
    assert value[1::2][1:].tolist() == [[0, 1], [0, 2], [1, -1]]  # of three, two find room at each expert


def test_a_capacity_couples_the_batch() -> None:
    assert limited(1.0).scope == "batch"
    assert widest_scope(nn.Sequential(limited(None), limited(1.25))) == "batch"
    assert limited(None).widest_scope == "item"


@pytest.mark.parametrize("strategy", ["masking", "compaction", "per_sample"])
def test_who_is_dropped_everywhere_gets_nothing(strategy: str) -> None:
    net = Route("r", lambda x: x, [Times(2.0), Times(3.0)], 1, top_softmax)
    nobody = Execution(STRATEGIES[strategy](), choose=lambda point, s: torch.full((s.shape[0], 1), -1))
    for n in (1, 3):
        assert nobody.run(net, torch.ones(n, 2)).tolist() == [[0, 0]] * n


# Names, parts, and what is refused.


def test_points_are_found_by_name_in_module_order() -> None:
    inner = Skip("inner", Scores(1.0), nn.Identity())
    net = nn.ModuleList([Exits("outer", [First(inner)], [nn.Identity()], lambda a, s, k: a > 0), limited(None)])
    assert list(points(net)) == ["outer", "inner", "r"]


def test_two_points_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two decision points are named 's'"):
        points(nn.ModuleList(Skip("s", Scores(1.0), nn.Identity()) for _ in range(2)))


def test_a_point_used_twice_is_one_point() -> None:
    point = Skip("s", Scores(1.0), nn.Identity())
    assert points(nn.ModuleList([First(point), First(point)])) == {"s": point}


def test_a_point_says_its_scope() -> None:
    assert DecisionPoint("p", "sample").scope == "sample"
    assert widest_scope(nn.Identity()) == "item"


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "scope": (lambda: DecisionPoint("p", "row"), "'p': scope 'row' is none of item, sample, batch"),  # type: ignore[arg-type]
    "no expert": (lambda: Route("r", nn.Identity(), [None, None], 0), "'r': k=0 of 2 experts"),
    "too many": (lambda: Route("r", nn.Identity(), [None, None], 3, top_softmax), "'r': k=3 of 2 experts"),
    "no weights": (lambda: Route("r", nn.Identity(), [None, None], 2), "'r': 2 experts per item need `weigh`"),
    "no step": (lambda: Loop("l", lambda s, k: s, None, 0), "'l': max_steps=0"),
    "no stage": (lambda: Exits("e", [], [], lambda a, s, k: a), "'e': max_steps=0"),
    "heads": (lambda: Exits("e", [nn.Identity()], [], lambda a, s, k: a), "'e': 1 stages and 0 heads"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_is_refused_by_name(what: str) -> None:
    build, says = REFUSED[what]
    with pytest.raises(ValueError, match=says):
        build()


@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_on_a_point_are_called(kind: str) -> None:
    point, told = Skip("s", Scores(-1.0), nn.Identity()), list[Any]()
    handle = getattr(point, kind)(lambda *what: told.append(what[0]))
    Execution(Compaction()).run(First(point), torch.ones(1, 2))
    assert told == [point]
    handle.remove()
    Execution(Compaction()).run(First(point), torch.ones(1, 2))
    assert told == [point]


def test_a_point_takes_keywords() -> None:
    assert Skip("s", Scores(-1.0), nn.Identity())(x=torch.ones(1, 2), carry="carried")[1] == "carried"
