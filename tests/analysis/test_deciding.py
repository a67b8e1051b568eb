"""What deciding takes: a share of the network's own time, paired by round."""

from __future__ import annotations

import numpy as np
import pytest

from dynbench.analysis.deciding import taken_by_deciding


def test_the_share_is_of_the_networks_own_time_and_slow_rounds_cancel() -> None:
    speed = np.array([1.0, 5.0, 0.7, 2.0, 1.0, 3.0, 1.0, 1.5, 1.0, 1.0])
    taken = taken_by_deciding(100 * speed, 80 * speed)
    assert (taken.share, taken.low, taken.high) == pytest.approx((0.2, 0.2, 0.2))


def test_the_interval_contains_the_share_and_may_lie_below_nothing() -> None:
    known = np.array([101.0, 99.0, 103.0, 102.0, 98.0, 104.0, 101.0, 100.0])
    taken = taken_by_deciding(np.full(8, 100.0), known)
    assert taken.low <= taken.share <= taken.high and taken.share < 0 < taken.high


@pytest.mark.parametrize(("a", "b"), [([1.0], [1.0, 2.0]), ([], []), ([0.0], [1.0])])
def test_what_is_not_paired_is_refused(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError, match="positive, and paired"):
        taken_by_deciding(a, b)
