"""Draws what `report.prediction` holds."""

from __future__ import annotations

from typing import Any

import seaborn as sns
from matplotlib.figure import Figure

from dynbench.report.layout import (
    APART,
    DASHES,
    GAP,
    RIGHT,
    TITLE,
    TOP,
    around,
    colour_of,
    marker_of,
    names_beside,
    new_axes,
    new_figure,
    room_left,
    room_right,
    set_titles,
    short,
    time_ticks,
)
from dynbench.report.palette import INK, MUTED
from dynbench.report.prediction import Frontier, Scatter

SQUARE = 260.0  # height of the figures, in pixels
NEAR = 1.25  # the dashed lines: 25 % too much, and too little


def prediction_figure(d: Scatter | Frontier) -> Figure:
    """Predicted against measured time, or break-even keep-rate against batch size."""
    return _scatter(d) if isinstance(d, Scatter) else _frontier(d)


def _scatter(d: Scatter) -> Figure:
    """A point for each cell; on the line it is right, between the dashed ones within 25 %."""
    low, high = around(v for measured, predicted, _ in d.points for v in (measured, predicted))
    ticks = time_ticks(low, high)
    figure = new_figure(SQUARE)
    axes = new_axes(figure, left=TITLE + room_left(ticks), right=RIGHT, bottom=44, top=TOP + 10)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.plot([low, high], [low, high], color=colour_of(INK), linewidth=1)
    dashed: dict[str, Any] = {"color": colour_of(MUTED), "linewidth": 0.8, "linestyle": DASHES}
    axes.plot([low, high / NEAR], [low * NEAR, high], **dashed)  # each as far as the axes go
    axes.plot([low * NEAR, high], [low, high / NEAR], **dashed)
    for measured, predicted, tone in d.points:
        axes.plot([measured], [predicted], color=colour_of(tone), linestyle="", **marker_of(tone, 5, hollow=False))
    values, texts = [value for value, _ in ticks], [text for _, text in ticks]
    axes.set_xticks(values, texts)
    axes.set_yticks(values, texts)
    axes.minorticks_off()
    set_titles(axes, "measured, ms per item", "predicted, ms per item")
    sns.despine(ax=axes)
    return figure


def _frontier(d: Frontier) -> Figure:
    """A line per strategy; below it the strategy is faster than the baseline."""
    sizes = sorted({size for _, _, points in d.lines for size, _ in points})
    labels = [(points[-1][1], short(name), tone) for name, tone, points in d.lines]
    figure = new_figure(max(SQUARE, APART * len(labels) + 80))
    axes = new_axes(figure, left=TITLE + 30, right=room_right(labels) + GAP, bottom=44, top=TOP + 10)
    axes.set_xscale("log")
    axes.set_xlim(*around(map(float, sizes)))
    axes.set_ylim(0, 1.02)
    for _, tone, points in d.lines:
        batches, rates = zip(*points, strict=True)
        axes.plot(batches, rates, color=colour_of(tone), linewidth=1.4, **marker_of(tone, 5, hollow=False))
    names_beside(axes, labels)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1.0], ["0", "0.25", "0.5", "0.75", "1"])
    axes.minorticks_off()
    set_titles(axes, "batch size", f"break-even keep-rate against {short(d.baseline)}, predicted")
    sns.despine(ax=axes)
    return figure
