"""What does not depend on the clock: work, decisions and answers of two revisions, compared."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from dynbench.store.gate import ExactChange

ANSWERS = 1e-4  # share of the largest value up to which an answer counts as the same
COUNTS = 1e-12  # share up to which a count is the same: it is rounded where it passes through a mean per item
ACCEPTED = ("answers", "decisions", "work")
"""What may change without being a regression, if the user accepts it."""


def exact_changes(base: Mapping[str, Any], head: Mapping[str, Any]) -> Iterator[ExactChange]:
    """What is counted and differs: more work, and different decisions, are regressions.

    Args:
        base: totals by the name of the quantity, and `decisions`.
        head: the same.
    """
    for what, now in head.items():
        before = base.get(what)
        if not (isinstance(before, float) and isinstance(now, float)):
            continue  # it was unavailable, or not counted
        if not math.isclose(before, now, rel_tol=COUNTS):
            change = f" ({100 * (now / before - 1):+.1f} %)" if before else ""
            text = f"{what}: {before:,.0f} -> {now:,.0f}{change}"
            yield ExactChange(what=what, base=before, head=now, regression=now > before, text=text)
    if base["decisions"] != head["decisions"]:
        one, other = base["decisions"][:12], head["decisions"][:12]
        text = f"decisions differ: {one} -> {other}"
        yield ExactChange(what="decisions", base=one, head=other, regression=True, text=text)


def answers_change(base: Mapping[str, np.ndarray], head: Mapping[str, np.ndarray]) -> Iterator[ExactChange]:
    """Answers that differ by more than rounding."""
    if differ := answers_differ(base, head):
        text = f"answers differ: {differ}"
        yield ExactChange(what="answers", base="", head=differ, regression=True, text=text)


def answers_differ(base: Mapping[str, np.ndarray], head: Mapping[str, np.ndarray]) -> str | None:
    """How the answers of two revisions differ, in words; None: by no more than rounding."""
    if {k: v.shape for k, v in base.items()} != {k: v.shape for k, v in head.items()}:
        return "they have another shape"
    worst = 0.0
    for name, one in base.items():
        a, b = one.astype(np.float64), head[name].astype(np.float64)
        if not np.array_equal(np.isfinite(a), np.isfinite(b)):
            return "some are not finite in one revision only"
        a, b = np.nan_to_num(a), np.nan_to_num(b)
        worst = max(worst, float(np.abs(a - b).max(initial=0.0) / max(np.abs(a).max(initial=0.0), 1e-30)))
    return None if worst <= ANSWERS else f"by up to {worst:.2g} of the largest value (rounding: {ANSWERS:g})"


def is_accepted(change: ExactChange, accepted: set[str]) -> bool:
    """Whether the user accepts such a change; every counted quantity is 'work'."""
    return (change.what if change.what in ("answers", "decisions") else "work") in accepted
