"""What may be said of a change of time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynbench.analysis.judge import judge
from dynbench.store.schema import Interval


def interval(value: float, half: float) -> Interval:
    return Interval(value=value, low=value / (1 + half), high=value * (1 + half))


@pytest.mark.parametrize(
    ("value", "half", "resolution", "outcome", "why"),
    [
        (1.10, 0.02, 0.02, "SLOWER", "+10.0 %"),
        (0.90, 0.02, 0.02, "FASTER", "-10.0 %"),
        (1.00, 0.01, 0.01, "SAME", "less than the 3.0 % that matter"),
        (1.02, 0.005, 0.01, "SLOWER", "+2.0 %"),  # certain, small as it is
        (1.00, 0.05, 0.01, "AMBIGUOUS", "more time or a quieter machine"),
        (1.06, 0.05, 0.02, "AMBIGUOUS", "there is a change, but not certainly one"),
        (1.06, 0.01, 0.08, "AMBIGUOUS", "too noisy"),
        (1.00, 0.01, 0.08, "SAME", "matter"),  # it shows no difference, whatever the same work did
    ],
)
def test_an_outcome_has_its_reason(value: float, half: float, resolution: float, outcome: str, why: str) -> None:
    found = judge(interval(value, half), resolution)
    assert found.outcome == outcome and why in found.reason


@given(value=st.floats(0.5, 2), half=st.floats(0.001, 0.2), resolution=st.floats(0.005, 0.2))
def test_swapping_old_and_new_swaps_the_outcome(value: float, half: float, resolution: float) -> None:
    swapped = {"FASTER": "SLOWER", "SLOWER": "FASTER", "SAME": "SAME", "AMBIGUOUS": "AMBIGUOUS"}
    one, other = (judge(interval(v, half), resolution).outcome for v in (value, 1 / value))
    near = any(abs(edge - b) < 1e-9 for edge in (value / (1 + half), value * (1 + half)) for b in (1 / 1.03, 1.03))
    assert near or other == swapped[one]


@given(value=st.floats(0.5, 2), half=st.floats(0.001, 0.2), resolution=st.floats(0.005, 0.2))
def test_nothing_inside_the_resolution_is_a_difference(value: float, half: float, resolution: float) -> None:
    if 1 / (1 + resolution) <= value <= 1 + resolution:
        assert judge(interval(value, half), resolution).outcome in ("SAME", "AMBIGUOUS")
