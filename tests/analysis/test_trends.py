"""What is followed of a cell over its history, and what is told beside a change."""

from __future__ import annotations

from dynbench.analysis.trends import FEWEST, changes, values
from dynbench.store.history import Key, Point, RecordedRun, Series
from dynbench.store.schema import Arm, Speedup

KEY = Key(
    workload="net",
    decisions="learned",
    arm=Arm(kind="strategy", strategy="compaction"),
    device="cpu",
    batch_size=8,
    dtype="float32",
    threads=1,
    baseline="static",
    networks="n",
    inputs="i",
    decisions_hash="d",
    machine="m",
)


def run(number: int, torch: str = "2.13.0", dynbench: str = "0.1.0") -> RecordedRun:
    started = f"2026-01-{number + 1:02}T00:00:00+00:00"
    return RecordedRun(
        f"id{number}", f"run-{number}", started, f"{number:08x}", False, None, None, "m", dynbench, {"torch": torch}
    )


def point(of: RecordedRun, speedup: float | None, item_ms: float = 1.0) -> Point:
    found = None if speedup is None else Speedup(value=speedup, low=1, high=9, baseline="static", primary=True)
    return Point(of, item_ms, found)


def test_the_speedup_is_followed_and_the_time_only_where_there_is_none() -> None:
    series = Series(KEY, [point(run(i), 1.5, 1 + i % 2) for i in range(8)])
    assert values(series) == ("speed-up", [1.5] * 8)
    assert changes(series) == []  # a slower machine is no change
    times = Series(KEY, [point(run(i), None, 1.0 if i < 4 else 2.0) for i in range(8)])
    (change,) = changes(times)
    assert (change.quantity, change.run.run_id, change.better) == ("time", "run-4", False)


def test_a_higher_speedup_is_better() -> None:
    (up,) = changes(Series(KEY, [point(run(i), 1.2 if i < 4 else 1.5) for i in range(8)]))
    (down,) = changes(Series(KEY, [point(run(i), 1.5 if i < 4 else 1.2) for i in range(8)]))
    assert up.better and not down.better


def test_what_else_changed_is_told_also_where_a_run_between_stands_out() -> None:
    speeds = [1.5, 1.5, 1.5, 1.5, 0.7, 1.2, 1.2, 1.2, 1.2]
    runs = [run(i, torch="2.13.0" if i < 4 else "2.14.0", dynbench="0.1.0" if i < 7 else "0.2.0") for i in range(9)]
    (change,) = changes(Series(KEY, [point(r, s) for r, s in zip(runs, speeds, strict=True)]))
    assert (change.before.run_id, change.run.run_id) == ("run-3", "run-5")
    assert change.also == ["torch 2.13.0 -> 2.14.0"]  # dynbench changed later


def test_too_few_runs_tell_nothing() -> None:
    speeds = [1.5] * (FEWEST // 2) + [1.0] * (FEWEST // 2)
    assert len(changes(Series(KEY, [point(run(i), s) for i, s in enumerate(speeds)]))) == 1
    assert changes(Series(KEY, [point(run(i), s) for i, s in enumerate(speeds[:-1])])) == []
