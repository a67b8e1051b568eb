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
import torch
from torch import nn

from dynbench.dynamic.regions import Region, items_of
from dynbench.meters.device import MeasuredDevice

Walk = Callable[[int], Any]  # one pass over the first n items of the stream


MOST_WALKS, FEW_ITEMS = 10, 20  # walks over one number of items in a row, and items of them: at most
WARM_S = 0.1  # so long after the first of these walks caches and clocks are as in use


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
    """Takes the times of the regions of one network, and of what lies between them.

    Args:
        regions: of the network that is called.
        walk: calls it.
        whole: takes the time of the whole call instead, as that of the only region.
    """

    def __init__(self, regions: Sequence[Region], walk: Walk, *, whole: bool = False) -> None:
        self.regions, self.whole, self._walk = regions, whole, walk
        self._seen: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        self._between: dict[int, list[int]] = defaultdict(list)
        self._hooks_ns = 0  # what a region's hooks take outside the time that they take
        self._inside_ns = self._calls = 0  # of the walk that goes on

    def some(self, sizes: Sequence[int], device: MeasuredDevice) -> None:
        """Walks over each number of items a few times.

        Of few items the first half, which finds other caches, does not count; of many, each walk fills them anew.
        """
        if not self.whole:
            self._hooks_ns = _hooks_ns(device)
        for n in sizes:
            few, begin = min(MOST_WALKS, FEW_ITEMS // n), device.clock_ns()
            for again in range(1 + few):
                warm = device.clock_ns() - begin > WARM_S * 1e9
                self.once(n, device, keep=again > few // 2 or warm or not few)
                if warm:
                    break

    def once(self, n: int, device: MeasuredDevice, *, keep: bool = True) -> None:
        """Walks over n items; the times are kept, or it was for warming up."""
        self._inside_ns = self._calls = 0
        hooks = [] if self.whole else [h for r in self.regions for h in self._marks(r, device, keep)]
        try:
            device.synchronize()
            begin = device.clock_ns()
            self._walk(n)
            device.synchronize()
            spent_ns = device.clock_ns() - begin
        finally:
            for hook in hooks:
                hook.remove()
        if keep and self.whole:
            self._seen[""][n].append(spent_ns)
        elif keep:
            self._between[n].append(spent_ns - self._inside_ns - self._calls * self._hooks_ns)

    def times(self) -> dict[str, Times]:
        """By region, of all walks so far."""
        return {name: _times(by_size) for name, by_size in self._seen.items() if by_size}

    def between(self) -> Times | None:
        """What walks spend outside regions; None: not seen, or not more than nothing."""
        found = _times(self._between) if self._between else None
        return found if found is not None and min(found.low_us) > 0 else None

    def _marks(self, region: Region, device: MeasuredDevice, keep: bool) -> list[Any]:
        seen = self._seen[region.name] if keep else None

        def note(n: int, spent_ns: int) -> None:
            self._inside_ns += spent_ns
            self._calls += 1
            if seen is not None:
                seen[n].append(spent_ns)

        return _hooks(region.module, device, note)


def _hooks(module: nn.Module, device: MeasuredDevice, note: Callable[[int, int], None]) -> list[Any]:
    """Hooks that note each call of a module: of how many items, and how many nanoseconds."""
    begun: list[tuple[int, int]] = []

    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        device.synchronize()
        begun.append((max(items_of(args), 1), device.clock_ns()))

    def after(*_: Any) -> None:
        device.synchronize()
        end = device.clock_ns()
        n, begin = begun.pop()
        note(n, end - begin)

    return [nn.Module.register_forward_pre_hook(module, before), nn.Module.register_forward_hook(module, after)]


def _hooks_ns(device: MeasuredDevice, calls: int = 50) -> int:
    """What hooks add to a call of a module outside the time that they note: by an empty one, with them and without."""
    plain, hooked, inside = nn.Identity(), nn.Identity(), []
    _hooks(hooked, device, lambda _, spent_ns: inside.append(spent_ns))
    few = torch.zeros(1)
    spent = []
    for module in (plain, hooked):
        begin = device.clock_ns()
        for _ in range(calls):
            module(few)
        spent.append(device.clock_ns() - begin)
    return max((spent[1] - spent[0] - sum(inside)) // calls, 0)


def _times(by_size: dict[int, list[int]]) -> Times:
    sizes = sorted(by_size)
    low, middle, high = np.array([np.percentile(by_size[n], (25, 50, 75)) for n in sizes]).T / 1e3
    return Times(sizes, middle.tolist(), low.tolist(), high.tolist())
