"""Exactly what was decided is computed: without active items, and without items left, no module is called."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynbench.dynamic import DecisionPoint, Each, Execution, Exits, Loop, Route, Skip, Weights, Width
from dynbench.dynamic.items import tensors
from dynbench.dynamic.sources import edge
from dynbench.strategies import STRATEGIES
from tests.networks import Mixture, ScaledLinear, accepted, make
from tests.strategies.test_same_answer import all_tables

SPARSE = ["compaction", "cascading", "per_sample"]


class Counting(nn.Module):
    """Adds `n` to every item and records the batch size of each call."""

    def __init__(self, n: float = 1.0) -> None:
        super().__init__()
        self.n, self.calls = n, list[int]()

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(x.shape[0])
        return x + self.n


def calls(strategy: str, *sizes: int) -> list[int]:
    """The batch sizes of calls with `sizes` items: `per_sample` makes one call per item."""
    return [1 for size in sizes for _ in range(size)] if strategy == "per_sample" else list(sizes)


def column(j: int) -> Any:
    return lambda x, carry: (x[:, j], carry)


class SkipNet(nn.Module):
    """x [n, 2]: the body runs for items whose first column is positive."""

    def __init__(self, otherwise: nn.Module | None) -> None:
        super().__init__()
        self.body = Counting()
        self.skip = Skip("s", column(0), self.body, otherwise)

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x)[0]


@pytest.mark.parametrize("strategy", ["compaction", "per_sample"])
@pytest.mark.parametrize("runs", [[], [1], [0, 1, 3], [0, 1, 2, 3]])
@pytest.mark.parametrize("with_otherwise", [False, True])
@torch.inference_mode()
def test_a_body_gets_the_items_that_run_and_otherwise_the_rest(
    with_otherwise: bool, runs: list[int], strategy: str
) -> None:
    otherwise = Counting(100.0) if with_otherwise else None
    net, x = SkipNet(otherwise), torch.full((4, 2), -1.0)
    x[runs] = 1.0
    y = Execution(STRATEGIES[strategy]()).run(net, x)
    rest = 4 - len(runs)
    assert net.body.calls == (calls(strategy, len(runs)) if runs else [])
    if otherwise is not None:
        assert otherwise.calls == (calls(strategy, rest) if rest else [])
    assert y.tolist() == [[2.0, 2.0] if i in runs else [99.0, 99.0] if otherwise else [-1.0, -1.0] for i in range(4)]


@pytest.mark.parametrize("strategy", ["compaction", "per_sample"])
@torch.inference_mode()
def test_an_expert_without_tokens_is_not_called(strategy: str) -> None:
    experts = [Counting(n) for n in (1.0, 2.0, 3.0, 4.0)]
    route = Route("r", lambda x: nn.functional.one_hot(x[:, 0].long(), 4).float(), experts)
    x = torch.tensor([[[3.0], [1.0]], [[3.0], [3.0]]])  # 2 samples of 2 tokens
    y = Execution(STRATEGIES[strategy]()).run(Each(route), x)
    assert y.flatten().tolist() == [7, 3, 7, 7]
    assert [e.calls for e in experts] == [[], calls(strategy, 1), [], calls(strategy, 3)]


@pytest.mark.parametrize("strategy", ["compaction", "per_sample"])
@torch.inference_mode()
def test_items_dropped_by_every_expert_cost_nothing(strategy: str) -> None:
    experts = [Counting(), Counting()]
    net = Route("r", lambda x: x, experts, 1, lambda s, chosen: (chosen >= 0).float())
    dropped = Execution(STRATEGIES[strategy](), choose=lambda point, s: torch.full((s.shape[0], 1), -1))
    assert dropped.run(net, torch.ones(3, 2)).abs().sum() == 0
    assert [e.calls for e in experts] == [[], []]


class Chain(nn.Module):
    """x [n, 1] counts down by one per stage; items at or below 0 leave."""

    def __init__(self) -> None:
        super().__init__()
        self.stages, self.heads = [Counting(-1.0) for _ in range(4)], [Counting(100.0) for _ in range(4)]
        self.exits = Exits("e", self.stages, self.heads, lambda answer, state, k: state[:, 0] <= 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.exits(x)


@pytest.mark.parametrize("strategy", SPARSE)
@torch.inference_mode()
def test_after_all_items_left_no_stage_runs(strategy: str) -> None:
    net = Chain()
    y = Execution(STRATEGIES[strategy]()).run(net, torch.tensor([[1.0], [2.0], [1.0], [2.0], [2.0]]))
    assert y.flatten().tolist() == [100] * 5
    for part in (net.stages, net.heads):
        assert [sum(p.calls) for p in part] == [5, 3, 0, 0]
        if strategy != "per_sample":
            assert [p.calls for p in part] == [[5], [3], [], []]


@pytest.mark.parametrize("strategy", SPARSE)
@torch.inference_mode()
def test_the_policy_is_not_asked_after_the_last_stage(strategy: str) -> None:
    asked = []

    def nobody(answer: Tensor, state: Tensor, k: int) -> Tensor:
        asked.append(k)
        return torch.zeros(answer.shape[0], dtype=torch.bool)

    net = Exits("e", [Counting() for _ in range(3)], [nn.Identity() for _ in range(3)], nobody)
    Execution(STRATEGIES[strategy]()).run(net, torch.zeros(1, 1))
    assert asked == [0, 1]


@pytest.mark.parametrize("strategy", SPARSE)
@torch.inference_mode()
def test_a_loop_takes_the_steps_its_items_need(strategy: str) -> None:
    step = Counting(-1.0)
    net = Loop("l", lambda s, k: step(s), lambda answer, s, k: s[:, 0] <= 0, 10)
    y = Execution(STRATEGIES[strategy]()).run(net, torch.tensor([[4.0], [1.0], [2.0]]))
    assert y.flatten().tolist() == [0, 0, 0]
    assert sum(step.calls) == 7
    assert step.calls == (calls(strategy, 4, 1, 2) if strategy == "per_sample" else [3, 2, 1, 1])


@torch.inference_mode()
def test_compaction_specialises_a_layer_once_per_code() -> None:
    made: list[int] = []

    def generate(code: Tensor) -> Tensor:
        made.append(code.shape[0])
        return code[:, None].float().expand(-1, 2)

    net = Weights("w", lambda c: c, generate, ScaledLinear(3, 2))

    class Cued(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.point = net

        def forward(self, x: Tensor, code: Tensor) -> Tensor:
            return self.point(x, code)

    Execution(STRATEGIES["compaction"]()).run(Cued(), torch.randn(5, 3), torch.tensor([4, 2, 4, 4, 2]))
    assert made == [2]


class Recording(nn.Module):
    """A layer that records the codes it was specialised for, and for how many items it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[list[bool]] = []
        self.calls: list[tuple[int, bool]] = []

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        self.calls.append((x.shape[0], mask is not None))
        return x if mask is None else x * mask.sum(1, keepdim=True)

    def special(self, mask: Tensor) -> Callable[..., Tensor]:
        self.made.append(mask.tolist())
        width = int(mask.sum())

        def sliced(x: Tensor, inner: Tensor | None = None) -> Tensor:
            self.calls.append((x.shape[0], inner is not None))
            return x * (width if inner is None else inner.sum(1, keepdim=True))

        return sliced


