"""Draws what `drawings.py` holds. One small panel per workload, so that its text is still readable on a phone."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from dynbench.report.drawings import Curve, Line, Paths, Speedups, Trend, Work
from dynbench.report.palette import INK, MUTED, PAPER, RULE, TONES
from dynbench.report.values import percent, significant, times

Drawing = Speedups | Work | Paths | Trend
SIZE_IN = (5.2, 3.5)
FONT_PT = 10
RATIOS = (*(0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.33, 0.5, 0.67, 0.8), 1, *(1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 20, 50))
TREND_HEIGHT_IN = 4.6
MOST_COMMITS = 16  # named along the axis
LINE_HEIGHT = 0.072  # of the axes: how far labels at the end of lines keep apart
PNG_DPI = 160


def _colour(name: str) -> str:
    return TONES[name].light


@contextmanager
def _style() -> Iterator[None]:
    settings = {
        "svg.fonttype": "none", "svg.hashsalt": "dynbench", "text.parse_math": False,
        "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": FONT_PT,
        "axes.labelsize": FONT_PT, "xtick.labelsize": FONT_PT, "ytick.labelsize": FONT_PT,
        "text.color": _colour(INK), "axes.labelcolor": _colour(MUTED), "axes.edgecolor": _colour(MUTED),
        "xtick.color": _colour(MUTED), "ytick.color": _colour(MUTED), "grid.color": _colour(RULE),
        "axes.facecolor": "none", "figure.facecolor": "none", "axes.linewidth": 0.8,
    }  # fmt: skip
    with matplotlib.rc_context():
        sns.set_theme(style="ticks", rc=settings)
        yield


def draw(drawing: Drawing) -> Figure:
    """A figure in the light colours of `palette`, without paper."""
    with _style():
        figure = Figure(figsize=SIZE_IN, layout="constrained")
        if isinstance(drawing, Trend):
            _trend(figure, drawing)
        elif isinstance(drawing, Speedups):
            _speedups(figure.add_subplot(), drawing)
        elif isinstance(drawing, Work):
            _work(figure, figure.add_subplot(), drawing)
        else:
            _paths(figure.add_subplot(), drawing)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # laid out once: every format shows the same
    return figure


def as_svg(figure: Figure) -> str:
    """SVG with its text as text; the same drawing gives the same bytes with the same matplotlib."""
    svg = io.StringIO()
    with _style():
        figure.savefig(svg, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return svg.getvalue()


def as_png(figure: Figure) -> bytes:
    """PNG on light paper."""
    png = io.BytesIO()
    with _style():
        figure.savefig(png, format="png", dpi=PNG_DPI, facecolor=_colour(PAPER), metadata={"Software": None})
    return png.getvalue()


def _speedups(axes: Axes, d: Speedups) -> None:
    log_x = d.over == "batch size"
    values = [v for line in d.lines for v in (*line.low, *line.high) if v > 0] + [y for _, y in d.ideal] + [1.0]
    axes.set_yscale("log")
    axes.set_ylim(min(values) / 1.08, max(values) * 1.08)
    _ratio_ticks(axes)
    xs = sorted({x for line in d.lines for x in line.x})
    if log_x:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(xs))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        margin = 2 ** (0.05 * max(np.log2(xs[-1] / xs[0]), 1))
        axes.set_xlim(xs[0] / margin, xs[-1] * margin)
        axes.set_xlabel("batch size (items)")
    else:
        axes.set_xlim(min(0.2, xs[0] - 0.03, (1.0 if d.learned is None else d.learned) - 0.03), max(xs[-1], 1.0) + 0.02)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: percent(x)))
        axes.set_xlabel("keep-rate of made-up decisions")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylabel(f"speed-up against {_short(d.baseline)}")
    axes.grid(axis="y", linewidth=0.7)
    axes.axhline(1, color=_colour(INK), linewidth=1)
    labels: list[tuple[float, str, str]] = []
    if d.ideal:
        x, y = zip(*d.ideal, strict=True)
        axes.plot(x, y, color=_colour(INK), linewidth=1.4, dashes=(4, 2.5))
        labels.append((y[-1], f"ideal {times(y[-1])}" if log_x else "ideal", INK))
    for line in d.lines:
        _line(axes, line)
        if line.x[-1] == xs[-1]:
            labels.append((line.y[-1], _short(line.name) + (f" {times(line.y[-1])}" if log_x else ""), line.tone))
        else:
            axes.annotate(
                _short(line.name), (line.x[-1], line.y[-1]), xytext=(5, 5), textcoords="offset points",
                color=_colour(line.tone),
            )  # fmt: skip
    for name, rate in d.break_even.items():
        tone = next(line.tone for line in d.lines if line.name == name)
        axes.plot(rate, 1, marker="o", markersize=9, markerfacecolor=_colour(PAPER), markeredgewidth=1.6,
                  color=_colour(tone), zorder=5)  # fmt: skip
    if d.learned is not None:
        axes.axvline(d.learned, color=_colour(MUTED), linewidth=1, dashes=(1, 2))
        axes.annotate(
            "learned", (d.learned, 1), xycoords=("data", "axes fraction"), xytext=(4, -2), textcoords="offset points",
            color=_colour(MUTED), va="top", fontsize=FONT_PT - 1,
        )  # fmt: skip
    _end_labels(axes, labels)
    sns.despine(ax=axes)


def _line(axes: Axes, line: Line) -> None:
    colour = _colour(line.tone)
    if not line.static:
        axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.18, linewidth=0)
    axes.vlines(line.x, line.low, line.high, color=colour, linewidth=1)
    marker = "" if line.static else TONES[line.tone].marker
    dashes = (1, 1.6) if line.static else ()
    axes.plot(line.x, line.y, color=colour, linewidth=1.8, marker=marker, markersize=5.5, dashes=dashes,
              markeredgewidth=0)  # fmt: skip


def _end_labels(axes: Axes, labels: Sequence[tuple[float, str, str]], apart: float = LINE_HEIGHT) -> None:
    """Names the lines where they end, beside the axes, moved apart so that they can be read."""
    low, high = np.log(axes.get_ylim())
    ordered = sorted(labels, key=lambda label: label[0])
    wanted = np.array([(np.log(y) - low) / (high - low) for y, _, _ in ordered])
    for (_, text, tone), at, end in zip(ordered, spread(wanted, apart), wanted, strict=True):
        axes.annotate(
            text, (1.0, end), xycoords="axes fraction", xytext=(1.05, at), textcoords="axes fraction",
            color=_colour(tone), va="center", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": _colour(tone), "linewidth": 0.7, "shrinkA": 1, "shrinkB": 1},
        )  # fmt: skip


def spread(wanted: np.ndarray, apart: float) -> np.ndarray:
    """Positions nearest to the wanted ones (least squares, same order) that keep a distance.

    Args:
        wanted: [n], ascending.
        apart: the distance.
    """
    blocks: list[list[float]] = []  # [sum of offsets, how many]: each block moves as one (pool adjacent violators)
    for i, y in enumerate(wanted):
        blocks.append([y - i * apart, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            last = blocks.pop()
            blocks[-1] = [blocks[-1][0] + last[0], blocks[-1][1] + last[1]]
    offsets = [total / n for total, n in blocks for _ in range(int(n))]
    return np.array(offsets) + apart * np.arange(len(offsets))


def _ratio_ticks(axes: Axes) -> None:
    low, high = axes.get_ylim()
    inside = [r for r in RATIOS if low <= r <= high]
    kept: list[float] = []
    for r in sorted(inside, key=lambda r: (r != 1, RATIOS.index(r))):  # 1 always stays
        if all(abs(np.log(r / k)) > 0.09 * np.log(high / low) for k in kept):
            kept.append(r)
    axes.yaxis.set_major_locator(FixedLocator(sorted(kept)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}x"))


def _work(figure: Figure, axes: Axes, d: Work) -> None:
    figure.set_size_inches(SIZE_IN[0], max(2.0, 0.34 * len(d.bars) + 0.9))
    amounts = [b.flops / 1e6 for b in d.bars]
    colours = {b.label: _colour(b.tone) for b in d.bars}
    names = [b.label for b in d.bars]
    sns.barplot(x=amounts, y=names, hue=names, palette=colours, legend=False, ax=axes, width=0.62, saturation=1,
                errorbar=None, edgecolor="none")  # fmt: skip
    for patch, bar in zip(axes.patches, d.bars, strict=True):  # filled: what ran; hollow: what was asked for or claimed
        if not bar.executed:
            patch.set(facecolor="none", edgecolor=_colour(bar.tone), linewidth=1.2)
            patch.set_linestyle("--" if bar.tone == MUTED else "-")
    for i, amount in enumerate(amounts):
        axes.annotate(significant(amount), (amount, i), xytext=(5, 0), textcoords="offset points", va="center")
    dense = next((a for a, b in zip(amounts, d.bars, strict=True) if b.label.startswith("dense")), None)
    if dense is not None:
        axes.axvline(dense, color=_colour(INK), linewidth=0.8, dashes=(4, 2.5))
    axes.set_yticks(range(len(names)), [_short(n, 30) for n in names])
    axes.set_xlim(0, max(amounts) * 1.16)
    axes.set_xlabel("MFLOP per item")
    axes.set_ylabel("")
    axes.tick_params(axis="y", length=0, labelcolor=_colour(INK))
    sns.despine(ax=axes, left=True)


def _paths(axes: Axes, d: Paths) -> None:
    places = np.arange(len(d.paths))
    step = min(0.18, 0.7 / len(d.arms))
    labels: list[tuple[float, str, str]] = []
    if d.baseline is not None:
        name, q = d.baseline
        axes.axhspan(q[1], q[3], color=_colour(MUTED), alpha=0.18, linewidth=0)
        axes.axhline(q[2], color=_colour(MUTED), linewidth=1.2, dashes=(1, 1.6))
        labels.append((q[2], _short(name), MUTED))
    for i, arm in enumerate(d.arms):
        x = places + (i - (len(d.arms) - 1) / 2) * step
        low, lower, middle, upper, high = np.array(arm.quantiles).T  # each [paths]
        colour, marker = _colour(arm.tone), TONES[arm.tone].marker
        axes.vlines(x, low, high, color=colour, linewidth=1)
        axes.vlines(x, lower, upper, color=colour, linewidth=2.8)
        axes.plot(x, middle, color=colour, linewidth=1, alpha=0.55)
        axes.plot(x, middle, color=colour, linestyle="", marker=marker, markersize=6.5,
                  markeredgecolor=_colour(PAPER), markeredgewidth=0.7)  # fmt: skip
        labels.append((float(middle[-1]), arm.name, arm.tone))
    drawn = [v for arm in d.arms for q in arm.quantiles for v in q] + ([] if d.baseline is None else d.baseline[1])
    axes.set_yscale("log")
    axes.set_ylim(min(drawn) / 1.08, max(drawn) * 1.08)
    _time_ticks(axes)
    axes.set_xticks(places, [f"{path}\nn={n}" for path, n in zip(d.paths, d.items, strict=True)])
    axes.set_xlim(-0.6, len(places) - 0.4)
    axes.set_xlabel(f"{d.counted_in} (n: inputs that went this way)")
    axes.set_ylabel("ms per input, batch 1")
    axes.grid(axis="y", linewidth=0.7)
    _end_labels(axes, labels)
    sns.despine(ax=axes)


def _trend(figure: Figure, d: Trend) -> None:
    """Speed-ups above, times below; a ring and a line mark where a level changes."""
    figure.set_size_inches(SIZE_IN[0], TREND_HEIGHT_IN)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    ends = [v for c in d.curves for s in c.speedups for v in (s.low, s.high) if v > 0] + [1.0]
    item_ms = [v for c in d.curves for v in c.item_ms]
    for axes, drawn in ((above, ends), (below, item_ms)):
        axes.set_yscale("log")
        axes.set_ylim(min(drawn) / 1.08, max(drawn) * 1.08)
        axes.grid(axis="y", linewidth=0.7)
    _ratio_ticks(above)
    _time_ticks(below)
    above.axhline(1, color=_colour(INK), linewidth=1)
    for curve in d.curves:
        if curve.speedups:
            _curve(above, curve, [s.value for s in curve.speedups])
            above.vlines(curve.runs, [s.low for s in curve.speedups], [s.high for s in curve.speedups],
                         color=_colour(curve.tone), linewidth=1, alpha=0.5)  # fmt: skip
        _curve(below, curve, curve.item_ms)
    changed = [c for c in d.curves if c.changes]
    for run in sorted({run for c in changed for run in c.changes}):
        for axes in (above, below):
            axes.axvline(run, color=_colour(MUTED), linewidth=0.8, dashes=(2, 2), zorder=0)
        above.annotate(
            d.labels[run], (run, 1), xycoords=("data", "axes fraction"), xytext=(0, 3), textcoords="offset points",
            color=_colour(INK), fontsize=FONT_PT - 2, ha="center", va="bottom", annotation_clip=False,
        )  # fmt: skip
    apart = LINE_HEIGHT * SIZE_IN[1] / TREND_HEIGHT_IN
    _end_labels(above, [(c.speedups[-1].value, _short(c.name), c.tone) for c in d.curves if c.speedups], apart * 5 / 3)
    _end_labels(below, [(c.item_ms[-1], _short(c.name), c.tone) for c in d.curves], apart * 5 / 2)
    sns.despine(figure)
    above.set_ylabel(f"speed-up against\n{_short(d.baseline)}")
    below.set_ylabel("ms per item")
    step = max(1, -(-len(d.labels) // MOST_COMMITS))
    shown = range(len(d.labels) - 1, -1, -step)
    below.set_xticks(list(shown), [d.labels[i] for i in shown], rotation=45, ha="right", fontsize=FONT_PT - 2)
    below.set_xlim(-0.5, len(d.labels) - 0.5)


def _curve(axes: Axes, curve: Curve, y: Sequence[float]) -> None:
    colour = _colour(curve.tone)
    marker = "" if curve.static else TONES[curve.tone].marker
    axes.plot(curve.runs, y, color=colour, linewidth=1.4, marker=marker, markersize=3.5, markeredgewidth=0,
              dashes=(1, 1.6) if curve.static else ())  # fmt: skip
    at = dict(zip(curve.runs, y, strict=True))
    alone = [run for run, is_alone in zip(curve.runs, curve.alone, strict=True) if is_alone]
    axes.plot(alone, [at[r] for r in alone], linestyle="", marker="x", markersize=6, color=colour)
    axes.plot(curve.changes, [at[r] for r in curve.changes], linestyle="", marker="o", markersize=9,
              markerfacecolor="none", markeredgewidth=1.6, color=colour)  # fmt: skip


def _time_ticks(axes: Axes) -> None:
    low, high = axes.get_ylim()
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)):
        ticks = [s * 10.0**e for e in decades for s in steps if low <= s * 10.0**e <= high]
        if len(ticks) >= 4:
            break
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))


def _short(name: str, most: int = 22) -> str:
    """A name that still fits beside a figure; the tables have it whole."""
    return name if len(name) <= most else f"{name[: most - 1]}…"
