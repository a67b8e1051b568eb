"""As how many items calls of a region count, where they differ in what they do for an item."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dynbench.dynamic.regions import Region
from dynbench.experiment.sizes import Sizes, merged, summed
from dynbench.meters.watch import Watched
from dynbench.store.scaling import Part


class Net(nn.Module):
    """One region that computes, and one that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.computes, self.copies = nn.Conv2d(1, 1, 1), nn.ReLU()


NET = Net()
REGIONS = [Region(name, module, True) for name, module in NET.named_children()]


@torch.inference_mode()
def watched(*calls: tuple[Callable[[Tensor], Tensor], tuple[int, int]]) -> Watched:
    """Each call with so many square maps of this side."""
    with Watched(NET, REGIONS) as found:
        for module, (items, side) in calls:
            module(torch.zeros(items, 1, side, side))
    return found


def part(name: str, sizes: list[int], us: list[float]) -> Part:
    return Part(name=name, sizes=sizes, us=us, low_us=us, high_us=us)


def test_calls_that_are_alike_count_as_their_items() -> None:
    few, many = watched((NET.computes, (1, 8))), watched((NET.computes, (32, 8)), (NET.copies, (32, 8)))
    sizes = Sizes([few, many])
    assert sizes.calls(many) == {"computes": {32: 1}, "copies": {32: 1}}
    time = part("computes", [1, 32], [5.0, 90.0])
    assert sizes.part(time, [few, many]) == time


@pytest.mark.parametrize("name", ["computes", "copies"])
def test_a_map_counts_as_the_patches_that_it_holds(name: str) -> None:
    module = getattr(NET, name)
    maps, patches = watched((module, (2, 8))), watched((module, (12, 4)), (module, (12, 4)))
    sizes = Sizes([maps, patches])
    assert sizes.calls(maps) == {name: {8: 1}} and sizes.calls(patches) == {name: {12: 2}}


def test_t_of_n_counts_items_as_the_calls_did_that_it_was_taken_in() -> None:
    maps, patches = watched((NET.computes, (1, 8)), (NET.computes, (2, 8))), watched((NET.computes, (8, 4)))
    sizes = Sizes([maps, patches])
    assert sizes.part(part("computes", [1, 2], [5.0, 8.0]), [maps]).sizes == [4, 8]
    assert sizes.part(part("computes", [8], [7.0]), [patches]).sizes == [8]
    mixed = sizes.part(part("computes", [1, 2, 8], [5.0, 8.0, 6.0]), [maps, patches])
    assert mixed.sizes == [4, 8] and mixed.us == [5.0, 7.0]  # two maps are eight patches
    assert sizes.part(part("copies", [1], [5.0]), [maps]).sizes == [1]  # nobody saw it


def test_what_was_decided_goes_before_all_items_where_it_was_seen() -> None:
    decided, whole = part("a", [3, 5], [30.0, 50.0]), part("a", [1, 4, 5, 16], [1.0, 4.0, 5.0, 16.0])
    found = merged(decided, whole)
    assert found.sizes == [1, 3, 5, 16] and found.us == [1.0, 30.0, 50.0, 16.0]
    assert merged(decided, None) == decided


def test_a_region_that_calls_others_takes_what_these_take() -> None:
    found = summed("outer", [part("a", [1, 3], [1.0, 3.0]), part("b", [1, 2], [10.0, 20.0])])
    assert found.name == "outer" and found.sizes == [1, 2, 3] and found.us == [11.0, 22.0, 23.0]
