"""T(n) from the walks of several groups, on machines whose pace is made up."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dynbench.analysis.pooling import Outside, between_of, pooled
from dynbench.store.scaling import Constants, Network
from dynbench.store.walks import Walked
from tests.analysis.scalings import CONSTANTS, SIZES, networks, part

PACES = {"a": 0.5, "b": 1.0, "c": 3.0}


def slowed(network: Network, pace: float) -> Network:
    times = ("us", "low_us", "high_us")
    parts = [
        p.model_copy(update={name: [pace * us for us in getattr(p, name)] for name in times}) for p in network.parts
    ]
    return network.model_copy(update={"parts": parts})


def constants(pace: float) -> Constants:
    """Of a machine that is slower by so much: times are longer, rates lower."""
    slower = {
        name: value / pace if name == "moved_bytes_per_s" else value * pace
        for name, value in CONSTANTS.model_dump().items()
    }
    return Constants(**slower)


def walked(group: str, pace: float, known: list[Network] | None = None) -> Walked:
    walks = [slowed(network, pace) for network in known or networks()]
    return Walked(workload="skipnet38", group_id=group, networks=walks, constants=constants(pace))


def test_the_pace_of_each_group_comes_out_and_t_of_n_is_that_of_the_middling_one() -> None:
    found = pooled([walked(group, pace) for group, pace in PACES.items()])
    assert found.paces == pytest.approx(PACES)
    assert found.constants.model_dump() == pytest.approx(CONSTANTS.model_dump())
    own = {p.name: p.us for n in found.networks if n.baseline is None for p in n.parts}
    assert own == {p.name: pytest.approx(p.us) for p in networks()[0].parts}
    assert {n.baseline for n in found.networks} == {n.baseline for n in networks()}


def test_one_disturbed_region_does_not_change_the_pace_much() -> None:
    known = networks()
    gate, body, stem = known[0].parts
    late = known[0].model_copy(update={"parts": [gate, body, stem.model_copy(update={"us": [1e5] + stem.us[1:]})]})
    found = pooled([walked("a", 1.0), walked("b", 1.0), walked("c", 1.0, [late, known[1]])])
    assert found.paces == pytest.approx({"a": 1.0, "b": 1.0, "c": 1.0})


def test_a_network_that_was_walked_in_one_group_alone_is_kept_in_the_common_pace() -> None:
    extra = Network(engine="onnxruntime", parts=[part("(between)", 10, 1, role="points")])
    found = pooled([walked("a", 1.0), walked("b", 2.0, [*networks(), extra]), walked("c", 1.0)])
    (graph,) = (n for n in found.networks if n.engine == "onnxruntime")
    assert graph.parts[0].us == pytest.approx([10 + n for n in SIZES]) and graph.parts[0].role == "points"


def test_without_a_walk_there_is_nothing() -> None:
    with pytest.raises(ValueError, match="no group"):
        pooled([])


FEW = Outside(movings=4, operators=10, bytes=4_000, calls=4)
MANY = Outside(movings=4, operators=10, bytes=128_000, calls=4)
CALLED_US = 4 * CONSTANTS.gather_us + 10 * CONSTANTS.operator_us


def test_a_call_and_a_byte_come_out_of_the_time_between_regions() -> None:
    call_us, us_per_byte = 30.0, 0.001
    fixed, each = 4 * call_us + CALLED_US, us_per_byte * 4_000  # of each item as many bytes
    found = between_of(part("(between)", fixed, each), FEW, MANY, CONSTANTS)
    assert found is not None
    assert found.call_us == pytest.approx(call_us) and found.us_per_byte == pytest.approx(us_per_byte)


def test_what_products_take_between_regions_is_no_time_of_bytes() -> None:
    call_us, us_per_byte, product_us = 30.0, 0.001, 5.0  # of each item
    fixed, each = 4 * call_us + CALLED_US, us_per_byte * 4_000
    few, many = replace(FEW, products_us=product_us), replace(MANY, products_us=32 * product_us)
    found = between_of(part("(between)", fixed, each + product_us), few, many, CONSTANTS)
    assert found is not None
    assert found.call_us == pytest.approx(call_us) and found.us_per_byte == pytest.approx(us_per_byte)


def test_where_several_items_call_more_regions_than_one_a_call_takes_its_part_of_these() -> None:
    found = between_of(part("(between)", 300, 4), replace(FEW, calls=2), replace(MANY, calls=15), CONSTANTS)
    assert found is not None and found.call_us < 300 / 15


@pytest.mark.parametrize("each", [-0.5, 1.0])  # 1 us an item, for 4000 bytes, is not what bytes take
def test_where_bytes_are_too_few_to_be_seen_they_take_what_the_device_needs(each: float) -> None:
    few, many = (replace(outside, bytes=outside.bytes // 1000) for outside in (FEW, MANY))
    time = part("(between)", 200, each)
    found = between_of(time, few, many, CONSTANTS)
    assert found is not None and found.us_per_byte == pytest.approx(1e6 / CONSTANTS.moved_bytes_per_s)
    assert found.call_us == pytest.approx((float(np.median(time.us)) - CALLED_US) / 4, rel=0.05)


def test_without_calls_or_with_nothing_left_for_them_it_is_not_known() -> None:
    assert between_of(part("(between)", 100, 1), Outside(1, 1, 10, 0), MANY, CONSTANTS) is None
    assert between_of(part("(between)", 1e-3, 1e-6), FEW, MANY, CONSTANTS) is None
