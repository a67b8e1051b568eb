"""Draws what `drawings.py` holds. One small panel per workload, so that its text is still readable on a phone.

A report of a large run has hundreds of figures: each is laid out by arithmetic and drawn once. seaborn gives the style;
its plotting functions, which aggregate data that is aggregated already, take ten times as long as matplotlib's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dynbench.analysis.formatting import percent, significant, times
from dynbench.report.drawings import Curve, Line, Paths, Speedups, Tradeoff, Trend, Work
from dynbench.report.layout import (
    APART,
    ASLANT,
    DASHES,
    DOTS,
    FONT_SIZE,
    GAP,
    HEIGHT,
    NORMAL,
    PIXELS,
    RIGHT,
    SLANTED,
    SMALL,
    THICK,
    THIN,
    TITLE,
    TOP,
    WIDTH,
    against,
    around,
    colour_of,
    even_ticks,
    height_of,
    log_axes,
    marker_of,
    names_beside,
    new_axes,
    new_figure,
    ratio_ticks,
    ring,
    room_left,
    room_right,
    set_titles,
    short,
    spans,
    spread,
    text_width,
    time_ticks,
    to_svg,
)
from dynbench.report.overview_drawings import OverviewDrawing
from dynbench.report.overview_figures import overview_figure
from dynbench.report.palette import INK, MUTED
from dynbench.report.prediction import Frontier, Scatter
from dynbench.report.prediction_figure import prediction_figure
from dynbench.report.sustained import Sustained, sustained_figure
from dynbench.report.waterfall import Fall
from dynbench.report.waterfall_figure import waterfall_figure

Drawing = Speedups | Tradeoff | Work | Paths | Trend | Fall | Scatter | Frontier | Sustained | OverviewDrawing

MOST_COMMITS = 16  # named along the axis


def draw(drawing: Drawing) -> str:
    """A figure as matplotlib's SVG, drawn in the `theme`; its text is text."""
    return to_svg(_drawn(drawing))


def _drawn(drawing: Drawing) -> Figure:
    if isinstance(drawing, Trend):
        return _trend(drawing)
    if isinstance(drawing, Speedups):
        return _speedups(drawing)
    if isinstance(drawing, Tradeoff):
        return _tradeoff(drawing)
    if isinstance(drawing, Work):
        return _work(drawing)
    if isinstance(drawing, Fall):
        return waterfall_figure(drawing)
    if isinstance(drawing, Scatter | Frontier):
        return prediction_figure(drawing)
    if isinstance(drawing, Sustained):
        return sustained_figure(drawing)
    return _paths(drawing) if isinstance(drawing, Paths) else overview_figure(drawing)


# --- speed-ups -------------------------------------------------------------------------------------------------------


def _speedups(d: Speedups) -> Figure:
    over_batch = d.over == "batch size"
    limits = around([*(v for line in d.lines for v in (*line.low, *line.high)), *(v for _, v in d.ideal), 1.0])
    last = max(line.x[-1] for line in d.lines)
    ends = [("ideal", d.ideal[-1][1], INK)] if d.ideal else []
    ends += [(short(line.name), line.y[-1], line.tone) for line in d.lines if line.x[-1] == last]
    labels = [(at, f"{name} {times(at)}" if over_batch else name, tone) for name, at, tone in ends]
    ticks = ratio_ticks(*limits)
    figure = new_figure(HEIGHT)
    axes = log_axes(figure, limits, ticks, labels, bottom=38)
    if over_batch:
        _batch_axis(axes, d)
    else:
        _rate_axis(axes, d)
    axes.axhline(1, color=colour_of(INK), linewidth=1)
    if d.learned is not None:
        _learned(axes, d.learned)
    if d.ideal:
        axes.plot(*zip(*d.ideal, strict=True), color=colour_of(INK), linewidth=1.4, linestyle=DASHES)
    others = THIN if any(line.deployed for line in d.lines) else NORMAL
    for line in d.lines:
        _line(axes, line, THICK if line.deployed else others)
    for line in d.lines:
        if line.name in d.break_even:
            ring(axes, [d.break_even[line.name]], [1], line.tone)
    _names_inside(axes, [line for line in d.lines if line.x[-1] != last])
    names_beside(axes, labels)
    set_titles(axes, "batch size (items)" if over_batch else "keep-rate of made-up decisions", against(d.baseline))
    return figure


