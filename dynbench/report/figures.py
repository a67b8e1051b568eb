"""Draws what `drawings.py` holds. One small panel per workload, so that its text is still readable on a phone.

A report of a large run has hundreds of figures: each is laid out by arithmetic and drawn once. seaborn gives the style;
its plotting functions, which aggregate data that is aggregated already, take ten times as long as matplotlib's.
"""

from __future__ import annotations

import io
import math
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from matplotlib.transforms import IdentityTransform

from dynbench.analysis.formatting import percent, significant, times
from dynbench.report.drawings import Curve, Line, Paths, Speedups, Tradeoff, Trend, Work
from dynbench.report.palette import INK, MUTED, PAPER, RULE, STRATEGIES, TONES

Drawing = Speedups | Tradeoff | Work | Paths | Trend
Tick = tuple[float, str]
Label = tuple[float, str, str]  # where a line ends, its name, its tone

DPI = 72  # a pixel is a point
PIXELS = IdentityTransform()  # of the figure, from its lower left corner
WIDTH, HEIGHT = 374.0, 252.0  # pixels, as all lengths here
TOP, RIGHT = 6.0, 4.0  # margins
FONT, FONT_SIZE, SMALL = "DejaVu Sans", 10.0, 8.0  # of wide letters: other fonts fit where it fits
GAP = 5.0  # between an axis and the texts of its ticks
TITLE = 14.0  # height of a vertical axis's title
NAME = 140.0  # a longer name is cut
LEADER = 12.0  # from where a line ends to its name
APART = 13.0  # names at the ends of lines
THICK, NORMAL, THIN = 3.2, 1.8, 1.0  # lines: deployed ones, others, and others beside deployed ones
DOTS, DASHES = (0, (1.5, 2.5)), (0, (5, 3))
SLANTED: dict[str, Any] = {"rotation": 45, "rotation_mode": "anchor", "ha": "right", "fontsize": SMALL}  # of ticks
ASLANT = math.sin(math.radians(45))
RATIOS = (*(0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.33, 0.5, 0.67, 0.8), 1, *(1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 20, 50))
MOST_COMMITS = 16  # named along the axis


@contextmanager
def theme() -> Iterator[None]:
    """The style of all figures: seaborn's, in the light colours of `palette`, without paper."""
    text = dict.fromkeys(("font.size", "axes.labelsize", "xtick.labelsize", "ytick.labelsize"), FONT_SIZE)
    muted = ("axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    own = {
        **text,
        **dict.fromkeys(muted, _colour(MUTED)),
        "text.color": _colour(INK),
        "grid.color": _colour(RULE),
        "grid.linewidth": 0.7,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "figure.dpi": DPI,
        "axes.linewidth": 0.8,
        "xtick.major.width": 0.8,
        "xtick.major.size": GAP,
        "xtick.major.pad": GAP / 2,
        "ytick.major.size": 0,  # the grid shows where they are
        "ytick.major.pad": GAP,
        "lines.markeredgewidth": 0,
        "lines.scale_dashes": False,
        "text.parse_math": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "dynbench",
    }
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # the reader's fonts are others
        sns.set_theme(style="ticks", palette=[_colour(name) for name in STRATEGIES], font=FONT, rc=own)
        yield


