"""What all figures are laid out with: sizes in pixels, axes with room for texts, names that do not overlap, ticks."""

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

from dynbench.report.palette import INK, MUTED, PAPER, RULE, STRATEGIES, TONES

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


@contextmanager
def theme() -> Iterator[None]:
    """The style of all figures: seaborn's, in the light colours of `palette`, without paper."""
    text = dict.fromkeys(("font.size", "axes.labelsize", "xtick.labelsize", "ytick.labelsize"), FONT_SIZE)
    muted = ("axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    own = {
        **text,
        **dict.fromkeys(muted, colour_of(MUTED)),
        "text.color": colour_of(INK),
        "grid.color": colour_of(RULE),
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
        sns.set_theme(style="ticks", palette=[colour_of(name) for name in STRATEGIES], font=FONT, rc=own)
        yield


def to_svg(figure: Figure) -> str:
    """A figure as matplotlib's SVG; its text is text."""
    code = io.StringIO()
    FigureCanvasSVG(figure).print_svg(code, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return code.getvalue()


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


def new_figure(height: float) -> Figure:
    """An empty figure of the width of all, and a height in pixels."""
    return Figure(figsize=(WIDTH / DPI, height / DPI))


def new_axes(figure: Figure, left: float, right: float, bottom: float, top: float = TOP) -> Axes:
    """Axes with margins in pixels."""
    width, height = figure.bbox.width, figure.bbox.height
    place = (left / width, bottom / height, (width - left - right) / width, (height - bottom - top) / height)
    axes = figure.add_axes(place)
    axes.autoscale(False)
    return axes


def log_axes(
    figure: Figure,
    limits: tuple[float, float],
    ticks: Sequence[Tick],
    labels: Sequence[Label],
    bottom: float,
    **margins: float,
) -> Axes:
    """Axes with a logarithmic vertical axis, and room for its ticks and for the names of lines beside them."""
    room = {"left": room_left(ticks), "right": room_right(labels)} | margins
    axes = new_axes(figure, bottom=bottom, **room)
    axes.set_yscale("log")
    axes.set_ylim(*limits)
    axes.set_yticks([value for value, _ in ticks], [text for _, text in ticks])
    axes.yaxis.minorticks_off()
    axes.grid(axis="y")
    sns.despine(ax=axes)
    return axes


def room_left(ticks: Sequence[Tick]) -> float:
    """Width of a vertical axis: its title and its ticks."""
    return TITLE + max(text_width(text) for _, text in ticks) + GAP


def room_right(labels: Sequence[Label]) -> float:
    """Width of the names beside the axes, and of the lines that lead to them."""
    return LEADER + max((text_width(text) for _, text, _ in labels), default=0.0) + RIGHT


def set_titles(axes: Axes, below: str = "", beside: str = "") -> None:
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


def names_beside(axes: Axes, labels: Sequence[Label]) -> None:
    """Names the lines where they end, beside the axes, moved apart so that they can be read."""
    box, half = axes.bbox, APART / 2
    fits = APART * len(labels) <= box.height
    low, high = (box.y0, box.y1 - half) if fits else (half, axes.figure.bbox.height - half)
    right = box.x1
    at = [(height_of(axes, label[0]), label) for label in labels]
    at = sorted(at, key=lambda pair: pair[0], reverse=True)[::-1]  # of equal ones the first is above
    ends, ordered = [end for end, _ in at], [label for _, label in at]
    places = spread(ends, APART, low, high)
    leaders = [[(right + 1, end), (right + LEADER - 2, place)] for end, place in zip(ends, places, strict=True)]
    colours = [colour_of(tone) for _, _, tone in ordered]
    lines = LineCollection(leaders, colors=colours, linewidths=1, transform=PIXELS, clip_on=False)
    axes.add_collection(lines, autolim=False)
    for place, colour, (_, text, _) in zip(places, colours, ordered, strict=True):
        axes.text(right + LEADER, place, text, color=colour, va="center", transform=PIXELS)


def height_of(axes: Axes, y: float) -> float:
    """Where a value lies, in pixels of the figure."""
    return float(axes.transData.transform((1, y))[1])


# --- parts -----------------------------------------------------------------------------------------------------------


def colour_of(tone: str) -> str:
    """On a light page; `svg` turns it into a class that follows the reader's setting."""
    return TONES[tone].light


def marker_of(tone: str, size: float, *, hollow: bool) -> dict[str, Any]:
    """A strategy's marker, as arguments of `plot`."""
    filled: dict[str, Any] = {"marker": TONES[tone].marker, "markersize": size}
    return filled | {"markerfacecolor": colour_of(PAPER), "markeredgewidth": 1.5} if hollow else filled


def ring(axes: Axes, x: Sequence[float], y: Sequence[float], tone: str) -> None:
    """Marks points with a ring."""
    if x:
        axes.plot(x, y, color=colour_of(tone), linestyle="", **marker_of(tone, 9, hollow=True) | {"marker": "o"})


def spans(axes: Axes, x: Sequence[float], low: Sequence[float], high: Sequence[float], **style: Any) -> None:
    """Vertical bars from low to high, drawn as one line with gaps."""
    gaps = np.full(len(x), np.nan)
    axes.plot(np.repeat(x, 3), np.column_stack([low, high, gaps]).ravel(), **style)


def against(baseline: str, space: str = " ") -> str:
    """Title of an axis of speed-ups."""
    return f"speed-up against{space}{short(baseline)}"


def short(name: str, most: float = NAME) -> str:
    """A name on one line that still fits beside a figure; the tables have it whole."""
    name = "".join(letter for letter in " ".join(name.split()) if letter.isprintable())
    if text_width(name) <= most:
        return name
    while name and text_width(f"{name}…") > most:
        name = name[:-1]
    return f"{name}…"


# --- scales ----------------------------------------------------------------------------------------------------------


def around(values: Iterable[float]) -> tuple[float, float]:
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
