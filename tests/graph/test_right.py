"""What graphs are compared with: each item is computed once, and the answers are those of computing every batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dynbench.dynamic import Execution, widest_scope
from dynbench.dynamic.items import tensors
from dynbench.graph import Right
from dynbench.strategies import PerSample
from tests.graph.networks import GRAPHS, of_one_tensor


@pytest.mark.parametrize("name", GRAPHS)
def test_the_beginning_of_many_is_what_few_would_be_answered(name: str) -> None:
    net, x = of_one_tensor(name)
    right = Right(net, x)
    right.of(len(x))
    for n in (1, 2):
        alone = Execution(PerSample(), record=True)
        with torch.no_grad():
            answer = list(tensors(alone.run(net, x[:n])))
        known = right.of(n)
        assert all(torch.equal(a, b) for a, b in zip(known.answer, answer, strict=True))
        assert known.taken == alone.trace and known.taken.items == n


@pytest.mark.parametrize("kind", ["none", "all", "one"])
def test_decisions_at_the_edges_are_those_of_each_batch(kind: str) -> None:
    net, x = of_one_tensor("pyramid")
    shared, fresh = Right(net, x), Right(net, x)
    shared.of(len(x), kind)
    few, own = shared.of(2, kind), fresh.of(2, kind)
    assert few.given is not None and few.given == own.given and few.taken == own.taken
    assert all(torch.equal(a, b) for a, b in zip(few.answer, own.answer, strict=True))


class Counting(nn.Module):
    """A static network that counts its items."""

    def __init__(self) -> None:
        super().__init__()
        self.items = 0

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.items += len(x)
        return 2 * x, x.sum()


class Rows(Counting):
    """One whose answer has a row for each item, and nothing else."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.items += len(x)
        return 2 * x, x.sum(1)


def test_no_item_is_computed_twice() -> None:
    net, x = Rows(), torch.randn(5, 3)
    right = Right(net, x, static=True)
    answers = [right.of(n).answer for n in (5, 1, 2, 5)]
    assert net.items == 5 and [len(a[0]) for a in answers] == [5, 1, 2, 5]


def test_what_is_no_row_for_each_item_is_computed_for_each_batch() -> None:
    net, x = Counting(), torch.randn(5, 3)
    right = Right(net, x, static=True)
    right.of(5)
    assert torch.equal(right.of(2).answer[1], x[:2].sum()) and net.items == 7


def test_where_a_batch_decides_together_each_is_computed() -> None:
    net, x = of_one_tensor("capacity_exits")
    assert widest_scope(net) == "batch" and Right(net, x).apart
