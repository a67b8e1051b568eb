"""Numbers as a reader meets them. Units stand in the headers of columns; here only digits are chosen."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dynbench.store.schema import Interval, Quantity, Unavailable

NOTHING = "–"


@dataclass(frozen=True)
class Value:
    """What stands in one place of a table.

    Attributes:
        text: to be shown.
        sort: what the column is sorted by; None comes last.
        note: a footnote: why there is no number, or what must be known about it.
        mark: the strategy whose colour is shown beside it, the same as in the figures.
    """

    text: str
    sort: float | str | None = None
    note: str | None = None
    mark: str | None = None


def words(text: str | None, note: str | None = None) -> Value:
    """Text, sorted by itself."""
    return Value(text, text.lower(), note) if text else Value(NOTHING)


def number(value: float | None, digits: int = 3) -> Value:
    """A number to so many significant digits; a dash for None."""
    return Value(NOTHING) if value is None else Value(significant(value, digits), float(value))


def count(value: Quantity | int | None) -> Value:
    """A whole number, all of its digits; or n/a with its reason."""
    if isinstance(value, Unavailable):
        return missing(value.unavailable)
    return Value(NOTHING) if value is None else Value(f"{value:,.0f}", float(value))


def quantity(value: Quantity | None, scale: float = 1.0, digits: int = 3) -> Value:
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
    return Value(f"{times(found.value)} ({interval(found)})", found.value)


def interval(found: Interval) -> str:
    """'1.54 to 2.07', with a digit more where rounding would move an end onto 1."""
    digits = digits_of(found)
    return f"{_fixed(found.low, digits)} to {_fixed(found.high, digits)}"


def digits_of(found: Interval) -> int:
    """Digits behind the point that keep both ends of an interval on their side of 1."""
    return 3 if any(round(end, 2) == 1 and end != 1 for end in (found.low, found.high)) else 2


def times(value: float, digits: int = 2) -> str:
    """'1.83x'."""
    return f"{_fixed(value, digits)}x"


def percent(share: float, digits: int = 0) -> str:
    """'31 %' for 0.31."""
    return f"{100 * share:.{digits}f} %"


def significant(value: float, digits: int = 3) -> str:
    """To so many significant digits, never in powers of ten between 0.0001 and 10^9."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if not 1e-4 <= abs(value) < 1e9:
        return f"{value:.{digits - 1}e}"
    behind = max(digits - 1 - math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}")))), 0)
    return f"{value:,.{behind}f}"


def bytes_(value: float) -> str:
    """'25.3 GB', powers of 1000."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(value) >= size:
            return f"{significant(value / size)} {unit}"
    return f"{value:g} B"


def seconds(value: float) -> str:
    """'2 min 13 s'."""
    if value < 60:
        return f"{value:.0f} s"
    whole = round(value)
    return f"{whole // 60} min {whole % 60} s"


def _fixed(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if abs(value) >= 0.1 else f"{value:.2g}"
