"""The gap between ideal and measured."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynbench.analysis.gap import break_even_keep_rate, gap, ideal_speedup, phase_shares
from dynbench.store.schema import Factor, Phases, Waterfall
from tests.analysis.cells import NO, baseline, cell, flops

positive = st.floats(0.1, 10.0)


@settings(max_examples=50, derandomize=True, deadline=None)
@given(st.lists(positive, min_size=7, max_size=7), positive, positive, positive, positive)
def test_speedup_times_losses_is_the_ideal(
    ms: list[float], speedup: float, region: float, gates: float, surplus: float
) -> None:
    phases = Phases.model_validate(dict(zip(Phases.model_fields, ms, strict=True)))
    counted = flops(dense=7.0, region=region, total=region + gates, executed=region + gates + surplus)
    found = gap(cell("compaction", (speedup, speedup, speedup), phases=phases, flops=counted))
    assert found.ideal == pytest.approx(7.0 / region)
    assert found.efficiency == pytest.approx(speedup * region / 7.0)
    assert speedup * math.prod(found.losses.values()) == pytest.approx(found.ideal)
    assert sum(found.shares.values()) == pytest.approx(1.0)
    overhead = found.losses["decisions"] * found.losses["movement"] * found.losses["waiting"]
    assert overhead == pytest.approx(1 / (found.shares["body"] + found.shares["other"]))


def test_masking_is_said_to_compute_everything() -> None:
    phases = Phases(body_ms=95, decide_ms=5)
    found = gap(cell("masking", (0.95, 0.94, 0.96), flops=flops(executed=101.0), phases=phases))
    assert found.causes[0] == "executed FLOPs equal dense: masking computes everything"
    assert found.losses["surplus"] == pytest.approx((101 - 10) / 50)


def test_work_beyond_dense_is_counted() -> None:
    found = gap(cell("masking", (0.8, 0.79, 0.81), flops=flops(executed=125.0)))
    assert found.causes[0] == "executed FLOPs are 1.25x dense: masking computes everything"


def test_partial_surplus_is_relative_to_what_was_asked_for() -> None:
    found = gap(cell("batch_union", (1.2, 1.1, 1.3), flops=flops(executed=85.0)))
    assert found.causes[0] == "batch_union executes 1.50x the FLOPs that the decisions ask for"


def test_movement_is_named_with_its_share_of_the_time() -> None:
    phases = Phases(body_ms=60, other_ms=10, gather_ms=13, scatter_ms=10, decide_ms=4, sync_ms=3)
    found = gap(cell("compaction", (1.4, 1.38, 1.42), flops=flops(), phases=phases))
    assert found.causes == [
        "gather and scatter take 23 % of the time",
        "gates and heads take 4 % of the time",
        "waiting for decisions takes 3 % of the time",
    ]
    assert found.losses["utilisation"] == pytest.approx(2.0 / 1.4 * 0.7)


def test_what_no_counter_explains_is_said_as_speed_per_flop() -> None:
    found = gap(cell("compaction", (1.0, 0.9, 1.1), flops=flops(), phases=Phases(body_ms=100)))
    assert found.causes == ["what it computes runs at 50 % of the speed per FLOP of ResNet-38"]


def test_the_ideal_reached_needs_no_cause() -> None:
    found = gap(cell("cascading", (1.95, 1.9, 2.0), flops=flops(), phases=Phases(body_ms=90, gather_ms=10)))
    assert found.efficiency == pytest.approx(0.975)
    assert found.causes == []


def test_what_was_not_measured_is_left_out() -> None:
    found = gap(cell("compaction", status="refused", reason="no Loop"))
    assert (found.ideal, found.speedup, found.efficiency, found.shares, found.losses) == (None, None, None, {}, {})
    no_flops = gap(cell("compaction", (1.2, 1.1, 1.3), flops=flops().model_copy(update={"dense": NO, "executed": NO})))
    assert (no_flops.ideal, no_flops.speedup, no_flops.losses) == (None, 1.2, {})
    assert gap(baseline(phases=Phases())).shares == {}


def test_no_required_work_has_no_ideal() -> None:
    assert ideal_speedup(flops(region=0.0)) is None


def test_a_baseline_without_flops_has_no_ideal_and_the_speedup_stands() -> None:
    nothing = flops(dense=0.0, region=0.0, total=10.0, executed=10.0)
    found = gap(cell("masking", (0.5, 0.4, 0.6), flops=nothing, phases=Phases(body_ms=100)))
    assert (found.ideal, found.speedup, found.efficiency) == (None, 0.5, None)


def test_shares_of_an_empty_profile_are_empty() -> None:
    assert phase_shares(Phases()) == {}


def test_break_even_is_exact_where_time_is_linear_in_the_keep_rate() -> None:
    rates = [1.0, 0.25, 0.75, 0.5]
    assert break_even_keep_rate(rates, [1 / (0.3 + r) for r in rates]) == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("speedups", "expected"),
    [
        ([3.0, 2.0, 1.5], None),  # always faster
        ([0.9, 0.8, 0.7], None),  # never
        ([0.9, 1.1, 0.8], None),  # noise: not faster already at the lowest rate
        ([2.0, 1.5, 1.0], 1.0),
        ([2.0, 1.0, 0.5], 0.5),
    ],
)
def test_break_even_at_the_ends_of_the_sweep(speedups: list[float], expected: float | None) -> None:
    assert break_even_keep_rate([0.25, 0.5, 1.0], speedups) == expected


def test_a_sweep_that_does_not_pair_up_is_refused() -> None:
    with pytest.raises(ValueError, match="longer|shorter"):
        break_even_keep_rate([0.5], [1.0, 2.0])
    assert break_even_keep_rate([], []) is None


def waterfall(speedup: float, **values: float) -> Waterfall:
    factors = [
        Factor(value=v, low=v / 1.01, high=v * 1.01, name=name, how="two arms", share=0.1 if name == "moving" else None)  # type: ignore[arg-type]
        for name, v in values.items()
    ]
    return Waterfall(baseline="ResNet-38", ideal=2.0, speedup=speedup, factors=factors)


def test_where_there_are_controls_the_causes_are_theirs() -> None:
    whole = waterfall(1.25, surplus=1.0, fewer_items=1.2, moving=1.3, deciding=1.005, rest=1.02)
    found = gap(
        cell("compaction", (1.25, 1.2, 1.3), flops=flops(), phases=Phases(body_ms=50, sync_ms=50), waterfall=whole)
    )
    assert found.by_controls == whole
    assert found.causes == [
        "moving items takes 10 % of the time",
        "called with fewer items than a batch has, its parts take 1.20x the time per FLOP",
        "two arms: 1.02x",
    ]


def test_no_cause_is_named_where_no_control_tells_a_loss_from_none() -> None:
    nothing = waterfall(1.99, surplus=1.0, fewer_items=1.0, moving=1.001, deciding=1.004)
    assert gap(cell("compaction", (1.0, 0.9, 1.1), flops=flops(), waterfall=nothing)).causes == []


def test_what_is_judged_by_its_deployed_speedup_is_explained_by_its_deployed_waterfall() -> None:
    whole = waterfall(1.6, fewer_items=1.25)
    made = cell("compaction", (1.25, 1.2, 1.3), flops=flops(), waterfall=waterfall(1.25, moving=1.6))
    deployed = made.model_copy(update={"deployed_speedups": made.speedups, "deployed_waterfall": whole})
    assert gap(deployed).by_controls == whole
