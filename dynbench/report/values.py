"""What stands in one place of a table: text, what it is sorted by, and why there is no number where there is none."""

from __future__ import annotations

from dataclasses import dataclass

from dynbench.analysis.formatting import significant, times, times_with_interval
from dynbench.store.schema import Interval
from dynbench.unavailable import Measured, Unavailable

NOTHING = "–"


@dataclass(frozen=True, slots=True)
class Value:
    """What stands in one place of a table.

    Attributes:
        text: to be shown.
        sort: what the column is sorted by; None comes last.
        note: a footnote: why there is no number, or what must be known about it.
        mark: the strategy whose colour is shown beside it, the same as in the figures.
        link: key of the page that it leads to.
    """

    text: str
    sort: float | str | None = None
    note: str | None = None
    mark: str | None = None
    link: str | None = None


def words(text: str | None, note: str | None = None) -> Value:
    """Text, sorted by itself; a dash for None."""
    return Value(text, text.lower(), note) if text else Value(NOTHING)


def number(value: float | None, digits: int = 3) -> Value:
    """A number to so many significant digits; a dash for None."""
    return Value(NOTHING) if value is None else Value(significant(value, digits), float(value))


def count(value: Measured | int | None) -> Value:
    """A whole number, all of its digits; or n/a with its reason."""
    if isinstance(value, Unavailable):
        return missing(value.unavailable)
    return Value(NOTHING) if value is None else Value(f"{value:,.0f}", float(value))


def quantity(value: Measured | None, scale: float = 1.0, digits: int = 3) -> Value:
    """A measured quantity divided by `scale`, or n/a with its reason."""
    if isinstance(value, Unavailable):
        return missing(value.unavailable)
    return number(None if value is None else value / scale, digits)


def missing(reason: str) -> Value:
    """Where there is no number, and why."""
    return Value("n/a", None, reason)


def ratio(value: float | None) -> Value:
    """A ratio such as 1.83x; a dash for None."""
    return Value(NOTHING) if value is None else Value(times(value), value)


def with_interval(found: Interval) -> Value:
    """A ratio with its confidence interval."""
    return Value(times_with_interval(found), found.value)
