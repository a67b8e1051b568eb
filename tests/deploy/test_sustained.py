"""Load that lasts, summed up minute by minute."""

from __future__ import annotations

import pytest

from dynbench.deploy.job import Sustained
from dynbench.deploy.sustained import summed_up


def second(n: int, arm: str = "dynamic", ms: float = 2.0, celsius: float | None = None) -> Sustained:
    return Sustained(arm=arm, second=n, items=500, ns=int(500 * ms * 1e6), temperature_c=celsius)


def test_a_point_is_a_minute_of_a_long_load() -> None:
    rows = [second(n, ms=1.0 if n < 60 else 3.0, celsius=40.0 + n / 10) for n in range(600)]
    found = summed_up(rows, 600.0)
    points = found["arms"]["dynamic"]
    assert found["step_s"] == 60 and [p[0] for p in points] == [60.0 * i for i in range(1, 11)]
    assert [p[1] for p in points] == pytest.approx([1.0] + [3.0] * 9)
    assert [p[2] for p in points[:2]] == pytest.approx([45.9, 51.9])  # the hottest of each minute


def test_a_short_load_has_ten_points_and_seconds_without_an_item_none() -> None:
    rows = [second(n, arm) for arm in ("a", "b") for n in range(20) if n not in (4, 5)]
    rows.append(Sustained(arm="c", second=0, items=0, ns=5))
    found = summed_up(rows, 20.0)
    assert found["step_s"] == 2 and set(found["arms"]) == {"a", "b"}
    assert [p[0] for p in found["arms"]["a"]] == [2.0, 4.0, 8.0, 10.0, 12.0, 14.0, 16.0, 18.0, 20.0]
    assert all(p[2] is None for p in found["arms"]["b"])
