"""Which part of the time is predicted wrongly, on predictions whose parts are made up."""

from __future__ import annotations

import pytest

from dynbench.analysis.cost_model import TERMS, Prediction
from dynbench.analysis.misses import misses, repeated
from dynbench.store.schema import Arm, Interval
from tests.analysis.cells import cell
from tests.analysis.scalings import usage

PREDICTED = {"body": 60.0, "decide": 20.0, "moving": 15.0, "waiting": 5.0}
MEASURED = PREDICTED | {"decide": 60.0}
LEFT = {None: (), "deciding": ("decide", "waiting"), "waiting": ("waiting",), "moving": ("moving",)}


def prediction(without: str | None, size: int = 8, items: int = 64) -> Prediction:
    left = ("decide", "moving", "waiting") if without == "everything" else LEFT[without]
    arm = Arm(kind="control" if without else "strategy", strategy="compaction", without=without)
    seen = usage("compaction", size, 0.5, "learned", items=items)
    parts = {name: us * items for name, us in PREDICTED.items() if name not in left}
    measured = sum(us * items for name, us in MEASURED.items() if name not in left)
    return Prediction("skipnet38", arm, seen, sum(parts.values()), dict.fromkeys(TERMS, 0.0) | parts, measured)


def test_the_part_that_is_off_comes_first_whatever_number_of_items_was_watched() -> None:
    asked = [prediction(None), *(prediction(w, items=32) for w in ("deciding", "waiting", "moving", "everything"))]
    found = misses(asked)
    assert found[0].part == "deciding" and found[0].pairs == 1
    assert found[0].predicted == pytest.approx(25 / 100) and found[0].measured == pytest.approx(65 / 140)
    rest = {m.part: (m.predicted, m.measured) for m in found}
    assert rest["moving"] == pytest.approx((15 / 100, 15 / 140))
    assert rest["fewer items per call"] == pytest.approx((60 / 100, 60 / 140))


def test_without_controls_or_without_their_strategy_nothing_is_said() -> None:
    assert misses([prediction(None)]) == []
    assert misses([prediction(None, size=8), prediction("moving", size=4)]) == []


def test_a_baseline_that_was_measured_twice_shows_what_the_machine_can_tell() -> None:
    off = Interval(value=0.9, low=0.8, high=1.0)
    cells = [cell("masking", again=off), cell("compaction", again=off), cell("masking", batch_size=8)]
    assert repeated(cells, "skipnet38") == pytest.approx(0.1)
    assert repeated(cells, "another") is None and repeated([], "skipnet38") is None
