"""How much of what a network decides may be decided otherwise before rounding is no explanation any more."""

from __future__ import annotations

MOST_DIFFERENT = 0.01
"""Share of the decisions. Scores that are equal up to rounding are rare; a wrong gate decides otherwise more often."""


def by_rounding(differ: int, decisions: int) -> bool:
    """Whether so many of the decisions may differ because their scores are equal up to rounding."""
    return differ <= MOST_DIFFERENT * decisions