def _batch_axis(axes: Axes, d: Speedups) -> None:
    """Logarithmic, with every batch size as a tick."""
    sizes = sorted({x for line in d.lines for x in line.x})
    margin = 2 ** (0.05 * max(math.log2(sizes[-1] / sizes[0]), 1))
    axes.set_xscale("log")
    axes.set_xlim(sizes[0] / margin, sizes[-1] * margin)
    axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
    axes.xaxis.minorticks_off()


def _rate_axis(axes: Axes, d: Speedups) -> None:
    """From 20 % or less to 100 %, with the learned keep-rate on it."""
    rates = [x for line in d.lines for x in line.x]
    learned = [] if d.learned is None else [d.learned]
    low, high = min(0.2, min(rates + learned) - 0.03), max(*rates, 1.0) + 0.02
    axes.set_xlim(low, high)
    ticks = even_ticks(low, high, 6)
    axes.set_xticks(ticks, [percent(rate) for rate in ticks])


def _learned(axes: Axes, rate: float) -> None:
    """Marks the keep-rate of the learned decisions, with its name on the side where there is room."""
    axes.axvline(rate, color=colour_of(MUTED), linewidth=1, linestyle=DOTS)
    box, x, size = axes.bbox, axes.transData.transform((rate, 1))[0], FONT_SIZE - 1
    fits = x + GAP + text_width("learned", size) < box.x1
    place, side = (x + GAP, "left") if fits else (x - GAP, "right")
    axes.text(place, box.y1 - 6, "learned", color=colour_of(MUTED), size=size, ha=side, va="center", transform=PIXELS)


def _line(axes: Axes, line: Line, width: float) -> None:
    colour = colour_of(line.tone)
    if line.static:
        axes.plot(line.x, line.y, color=colour, linewidth=width, linestyle=DOTS)
    else:
        axes.fill(
            [*line.x, *reversed(line.x)], [*line.low, *reversed(line.high)], color=colour, alpha=0.18, linewidth=0
        )
        size = 7.0 if line.deployed else 5.6
        axes.plot(line.x, line.y, color=colour, linewidth=width, **marker_of(line.tone, size, hollow=line.hollow))
    spans(axes, line.x, line.low, line.high, color=colour, linewidth=1)


def _names_inside(axes: Axes, lines: Sequence[Line]) -> None:
    """Names the lines that end before the axis does, each above its end, moved apart and to where it fits."""
    box = axes.bbox
    ordered = sorted(lines, key=lambda line: line.y[-1])
    heights = [height_of(axes, line.y[-1]) + 8 for line in ordered]
    places = spread(heights, APART, box.y0 + APART / 2, box.y1 - APART / 2)
    for line, y in zip(ordered, places, strict=True):
        name = short(line.name, box.width - GAP)
        end = axes.transData.transform((line.x[-1], 1))[0]
        x = min(end + 6, box.x1 - text_width(name))
        axes.text(x, y, name, color=colour_of(line.tone), va="center", transform=PIXELS)


# --- accuracy against time -------------------------------------------------------------------------------------------


def _tradeoff(d: Tradeoff) -> Figure:
    """A row per network, at its accuracy; the better is above."""
    networks = {p.network: p for p in reversed(d.points)}  # the fastest arm of each
    labels = [(p.accuracy, short(name), p.tone) for name, p in networks.items()]
    left, right = around(p.item_ms for p in d.points)
    worst, best = min(p.accuracy for p in d.points), max(p.accuracy for p in d.points)
    margin = 0.12 * (best - worst) or 0.01 * abs(best) or 1.0
    bottom, top = worst - margin, best + margin
    ticks = [(tick, f"{tick:.10g}") for tick in even_ticks(bottom, top, 6)]
    figure = new_figure(max(HEIGHT, APART * len(labels) + 60))
    axes = new_axes(figure, room_left(ticks), room_right(labels), bottom=38)
    axes.set_xscale("log")
    axes.set_xlim(left, right)
    axes.set_ylim(*((bottom, top) if d.higher_is_better else (top, bottom)))
    axes.set_yticks([value for value, _ in ticks], [text for _, text in ticks])
    times_ms = time_ticks(left, right)
    widest = max(text_width(text) for _, text in times_ms) + 2 * GAP
    some = slice(None, None, math.ceil(widest * len(times_ms) / axes.bbox.width))
    axes.set_xticks([value for value, _ in times_ms[some]], [text for _, text in times_ms[some]])
    axes.xaxis.minorticks_off()
    sns.despine(ax=axes)
    for accuracy, _, tone in labels:
        axes.axhline(accuracy, color=colour_of(tone), linewidth=0.6)
    front = [(p.item_ms, p.accuracy) for p in d.points if p.front]
    x, y = zip(*front, (right, front[-1][1]), strict=True)
    axes.plot(x, y, color=colour_of(INK), linewidth=1.4, linestyle=DASHES, drawstyle="steps-post")
    for p in d.points:
        marker = marker_of(p.tone, 8.0 if p.deployed else 5.6, hollow=not p.deployed)
        axes.plot([p.item_ms], [p.accuracy], color=colour_of(p.tone), linestyle="", **marker)
    names_beside(axes, labels)
    metric = short(d.metric, 170)
    set_titles(
        axes, f"ms per item, batch {d.batch_size}", metric if d.higher_is_better else f"{metric}, lower is better"
    )
    return figure


