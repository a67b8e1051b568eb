"""What a trace says, on made-up events whose answer is known."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dynbench.analysis.timeline import Span, nested, rows


def event(name: str, ts: float, dur: float, *, cat: str = "cpu_op", tid: int = 1) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "tid": tid, "pid": 1}


def mark(name: str, ts: float, dur: float) -> dict[str, Any]:
    return event(name, ts, dur, cat="user_annotation")


TRACE = [
    mark("ProfilerStep#0", 0, 100),
    mark("body a", 0, 60),
    event("conv", 10, 40),
    event("inner", 20, 10),
    mark("decide a", 60, 30),
    event("mm", 70, 10),
    mark("ProfilerStep#1", 100, 100),
    mark("body a", 100, 80),
    event("conv", 110, 50),
    event("elsewhere", 0, 5, tid=2),  # of a thread that does little
    {"ph": "i", "name": "an instant", "ts": 3, "tid": 1},
]


def test_batches_are_laid_over_each_other_and_calls_are_added_up() -> None:
    root = nested(TRACE)
    assert list(root.below) == ["batch"]
    batch = root.below["batch"]
    assert (batch.calls, batch.total_us, batch.self_us) == (2, 200, 200 - 140 - 30)
    body = batch.below["body a"]
    assert (body.calls, body.total_us, body.below["conv"].total_us) == (2, 140, 90)
    assert body.below["conv"].below["inner"].total_us == 10
    assert root.total_us == 200


def test_own_times_of_operators_and_of_ranges() -> None:
    root = nested(TRACE)
    operators = {row.name: (row.calls, row.self_us) for row in rows(root, operators=True)}
    assert operators == {"conv": (2, 80), "inner": (1, 10), "mm": (1, 10)}
    ranges = {row.name: (row.calls, row.self_us) for row in rows(root, operators=False)}
    assert ranges == {"body a": (2, 140), "decide a": (1, 30), "batch": (2, 30)}


def test_what_calls_itself_is_counted_once() -> None:
    root = nested([mark("a", 0, 10), mark("a", 2, 4)])
    (row,) = rows(root, operators=False)
    assert (row.calls, row.total_us, row.self_us) == (2, 10, 10)


def test_nothing_recorded_is_an_empty_tree() -> None:
    assert nested([]).total_us == 0 and rows(Span("all", operator=False), operators=True) == []


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 50), st.booleans()), max_size=30))
def test_own_times_never_exceed_what_was_recorded(calls: list[tuple[int, int, bool]]) -> None:
    events = [
        event(f"n{i % 3}", ts, dur) if op else mark(f"n{i % 3}", ts, dur) for i, (ts, dur, op) in enumerate(calls)
    ]
    root = nested(events)
    spans = [root]
    while spans:
        span = spans.pop()
        assert span.self_us >= 0
        spans += span.below.values()
    assert root.total_us <= sum(dur for _, dur, _ in calls)
