"""What an operator call costs before it computes anything."""

from __future__ import annotations

import functools
import statistics
import time

import torch

CALLS, REPEATS = 200, 15


@functools.cache
def operator_call_s() -> float:
    """Seconds of one call of an operator on a single number, on the CPU of this process: nearly all of it dispatch."""
    x = torch.ones(1)
    with torch.inference_mode():
        return statistics.median(_calls_s(x) for _ in range(REPEATS)) / CALLS


def _calls_s(x: torch.Tensor) -> float:
    begin = time.perf_counter()
    for _ in range(CALLS):
        torch.relu(x)
    return time.perf_counter() - begin
