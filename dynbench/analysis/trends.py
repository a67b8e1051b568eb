"""What changed over the history of a cell, at which commit, and what else changed there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dynbench.analysis.change_points import SHORTEST, ChangePoint, change_points
from dynbench.store.history import RecordedRun, Series

FEWEST = 2 * SHORTEST  # runs before a change can be seen


@dataclass(frozen=True)
class Change:
    """A change of level in a series.

    Attributes:
        quantity: 'speed-up' against the primary baseline of the same run, which a slower machine leaves alone; of the
            primary baseline itself its 'time', which a slower machine changes too.
        found: what was found in the numbers; `found.index` counts the points of the series.
        run: the first one on the new level.
        before: the last one on the old level. The cause lies between the two.
        also: what else differs between these two runs, such as 'torch 2.12.0 -> 2.13.0'.
    """

    series: Series
    quantity: Literal["speed-up", "time"]
    found: ChangePoint
    run: RecordedRun
    before: RecordedRun
    also: list[str]

    @property
    def better(self) -> bool:
        """Whether it went up for a speed-up, down for a time."""
        return (self.found.change > 0) == (self.quantity == "speed-up")


def values(series: Series) -> tuple[Literal["speed-up", "time"], list[float]]:
    """What is followed of a series: the speed-up where every run has one, else milliseconds per item."""
    speedups = [p.speedup.value for p in series.points if p.speedup is not None]
    if len(speedups) == len(series.points):
        return "speed-up", speedups
    return "time", [p.item_ms for p in series.points]


def changes(series: Series) -> list[Change]:
    """The change points of a series, in order; none below `FEWEST` runs."""
    quantity, numbers = values(series)
    runs = [p.run for p in series.points]
    found = [(c, runs[c.index], runs[c.last]) for c in change_points(numbers)]
    return [Change(series, quantity, c, run, before, _also(before, run)) for c, run, before in found]


def _also(before: RecordedRun, after: RecordedRun) -> list[str]:
    old = {**before.software, "dynbench": before.dynbench_version}
    new = {**after.software, "dynbench": after.dynbench_version}
    names = sorted(old.keys() | new.keys())
    return [f"{n} {old.get(n, 'unknown')} -> {new.get(n, 'unknown')}" for n in names if old.get(n) != new.get(n)]
