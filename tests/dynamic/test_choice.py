"""Choice: a value with an address, that any strategy passes on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dynbench.dynamic import Choice, DecisionPoint, Execution, Loop, Trace, points
from dynbench.dynamic.sources import edge, keep_rate, synthetic
from dynbench.meters.required import PartCosts
from dynbench.strategies import STRATEGIES, Masking, PerSample

DYNAMIC = ["masking", "compaction", "cascading", "per_sample"]


class Walk(nn.Module):
    """An item walks over a line of numbers, deciding how far, until it stands on a positive one."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Parameter(torch.randn(9, generator=torch.Generator().manual_seed(0)))
        self.stride = Choice("stride", nn.Linear(2, 3), lambda scores: scores.argmax(-1))
        self.loop = Loop("walk", self.step, lambda answer, state, k: answer > 0, 4, lambda state, k: state[1])

    def step(self, state: tuple[Tensor, Tensor], k: int) -> tuple[Tensor, Tensor]:
        place, value = state
        stride = self.stride(torch.stack([place / 9, value], -1).to(self.line.dtype))
        place = (place + stride) % 9
        return place, self.line[place] - 0.1 * stride.to(self.line.dtype)

    def forward(self, x: Tensor) -> Any:
        return self.loop(((x.abs() * 100).long() % 9, x))


def run(net: nn.Module, x: Tensor, strategy: Any, **how: Any) -> tuple[Any, Trace]:
    ex = Execution(strategy, record=True, **how)
    y = ex.run(net, x)
    assert ex.trace is not None
    return y, ex.trace


def walk(n: int, seed: int = 0) -> tuple[Walk, Tensor]:
    torch.manual_seed(seed)
    return Walk().eval(), torch.randn(n)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(strategy=st.sampled_from(DYNAMIC), n=st.integers(1, 9), keep=st.floats(0, 1), seed=st.integers(0, 50))
@torch.inference_mode()
def test_any_trace_gives_the_answer_of_per_sample(strategy: str, n: int, keep: float, seed: int) -> None:
    net, x = walk(n, seed)
    tables = run(net, x, Masking())[1]
    for trace in (None, synthetic(tables, net, keep_rate=keep, seed=seed), edge(tables, net, "one")):
        want, asked = run(net, x, PerSample(), replay=trace)
        got, recorded = run(net, x, STRATEGIES[strategy](), replay=trace)
        assert torch.allclose(got, want) and recorded == asked


@torch.inference_mode()
def test_made_up_traces_keep_the_values_chosen() -> None:
    net, x = walk(8)
    tables = run(net, x, Masking())[1]
    value, reached = tables.entries["stride", (4,)]
    assert len(value[reached].unique()) > 1
    for trace in (synthetic(tables, net), *(edge(tables, net, kind) for kind in ("all", "none", "one"))):
        assert torch.equal(trace.entries["stride", (4,)].value, value)
        assert trace.entries["stride", (4,)].value.data_ptr() != value.data_ptr()
    assert keep_rate(edge(tables, net, "all"), net) == 1  # of the Loop; a value keeps nothing


@torch.inference_mode()
def test_a_replayed_value_is_used_and_the_body_still_runs() -> None:
    net, x = walk(5)
    ran: list[int] = []
    net.stride.body.register_forward_hook(lambda *_: ran.append(1))
    zero = run(net, x, Masking())[1]
    zero.entries["stride", (4,)].value.zero_()
    ran.clear()
    stay, _ = run(net, x, Masking(), replay=zero)
    assert len(ran) == 4
    assert torch.allclose(stay, net.line[(x.abs() * 100).long() % 9])


@torch.inference_mode()
def test_values_can_be_sampled_and_observed() -> None:
    net, x = walk(5)
    seen: list[Tensor] = []

    def choose(point: DecisionPoint, scores: Tensor) -> Tensor | None:
        return torch.full(scores.shape[:1], 2) if point is net.stride else None

    def observe(point: DecisionPoint, scores: Tensor, value: Tensor) -> None:
        if point is net.stride:
            seen.append(value)

    Execution(Masking(), choose=choose, observe=observe).run(net, x)
    assert len(seen) == 4 and bool((torch.stack(seen) == 2).all())


def test_its_body_is_required_work_of_every_step_taken() -> None:
    net, x = walk(6)
    with torch.inference_mode():
        trace = run(net, x, PerSample())[1]
        steps = int(trace.entries["stride", (4,)].reached.sum())
        assert PartCosts(net, x).required(trace).region == steps * 2 * 6  # 2 x 3 MACs
    assert 6 < steps < 24


def test_outside_an_execution_the_rule_decides() -> None:
    net, x = walk(4)
    with torch.inference_mode():
        _, trace = run(
            net, x, Masking(), choose=lambda point, s: torch.zeros_like(s) if s.dtype == torch.bool else None
        )
        never = Execution(Masking(), replay=trace).run(net, x)
        assert torch.allclose(net(x), never)
    assert isinstance(points(net)["stride"], Choice) and list(net.stride.parts()) == [net.stride.body]


def test_a_value_is_one_decision_or_lists_several() -> None:
    one, several = (
        Choice("c", nn.Linear(2, 3), lambda scores: scores.topk(2).indices, listed=k) for k in (False, True)
    )
    assert one.choices((2,)) == one.choices(()) == 1
    assert several.choices((2,)) == 2 and several.choices(()) == several.choices((2, 3)) == 1


@pytest.mark.parametrize("strategy", DYNAMIC)
def test_in_training_the_scores_keep_their_graph(strategy: str) -> None:
    net, x = walk(5)
    net.train()
    kept: list[Tensor] = []
    ex = Execution(STRATEGIES[strategy](), observe=lambda point, s, v: kept.append(s) if point is net.stride else None)
    ex.run(net, x)
    torch.cat(kept).sum().backward()
    assert net.stride.body.weight.grad is not None
