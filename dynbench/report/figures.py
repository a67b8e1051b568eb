"""Draws what `drawings.py` holds. One small panel per workload, so that its text is still readable on a phone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from dynbench.analysis.formatting import percent, significant, times
from dynbench.report.drawings import Curve, Line, Paths, Speedups, Trend, Work
from dynbench.report.palette import INK, MUTED, RULE, TONES
from dynbench.report.svg import FONT_SIZE, Sheet, text_width

Drawing = Speedups | Work | Paths | Trend
Tick = tuple[float, str]
Label = tuple[float, str, str]  # where a line ends, its name, its colour

WIDTH, HEIGHT = 374.0, 252.0
TOP, RIGHT = 6.0, 4.0  # margins
SMALL = FONT_SIZE - 2
TICK, GAP = 5.0, 4.0  # length of a tick, and from there to its label
LEADER = 12.0  # from where a line ends to its name
APART = 13.0  # names at the ends of lines
DOTS, DASHES = "1.5 2.5", "5 3"
RATIOS = (*(0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.33, 0.5, 0.67, 0.8), 1, *(1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 20, 50))
MOST_COMMITS = 16  # named along the axis


def draw(drawing: Drawing) -> Sheet:
    """A figure, without paper."""
    if isinstance(drawing, Trend):
        return _trend(drawing)
    if isinstance(drawing, Speedups):
        return _speedups(drawing)
    return _work(drawing) if isinstance(drawing, Work) else _paths(drawing)


# --- axes ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scale:
    """An axis: its two ends, and whether it is logarithmic."""

    low: float
    high: float
    log: bool = False

    def share(self, value: float) -> float:
        """Where a value lies: 0 at the low end, 1 at the high one."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    @classmethod
    def around(cls, values: Iterable[float]) -> Scale:
        """A logarithmic one with a margin of 8 % about positive values."""
        values = [v for v in values if v > 0]
        return cls(min(values) / 1.08, max(values) * 1.08, log=True)


