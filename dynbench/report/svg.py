"""Makes matplotlib's SVG small, and fit for a page and for a file of its own.

Colours become classes, so that a figure follows the reader's light or dark setting: in a page by the page's own style
(`page_style`), in a file of its own by what the file brings along. What a reader does not see is left out, coordinates
are rounded to a tenth of a pixel, and neighbours of one look share a group: a tenth of the text remains.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from html import escape
from xml.etree import ElementTree

from dynbench.escape import xml
from dynbench.report.palette import PAPER, TONES

FONT_SIZE = "10"
FONT = f"{FONT_SIZE}px system-ui,'Liberation Sans',Arial,sans-serif"
STYLE = (
    "svg g{fill:none;stroke:currentColor;stroke-linejoin:round}svg text,svg .f{fill:currentColor;stroke:none}"
    f"svg .h{{fill:var(--{PAPER})}}svg .m{{text-anchor:middle}}svg .e{{text-anchor:end}}"
)
"""CSS of figures: what is in a group is drawn in its colour, with class `f` filled, with `h` hollow."""
_TONES = {tone.light: name for name, tone in TONES.items()}


@dataclass(frozen=True)
class Picture:
    """A figure as SVG: its `viewBox`, in pixels, and its elements."""

    view: str
    body: str

    def inline(self, alt: str) -> str:
        """An `<svg>` element for a page that has `page_style`.

        Args:
            alt: what it shows, for those who cannot see it.
        """
        label = escape(xml(alt))
        return f'<svg viewBox="{self.view}" role="img" aria-label="{label}">{self.body}</svg>'

    def standalone(self, title: str) -> str:
        """A file that brings its own paper, light or dark as the reader's system is."""
        name = escape(xml(title), quote=False)
        used = list(dict.fromkeys(re.findall(r'class="t-(\w+)', self.body)))
        light, dark = (
            f":root{{--{PAPER}:{getattr(TONES[PAPER], mode)}}}"
            + "".join(f".t-{tone}{{color:{getattr(TONES[tone], mode)}}}" for tone in used)
            for mode in ("light", "dark")
        )
        style = f"svg{{font:{FONT}}}{STYLE}{light}@media (prefers-color-scheme:dark){{{dark}}}"
        paper = f'<rect width="100%" height="100%" fill="var(--{PAPER})"/>'
        return (
            '<?xml version="1.0" encoding="utf-8"?>\n'
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{self.view}" role="img"><title>{name}</title>'
            f"<style>{style}</style>{paper}{self.body}</svg>\n"
        )


def picture(code: str, prefix: str) -> Picture:
    """Takes what is to be seen from matplotlib's SVG.

    Args:
        code: in the light colours of the palette, without paper.
        prefix: of the ids of its markers, unique in a page.
    """
    root = ElementTree.fromstring(xml(code))
    found = root.findall(".//{*}defs/{*}path")
    markers = {marker.attrib["id"]: _Marker(f"{prefix}{i}", marker.attrib["d"]) for i, marker in enumerate(found)}
    elements = [_element(element, markers) for element in root.iter() if element not in found]
    seen = [element for element in elements if element is not None]
    seen.sort(key=lambda element: element.tone if element.is_text else "")  # texts do not overlap, and come last
    defined = "".join(f'<path id="{m.name}" d="{_path(m.outline)}"/>' for m in markers.values() if m.is_shared)
    return Picture(root.attrib["viewBox"], (f"<defs>{defined}</defs>" if defined else "") + "".join(_groups(seen)))


def page_style() -> str:
    """CSS for a page: every colour of the palette by its name, light and dark, and what figures rely on."""
    light = "".join(f"--{name}:{tone.light};" for name, tone in TONES.items())
    dark = "".join(f"--{name}:{tone.dark};" for name, tone in TONES.items())
    classes = "".join(f".t-{name}{{color:var(--{name})}}" for name in TONES)
    font = f"svg{{font:{FONT_SIZE}px var(--font)}}"
    return f":root{{{light}}}\n@media (prefers-color-scheme: dark){{:root{{{dark}}}}}\n{classes}\n{font}{STYLE}"


@dataclass(frozen=True)
class _Marker:
    """An outline that is drawn at many places."""

    name: str
    outline: str

    @property
    def is_shared(self) -> bool:
        """Whether it is too long to be written at every place."""
        return len(re.findall("[MLC]", self.outline)) > 4

    def at(self, x: float, y: float) -> str:
        """It at a place."""
        if self.is_shared:
            return f'<use href="#{self.name}" x="{_number(x)}" y="{_number(y)}"/>'
        return f'<path d="{_path(self.outline, x, y)}"/>'


@dataclass(frozen=True)
class _Element:
    """What can be seen: its colour, further attributes, and itself without them."""

    tone: str
    look: str
    code: str
    is_text: bool = False


