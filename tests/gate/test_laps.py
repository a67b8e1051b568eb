"""How a check spends its time, with processes that are made up."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from dynbench.gate.laps import MIN_LAPS, MIN_SETS_FIRST, MIN_SETS_FRESH, WARM_UP_LAPS, Laps, own_cores
from dynbench.gate.trees import CannotTell
from dynbench.store.schema import Arm

Call = tuple[int, int, dict[str, Any]]  # set, participant, what was asked
COMPACTION = Arm(kind="strategy", strategy="compaction").model_dump()


class FakeProcess:
    """Says how long a batch takes."""

    def __init__(
        self, who: int, number: int, calls: list[Call], batch_ns: float, batches: int, random: dict[str, str]
    ) -> None:
        self.who, self.number, self.calls, self.batch_ns, self.batches = who, number, calls, batch_ns, batches
        self.asked, self.random = "", random

    def send(self, do: str, **arguments: Any) -> None:
        self.asked = do
        if do == "exact":  # another answer in every process of a network whose weights are drawn anew
            answer = self.number if "answers" in self.random else self.who
            save_file({"0.0": np.array([answer, 1.0])}, arguments["answers_to"])

    def receive(self) -> dict[str, Any]:
        if self.asked == "exact":
            random = {what: how for what, how in self.random.items() if what == "decisions"}
            return {"facts": {"decisions": f"of {self.who}"}, "random": random}
        cell = {"arm": COMPACTION, "batch_size": 4, "batches": self.batches}
        return {"cells": [cell], "stream_hash": "abc", "foreign": []}

    def ask(self, _: str, **what: Any) -> dict[str, Any]:
        self.calls.append((self.number, self.who, what))
        done = min(what["count"], self.batches - what["first"])
        return {"ns": self.batch_ns * (1 + self.who) * done}

    def close(self) -> None:
        self.batch_ns = float("nan")  # asked again it would show


class FakeRevision:
    def __init__(self, who: int, *rest: Any) -> None:
        self.rest, self.made, self.who = rest, 0, who
        self.name, self.request = f"participant {who}", {}  # type: ignore[var-annotated]

    def fork(self) -> FakeProcess:
        self.made += 1
        return FakeProcess(self.who, self.made, *self.rest)


def measured(
    tmp_path: Path, batch_ns: float, batches: int, random: dict[int, dict[str, str]] | None = None
) -> tuple[Laps, list[Call]]:
    calls: list[Call] = []
    revisions: list[Any] = [
        FakeRevision(who, calls, batch_ns, batches, (random or {}).get(who, {})) for who in range(3)
    ]
    laps = Laps(revisions, tmp_path, time.monotonic(), 0.0, 1, "cpu", lambda text: None)
    laps.first(0, 1)
    return laps, calls


def test_where_the_time_is_over_the_least_is_measured_in_fresh_processes(tmp_path: Path) -> None:
    laps, calls = measured(tmp_path, 1e6, 4)
    assert len(laps.series.sets) == laps.first_sets == MIN_SETS_FIRST
    laps.fresh([0])
    assert len(laps.series.sets) == MIN_SETS_FIRST + MIN_SETS_FRESH
    assert {number for number, _, _ in calls} == set(range(1, MIN_SETS_FIRST + MIN_SETS_FRESH + 1))
    assert all(s[0].shape == (MIN_LAPS, 3) for s in laps.series.sets)
    np.testing.assert_array_equal(laps.series.sets[-1][0], [[4e6, 8e6, 12e6]] * MIN_LAPS)
    np.testing.assert_array_equal(laps.series.ratios(0, 2, MIN_SETS_FIRST), [[3.0] * MIN_LAPS] * MIN_SETS_FRESH)
    assert (
        [c.name for c in laps.cells] == ["compaction, batch 4"]
        and laps.stream_hash == "abc"
        and len(laps.witnesses) == len(laps.series.sets)
    )


def test_what_the_clock_does_not_say_is_asked_once(tmp_path: Path) -> None:
    laps, _ = measured(tmp_path, 1e6, 4)
    assert [{who: found.facts for who, found in cell.items()} for cell in laps.exact] == [
        {0: {"decisions": "of 0"}, 1: {"decisions": "of 1"}}
    ]


def test_the_base_is_compared_with_itself_before_the_head_is_accused(tmp_path: Path) -> None:
    how = {"decisions": "at block0"}
    with pytest.raises(CannotTell, match=r"participant 0 is not deterministic: .* in its decisions \(at block0\)"):
        measured(tmp_path, 1e6, 4, {0: how, 1: how})
    with pytest.raises(CannotTell, match=r"participant 0 is not deterministic: .* in its answers \(by up to"):
        measured(tmp_path, 1e6, 4, {0: {"answers": "from process to process"}})
    laps, _ = measured(tmp_path, 1e6, 4, {1: how})
    assert [found.random for found in laps.exact[0].values()] == [{}, how]


def test_nobody_follows_itself_and_sets_differ_in_their_order(tmp_path: Path) -> None:
    laps, calls = measured(tmp_path, 40e6, 3)
    laps.fresh([0])
    orders = []
    for number in range(2, MIN_SETS_FIRST + MIN_SETS_FRESH + 1):
        turns = [who for n, who, _ in calls if n == number]
        assert all(a != b for a, b in zip(turns, turns[1:], strict=False))
        assert turns == turns[:3] * (3 * (WARM_UP_LAPS + MIN_LAPS))
        orders.append(tuple(turns[:3]))
    assert len(set(orders)) == len(orders)


@pytest.mark.parametrize(
    ("batch_ns", "batches", "turns", "warm"),
    [(10e6, 7, [(0, 3), (3, 3), (6, 3)], True), (1e6, 4, [(0, 4)], True), (40e6, 2, [(0, 1), (1, 1)], False)],
    ids=["three batches a turn", "all batches in one turn", "long batches need no warming"],
)
def test_a_turn_is_long_enough_for_the_clock(
    batch_ns: float, batches: int, turns: list[tuple[int, int]], warm: bool, tmp_path: Path
) -> None:
    _, calls = measured(tmp_path, batch_ns, batches)
    mine = [what for number, who, what in calls if (number, who) == (2, 0)]
    assert [(w["first"], w["count"]) for w in mine] == turns * (WARM_UP_LAPS + MIN_LAPS)
    assert {w["warm"] for w in mine} == {warm}


def test_a_process_stays_on_no_more_cores_than_it_has_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {5, 0, 3}, raising=False)
    assert own_cores(1) == [5] and own_cores(2) == [3, 5] and own_cores(3) is None
    monkeypatch.delattr("os.sched_getaffinity")
    assert own_cores(1) is None
