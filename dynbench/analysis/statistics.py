"""Statistics of paired rounds: pure functions of arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dynbench.store.schema import Interval
from dynbench.unavailable import Measured, Unavailable

if TYPE_CHECKING:
    import pandas as pd

PERCENTILE_CONFIDENCE = 0.99  # MLPerf LoadGen's, whence 64 samples for p90 and 662 for p99
TRIMMED, TRIM_FROM = 0.2, 10  # share of the processes trimmed at either end; from how many processes on
TUKEY_MILD, TUKEY_SEVERE = 1.5, 3.0  # interquartile ranges beyond the quartiles (Tukey 1977; criterion.rs)


def ratio_of_totals(baseline_ns: ArrayLike, cell_ns: ArrayLike) -> NDArray[np.float64]:
    """Speed-up of a cell in each round.

    Args:
        baseline_ns: [rounds] time of the whole stream under the baseline.
        cell_ns: [rounds] time of the same stream under the cell, in the same rounds.

    Returns:
        [rounds] baseline over cell: above 1 the cell is faster.

    Raises:
        ValueError: the rounds do not pair up, or a time is not positive.
    """
    baseline, cell = np.asarray(baseline_ns, np.float64), np.asarray(cell_ns, np.float64)
    if baseline.shape != cell.shape or baseline.ndim != 1:
        raise ValueError(f"rounds must pair up, got {baseline.shape} of the baseline and {cell.shape} of the cell")
    ratios: NDArray[np.float64] = _positive(baseline, "times") / _positive(cell, "times")
    return ratios


def ratio_in_rounds(samples: pd.DataFrame, over: str, under: str) -> Interval | None:
    """The median over rounds of one arm's time over another's, with its interval.

    Args:
        samples: the columns of `schema.RoundSample`, of one group.
        over: key of the arm whose time is divided.
        under: key of the arm that it is divided by.

    Returns:
        None where fewer than two rounds have both.
    """
    totals = samples.groupby(["process", "round", "arm"], observed=True)["duration_ns"].sum().unstack("arm")
    if over not in totals or under not in totals:
        return None
    both = totals[over].notna() & totals[under].notna()
    return None if both.sum() < 2 else median_interval(ratio_of_totals(totals[over][both], totals[under][both]))


def median_interval(ratios: ArrayLike, confidence: float = 0.95) -> Interval:
    """The median of paired ratios with its confidence interval: two order statistics of the rounds (sign test).

    Distribution-free: the number of rounds below the true median is binomial(n, 1/2) whatever the noise looks like, so
    [x_(k), x_(n+1-k)] covers it with at least `confidence` (David and Nagaraja, Order Statistics, 2003, section 7.1).
    It was chosen by its coverage when rounds are added at 10, 20, 40, ... until the half-width is 2 %, which favours
    samples that happen to lie close together. The lowest coverage found over log-normal noise of 0.5 to 20 %, slow
    modes of both arms, a slow mode of one arm, and a common autocorrelated drift, nominal 95 % (3000 runs a case, 250
    for the bootstraps):

    ============================================  ======
    order statistics, conservative (this one)      94 %
    order statistics, interpolated                  92 %
    bootstrap of the median, percentile             89 %
    bootstrap of the median, BCa                    86 %
    Hodges-Lehmann (signed ranks)                   61 %  (one-sided slow modes: it estimates another centre)
    Student t of the mean logarithm                  6 %  (the same)
    ============================================  ======

    Below 6 rounds no two order statistics reach 95 %; Student's t of the logarithms is used there, wide as it is.

    It is not an interval for another process, day or machine: rounds are taken as exchangeable.

    Args:
        ratios: [rounds], positive.
        confidence: of the interval, between 0 and 1.

    Returns:
        `value` is the median (geometric midpoint for an even number), so swapping the arms inverts all three numbers.

    Raises:
        ValueError: fewer than 2 rounds, or a ratio that is not positive and finite.
    """
    x = np.sort(np.log(_positive(np.asarray(ratios, np.float64), "ratios")))
    n = x.size
    if n < 2 or x.ndim != 1:
        raise ValueError(f"an interval needs 2 rounds or more, got an array of shape {x.shape}")
    k = _rank(n, confidence)
    if k:
        low, high = x[k - 1], x[n - k]
    else:
        from scipy.special import stdtrit  # imported late: it takes a while

        half = float(stdtrit(n - 1, (1 + confidence) / 2)) * x.std(ddof=1) / math.sqrt(n)
        low, high = x.mean() - half, x.mean() + half
    value, low, high = (float(v) for v in np.exp([np.median(x), low, high]))
    return Interval(value=value, low=min(low, value), high=max(high, value), confidence=confidence)


def process_interval(ratios: Sequence[ArrayLike], confidence: float = 0.95) -> Interval:
    """The ratio that other processes would show, from rounds within processes: Student's t over their medians.

    Rounds of one process share its conditions (where its memory lies, which core it runs on), so they say little about
    the next one: the unit is the process (Kalibera and Jones, "Rigorous benchmarking in reasonable time", ISMM
    2013, section 6), and the spread of their medians includes the noise of the rounds. From `TRIM_FROM` processes on
    the mean is trimmed, its standard error taken from the winsorised variance (Yuen, "The two-sample trimmed t for
    unequal population variances", Biometrika 1974): one disturbed process does not spoil the others.

    Args:
        ratios: per process [rounds], positive.
        confidence: of the interval, between 0 and 1.

    Returns:
        The geometric mean, trimmed or not, over the processes of their median ratio, with its interval.

    Raises:
        ValueError: fewer than 2 processes, one without rounds, or a ratio that is not positive and finite.
    """
    from scipy.special import stdtrit  # imported late: it takes a while

    logs = [np.log(_positive(np.asarray(r, np.float64), "ratios")) for r in ratios]
    m = len(logs)
    if m < 2 or any(x.ndim != 1 or x.size == 0 for x in logs):
        raise ValueError(f"an interval over processes needs 2 or more with rounds each, got {[x.shape for x in logs]}")
    medians = np.sort([np.median(x) for x in logs])
    cut = int(TRIMMED * m) if m >= TRIM_FROM else 0  # at either end
    left = m - 2 * cut
    centre = float(medians[cut : m - cut].mean())
    winsorised = np.clip(medians, medians[cut], medians[m - cut - 1])
    error = float(winsorised.std(ddof=1)) * math.sqrt(m) / left
    half = float(stdtrit(left - 1, (1 + confidence) / 2)) * error
    value, low, high = (math.exp(v) for v in (centre, centre - half, centre + half))
    return Interval(value=value, low=low, high=high, confidence=confidence)


def quotient(above: Interval, below: Interval) -> Interval:
    """The ratio of two independent estimates: half-widths of their logarithms add in quadrature."""
    value = math.log(above.value / below.value)
    low = math.hypot(math.log(above.value / above.low), math.log(below.high / below.value))
    high = math.hypot(math.log(above.high / above.value), math.log(below.value / below.low))
    ends = (math.exp(v) for v in (value, value - low, value + high))
    confidence = min(above.confidence, below.confidence)
    return Interval(**dict(zip(("value", "low", "high"), ends, strict=True)), confidence=confidence)


def half_width(interval: Interval) -> float:
    """Half the width of an interval as a share of its value: 0.02 reads 'plus or minus 2 %'."""
    return (interval.high - interval.low) / (2 * interval.value)


@lru_cache(maxsize=4096)
def _rank(n: int, confidence: float) -> int:
    """Largest k with P(x_(k) <= median <= x_(n+1-k)) >= confidence, ranks from 1; 0: there is none."""
    numerator, denominator = ((1 - confidence) / 2).as_integer_ratio()
    tail = numerator * 2**n  # in integers: 0.5**n is 0 for long runs
    k, ways = 0, 1
    below = ways  # of 2**n equally likely outcomes, those with at most k rounds below the median
    while below * denominator <= tail:
        k += 1
        ways = ways * (n - k + 1) // k
        below += ways
    return k


def samples_needed(quantile: float) -> int:
    """Samples before a percentile may be stated: 64 for p90, 662 for p99.

    The fewest of which one may lie beyond the true percentile and the estimate still bounds it with 99 % confidence
    (the early-stopping rule of MLPerf LoadGen).
    """
    beyond, n = 1 - quantile, 2
    while (1 - beyond) ** n + n * beyond * (1 - beyond) ** (n - 1) > 1 - PERCENTILE_CONFIDENCE + 1e-12:
        n += 1
    return n


def percentile(values: ArrayLike, quantile: float) -> Measured:
    """A percentile, or why it is not given.

    Args:
        values: [samples], any unit.
        quantile: 0.9 for p90.

    Returns:
        The smallest sample with at least that share at or below it: a time that was seen, also where the times are a
        mixture over paths and an interpolated one would fall between two of them.
    """
    samples = np.asarray(values, np.float64)
    needed = samples_needed(quantile)
    if samples.size < needed:
        return Unavailable(unavailable=f"p{100 * quantile:g} needs {needed} samples, there are {samples.size}")
    return float(np.quantile(samples, quantile, method="inverted_cdf"))


def tukey(values: ArrayLike) -> NDArray[np.int8]:
    """Classifies samples by Tukey's fences. They are shown, never dropped.

    Args:
        values: [samples].

    Returns:
        [samples] 0: within 1.5 interquartile ranges of the quartiles; 1 (above), -1 (below): within 3; 2, -2: beyond.
    """
    samples = np.asarray(values, np.float64)
    if samples.size == 0:
        return np.zeros(0, np.int8)
    q1, q3 = np.quantile(samples, [0.25, 0.75])
    classes = np.zeros(samples.shape, np.int8)
    for fence in (TUKEY_MILD, TUKEY_SEVERE):
        classes += (samples > q3 + fence * (q3 - q1)).astype(np.int8)
        classes -= (samples < q1 - fence * (q3 - q1)).astype(np.int8)
    return classes


def _positive(values: NDArray[np.float64], what: str) -> NDArray[np.float64]:
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise ValueError(f"{what} must be positive and finite")
    return values
