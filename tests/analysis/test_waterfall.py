"""Waterfalls of made-up times whose factors are known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from dynbench.analysis.waterfall import Arms, Timed, disagreements, largest_loss, sentence, waterfall
from dynbench.store.schema import Phases, Waterfall

ROUNDS = 21
DENSE, REQUIRED = 100.0, 50.0  # FLOPs per item


def timed(ms: float, flops: float | None = None, *, noise: float = 0.0, seed: int = 0) -> Timed:
    """So many ms each round, times what all arms of a round have in common, and noise of its own."""
    common = np.random.default_rng(99).lognormal(0, 0.3, ROUNDS)  # a slow machine is slow for all: it cancels
    own = np.random.default_rng(seed).lognormal(0, noise, ROUNDS) if noise else np.ones(ROUNDS)
    return Timed(np.round(ms * 1e9 * common * own).astype(np.int64), flops)


def arms(noise: float = 0.0) -> Arms:
    """Dense 100 ms; at half the work 60 ms for want of items; +6 moving, +9 deciding, +5 waiting: 80 ms in all."""
    return Arms(
        name="plain",
        baseline=timed(100, DENSE, noise=noise, seed=1),
        dynamic=timed(80, 55.0, noise=noise, seed=2),
        without={
            "everything": timed(60, REQUIRED, noise=noise, seed=3),
            "deciding": timed(66, REQUIRED, noise=noise, seed=4),
            "waiting": timed(75, 55.0, noise=noise, seed=5),
        },
        twin=None,
        required=REQUIRED,
    )


def found(given: Arms, phases: Phases | None = None) -> Waterfall:
    made = waterfall(given, phases)
    assert made is not None
    return made


def values(given: Waterfall) -> dict[str, float]:
    return {f.name: f.value for f in given.factors}


def test_factors_are_the_ratios_that_were_put_in() -> None:
    got = found(arms())
    wanted = {"surplus": 1, "fewer_items": 1.2, "moving": 1.1, "deciding": 75 / 66, "waiting": 80 / 75, "rest": 1}
    assert values(got) == pytest.approx(wanted)
    assert (got.ideal, got.speedup, got.baseline) == (pytest.approx(2), pytest.approx(1.25), "plain")
    assert all(f.low == pytest.approx(f.value) == f.high for f in got.factors)


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.2])
def test_the_product_is_exactly_ideal_over_speedup(noise: float) -> None:
    got = found(arms(noise))
    assert math.prod(f.value for f in got.factors) == pytest.approx(got.ideal / got.speedup, rel=1e-12)
    assert all(f.low <= f.value <= f.high for f in got.factors)


def test_intervals_hold_what_was_put_in() -> None:
    got = {f.name: f for f in found(arms(0.02)).factors}
    for name, wanted in {"fewer_items": 1.2, "moving": 1.1, "deciding": 75 / 66, "waiting": 80 / 75}.items():
        assert got[name].low <= wanted <= got[name].high
        assert 1.002 < got[name].high / got[name].low < 1.1


def test_surplus_is_what_is_executed_beyond_what_is_required() -> None:
    given = arms()
    masked = {"everything": timed(104, DENSE), "deciding": timed(110, DENSE)}
    got = found(replace(given, dynamic=timed(121, DENSE), without=masked, waits=False))
    assert values(got) == pytest.approx(
        {"surplus": 2, "fewer_items": 1.04, "moving": 110 / 104, "deciding": 1.1, "rest": 1}
    )


def test_the_rest_is_another_networks_speed_where_the_twin_is_not_the_baseline() -> None:
    got = found(replace(arms(), twin=timed(130, DENSE)))
    assert values(got)["rest"] == pytest.approx(1.3)
    assert values(got)["fewer_items"] == pytest.approx(1.2 / 1.3)
    assert "static twin over plain" in got.factors[-1].how


def test_the_baseline_in_the_engine_of_the_arm_is_a_factor_and_takes_the_place_of_the_baseline() -> None:
    got = found(replace(arms(), here=timed(125, DENSE)))
    wanted = {"fewer_items": 1.2 / 1.25, "moving": 1.1, "deciding": 75 / 66, "waiting": 80 / 75, "engine": 1.25}
    assert values(got) == pytest.approx({"surplus": 1, **wanted, "rest": 1})
    given = arms()
    graph = replace(given, without={"deciding": given.without["deciding"]}, waits=False, surplus=1.0)
    got = found(replace(graph, here=timed(125, DENSE)))
    assert values(got) == pytest.approx({"surplus": 1, "deciding": 80 / 66, "engine": 1.25, "rest": 1.32 / 1.25})
    assert "plain in the engine of the dynamic network" in got.factors[2].how
    both = found(replace(arms(), here=timed(125, DENSE), twin=timed(130, DENSE)))
    assert values(both)["rest"] == pytest.approx(1.3 / 1.25)
    assert both.factors[-1].how == "the static twin over plain in the same engine, time per FLOP"


def test_without_a_control_its_factor_goes_to_the_next_and_says_so() -> None:
    given = arms()
    few = {part: arm for part, arm in given.without.items() if part != "waiting"}
    got = found(replace(given, without=few))
    assert values(got)["deciding"] == pytest.approx(80 / 66) and "waiting" not in values(got)
    assert "deciding and waiting and launching together" in next(f.how for f in got.factors if f.name == "deciding")


def test_of_a_graph_the_rest_is_what_no_control_tells_apart() -> None:
    given = arms()
    got = found(replace(given, without={"deciding": given.without["deciding"]}, waits=False, surplus=1.0))
    assert values(got) == pytest.approx({"surplus": 1, "deciding": 80 / 66, "rest": 1.32})
    assert got.factors[-1].how == "fewer items per call and moving items: no control tells them apart here"


def test_nothing_is_explained_without_controls_or_flops() -> None:
    given = arms()
    assert waterfall(replace(given, without={})) is None
    assert waterfall(replace(given, baseline=timed(100))) is None


def test_a_network_that_saves_nothing_has_no_loss() -> None:
    flat = Arms(
        name="plain",
        baseline=timed(100, DENSE, noise=0.03, seed=1),
        dynamic=timed(100, DENSE, noise=0.03, seed=2),
        without={
            part: timed(100, DENSE, noise=0.03, seed=3 + i)
            for i, part in enumerate(("everything", "deciding", "waiting"))
        },
        twin=None,
        required=DENSE,
    )
    got = found(flat)
    assert largest_loss(got) is None
    assert "controls tell no loss apart from none" in sentence("compaction", got)


def test_the_sentence_names_the_largest_loss() -> None:
    assert largest_loss(found(arms())) == found(arms()).factors[1]
    said = sentence("compaction", found(arms()))
    assert said.startswith("Of an ideal of 2.00x, compaction reached 1.25x against plain; ")
    assert said.endswith("the largest loss is fewer items per call: 1.20x (95 % CI 1.20 to 1.20).")


def test_a_profile_that_says_otherwise_is_a_warning_with_both() -> None:
    agrees = Phases(decide_ms=11, gather_ms=4, scatter_ms=4, sync_ms=6, body_ms=75)
    assert disagreements(found(arms(), agrees), 0.01) == []
    differs = agrees.model_copy(update={"gather_ms": 40.0})
    (warning,) = disagreements(found(arms(), differs), 0.01)
    assert warning.id == "DB-WHY-01"
    assert warning.text.startswith("moving items takes 7 % of the time by controls (7 to 8 %)")
    assert warning.text.endswith("32 % by the profile")
    assert disagreements(found(arms(), differs), 0.5) == []  # nothing that coarse a measurement could tell


def test_leaving_out_moving_alone_is_said_beside() -> None:
    given = arms()
    got = found(replace(given, without={**given.without, "moving": timed(72)}))
    assert "leaving out moving alone saves 10 % of the time" in next(f.how for f in got.factors if f.name == "moving")


def test_arms_of_different_rounds_do_not_pair_up() -> None:
    given = arms()
    with pytest.raises(ValueError, match="pair up"):
        waterfall(replace(given, dynamic=Timed(given.dynamic.totals[:-1])))
