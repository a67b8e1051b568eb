"""Writes a report: `report.html`, one file that needs nothing else, and `report.md` with `figures/` beside it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup
from tabulate import tabulate

from dynbench.errors import UserError
from dynbench.report import svg
from dynbench.report.columns import Column
from dynbench.report.content import build
from dynbench.report.drawings import Absent
from dynbench.report.figures import as_png, as_svg, draw
from dynbench.report.tables import Section, Table
from dynbench.store.files import make_folder, write_aside
from dynbench.store.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dynbench.report.content import FigureGroup, Panel

FORMATS = ("html", "md")
WIDEST = 240  # characters of a line of a Markdown table whose columns are padded


class Page(Protocol):
    """What is written as a page: the data of its templates, of which only this is looked at here."""

    @property
    def figures(self) -> list[FigureGroup]:
        """By kind."""

    @property
    def sections(self) -> list[Section]:
        """Below the figures."""


class Plain(str):
    """Text that is Markdown already."""


def write_report(run_dir: Path, formats: Sequence[str] = FORMATS, out: Path | None = None) -> list[Path]:
    """Writes the report of a run from what is stored.

    Args:
        run_dir: the run directory, complete or not.
        formats: 'html' and 'md'.
        out: folder to write into; default: the run directory.

    Returns:
        `report.html` and `report.md`; the latter's figures lie beside it in `figures/`, as SVG and PNG.

    Raises:
        UserError: an unknown format, no run or a corrupt one, or a folder that cannot be written.
    """
    check_formats(formats)
    return write_pages(build(Run.open(run_dir)), "report", formats, Path(out or run_dir))


def check_formats(formats: Sequence[str]) -> None:
    """Refuses a format that there is not.

    Raises:
        UserError: which one, and what is accepted.
    """
    for name in formats:
        if name not in FORMATS:
            near = difflib.get_close_matches(name, FORMATS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"accepted: {', '.join(FORMATS)}"
            raise UserError(f"unknown report format {name!r}; {hint}")


def write_pages(page: Page, name: str, formats: Sequence[str], folder: Path) -> list[Path]:
    """Writes NAME.html and NAME.md with `figures/` by the templates of that name.

    Raises:
        UserError: the folder cannot be written.
    """
    make_folder(folder)
    figures = _draw(page)
    codes = {key: as_svg(figure) for key, figure in figures.items()}
    written = []
    if "html" in formats:
        written.append(_write(folder / f"{name}.html", to_html(page, codes, name).encode()))
    if "md" in formats:
        if figures:
            make_folder(folder / "figures")
        for panel in (p for p in _panels(page) if p.key in figures):
            code = svg.standalone(codes[panel.key], panel.key, panel.alt)
            _write(folder / "figures" / f"{panel.key}.svg", code.encode())
            _write(folder / "figures" / f"{panel.key}.png", as_png(figures[panel.key]))
        written.append(_write(folder / f"{name}.md", to_markdown(page, name).encode()))
    return written


def to_html(report: Page, codes: dict[str, str], name: str = "report") -> str:
    """The page; all text is escaped, all figures, style and script are inside.

    Args:
        report: what it says.
        codes: matplotlib's SVG of each figure, by its key.
        name: of its template.
    """
    env = Environment(
        loader=FunctionLoader(_template),
        autoescape=True,
        finalize=_unbroken,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    figures = {p.key: Markup(svg.inline(codes[p.key], p.key, p.alt)) for p in _panels(report) if p.key in codes}
    return env.get_template(f"{name}.html.j2").render(
        report=report,
        figures=figures,
        colours=Markup(svg.variables(":root")),
        style=Markup(_template("style.css")),
        script=Markup(_template("sort.js")),
        anchor=anchor,
    )


def to_markdown(report: Page, name: str = "report") -> str:
    """The same as Markdown; what stands in `{{ }}` is escaped unless it is `Plain`."""
    env = Environment(
        loader=FunctionLoader(_template),
        finalize=escaped,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    text = env.get_template(f"{name}.md.j2").render(report=report, table=_markdown_table, plain=Plain, code=_fenced)
    return re.sub(r"\n{3,}", "\n\n", text)


def escaped(value: Any) -> str:
    """Text in which no character means anything to Markdown or HTML, on one line."""
    if isinstance(value, Plain):
        return value
    text = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*\[\]|$~])", r"\\\1", text)
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)


def _unbroken(value: Any) -> Any:
    """Keeps a percent sign with its number."""
    return re.sub(r"(?<=\d) (?=%)", "\N{NO-BREAK SPACE}", value) if type(value) is str else value


def anchor(text: str) -> str:
    """Text as the name of a place in a page."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _draw(report: Page) -> dict[str, Figure]:
    return {p.key: draw(p.drawing) for p in _panels(report) if not isinstance(p.drawing, Absent)}


def _panels(report: Page) -> list[Panel]:
    return [p for group in report.figures for p in group.panels]


def _markdown_table(table: Table) -> Plain:
    rows = []
    for row in table.rows:
        cells = []
        for value in row:
            n = table.note_number(value)
            cells.append(escaped(value.text) + ("" if n is None else f" ({n})"))
        rows.append(cells)
    align = ["right" if c.kind == "number" else "left" for c in table.columns]
    head = [_header(c) for c in table.columns]
    text = tabulate(rows, headers=head, tablefmt="github", colalign=align, disable_numparse=True)
    if text.find("\n") > WIDEST:  # no editor shows columns that wide in line, and padding makes most of the file
        head_line, rule, *lines = re.sub(r" {2,}", " ", text).split("\n")
        text = "\n".join([head_line, re.sub(r"-{3,}", "---", rule), *lines])
    return Plain(text)


def _header(column: Column) -> str:
    return escaped(f"{column.header} ({column.unit})" if column.unit and "(" not in column.unit else
                   f"{column.header}, {column.unit}" if column.unit else column.header)  # fmt: skip


def _fenced(text: str) -> Plain:
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return Plain(f"{fence}\n{text}\n{fence}")


def _template(name: str) -> str:
    return (resources.files("dynbench.report") / "templates" / name).read_text(encoding="utf-8")


def _write(path: Path, content: bytes) -> Path:
    def fill(aside: Path) -> None:
        aside.write_bytes(content)

    write_aside(path, fill)
    return path