# --- work ------------------------------------------------------------------------------------------------------------


def _work(d: Work) -> Figure:
    figure = new_figure(max(144.0, 24 * len(d.bars) + 50))
    names = [short(bar.label, 190) for bar in d.bars]
    amounts = [bar.flops / 1e6 for bar in d.bars]
    shown = [significant(amount) for amount in amounts]
    axes = new_axes(figure, left=max(map(text_width, names)) + 2 * GAP, right=RIGHT, bottom=38)
    width = axes.bbox.width
    high = max(a * width / (width - GAP - text_width(text)) for a, text in zip(amounts, shown, strict=True))
    axes.set_xlim(0, high or 1)
    axes.set_ylim(len(d.bars) - 0.4, -0.6)
    for i, (bar, amount, text) in enumerate(zip(d.bars, amounts, shown, strict=True)):
        colour = colour_of(bar.tone)
        if bar.executed:  # filled: what ran; hollow: what was required or claimed
            axes.barh(i, amount, 0.62, color=colour, linewidth=0)
        else:
            dashes = (0, (4, 2)) if bar.tone == MUTED else "solid"
            axes.barh(i, amount, 0.62, color="none", edgecolor=colour, linewidth=1.2, linestyle=dashes)
        axes.annotate(text, (amount, i), xytext=(GAP, 0), textcoords="offset points", va="center")
    if d.dense is not None:
        axes.axvline(d.dense / 1e6, color=colour_of(INK), linewidth=0.8, linestyle=DASHES)
    axes.set_yticks(range(len(names)), names, color=colour_of(INK))
    ticks = [(tick, f"{tick:,.10g}") for tick in even_ticks(0, axes.get_xlim()[1])]
    widest = max(text_width(text) for _, text in ticks) + GAP
    some = slice(None, None, math.ceil(widest * len(ticks) / width))  # as many as there is room for
    axes.set_xticks([tick for tick, _ in ticks[some]], [text for _, text in ticks[some]])
    set_titles(axes, "MFLOP per item")
    sns.despine(ax=axes, left=True)
    return figure


# --- latency by path -------------------------------------------------------------------------------------------------


def _paths(d: Paths) -> Figure:
    drawn = [v for arm in d.arms for quantiles in arm.quantiles for v in quantiles]
    limits = around([*drawn, *(v for _, quantiles in d.baselines for v in quantiles)])
    labels = [(arm.quantiles[-1][2], short(arm.name), arm.tone) for arm in d.arms]
    labels = [*((quantiles[2], short(name), MUTED) for name, quantiles in d.baselines), *labels]
    ticks = time_ticks(*limits)
    counts = [f"n={n}" for n in d.items]
    room = (WIDTH - room_left(ticks) - room_right(labels)) / len(d.paths) - GAP
    crowded = max(map(text_width, [*d.paths, *counts])) > room
    names = [f"{path}, {n}" if crowded else f"{path}\n{n}" for path, n in zip(d.paths, counts, strict=True)]
    deep = ASLANT * max(text_width(name, SMALL) for name in names) if crowded else 2 * FONT_SIZE
    figure = new_figure(HEIGHT + deep - 2 * FONT_SIZE)
    axes = log_axes(figure, limits, ticks, labels, bottom=30 + deep, left=max(room_left(ticks), deep))
    axes.set_xlim(-0.6, len(d.paths) - 0.4)
    for _, (_, lower, middle, upper, _) in d.baselines:
        axes.axhspan(lower, upper, color=colour_of(MUTED), alpha=0.18, linewidth=0)
        axes.axhline(middle, color=colour_of(MUTED), linewidth=1.2, linestyle=DOTS)
    step = min(0.18, 0.7 / len(d.arms))
    for i, arm in enumerate(d.arms):
        places = [path + (i - (len(d.arms) - 1) / 2) * step for path in range(len(d.paths))]
        lowest, lower_quarter, medians, upper_quarter, highest = zip(*arm.quantiles, strict=True)
        colour = colour_of(arm.tone)
        spans(axes, places, lowest, highest, color=colour, linewidth=1)
        spans(axes, places, lower_quarter, upper_quarter, color=colour, linewidth=2.8)
        axes.plot(places, medians, color=colour, linewidth=1, alpha=0.55)
        axes.plot(places, medians, color=colour, linestyle="", **marker_of(arm.tone, 6.6, hollow=arm.hollow))
    names_beside(axes, labels)
    axes.set_xticks(range(len(d.paths)), names, **(SLANTED if crowded else {}))
    set_titles(axes, f"{short(d.counted_in, 180)} (n: inputs that went this way)", "ms per input, batch 1")
    return figure


