"""How fast the machine was while an arm ran: by small pieces of work that are always the same, before and after it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

NEAREST = 3  # pieces on each side of an arm


class PaceLog:
    """What ran, one after the other: pieces of work with their times, and arms."""

    def __init__(self) -> None:
        self._log: list[tuple[Hashable, float]] = []  # a piece of work, and its time
        self._arms: dict[str, list[int]] = defaultdict(list)  # by key: before which entries of the log it ran

    def piece(self, what: Hashable, spent_ns: float) -> None:
        """A piece of work took so long; the same is done again and again."""
        self._log.append((what, spent_ns))

    def arm(self, key: str) -> None:
        """An arm runs now."""
        self._arms[key].append(len(self._log))

    def paces(self, totals_ns: Mapping[str, Sequence[float] | np.ndarray]) -> dict[str, float]:
        """For each arm its time over what it would be in the pace in the middle of all; 1 where nothing is known.

        Args:
            totals_ns: by key, its time in each of its runs, in order.
        """
        by_piece: dict[Hashable, list[float]] = defaultdict(list)
        for what, spent_ns in self._log:
            by_piece[what].append(spent_ns)
        middle = {what: float(np.median(spent)) for what, spent in by_piece.items()}
        found = {}
        for key, totals in totals_ns.items():
            times = np.asarray(totals, np.float64)
            here = np.array([self._around(at, middle) for at in self._arms[key][: len(times)]])
            known = len(here) == len(times) > 0
            found[key] = float(np.median(times) / np.median(times / here)) if known else 1.0
        return found

    def _around(self, at: int, middle: Mapping[Hashable, float]) -> float:
        """Time of the pieces next to a place in the log over their time in the middle; one that is far off is none."""
        near = self._log[max(at - NEAREST, 0) : at + NEAREST]
        return float(np.median([ns / middle[what] for what, ns in near])) if near else 1.0
