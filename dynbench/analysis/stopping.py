"""When a group has been measured long enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from numpy.typing import ArrayLike

from dynbench.analysis.statistics import half_width, median_interval

FIRST_CHECK = 10
"""Rounds before the first look. Up to 8 the interval of the median is the whole range of the rounds, or wider."""

GROWTH = 2
"""Each look comes at twice the rounds of the last. Looking every round would stop on the luckiest one: the fewer looks,
the nearer the coverage stays to the nominal one (94 % of 95 % in simulation, which is a test)."""

NO_PROGRESS_LOOKS, NO_PROGRESS_SHARE = 2, 0.9
"""The half-width should halve over two doublings. Where more than 90 % of it is left the noise grows with the time
measured (a drift of the ratio itself), and more rounds do not help. Two looks, as the half-width of one look is itself
uncertain by some 30 %: at most 6 of 100 simulated groups with steady noise of 4 to 10 % were stopped by mistake."""

Reason = Literal["precision", "no progress", "time limit"]


@dataclass
class Stopping:
    """The stopping rule of one group.

    Attributes:
        precision: half-width that every ratio must reach, as a share of its value.
        time_limit_s: seconds after which the group ends, whether the precision was reached or not.
        confidence: of the intervals.
        half_widths: the largest half-width at each look so far.
    """

    precision: float = 0.02
    time_limit_s: float = 15.0
    confidence: float = 0.95
    half_widths: list[float] = field(default_factory=list)
    _next_look: int = FIRST_CHECK

    def finished(self, rounds: int, elapsed_s: float, ratios: Sequence[ArrayLike]) -> Reason | None:
        """Decides after each round whether the group has been measured long enough.

        Args:
            rounds: so far.
            elapsed_s: since the first began.
            ratios: per arm [rounds], against the primary baseline. None at all (no baseline): nothing can become more
                precise, and the first look ends it.

        Returns:
            Why to stop, or None: go on.
        """
        if rounds >= self._next_look:
            while self._next_look <= rounds:
                self._next_look *= GROWTH
            if not ratios:
                return "no progress"
            widths = self.half_widths
            widths.append(max(half_width(median_interval(r, self.confidence)) for r in ratios))
            if widths[-1] <= self.precision:
                return "precision"
            if len(widths) > NO_PROGRESS_LOOKS and widths[-1] > NO_PROGRESS_SHARE * widths[-1 - NO_PROGRESS_LOOKS]:
                return "no progress"
        return "time limit" if elapsed_s >= self.time_limit_s else None
