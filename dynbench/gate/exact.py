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
    """How the answers of two revisions differ, in words; None: by no more than rounding.

    Whole numbers, NaN and infinities must be the same; the size of a difference is seen against the largest finite
    value of its answer.
    """
    if {k: v.shape for k, v in base.items()} != {k: v.shape for k, v in head.items()}:
        return "they have another shape"
    worst = 0.0
    for name, a in base.items():
        b = head[name]
        if a.dtype.kind in "iub" and b.dtype.kind in "iub":
            if different := int((a != b).sum()):
                return f"in {different} of {a.size} whole numbers"
            continue
        a, b = a.astype(np.float64), b.astype(np.float64)
        finite = np.isfinite(a)
        if not (np.array_equal(finite, np.isfinite(b)) and np.array_equal(a[~finite], b[~finite], equal_nan=True)):
            return "NaN or infinite values are not the same"
        a, b = a[finite], b[finite]
        worst = max(worst, float(np.abs(a - b).max(initial=0.0) / max(np.abs(a).max(initial=0.0), 1e-30)))
    return None if worst <= ANSWERS else f"by up to {worst:.2g} of the largest value (rounding: {ANSWERS:g})"


def run_twice(
    decisions: tuple[str, str], answers: tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]
) -> dict[str, str]:
    """What is not the same in two runs of one network on the same inputs: 'decisions', 'answers', and how each differs.

    Args:
        decisions: their hashes.
        answers: of both runs.
    """
    found = {"decisions": f"{decisions[0][:12]} and {decisions[1][:12]}"} if decisions[0] != decisions[1] else {}
    if how := answers_differ(*answers):
        found["answers"] = how
    return found


def not_repeated(random: Mapping[str, str]) -> Iterator[ExactChange]:
    """What the head does not do the same way twice, unlike the base: a regression."""
    for what, how in random.items():
        text = f"{what} of the head are not deterministic: two runs on the same inputs differ: {how}"
        yield ExactChange(what=what, base="", head=how, regression=True, text=text)


def is_accepted(change: ExactChange, accepted: set[str]) -> bool:
    """Whether the user accepts such a change; every counted quantity is 'work'."""
    return (change.what if change.what in ("answers", "decisions") else "work") in accepted
