"""Numbers as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynbench.analysis.formatting import (
    bytes_,
    change_with_interval,
    interval,
    percent,
    seconds,
    significant,
    times,
    times_with_interval,
    way_in_words,
)
from dynbench.store.schema import Arm, Interval


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (111.2, "111"),
        (9.999, "10.0"),
        (0.0123456, "0.0123"),
        (53314.8, "53,315"),
        (2.4e-7, "2.40e-07"),
        (-1.5, "-1.50"),
        (4.1e12, "4.10e+12"),
        (float("inf"), "inf"),
    ],
)
def test_significant_keeps_three_digits_and_avoids_powers_of_ten(value: float, text: str) -> None:
    assert significant(value) == text


@pytest.mark.parametrize(
    ("ends", "text"),
    [
        ((1.02, 1.004, 1.04), "1.02x (1.004 to 1.040)"),  # rounding does not move an end onto 1
        ((1.2, 1.1, 1.3), "1.20x (1.10 to 1.30)"),
        ((1.1, 1.0, 1.2), "1.10x (1.00 to 1.20)"),
        ((0.0123, 0.01, 0.014), "0.012x (0.01 to 0.014)"),
    ],
)
def test_a_ratio_with_its_interval(ends: tuple[float, float, float], text: str) -> None:
    found = Interval(**dict(zip(("value", "low", "high"), ends, strict=True)))
    assert times_with_interval(found) == text
    assert text == f"{times(found.value)} ({interval(found)})"


@pytest.mark.parametrize(
    ("way", "text"),
    [
        ({}, "in eager PyTorch"),
        ({"form": "folded+channels_last"}, "in eager PyTorch (folded, channels last)"),
        ({"form": "folded+micro_batches_8"}, "in eager PyTorch (folded, 8 items at a time)"),
        ({"engine": "onnxruntime"}, "with its parts in ONNX Runtime"),
        (
            {"engine": "onnxruntime", "control": "graph", "form": "micro_batches_1"},
            "as one ONNX Runtime graph (1 item at a time)",
        ),
    ],
)
def test_how_a_network_is_run_is_said_in_words(way: dict[str, str], text: str) -> None:
    assert way_in_words(Arm.model_validate({"kind": "strategy", "strategy": "compaction"} | way)) == text


@given(st.floats(0.9, 1.1), st.floats(0, 0.2), st.floats(0, 0.2))
def test_the_ends_of_an_interval_stay_on_their_side_of_one(value: float, below: float, above: float) -> None:
    found = Interval(value=value, low=value - below, high=value + above)
    shown = [float(end) for end in interval(found).split(" to ")]
    for end, text in zip((found.low, found.high), shown, strict=True):
        assert text == pytest.approx(end, abs=0.0051)
        if abs(end - 1) > 0.0006:
            assert (text > 1) == (end > 1) and text != 1


def test_a_change_is_given_in_percent() -> None:
    assert change_with_interval(Interval(value=0.951, low=0.94, high=0.9605)) == "-4.9 % (-6.0 to -3.9)"
    assert (percent(0.314), percent(0.314, 1)) == ("31 %", "31.4 %")


def test_sizes_and_durations_are_readable() -> None:
    assert bytes_(25_276_514_304) == "25.3 GB"
    assert bytes_(512) == "512 B"
    assert seconds(200.4) == "3 min 20 s"
    assert seconds(119.6) == "2 min 0 s"
    assert seconds(59.7) == "1 min 0 s"
    assert seconds(14.2) == "14 s"
