"""Where a series of results over commits changes its level: pure functions of arrays.

Outliers are left out first (Hampel identifier), because one slow run would hide a step or look like two. Then the
series is segmented by least squares with a penalty per cut (Jackson et al., An algorithm for optimal partitioning of
data on an interval, 2005), and neighbouring levels that a t-test does not separate are merged again, the weakest first.

Chosen by what it finds in simulated series of 60 runs with 2 % noise, a step at run 40, and 0, 1 or 3 single runs that
are 10 to 50 % too slow (`python -m bench.change_points`, seeds 0 to 399; the last three rows: 40 to 60 series):

====================================  ====================  ============  ===============  ===============
method                                false points/series   3 % step      5 % step         10 % step found
====================================  ====================  ============  ===============  ===============
this one                              0.005, 0.007, 0.005   80, 80, 76 %  100, 100, 100 %  100, 100, 100 %
the same despiking, ruptures PELT L2  0.028, 0.035, 0.028   85, 84, 82 %  100, 100, 100 %  100, 100, 100 %
Otava 0.8, window 50, p 0.001         0.05, 0.25, 0.20      82, 40, 2 %   98, 70, 28 %     100, 92, 65 %
Hampel's, then Otava 0.8              0.05, 0.00, 0.07      82, 85, 72 %  98, 98, 100 %    100, 100, 100 %
ruptures PELT L1, 4 ln(n) sigma       0.00, 0.00, 0.00      17, 13, 13 %  93, 88, 77 %     100, 100, 100 %
====================================  ====================  ============  ===============  ===============

Three runs after a step of 5, 10, 20 % it is found in 37, 96, 100 % of the series, five runs after it in 72, 100, 100 %.
Where neighbouring runs are correlated (0.3, 0.6) there are 0.03 and 0.15 false points per series.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

SIGNIFICANCE = 0.003  # of a change, corrected for all the places where it could have been found
LEAST_CHANGE = 0.01  # smaller ones are not reported, however certain
SHORTEST = 3  # runs of a level: the first two after a change could still be two slow runs
HAMPEL_HALF, HAMPEL_LIMIT = 3, 3.0  # neighbours on each side; standard deviations from their median
PENALTY = 3.0  # of a cut, in ln(n) noise variances: low, since the t-test comes after

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ChangePoint:
    """A change of level.

    Attributes:
        index: of the first value of the new level.
        last: of the last value of the old level; any values between the two are outliers.
        before: geometric mean of the values on the old level without outliers.
        after: the same of the new level.
        p: probability of a change this clear anywhere between the neighbouring ones if there is none (t-test,
            Bonferroni over the places).
    """

    index: int
    last: int
    before: float
    after: float
    p: float

    @property
    def change(self) -> float:
        """Relative: -0.05 for 5 % lower."""
        return self.after / self.before - 1


def change_points(
    values: ArrayLike, significance: float = SIGNIFICANCE, least_change: float = LEAST_CHANGE
) -> list[ChangePoint]:
    """Finds changes of level.

    Args:
        values: [n] one per run, in the order of the commits; positive.
        significance: see `ChangePoint.p`.
        least_change: relative; smaller changes are not reported.

    Returns:
        In order. A level has 3 values or more, so that a change is found from the third run after it on.

    Raises:
        ValueError: not one-dimensional, or a value is not positive and finite.
    """
    y = _logs(values)
    kept = np.flatnonzero(~_outliers(y))
    z = y[kept]
    cuts = _levels(z)
    while cuts:
        found = [_difference(z, a, b, c) for a, b, c in zip([0, *cuts], cuts, [*cuts[1:], len(z)], strict=False)]
        doubtful = [i for i, (step, p) in enumerate(found) if p > significance or abs(step) < np.log1p(least_change)]
        if not doubtful:
            ends = [0, *cuts, len(z)]
            levels = [float(np.exp(z[a:b].mean())) for a, b in zip(ends, ends[1:], strict=False)]
            return [
                ChangePoint(index=int(kept[c]), last=int(kept[c - 1]), before=before, after=after, p=p)
                for c, before, after, (_, p) in zip(cuts, levels, levels[1:], found, strict=False)
            ]
        del cuts[max(doubtful, key=lambda i: (found[i][1], -abs(found[i][0])))]
    return []


def outliers(values: ArrayLike) -> NDArray[np.bool_]:
    """Which values are more than 3 standard deviations of the noise from the median of the seven around them.

    The noise is estimated from the differences of neighbours, so that steps and outliers do not count.

    Args:
        values: [n], positive.

    Raises:
        ValueError: not one-dimensional, or a value is not positive and finite.
    """
    return _outliers(_logs(values))


def _logs(values: ArrayLike) -> Floats:
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or not (np.isfinite(x).all() and (x > 0).all()):
        raise ValueError("values must be a series of positive, finite numbers")
    return np.log(x)


def _outliers(y: Floats) -> NDArray[np.bool_]:
    windows = [np.sort(y[max(0, i - HAMPEL_HALF) : i + HAMPEL_HALF + 1]) for i in range(len(y))]
    # At the ends a window may be even: the middle between its two middle values could lie between two levels.
    low = np.array([w[(len(w) - 1) // 2] for w in windows])
    high = np.array([w[len(w) // 2] for w in windows])
    limit = max(HAMPEL_LIMIT * _noise(y), np.log1p(LEAST_CHANGE))
    found: NDArray[np.bool_] = (y < low - limit) | (y > high + limit)
    return found


def _noise(y: Floats) -> float:
    """Standard deviation of the values around their levels, from the median of the steps between neighbours."""
    return float(1.4826 * np.median(np.abs(np.diff(y))) / np.sqrt(2)) if len(y) > 1 else 0.0


def _levels(z: Floats) -> list[int]:
    """Where the best levels begin: least squares in units of the noise, plus the penalty of each cut."""
    n = len(z)
    if n < 2 * SHORTEST:
        return []
    variance = max(_noise(z), 1e-9) ** 2
    one, two = np.concatenate([[0], np.cumsum(z)]), np.concatenate([[0], np.cumsum(z**2)])
    best, came_from = np.full(n + 1, np.inf), np.zeros(n + 1, int)
    best[0] = 0
    for end in range(SHORTEST, n + 1):
        begin = np.arange(end - SHORTEST + 1)  # best[1], best[2] are infinite: too short
        squares = two[end] - two[begin] - (one[end] - one[begin]) ** 2 / (end - begin)
        costs = best[begin] + squares / variance + PENALTY * np.log(n) * (begin > 0)
        came_from[end] = int(np.argmin(costs))
        best[end] = costs[came_from[end]]
    cuts, at = [], int(came_from[n])
    while at:
        cuts.append(at)
        at = int(came_from[at])
    return cuts[::-1]


def _difference(z: Floats, begin: int, cut: int, end: int) -> tuple[float, float]:
    """Step of the level at `cut`, and its p-value corrected for the places it was chosen from.

    Student's t; where neighbouring runs resemble each other (a slow week), the effective sample size is smaller.
    """
    from scipy.special import stdtr  # imported late: it takes a while

    left, right = z[begin:cut], z[cut:end]
    rest = np.concatenate([left - left.mean(), right - right.mean()])
    step, squares = float(right.mean() - left.mean()), float(rest @ rest)
    if squares == 0:
        return step, 0.0 if step else 1.0
    alike = max(0.0, float(rest[1:] @ rest[:-1]) / squares)  # correlation of neighbours
    error = np.sqrt(squares / (len(rest) - 2) * (1 / len(left) + 1 / len(right)) * (1 + alike) / (1 - alike))
    return step, float(min(1.0, 2 * stdtr(len(rest) - 2, -abs(step) / error) * (len(rest) - 1)))
