"""Grouped products give the answers of compaction, and are left alone where experts are not equal layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynbench.dynamic import Execution, Route
from dynbench.strategies import Compaction
from dynbench.strategies import grouped as module
from dynbench.strategies.grouped import Grouped, Stack
from tests.networks import top_softmax


def mlp(d: int = 8, m: int = 16, bias: bool = True, act: nn.Module | None = None) -> nn.Module:
    return nn.Sequential(nn.Linear(d, m, bias=bias), act or nn.GELU(), nn.Linear(m, d, bias=bias))


class FeedForward(nn.Module):
    """An expert that is no Sequential."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.up, self.down, self.scale = nn.Linear(8, 16, bias=False), nn.Linear(16, 8), scale

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.silu(self.up(x))) * self.scale


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x))


class ByHand(nn.Module):
    """Computes with its weight otherwise than by a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class Prepared(nn.Linear):
    """A layer whose forward an engine has replaced."""

    def __init__(self) -> None:
        super().__init__(8, 8)
        object.__setattr__(self, "forward", lambda x: x * 2)


EQUAL = {
    "mlp": mlp,
    "without_bias": lambda: mlp(bias=False),
    "linear": lambda: nn.Linear(8, 8),
    "feed_forward": FeedForward,
}


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grouped products are used on the CPU as well; how many rows each has had."""
    seen: list[int] = []
    product = module.grouped_mm

    def counted(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen.append(x.shape[0])
        return product(x, *args, **kwargs)

    monkeypatch.setattr(module, "fits", lambda x: isinstance(x, Tensor))
    monkeypatch.setattr(module, "grouped_mm", counted)
    return seen


def same(net: nn.Module, x: Tensor, tolerance: float = 1e-5) -> None:
    for n in (x.shape[0], 2, 1):
        expected = Execution(Compaction()).run(net, x[:n])
        got = Execution(Grouped()).run(net, x[:n])
        assert torch.allclose(got, expected, atol=tolerance * float(expected.abs().max()) + 1e-12)


@pytest.mark.parametrize("k, capacity", [(1, None), (2, None), (2, 0.6)])
@pytest.mark.parametrize("expert", EQUAL)
@torch.inference_mode()
def test_equal_experts_answer_as_under_compaction(
    expert: str, k: int, capacity: float | None, on_cpu: list[int]
) -> None:
    torch.manual_seed(0)
    net = Route("moe", nn.Linear(8, 5), [EQUAL[expert]() for _ in range(5)], k, top_softmax, capacity_factor=capacity)
    same(net.eval(), torch.randn(21, 8))
    assert {21 * k, 2 * k} == set(on_cpu)  # a single item branches


@torch.inference_mode()
def test_all_to_one_expert_and_experts_without_any_item(on_cpu: list[int]) -> None:
    net = Route("moe", nn.Linear(8, 4), [mlp() for _ in range(4)])
    nn.init.zeros_(net.router.weight)  # type: ignore[union-attr, arg-type]
    same(net, torch.randn(7, 8))
    assert on_cpu


def stacked(*experts: nn.Module | None) -> bool:
    return Stack.of(list(experts)) is not None


def different() -> dict[str, tuple[nn.Module | None, nn.Module | None]]:
    one = mlp()
    return {
        "nothing": (mlp(), None),
        "the same one": (one, one),
        "widths": (mlp(), mlp(8, 24)),
        "activations": (mlp(), mlp(act=nn.ReLU())),
        "settings": (mlp(act=nn.LeakyReLU(0.1)), mlp(act=nn.LeakyReLU(0.2))),
        "numbers": (FeedForward(1.0), FeedForward(2.0)),
        "dtypes": (mlp(), mlp().double()),
        "a bias": (nn.Linear(8, 8), nn.Linear(8, 8, bias=False)),
        "other parameters": (Normed(), Normed()),
        "a product by hand": (ByHand(), ByHand()),
        "buffers": (nn.BatchNorm1d(8), nn.BatchNorm1d(8)),
        "no parameters": (nn.ReLU(), nn.ReLU()),
        "prepared": (Prepared(), Prepared()),
        "not aligned": (mlp(8, 6), mlp(8, 6)),
        "decisions": (Route("a", nn.Linear(8, 2), [mlp(), mlp()]), Route("b", nn.Linear(8, 2), [mlp(), mlp()])),
        "images": (nn.Sequential(nn.Conv2d(8, 8, 1)), nn.Sequential(nn.Conv2d(8, 8, 1))),
    }


@pytest.mark.parametrize("name", different())
def test_experts_that_differ_or_are_no_linear_layers_are_left_to_compaction(name: str) -> None:
    assert not stacked(*different()[name])


@torch.inference_mode()
def test_what_cannot_be_grouped_is_computed_one_expert_after_the_other(on_cpu: list[int]) -> None:
    for make in (Normed, ByHand):
        make_expert: Callable[[], nn.Module] = make
        same(Route("moe", nn.Linear(8, 3), [make_expert() for _ in range(3)]).eval(), torch.randn(9, 8))
    assert on_cpu == []


@torch.inference_mode()
def test_without_a_gpu_it_is_compaction(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("grouped_mm")

    monkeypatch.setattr(module, "grouped_mm", never)
    same(Route("moe", nn.Linear(8, 3), [mlp() for _ in range(3)]), torch.randn(9, 8), tolerance=0)


@pytest.mark.cuda
@torch.inference_mode()
def test_on_a_gpu_it_answers_as_compaction_and_never_waits() -> None:
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("grouped products in bfloat16 need compute capability 8.0")
    experts = [mlp(64, 128) for _ in range(6)]
    net = Route("moe", nn.Linear(64, 6), experts, 2, top_softmax).eval().to("cuda", torch.bfloat16)
    x = torch.randn(50, 64, device="cuda", dtype=torch.bfloat16)
    same(net, x, tolerance=2e-2)
    ex = Execution(Grouped())
    ex.run(net, x)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        ex.run(net, x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