# --- history ---------------------------------------------------------------------------------------------------------


def _trend(d: Trend) -> Figure:
    """Speed-ups above, times below; a ring and a line mark where a level changes."""
    ratios = around([*(v for c in d.curves for s in c.speedups for v in (s.low, s.high)), 1.0])
    times_ms = around(v for c in d.curves for v in c.item_ms)
    above_labels = [(c.speedups[-1].value, short(c.name), c.tone) for c in d.curves if c.speedups]
    below_labels = [(c.item_ms[-1], short(c.name), c.tone) for c in d.curves]
    above_ticks, below_ticks = ratio_ticks(*ratios), time_ticks(*times_ms)
    height, depth = (max(least, APART * len(found)) for least, found in ((154, above_labels), (101, below_labels)))
    figure = new_figure(TOP + 10 + height + 12 + depth + 48)
    room = {"left": TITLE + room_left([*above_ticks, *below_ticks]), "right": room_right(below_labels)}
    above = log_axes(figure, ratios, above_ticks, above_labels, bottom=depth + 60, top=TOP + 10, **room)
    below = log_axes(figure, times_ms, below_ticks, below_labels, bottom=48, top=TOP + 22 + height, **room)
    for axes in (above, below):
        axes.set_xlim(-0.5, len(d.labels) - 0.5)
    changes = sorted({run for c in d.curves for run in c.changes})
    for run in changes:
        for axes in (above, below):
            axes.axvline(run, color=colour_of(MUTED), linewidth=0.8, linestyle=(0, (2, 2)))
    _names_above(above, [(run, short(d.labels[run])) for run in changes])
    above.axhline(1, color=colour_of(INK), linewidth=1)
    for curve in d.curves:
        if curve.speedups:
            low, high = [s.low for s in curve.speedups], [s.high for s in curve.speedups]
            spans(above, curve.runs, low, high, color=colour_of(curve.tone), linewidth=0.6)
            _curve(above, curve, [s.value for s in curve.speedups])
        _curve(below, curve, curve.item_ms)
    names_beside(above, above_labels)
    names_beside(below, below_labels)
    above.set_xticks([])
    named = range(len(d.labels) - 1, -1, -max(1, -(-len(d.labels) // MOST_COMMITS)))
    commits = [short(d.labels[i]) for i in named]
    below.set_xticks(named, commits, **SLANTED)
    set_titles(above, beside=against(d.baseline, "\n"))
    set_titles(below, beside="ms per item")
    return figure


def _names_above(axes: Axes, labels: Sequence[tuple[float, str]]) -> None:
    """Names vertical lines, moved apart so that they can be read; the last ones if there is no room for all."""
    width = axes.figure.bbox.width
    apart = GAP + max((text_width(text, SMALL) for _, text in labels), default=0.0)
    named = labels[-int(width / apart) :]
    wanted = [axes.transData.transform((x, 1))[0] for x, _ in named]
    for x, (_, text) in zip(spread(wanted, apart, apart / 2, width - apart / 2), named, strict=True):
        axes.text(x, axes.bbox.y1 + 6, text, fontsize=SMALL, ha="center", va="center", transform=PIXELS)


def _curve(axes: Axes, curve: Curve, y: Sequence[float]) -> None:
    at = dict(zip(curve.runs, y, strict=True))
    colour = colour_of(curve.tone)
    ring(axes, curve.changes, [at[run] for run in curve.changes], curve.tone)
    marker = {} if curve.static else marker_of(curve.tone, 3.6, hollow=curve.hollow)
    axes.plot(curve.runs, y, color=colour, linewidth=1.4, linestyle=DOTS if curve.static else "solid", **marker)
    outliers = [run for run, is_outlier in zip(curve.runs, curve.outliers, strict=True) if is_outlier]
    if outliers:
        heights = [at[run] for run in outliers]
        axes.plot(outliers, heights, color=colour, linestyle="", marker="x", markersize=6, markeredgewidth=1)
