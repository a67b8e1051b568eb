"""Arms measured against each other: batch by batch in random order, so that what the machine does meets all alike."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dynbench.analysis.statistics import median_interval
from dynbench.store.schema import Interval

Call = Callable[[int, Tensor], Any]  # (index of the first item, inputs [n, ...]) -> answers [n, ...]
LEAST_ROUNDS = 6  # the fewest that give a distribution-free 95 % interval


@dataclass(frozen=True)
class Row:
    """One line of the table. `sense` is what the target bounds: '<=' or '>='; None: information only."""

    name: str
    measured: Interval | str
    sense: str | None = None
    target: float | None = None
    note: str = ""

    def verdict(self) -> str:
        """met, not met, or nothing where there is no target; with a doubt where the interval holds the target."""
        if self.target is None or isinstance(self.measured, str):
            return ""
        met = self.measured.value <= self.target if self.sense == "<=" else self.measured.value >= self.target
        sure = not self.measured.low <= self.target <= self.measured.high
        return ("met" if met else "NOT MET") + ("" if sure else " (within noise)")

    def cells(self) -> list[str]:
        """name, measured, target, verdict, note."""
        m = self.measured
        measured = m if isinstance(m, str) else f"{m.value:.3f}"
        if not isinstance(m, str) and m.low < m.high:
            measured += f" ({m.low:.3f} to {m.high:.3f})"
        target = "" if self.target is None else f"{self.sense} {self.target:g}"
        return [self.name, measured, target, self.verdict(), self.note]


def in_batches(stream: Tensor, size: int) -> list[tuple[int, Tensor]]:
    """(index of the first item, inputs) of every batch."""
    return [(i, stream[i : i + size]) for i in range(0, stream.shape[0], size)]


def rounds(arms: dict[str, Call], stream: Tensor, batch_size: int, seconds: float) -> dict[str, NDArray[np.float64]]:
    """[rounds] ns of the whole stream, for each arm.

    Args:
        arms: what is measured; called once each before.
        stream: [items, ...].
        batch_size: items per call.
        seconds: how long; never fewer than LEAST_ROUNDS rounds.
    """
    batches, shuffle = in_batches(stream, batch_size), random.Random(0)
    totals: dict[str, list[int]] = {name: [] for name in arms}
    for call in arms.values():
        call(*batches[0])
    end = time.monotonic() + seconds
    while len(next(iter(totals.values()))) < LEAST_ROUNDS or time.monotonic() < end:
        now = dict.fromkeys(arms, 0)
        for start, x in batches:
            for name in shuffle.sample(list(arms), len(arms)):
                wait_for(x.device)
                before = time.perf_counter_ns()
                arms[name](start, x)
                wait_for(x.device)
                now[name] += time.perf_counter_ns() - before
        for name, ns in now.items():
            totals[name].append(ns)
    return {name: np.array(t, dtype=np.float64) for name, t in totals.items()}


def wait_for(device: torch.device) -> None:
    """Until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ratio(over: NDArray[np.float64], under: NDArray[np.float64], scale: float = 1.0) -> Interval:
    """The median over rounds of over / under, times `scale`, with its interval."""
    return median_interval(scale * over / under)


def same_answer(arms: dict[str, Call], stream: Tensor, batch_size: int, tolerance: float = 1e-3) -> None:
    """Raises AssertionError where arms answer differently, relative to the largest value: they do not do the same."""
    batch = in_batches(stream, batch_size)[0]
    (first, expected), *others = ((name, call(*batch)) for name, call in arms.items())
    for name, answer in others:
        error = float((answer - expected).abs().max() / expected.abs().max())
        assert error < tolerance, f"{name} answers otherwise than {first}: {error:.1e}"


def best_ns(call: Call, stream: Tensor, batch_size: int, seconds: float) -> float:
    """The shortest time of the stream seen within `seconds`: to choose among many, not to report."""
    batches = in_batches(stream, batch_size)
    for _ in range(2):  # compiled forms compile again for the second size
        for batch in batches[:2]:
            call(*batch)
    best, end = float("inf"), time.monotonic() + seconds
    while time.monotonic() < end or best == float("inf"):
        before = time.perf_counter_ns()
        for batch in batches:
            call(*batch)
        best = min(best, time.perf_counter_ns() - before)
    return best


def images(items: int) -> Tensor:
    """[items, 3, 32, 32] noise: what is computed does not depend on what is seen, decisions are replayed."""
    return torch.randn(items, 3, 32, 32, generator=torch.Generator().manual_seed(0))
