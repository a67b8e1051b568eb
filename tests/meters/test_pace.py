"""The pace of the machine around arms, on logs whose pace is made up."""

from __future__ import annotations

import numpy as np
import pytest

from dynbench.meters.pace import PaceLog

WORK = {"small": 10.0, "large": 200.0}
ARMS = {"a": 1000.0, "b": 300.0}


def logged(pace: list[float]) -> tuple[PaceLog, dict[str, list[float]]]:
    """A round for each pace: each arm between two pieces of work."""
    log, totals = PaceLog(), {arm: [] for arm in ARMS}  # type: dict[str, list[float]]
    for now in pace:
        for arm, ns in ARMS.items():
            for what, spent in WORK.items():
                log.piece(what, spent * now)
            log.arm(arm)
            totals[arm].append(ns * now)
            for what, spent in WORK.items():
                log.piece(what, spent * now)
    return log, totals


def test_a_machine_that_is_always_alike_has_the_pace_1() -> None:
    log, totals = logged([1.0] * 5)
    assert log.paces(totals) == pytest.approx({"a": 1.0, "b": 1.0})


def test_what_arms_took_in_a_slow_phase_is_the_pace_of_it() -> None:
    log, totals = logged([1.0, 1.0, 1.0, 1.0, 1.0])
    slow = {"a": [3 * t for t in totals["a"]], "b": totals["b"]}
    assert log.paces(slow)["a"] == pytest.approx(1.0)  # an arm that is slower by itself is not excused

    log, totals = logged([2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0])
    found = log.paces({"a": totals["a"][:2], "b": totals["b"]})
    assert found["a"] == pytest.approx(2.0) and found["b"] == pytest.approx(1.0)


def test_a_piece_that_was_interrupted_is_no_slow_phase() -> None:
    log = PaceLog()
    for n in range(4):
        for what, spent in WORK.items():
            log.piece(what, spent)
        log.arm("a")
        log.piece("small", 1e6 if n % 2 else WORK["small"])
        log.piece("large", WORK["large"])
    assert log.paces({"a": [5.0] * 4}) == pytest.approx({"a": 1.0})


def test_nothing_is_known_of_an_arm_that_was_not_logged_as_often_as_it_ran() -> None:
    log, totals = logged([1.0, 2.0])
    assert log.paces({"a": [*totals["a"], 5.0], "c": np.array([1.0]), "b": []}) == {"a": 1.0, "c": 1.0, "b": 1.0}
    assert PaceLog().paces({"a": [1.0]}) == {"a": 1.0}
