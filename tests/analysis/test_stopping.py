"""The stopping rule, and the coverage of the intervals it leaves."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import pytest

from dynbench.analysis.statistics import half_width, median_interval, ratio_of_totals
from dynbench.analysis.stopping import Stopping

Times = tuple[np.ndarray, np.ndarray]  # [rounds] of the baseline and of the cell, any unit
MOST = 160


def noisy(rng: np.random.Generator, n: int, sd: float) -> np.ndarray:
    return np.exp(rng.normal(0, sd, n))


def lognormal(rng: np.random.Generator, sd: float) -> Times:
    return 1.5 * noisy(rng, MOST, sd), noisy(rng, MOST, sd)


def slow_modes(rng: np.random.Generator, sd: float) -> Times:
    slow = 1 + 0.3 * (rng.random((2, MOST)) < 0.15)
    return 1.5 * noisy(rng, MOST, sd) * slow[0], noisy(rng, MOST, sd) * slow[1]


def slow_baseline(rng: np.random.Generator, sd: float) -> Times:
    """Only the baseline has a slow mode: the ratio's median, its mean and its pseudo-median differ."""
    normal = NormalDist(0, math.sqrt(2) * sd)
    low, high = 0.0, 0.1  # bisection for the median of the logarithm's mixture
    for _ in range(60):
        middle = (low + high) / 2
        below = 0.8 * normal.cdf(middle) + 0.2 * normal.cdf(middle - math.log(1.3))
        low, high = (middle, high) if below < 0.5 else (low, middle)
    slow = np.where(rng.random(MOST) < 0.2, 1.3, 1.0)
    return 1.5 * noisy(rng, MOST, sd) * slow / math.exp(low), noisy(rng, MOST, sd)


def common_drift(rng: np.random.Generator, sd: float) -> Times:
    """The machine's speed wanders by 15 %; the two arms of a round, in random order, see nearly the same of it."""
    speed = np.empty(2 * MOST)
    now = rng.normal(0, 0.15)
    for i, step in enumerate(rng.normal(0, 0.015, 2 * MOST)):
        speed[i] = now = 0.995 * now + step
    speed = np.exp(speed.reshape(MOST, 2))
    first = rng.integers(0, 2, MOST)
    rounds = np.arange(MOST)
    return 1.5 * noisy(rng, MOST, sd) * speed[rounds, first], noisy(rng, MOST, sd) * speed[rounds, 1 - first]


def run(times: Times, rule: Stopping) -> tuple[str, np.ndarray]:
    ratios = ratio_of_totals(*times)
    elapsed = np.cumsum(times[0] + times[1])
    for n in range(1, ratios.size + 1):
        why = rule.finished(n, float(elapsed[n - 1]), [ratios[:n]])
        if why is not None:
            return why, ratios[:n]
    raise AssertionError("the time limit ends every group")


@pytest.mark.parametrize("scenario", [lognormal, slow_modes, slow_baseline, common_drift])
@pytest.mark.parametrize("sd", [0.01, 0.025, 0.05])
def test_intervals_cover_the_truth_under_the_stopping_schedule(
    scenario: Callable[[np.random.Generator, float], Times], sd: float
) -> None:
    rng = np.random.default_rng(20)
    covered, reasons = [], set()
    for _ in range(1000):
        why, ratios = run(scenario(rng, sd), Stopping(precision=0.02, time_limit_s=250.0))
        found = median_interval(ratios)
        covered.append(found.low <= 1.5 <= found.high)
        reasons.add(why)
        if why == "precision":
            assert half_width(found) <= 0.02
    assert np.mean(covered) >= 0.93
    assert "precision" in reasons


def test_it_looks_at_rounds_10_20_40_80_only() -> None:
    rule = Stopping(precision=1e-9, time_limit_s=1e9)
    ratios = np.random.default_rng(0).lognormal(0, 0.1, 100)
    looks = []
    for n in range(1, 101):
        before = len(rule.half_widths)
        rule.finished(n, 0.0, [ratios[:n]])
        if len(rule.half_widths) > before:
            looks.append(n)
    assert looks == [10, 20, 40, 80]


def test_equal_rounds_stop_for_precision_at_the_first_look() -> None:
    rule = Stopping()
    assert [rule.finished(n, 0.1, [np.full(n, 1.2)]) for n in range(1, 11)] == [None] * 9 + ["precision"]


def test_the_least_precise_ratio_decides() -> None:
    noise = np.random.default_rng(0).lognormal(0, 0.2, 10)
    rule = Stopping()
    assert rule.finished(10, 0.1, [np.full(10, 1.2), noise]) is None
    assert rule.half_widths == [half_width(median_interval(noise))]


def test_a_settable_precision_stops_earlier() -> None:
    noise = np.random.default_rng(0).lognormal(0, 0.02, 10)
    assert Stopping(precision=0.001).finished(10, 0.1, [noise]) is None
    assert Stopping(precision=0.1).finished(10, 0.1, [noise]) == "precision"


def test_a_ratio_that_drifts_stops_for_lack_of_progress() -> None:
    drifting = 1.0 + 0.02 * np.arange(MOST)
    why, ratios = run((drifting, np.ones(MOST)), Stopping(time_limit_s=1e9))
    assert (why, ratios.size) == ("no progress", 40)


def test_steady_noise_is_seldom_mistaken_for_lack_of_progress() -> None:
    rng = np.random.default_rng(3)
    reasons = [run(lognormal(rng, 0.04), Stopping(time_limit_s=250.0))[0] for _ in range(200)]
    assert reasons.count("no progress") <= 6


def test_the_time_limit_ends_it_between_two_looks() -> None:
    rule = Stopping(time_limit_s=3.0)
    noise = np.random.default_rng(0).lognormal(0, 0.3, 20)
    assert rule.finished(3, 2.9, [noise[:3]]) is None
    assert rule.finished(4, 3.0, [noise[:4]]) == "time limit"


def test_precision_reached_as_the_time_ends_is_called_precision() -> None:
    assert Stopping(time_limit_s=1.0).finished(10, 1.0, [np.full(10, 1.0)]) == "precision"


def test_without_a_baseline_the_first_look_ends_it() -> None:
    rule = Stopping()
    assert rule.finished(9, 0.1, []) is None
    assert rule.finished(10, 0.1, []) == "no progress"
