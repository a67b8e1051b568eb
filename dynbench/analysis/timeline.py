"""What a trace says: which operators and which ranges take the time, and how they nest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

KINDS = ("user_annotation", "cpu_op")
STEP = "ProfilerStep"  # what torch's profiler calls a batch


@dataclass
class Span:
    """Calls of one name below the same names.

    Attributes:
        name: of a range or an operator.
        operator: whether it is an operator.
        total_us: inside it.
        calls: how many.
        below: what was called from it, by name.
    """

    name: str
    operator: bool
    total_us: float = 0.0
    calls: int = 0
    below: dict[str, Span] = field(default_factory=dict)

    @property
    def self_us(self) -> float:
        """Inside it, and in nothing below it."""
        return max(self.total_us - sum(span.total_us for span in self.below.values()), 0.0)


@dataclass(frozen=True)
class Row:
    """A name over the whole trace: how often it was called, and how long."""

    name: str
    calls: int
    total_us: float
    self_us: float


def nested(events: Iterable[Mapping[str, Any]]) -> Span:
    """The events of a Chrome trace as one tree, calls of one name below the same names added up.

    Only what ran on the thread with the most time counts; batches (`ProfilerStep#n`) are laid over each other.
    """
    found = [e for e in events if e.get("ph") == "X" and e.get("cat") in KINDS and e.get("dur") is not None]
    root = Span("all", operator=False, calls=1)
    if not found:
        return root
    threads: dict[Any, float] = {}
    for e in found:
        threads[e["tid"]] = threads.get(e["tid"], 0.0) + float(e["dur"])
    busiest = max(threads, key=lambda tid: threads[tid])
    stack: list[tuple[float, Span]] = [(float("inf"), root)]
    mine = (e for e in found if e["tid"] == busiest)
    for e in sorted(mine, key=lambda e: (float(e["ts"]), -float(e["dur"]), e["cat"] != KINDS[0])):
        begin, end = float(e["ts"]), float(e["ts"]) + float(e["dur"])
        while begin >= stack[-1][0]:
            stack.pop()
        around = stack[-1][1]
        name = "batch" if e["name"].startswith(STEP) else str(e["name"])
        span = around.below.setdefault(name, Span(name, e["cat"] == KINDS[1]))
        span.total_us += end - begin
        span.calls += 1
        stack.append((end, span))
    root.total_us = sum(span.total_us for span in root.below.values())
    return root


def rows(root: Span, *, operators: bool) -> list[Row]:
    """Operators, or ranges, over the whole trace; what takes most by itself comes first.

    A range's own time is all of its time that lies in no range within it: operators are part of it.
    """
    found: dict[str, list[float]] = {}

    def visit(span: Span, open_names: tuple[str, ...]) -> None:
        if span.operator == operators and span.name != "all":
            own = span.self_us if operators else span.total_us - sum(s.total_us for s in _ranges_below(span))
            calls, total, self_us = found.setdefault(span.name, [0, 0.0, 0.0])
            once = 0.0 if span.name in open_names else span.total_us  # within itself it is counted already
            found[span.name] = [calls + span.calls, total + once, self_us + max(own, 0.0)]
        for below in span.below.values():
            visit(below, (*open_names, span.name))

    visit(root, ())
    made = [Row(name, int(calls), total, own) for name, (calls, total, own) in found.items()]
    return sorted(made, key=lambda row: -row.self_us)


def _ranges_below(span: Span) -> Sequence[Span]:
    """The nearest ranges within one."""
    found: list[Span] = []
    for below in span.below.values():
        found += [below] if not below.operator else _ranges_below(below)
    return found
