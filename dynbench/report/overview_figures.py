"""Draws what `overview_drawings.py` holds."""

from __future__ import annotations

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dynbench.analysis.formatting import significant, times
from dynbench.report.layout import (
    DASHES,
    FONT_SIZE,
    GAP,
    HEIGHT,
    RIGHT,
    SMALL,
    TITLE,
    TOP,
    Label,
    around,
    colour_of,
    even_ticks,
    log_axes,
    marker_of,
    names_beside,
    new_axes,
    new_figure,
    ratio_ticks,
    room_left,
    room_right,
    set_titles,
    short,
    spans,
    text_width,
    time_ticks,
)
from dynbench.report.overview_drawings import Growth, Ladder, OverviewDrawing, Scatter, Shares, Spreads
from dynbench.report.palette import INK, MUTED

LEGEND = 18.0  # height of a line of names above the axes
ROW = 34.0  # height of a row of marks or of a bar
NAMED = 120.0  # width of the widest name of a row


def overview_figure(drawing: OverviewDrawing) -> Figure:
    """A figure of many workloads, in the `theme`."""
    if isinstance(drawing, Scatter):
        return _scatter(drawing)
    if isinstance(drawing, Ladder):
        return _ladder(drawing)
    if isinstance(drawing, Spreads):
        return _spreads(drawing)
    return _shares(drawing) if isinstance(drawing, Shares) else _growth(drawing)


def _scatter(d: Scatter) -> Figure:
    limits = around([*(v for dot in d.dots for v in (dot.low, dot.high)), 1.0])
    ideals = around([*(dot.ideal for dot in d.dots), 1.0])
    ticks = ratio_ticks(*limits)
    rows = _legend_rows(d.strategies)
    figure = new_figure(HEIGHT + 40 + LEGEND * rows)
    axes = log_axes(figure, limits, ticks, [], bottom=38, top=TOP + LEGEND * rows)
    axes.set_xscale("log")
    axes.set_xlim(*ideals)
    below = ratio_ticks(*ideals)
    axes.set_xticks([value for value, _ in below], [text for _, text in below])
    axes.xaxis.minorticks_off()
    axes.axhline(1, color=colour_of(INK), linewidth=1)
    ends = [max(limits[0], ideals[0]), min(limits[1], ideals[1])]
    axes.plot(ends, ends, color=colour_of(INK), linewidth=1.4, linestyle=DASHES)
    for dot in d.dots:
        colour = colour_of(dot.tone)
        axes.plot([dot.ideal, dot.ideal], [dot.low, dot.high], color=colour, linewidth=0.8, alpha=0.6)
        style = marker_of(dot.tone, 6.0, hollow=not dot.certain)
        axes.plot([dot.ideal], [dot.speedup], color=colour, linestyle="", **style)
    _legend(axes, d.strategies)
    set_titles(axes, "ideal speed-up", f"measured speed-up, batch {d.batch_size}")
    return figure


def _ladder(d: Ladder) -> Figure:
    known = [v for line in d.lines for v in line if v is not None]
    limits = around([*known, 1.0])
    labels: list[Label] = []
    figure = new_figure(HEIGHT + 34)
    axes = log_axes(figure, limits, ratio_ticks(*limits), labels, bottom=58)
    steps = range(len(d.steps))
    axes.set_xlim(-0.4, len(d.steps) - 0.6)
    axes.axhline(1, color=colour_of(INK), linewidth=1)
    for line in d.lines:
        values = [np.nan if v is None else v for v in line]
        axes.plot(steps, values, color=colour_of(MUTED), linewidth=0.6, alpha=0.4)
    medians = [np.nan if v is None else v for v in d.medians]
    axes.plot(
        steps, medians, color=colour_of("compaction"), linewidth=2.4, **marker_of("compaction", 7.0, hollow=False)
    )
    for step, value in enumerate(d.medians):
        if value is not None:
            axes.annotate(
                times(value),
                (step, value),
                xytext=(0, 9),
                textcoords="offset points",
                ha="center",
                color=colour_of("compaction"),
            )
    axes.set_xticks(steps, [_two_lines(step) for step in d.steps], fontsize=SMALL)
    set_titles(axes, "", "speed-up")
    return figure


def _two_lines(text: str) -> str:
    """Broken where the halves are most alike."""
    words = text.split()
    if len(words) < 2:
        return text
    halves = [(" ".join(words[:i]), " ".join(words[i:])) for i in range(1, len(words))]
    return "\n".join(min(halves, key=lambda pair: max(map(len, pair))))


def _spreads(d: Spreads) -> Figure:
    rows = _legend_rows(d.series)
    names = [short(name, NAMED) for name in d.rows]
    figure = new_figure(ROW * len(names) + 44 + LEGEND * rows)
    axes = new_axes(figure, max(map(text_width, names)) + 2 * GAP, RIGHT + 24, bottom=38, top=TOP + LEGEND * rows)
    known = [v for row in d.values for s in row if s is not None for v in (s.low, s.high)]
    limits = around([*known, 1.0])
    axes.set_xscale("log")
    axes.set_xlim(*limits)
    axes.set_ylim(len(names) - 0.5, -0.5)
    ticks = ratio_ticks(*limits)
    axes.set_xticks([value for value, _ in ticks], [text for _, text in ticks])
    axes.xaxis.minorticks_off()
    axes.axvline(1, color=colour_of(INK), linewidth=1)
    step = 0.64 / max(len(d.series), 1)
    for row, values in enumerate(d.values):
        for i, (value, (_, tone)) in enumerate(zip(values, d.series, strict=True)):
            if value is None:
                continue
            y, colour = row + (i - (len(d.series) - 1) / 2) * step, colour_of(tone)
            axes.plot([value.low, value.high], [y, y], color=colour, linewidth=2.4)
            axes.plot([value.median], [y], color=colour, linestyle="", **marker_of(tone, 6.6, hollow=False))
            axes.annotate(
                times(value.median),
                (value.high, y),
                xytext=(GAP, 0),
                textcoords="offset points",
                va="center",
                fontsize=SMALL,
            )
    axes.set_yticks(range(len(names)), names, color=colour_of(INK))
    _legend(axes, d.series)
    set_titles(axes, d.title)
    sns.despine(ax=axes, left=True)
    return figure


