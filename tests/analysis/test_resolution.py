"""What the same work measured twice can tell apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynbench.analysis.resolution import direction, doubts, resolution
from dynbench.analysis.statistics import median_interval
from dynbench.store.schema import Interval, Speedup, Witnesses
from dynbench.unavailable import Unavailable

UNKNOWN = Unavailable(unavailable="the system does not tell")


def again(low: float, high: float) -> Interval:
    return Interval(value=(low * high) ** 0.5, low=low, high=high)


def speedup(value: float, low: float, high: float, tells: float | None) -> Speedup:
    return Speedup(value=value, low=low, high=high, baseline="b", primary=True, resolution=tells)


def seen(**changes: object) -> Witnesses:
    quiet = {
        "window_s": 10.0,
        "waited": 0.01,
        "stolen": 0.0,
        "switched_per_s": 1.0,
        "control_us": 400.0,
        "control_drift": 0.01,
        "clock_mhz": 2400.0,
        "clock_drift": 0.0,
        "temperature_c": UNKNOWN,
        "governor": "performance",
    }
    return Witnesses.model_validate({**quiet, **changes})


def test_resolution_is_the_far_end_of_the_interval_and_never_below_the_floor() -> None:
    assert resolution(again(0.97, 1.01)) == pytest.approx(1 / 0.97 - 1)
    assert resolution(again(0.99, 1.04)) == pytest.approx(0.04)
    assert resolution(again(0.999, 1.001)) == 0.01
    assert resolution(again(0.999, 1.001), "cuda:1") == 0.005


@given(a=st.floats(0.5, 2), b=st.floats(0.5, 2))
def test_resolution_does_not_depend_on_which_of_the_two_came_first(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    assert resolution(again(low, high)) == pytest.approx(resolution(again(1 / high, 1 / low)))


@pytest.mark.parametrize(
    ("ratio", "tells", "said"),
    [
        ((1.05, 1.03, 1.07), 0.02, "faster"),
        ((1.05, 1.03, 1.07), 0.06, "unclear"),  # the same network twice may differ by as much
        ((1.05, 0.99, 1.11), 0.02, "unclear"),  # its own interval contains 1
        ((0.90, 0.88, 0.93), 0.02, "slower"),
        ((0.95, 0.94, 0.96), 0.06, "unclear"),
        ((1.002, 1.001, 1.003), None, "faster"),  # a run without A/A: the interval alone
    ],
)
def test_a_ratio_inside_the_resolution_is_no_difference(
    ratio: tuple[float, float, float], tells: float | None, said: str
) -> None:
    assert direction(speedup(*ratio, tells)) == said


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), noise=st.sampled_from([0.005, 0.02, 0.1]))
def test_the_same_work_is_seldom_called_different(seed: int, noise: float) -> None:
    draw = np.random.default_rng(seed)
    wrong = 0
    for _ in range(20):
        ratios = np.exp(draw.normal(0, noise, (2, 40)))
        tells = resolution(median_interval(ratios[0]))
        found = median_interval(ratios[1])
        wrong += direction(speedup(found.value, found.low, found.high, tells)) != "unclear"
    assert wrong <= 2  # of 20; the interval alone would be wrong once in 20, and both together less often


def test_a_quiet_machine_raises_no_doubt_and_what_is_not_known_neither() -> None:
    assert doubts(seen(), 0.012) == []
    names = ["waited", "stolen", "switched_per_s", "control_us", "control_drift", "clock_mhz", "clock_drift"]
    assert doubts(seen(**dict.fromkeys(names, UNKNOWN)), None) == []


@pytest.mark.parametrize(
    ("changes", "tells", "id_"),
    [
        ({}, 0.08, "DB-AA-01"),
        ({"waited": 0.3}, 0.01, "DB-LOAD-02"),
        ({"stolen": 0.2}, 0.01, "DB-STEAL-01"),
        ({"switched_per_s": 90.0}, 0.01, "DB-SWITCH-01"),
        ({"control_drift": -0.2}, 0.01, "DB-CONTROL-01"),
        ({"clock_drift": 0.1}, 0.01, "DB-FREQ-02"),
        ({"governor": "power cap, hardware thermal slowdown"}, 0.01, "DB-GPU-01"),
    ],
)
def test_every_witness_has_its_warning_and_remedy(changes: dict[str, object], tells: float, id_: str) -> None:
    (found,) = doubts(seen(**changes), tells)
    assert found.id == id_ and found.remedy and any(c.isdigit() or c == ":" for c in found.text)


def test_a_governor_that_holds_nothing_down_is_no_doubt() -> None:
    assert doubts(seen(governor="idle"), 0.01) == doubts(seen(governor="powersave"), 0.01) == []
