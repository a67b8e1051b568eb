"""T(n) in place: a whole network is walked at each n, and the time of each of its regions is taken there.

Timed alone in a loop, a region finds its weights and its input in the cache, and comes out too fast. In a walk it has
before it what it has in use.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from dynbench.dynamic.regions import Region, items_of
from dynbench.meters.device import MeasuredDevice

Walk = Callable[[int], Any]  # one pass over the first n items of the stream


@dataclass(frozen=True)
class Times:
    """Of a region, by items per call: median, lower and upper quartile, in us."""

    sizes: list[int]
    us: list[float]
    low_us: list[float]
    high_us: list[float]


def sizes_up_to(largest: int, most: int = 6) -> list[int]:
    """About so many sizes from 1 to the largest, in geometric steps."""
    steps = np.geomspace(1, largest, min(most, largest.bit_length() if largest > 1 else 1))
    return sorted({*(round(float(s)) for s in steps), 1, largest})


class Walker:
    """Takes the times of the regions of one network.

    Args:
        name: of the network.
        regions: of the network that is called.
        walk: calls it.
        whole: takes the time of the whole call instead, as that of the only region.
    """

    def __init__(self, regions: Sequence[Region], walk: Walk, *, whole: bool = False) -> None:
        self.regions, self.whole, self._walk = regions, whole, walk
        self._seen: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))

    def once(self, n: int, device: MeasuredDevice, *, keep: bool = True) -> None:
        """Walks over n items; the times are kept, or it was for warming up."""
        if self.whole:
            device.synchronize()
            begin = device.clock_ns()
            self._walk(n)
            device.synchronize()
            if keep:
                self._seen[""][n].append(device.clock_ns() - begin)
            return
        hooks = [hook for region in self.regions for hook in self._marks(region, device, keep)]
        try:
            self._walk(n)
        finally:
            for hook in hooks:
                hook.remove()

    def times(self) -> dict[str, Times]:
        """By region, of all walks so far."""
        return {name: _times(by_size) for name, by_size in self._seen.items()}

    def _marks(self, region: Region, device: MeasuredDevice, keep: bool) -> list[Any]:
        begun: list[tuple[int, int]] = []
        seen = self._seen[region.name] if keep else None

        def before(module: nn.Module, args: tuple[Any, ...]) -> None:
            device.synchronize()
            begun.append((max(items_of(args), 1), device.clock_ns()))

        def after(*_: Any) -> None:
            device.synchronize()
            end = device.clock_ns()
            n, begin = begun.pop()
            if seen is not None:
                seen[n].append(end - begin)

        module = region.module
        return [nn.Module.register_forward_pre_hook(module, before), nn.Module.register_forward_hook(module, after)]


def walk_all(walkers: Sequence[Walker], sizes: Sequence[int], device: MeasuredDevice, rounds: int = 7) -> None:
    """Walks every network at every size, interleaved, so that slow changes of the machine reach all alike."""
    for walker in walkers:
        for n in sizes:
            walker.once(n, device, keep=False)
    for _ in range(rounds):
        for n in sizes:
            for walker in walkers:
                walker.once(n, device)


def _times(by_size: dict[int, list[int]]) -> Times:
    sizes = sorted(by_size)
    low, middle, high = np.array([np.percentile(by_size[n], (25, 50, 75)) for n in sizes]).T / 1e3
    return Times(sizes, middle.tolist(), low.tolist(), high.tolist())
