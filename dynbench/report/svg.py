"""Writes SVG: a sheet of lines, areas, markers and text, each in a colour of the palette.

Colours are classes, so that a figure follows the reader's light or dark setting: in a page by the page's own style
(`page_style`), in a file of its own by what the file brings along.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from html import escape

from dynbench.report.palette import PAPER, TONES

Point = tuple[float, float]

FONT_SIZE = 10.0
FONT = f"{FONT_SIZE:g}px system-ui,-apple-system,'Segoe UI','Liberation Sans',Arial,sans-serif"
STYLE = (
    "svg path,svg rect{fill:none;stroke:currentColor;stroke-linejoin:round}"
    "svg text,svg .f{fill:currentColor;stroke:none}svg .middle{text-anchor:middle}svg .end{text-anchor:end}"
)
"""CSS that figures rely on: strokes and text are in the colour of their group, what has class `f` is filled with it."""
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_WIDTHS = {"ijl|!'.,:;": 0.31, " ftrI()[]/-*": 0.39, "mwMW%@": 0.93}  # in ems, those of a wide font
_WIDTH_OF = {letter: width for letters, width in _WIDTHS.items() for letter in letters}
_LOWER, _UPPER, _WIDE = 0.63, 0.72, 1.0


def _polygon(corners: int, turn: float = 0.0, radius: float = 1.0) -> list[Point]:
    angles = [math.radians(turn + 360 * i / corners) for i in range(corners)]
    return [(radius * math.sin(a), -radius * math.cos(a)) for a in angles]


def _plus(arm: float = 0.36) -> list[Point]:
    a = arm
    return [(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a), (a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a)]


def _turned(points: Iterable[Point], degrees: float) -> list[Point]:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return [(c * x - s * y, s * x + c * y) for x, y in points]


_SHAPES = {
    "^": _polygon(3, radius=1.25),
    "v": _polygon(3, turn=180, radius=1.25),
    "s": _polygon(4, turn=45, radius=1.3),
    "D": _polygon(4, radius=1.3),
    "d": [(0, -1.4), (0.75, 0), (0, 1.4), (-0.75, 0)],
    "p": _polygon(5, radius=1.2),
    "h": _polygon(6, radius=1.15),
    "P": _plus(),
    "X": _turned(_plus(), 45),
}


class Sheet:
    """An SVG drawing that is being made. Coordinates are pixels from the top left corner at a font size of 10."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self._parts: list[str] = []
        self._tones: list[str] = []

    def lines(
        self,
        strokes: Iterable[Sequence[Point]],
        tone: str,
        width: float = 1.0,
        dash: str | None = None,
        opacity: float = 1.0,
    ) -> None:
        """Draws strokes of one pen.

        Args:
            strokes: each through these points.
            tone: name of the colour.
            width: of the pen.
            dash: lengths of dashes and gaps, '4 2.5'; None: solid.
            opacity: 1: opaque.
        """
        path = "".join(_stroke(stroke) for stroke in strokes)
        if not path:
            return
        pen = "" if width == 1 else f' stroke-width="{_n(width)}"'
        dashes = "" if dash is None else f' stroke-dasharray="{dash}"'
        self._add(tone, f'<path d="{path}"{pen}{dashes}{_seen(opacity)}/>')

    def area(self, corners: Sequence[Point], tone: str, opacity: float = 1.0) -> None:
        """Fills a polygon."""
        path = _stroke(corners) + "z"
        self._add(tone, f'<path class="f" d="{path}"{_seen(opacity)}/>')

    def box(self, left: float, top: float, width: float, height: float, tone: str, dash: str | None = None) -> None:
        """Draws the outline of a rectangle."""
        dashes = "" if dash is None else f' stroke-dasharray="{dash}"'
        place = f'x="{_n(left)}" y="{_n(top)}" width="{_n(width)}" height="{_n(height)}"'
        self._add(tone, f'<rect {place} stroke-width="1.2"{dashes}/>')

    def markers(self, places: Iterable[Point], shape: str, tone: str, radius: float, *, hollow: bool = False) -> None:
        """Sets the same marker at each of the places.

        Args:
            places: their centres.
            shape: as of `palette.Tone.marker`; 'o' is a circle.
            tone: name of the colour.
            radius: size.
            hollow: an outline, filled with the colour of the paper.
        """
        dx, dy, outline = _shape(shape, radius)
        path = "".join(f"M{_n(x + dx)} {_n(y + dy)}{outline}" for x, y in places)
        if not path:
            return
        if hollow:
            self._add(PAPER, f'<path class="f" d="{path}"/>')
            self._add(tone, f'<path d="{path}" stroke-width="1.5"/>')
        else:
            self._add(tone, f'<path class="f" d="{path}"/>')

    def text(
        self, x: float, y: float, text: str, tone: str, anchor: str = "start", size: float = FONT_SIZE, turn: float = 0
    ) -> None:
        """Writes a line of text.

        Args:
            x: of its anchor.
            y: of its middle.
            text: in one line.
            tone: name of the colour.
            anchor: 'start', 'middle' or 'end' of the text lies at x.
            size: of the font.
            turn: in degrees, clockwise, about the anchor.
        """
        base = y + 0.35 * size  # of the letters
        attributes = f'x="{_n(x)}" y="{_n(base)}"'
        if anchor != "start":
            attributes += f' class="{anchor}"'
        if size != FONT_SIZE:
            attributes += f' font-size="{_n(size)}"'
        if turn:
            attributes += f' transform="rotate({_n(turn)} {_n(x)} {_n(y)})"'
        self._add(tone, f"<text {attributes}>{escape(_clean(text), quote=False)}</text>")

    def inline(self, alt: str) -> str:
        """An `<svg>` element for a page that has `page_style`.

        Args:
            alt: what it shows, for those who cannot see it.
        """
        label = escape(_clean(alt))
        return f'<svg viewBox="{self._view()}" role="img" aria-label="{label}">{self._body()}</svg>'

    def standalone(self, title: str) -> str:
        """A file that brings its own paper, light or dark as the reader's system is."""
        used = list(dict.fromkeys([PAPER, *self._tones]))
        light = "".join(f".t-{name}{{color:{TONES[name].light}}}" for name in used)
        dark = "".join(f".t-{name}{{color:{TONES[name].dark}}}" for name in used)
        style = f"svg{{font:{FONT}}}{STYLE}{light}@media (prefers-color-scheme:dark){{{dark}}}"
        return (
            '<?xml version="1.0" encoding="utf-8"?>\n'
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{self._view()}" role="img">'
            f"<title>{escape(_clean(title), quote=False)}</title><style>{style}</style>"
            f'<rect class="t-{PAPER} f" width="100%" height="100%"/>{self._body()}</svg>\n'
        )

    def _view(self) -> str:
        return f"0 0 {_n(self.width)} {_n(self.height)}"

    def _add(self, tone: str, element: str) -> None:
        self._tones.append(tone)
        self._parts.append(element)

    def _body(self) -> str:
        """All elements; neighbours of one colour share a group."""
        groups = []
        last = None
        for tone, part in zip(self._tones, self._parts, strict=True):
            if tone != last:
                groups.append(f'{"</g>" if last else ""}<g class="t-{tone}">')
                last = tone
            groups.append(part)
        return "".join(groups) + ("</g>" if last else "")