def draw(drawing: Drawing) -> str:
    """A figure as matplotlib's SVG, drawn in the `theme`; its text is text."""
    if isinstance(drawing, Trend):
        figure = _trend(drawing)
    elif isinstance(drawing, Speedups):
        figure = _speedups(drawing)
    elif isinstance(drawing, Tradeoff):
        figure = _tradeoff(drawing)
    else:
        figure = _work(drawing) if isinstance(drawing, Work) else _paths(drawing)
    code = io.StringIO()
    FigureCanvasSVG(figure).print_svg(code, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return code.getvalue()


# --- speed-ups -------------------------------------------------------------------------------------------------------


def _speedups(d: Speedups) -> Figure:
    over_batch = d.over == "batch size"
    limits = _around([*(v for line in d.lines for v in (*line.low, *line.high)), *(v for _, v in d.ideal), 1.0])
    last = max(line.x[-1] for line in d.lines)
    ends = [("ideal", d.ideal[-1][1], INK)] if d.ideal else []
    ends += [(_short(line.name), line.y[-1], line.tone) for line in d.lines if line.x[-1] == last]
    labels = [(at, f"{name} {times(at)}" if over_batch else name, tone) for name, at, tone in ends]
    ticks = ratio_ticks(*limits)
    figure = _figure(HEIGHT)
    axes = _log_axes(figure, limits, ticks, labels, bottom=38)
    if over_batch:
        _batch_axis(axes, d)
    else:
        _rate_axis(axes, d)
    axes.axhline(1, color=_colour(INK), linewidth=1)
    if d.learned is not None:
        _learned(axes, d.learned)
    if d.ideal:
        axes.plot(*zip(*d.ideal, strict=True), color=_colour(INK), linewidth=1.4, linestyle=DASHES)
    others = THIN if any(line.deployed for line in d.lines) else NORMAL
    for line in d.lines:
        _line(axes, line, THICK if line.deployed else others)
    for line in d.lines:
        if line.name in d.break_even:
            _ring(axes, [d.break_even[line.name]], [1], line.tone)
    _names_inside(axes, [line for line in d.lines if line.x[-1] != last])
    _names_beside(axes, labels)
    _titles(axes, "batch size (items)" if over_batch else "keep-rate of made-up decisions", _against(d.baseline))
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
    axes.axvline(rate, color=_colour(MUTED), linewidth=1, linestyle=DOTS)
    box, x, size = axes.bbox, axes.transData.transform((rate, 1))[0], FONT_SIZE - 1
    fits = x + GAP + text_width("learned", size) < box.x1
    place, side = (x + GAP, "left") if fits else (x - GAP, "right")
    axes.text(place, box.y1 - 6, "learned", color=_colour(MUTED), size=size, ha=side, va="center", transform=PIXELS)


def _line(axes: Axes, line: Line, width: float) -> None:
    colour = _colour(line.tone)
    if line.static:
        axes.plot(line.x, line.y, color=colour, linewidth=width, linestyle=DOTS)
    else:
        axes.fill(
            [*line.x, *reversed(line.x)], [*line.low, *reversed(line.high)], color=colour, alpha=0.18, linewidth=0
        )
        size = 7.0 if line.deployed else 5.6
        axes.plot(line.x, line.y, color=colour, linewidth=width, **_marker(line.tone, size, hollow=line.hollow))
    _spans(axes, line.x, line.low, line.high, color=colour, linewidth=1)


def _names_inside(axes: Axes, lines: Sequence[Line]) -> None:
    """Names the lines that end before the axis does, each above its end, moved apart and to where it fits."""
    box = axes.bbox
    ordered = sorted(lines, key=lambda line: line.y[-1])
    heights = [_height(axes, line.y[-1]) + 8 for line in ordered]
    places = spread(heights, APART, box.y0 + APART / 2, box.y1 - APART / 2)
    for line, y in zip(ordered, places, strict=True):
        name = _short(line.name, box.width - GAP)
        end = axes.transData.transform((line.x[-1], 1))[0]
        x = min(end + 6, box.x1 - text_width(name))
        axes.text(x, y, name, color=_colour(line.tone), va="center", transform=PIXELS)


# --- accuracy against time -------------------------------------------------------------------------------------------


def _tradeoff(d: Tradeoff) -> Figure:
    """A row per network, at its accuracy; the better is above."""
    networks = {p.network: p for p in reversed(d.points)}  # the fastest arm of each
    labels = [(p.accuracy, _short(name), p.tone) for name, p in networks.items()]
    left, right = _around(p.item_ms for p in d.points)
    worst, best = min(p.accuracy for p in d.points), max(p.accuracy for p in d.points)
    margin = 0.12 * (best - worst) or 0.01 * abs(best) or 1.0
    bottom, top = worst - margin, best + margin
    ticks = [(tick, f"{tick:.10g}") for tick in even_ticks(bottom, top, 6)]
    figure = _figure(max(HEIGHT, APART * len(labels) + 60))
    axes = _axes(figure, _room_left(ticks), _room_right(labels), bottom=38)
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
        axes.axhline(accuracy, color=_colour(tone), linewidth=0.6)
    front = [(p.item_ms, p.accuracy) for p in d.points if p.front]
    x, y = zip(*front, (right, front[-1][1]), strict=True)
    axes.plot(x, y, color=_colour(INK), linewidth=1.4, linestyle=DASHES, drawstyle="steps-post")
    for p in d.points:
        marker = _marker(p.tone, 8.0 if p.deployed else 5.6, hollow=not p.deployed)
        axes.plot([p.item_ms], [p.accuracy], color=_colour(p.tone), linestyle="", **marker)
    _names_beside(axes, labels)
    metric = _short(d.metric, 170)
    _titles(axes, f"ms per item, batch {d.batch_size}", metric if d.higher_is_better else f"{metric}, lower is better")
    return figure


# --- work ------------------------------------------------------------------------------------------------------------


def _work(d: Work) -> Figure:
    figure = _figure(max(144.0, 24 * len(d.bars) + 50))
    names = [_short(bar.label, 190) for bar in d.bars]
    amounts = [bar.flops / 1e6 for bar in d.bars]
    shown = [significant(amount) for amount in amounts]
    axes = _axes(figure, left=max(map(text_width, names)) + 2 * GAP, right=RIGHT, bottom=38)
    width = axes.bbox.width
    high = max(a * width / (width - GAP - text_width(text)) for a, text in zip(amounts, shown, strict=True))
    axes.set_xlim(0, high or 1)
    axes.set_ylim(len(d.bars) - 0.4, -0.6)
    for i, (bar, amount, text) in enumerate(zip(d.bars, amounts, shown, strict=True)):
        colour = _colour(bar.tone)
        if bar.executed:  # filled: what ran; hollow: what was required or claimed
            axes.barh(i, amount, 0.62, color=colour, linewidth=0)
        else:
            dashes = (0, (4, 2)) if bar.tone == MUTED else "solid"
            axes.barh(i, amount, 0.62, color="none", edgecolor=colour, linewidth=1.2, linestyle=dashes)
        axes.annotate(text, (amount, i), xytext=(GAP, 0), textcoords="offset points", va="center")
    if d.dense is not None:
        axes.axvline(d.dense / 1e6, color=_colour(INK), linewidth=0.8, linestyle=DASHES)
    axes.set_yticks(range(len(names)), names, color=_colour(INK))
    ticks = [(tick, f"{tick:,.10g}") for tick in even_ticks(0, axes.get_xlim()[1])]
    widest = max(text_width(text) for _, text in ticks) + GAP
    some = slice(None, None, math.ceil(widest * len(ticks) / width))  # as many as there is room for
    axes.set_xticks([tick for tick, _ in ticks[some]], [text for _, text in ticks[some]])
    _titles(axes, "MFLOP per item")
    sns.despine(ax=axes, left=True)
    return figure


# --- latency by path -------------------------------------------------------------------------------------------------


def _paths(d: Paths) -> Figure:
    drawn = [v for arm in d.arms for quantiles in arm.quantiles for v in quantiles]
    limits = _around([*drawn, *(v for _, quantiles in d.baselines for v in quantiles)])
    labels = [(arm.quantiles[-1][2], _short(arm.name), arm.tone) for arm in d.arms]
    labels = [*((quantiles[2], _short(name), MUTED) for name, quantiles in d.baselines), *labels]
    ticks = time_ticks(*limits)
    counts = [f"n={n}" for n in d.items]
    room = (WIDTH - _room_left(ticks) - _room_right(labels)) / len(d.paths) - GAP
    crowded = max(map(text_width, [*d.paths, *counts])) > room
    names = [f"{path}, {n}" if crowded else f"{path}\n{n}" for path, n in zip(d.paths, counts, strict=True)]
    deep = ASLANT * max(text_width(name, SMALL) for name in names) if crowded else 2 * FONT_SIZE
    figure = _figure(HEIGHT + deep - 2 * FONT_SIZE)
    axes = _log_axes(figure, limits, ticks, labels, bottom=30 + deep, left=max(_room_left(ticks), deep))
    axes.set_xlim(-0.6, len(d.paths) - 0.4)
    for _, (_, lower, middle, upper, _) in d.baselines:
        axes.axhspan(lower, upper, color=_colour(MUTED), alpha=0.18, linewidth=0)
        axes.axhline(middle, color=_colour(MUTED), linewidth=1.2, linestyle=DOTS)
    step = min(0.18, 0.7 / len(d.arms))
    for i, arm in enumerate(d.arms):
        places = [path + (i - (len(d.arms) - 1) / 2) * step for path in range(len(d.paths))]
        lowest, lower_quarter, medians, upper_quarter, highest = zip(*arm.quantiles, strict=True)
        colour = _colour(arm.tone)
        _spans(axes, places, lowest, highest, color=colour, linewidth=1)
        _spans(axes, places, lower_quarter, upper_quarter, color=colour, linewidth=2.8)
        axes.plot(places, medians, color=colour, linewidth=1, alpha=0.55)
        axes.plot(places, medians, color=colour, linestyle="", **_marker(arm.tone, 6.6, hollow=arm.hollow))
    _names_beside(axes, labels)
    axes.set_xticks(range(len(d.paths)), names, **(SLANTED if crowded else {}))
    _titles(axes, f"{_short(d.counted_in, 180)} (n: inputs that went this way)", "ms per input, batch 1")
    return figure


# --- history ---------------------------------------------------------------------------------------------------------


def _trend(d: Trend) -> Figure:
    """Speed-ups above, times below; a ring and a line mark where a level changes."""
    ratios = _around([*(v for c in d.curves for s in c.speedups for v in (s.low, s.high)), 1.0])
    times_ms = _around(v for c in d.curves for v in c.item_ms)
    above_labels = [(c.speedups[-1].value, _short(c.name), c.tone) for c in d.curves if c.speedups]
    below_labels = [(c.item_ms[-1], _short(c.name), c.tone) for c in d.curves]
    above_ticks, below_ticks = ratio_ticks(*ratios), time_ticks(*times_ms)
    height, depth = (max(least, APART * len(found)) for least, found in ((154, above_labels), (101, below_labels)))
    figure = _figure(TOP + 10 + height + 12 + depth + 48)
    room = {"left": TITLE + _room_left([*above_ticks, *below_ticks]), "right": _room_right(below_labels)}
    above = _log_axes(figure, ratios, above_ticks, above_labels, bottom=depth + 60, top=TOP + 10, **room)
    below = _log_axes(figure, times_ms, below_ticks, below_labels, bottom=48, top=TOP + 22 + height, **room)
    for axes in (above, below):
        axes.set_xlim(-0.5, len(d.labels) - 0.5)
    changes = sorted({run for c in d.curves for run in c.changes})
    for run in changes:
        for axes in (above, below):
            axes.axvline(run, color=_colour(MUTED), linewidth=0.8, linestyle=(0, (2, 2)))
    _names_above(above, [(run, _short(d.labels[run])) for run in changes])
    above.axhline(1, color=_colour(INK), linewidth=1)
    for curve in d.curves:
        if curve.speedups:
            low, high = [s.low for s in curve.speedups], [s.high for s in curve.speedups]
            _spans(above, curve.runs, low, high, color=_colour(curve.tone), linewidth=0.6)
            _curve(above, curve, [s.value for s in curve.speedups])
        _curve(below, curve, curve.item_ms)
    _names_beside(above, above_labels)
    _names_beside(below, below_labels)
    above.set_xticks([])
    named = range(len(d.labels) - 1, -1, -max(1, -(-len(d.labels) // MOST_COMMITS)))
    commits = [_short(d.labels[i]) for i in named]
    below.set_xticks(named, commits, **SLANTED)
    _titles(above, beside=_against(d.baseline, "\n"))
    _titles(below, beside="ms per item")
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
    colour = _colour(curve.tone)
    _ring(axes, curve.changes, [at[run] for run in curve.changes], curve.tone)
    marker = {} if curve.static else _marker(curve.tone, 3.6, hollow=curve.hollow)
    axes.plot(curve.runs, y, color=colour, linewidth=1.4, linestyle=DOTS if curve.static else "solid", **marker)
    outliers = [run for run, is_outlier in zip(curve.runs, curve.outliers, strict=True) if is_outlier]
    if outliers:
        heights = [at[run] for run in outliers]
        axes.plot(outliers, heights, color=colour, linestyle="", marker="x", markersize=6, markeredgewidth=1)


# --- layout ----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=2**16)
def text_width(text: str, size: float = FONT_SIZE) -> float:
    """How wide a text is in DejaVu Sans; Chinese and other wide letters, which it lacks, count as a W each."""
    known = "".join("W" if unicodedata.east_asian_width(letter) in "WF" else letter for letter in text)
    width, _, _ = text_to_path.get_text_width_height_descent(known, FontProperties(family=FONT, size=size), False)
    return float(width)


def spread(wanted: Sequence[float], apart: float, low: float = -math.inf, high: float = math.inf) -> list[float]:
    """Positions nearest to the wanted ones (least squares, same order) that keep a distance.

    Args:
        wanted: ascending.
        apart: the distance.
        low: no position is below it.
        high: no position is above it, if there is room for all.
    """
    blocks: list[tuple[float, int]] = []  # sum of offsets, how many: each block moves as one (pool adjacent violators)
    for i, y in enumerate(wanted):
        blocks.append((y - i * apart, 1))
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, n = blocks.pop()
            blocks[-1] = (blocks[-1][0] + total, blocks[-1][1] + n)
    offsets = [total / n for total, n in blocks for _ in range(n)]
    highest = high - (len(offsets) - 1) * apart
    return [max(min(offset, highest), low) + i * apart for i, offset in enumerate(offsets)]


def _figure(height: float) -> Figure:
    return Figure(figsize=(WIDTH / DPI, height / DPI))


def _axes(figure: Figure, left: float, right: float, bottom: float, top: float = TOP) -> Axes:
    """Axes with margins in pixels."""
    width, height = figure.bbox.width, figure.bbox.height
    place = (left / width, bottom / height, (width - left - right) / width, (height - bottom - top) / height)
    axes = figure.add_axes(place)
    axes.autoscale(False)
    return axes


def _log_axes(
    figure: Figure,
    limits: tuple[float, float],
    ticks: Sequence[Tick],
    labels: Sequence[Label],
    bottom: float,
    **margins: float,
) -> Axes:
    """Axes with a logarithmic vertical axis, and room for its ticks and for the names of lines beside them."""
    room = {"left": _room_left(ticks), "right": _room_right(labels)} | margins
    axes = _axes(figure, bottom=bottom, **room)
    axes.set_yscale("log")
    axes.set_ylim(*limits)
    axes.set_yticks([value for value, _ in ticks], [text for _, text in ticks])
    axes.yaxis.minorticks_off()
    axes.grid(axis="y")
    sns.despine(ax=axes)
    return axes


def _room_left(ticks: Sequence[Tick]) -> float:
    return TITLE + max(text_width(text) for _, text in ticks) + GAP


def _room_right(labels: Sequence[Label]) -> float:
    return LEADER + max((text_width(text) for _, text, _ in labels), default=0.0) + RIGHT


def _titles(axes: Axes, below: str = "", beside: str = "") -> None:
    """Titles of the axes at the edges of the figure; a wide one is moved to where it fits.

    They are placed even where there is none, as matplotlib otherwise measures all ticks to find their places.
    """
    figure, box = axes.figure.bbox, axes.bbox
    axes.set(xlabel=below, ylabel=beside)
    x = _inside((box.x0 + box.x1) / 2, text_width(below), figure.width)
    axes.xaxis.set_label_coords(x, 2 + FONT_SIZE, transform=PIXELS)
    lines = beside.split("\n")
    y = _inside((box.y0 + box.y1) / 2, max(map(text_width, lines)), figure.height)
    axes.yaxis.set_label_coords(TITLE - 2 + (FONT_SIZE + 2) * (len(lines) - 1), y, transform=PIXELS)


def _inside(middle: float, length: float, end: float) -> float:
    """The middle of what is to lie between 0 and `end`."""
    return max(min(middle, end - length / 2), length / 2)


def _names_beside(axes: Axes, labels: Sequence[Label]) -> None:
    """Names the lines where they end, beside the axes, moved apart so that they can be read."""
    box, half = axes.bbox, APART / 2
    fits = APART * len(labels) <= box.height
    low, high = (box.y0, box.y1 - half) if fits else (half, axes.figure.bbox.height - half)
    right = box.x1
    at = [(_height(axes, label[0]), label) for label in labels]
    at = sorted(at, key=lambda pair: pair[0], reverse=True)[::-1]  # of equal ones the first is above
    ends, ordered = [end for end, _ in at], [label for _, label in at]
    places = spread(ends, APART, low, high)
    leaders = [[(right + 1, end), (right + LEADER - 2, place)] for end, place in zip(ends, places, strict=True)]
    colours = [_colour(tone) for _, _, tone in ordered]
    lines = LineCollection(leaders, colors=colours, linewidths=1, transform=PIXELS, clip_on=False)
    axes.add_collection(lines, autolim=False)
    for place, colour, (_, text, _) in zip(places, colours, ordered, strict=True):
        axes.text(right + LEADER, place, text, color=colour, va="center", transform=PIXELS)


def _height(axes: Axes, y: float) -> float:
    """Where a value lies, in pixels of the figure."""
    return float(axes.transData.transform((1, y))[1])


# --- parts -----------------------------------------------------------------------------------------------------------


def _colour(tone: str) -> str:
    return TONES[tone].light


def _marker(tone: str, size: float, *, hollow: bool) -> dict[str, Any]:
    """A strategy's marker, as arguments of `plot`."""
    filled: dict[str, Any] = {"marker": TONES[tone].marker, "markersize": size}
    return filled | {"markerfacecolor": _colour(PAPER), "markeredgewidth": 1.5} if hollow else filled


def _ring(axes: Axes, x: Sequence[float], y: Sequence[float], tone: str) -> None:
    if x:
        axes.plot(x, y, color=_colour(tone), linestyle="", **_marker(tone, 9, hollow=True) | {"marker": "o"})


def _spans(axes: Axes, x: Sequence[float], low: Sequence[float], high: Sequence[float], **style: Any) -> None:
    """Vertical bars from low to high, drawn as one line with gaps."""
    gaps = np.full(len(x), np.nan)
    axes.plot(np.repeat(x, 3), np.column_stack([low, high, gaps]).ravel(), **style)


def _against(baseline: str, space: str = " ") -> str:
    return f"speed-up against{space}{_short(baseline)}"


def _short(name: str, most: float = NAME) -> str:
    """A name on one line that still fits beside a figure; the tables have it whole."""
    name = "".join(letter for letter in " ".join(name.split()) if letter.isprintable())
    if text_width(name) <= most:
        return name
    while name and text_width(f"{name}…") > most:
        name = name[:-1]
    return f"{name}…"


# --- scales ----------------------------------------------------------------------------------------------------------


def _around(values: Iterable[float]) -> tuple[float, float]:
    """Limits of a logarithmic axis, with a margin of 8 % about positive values."""
    positive = [v for v in values if v > 0]
    return min(positive) / 1.08, max(positive) * 1.08


def ratio_ticks(low: float, high: float) -> list[Tick]:
    """Ticks of a logarithmic axis of ratios, far enough apart; 1 is one if it is on the scale."""
    apart = 0.09 * math.log(high / low)
    kept: list[float] = []
    for ratio in sorted((r for r in RATIOS if low <= r <= high), key=lambda r: (r != 1, r)):
        if all(abs(math.log(ratio / k)) > apart for k in kept):
            kept.append(ratio)
    return [(r, f"{r:g}x") for r in sorted(kept)]


def time_ticks(low: float, high: float) -> list[Tick]:
    """Four ticks or more of a logarithmic axis of times, where there are as many round numbers on it."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)):
        ticks = [s * 10.0**e for e in decades for s in steps if low <= s * 10.0**e <= high]
        if len(ticks) >= 4:
            break
    if len(ticks) < 2:
        ticks = even_ticks(low, high, 5)
    return [(t, f"{t:g}") for t in ticks]


def even_ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Round numbers at even distances on a linear axis, at most so many."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(s for s in (1, 2, 2.5, 5, 10, 20) if math.floor((high - low) / (s * power)) < most) * power
    return [step * i for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
