"""Items move whole, in the layout and the containers they had; what belongs to no item stays where it is."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from dynbench.dynamic import Shared
from dynbench.dynamic.items import blank, cat, count, first, map_items, put_, row, select, take, tensors, zeros


class Belief(NamedTuple):
    mean: Tensor
    step: Tensor | None


def nested() -> dict[str, Any]:
    x = torch.arange(12.0).view(4, 3)
    return {"belief": Belief(x, None), "pair": [x + 100, (torch.arange(4),)], "table": Shared(x)}


def test_take_picks_rows_everywhere_but_in_what_is_shared() -> None:
    state = nested()
    got = take(state, torch.tensor([2, 0]))
    assert got["belief"].mean.tolist() == [[6, 7, 8], [0, 1, 2]]
    assert got["pair"][0].tolist() == [[106, 107, 108], [100, 101, 102]]
    assert got["pair"][1][0].tolist() == [2, 0]
    assert got["table"] is state["table"]


def test_containers_keep_their_types() -> None:
    got = take(nested(), torch.tensor([1]))
    assert type(got) is dict
    assert type(got["belief"]) is Belief
    assert got["belief"].step is None
    assert type(got["pair"]) is list
    assert type(got["pair"][1]) is tuple


def test_put_writes_over_these_rows_only() -> None:
    state = nested()
    new = take(nested(), torch.tensor([0, 0]))
    got = put_(state, torch.tensor([3, 1]), new)
    assert got["belief"].mean is state["belief"].mean
    assert got["pair"][1][0].tolist() == [0, 0, 2, 0]
    assert got["belief"].mean.tolist() == [[0, 1, 2], [0, 1, 2], [6, 7, 8], [0, 1, 2]]


def test_take_then_put_changes_nothing() -> None:
    state, rows = nested(), torch.tensor([3, 0, 2])
    put_(state, rows, take(state, rows))
    assert all(torch.equal(a, b) for a, b in zip(tensors(state), tensors(nested()), strict=True))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_images_keep_their_layout(layout: torch.memory_format) -> None:
    x = torch.randn(4, 3, 5, 5).contiguous(memory_format=layout)
    rows = torch.tensor([2, 1])
    part = take(x, rows)
    assert torch.equal(part, x[[2, 1]])
    done = put_(blank(part, 4), rows, part)
    assert torch.equal(done[[2, 1]], part)
    for y in (part, row(x, 1), blank(x, 7), zeros(x, 7), cat([x, part]), done, put_(x.clone(), rows, part)):
        assert y.is_contiguous(memory_format=layout)
        assert y.shape[1:] == x.shape[1:]


def test_put_accepts_either_layout() -> None:
    x, y = torch.zeros(3, 2, 4, 4).contiguous(memory_format=torch.channels_last), torch.randn(2, 2, 4, 4)
    put_(x, torch.tensor([0, 2]), y)
    assert torch.equal(x[[0, 2]], y)
    assert x[1].abs().sum() == 0


SHAPES = [(64, 64), (64, 63), (64,), (64, 8, 8, 8), (64, 5, 7, 3), (64, 4, 1, 1), (2, 3, 64, 64)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layouts", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("offset", [0, 1])
def test_large_items_are_put_bit_by_bit(
    shape: tuple[int, ...], layouts: tuple[int, int], dtype: torch.dtype, offset: int
) -> None:
    """They go in words of 16 bytes where memory allows; what is put is the same."""
    random = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**63), 2**63 - 1, (2, shape[0] + offset, *shape[1:]), generator=random)
    into, part = (bits % 2 > 0) if dtype == torch.bool else bits.to(dtype)
    if len(shape) == 4:
        kinds = (torch.contiguous_format, torch.channels_last)
        into, part = (t.contiguous(memory_format=kinds[k]) for t, k in zip((into, part), layouts, strict=True))
    into, part = into[offset:], part[offset:]
    rows = torch.randperm(shape[0], generator=random)[: (shape[0] + 1) // 2]
    expected = into.clone()
    expected[rows] = part[: len(rows)]
    assert put_(into, rows, part[: len(rows)]) is into
    assert torch.equal(into, expected)


def test_large_items_are_put_with_their_gradient() -> None:
    part = torch.randn(64, 64, requires_grad=True)
    put_(torch.zeros(128, 64), torch.arange(0, 128, 2), part).sum().backward()
    assert torch.equal(part.grad, torch.ones(64, 64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_room_is_of_the_same_kind(dtype: torch.dtype) -> None:
    x = torch.ones(2, 3).to(dtype)
    assert blank(x, 5).dtype == zeros(x, 5).dtype == dtype
    assert zeros(x, 5).tolist() == [[0, 0, 0]] * 5


def test_a_row_is_a_view() -> None:
    x = torch.zeros(3, 2)
    row((x,), 1)[0].fill_(7)
    assert x.tolist() == [[0, 0], [7, 7], [0, 0]]


def test_select_lets_nothing_through_from_the_other_side() -> None:
    yes, no = torch.tensor([[1.0], [float("nan")]]), torch.tensor([[float("inf")], [2.0]])
    assert select(torch.tensor([True, False]), yes, no).tolist() == [[1], [2]]


def test_cat_joins_states_in_order() -> None:
    a, b = (torch.zeros(1, 2), {"k": torch.zeros(1)}), (torch.ones(2, 2), {"k": torch.ones(2)})
    x, rest = cat([a, b])
    assert x[:, 0].tolist() == rest["k"].tolist() == [0, 1, 1]


def test_a_state_knows_how_many_items_it_has() -> None:
    assert count((None, Shared(torch.zeros(9)), {"x": torch.zeros(4, 2)})) == 4


def test_a_state_without_a_tensor_has_no_items() -> None:
    with pytest.raises(ValueError, match="no items"):
        first((None, Shared(torch.zeros(9))))


def test_other_things_are_no_state() -> None:
    with pytest.raises(TypeError, match="not of int"):
        map_items(torch.clone, (torch.zeros(1), 3))


def test_states_of_other_lengths_do_not_go_together() -> None:
    with pytest.raises(ValueError):
        map_items(torch.add, (torch.zeros(1),), (torch.zeros(1), torch.zeros(1)))