def _element(element: ElementTree.Element, markers: Mapping[str, _Marker]) -> _Element | None:
    """A path, a marker or a text; None: anything else, or it cannot be seen."""
    tag = element.tag.rpartition("}")[2]
    if tag == "text":
        return _text(element)
    style = _style(element)
    stroke, fill = _TONES.get(style.get("stroke", "")), _TONES.get(style.get("fill", ""))
    tone = stroke or fill
    if tag not in ("path", "use") or tone is None:
        return None
    look = _look(style, filled=stroke is None, hollow=stroke is not None and fill == PAPER)
    if tag == "path":
        return _Element(tone, look, f'<path d="{_path(element.attrib["d"])}"/>')
    marker = markers[element.attrib["{http://www.w3.org/1999/xlink}href"].removeprefix("#")]
    return _Element(tone, look, marker.at(float(element.attrib["x"]), float(element.attrib["y"])))


def _look(style: Mapping[str, str], *, filled: bool, hollow: bool) -> str:
    """Attributes of a path or a marker, but for its colour."""
    look = ' class="f"' if filled else ' class="h"' if hollow else ""
    if not filled and (width := _number(style.get("stroke-width", "1"))) != "1":
        look += f' stroke-width="{width}"'
    if not filled and "stroke-dasharray" in style:
        look += f' stroke-dasharray="{style["stroke-dasharray"].replace(",", " ")}"'
    opacity = next((style[name] for name in ("opacity", "fill-opacity", "stroke-opacity") if name in style), None)
    return look if opacity is None else f'{look} opacity="{opacity}"'


def _text(element: ElementTree.Element) -> _Element:
    style = _style(element)
    moved = re.fullmatch(r"translate\((\S+) (\S+)\)", element.get("transform", ""))
    x, y = moved.groups() if moved else (element.get("x"), element.get("y"))
    attributes = "" if x is None or y is None else f' x="{_number(x)}" y="{_number(y)}"'
    turned = re.search(r"rotate\((?!-?0[ )]).*", element.get("transform", ""))
    if turned:
        attributes += f' transform="{_rounded(element.attrib["transform"])}"'
    if (anchor := style.get("text-anchor", "start")) != "start":
        attributes += f' class="{anchor[0]}"'
    size = re.search(r"([\d.]+)px", style.get("font-size") or style["font"])
    assert size is not None
    if size[1] != FONT_SIZE:
        attributes += f' font-size="{size[1]}"'
    code = f"<text{attributes}>{escape(element.text or '', quote=False)}</text>"
    return _Element(_TONES[style["fill"]], "", code, is_text=True)


def _style(element: ElementTree.Element) -> dict[str, str]:
    pairs = (part.partition(":") for part in element.get("style", "").split(";"))
    return {name.strip(): value.strip() for name, _, value in pairs}


def _groups(elements: Iterable[_Element]) -> Iterator[str]:
    """Neighbours of one colour together, and of these the paths of one look as one."""
    for tone, of_a_tone in itertools.groupby(elements, key=lambda element: element.tone):
        inside = ""
        for look, of_a_look in itertools.groupby(of_a_tone, key=lambda element: element.look):
            code = "".join(element.code for element in of_a_look).replace('"/><path d="', "")
            if look:
                code = code.replace("/>", f"{look}/>") if code.count("<") == 1 else f"<g{look}>{code}</g>"
            inside += code
        yield f'<g class="t-{tone}">{inside}</g>'


def _path(outline: str, dx: float = 0.0, dy: float = 0.0) -> str:
    """A path, moved, in few letters: `M` and `L` with what follows, `H` and `V` for lines along an axis."""
    written: list[str] = []
    last, before = ("", ""), ""
    for command, numbers in re.findall(r"([MLCz])([^MLCz]*)", outline):
        values = [float(value) for value in numbers.split()]
        points = [(_number(x + dx), _number(y + dy)) for x, y in zip(values[::2], values[1::2], strict=True)]
        if command == "L" and points[0][0] == last[0]:
            command = "V"
            written.append(f"V{points[0][1]}")
        elif command == "L" and points[0][1] == last[1]:
            command = "H"
            written.append(f"H{points[0][0]}")
        else:
            goes_without_saying = command == "L" and before in "ML"
            written.append((" " if goes_without_saying else command) + " ".join(f"{x} {y}" for x, y in points))
        last, before = points[-1] if points else last, command
    return "".join(written)


def _rounded(text: str) -> str:
    return re.sub(r"-?\d+\.\d+", lambda number: _number(number[0]), text)


def _number(value: float | str) -> str:
    """To a tenth of a pixel."""
    return f"{round(float(value), 1) + 0.0:.1f}".removesuffix(".0")  # + 0.0: never -0
