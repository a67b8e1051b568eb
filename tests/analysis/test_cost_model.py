"""The cost model on cells whose times follow from a known law."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynbench.analysis.cost_model import (
    LEAST_HELD_OUT,
    TERMS,
    TRUST_OF_ONE,
    Errors,
    Levers,
    break_even,
    crossing,
    errors,
    fit,
    held_out,
    model_of,
    products_us,
    terms,
    time_of,
    usage_of,
)
from dynbench.store.scaling import Between, Rate
from dynbench.store.schema import Arm, Cell
from tests.analysis.cells import RESNET, latency
from tests.analysis.scalings import BLOCKS, CONSTANTS, ITEMS, by_law, graph, made_up, networks, part, usage

EAGER = ("eager", "host")


def test_a_known_law_is_recovered_on_cells_that_the_fit_did_not_see() -> None:
    cells, scaling = made_up()
    model = model_of(cells, scaling)
    found = errors(model.predictions)
    assert isinstance(found, Errors)
    assert found.median < 0.02 and found.near == 1.0
    assert {p.held_out for p in model.predictions} == {True, False}


def test_with_enough_cells_the_factors_of_the_law_come_out() -> None:
    law = dict(zip(TERMS, (1.1, 0.8, 1.4, 1.0, 1.2, 1.9, 0.6), strict=True))
    table = np.random.default_rng(0).uniform(10, 1000, (4000, len(TERMS)))
    rows = [dict(zip(TERMS, row, strict=True)) for row in table.tolist()]
    found = fit(rows, [sum(law[name] * us for name, us in row.items()) for row in rows])
    assert found == pytest.approx(law, rel=0.02)


def test_one_disturbed_cell_does_not_move_the_fit() -> None:
    cells, scaling = made_up()
    before = model_of(cells, scaling)
    fitted = [c for c in cells if c.cell_id not in held_out(cells)]
    victim = max(fitted, key=lambda c: c.latency.stream_ms if c.latency else 0.0)
    assert victim.latency is not None
    slow = victim.model_copy(update={"latency": latency(20 * victim.latency.stream_ms)})
    after = model_of([slow if c is victim else c for c in cells], scaling)
    found = errors(after.predictions)
    assert isinstance(found, Errors) and found.median < 0.1
    assert before.factors.keys() == after.factors.keys() == {EAGER}


def test_the_split_looks_at_no_time_and_holds_out_sizes_rates_and_other_traces() -> None:
    cells, _ = made_up()
    out = held_out(cells)
    other = [c.model_copy(update={"latency": latency(1.0)}) for c in cells]
    assert held_out(other) == out == held_out(cells[::-1])
    seen = {(c.batch_size, c.decisions.label) for c in cells if c.cell_id not in out}
    assert seen == {
        (1, "learned"),
        (8, "learned"),
        (32, "synthetic keep=0.25"),
        (32, "synthetic keep=0.75"),
    }


def test_of_two_batch_sizes_both_are_seen_where_keep_rates_tell_the_rest() -> None:
    cells = [c for c in made_up()[0] if c.batch_size in (1, 32)]
    out = held_out(cells)
    seen = {(c.batch_size, c.decisions.label) for c in cells if c.cell_id not in out}
    assert seen == {(1, "learned"), (32, "synthetic keep=0.25"), (32, "synthetic keep=0.75")}
    learned = [c for c in cells if c.decisions.label == "learned"]
    assert {c.batch_size for c in learned if c.cell_id in held_out(learned)} == {32}


def test_the_fit_never_sees_a_cell_that_is_held_out() -> None:
    cells, scaling = made_up()
    out = held_out(cells)
    spoilt = [c.model_copy(update={"latency": latency(1e6)}) if c.cell_id in out else c for c in cells]
    assert model_of(spoilt, scaling).factors == model_of(cells, scaling).factors


def test_too_few_held_out_cells_are_a_sentence_instead_of_a_figure() -> None:
    cells, scaling = made_up()
    model = model_of(cells, scaling)
    few = [p for p in model.predictions if p.held_out][: LEAST_HELD_OUT - 1]
    said = errors(few)
    assert isinstance(said, str) and "4 held-out cells are too few" in said
    assert "0 held-out cells" in str(errors([]))


def test_with_too_few_cells_nothing_is_fitted_and_what_was_measured_speaks_for_itself() -> None:
    cells, scaling = made_up()
    model = model_of(cells[:2], scaling)
    assert model.factors == {} and len(model.predictions) == 2
    for found in model.predictions:
        assert found.parts_us == terms(found.usage, networks()[0], CONSTANTS)


def test_cells_of_another_workload_or_without_a_time_are_left_out() -> None:
    cells, scaling = made_up()
    others = [c.model_copy(update={"workload": "another"}) for c in cells]
    failed = [c.model_copy(update={"status": "failed"}) for c in cells]
    assert model_of([*others, *failed], scaling).predictions == []


def test_a_group_in_which_the_machine_was_slower_is_no_error_of_the_model() -> None:
    cells, scaling = made_up()
    late = {cells[0].group_id, cells[-1].group_id}
    slow = [
        c.model_copy(update={"latency": latency(2 * c.latency.stream_ms)}) if c.group_id in late and c.latency else c
        for c in cells
    ]
    known = scaling.model_copy(update={"paces": dict.fromkeys(late, 2.0)})
    found, before = model_of(slow, known), model_of(cells, scaling)
    assert found.factors == before.factors
    assert [p.ratio for p in found.predictions] == pytest.approx([p.ratio for p in before.predictions])
    unaware = errors(model_of(slow, scaling).predictions)
    assert isinstance(unaware, Errors) and unaware.p90 > 0.25


def test_a_region_without_its_time_is_not_predicted() -> None:
    cells, scaling = made_up()
    less = scaling.networks[0].model_copy(update={"parts": scaling.networks[0].parts[1:]})
    broken = scaling.model_copy(update={"networks": [less, scaling.networks[1]]})
    assert model_of(cells, broken).predictions == []


@given(st.integers(1, 200), st.integers(1, 200), st.lists(st.floats(1, 1e6), min_size=6, max_size=6))
def test_more_items_never_take_less_time(n: int, m: int, us: list[float]) -> None:
    noisy = part("body", 1, 1, us=us, low_us=us, high_us=us)
    a, b = (time_of(noisy, k, CONSTANTS) for k in sorted((n, m)))
    assert 0 < a <= b * (1 + 1e-12) and math.isfinite(b)


@given(
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1, 2, 4, 8, 16, 32]),
    st.floats(0.01, 1.0),
)
def test_no_lever_makes_anything_slower(a: bool, b: bool, c: bool, d: bool, size: int, keep: float) -> None:
    seen = usage("compaction", size, keep, "learned")
    asked = Levers(no_wait=a, no_launch=b, free_gather=c, known_ahead=d)
    assert 0 < by_law(seen, asked) <= by_law(seen)
    both = replace(asked, no_wait=True, known_ahead=True)
    assert by_law(seen, both) <= by_law(seen, asked)


def test_perfect_small_batches_are_proportional_and_whole_ones_unchanged() -> None:
    body = networks()[0].parts[1]
    perfect = Levers(perfect_small_batches=True)
    assert time_of(body, 32, CONSTANTS, perfect) == pytest.approx(time_of(body, 32, CONSTANTS))
    assert time_of(body, 8, CONSTANTS, perfect) == pytest.approx(time_of(body, 32, CONSTANTS) / 4)


def test_between_sizes_time_is_linear_and_beyond_the_largest_it_goes_on() -> None:
    body = part("body", 60, 40)
    assert time_of(body, 3, CONSTANTS) == pytest.approx(180)
    assert time_of(body, 64, CONSTANTS) == pytest.approx(60 + 64 * 40)


def test_in_a_graph_nothing_waits_and_what_lies_between_its_regions_has_a_time_of_its_own() -> None:
    seen = usage("compaction", 8, 0.5, "learned")
    batches = ITEMS / 8
    found = terms(seen, graph(), CONSTANTS)
    assert found["waiting"] == found["operators"] == 0
    assert found["points"] == pytest.approx(batches * (8 + 0.1 * 8))
    assert found["moving"] == pytest.approx(batches * (4 + 2 * 8))
    assert found["body"] == pytest.approx(batches * BLOCKS * (10 + 30 * 4))  # half of 8 items, and no stem
    assert terms(seen, graph(), CONSTANTS, Levers(free_gather=True, known_ahead=True))["moving"] == 0


def test_in_place_python_goes_by_calls_of_regions_and_bytes_by_their_own_rate() -> None:
    seen = usage("compaction", 8, 0.5, "learned")
    known = Between(call_us=7.0, us_per_byte=0.001)
    found, before = (terms(seen, networks()[0], CONSTANTS, between=b) for b in (known, None))
    assert found["points"] == pytest.approx(7.0 * (ITEMS / 8) * (2 * BLOCKS + 1))
    assert before["points"] == pytest.approx(CONSTANTS.point_us * seen.points)
    assert found["moving"] == pytest.approx(seen.movings * CONSTANTS.gather_us + 0.001 * seen.moved_bytes)
    assert {name: us for name, us in found.items() if name in ("body", "decide", "waiting")} == {
        name: us for name, us in before.items() if name in ("body", "decide", "waiting")
    }


def test_products_take_what_a_flop_takes_in_operators_of_their_size() -> None:
    rate = Rate(flops=[1e3, 1e5], us_per_flop=[0.01, 0.002])
    assert products_us(3_000, 3, rate) == pytest.approx(3_000 * 0.01)
    assert products_us(300_000, 3, rate) == pytest.approx(300_000 * 0.002)
    assert products_us(30_000, 3, rate) == pytest.approx(30_000 * 0.006)  # half way, by their logarithm
    assert products_us(30, 3, rate) == pytest.approx(30 * 0.01)
    assert products_us(30, 3, None) == products_us(0, 0, rate) == 0
    seen = usage("compaction", 8, 0.5, "learned", products=3, flops=300_000)
    found = terms(seen, networks()[0], CONSTANTS, rate=rate)
    assert found["products"] == pytest.approx(600)
    assert terms(seen, networks()[0], CONSTANTS, Levers(slower=2.0), rate=rate)["products"] == pytest.approx(1200)


def test_bytes_between_calls_with_what_was_decided_may_have_their_own_rate() -> None:
    _, scaling = made_up()
    both = scaling.model_copy(
        update={
            "between": Between(call_us=10.0, us_per_byte=0.01),
            "between_decided": Between(call_us=10.0, us_per_byte=0.001),
        }
    )
    for decided, us_per_byte in ((True, 0.001), (False, 0.01)):
        seen = usage("compaction", 8, 0.5, "learned", decided=decided, operator_bytes=1000, operators=0)
        found = model_of([], both).predict(seen.arm, seen)
        assert found is not None and found.parts_us["operators"] == pytest.approx(1000 * us_per_byte)


def test_what_was_decided_is_predicted_from_calls_with_what_was_decided() -> None:
    _, scaling = made_up()
    slow = part("body", 500, 100, operators=5)
    own = networks()[0]
    decided = own.model_copy(update={"decided": True, "parts": [slow if p.name == "body" else p for p in own.parts]})
    both = scaling.model_copy(update={"networks": [*scaling.networks, decided]})
    seen = usage("compaction", 8, 0.5, "learned", decided=True)
    plain, other = model_of([], scaling).predict(seen.arm, seen), model_of([], both).predict(seen.arm, seen)
    assert plain is not None and other is not None
    calls = BLOCKS * ITEMS // 8
    assert other.parts_us["body"] - plain.parts_us["body"] == pytest.approx(calls * (440 + 60 * 4))
    of_all = usage("masking", 8, 0.5, "learned")
    assert model_of([], both).predict(of_all.arm, of_all) == model_of([], scaling).predict(of_all.arm, of_all)


def test_factors_of_one_batch_size_stay_closer_to_1() -> None:
    seen = [usage(name, 1, keep, "learned") for name in ("masking", "compaction") for keep in (0.25, 0.5, 1.0)]
    rows = [terms(one, networks()[0], CONSTANTS) for one in seen]
    slow_us = [2 * sum(row.values()) for row in rows]
    free, held = fit(rows, slow_us), fit(rows, slow_us, trust=TRUST_OF_ONE)
    assert 1 < held["body"] < free["body"] < 2.5 and held["body"] - 1 < 0.6 * (free["body"] - 1)


def test_a_graph_is_predicted_from_its_own_times_and_only_where_these_are_known() -> None:
    cells, scaling = made_up()
    way = {"engine": "onnxruntime", "control": "graph"}
    arm = Arm(kind="strategy", strategy="compaction", **way)
    seen = usage("compaction", 8, 0.5, "learned")
    known = scaling.model_copy(update={"networks": [*networks(), graph()]})
    assert model_of(cells, scaling).predict(arm, seen) is None
    assert (
        model_of(cells, known).predict(arm, seen) is None
    )  # the stem calls operators, and the graph has no time of it
    stem = part("stem", 20, 10, operators=0)
    own = networks()[0]
    free = own.model_copy(update={"parts": [*own.parts[:2], stem]})
    found = model_of(cells, known.model_copy(update={"networks": [free, graph()]})).predict(arm, seen)
    assert found is not None and found.predicted_us == pytest.approx(sum(terms(seen, graph(), CONSTANTS).values()))
    single = usage("compaction", 1, 1.0, "learned")
    assert model_of(cells, known).predict(arm, single) is None  # a graph for a single item is another one


def test_in_micro_batches_an_arm_does_what_it_does_at_that_batch_size() -> None:
    cells, scaling = made_up()
    cell = next(c for c in cells if c.batch_size == 32 and c.arm.kind == "strategy" and not c.decisions.sweep)

    def in_parts(size: int) -> Cell:
        form = f"micro_batches_{size}"
        way = {"form": form, "engine": "onnxruntime", "control": "graph"}
        return cell.model_copy(update={"arm": cell.arm.model_copy(update=way)})

    whole, parts = usage_of(cell, scaling), usage_of(in_parts(8), scaling)
    assert whole is not None and parts is not None and (whole.batch_size, parts.batch_size) == (32, 8)
    assert usage_of(in_parts(7), scaling) is None  # nobody watched it
    own = networks()[0]
    free = own.model_copy(update={"parts": [*own.parts[:2], part("stem", 20, 10, operators=0)]})
    known = model_of(cells, scaling.model_copy(update={"networks": [free, graph()]}))
    predicted = known.predict(in_parts(8).arm, parts)
    plain = known.predict(in_parts(8).arm.in_whole_batches, parts)
    assert predicted is not None and plain is not None and predicted.predicted_us == plain.predicted_us


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0, -1.0])
def test_a_time_that_is_none_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        fit([dict.fromkeys(TERMS, 1.0)], [bad])


def test_a_term_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        fit([dict.fromkeys(TERMS, math.nan)], [1.0])
    with pytest.raises(ValueError, match="for each"):
        fit([], [])


def test_break_even_is_where_the_predicted_speedup_falls_to_1() -> None:
    assert crossing([(0.25, 2.0), (0.75, 1.0), (1.0, 0.8)]) == pytest.approx(0.75)
    assert crossing([(0.0, 3.0), (1.0, 0.5)]) == pytest.approx(0.8)
    assert crossing([(0.2, 0.9), (1.0, 0.5)]) is None
    assert crossing([(0.2, 3.0), (1.0, 1.1)]) == 1.0
    cells, scaling = made_up()
    found = {line.strategy: line for line in break_even(model_of(cells, scaling), RESNET)}
    assert found["masking"].rates == {4: None, 8: None, 32: None}
    rates = [found["compaction"].rates[b] for b in (4, 8, 32)]
    assert all(r is not None and 0 < r <= 1 for r in rates)
    assert rates == sorted(rates, key=lambda r: r or 0.0)  # the larger the batch, the less a call matters


def ids(cells: list[Cell]) -> set[str]:
    return {c.cell_id for c in cells}


@given(st.permutations(range(8)))
def test_some_cells_are_held_out_but_never_all(order: list[int]) -> None:
    cells, _ = made_up()
    some = [cells[i] for i in order]
    assert held_out(some) < ids(some)