def text_width(text: str, size: float = FONT_SIZE) -> float:
    """About how wide a text will be; which font the reader has is not known."""
    return size * sum(_WIDTH_OF.get(letter) or _width(letter) for letter in text)


def page_style() -> str:
    """CSS for a page: every colour of the palette by its name, light and dark, and what figures rely on."""
    light = "".join(f"--{name}:{tone.light};" for name, tone in TONES.items())
    dark = "".join(f"--{name}:{tone.dark};" for name, tone in TONES.items())
    classes = "".join(f".t-{name}{{color:var(--{name})}}" for name in TONES)
    font = f"svg{{font:{FONT_SIZE:g}px var(--font)}}"
    return f":root{{{light}}}\n@media (prefers-color-scheme: dark){{:root{{{dark}}}}}\n{classes}\n{font}{STYLE}"


def _width(letter: str) -> float:
    if letter.isupper():
        return _UPPER
    return _WIDE if unicodedata.east_asian_width(letter) in "WF" else _LOWER


def _stroke(points: Sequence[Point]) -> str:
    """A path through points."""
    places = [(_n(x), _n(y)) for x, y in points]
    if len(places) == 2 and places[0][0] == places[1][0]:
        return f"M{places[0][0]} {places[0][1]}V{places[1][1]}"
    if len(places) == 2 and places[0][1] == places[1][1]:
        return f"M{places[0][0]} {places[0][1]}H{places[1][0]}"
    return "M" + " ".join(f"{x} {y}" for x, y in places)


@lru_cache
def _shape(shape: str, radius: float) -> tuple[float, float, str]:
    """A marker as a path: where it begins, seen from its centre, and how it goes on from there."""
    if shape == "o":
        r, d = _n(radius), _n(2 * radius)
        return -radius, 0.0, f"a{r} {r} 0 1 0 {d} 0a{r} {r} 0 1 0-{d} 0z"
    corners = [(radius * x, radius * y) for x, y in _SHAPES[shape]]
    steps = [(b[0] - a[0], b[1] - a[1]) for a, b in zip(corners, corners[1:], strict=False)]
    return *corners[0], "l" + " ".join(f"{_n(dx)} {_n(dy)}" for dx, dy in steps) + "z"


def _n(value: float) -> str:
    """A coordinate, to a tenth of a pixel."""
    return f"{round(value, 1) + 0.0:.1f}".removesuffix(".0")  # + 0.0: never -0


def _seen(opacity: float) -> str:
    return "" if opacity == 1 else f' opacity="{opacity:g}"'


def _clean(text: str) -> str:
    """Without the characters that no XML file may hold."""
    return _NOT_XML.sub("", text)
