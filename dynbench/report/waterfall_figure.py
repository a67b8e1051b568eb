"""Draws the waterfall of `report.waterfall`."""

from __future__ import annotations

import seaborn as sns
from matplotlib.figure import Figure

from dynbench.analysis.formatting import times
from dynbench.report.layout import (
    DOTS,
    GAP,
    RIGHT,
    TOP,
    around,
    colour_of,
    new_axes,
    new_figure,
    ratio_ticks,
    set_titles,
    short,
    text_width,
)
from dynbench.report.palette import INK, MUTED
from dynbench.report.waterfall import Fall

ROW = 24.0  # height of a bar with its distance to the next
THIN, WHOLE = 0.5, 0.62  # of a row: bars of factors, and of the two ends


def waterfall_figure(d: Fall) -> Figure:
    """A bar for the ideal, one for each factor from where the last one ended, and one for what was measured."""
    figure = new_figure(ROW * (len(d.steps) + 2) + 50)
    names = ["ideal", *(s.name for s in d.steps), "measured"]
    shown = [times(d.ideal), *(f"÷ {s.factor:.2f}" for s in d.steps), times(d.speedup)]
    axes = new_axes(figure, left=max(map(text_width, names)) + 2 * GAP, right=RIGHT, bottom=38, top=TOP)
    low, high = around([1.0, d.ideal, d.speedup, *(v for s in d.steps for v in (s.low, s.high, s.start, s.end))])
    room = (GAP + max(map(text_width, shown))) / axes.bbox.width  # for the numbers, right of the bars
    axes.set_xscale("log")
    axes.set_xlim(low, high * (high / low) ** (room / (1 - room)))
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.axvline(1, color=colour_of(INK), linewidth=1)
    for row, end in ((0, d.ideal), (len(names) - 1, d.speedup)):
        tone = INK if row == 0 else d.tone
        axes.barh(row, end - low, WHOLE, left=low, color=colour_of(tone), alpha=0.85, linewidth=0)
    for row, s in enumerate(d.steps, 1):
        clear = not s.low <= s.start <= s.high  # its interval does not contain 1
        tone = ("slower" if s.factor > 1 else "faster") if clear else "unclear"
        left, right = sorted((s.start, s.end))
        axes.barh(row, right - left, THIN, left=left, color=colour_of(tone), linewidth=0)
        axes.plot([s.low, s.high], [row, row], color=colour_of(INK), linewidth=1)
        axes.plot([s.end, s.end], [row, row + 1], color=colour_of(MUTED), linewidth=0.8, linestyle=DOTS)
    axes.plot([d.ideal, d.ideal], [0, 1], color=colour_of(MUTED), linewidth=0.8, linestyle=DOTS)
    ends = [d.ideal, *(max(s.start, s.end, s.high) for s in d.steps), d.speedup]
    for row, (end, text) in enumerate(zip(ends, shown, strict=True)):
        axes.annotate(text, (end, row), xytext=(GAP, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(names)), names, color=colour_of(INK))
    ticks = ratio_ticks(low, high)
    axes.set_xticks([value for value, _ in ticks], [text for _, text in ticks])
    axes.xaxis.minorticks_off()
    what = "speed-up" if d.of == "time" else "saving of energy"
    set_titles(axes, f"{what} against {short(d.baseline)}, batch {d.batch_size}")
    sns.despine(ax=axes, left=True)
    return figure
