"""Sizes of sets, read with as few waits for the device as possible, are those that counting gives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dynbench.dynamic import Execution, Skip
from dynbench.dynamic.items import rows_where
from dynbench.strategies import Compaction
from dynbench.strategies.compaction import _run_lengths, _searched_lengths


@given(st.lists(st.booleans(), max_size=40))
def test_rows_of_a_known_number_are_those_that_are_true(bits: list[bool]) -> None:
    mask = torch.tensor(bits, dtype=torch.bool)
    expected = mask.nonzero().squeeze(1)
    assert torch.equal(rows_where(mask, sum(bits)), expected)
    assert torch.equal(torch.nonzero_static(mask, size=sum(bits)).squeeze(1), expected)  # what a GPU uses


@given(st.lists(st.integers(0, 6), max_size=40))
def test_lengths_of_runs_are_counts(values: list[int]) -> None:
    key = torch.tensor(values, dtype=torch.long)
    for lengths in (_run_lengths, _searched_lengths):  # on a CPU, on a GPU
        assert torch.equal(lengths(key.sort().values, 7), key.bincount(minlength=7))


@pytest.mark.cuda
@torch.inference_mode()
def test_the_rest_of_a_skip_is_not_waited_for() -> None:
    from torch.profiler import ProfilerActivity, profile

    net = Skip("skip", lambda x, carry: (x[:, 0], carry), nn.Linear(4, 4), nn.Linear(4, 4)).cuda()
    x = torch.randn(9, 4, device="cuda")
    x[0, 0], x[1, 0] = 1.0, -1.0
    ex = Execution(Compaction())
    ex.run(net, x)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        ex.run(net, x)
    counts = {event.key: event.count for event in seen.key_averages()}
    assert counts.get("aten::nonzero") == 1 and counts.get("aten::nonzero_static") == 1
