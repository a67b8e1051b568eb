"""FASTER, SLOWER, SAME or AMBIGUOUS: what may be said of a change of time, with the reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dynbench.analysis.formatting import change_interval, change_text, percent
from dynbench.store.schema import Interval

Outcome = Literal["FASTER", "SLOWER", "SAME", "AMBIGUOUS"]
MATTERS = 0.03  # a change below this share may be called SAME


@dataclass(frozen=True)
class Judgement:
    """An outcome with its reason and its numbers.

    Attributes:
        outcome: FASTER and SLOWER: a difference that the same work measured twice would not show. SAME: none as large
            as what matters. AMBIGUOUS: this measurement can say neither.
        change: new time / old time; above 1 is slower.
        resolution: share up to which a ratio is no difference.
        reason: in a sentence.
    """

    outcome: Outcome
    change: Interval
    resolution: float
    reason: str


def judge(change: Interval, resolution: float, *, matters: float = MATTERS) -> Judgement:
    """Judges a ratio of times.

    Args:
        change: new time / old time, with its interval.
        resolution: share up to which the same work, measured twice, may differ.
        matters: smallest change worth reporting: SAME means that the interval lies within it.
    """
    bound, margin = 1 + resolution, 1 + matters
    ends = f"{percent(change.confidence)} interval {change_interval(change)}"
    changed = f"time changed by {change_text(change.value)} ({ends})"
    tells = f"the same work measured twice differs by up to {percent(resolution, 1)}"
    if change.low > bound:
        return Judgement("SLOWER", change, resolution, f"{changed}; {tells}")
    if change.high < 1 / bound:
        return Judgement("FASTER", change, resolution, f"{changed}; {tells}")
    if 1 / margin <= change.low and change.high <= margin:
        return Judgement("SAME", change, resolution, f"{changed}, less than the {percent(matters, 1)} that matter")
    if resolution > matters:
        why = f"{tells}, more than the {percent(matters, 1)} that matter: this machine is too noisy now"
    elif change.low > 1 or change.high < 1:
        why = f"there is a change, but not certainly one above what the same work shows when measured twice; {tells}"
    else:
        why = "the interval holds both no change and one that matters: more time or a quieter machine is needed"
    return Judgement("AMBIGUOUS", change, resolution, f"{changed}; {why}")
