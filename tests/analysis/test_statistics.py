"""Statistics on cases with known answers."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynbench.analysis.statistics import (
    half_width,
    median_interval,
    percentile,
    process_interval,
    ratio_in_rounds,
    ratio_of_totals,
    samples_needed,
    tukey,
)
from dynbench.store.schema import Interval
from dynbench.unavailable import Unavailable

positive = st.floats(1e-3, 1e3)


def test_ratio_above_one_means_the_cell_is_faster_in_that_round() -> None:
    np.testing.assert_allclose(ratio_of_totals([200, 300, 100], [100, 300, 400]), [2.0, 1.0, 0.25])


def test_arms_are_compared_in_the_rounds_that_both_have() -> None:
    rows = [(0, r, arm, ns) for r, a, b in ((0, 10, 5), (1, 40, 10), (2, 30, 10)) for arm, ns in (("a", a), ("b", b))]
    rows += [(0, 0, "a", 6), (1, 0, "a", 1000)]  # a second batch; a round of another process, without b
    samples = pd.DataFrame(rows, columns=["process", "round", "arm", "duration_ns"])
    found = ratio_in_rounds(samples, "a", "b")
    assert found == median_interval([3.2, 4.0, 3.0])
    same = ratio_in_rounds(samples, "b", "b")
    assert same is not None and same.value == same.low == same.high == 1.0
    assert ratio_in_rounds(samples, "a", "c") is None
    assert ratio_in_rounds(samples[samples["round"] == 0], "a", "b") is None


@pytest.mark.parametrize(
    ("baseline", "cell"), [([1, 2], [1]), ([1, 0], [1, 1]), ([1, 1], [1, -1]), ([1.0, math.nan], [1, 1])]
)
def test_rounds_that_do_not_pair_up_or_took_no_time_are_refused(baseline: list[float], cell: list[float]) -> None:
    with pytest.raises(ValueError, match=r"pair up|positive"):
        ratio_of_totals(baseline, cell)


@pytest.mark.parametrize(  # ranks of the 95 % sign-test interval, David and Nagaraja; any table of it
    ("n", "low", "high"),
    [(6, 1, 6), (8, 1, 8), (9, 2, 8), (10, 2, 9), (15, 4, 12), (20, 6, 15), (25, 8, 18), (40, 14, 27), (80, 31, 50)],
)
def test_interval_is_the_order_statistics_of_the_sign_test(n: int, low: int, high: int) -> None:
    found = median_interval(np.random.default_rng(0).permutation(np.arange(1.0, n + 1)))
    assert (found.low, found.high) == pytest.approx((low, high))


def test_long_runs_have_ranks_too() -> None:
    found = median_interval(np.exp(np.arange(5000) / 5000))
    assert math.log(found.high / found.low) == pytest.approx(1.96 / math.sqrt(5000), rel=0.02)


def test_below_six_rounds_the_interval_is_student_t_of_the_logarithms() -> None:
    found = median_interval(np.exp([-0.01, 0.0, 0.01]))
    assert found.value == pytest.approx(1.0)
    assert math.log(found.high) == pytest.approx(4.3027 * 0.01 / math.sqrt(3), rel=1e-4)


def test_higher_confidence_gives_a_wider_interval() -> None:
    ratios = np.random.default_rng(1).lognormal(0, 0.1, 40)
    assert half_width(median_interval(ratios, 0.99)) > half_width(median_interval(ratios, 0.9))


@settings(max_examples=40, derandomize=True, deadline=None)
@given(st.lists(positive, min_size=2, max_size=30))
def test_swapping_the_arms_inverts_the_interval(ratios: list[float]) -> None:
    a, b = median_interval(ratios), median_interval([1 / r for r in ratios])
    assert a.low <= a.value <= a.high
    assert (b.value, b.low, b.high) == pytest.approx((1 / a.value, 1 / a.high, 1 / a.low), rel=1e-9)


@pytest.mark.parametrize("ratios", [[], [1.0], [1.0, 0.0], [1.0, math.inf], [[1.0, 2.0], [1.0, 2.0]]])
def test_interval_of_too_few_or_impossible_ratios_is_refused(ratios: list[float]) -> None:
    with pytest.raises(ValueError, match=r"2 rounds|positive"):
        median_interval(ratios)


def test_half_width_is_a_share_of_the_value() -> None:
    assert half_width(Interval(value=2.0, low=1.9, high=2.1)) == pytest.approx(0.05)


def test_percentiles_need_the_samples_of_the_load_generator() -> None:
    assert (samples_needed(0.9), samples_needed(0.99)) == (64, 662)


def test_percentile_is_a_sample_or_a_reason() -> None:
    assert percentile(np.arange(1, 101), 0.9) == 90.0
    assert percentile(np.arange(63), 0.9) == Unavailable(unavailable="p90 needs 64 samples, there are 63")
    assert percentile([1.0] * 60 + [9.0] * 40, 0.6) == 1.0


def test_tukey_classifies_and_drops_nothing() -> None:
    samples = np.concatenate([np.arange(1, 101), [180.0, 400.0, -80.0, -300.0]])  # quartiles 24.75 and 76.25: iqr 51.5
    classes = tukey(samples)
    assert classes.shape == samples.shape
    assert classes[-4:].tolist() == [1, 2, -1, -2]
    assert not classes[:-4].any()
    assert tukey([]).size == 0


def processes(seed: int, m: int, between: float, noise: float, slow: float = 0.0) -> list[np.ndarray]:
    """Ratios whose truth is 1: processes differ by `between`, rounds by `noise`, some rounds of either arm are slow."""
    draw = np.random.default_rng(seed)
    logs = draw.normal(0, between, (m, 1)) + draw.normal(0, noise, (m, 30))
    modes = (draw.random((2, m, 30)) < 0.2) * slow
    return list(np.exp(logs + modes[0] - modes[1]))


@pytest.mark.parametrize("m", [3, 5, 12, 40])
@pytest.mark.parametrize(
    ("between", "noise", "slow"), [(0.0, 0.01, 0.0), (0.005, 0.01, 0.3), (0.03, 0.01, 0.0), (0.03, 0.05, 0.3)]
)
def test_intervals_over_processes_cover_the_truth_of_another_process(
    m: int, between: float, noise: float, slow: float
) -> None:
    found = [process_interval(processes(seed, m, between, noise, slow)) for seed in range(400)]
    covered = sum(f.low <= 1 <= f.high for f in found)
    assert covered >= 0.92 * 400  # nominal 95 %, less three standard errors
    if not slow:
        assert covered <= 0.985 * 400  # and not by being wider than they need be


def test_intervals_of_one_process_do_not_cover_another_one_and_those_over_processes_do() -> None:
    flat = over = 0
    for seed in range(100):
        ratios = processes(seed, 5, 0.03, 0.005)
        one = median_interval(np.concatenate(ratios))
        flat += one.low <= 1 <= one.high
        found = process_interval(ratios)
        over += found.low <= 1 <= found.high
    assert flat < 70 < 90 <= over


def test_an_interval_over_processes_is_about_their_mean_and_narrower_with_more_of_them() -> None:
    few, many = (process_interval(processes(1, m, 0.01, 0.01)) for m in (3, 8))
    assert half_width(many) < half_width(few)
    assert process_interval([[2.0, 2.0], [0.5, 0.5]]).value == pytest.approx(1.0)
    sure = process_interval([[1.1] * 5] * 4)
    assert (sure.low, sure.high) == pytest.approx((1.1, 1.1))


def test_processes_that_met_a_neighbour_do_not_spoil_the_interval_over_many() -> None:
    quiet = processes(1, 20, 0.01, 0.01)
    disturbed = [*quiet[:-2], *(2 * r for r in quiet[-2:])]
    one, other = process_interval(quiet), process_interval(disturbed)
    assert half_width(other) < 1.5 * half_width(one) and other.value == pytest.approx(one.value, abs=0.005)


def test_the_trimmed_interval_is_that_of_yuen() -> None:
    values = np.exp(np.arange(10.0) ** 2 / 100)  # 20 % of ten: two at either end; 4 to 49 stay, the rest is set to them
    x = np.clip(np.arange(10.0) ** 2, 4, 49) / 100
    half = 2.5705818 * x.std(ddof=1) / (0.6 * math.sqrt(10))
    found = process_interval([[v] for v in values])
    centre = (4 + 9 + 16 + 25 + 36 + 49) / 600
    assert np.log([found.low, found.value, found.high]) == pytest.approx([centre - half, centre, centre + half])


@pytest.mark.parametrize("ratios", [[[1.0, 1.1]], [[1.0], []], [[1.0], [0.0]], [[1.0], [math.inf]]])
def test_intervals_over_processes_need_two_with_rounds(ratios: list[list[float]]) -> None:
    with pytest.raises(ValueError, match=r"2 or more|positive"):
        process_interval(ratios)
