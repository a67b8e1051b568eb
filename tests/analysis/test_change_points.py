"""Change points: how many are found and how many are false on fixed seeds, and what must hold for any series."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.change_points import AT, RUNS, ours, rates, series
from dynbench.analysis.change_points import SHORTEST, change_points, outliers

SEEDS = range(1000, 1120)  # other ones than it was chosen by
positive = st.floats(1e-6, 1e6)


@pytest.mark.parametrize("spikes", [0, 1, 3])
def test_no_step_is_seldom_taken_for_one(spikes: int) -> None:
    _, false = rates(ours, SEEDS, spikes=spikes)
    assert false <= 0.05


@pytest.mark.parametrize("spikes", [0, 1, 3])
@pytest.mark.parametrize(("step", "least"), [(0.05, 0.95), (-0.05, 0.95), (0.03, 0.6)])
def test_a_step_is_found_whatever_stands_out(spikes: int, step: float, least: float) -> None:
    found, false = rates(ours, SEEDS, step=step, spikes=spikes)
    assert found >= least
    assert false <= 0.1


def test_a_step_is_found_soon_after_it() -> None:
    assert rates(ours, SEEDS, step=0.2, at=RUNS - 4, spikes=1)[0] >= 0.95
    assert rates(ours, SEEDS, step=0.1, at=RUNS - 5, spikes=1)[0] >= 0.95


def test_runs_that_resemble_their_neighbours_are_not_taken_for_levels() -> None:
    assert rates(ours, SEEDS, alike=0.3)[1] <= 0.1


def test_a_change_says_where_how_much_and_how_sure() -> None:
    (found,) = change_points(series(1, step=0.1))
    assert abs(found.index - AT) <= 1
    assert found.last == found.index - 1
    assert found.before == pytest.approx(1, abs=0.01)
    assert found.change == pytest.approx(0.1, abs=0.02)
    assert found.p < 1e-6


def test_a_bump_is_two_changes() -> None:
    x = series(2)
    x[20:32] *= 1.1
    up, down = change_points(x)
    assert abs(up.index - 20) <= 1 and abs(down.index - 32) <= 1
    assert up.change > 0 > down.change


def test_a_run_that_stands_out_at_the_change_belongs_to_neither_level() -> None:
    x = series(3, step=0.1)
    x[AT] *= 1.5
    (found,) = change_points(x)
    assert (found.last, found.index) == (AT - 1, AT + 1)
    assert found.after == pytest.approx(1.1, abs=0.02)


def test_single_runs_are_outliers_and_levels_are_not() -> None:
    x = series(4, step=0.1)
    x[[10, 50]] *= 1.3
    found = outliers(x)
    assert found[[10, 50]].all()
    assert found.sum() <= 4


def test_small_changes_are_not_told_however_sure() -> None:
    exact = np.r_[np.full(20, 1.0), np.full(20, 1.005)]
    assert change_points(exact) == []
    (found,) = change_points(exact, least_change=0.001)
    assert (found.index, found.p) == (20, 0.0)


@pytest.mark.parametrize("n", range(2 * SHORTEST))
def test_too_few_runs_have_no_change(n: int) -> None:
    assert change_points(np.arange(1, n + 1.0)) == []
    assert outliers(np.ones(n)).shape == (n,)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.lists(positive, max_size=40))
def test_any_series_is_taken(values: list[float]) -> None:
    found = change_points(values)
    places = [0, *(c.index for c in found), len(values)]
    assert all(b - a >= SHORTEST for a, b in zip(places, places[1:], strict=False)) or not found
    assert all(c.last < c.index and c.before > 0 < c.after for c in found)
    if len(set(values)) == 1:
        assert not found


def test_the_unit_does_not_matter() -> None:
    x = series(5, step=0.05, spikes=2)
    assert [c.index for c in change_points(x * 1000)] == [c.index for c in change_points(x)]


@pytest.mark.parametrize("values", [[1.0, 0.0], [1.0, -1.0], [1.0, float("nan")], [[1.0]]])
def test_what_is_no_series_of_positive_numbers_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="positive, finite"):
        change_points(values)
