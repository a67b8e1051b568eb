"""Numbers as a reader meets them."""

from __future__ import annotations

import pytest

from dynbench.report.palette import INK, MUTED, PAPER, RULE, STRATEGIES, TONES, tones_of
from dynbench.report.values import bytes_, count, interval, quantity, seconds, significant, times, words
from dynbench.store.schema import Interval, Unavailable


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (111.2, "111"), (9.999, "10.0"), (0.0123456, "0.0123"), (53314.8, "53,315"), (2.4e-7, "2.40e-07"),
     (-1.5, "-1.50"), (4.1e12, "4.10e+12"), (float("inf"), "inf")],
)  # fmt: skip
def test_significant_keeps_three_digits_and_avoids_powers_of_ten(value: float, text: str) -> None:
    assert significant(value) == text


def test_an_unavailable_quantity_is_not_a_number_but_its_reason() -> None:
    shown = quantity(Unavailable(unavailable="no sensor"), 1e6)
    assert (shown.text, shown.sort, shown.note) == ("n/a", None, "no sensor")
    assert count(Unavailable(unavailable="no sensor")) == shown


def test_what_was_not_measured_is_a_dash_and_zero_is_zero() -> None:
    assert quantity(None).text == "–"
    assert quantity(0.0).text == "0"
    assert words(None).text == "–"


def test_rounding_does_not_move_an_interval_onto_one() -> None:
    assert interval(Interval(value=1.02, low=1.004, high=1.04)) == "1.004 to 1.040"
    assert interval(Interval(value=1.2, low=1.1, high=1.3)) == "1.10 to 1.30"
    assert times(0.0123) == "0.012x"


def test_sizes_and_durations_are_readable() -> None:
    assert bytes_(25_276_514_304) == "25.3 GB"
    assert bytes_(512) == "512 B"
    assert seconds(200.4) == "3 min 20 s"
    assert seconds(119.6) == "2 min 0 s"
    assert seconds(14.2) == "14 s"


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(a: str, b: str) -> float:
    light, dark = sorted((_luminance(a), _luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("name", [n for n in TONES if n not in (PAPER, RULE)])
def test_every_colour_stands_out_from_the_light_and_the_dark_page(name: str) -> None:
    least = 4.5 if name in (INK, MUTED) else 3.0  # WCAG 2.1: running text; large text and graphics
    assert _contrast(TONES[name].light, TONES[PAPER].light) >= least
    assert _contrast(TONES[name].dark, TONES[PAPER].dark) >= least


def test_colours_can_be_told_apart_in_the_source_of_a_figure() -> None:
    assert len({t.light for t in TONES.values()}) == len(TONES)
    assert len({TONES[s].marker for s in STRATEGIES}) == len(STRATEGIES)


def test_a_strategy_keeps_its_colour_whatever_else_ran() -> None:
    assert tones_of(["compaction", "new"])["compaction"] == tones_of(["masking"])["compaction"] == "compaction"
    assert tones_of(["zeta", "alpha"])["alpha"] == tones_of(["alpha", "zeta"])["alpha"] == "other1"
