"""What many workloads say together, on known answers."""

from __future__ import annotations

import pytest

from dynbench.analysis.overview import (
    MANY_ENOUGH,
    break_evens,
    by_batch_size,
    kind_of_decision,
    quartiles,
    spearman,
    summarise,
)
from dynbench.store.schema import Memory
from tests.report import made_up


@pytest.mark.parametrize(
    ("points", "kind"),
    [
        ({"Skip": 17}, "skips parts"),
        ({"Ahead": 1, "Skip": 54}, "skips parts"),
        ({"Loop": 1, "Exits": 1, "Skip": 5}, "exits early"),
        ({"Skip": 1, "Route": 4}, "routes to experts"),
        ({"Loop": 1}, "iterates"),
        ({}, "decides nothing"),
    ],
)
def test_the_kind_of_decision_follows_from_the_points(points: dict[str, int], kind: str) -> None:
    assert kind_of_decision(points) == kind


def test_rank_correlation_on_known_pairs() -> None:
    up = [(float(i), float(i * i)) for i in range(MANY_ENOUGH)]
    r, low, high = spearman(up) or (0.0, 0.0, 0.0)
    assert r == pytest.approx(1) and low <= r <= high + 1e-9
    down = spearman([(a, -b) for a, b in up])
    assert down is not None and down[0] == pytest.approx(-1)
    known = spearman([(1, 2), (2, 1), (3, 4), (4, 3), (5, 6), (6, 5), (7, 8), (8, 7)])
    assert known is not None and known[0] == pytest.approx(1 - 6 * 8 / (8 * 63))  # sum of squared rank differences: 8
    assert spearman(up[:-1]) is None  # too few
    assert spearman([(1.0, float(i)) for i in range(MANY_ENOUGH)]) is None  # nothing to rank


def test_a_summary_has_savings_gain_and_standings() -> None:
    (found,) = summarise([made_up.info()], made_up.group(1) + made_up.group(32))
    required = 0.05 + 0.95 * 0.69
    assert found.saved == pytest.approx(1 - required)
    assert found.gain == pytest.approx(0.901 - 0.905)
    assert found.promised == pytest.approx(1 / 0.7)
    assert set(found.at) == {1, 32}
    last = found.at[32]
    assert last.outcome == "faster" and last.best is not None and last.best.speedup.value == 1.21
    assert last.efficiency == pytest.approx(1.21 * required)
    assert last.memory == pytest.approx(1.0)


def test_made_up_decisions_say_nothing_about_accuracy() -> None:
    cells = [
        c.model_copy(update={"decisions": c.decisions.model_copy(update={"source": "synthetic"})})
        for c in made_up.group(8)
    ]
    (found,) = summarise([made_up.info()], cells)
    assert found.gain is None and found.accuracy is None


def test_memory_is_compared_with_the_baseline_of_the_same_group() -> None:
    cells = [
        c.model_copy(update={"memory": Memory(peak_bytes=10e6)}) if c.arm.strategy == "compaction" else c
        for c in made_up.group(32)
    ]
    (found,) = summarise([made_up.info()], cells)
    assert found.at[32].memory == pytest.approx(10 / 31.5)


def test_outcomes_are_counted_by_batch_size() -> None:
    infos = [made_up.info(), made_up.info(made_up.CASCADED)]
    slow = [
        c.model_copy(update={"speedups": [made_up.speedup(0.5)]}) if c.arm.kind == "strategy" and c.speedups else c
        for c in made_up.group(8, workload=made_up.CASCADED)
    ]
    (batch,) = by_batch_size(summarise(infos, [*made_up.group(8), *slow]))
    assert batch.outcomes == {"faster": 1, "slower": 1}
    assert batch.rank_correlation is None


def test_a_workload_without_a_timed_network_has_no_standing() -> None:
    (found,) = summarise([made_up.info()], [made_up.refused("cascading", 8, "no Loop")])
    assert found.judged is None and found.saved is None


def test_break_evens_of_the_sweep_are_those_of_the_best_strategy() -> None:
    (found,) = break_evens({made_up.SKIPPED: made_up.info()}, made_up.sweep())
    assert found.strategy == "compaction" and found.rate == pytest.approx(0.8)


def test_quartiles() -> None:
    assert quartiles([]) is None
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 3.0, 4.0)
