"""What a strategy owes its caller: inputs as they were, answers in order, what is shared left alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from dynbench.dynamic import Execution, Exits, Loop, Shared, Skip
from dynbench.dynamic.items import map_items, tensors
from dynbench.dynamic.sources import edge
from dynbench.strategies import STRATEGIES, Compaction
from tests.networks import accepted, make
from tests.strategies.test_same_answer import all_tables

LOOPING = ["masking", "compaction", "cascading", "per_sample"]


@pytest.mark.parametrize(("name", "strategy"), accepted(STRATEGIES))
@torch.inference_mode()
def test_inputs_are_as_they_were(name: str, strategy: str) -> None:
    net, args = make(name)
    before = map_items(torch.clone, args)
    tables = all_tables(net, args)
    replays = [None, *(edge(tables, net, kind) for kind in ("none", "all", "one", "random"))]
    for replay in replays:
        y = Execution(STRATEGIES[strategy](), replay=replay).run(net, *args)
        assert all(torch.equal(a, b) for a, b in zip(tensors(args), tensors(before), strict=True))
        again = Execution(STRATEGIES[strategy](), replay=replay).run(net, *args)
        assert all(torch.equal(a, b) for a, b in zip(tensors(y), tensors(again), strict=True))


class Plus(nn.Module):
    def __init__(self, n: float) -> None:
        super().__init__()
        self.n = n

    def forward(self, x: Tensor) -> Tensor:
        return x + self.n


class First(nn.Module):
    def __init__(self, skip: Skip) -> None:
        super().__init__()
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x)[0]


def positive(x: Tensor, carry: Any) -> tuple[Tensor, Any]:
    return x[:, 0], carry


@pytest.mark.parametrize("strategy", ["masking", "compaction", "per_sample"])
@torch.inference_mode()
def test_without_a_promise_nothing_is_written_into_the_input(strategy: str) -> None:
    x = torch.tensor([[1.0], [-1.0], [2.0]])
    y = Execution(STRATEGIES[strategy]()).run(First(Skip("s", positive, Plus(10))), x)
    assert y.flatten().tolist() == [11, -1, 12]
    assert x.flatten().tolist() == [1, -1, 2]


@torch.inference_mode()
def test_with_a_promise_compaction_writes_over_the_input() -> None:
    x = torch.tensor([[1.0], [-1.0], [2.0]])
    y = Execution(Compaction()).run(First(Skip("s", positive, Plus(10), consumes=True)), x)
    assert y.data_ptr() == x.data_ptr()
    assert x.flatten().tolist() == [11, -1, 12]


def test_a_promise_is_not_used_where_a_gradient_needs_the_input() -> None:
    x = torch.tensor([[1.0], [-1.0], [2.0]], requires_grad=True)

    class Square(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.exp(x)  # its gradient needs its result
            return First(Skip("s", lambda x, c: (x[:, 0] - 1, c), Plus(10), consumes=True))(hidden)

    Execution(Compaction()).run(Square(), x).sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, torch.exp(x.detach()))


class Belief(NamedTuple):
    value: Tensor
    seen: Tensor | None


@pytest.mark.parametrize("strategy", LOOPING)
@torch.inference_mode()
def test_answers_are_in_the_order_of_the_inputs(strategy: str) -> None:
    torch.manual_seed(0)
    leaves_after = torch.randint(0, 4, (17,))
    heads = [Plus(100.0 * k) for k in range(4)]
    net = Exits("e", [nn.Identity()] * 4, heads, lambda answer, state, k: state % 4 == k)
    x = torch.arange(17.0) * 4 + leaves_after
    assert Execution(STRATEGIES[strategy]()).run(net, x).tolist() == (x + 100 * leaves_after).tolist()


class Recorder(nn.Module):
    """A step on a state of many kinds; it keeps every `Shared` it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[Shared] = []

    def forward(self, state: Any, k: int) -> Any:
        self.tables.append(state["table"])
        belief, (counts,) = state["belief"], state["counts"]
        value = belief.value + state["table"].value.sum() + counts[:, None]
        return {"belief": Belief(value, belief.seen), "counts": [counts + 1], "table": state["table"]}


@pytest.mark.parametrize("strategy", LOOPING)
@torch.inference_mode()
def test_named_tuples_lists_and_dicts_travel_and_what_is_shared_does_not(strategy: str) -> None:
    step, table = Recorder(), Shared(torch.tensor([0.5, 0.5]))
    net = Loop("l", step, lambda answer, s, k: s["counts"][0] >= 3, 4)
    belief = Belief(torch.tensor([[0.0], [10.0], [20.0]]), None)
    state = {"belief": belief, "counts": [torch.tensor([0.0, 2.0, 1.0])], "table": table}
    answer = Execution(STRATEGIES[strategy]()).run(net, state)
    assert type(answer["belief"]) is Belief
    assert answer["belief"].seen is None
    # item 0 takes 3 steps: 0 + (1 + 0) + (1 + 1) + (1 + 2); item 1 one; item 2 two
    assert answer["belief"].value.flatten().tolist() == [6, 13, 25]
    assert answer["counts"][0].tolist() == [3, 3, 3]
    assert all(t is table for t in step.tables)
    assert answer["table"] is table


@pytest.mark.parametrize("strategy", ["compaction", "cascading"])
@torch.inference_mode()
def test_a_state_that_a_step_passes_on_untouched_is_not_put_back(strategy: str) -> None:
    """The raw input of a cascade travels forwards only."""
    puts: list[tuple[int, ...]] = []
    original = Tensor.index_copy_

    def spy(self: Tensor, *args: Any) -> Tensor:
        puts.append(tuple(self.shape))
        return original(self, *args)

    class Level(nn.Module):
        def forward(self, state: Any) -> Any:
            return state[0], state[0][:, :2]

    class Answer(nn.Module):
        def forward(self, state: Any) -> Any:
            return state[1]

    net = Exits("e", [Level() for _ in range(3)], [Answer() for _ in range(3)], lambda a, s, k: a[:, 0] <= k)
    x = torch.arange(4.0)[:, None].expand(4, 50).contiguous()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "index_copy_", spy)
        y = Execution(STRATEGIES[strategy]()).run(net, (x, None))
    assert y.tolist() == [[i, i] for i in range(4)]
    assert puts
    assert (4, 50) not in puts
