"""How many items a call of a region counts as, where calls differ in what they do for an item.

A region may be called with images and with patches of images, with sequences and with tokens, with all channels and
with some. Then the least that a call does for an item counts as one, and a call with n items as so many of these as its
work holds: its FLOPs, or where a region executes none, the elements that it is given.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from dynbench.meters.watch import Watched
from dynbench.store.scaling import Part

ALIKE = 1.05  # calls that differ by less in work per item: all count as their items


class Sizes:
    """The sizes of calls of regions.

    Args:
        passes: everything that was watched.
    """

    def __init__(self, passes: Sequence[Watched]) -> None:
        self._computes = {name for one in passes for name, of in one.work.items() for w in of.values() if w.flops}
        self._units = {}
        for name, by_items in self._by_items(passes).items():
            each = [work for works in by_items.values() for work in works]
            if 0 < min(each) * ALIKE < max(each):
                self._units[name] = min(each)

    def calls(self, watched: Watched) -> dict[str, dict[int, int]]:
        """By region, how often it was called at each size."""
        found: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
        for name, by_items in watched.calls.items():
            for items, calls in by_items.items():
                found[name][self._size(name, items, self._each(watched, name, items))] += calls
        return {name: dict(sorted(by_size.items())) for name, by_size in found.items()}

    def part(self, part: Part, passes: Sequence[Watched]) -> Part:
        """T(n) of a region with its sizes; where several numbers of items are of one size, the mean of their times.

        Args:
            part: with times by number of items.
            passes: such as it was taken in.
        """
        known = self._by_items(passes).get(part.name)
        if part.name not in self._units or not known:
            return part
        rows = defaultdict(list)
        for items, *times in zip(part.sizes, part.us, part.low_us, part.high_us, strict=True):
            nearest = min(known, key=lambda seen: abs(np.log(seen / items)))
            rows[self._size(part.name, items, float(np.mean(known[nearest])))].append(times)
        sizes = sorted(rows)
        us, low_us, high_us = np.array([np.mean(rows[size], axis=0) for size in sizes]).T.tolist()
        return part.model_copy(update={"sizes": sizes, "us": us, "low_us": low_us, "high_us": high_us})

    def _size(self, name: str, items: int, work_each: float) -> int:
        unit = self._units.get(name)
        return items if unit is None else max(round(items * work_each / unit), 1)

    def _each(self, watched: Watched, name: str, items: int) -> float:
        """Work for an item in the calls with so many items."""
        work = watched.work[name][items]
        return (work.flops if name in self._computes else work.elements) / (watched.calls[name][items] * items)

    def _by_items(self, passes: Sequence[Watched]) -> dict[str, dict[int, list[float]]]:
        """Work for an item, by region and number of items."""
        found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        for watched in passes:
            for name, by_items in watched.calls.items():
                for items in by_items:
                    found[name][items].append(self._each(watched, name, items))
        return found


def merged(decided: Part, whole: Part | None) -> Part:
    """T(n) of calls with what was decided; of fewer and of more items than these were seen with, of those with all."""
    if whole is None:
        return decided
    rows = {
        size: row
        for part in (whole, decided)
        for size, *row in zip(part.sizes, part.us, part.low_us, part.high_us, strict=True)
        if part is decided or not decided.sizes[0] <= size <= decided.sizes[-1]
    }
    us, low_us, high_us = zip(*(rows[size] for size in sorted(rows)), strict=True)
    times_us = {"us": list(us), "low_us": list(low_us), "high_us": list(high_us)}
    return decided.model_copy(update={"sizes": sorted(rows), **times_us})


def summed(name: str, parts: Sequence[Part]) -> Part:
    """T(n) of a region that calls several others one after the other, at all sizes that any was seen with."""
    sizes = sorted({size for part in parts for size in part.sizes})
    rows = [
        sum(np.interp(sizes, part.sizes, getattr(part, times)) for part in parts)
        for times in ("us", "low_us", "high_us")
    ]
    us, low_us, high_us = np.array(rows).tolist()
    update = {"name": name, "sizes": sizes, "us": us, "low_us": low_us, "high_us": high_us}
    return parts[0].model_copy(update=update)
