"""Whether the way that the tournament picked is the fastest of those measured, group by group of a run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.paired import Row
from dynbench.analysis.statistics import ratio_in_rounds
from dynbench.store.run import Run
from dynbench.store.schema import Cell, Interval

ENOUGH = 0.98  # of the best arm's speed
SHARE = 0.99  # of all groups are to reach that


@dataclass(frozen=True)
class Picked:
    """The picked way of a dynamic network beside the fastest that was measured in the same rounds.

    Attributes:
        picked: of the tournament.
        best: with the shortest time per stream; the picked one itself where none is faster.
        share: the picked one's speed over the best one's: in the rounds that both have, or where the run has no
            samples, of their medians.
        told: the former, with its interval; None: the run has no samples.
    """

    picked: Cell
    best: Cell
    share: float
    told: Interval | None = None

    @property
    def surely_wrong(self) -> bool:
        """Whether the rounds tell that it is slower than it may be; the best of many may be one by luck."""
        return self.told is not None and self.told.high < ENOUGH


def picked_ways(run: Run) -> list[Picked]:
    """One for each group in which a picked dynamic way was timed.

    Strategies that compute each item alone, and the model without its decisions, are no candidates and do not count.
    """
    groups: dict[str, list[Cell]] = defaultdict(list)
    for cell in run.cells:
        candidate = cell.arm.kind == "strategy" and not (cell.static_twin or cell.item_by_item)
        if candidate and _stream_ms(cell) is not None:
            groups[cell.group_id].append(cell)
    found = []
    for mine in groups.values():
        picked = next((c for c in mine if c.deployed), None)
        if picked is not None:
            best = min(mine, key=lambda c: _stream_ms(c) or 0.0)
            told = ratio_in_rounds(run.samples(picked.group_id), best.arm.key, picked.arm.key)
            of_medians = (_stream_ms(best) or 0.0) / (_stream_ms(picked) or 1.0)
            found.append(Picked(picked, best, of_medians if told is None else told.value, told))
    return found


def of_run(run: Path | None) -> Iterator[Row]:
    """The share of groups in which the pick is as good as the best, and each in which it is not."""
    name = f"auto: share of groups in which it is at least {ENOUGH} of the best arm"
    found = [] if run is None else picked_ways(Run.open(run))
    if not found:
        yield Row(name, "not measured", note="give --run DIR, a run that measured deployed ways")
        return
    missed = sorted((p for p in found if p.share < ENOUGH), key=lambda p: p.share)
    share = 1 - len(missed) / len(found)
    note = f"{run}: {len(found) - len(missed)} of {len(found)}"
    if missed:
        note += f"; of the others the rounds tell {sum(p.surely_wrong for p in missed)} apart"
    yield Row(name, Interval(value=share, low=share, high=share), ">=", SHARE, note)
    for p in missed:
        tried = {c.arm: c for c in p.picked.candidates}
        ratio = None if p.best.arm not in tried else tried[p.best.arm].ratio
        judged = "not tried" if ratio is None else f"{ratio:.2f} times as long in the tournament"
        note = f"{p.picked.arm.title} picked; best is {p.best.arm.title} ({judged}), {p.picked.rounds} rounds"
        by_medians = Interval(value=p.share, low=p.share, high=p.share)
        yield Row(f"  {p.picked.group_id}", p.told or by_medians, note=note)


def _stream_ms(cell: Cell) -> float | None:
    value = None if cell.status != "ok" or cell.latency is None else cell.latency.stream_ms
    return value if isinstance(value, float) else None
