"""Micro-benchmarks of a device: what products, convolutions, copies, moved rows, calls and waits take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from dynbench.dynamic import Execution, Skip
from dynbench.meters.device import MeasuredDevice

ROUNDS = 15
LEAST_NS = 200_000  # a sample is a loop of about so long, so that reading the clock does not count


@dataclass(frozen=True)
class Rate:
    """One figure of a device.

    Attributes:
        name: of what.
        value: median over rounds.
        low: lower end of its 95 % interval (order statistics).
        high: upper end.
        unit: 'flops/s', 'bytes/s' or 's'.
        at: the size that it was found at, in words.
    """

    name: str
    value: float
    low: float
    high: float
    unit: str
    at: str = ""


@dataclass(frozen=True)
class Benchmark:
    """One micro-benchmark: what is called, and how much is done by a call; 0: its time itself is wanted."""

    name: str
    at: str
    unit: str
    call: Callable[[], Any]
    amount: float = 0.0


class Rounds:
    """Benchmarks that are timed round by round.

    Args:
        benchmarks: of the device.
        device: where they run.
    """

    def __init__(self, benchmarks: list[Benchmark], device: MeasuredDevice) -> None:
        self._benchmarks, self._device = benchmarks, device
        self._loops = [_loops(b.call, device) for b in benchmarks]
        self._seconds: list[list[float]] = [[] for _ in benchmarks]

    def once(self) -> None:
        """Times each, one after the other."""
        for b, n, seconds in zip(self._benchmarks, self._loops, self._seconds, strict=True):
            seconds.append(_timed_ns(b.call, n, self._device) / n / 1e9)

    def rates(self) -> list[Rate]:
        """A rate for each, in order, of the rounds so far."""
        return [_rate(b, np.array(row)) for b, row in zip(self._benchmarks, self._seconds, strict=True)]


def measure(benchmarks: list[Benchmark], device: MeasuredDevice, rounds: int = ROUNDS) -> list[Rate]:
    """Times benchmarks in interleaved rounds.

    Returns:
        A rate for each, in order.
    """
    with torch.inference_mode():
        timed = Rounds(benchmarks, device)
        for _ in range(rounds):
            timed.once()
    return timed.rates()


def ceilings(device: torch.device, dtype: torch.dtype, *, thorough: bool = False) -> list[Benchmark]:
    """Products, convolutions and a copy, at several sizes: of each kind the fastest is the ceiling."""
    large = device.type == "cuda"
    found = []
    for n in (*((1024, 2048, 4096) if large else (128, 256, 512)), *((8192 if large else 1024,) if thorough else ())):
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        found.append(Benchmark("matmul", f"{n} x {n}", "flops/s", _bind(torch.mm, a, b, out=out), 2.0 * n**3))
    for channels, side in ((32, 32), (64, 16), *(((128, 28), (256, 14)) if thorough or large else ())):
        batch = 64 if large else 8
        x = torch.randn(batch, channels, side, side, device=device).to(dtype)
        w = torch.randn(channels, channels, 3, 3, device=device).to(dtype)
        flops = 2.0 * 9 * channels * channels * side * side * batch
        at = f"3 x 3, {channels} channels, {side} x {side}, {batch} items"
        found.append(Benchmark("convolution", at, "flops/s", _bind(conv2d, x, w, padding=1), flops))
    for mib in (64, *((256,) if thorough else ())):
        source = torch.zeros(mib << 18, device=device)
        target = torch.empty_like(source)
        found.append(Benchmark("copy", f"{mib} MiB", "bytes/s", _bind(target.copy_, source), 2.0 * (mib << 20)))
    return found


def overheads(device: torch.device) -> list[Benchmark]:
    """Rows gathered and put back, and what calls, points and waits take before anything is computed."""
    x = torch.randn(32, 32 * 16 * 16, device=device)
    rows = torch.arange(0, 32, 2, device=device)
    part, one = x.index_select(0, rows), rows[:1]
    amount = 2.0 * part.numel() * part.element_size()
    small, few = torch.ones(1, device=device), torch.zeros(32, dtype=torch.bool, device=device)
    target = x.clone()
    at = f"16 of 32 rows of {x.shape[1] * 4 >> 10} KiB"
    return [
        Benchmark("gather", at, "bytes/s", _bind(torch.index_select, x, 0, rows), amount),
        Benchmark("scatter", at, "bytes/s", _bind(target.index_copy_, 0, rows, part), amount),
        Benchmark("gather call", "1 row of 4 bytes", "s", _bind(torch.index_select, x[:, :1].contiguous(), 0, one)),
        Benchmark("operator call", "1 number", "s", _bind(torch.relu, small)),
        Benchmark("region call", "an empty module", "s", _bind(nn.Identity(), small)),
        Benchmark("point", "a Skip that skips all of 2 items", "s", _point(device)),
        Benchmark("wait", "bool(mask.any()) of 32", "s", lambda: bool(few.any())),
    ]


class _Gate(nn.Module):
    """Gives the scores that it holds."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores = scores

    def forward(self, x: Tensor, carry: Any) -> tuple[Tensor, Any]:
        return self.scores, carry


