"""Work that nobody asks for is not done: heads of a Loop without halt, what body and otherwise share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynbench.counting.flops import FlopCounter
from dynbench.dynamic import Execution, Loop, Skip
from dynbench.meters.required import PartCosts
from dynbench.strategies import STRATEGIES

D, N, STEPS = 4, 6, 3
DYNAMIC = ["masking", "compaction", "per_sample"]


class Stepped(nn.Module):
    """A Loop whose head is a layer of its own."""

    def __init__(self, halt: Any) -> None:
        super().__init__()
        self.cell, self.head = nn.Linear(D, D), nn.Linear(D, 2)
        self.loop = Loop("loop", lambda state, k: self.cell(state), halt, STEPS, lambda state, k: self.head(state))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.loop(x)
        return y


def flops(net: nn.Module, x: Tensor, strategy: str) -> tuple[Tensor, int]:
    with torch.inference_mode(), FlopCounter() as counter:
        y = Execution(STRATEGIES[strategy]()).run(net, x)
    return y, sum(counter.by_part.values())


@pytest.mark.parametrize("strategy", [*DYNAMIC, "dense"])
def test_the_head_of_a_loop_without_halt_is_called_once(strategy: str) -> None:
    torch.manual_seed(0)
    net, x = Stepped(None), torch.randn(N, D)
    y, spent = flops(net, x, strategy)
    assert spent == N * (STEPS * 2 * D * D + 2 * D * 2)
    with torch.inference_mode():
        assert torch.allclose(y, net.head(net.cell(net.cell(net.cell(x)))), atol=1e-6)


@pytest.mark.parametrize("strategy", DYNAMIC)
def test_the_head_of_a_loop_with_halt_answers_after_every_step(strategy: str) -> None:
    never = Stepped(lambda answer, state, k: torch.zeros(len(answer), dtype=torch.bool))
    assert flops(never, torch.randn(N, D), strategy)[1] == N * STEPS * (2 * D * D + 2 * D * 2)


def test_required_work_follows() -> None:
    net, x = Stepped(None), torch.randn(N, D)
    ex = Execution(STRATEGIES["per_sample"](), record=True)
    with torch.inference_mode():
        ex.run(net, x)
    assert ex.trace is not None
    required = PartCosts(net, x).required(ex.trace)
    assert required.region == N * STEPS * 2 * D * D
    assert required.total == required.region + N * 2 * D * 2


class OnPair(nn.Module):
    """Of x and what it shares with the body: the sum of that and a layer, or that alone."""

    def __init__(self, layer: nn.Module | None) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, given: tuple[Tensor, Tensor]) -> Tensor:
        x, base = given
        return base if self.layer is None else base + self.layer(x)


class Shares(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.skip = Skip("s", lambda x, c: (x[:, 0], c), OnPair(nn.Linear(D, 2)), OnPair(None), shared=nn.Linear(D, 2))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.skip(x)[0]
        return y


@pytest.mark.parametrize("strategy", [*DYNAMIC, "dense"])
def test_what_body_and_otherwise_share_is_computed_once(strategy: str) -> None:
    torch.manual_seed(0)
    net, x = Shares(), torch.randn(N, D)
    keep = x[:, 0] > 0 if strategy != "dense" else torch.ones(N, dtype=torch.bool)
    assert strategy == "dense" or 0 < int(keep.sum()) < N
    y, spent = flops(net, x, strategy)
    one = 2 * D * 2
    everyone = strategy in ("masking", "dense")
    assert spent == N * one + (N if everyone else int(keep.sum())) * one
    with torch.inference_mode():
        base = net.skip.shared(x)  # type: ignore[misc]
        want = torch.where(keep[:, None], base + net.skip.body.layer(x), base)  # type: ignore[operator, union-attr]
        assert torch.allclose(y, want, atol=1e-6)
        assert torch.allclose(net(x), base + net.skip.body.layer(x), atol=1e-6)  # type: ignore[operator, union-attr]


def test_a_skip_that_shares_has_an_otherwise() -> None:
    with pytest.raises(ValueError, match="Skip 's': `shared` is what body and `otherwise` both begin with"):
        Skip("s", None, nn.Linear(D, D), shared=nn.Linear(D, D))