@dataclass(frozen=True)
class Axes:
    """A part of a sheet with two scales: what is drawn is given by its values.

    Attributes:
        left: of the plotted area, in pixels of the sheet; top, right and bottom likewise.
    """

    sheet: Sheet
    x: Scale
    y: Scale
    left: float
    top: float
    right: float
    bottom: float

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The place of a point."""
        return self.along(x), self.up(y)

    def along(self, x: float) -> float:
        """Where a value lies on the horizontal axis, in pixels."""
        return self.left + (self.right - self.left) * self.x.share(x)

    def up(self, y: float) -> float:
        """Where a value lies on the vertical axis, in pixels; what is off the scale is moved to its end."""
        share = self.y.share(y) if y > 0 or not self.y.log else 0.0
        return self.bottom - (self.bottom - self.top) * min(max(share, 0.0), 1.0)

    def line(
        self,
        xs: Sequence[float],
        ys: Sequence[float],
        tone: str,
        width: float,
        dash: str | None = None,
        opacity: float = 1.0,
    ) -> None:
        """A line through points."""
        self.sheet.lines([[self.at(x, y) for x, y in zip(xs, ys, strict=True)]], tone, width, dash, opacity)

    def spans(self, xs: Sequence[float], low: Sequence[float], high: Sequence[float], tone: str, width: float) -> None:
        """Vertical bars from low to high."""
        ends = zip(xs, low, high, strict=True)
        self.sheet.lines([[self.at(x, a), self.at(x, b)] for x, a, b in ends], tone, width)

    def band(self, xs: Sequence[float], low: Sequence[float], high: Sequence[float], tone: str) -> None:
        """A light area from low to high."""
        edge = [self.at(x, y) for x, y in zip(xs, low, strict=True)]
        back = [self.at(x, y) for x, y in zip(xs, high, strict=True)]
        self.sheet.area([*edge, *reversed(back)], tone, opacity=0.18)

    def marks(self, xs: Sequence[float], ys: Sequence[float], tone: str, size: float, *, hollow: bool = False) -> None:
        """The colour's own marker at every point."""
        places = [self.at(x, y) for x, y in zip(xs, ys, strict=True)]
        self.sheet.markers(places, TONES[tone].marker, tone, size, hollow=hollow)

    def level(self, y: float, tone: str, width: float, dash: str | None = None) -> None:
        """A horizontal line from end to end."""
        self.sheet.lines([[(self.left, self.up(y)), (self.right, self.up(y))]], tone, width, dash)

    def upright(self, x: float, tone: str, width: float, dash: str | None = None) -> None:
        """A vertical line from end to end."""
        self.sheet.lines([[(self.along(x), self.bottom), (self.along(x), self.top)]], tone, width, dash)

    def grid(self, ticks: Sequence[Tick]) -> None:
        """Fine horizontal lines."""
        self.sheet.lines([[(self.left, self.up(y)), (self.right, self.up(y))] for y, _ in ticks], RULE, 0.7)

    def left_axis(self, ticks: Sequence[Tick], *title: str) -> None:
        """The vertical axis with its ticks, and a title of one line or more beside it."""
        edge, middle = self.left, (self.top + self.bottom) / 2
        self.sheet.lines(
            [
                [(edge, self.top), (edge, self.bottom)],
                *([(edge - TICK, self.up(y)), (edge, self.up(y))] for y, _ in ticks),
            ],
            MUTED,
            0.8,
        )
        for y, text in ticks:
            self.sheet.text(edge - TICK - GAP, self.up(y), text, MUTED, anchor="end")
        for i, line in enumerate(title):
            self.sheet.text(7 + 12 * i, middle, line, MUTED, anchor="middle", turn=-90)

    def bottom_axis(self, ticks: Sequence[tuple[float, Sequence[str]]], title: str = "", turn: bool = False) -> None:
        """The horizontal axis with its ticks, each of one line or more, and a title beneath.

        Args:
            ticks: places and texts.
            title: of the axis.
            turn: write the ticks small and aslant.
        """
        edge = self.bottom
        self.sheet.lines(
            [
                [(self.left, edge), (self.right, edge)],
                *([(self.along(x), edge), (self.along(x), edge + TICK)] for x, _ in ticks),
            ],
            MUTED,
            0.8,
        )
        for x, texts in ticks:
            for i, text in enumerate(texts):
                if turn:
                    self.sheet.text(self.along(x), edge + TICK + GAP, text, MUTED, anchor="end", size=SMALL, turn=-45)
                else:
                    self.sheet.text(self.along(x), edge + TICK + 8 + 12 * i, text, MUTED, anchor="middle")
        if title:
            most = max((len(texts) for _, texts in ticks), default=1)
            y = edge + TICK + 12 + 12 * most
            self.sheet.text((self.left + self.right) / 2, y, title, MUTED, anchor="middle")

    def end_labels(self, labels: Sequence[Label]) -> None:
        """Names the lines where they end, beside the axes, moved apart so that they can be read."""
        ordered = sorted(((self.up(y), text, tone) for y, text, tone in labels), key=lambda label: label[0])
        ends = [y for y, _, _ in ordered]
        places = spread(ends, APART, TOP, self.sheet.height - TOP)
        for end, place, (_, text, tone) in zip(ends, places, ordered, strict=True):
            self.sheet.lines([[(self.right + 1, end), (self.right + LEADER - 2, place)]], tone, 0.7)
            self.sheet.text(self.right + LEADER, place, text, tone)


def _axes(
    sheet: Sheet, x: Scale, y: Scale, ticks: Sequence[Tick], labels: Sequence[Label], bottom: float, **place: float
) -> Axes:
    """Axes with room for the ticks and the title at their left, and for the names of lines at their right."""
    left = 14 + GAP + max(text_width(text) for _, text in ticks) + GAP + TICK
    room = LEADER + max((text_width(text) for _, text, _ in labels), default=0.0) + RIGHT
    return Axes(sheet, x, y, **{"left": left, "top": TOP, "right": sheet.width - room, "bottom": bottom} | place)


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