def _shares(d: Shares) -> Figure:
    rows = _legend_rows(d.parts)
    names = [short(name, NAMED) for name in d.rows]
    figure = new_figure(ROW * len(names) + 44 + LEGEND * rows)
    axes = new_axes(figure, max(map(text_width, names)) + 2 * GAP, RIGHT + 16, bottom=38, top=TOP + LEGEND * rows)
    widest = max((sum(counts) for counts in d.counts), default=0) or 1
    axes.set_xlim(0, widest)
    axes.set_ylim(len(names) - 0.5, -0.5)
    for row, counts in enumerate(d.counts):
        begin = 0
        for count, (_, tone) in zip(counts, d.parts, strict=True):
            if not count:
                continue
            axes.barh(row, count, 0.62, left=begin, color=colour_of(tone), linewidth=0, alpha=0.75)
            if text_width(str(count)) < axes.bbox.width * count / widest:
                axes.text(begin + count / 2, row, str(count), ha="center", va="center", color=colour_of(INK))
            begin += count
    axes.set_yticks(range(len(names)), names, color=colour_of(INK))
    ticks = [tick for tick in even_ticks(0, widest, 6) if tick == int(tick)]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    _legend(axes, d.parts)
    set_titles(axes, d.title)
    sns.despine(ax=axes, left=True)
    return figure


def _growth(d: Growth) -> Figure:
    limits = around([v for s in d.series for v in (*s.low, *s.high)])
    if not d.log:
        high = max(v for s in d.series for v in s.high)
        limits = (0.0, 1.08 * high or 1.0)
    labels = [(s.y[-1], short(s.name), s.tone) for s in d.series]
    ticks = time_ticks(*limits) if d.log else [(t, f"{t:.10g}") for t in even_ticks(*limits)]
    figure = new_figure(HEIGHT)
    if d.log:
        axes = log_axes(figure, limits, ticks, labels, bottom=38)
    else:
        axes = new_axes(figure, room_left(ticks), room_right(labels), bottom=38)
        axes.set_ylim(*limits)
        axes.set_yticks([value for value, _ in ticks], [text for _, text in ticks])
        axes.grid(axis="y")
        sns.despine(ax=axes)
    xs = sorted({x for s in d.series for x in s.x})
    if d.log:
        axes.set_xscale("log")
        axes.set_xlim(xs[0] / 1.15, xs[-1] * 1.15)
        axes.set_xticks(xs, [f"{x:g}" for x in xs])
        axes.xaxis.minorticks_off()
    else:
        margin = 0.04 * (xs[-1] - xs[0]) or 1.0
        axes.set_xlim(xs[0] - margin, xs[-1] + margin)
        across = even_ticks(xs[0], xs[-1], 6) if xs[-1] > xs[0] else [xs[0]]
        axes.set_xticks(across, [significant(x) for x in across])
    for s in d.series:
        colour = colour_of(s.tone)
        axes.fill([*s.x, *reversed(s.x)], [*s.low, *reversed(s.high)], color=colour, alpha=0.18, linewidth=0)
        axes.plot(s.x, s.y, color=colour, linewidth=1.8, **marker_of(s.tone, 5.6, hollow=False))
        spans(axes, s.x, s.low, s.high, color=colour, linewidth=1)
    names_beside(axes, labels)
    set_titles(axes, d.over, d.what)
    return figure


def _legend_rows(names: list[tuple[str, str]]) -> int:
    """How many lines the names above the axes take."""
    return len(_lines(names))


def _lines(names: list[tuple[str, str]]) -> list[list[tuple[str, str]]]:
    lines: list[list[tuple[str, str]]] = []
    room = 0.0
    for name, tone in names:
        width = text_width(short(name)) + 26
        if not lines or width > room:
            lines.append([])
            room = 374.0 - TITLE - 30
        lines[-1].append((name, tone))
        room -= width
    return lines


def _legend(axes: Axes, names: list[tuple[str, str]]) -> None:
    """Names with their marks in lines above the axes."""
    figure = axes.figure
    top = figure.bbox.height - TOP - FONT_SIZE / 2
    for line, entries in enumerate(_lines(names)):
        x = TITLE + 6.0
        y = top - line * LEGEND
        for name, tone in entries:
            text = short(name)
            inside = axes.transData.inverted()
            px, py = inside.transform((x, y))
            axes.plot(
                [px], [py], color=colour_of(tone), linestyle="", clip_on=False, **marker_of(tone, 6.0, hollow=False)
            )
            axes.annotate(
                text, (x + 8, y), xycoords="figure pixels", va="center", color=colour_of(INK), annotation_clip=False
            )
            x += text_width(text) + 26
