"""What the figures of many workloads show, as numbers. `overview_figures.py` draws them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Dot:
    """A workload at its ideal and its measured speed-up.

    Attributes:
        tone: names its colour, of the strategy.
        low: end of the confidence interval, as `high`.
        certain: whether the speed-up differs from 1 by more than the run could resolve.
    """

    name: str
    tone: str
    ideal: float
    speedup: float
    low: float
    high: float
    certain: bool


@dataclass(frozen=True)
class Scatter:
    """Measured against ideal speed-up, a dot per workload.

    Attributes:
        batch_size: of all of them.
        dots: with the tones of their strategies.
        strategies: name and tone of each strategy that occurs.
    """

    batch_size: int
    dots: list[Dot]
    strategies: list[tuple[str, str]]


@dataclass(frozen=True)
class Ladder:
    """What becomes of a promised speed-up step by step: a thin line per workload, a thick one through the medians.

    Attributes:
        steps: names, from left to right.
        lines: for each workload a value per step; None where it is not known.
        medians: per step; None where nothing is known.
    """

    steps: list[str]
    lines: list[list[float | None]]
    medians: list[float | None]


@dataclass(frozen=True)
class Spread:
    """Quartiles of a quantity over workloads."""

    low: float
    median: float
    high: float


@dataclass(frozen=True)
class Spreads:
    """Factors by cause: a row each, with a mark per series.

    Attributes:
        title: of the axis.
        rows: names, from top to bottom.
        series: name and tone of each.
        values: [row][series]; None where nothing is known.
    """

    title: str
    rows: list[str]
    series: list[tuple[str, str]]
    values: list[list[Spread | None]]


@dataclass(frozen=True)
class Shares:
    """How many of each kind: a bar per row, divided into parts.

    Attributes:
        title: of the axis.
        rows: names, from top to bottom.
        parts: name and tone of each part, from left to right.
        counts: [row][part].
    """

    title: str
    rows: list[str]
    parts: list[tuple[str, str]]
    counts: list[list[int]]


@dataclass(frozen=True)
class Series:
    """A line through measured points, with its confidence band."""

    name: str
    tone: str
    x: list[float]
    y: list[float]
    low: list[float]
    high: list[float]


@dataclass(frozen=True)
class Growth:
    """A quantity against a number of parts, or another number; both axes may be logarithmic.

    Attributes:
        over: title of the horizontal axis.
        what: title of the vertical one.
        series: the lines.
        log: whether both axes are logarithmic.
    """

    over: str
    what: str
    series: list[Series]
    log: bool = True


OverviewDrawing = Scatter | Ladder | Spreads | Shares | Growth
