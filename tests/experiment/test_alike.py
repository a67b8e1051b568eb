"""Which items two passes decided alike, and how many decisions differ."""

from __future__ import annotations

import torch
from torch import Tensor

from dynbench.dynamic import Trace
from dynbench.dynamic.trace import Entry
from dynbench.experiment.alike import decided_alike, flipped, joined


def trace(**values: tuple[Tensor, Tensor | None]) -> Trace:
    entries = {
        (name, ()): Entry(value, torch.ones(len(value), dtype=torch.bool) if reached is None else reached)
        for name, (value, reached) in values.items()
    }
    return Trace(entries, len(next(iter(entries.values())).value))


def test_an_item_with_any_other_decision_is_not_alike() -> None:
    a = trace(x=(torch.tensor([1, 2, 3]), None), y=(torch.tensor([0.5, 0.5, 0.5]), None))
    b = trace(x=(torch.tensor([1, 0, 3]), None), y=(torch.tensor([0.5, 0.5, 0.7]), None))
    assert decided_alike(a, b, 1e-4).tolist() == [True, False, False]
    assert flipped(a, b, 1e-4) == (2, 6) and flipped(a, a, 0.0) == (0, 6)


def test_who_is_asked_by_one_only_is_not_alike_and_counts() -> None:
    some = torch.tensor([True, False, True])
    a, b = trace(x=(torch.tensor([1, 1, 1]), None)), trace(x=(torch.tensor([1, 1, 1]), some))
    assert decided_alike(a, b, 0.0).tolist() == decided_alike(b, a, 0.0).tolist() == [True, False, True]
    assert flipped(a, b, 0.0) == flipped(b, a, 0.0) == (1, 3)
    other = trace(y=(torch.tensor([1, 1, 1]), some))
    assert decided_alike(b, other, 0.0).tolist() == [False, True, False] and flipped(b, other, 0.0) == (4, 4)


def test_of_parts_that_are_chosen_each_counts_once() -> None:
    a, b = trace(x=(torch.tensor([[0, 1, 2], [3, 4, 5]]), None)), trace(x=(torch.tensor([[0, 2, 6], [3, 5, 4]]), None))
    assert flipped(a, b, 0.0, ["x"]) == (1 + 1, 6) and flipped(a, b, 0.0) == (2, 2)


def test_batches_become_the_stream() -> None:
    a, b = trace(x=(torch.tensor([1, 2]), None)), trace(x=(torch.tensor([3]), None))
    assert joined([a, b]) == trace(x=(torch.tensor([1, 2, 3]), None)) and joined([a, b]).items == 3
