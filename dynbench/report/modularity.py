"""Is modularity paying? Cost against the number of parts, over workloads that differ in it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

from dynbench.analysis.formatting import times
from dynbench.analysis.overview import Family, Member, Summary, families
from dynbench.report.answer import Answer, folded
from dynbench.report.content import Panel
from dynbench.report.overview_drawings import Growth, Series
from dynbench.report.palette import SERIES
from dynbench.report.tables import Row
from dynbench.report.values import count, number, ratio, with_interval, words

QUESTION_5 = "Is modularity paying?"


def modularity(summaries: Sequence[Summary]) -> list[Answer]:
    """Cost against the number of parts; nothing where no argument was varied (`WORKLOAD@ARGUMENT=V1,V2`)."""
    found = families(summaries)
    if not found:
        return []
    sentences, series, rows = [], [], list[Row]()
    for family, tone in zip(found, cycle(SERIES), strict=False):
        first, last = family.members[0], family.members[-1]
        span = f"from {first.value:g} to {last.value:g} {family.argument}"
        ours, theirs = (_growth(first, last, dynamic=dynamic) for dynamic in (True, False))
        if ours is not None and theirs is not None:
            sentences.append(
                f"{family.of}: {span} the time per item of the static network becomes {times(theirs)} what it was, "
                f"that of the dynamic one {times(ours)}, at batch {family.batch_size}."
            )
        speedups = [(m.value, m.standing.best.speedup) for m in family.members if m.standing.best is not None]
        series.append(
            Series(
                f"{family.of}, {family.argument}",
                tone,
                [value for value, _ in speedups],
                [s.value for _, s in speedups],
                [s.low for _, s in speedups],
                [s.high for _, s in speedups],
            )
        )
        rows += [_member(family, member) for member in family.members]
    keys = [
        "workload",
        "argument",
        "argument_value",
        "batch",
        "dynamic_ms",
        "static_ms",
        "family_speedup",
        "claim_ideal",
    ]
    alt = "; ".join(
        f"{s.name}: " + ", ".join(f"{times(y)} at {x:g}" for x, y in zip(s.x, s.y, strict=True)) for s in series
    )
    panel = Panel(
        "answer-modularity",
        "Speed-up against the number of parts",
        "Against the primary baseline with as many parts. Untrained networks, with decisions of their own or made up.",
        f"{alt}.",
        Growth("number of parts", "speed-up", series),
    )
    return [
        Answer("answer-modularity", QUESTION_5, sentences, [panel], [folded("By number", "answer parts", keys, rows)])
    ]


def _growth(first: Member, last: Member, *, dynamic: bool) -> float | None:
    """How much longer an item takes with the most parts than with the fewest."""
    before, after = (_item_ms(m, dynamic=dynamic) for m in (first, last))
    return None if before is None or after is None or before <= 0 else after / before


def _item_ms(member: Member, *, dynamic: bool) -> float | None:
    best = member.standing.best
    cell = member.standing.primary if not dynamic else None if best is None else best.cell
    return None if cell is None or cell.latency is None else cell.latency.item_ms


def _member(family: Family, member: Member) -> Row:
    best = member.standing.best
    return {
        "workload": words(family.of),
        "argument": words(family.argument),
        "argument_value": number(member.value),
        "batch": count(family.batch_size),
        "dynamic_ms": number(_item_ms(member, dynamic=True)),
        "static_ms": number(_item_ms(member, dynamic=False)),
        "family_speedup": ratio(None) if best is None else with_interval(best.speedup),
        "claim_ideal": ratio(member.standing.ideal),
    }