def masks(*rows: str) -> Tensor:
    return torch.tensor([[float(c) for c in row] for row in rows])


@torch.inference_mode()
def test_the_batch_union_is_sliced_once_and_not_at_all_where_it_is_everything() -> None:
    layer = Recording()
    net = Width("w", lambda x: x, layer).eval()
    some, whole = masks("0100", "0110", "0000"), masks("0101", "1010")
    run = Execution(STRATEGIES["batch_union"]()).run
    assert torch.equal(run(net, some), some * some.sum(1, keepdim=True))
    assert layer.made == [[False, True, True, False]] and layer.calls == [(3, True)]
    assert torch.equal(run(net, whole), whole * 2)
    assert len(layer.made) == 1 and layer.calls[1:] == [(2, True)]


@torch.inference_mode()
def test_items_that_use_the_same_channels_are_a_plain_slice_under_batch_union() -> None:
    layer = Recording()
    net = Width("w", lambda x: x, layer).eval()
    alike = masks("0110", "0110")
    assert torch.equal(Execution(STRATEGIES["batch_union"]()).run(net, alike), alike * 2)
    assert layer.made == [[False, True, True, False]] and layer.calls == [(2, False)]


@torch.inference_mode()
def test_a_specialised_layer_is_kept_where_codes_are_few_and_made_anew_where_they_are_not() -> None:
    for nested, made in ((True, 2), (False, 4)):
        layer = Recording()
        net = Width("w", lambda x: x, layer, nested=nested).eval()
        ex = Execution(STRATEGIES["specialised"]())
        for _ in range(2):
            assert ex.run(net, masks("1000", "1100", "1000")).sum().item() == 1 + 4 + 1
        assert len(layer.made) == made and layer.calls == [(2, False), (1, False)] * 2
    assert "few, known codes" in str(STRATEGIES["specialised"]().refuses(net))


@torch.inference_mode()
def test_where_codes_need_not_be_parted_parameters_are_kept_and_the_batch_stays_whole() -> None:
    made: list[int] = []

    def generate(code: Tensor) -> Tensor:
        made.append(code.shape[0])
        return code[:, None].float().expand(-1, 4)

    layer = Recording()
    net = Weights("w", lambda x: x[:, 0].long(), generate, layer, codes=7, together=True).eval()
    ex = Execution(STRATEGIES["specialised"]())
    for codes in ([4, 2, 4, 4, 2], [6]):
        x = torch.tensor(codes, dtype=torch.float)[:, None].expand(-1, 4)
        assert torch.equal(ex.run(net, x), 4 * x * x)
    assert made == [7] and layer.calls == [(5, True), (1, True)]


@torch.inference_mode()
def test_items_with_weights_of_their_own_are_not_grouped() -> None:
    refusal = STRATEGIES["compaction"]().refuses(Mixture(skip=False).eval())
    assert refusal is not None and "every item's weights are its own (mixed)" in refusal
    assert STRATEGIES["compaction"]().refuses(Mixture().eval()) is None  # its Skip is compacted


@pytest.mark.parametrize("kind", ["none", "all", "one", "random"])
@pytest.mark.parametrize(("name", "strategy"), accepted(without=["generated", "fixed_loop"]))
@torch.inference_mode()
def test_nothing_is_called_with_no_items(name: str, kind: str, strategy: str) -> None:
    net, args = make(name)
    replay = edge(all_tables(net, args), net, kind)
    sizes: dict[nn.Module, list[int]] = defaultdict(list)

    def note_sizes(module: nn.Module, given: Any) -> None:
        sizes[module].extend(t.shape[0] for t in tensors(tuple(a for a in given if not isinstance(a, int))))

    for module in net.modules():
        if not any(isinstance(inner, DecisionPoint) for inner in module.modules()):
            module.register_forward_pre_hook(note_sizes)
    Execution(STRATEGIES[strategy](), replay=replay).run(net, *args)
    assert sum(map(len, sizes.values())) > 0
    assert all(size > 0 for called in sizes.values() for size in called)
