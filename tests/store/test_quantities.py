"""The table of quantities: every row can be read, is named once, and a user's own row is checked before it is used."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from dynbench.errors import UserError
from dynbench.store.quantities import EXACT_WORK, QUANTITIES, numbers, quantities
from dynbench.store.quantity import Quantity, check_quantity, columns, describe, evaluate, flat
from dynbench.store.schema import Cell, Interval
from dynbench.unavailable import Unavailable
from tests.analysis.cells import info
from tests.store.records import cell, cells

NO = Unavailable(unavailable="no sensor")
WITNESSES = ("waited", "stolen", "switched_per_s", "control_us", "control_drift", "clock_mhz", "clock_low_mhz")


def full() -> Cell:
    """A cell that has everything, each number another one."""
    interval = {"value": 1.2, "low": 1.1, "high": 1.3}
    names = ("surplus", "fewer_items", "moving", "deciding", "waiting", "engine", "rest")
    factors = [{**interval, "name": name, "how": "two arms"} for name in names]
    waterfall = {"baseline": "ResNet", "ideal": 2.0, "speedup": 1.2, "factors": factors}
    return cell(
        "compaction",
        decisions={"source": "learned", "label": "learned", "keep_rate": 0.5},
        rounds=20,
        latency={
            "stream_ms": 64.0,
            "item_ms": 1.0,
            "batch_p50_ms": 8.0,
            "batch_p90_ms": 9.0,
            "batch_p99_ms": 10.0,
            "device_stream_ms": 60.0,
        },
        speedups=[{**interval, "baseline": "ResNet", "primary": True, "resolution": 0.01}],
        deployed_speedups=[{**interval, "baseline": "ResNet", "primary": True, "resolution": 0.01}],
        waterfall=waterfall,
        deployed_waterfall=waterfall,
        energy_waterfall=waterfall,
        deployed_energy_waterfall=waterfall,
        ideal=2.0,
        efficiency=0.6,
        flops={"dense": 10.0, "required_region": 5.0, "required_total": 6.0, "executed": 7.0, "accounted": 4.0},
        bytes_touched=70.0,
        operator_calls=71.0,
        compiled={"regions": 3, "compilations": 7, "most_compilations": 3},
        host_syncs=72.0,
        kernel_launches=73.0,
        params=74,
        memory={"peak_bytes": 75.0},
        energy={"item_j": 0.5, "idle_share": 0.4, "window_s": 2.0},
        accuracy={"value": 0.9, "metric": "top-1 accuracy"},
        phases={},
        max_error=1e-7,
        tolerance=1e-5,
        again=interval,
        witnesses=dict.fromkeys((*WITNESSES, "window_s", "clock_drift", "temperature_c"), 0.1) | {"governor": "?"},
    )


@pytest.mark.parametrize("quantity", QUANTITIES, ids=lambda q: q.key)
def test_every_quantity_is_read_from_a_cell_that_has_everything(quantity: Quantity) -> None:
    found = quantity.of(full())
    assert isinstance(found, Interval if quantity.kind == "interval" else float | int)
    assert quantity.of(cell("masking", "refused")) in (None, 0)


@pytest.mark.parametrize("quantity", QUANTITIES, ids=lambda q: q.key)
def test_every_quantity_says_what_it_is(quantity: Quantity) -> None:
    assert quantity.header and quantity.name
    assert re.search(r"[.]$", quantity.definition)
    assert quantity.kind != "number" or quantity.unit or quantity.key in ("decisions_keep_rate", "accuracy_value")


def test_columns_are_named_once() -> None:
    names = [name for q in QUANTITIES for name in columns(q)]
    assert len(set(names)) == len(names)
    assert not any(name.startswith("own_") for name in names)  # the users' own ones


def test_the_work_that_check_gates_is_what_is_exact_and_should_not_grow() -> None:
    assert EXACT_WORK == ("executed FLOPs", "required FLOPs", "operator calls", "host waits")


def test_the_ideal_says_why_it_is_missing() -> None:
    ideal = next(q for q in QUANTITIES if q.key == "ideal_speedup")
    counted = {"dense": 10.0, "required_region": 5.0, "required_total": 6.0, "executed": 7.0, "accounted": 4.0}
    assert ideal.of(cell("masking", flops=counted)) == 2.0
    assert ideal.of(cell("masking", flops={**counted, "dense": NO})) == NO
    nothing = ideal.of(cell("masking", flops={**counted, "required_region": 0.0}))
    assert isinstance(nothing, Unavailable) and nothing.unavailable.startswith("the decisions require no FLOPs")
    nothing = ideal.of(cell("masking", flops={**counted, "dense": 0.0}))
    assert isinstance(nothing, Unavailable) and nothing.unavailable.startswith("the primary baseline executes no FLOPs")
    assert ideal.of(cell("masking", arm={"kind": "baseline", "baseline": "ResNet"}, flops=counted)) is None


def test_a_number_that_cannot_be_computed_costs_itself_only() -> None:
    share = Quantity(key="share", header="share", definition="A share.", read=lambda c: 1 / c.rounds)
    found = share.of(cell("masking", rounds=0))
    assert isinstance(found, Unavailable) and "division by zero" in found.unavailable


@settings(max_examples=50)
@given(cells)
def test_a_cell_is_flat_in_as_many_columns_as_are_named_and_its_numbers_are_numbers(found: Cell) -> None:
    for quantity in QUANTITIES:
        assert len(flat(quantity, found)) == len(columns(quantity))
    assert all(math.isfinite(value) for value in numbers(found).values())


def test_the_numbers_of_a_cell_are_unscaled_with_the_ends_of_intervals() -> None:
    found = numbers(full())
    assert found["energy_item_j"] == 0.5 and found["resolution"] == 0.01
    assert (found["speedup"], found["speedup_low"], found["again_high"]) == (1.2, 1.1, 1.3)
    assert "energy_item_j" not in numbers(cell("masking", energy={"item_j": NO, "idle_share": NO, "window_s": NO}))


# --- a user's own ----------------------------------------------------------------------------------------------------


def own(**changes: Any) -> Quantity:
    fields = {
        "key": "padded_share",
        "header": "padding",
        "definition": "Share of padding.",
        "measure": lambda arm: 0.25,
    }
    return Quantity(**fields | changes)


def test_what_an_own_quantity_says_of_itself_comes_back_from_the_manifest() -> None:
    described = describe(own(unit="%", scale=0.01, digits=2, exact=True, better="down", is_not="Not waste."))
    (back,) = quantities([info(quantities=[described]), info(name="other", quantities=[described])])[len(QUANTITIES) :]
    assert back.key == "own_padded_share" and back.name == "padding" and back.places == ("work", "not measured")
    assert (back.unit, back.scale, back.digits, back.exact, back.better) == ("%", 0.01, 2, True, "down")
    assert back.of(cell("masking", own={"padded_share": 0.25})) == 0.25
    assert back.of(cell("masking")) is None


@pytest.mark.parametrize(
    ("found", "fault"),
    [
        ({"key": "x"}, "my.py:MY is of type dict, not a dynbench.Quantity"),
        (Quantity, "my.py:MY is the class Quantity, not a dynbench.Quantity"),
        (own(measure=None), "my.py:MY: it has neither 'measure' nor 'read'"),
        (own(read=lambda cell: 1.0), "my.py:MY: it has both 'measure' and 'read'"),
        (own(measure=3), "my.py:MY: 'measure' is of type int, not a function"),
        (own(key="Padded Share"), "my.py:MY: key = 'Padded Share'"),
        (own(header=""), "my.py:MY: header = ''"),
        (own(definition=None), "my.py:MY: definition = None"),
        (own(scale=0), "my.py:MY: scale = 0: input should be greater than 0"),
        (own(scale=math.nan), "my.py:MY: scale = nan"),
        (own(better="higher"), "my.py:MY: better = 'higher': input should be 'up' or 'down'"),
        (own(kind="interval"), "my.py:MY: kind = 'interval'"),
        (own(places=("everywhere",)), "my.py:MY: places.0 = 'everywhere'"),
    ],
)
def test_a_bad_own_quantity_is_one_sentence_that_names_what_is_wrong(found: object, fault: str) -> None:
    with pytest.raises(UserError, match=re.escape(fault)) as caught:
        check_quantity(found, "my.py:MY")
    assert "\n" not in str(caught.value)


def test_a_good_own_quantity_is_accepted_as_it_is() -> None:
    mine = own(exact=True, better="down", kind="count", places=("speed",))
    assert check_quantity(mine, "my.py:MY") is mine


@pytest.mark.parametrize("value", [3, 3.0, np.float32(3), np.array(3.0)])
def test_the_value_of_an_own_quantity_is_any_finite_number(value: Any) -> None:
    assert evaluate(own(measure=lambda arm: arm), full(), value) == 3.0
    assert evaluate(own(measure=None, read=lambda c: c.rounds), full(), None) == 20.0


@pytest.mark.parametrize("value", [None, "3", math.nan, math.inf, [1, 2], np.zeros(2)])
def test_what_is_no_finite_number_is_unavailable_with_the_reason(value: Any) -> None:
    found = evaluate(own(measure=lambda arm: value), full(), None)
    assert isinstance(found, Unavailable)
    assert re.fullmatch(r"measure of padded_share returned .*, not a finite number", found.unavailable)


def test_a_function_that_raises_costs_its_number_only() -> None:
    found = evaluate(own(measure=lambda arm: 1 / 0), full(), None)
    assert found == Unavailable(unavailable="measure of padded_share raised ZeroDivisionError: division by zero")
    assert evaluate(own(measure=lambda arm: NO), full(), None) == NO
