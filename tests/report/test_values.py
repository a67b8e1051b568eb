"""Numbers as a reader meets them."""

from __future__ import annotations

import pytest

from dynbench.report.palette import INK, MUTED, PAPER, RULE, STRATEGIES, TONES, tones_of
from dynbench.report.values import count, quantity, words
from dynbench.unavailable import Unavailable


def test_an_unavailable_quantity_is_not_a_number_but_its_reason() -> None:
    shown = quantity(Unavailable(unavailable="no sensor"), 1e6)
    assert (shown.text, shown.sort, shown.note) == ("n/a", None, "no sensor")
    assert count(Unavailable(unavailable="no sensor")) == shown


def test_what_was_not_measured_is_a_dash_and_zero_is_zero() -> None:
    assert quantity(None).text == "–"
    assert quantity(0.0).text == "0"
    assert words(None).text == "–"


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
