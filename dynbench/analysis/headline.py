"""The cell that a workload is judged by. It is chosen here, for the verdict, the tables and the figures alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dynbench.analysis.gap import primary_speedup
from dynbench.analysis.resolution import direction
from dynbench.store.schema import Cell, Decisions, Speedup

SOURCES = ("learned", "replay", "published", "synthetic")  # the first that was measured is what a workload is judged by


class Timed(NamedTuple):
    """A measured cell with its speed-up against the primary baseline."""

    cell: Cell
    speedup: Speedup


@dataclass(frozen=True)
class Contest:
    """The strategies that a workload is judged by.

    Attributes:
        source: whose decisions they execute.
        entrants: all of them, measured or not.
        ranked: the measured ones by batch size, the largest first; the best of a batch size first.
    """

    source: Decisions
    entrants: list[Cell]
    ranked: dict[int, list[Timed]]

    @property
    def best(self) -> Timed | None:
        """The best strategy at the largest batch size; None where nothing was timed."""
        return next((found[0] for found in self.ranked.values()), None)


def timed(cells: Sequence[Cell]) -> list[Timed]:
    """The cells that were measured against the primary baseline."""
    return [Timed(c, s) for c in cells if c.status == "ok" and (s := primary_speedup(c)) is not None]


def contest(workload: str, cells: Sequence[Cell]) -> Contest | None:
    """Sets the strategies of a workload side by side; None where there is none that makes a decision.

    Args:
        workload: its name.
        cells: of the run; those of other workloads are left out.
    """
    entrants = [c for c in cells if c.workload == workload and c.arm.kind == "strategy" and not c.static_twin]
    if not entrants:
        return None
    measured = timed(entrants)
    decisions = [t.cell.decisions for t in measured] or [c.decisions for c in entrants]
    source = min(decisions, key=lambda d: SOURCES.index(d.source))
    by_size: dict[int, list[Timed]] = {}
    for t in measured:
        if t.cell.decisions.label == source.label:
            by_size.setdefault(t.cell.batch_size, []).append(t)
    ranked = {size: sorted(by_size[size], key=_rank, reverse=True) for size in sorted(by_size, reverse=True)}
    return Contest(source, [c for c in entrants if c.decisions.label == source.label], ranked)


def headline(workload: str, cells: Sequence[Cell]) -> Timed | None:
    """The cell a workload is judged by: the best strategy at its largest batch size; None where nothing was timed."""
    found = contest(workload, cells)
    return None if found is None else found.best


def _rank(found: Timed) -> tuple[int, float]:
    """What is certain counts before how much: 1.1x that may be none comes after a certain 1.05x."""
    return ("slower", "unclear", "faster").index(direction(found.speedup)), found.speedup.value
