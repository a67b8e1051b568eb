"""What levers win, on cells whose times follow from a known law."""

from __future__ import annotations

import pytest

from dynbench.analysis.cost_model import Levers, model_of
from dynbench.analysis.whatif import LEVERS, largest, on_another, what_if
from dynbench.errors import UserError
from tests.analysis.cells import latency
from tests.analysis.scalings import CONSTANTS, by_law, made_up, timed, usage

FIGURES = {
    "convolution": 1e10,
    "matmul": 2e10,
    "gather": 1e10,
    "scatter": 1e10,
    "gather call": 3e-6,
    "operator call": 1e-6,
    "region call": 1e-6,
    "point": 2e-5,
    "wait": 2e-6,
}


def test_wins_are_those_of_the_law_and_the_largest_is_named() -> None:
    cells, scaling = made_up()
    rows = what_if(model_of(cells, scaling), cells, list(LEVERS))
    assert {(r.batch_size, r.arm.strategy) for r in rows} == {
        (b, s) for b in (1, 4, 8, 16, 32) for s in ("masking", "compaction")
    }
    for row in rows:
        seen = usage(str(row.arm.strategy), row.batch_size, 0.6, "learned")
        for name, win in row.wins.items():
            assert win == pytest.approx(by_law(seen) / by_law(seen, LEVERS[name]), rel=0.1), name
        assert row.largest == max(row.wins, key=lambda n: row.wins[n])
        assert row.together >= max(row.wins.values()) * (1 - 1e-9)
    assert largest(rows).startswith("Predicted: the largest lever is 'perfect small batches'")


def test_what_a_control_shows_stands_beside_the_prediction() -> None:
    cells, scaling = made_up()
    seen = usage("compaction", 32, 0.6, "learned")
    control = timed(seen, kind="control", latency=latency(by_law(seen, Levers(no_wait=True)) / 1e3))
    control = control.model_copy(update={"arm": control.arm.model_copy(update={"without": "waiting"})})
    rows = what_if(model_of(cells, scaling), [*cells, control], ["no wait"])
    (row,) = [r for r in rows if r.by_control]
    assert (row.batch_size, row.arm.strategy) == (32, "compaction")
    assert row.by_control["no wait"] == pytest.approx(row.wins["no wait"], rel=0.05)


def test_nothing_to_predict_is_said() -> None:
    assert largest([]) == "There is nothing to predict."


def test_the_same_device_elsewhere_changes_nothing_and_a_faster_one_wins() -> None:
    cells, scaling = made_up()
    model = model_of(cells, scaling)
    same = on_another(FIGURES, FIGURES, CONSTANTS)
    twice = on_another(FIGURES, {k: v / 2 if v < 1 else 2 * v for k, v in FIGURES.items()}, CONSTANTS)
    for row in what_if(model, cells, list(LEVERS), same):
        assert row.elsewhere == pytest.approx(1.0)
    for row in what_if(model, cells, list(LEVERS), twice):
        assert row.elsewhere == pytest.approx(2.0)


def test_a_profile_without_a_figure_is_refused() -> None:
    less = {name: value for name, value in FIGURES.items() if name != "wait"}
    with pytest.raises(UserError, match="no figure 'wait'"):
        on_another(FIGURES, less, CONSTANTS)