class _Points(nn.Module):
    """Some decision points in a row."""

    def __init__(self, points: list[Skip]) -> None:
        super().__init__()
        self.points = nn.ModuleList(points)

    def forward(self, x: Tensor) -> Tensor:
        for point in self.points:
            x = point(x)[0]
        return x


class _Nothing:
    """The strategy of a point at which nothing is to be done."""

    static_twin = False

    def refuses(self, model: nn.Module) -> str | None:
        return None

    def run(self, ex: Execution, model: nn.Module, args: tuple[Any, ...]) -> Any:
        return model(*args)

    def skip(self, ex: Execution, point: Skip, x: Any, keep: Tensor, soft: Tensor | None) -> Any:
        return x


def _point(device: torch.device) -> Callable[[], Any]:
    x, scores = torch.zeros(2, 1, device=device), -torch.ones(2, device=device)
    model = _Points([Skip("point", _Gate(scores), nn.Identity())]).eval()
    execution = Execution(_Nothing())  # type: ignore[arg-type]
    return lambda: execution.run(model, x)


def best(rates: list[Rate]) -> dict[str, Rate]:
    """Of each name the one with the highest value of a rate, or the lowest of a time."""
    found: dict[str, Rate] = {}
    for rate in rates:
        held = found.get(rate.name)
        if held is None or (rate.value < held.value if rate.unit == "s" else rate.value > held.value):
            found[rate.name] = rate
    return found


def _bind(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[[], Any]:
    return lambda: function(*args, **kwargs)


def _loops(call: Callable[[], Any], device: MeasuredDevice) -> int:
    """How many calls take about `LEAST_NS`; the first ones are for warming up."""
    _timed_ns(call, 2, device)
    n = 1
    while (spent := _timed_ns(call, n, device)) < LEAST_NS and n < 1 << 14:
        n = max(2 * n, int(n * LEAST_NS / max(spent, 1)))
    return n


def _timed_ns(call: Callable[[], Any], n: int, device: MeasuredDevice) -> int:
    device.synchronize()
    begin = device.clock_ns()
    for _ in range(n):
        call()
    device.synchronize()
    return max(device.clock_ns() - begin, 1)


def _rate(b: Benchmark, seconds: np.ndarray) -> Rate:
    values = np.sort(b.amount / seconds if b.amount else seconds)
    n = len(values)
    rank = int(max(np.floor(n / 2 - 0.98 * np.sqrt(n)), 0))  # normal approximation of the binomial ranks
    return Rate(b.name, float(np.median(values)), float(values[rank]), float(values[n - 1 - rank]), b.unit, b.at)
