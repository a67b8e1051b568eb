"""The page of a trace: a flame graph, ranges and operators by time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from markupsafe import Markup

from dynbench.analysis.formatting import percent, significant
from dynbench.analysis.timeline import Row as Taken
from dynbench.analysis.timeline import Span, rows
from dynbench.escape import xml
from dynbench.files import write_text
from dynbench.report.columns import Column
from dynbench.report.content import FigureGroup
from dynbench.report.layout import text_width
from dynbench.report.tables import Block, Row, Section, make_table
from dynbench.report.values import count, number, words
from dynbench.report.write import to_html

WIDTH, LINE = 1100.0, 17.0  # of the flame graph, in pixels
NARROWEST = 0.6  # pixels; what is narrower is left out
TONES = {"decide": "series3", "head": "series3", "gather": "series2", "scatter": "series2", "sync": "slower"}

COLUMNS = [
    Column("span", "name", kind="name"),
    Column("calls", "calls", definition="In all batches of the trace."),
    Column("self_ms", "own time", "ms", "Inside it, without the ranges within it; of an operator, without others."),
    Column("total_ms", "time", "ms", "From its beginning to its end, all calls added up."),
    Column("share", "share", "% of all", "Own time of all time."),
]


@dataclass(frozen=True)
class TimelinePage:
    """What the page says."""

    title: str
    facts: list[tuple[str, str]]
    sentences: list[str]
    flame: Markup
    sections: list[Section]
    figures: list[FigureGroup] = field(default_factory=list)
    tones: dict[str, str] = field(default_factory=dict)
    run_id: str = ""
    status: str | None = None


def write_timeline(folder: Path, title: str, facts: list[tuple[str, str]], root: Span) -> Path:
    """Writes `trace.html` into a folder.

    Args:
        folder: of the trace.
        title: of the page.
        facts: pairs of a name and a value.
        root: what was recorded, see `analysis.timeline.nested`.

    Raises:
        UserError: the folder cannot be written.
    """
    ranges, operators = rows(root, operators=False), rows(root, operators=True)
    sections = [
        Section("ranges", "Phases, points and regions", "", [_table("ranges", "Ranges", ranges, root.total_us)]),
        Section("operators", "Operators", "", [_table("operators", "Operators", operators, root.total_us)]),
    ]
    page = TimelinePage(title, facts, _sentences(ranges, operators, root), Markup(flame(root)), sections)
    file = folder / "trace.html"
    write_text(file, to_html(page, {}, "trace"))
    return file


def _sentences(ranges: list[Taken], operators: list[Taken], root: Span) -> list[str]:
    if not root.total_us:
        return ["Nothing was recorded."]
    inside = [r for r in ranges if r.name != "batch"]
    found = []
    if inside:
        most = inside[0]
        found.append(
            f"Of {significant(root.total_us / 1e3)} ms, {percent(most.self_us / root.total_us)} is the own time of "
            f"'{most.name}', called {most.calls} times."
        )
    if operators:
        first = operators[0]
        found.append(
            f"The operator that takes most is {first.name}: {percent(first.self_us / root.total_us)} in {first.calls} "
            "calls."
        )
    found.append("Recording takes time itself, more for many small operators: the shares are of use, not the sum.")
    return found


def _table(key: str, title: str, taken: list[Taken], total_us: float) -> Block:
    made: list[Row] = [
        {
            "span": words(row.name),
            "calls": count(row.calls),
            "self_ms": number(row.self_us / 1e3),
            "total_ms": number(row.total_us / 1e3),
            "share": number(100 * row.self_us / total_us if total_us else None, 3),
        }
        for row in taken
    ]
    return Block(table=make_table(key, title, COLUMNS, made))


def flame(root: Span) -> str:
    """A flame graph as an `<svg>` element: width is time, and what was called from something lies below it."""
    boxes = [] if not root.total_us else list(_boxes(root, 0.0, 0, WIDTH / root.total_us))
    height = LINE * (1 + max((depth for _, _, depth, _, _ in boxes), default=0))
    parts = [f'<svg class="flame" viewBox="0 0 {WIDTH:g} {height:g}" role="img" aria-label="Flame graph">']
    for span, x, depth, width, tone in boxes:
        name = f"{span.name}: {significant(span.total_us / 1e3)} ms, {span.calls} calls"
        shown = _fitting(span.name, width - 6)
        text = f'<text x="{x + 3:.1f}" y="{depth * LINE + 12:.1f}">{_safe(shown)}</text>' if shown else ""
        parts.append(
            f'<g class="t-{tone}"><title>{_safe(name)}</title><rect x="{x:.1f}" y="{depth * LINE:.1f}" '
            f'width="{max(width - 0.5, 0.4):.1f}" height="{LINE - 1:g}"/>{text}</g>'
        )
    return "".join([*parts, "</svg>"])


def _boxes(span: Span, x: float, depth: int, scale: float) -> Iterator[tuple[Span, float, int, float, str]]:
    for below in sorted(span.below.values(), key=lambda s: -s.total_us):
        width = below.total_us * scale
        if width >= NARROWEST:
            yield below, x, depth, width, _tone(below)
            yield from _boxes(below, x, depth + 1, scale)
        x += width


def _tone(span: Span) -> str:
    if span.operator:
        return "unclear"
    return TONES.get(span.name.partition(" ")[0], "series1" if span.name.startswith("region") else "series4")


def _fitting(text: str, width: float) -> str:
    if width < 24 or text_width(text[:1]) > width:
        return ""
    while text and text_width(text) > width:
        text = text[:-1]
    return text


def _safe(text: str) -> str:
    return xml(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