def ratio_ticks(scale: Scale) -> list[Tick]:
    """Ticks of a logarithmic axis of ratios, far enough apart; 1 is one if it is on the scale."""
    kept: list[float] = []
    for ratio in sorted((r for r in RATIOS if scale.low <= r <= scale.high), key=lambda r: (r != 1, r)):
        if all(abs(scale.share(ratio) - scale.share(k)) > 0.09 for k in kept):
            kept.append(ratio)
    return [(r, f"{r:g}x") for r in sorted(kept)]


def time_ticks(scale: Scale) -> list[Tick]:
    """Four ticks or more of a logarithmic axis of times, where there are as many round numbers on it."""
    decades = range(math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high)) + 1)
    ticks: list[float] = []
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)):
        ticks = [s * 10.0**e for e in decades for s in steps if scale.low <= s * 10.0**e <= scale.high]
        if len(ticks) >= 4:
            break
    if len(ticks) < 2:
        ticks = even_ticks(scale.low, scale.high, 5)
    return [(t, f"{t:g}") for t in ticks]


def even_ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Round numbers at even distances on a linear axis, at most so many."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(s for s in (1, 2, 2.5, 5, 10, 20) if math.floor((high - low) / (s * power)) < most) * power
    return [step * i for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


# --- figures ---------------------------------------------------------------------------------------------------------


def _speedups(d: Speedups) -> Sheet:
    over_batch = d.over == "batch size"
    scale, x_ticks = _batch_axis(d) if over_batch else _rate_axis(d)
    y = Scale.around([*(v for line in d.lines for v in (*line.low, *line.high)), *(v for _, v in d.ideal), 1.0])
    last = max(x for line in d.lines for x in line.x)
    ends = [("ideal", d.ideal[-1][1], INK)] if d.ideal else []
    ends += [(_short(line.name), line.y[-1], line.tone) for line in d.lines if line.x[-1] == last]
    labels = [(at, f"{name} {times(at)}" if over_batch else name, tone) for name, at, tone in ends]
    ticks = ratio_ticks(y)
    sheet = Sheet(WIDTH, HEIGHT)
    axes = _axes(sheet, scale, y, ticks, labels, bottom=HEIGHT - 38)
    axes.grid(ticks)
    axes.level(1, INK, 1)
    if d.learned is not None:
        axes.upright(d.learned, MUTED, 1, DOTS)
        sheet.text(axes.along(d.learned) + GAP, TOP + 6, "learned", MUTED, size=FONT_SIZE - 1)
    if d.ideal:
        axes.line([x for x, _ in d.ideal], [y for _, y in d.ideal], INK, 1.4, DASHES)
    for line in d.lines:
        _line(axes, line)
        if line.x[-1] != last:  # it ends before the axis does: its name stands there
            place_x, place_y = axes.at(line.x[-1], line.y[-1])
            sheet.text(place_x + 6, place_y - 8, _short(line.name), line.tone)
    for line in d.lines:
        if line.name in d.break_even:
            sheet.markers([axes.at(d.break_even[line.name], 1)], "o", line.tone, 4.5, hollow=True)
    axes.end_labels(labels)
    axes.left_axis(ticks, f"speed-up against {_short(d.baseline)}")
    axes.bottom_axis(x_ticks, "batch size (items)" if over_batch else "keep-rate of made-up decisions")
    return sheet


def _batch_axis(d: Speedups) -> tuple[Scale, list[tuple[float, list[str]]]]:
    """Logarithmic, with every batch size as a tick."""
    sizes = sorted({x for line in d.lines for x in line.x})
    margin = 2 ** (0.05 * max(math.log2(sizes[-1] / sizes[0]), 1))
    return Scale(sizes[0] / margin, sizes[-1] * margin, log=True), [(size, [f"{size:g}"]) for size in sizes]


def _rate_axis(d: Speedups) -> tuple[Scale, list[tuple[float, list[str]]]]:
    """From 20 % or less to 100 %, with the learned keep-rate on it."""
    rates = [x for line in d.lines for x in line.x]
    learned = [] if d.learned is None else [d.learned]
    scale = Scale(min(0.2, min(rates + learned) - 0.03), max(*rates, 1.0) + 0.02)
    return scale, [(rate, [percent(rate)]) for rate in even_ticks(scale.low, scale.high, 6)]


def _line(axes: Axes, line: Line) -> None:
    if not line.static:
        axes.band(line.x, line.low, line.high, line.tone)
    axes.spans(line.x, line.low, line.high, line.tone, 1)
    axes.line(line.x, line.y, line.tone, 1.8, DOTS if line.static else None)
    if not line.static:
        axes.marks(line.x, line.y, line.tone, 2.8, hollow=line.hollow)


def _work(d: Work) -> Sheet:
    sheet = Sheet(WIDTH, max(144.0, 24 * len(d.bars) + 50))
    amounts = [b.flops / 1e6 for b in d.bars]
    names = [_short(b.label, 30) for b in d.bars]
    x = Scale(0.0, 1.16 * (max(amounts) or 1.0))
    left = max(text_width(name) for name in names) + 2 * GAP
    axes = Axes(sheet, x, Scale(len(d.bars) - 0.4, -0.6), left, TOP, sheet.width - RIGHT, sheet.height - 38)
    height = 0.62 * abs(axes.up(1) - axes.up(0))
    for i, (bar, name, amount) in enumerate(zip(d.bars, names, amounts, strict=True)):
        middle, end = axes.up(i), axes.along(amount)
        top, bottom = middle - height / 2, middle + height / 2
        if bar.executed:  # filled: what ran; hollow: what was asked for or claimed
            sheet.area([(left, top), (end, top), (end, bottom), (left, bottom)], bar.tone)
        else:
            dash = "4 2" if bar.tone == MUTED else None
            sheet.box(left + 0.6, top + 0.6, max(end - left - 1.2, 0), height - 1.2, bar.tone, dash)
        sheet.text(left - GAP, middle, name, INK, anchor="end")
    if d.dense is not None:
        axes.upright(d.dense / 1e6, INK, 0.8, DASHES)
    for i, amount in enumerate(amounts):
        sheet.text(axes.along(amount) + 5, axes.up(i), significant(amount), INK)
    axes.bottom_axis([(t, [f"{t:,.10g}"]) for t in even_ticks(0.0, x.high)], "MFLOP per item")
    return sheet


def _paths(d: Paths) -> Sheet:
    drawn = [v for arm in d.arms for quantiles in arm.quantiles for v in quantiles]
    y = Scale.around(drawn if d.baseline is None else [*drawn, *d.baseline[1]])
    x = Scale(-0.6, len(d.paths) - 0.4)
    labels = [(arm.quantiles[-1][2], _short(arm.name), arm.tone) for arm in d.arms]
    if d.baseline is not None:
        labels.insert(0, (d.baseline[1][2], _short(d.baseline[0]), MUTED))
    ticks = time_ticks(y)
    sheet = Sheet(WIDTH, HEIGHT)
    axes = _axes(sheet, x, y, ticks, labels, bottom=HEIGHT - 50)
    axes.grid(ticks)
    if d.baseline is not None:
        _, lower, middle, upper, _ = d.baseline[1]
        axes.band([x.low, x.high], [lower] * 2, [upper] * 2, MUTED)
        axes.level(middle, MUTED, 1.2, DOTS)
    step = min(0.18, 0.7 / len(d.arms))
    for i, arm in enumerate(d.arms):
        places = [path + (i - (len(d.arms) - 1) / 2) * step for path in range(len(d.paths))]
        lowest, low_quarter, medians, high_quarter, highest = zip(*arm.quantiles, strict=True)
        axes.spans(places, lowest, highest, arm.tone, 1)
        axes.spans(places, low_quarter, high_quarter, arm.tone, 2.8)
        axes.line(places, medians, arm.tone, 1, opacity=0.55)
        axes.marks(places, medians, arm.tone, 3.3, hollow=arm.hollow)
    axes.end_labels(labels)
    axes.left_axis(ticks, "ms per input, batch 1")
    counted = [(i, [path, f"n={n}"]) for i, (path, n) in enumerate(zip(d.paths, d.items, strict=True))]
    axes.bottom_axis(counted, f"{d.counted_in} (n: inputs that went this way)")
    return sheet


def _trend(d: Trend) -> Sheet:
    """Speed-ups above, times below; a ring and a line mark where a level changes."""
    sheet = Sheet(WIDTH, 331.0)
    x = Scale(-0.5, len(d.labels) - 0.5)
    ratio = Scale.around([*(v for c in d.curves for s in c.speedups for v in (s.low, s.high)), 1.0])
    time = Scale.around(v for c in d.curves for v in c.item_ms)
    above_labels = [(c.speedups[-1].value, _short(c.name), c.tone) for c in d.curves if c.speedups]
    below_labels = [(c.item_ms[-1], _short(c.name), c.tone) for c in d.curves]
    above_ticks, below_ticks = ratio_ticks(ratio), time_ticks(time)
    both = [*above_ticks, *below_ticks]
    top = TOP + 10  # room for the commits at which a level changes
    above = _axes(sheet, x, ratio, both, below_labels, bottom=170, top=top)
    above = replace(above, left=above.left + 12)
    below = replace(above, y=time, top=182, bottom=283)
    for axes, ticks in ((above, above_ticks), (below, below_ticks)):
        axes.grid(ticks)
    for run in sorted({run for c in d.curves for run in c.changes}):
        for axes in (above, below):
            axes.upright(run, MUTED, 0.8, "2 2")
        sheet.text(above.along(run), top - 5, d.labels[run], INK, anchor="middle", size=SMALL)
    above.level(1, INK, 1)
    for curve in d.curves:
        if curve.speedups:
            low, high = [s.low for s in curve.speedups], [s.high for s in curve.speedups]
            above.spans(curve.runs, low, high, curve.tone, 0.6)
            _curve(above, curve, [s.value for s in curve.speedups])
        _curve(below, curve, curve.item_ms)
    above.end_labels(above_labels)
    below.end_labels(below_labels)
    above.left_axis(above_ticks, "speed-up against", _short(d.baseline))
    below.left_axis(below_ticks, "ms per item")
    above.bottom_axis([])
    step = max(1, -(-len(d.labels) // MOST_COMMITS))
    below.bottom_axis([(i, [d.labels[i]]) for i in range(len(d.labels) - 1, -1, -step)], turn=True)
    return sheet


def _curve(axes: Axes, curve: Curve, y: Sequence[float]) -> None:
    at = dict(zip(curve.runs, y, strict=True))
    axes.sheet.markers([axes.at(run, at[run]) for run in curve.changes], "o", curve.tone, 4.5, hollow=True)
    axes.line(curve.runs, y, curve.tone, 1.4, DOTS if curve.static else None)
    if not curve.static:
        axes.marks(curve.runs, y, curve.tone, 1.8, hollow=curve.hollow)
    crosses = [axes.at(run, at[run]) for run, outlier in zip(curve.runs, curve.outliers, strict=True) if outlier]
    strokes = [[(a - 3, b - 3 * side), (a + 3, b + 3 * side)] for a, b in crosses for side in (1, -1)]
    axes.sheet.lines(strokes, curve.tone, 1)


def _short(name: str, most: int = 22) -> str:
    """A name that still fits beside a figure; the tables have it whole."""
    return name if len(name) <= most else f"{name[: most - 1]}…"
