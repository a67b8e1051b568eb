"""Items move whole, in the layout and the containers they had; what belongs to no item stays where it is."""

from __future__ import annotations

import random
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from dynbench.dynamic import Shared
from dynbench.dynamic.items import (
    answer_parts,
    blank,
    cat,
    count,
    first,
    joined_answers,
    map_items,
    put_,
    row,
    select,
    take,
    tensors,
    zeros,
)


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
    with pytest.raises(TypeError, match="not of Random"):
        map_items(torch.clone, (torch.zeros(1), random.Random()))


class Output(OrderedDict[str, Tensor]):
    """Entries are attributes, too."""

    def __getattr__(self, name: str) -> Tensor:
        if name not in self:
            raise AttributeError(name)
        return self[name]


class Namespace(dict[str, Tensor]):
    """A dict that is its own attributes."""

    def __init__(self, *args: Any, **entries: Tensor) -> None:
        super().__init__(*args, **entries)
        self.__dict__ = self


class Mirrored(dict[str, Tensor]):
    """Entries kept as attributes a second time, and something of the whole."""

    def __init__(self, x: Tensor) -> None:
        super().__init__(x=x)
        self.x, self.source = x, "sensor"


@dataclass(frozen=True)
class Record:
    x: Tensor
    scale: float = 2.0


@pytest.mark.parametrize("make", [lambda x: Output(x=x), lambda x: Namespace(x=x), Mirrored, Record])
def test_objects_of_one_s_own_come_out_as_they_went_in(make: Callable[[Tensor], Any]) -> None:
    state = make(torch.arange(4))
    got = take(state, torch.tensor([3, 1]))
    assert type(got) is type(state) and got.x.tolist() == [3, 1] and count(got) == 2
    assert [t.tolist() for t in tensors(got)] == [[3, 1]] and state.x.tolist() == [0, 1, 2, 3]
    back = put_(map_items(torch.clone, state), torch.tensor([0, 1]), got)
    assert type(back) is type(state) and back.x.tolist() == [3, 1, 2, 3]
    assert getattr(got, "source", "sensor") == "sensor" and getattr(got, "scale", 2.0) == 2.0


def test_a_default_dict_keeps_its_default() -> None:
    state = defaultdict(list, x=torch.arange(3))
    assert take(state, torch.tensor([2]))["missing"] == []


def test_numbers_and_tensors_without_a_dimension_belong_to_no_item() -> None:
    state = {"loss": torch.tensor(3.0), "x": torch.arange(4), "steps": 2, "name": "a"}
    got = take(state, torch.tensor([1]))
    assert got["loss"] is state["loss"] and got["steps"] == 2 and got["name"] == "a" and count(got) == 1
    assert count((torch.tensor(1.0), torch.zeros(5))) == 5


def test_the_parts_of_an_answer_are_named_and_those_of_the_whole_batch_apart() -> None:
    answer = {"y": torch.zeros(2, 3), "loss": torch.tensor(1.0), "more": (Record(torch.ones(2)), 5)}
    parts, of_batch = answer_parts(answer, 2)
    assert list(parts) == ["y", "more.0.x"] and of_batch == ["loss", "more.0.scale", "more.1"]
    assert list(answer_parts(torch.zeros(2, 3), 2)[0]) == [""]


def boxes(*counts: int) -> list[dict[str, Tensor]]:
    return [{"box": torch.full((n, 4), float(i)), "score": torch.tensor(float(n))} for i, n in enumerate(counts)]


def test_a_list_with_an_entry_for_each_item_is_put_together() -> None:
    parts, of_batch = answer_parts(boxes(3, 0, 1), 3)
    assert {name: list(t.shape) for name, t in parts.items()} == {"0.box": [4, 4], "0.score": [3]} and not of_batch
    assert parts["0.box"][:, 0].tolist() == [0, 0, 0, 2]


def test_answers_to_single_items_become_the_answer_to_all() -> None:
    whole = boxes(3, 0, 1)
    assert joined_answers([[entry] for entry in whole]) == whole
    one = {"y": torch.zeros(1, 3), "loss": torch.tensor(1.0), "found": [torch.zeros(2, 4)], "n": 7}
    both = joined_answers([one, one | {"found": [torch.zeros(5, 4)]}])
    assert both["y"].shape == (2, 3) and both["loss"] is one["loss"] and both["n"] == 7
    assert [len(t) for t in both["found"]] == [2, 5]
    assert [t.shape[0] for t in joined_answers([[torch.zeros(1, 4), torch.zeros(1)]] * 3)] == [3, 3]  # two tensors


def test_batches_of_different_sizes_are_joined_as_well() -> None:
    whole = boxes(3, 0, 1, 2, 2)
    assert joined_answers([whole[:3], whole[3:]], [3, 2]) == whole
    assert joined_answers([torch.zeros(3, 2), torch.zeros(2, 2)], [3, 2]).shape == (5, 2)


def test_states_of_other_lengths_do_not_go_together() -> None:
    with pytest.raises(ValueError):
        map_items(torch.add, (torch.zeros(1),), (torch.zeros(1), torch.zeros(1)))
