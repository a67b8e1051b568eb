"""Patches of maps: cut, joined, and seen with their surroundings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dynbench.dynamic import Execution, Grid, Patch, Patches, Shared, Skip
from dynbench.dynamic.patches import cut, grid_size, joined
from dynbench.strategies import STRATEGIES

SIDES, SIZES = st.integers(1, 7), st.integers(1, 12)


def maps(n: int, height: int, width: int, channels: int = 2) -> Tensor:
    return torch.randn(n, channels, height, width, generator=torch.Generator().manual_seed(0))


@given(side=SIDES, height=SIZES, width=SIZES)
def test_joined_patches_are_the_map(side: int, height: int, width: int) -> None:
    x = maps(3, height, width)
    grid = Grid(x, *grid_size(side, height, width))
    patches = cut(x, grid)
    assert patches.shape[0] == 3 * grid.patches
    assert torch.equal(joined(patches, grid, height, width), x)
    if grid.patches > 1:
        assert patches.shape[2:] == (side, side)
        last = F.pad(x, (0, grid.columns * side - width, 0, grid.rows * side - height))[2, :, -side:, -side:]
        assert torch.equal(patches[-1], last)


@settings(deadline=None)
@given(
    side=SIDES,
    height=SIZES,
    width=SIZES,
    before=st.integers(0, 3),
    more=st.integers(0, 3),
    stride=st.integers(1, 2),
    rows=st.lists(st.integers(0, 10**6), min_size=1, max_size=5),
)
def test_a_window_is_what_unfolding_the_padded_map_gives(
    side: int, height: int, width: int, before: int, more: int, stride: int, rows: list[int]
) -> None:
    x = maps(2, height * stride, width * stride)
    grid = Grid(x, *grid_size(side, height, width))
    number = torch.tensor(rows) % (2 * grid.patches)
    size, step = grid.side * stride + more, grid.side * stride
    p = Patch(torch.zeros(len(rows), 1), number, Shared(grid))
    wide = F.pad(x, (before, 30, before, 30))
    every = wide.unfold(2, size, step).unfold(3, size, step)[:, :, : grid.rows, : grid.columns]
    want = every.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)[number]
    assert torch.equal(p.window(before, size, stride), want)
    ones = Patch(p.own, number, Shared(grid._replace(source=torch.ones_like(x))))
    on_map = p.inside(before, size, height * stride, width * stride, stride)
    assert torch.equal(on_map.float(), ones.window(before, size, stride)[:, :1])


class Brighter(nn.Module):
    """Adds the sum of the 3x3 surroundings of each pixel: needs a halo."""

    def forward(self, p: Patch) -> Patch:
        kernel = torch.ones(1, 1, 3, 3)
        x = p.whole()
        if x is not None:
            return p._replace(own=p.own + p.cut(F.conv2d(x, kernel, padding=1)))
        return p._replace(own=p.own + F.conv2d(p.window(1, p.grid.value.side + 2), kernel))


class Net(nn.Module):
    def __init__(self, side: int) -> None:
        super().__init__()
        self.patches = Patches(Skip("s", lambda p, c: (p.own.mean((1, 2, 3)), c), Brighter(), consumes=True), side)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.patches(x, x)
        return y


@pytest.mark.parametrize("strategy", ["masking", "compaction", "per_sample"])
@pytest.mark.parametrize("channels_last", [False, True])
@settings(deadline=None, max_examples=20, derandomize=True)
@given(side=SIDES, height=SIZES, width=SIZES, n=st.integers(1, 3))
@torch.inference_mode()
def test_whole_patches_change_where_the_gate_says_so_and_nothing_else(
    strategy: str, channels_last: bool, side: int, height: int, width: int, n: int
) -> None:
    x = maps(n, height, width, 1)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    before = x.clone()
    ex = Execution(STRATEGIES[strategy](), record=True)
    y = ex.run(Net(side), x)
    assert torch.equal(x, before)  # the caller's map is not written into
    _, rows, columns = grid = grid_size(side, height, width)
    assert ex.trace is not None
    keep: Any = ex.trace.entries["s", (rows * columns,)].value.view(n, 1, rows, columns)
    keep = keep.repeat_interleave(grid[0], 2).repeat_interleave(grid[0], 3)[:, :, :height, :width]
    want = torch.where(keep, x + F.conv2d(x, torch.ones(1, 1, 3, 3), padding=1), x)
    assert torch.allclose(y, want, atol=1e-5)


def test_outside_an_execution_nothing_is_cut() -> None:
    seen = []

    class Look(nn.Module):
        def forward(self, p: Patch) -> tuple[Patch]:
            seen.append((p.own.shape, p.whole()))
            return (p,)

    x = maps(2, 6, 9)
    assert torch.equal(Patches(Look(), 2)(x, x), x)
    assert seen[0][0] == x.shape and seen[0][1] is x


def test_patches_without_a_side_are_refused() -> None:
    with pytest.raises(ValueError, match="1 or more"):
        Patches(nn.Identity(), 0)
