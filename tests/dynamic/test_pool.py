"""Memory that stays where it is: the same writes under every strategy, and nothing moved but the slot."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dynbench.dynamic import Execution, Loop, Pool, Shared, Skip, outside
from dynbench.dynamic.items import put_, row, take
from dynbench.strategies import STRATEGIES

STEPS = 4
DYNAMIC = ["masking", "compaction", "cascading", "per_sample"]


class State(NamedTuple):
    x: Tensor  # [n, 3]
    pool: Pool  # [STEPS, 3] each


class Write(nn.Module):
    """Writes x + 1 at column k, then adds up what is there."""

    def __init__(self, own_places: bool) -> None:
        super().__init__()
        self.own_places = own_places
        self.fill = Skip("fill", self.gate, Nothing(), Fill())

    def gate(self, state: tuple[Tensor, Pool, Shared], carry: None) -> tuple[Tensor, None]:
        return state[0][:, 1], carry

    def forward(self, state: State, k: int) -> State:
        x, pool = state
        value = x + 1
        if self.own_places:
            at = torch.full((x.shape[0], 1), k)
            pool.write(value.unsqueeze(1), at)
        else:
            pool.write(value, k)
        x = pool.read(slice(0, k + 1)).sum(1)
        self.fill((x, pool, Shared(k)))
        return State(x, pool)


class Fill(nn.Module):
    def forward(self, state: tuple[Tensor, Pool, Shared]) -> Tensor:
        x, pool, k = state
        pool.write(-x, k.value)
        return x


class Nothing(nn.Module):
    def forward(self, state: tuple[Tensor, Pool, Shared]) -> Tensor:
        return state[0]


class Net(nn.Module):
    """Items leave by their first number; what they remember by their second."""

    def __init__(self, own_places: bool = False) -> None:
        super().__init__()
        self.pools: list[Pool] = []
        self.loop = Loop("loop", Write(own_places), self.leaves, STEPS, lambda state, k: state.x)

    def leaves(self, answer: Tensor, state: State, k: int) -> Tensor:
        return answer[:, 0] > 4

    def forward(self, x: Tensor) -> Tensor:
        self.pools.append(Pool.new(x.shape[0], STEPS, 3, like=x))
        y: Tensor = self.loop(State(x, self.pools[-1]))
        return y


def after(net: Net, x: Tensor, strategy: str) -> tuple[Tensor, Tensor]:
    """The answer, and what the memory holds."""
    net.pools.clear()
    with torch.inference_mode():
        y = Execution(STRATEGIES[strategy]()).run(net, x)
    return y, torch.cat([pool.memory.value for pool in net.pools])


rows = st.lists(st.tuples(*[st.integers(-3, 3).map(float)] * 3), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None)
@given(x=rows, own_places=st.booleans())
def test_memory_holds_what_it_would_if_every_item_were_alone(x: Any, own_places: bool) -> None:
    net, items = Net(own_places), torch.tensor(x)
    want, kept = after(net, items, "per_sample")
    for strategy in DYNAMIC:
        answer, memory = after(net, items, strategy)
        assert torch.equal(answer, want) and torch.equal(memory, kept), strategy


def test_what_an_item_that_has_left_would_write_is_dropped_nan_included() -> None:
    net, x = Net(), torch.tensor([[5.0, 0.0, float("nan")], [0.0, 0.0, 0.0]])
    _, memory = after(net, x, "masking")
    assert torch.isnan(memory[0, 0, 2]) and not memory[0, 1:].any() and bool(memory[1, 1:].any())


def test_only_the_slot_moves_with_an_item() -> None:
    pool = Pool.new(5, 4, like=torch.zeros(1))
    for moved in (
        take(pool, torch.tensor([3, 1])),
        row(pool, 3),
        put_(pool, torch.tensor([0]), take(pool, torch.tensor([0]))),
    ):
        assert moved.memory is pool.memory
    assert take(pool, torch.tensor([3, 1])).slot.tolist() == [3, 1]


def test_all_slots_are_read_without_a_copy_and_some_with_one() -> None:
    pool = Pool.new(4, 2, 3, like=torch.zeros(1))
    pool.write(torch.arange(12.0).view(4, 3), 1)
    whole, some = pool.read(1), take(pool, torch.tensor([2, 0])).read(1)
    assert whole.data_ptr() == pool.memory.value[:, 1].data_ptr()
    assert some.tolist() == [[6, 7, 8], [0, 1, 2]] and not pool.read(0).any()


@pytest.mark.parametrize("chosen", [[0, 1, 2], [2, 0]])
def test_each_item_may_write_at_its_own_places(chosen: list[int]) -> None:
    pool = take(Pool.new(3, 2, 5, 2, like=torch.zeros(1)), torch.tensor(chosen))
    at = torch.tensor([[0, 1], [3, 4], [2, 0]])[chosen]
    value = torch.randn(len(chosen), 2, 2)  # [n, places, 2]
    pool.write(value, 1, at)
    want = torch.zeros(3, 2, 5, 2)
    for i, slot in enumerate(chosen):
        for j in range(2):
            want[slot, 1, at[i, j]] = value[i, j]
    assert torch.equal(pool.memory.value, want)


def test_a_pool_is_as_its_like() -> None:
    pool = Pool.new(2, 3, like=torch.zeros(7, dtype=torch.float64))
    assert pool.memory.value.dtype == torch.float64 and pool.memory.value.shape == (2, 3)
    with outside():
        pool.write(torch.ones(2, 3, dtype=torch.float64))
    assert pool.read().all()
