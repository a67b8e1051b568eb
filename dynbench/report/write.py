"""Writes a report: `report.html`, one file that needs nothing else, and `report.md` with `figures/` beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Protocol

from markupsafe import Markup

from dynbench.errors import UserError, suggestion
from dynbench.escape import xml
from dynbench.files import make_folder, make_own_folder, write_text
from dynbench.report import markup, svg
from dynbench.report.content import FigureGroup, build
from dynbench.report.drawings import Absent
from dynbench.report.markup import Plain
from dynbench.report.tables import Section, Table
from dynbench.store.run import Run

FORMATS = ("html", "md")


class Page(Protocol):
    """What is written as a page: the data of its templates, of which only this is looked at here."""

    @property
    def figures(self) -> list[FigureGroup]:
        """By kind."""

    @property
    def sections(self) -> list[Section]:
        """Below the figures."""

    @property
    def tones(self) -> dict[str, str]:
        """Name of the colour of each strategy."""


def write_report(run_dir: Path, formats: Sequence[str] = FORMATS, out: Path | None = None) -> list[Path]:
    """Writes the report of a run from what is stored.

    Args:
        run_dir: the run directory, complete or not.
        formats: 'html' and 'md'.
        out: folder to write into; default: the run directory.

    Returns:
        `report.html` and `report.md`; the latter's figures lie beside it in `figures/`, as SVG.

    Raises:
        UserError: an unknown format, no run or a corrupt one, or a folder that cannot be written.
    """
    check_formats(formats)
    return write_pages(build(Run.open(run_dir)), "report", formats, Path(out or run_dir))


def check_formats(formats: Sequence[str]) -> None:
    """Refuses a format that does not exist.

    Raises:
        UserError: which one, and what is accepted.
    """
    for name in formats:
        if name not in FORMATS:
            raise UserError(f"unknown report format {name!r}; {suggestion(name, FORMATS, most=1)}")


def write_pages(page: Page, name: str, formats: Sequence[str], folder: Path) -> list[Path]:
    """Writes NAME.html and NAME.md with `figures/` by the templates of that name.

    Raises:
        UserError: the folder cannot be written.
    """
    from dynbench.report import figures  # loading matplotlib and seaborn takes a second

    make_folder(folder)
    panels = [panel for group in page.figures for panel in group.panels]
    with figures.theme():
        pictures = {
            panel.key: svg.picture(figures.draw(panel.drawing), prefix=f"m{number}-")
            for number, panel in enumerate(panels)
            if not isinstance(panel.drawing, Absent)
        }
    written = []
    if "html" in formats:
        inline = {p.key: pictures[p.key].inline(p.alt) for p in panels if p.key in pictures}
        written.append(_write(folder / f"{name}.html", to_html(page, inline, name)))
    if "md" in formats:
        if pictures:
            make_own_folder(folder / "figures")
        for panel in (p for p in panels if p.key in pictures):
            _write(folder / "figures" / f"{panel.key}.svg", pictures[panel.key].standalone(panel.title))
        written.append(_write(folder / f"{name}.md", to_markdown(page, name)))
    return written


def to_html(page: Page, figures: Mapping[str, str], name: str = "report") -> str:
    """The page; all text is escaped, all figures, style and script are inside.

    Args:
        page: what it says.
        figures: an `<svg>` element of each figure, by its key.
        name: of its template.
    """
    tables = [b.table for section in page.sections for b in section.blocks if b.table is not None]
    keys = {table.key: f"t{i}" for i, table in enumerate(tables, start=1)}

    def show(table: Table) -> Markup:
        return markup.html_table(table, keys[table.key], page.tones)

    return (
        markup.html_templates()
        .get_template(f"{name}.html.j2")
        .render(
            report=page,
            figures={key: Markup(element) for key, element in figures.items()},
            table=show,
            code=lambda text: Markup(escape(xml(text), quote=False)),
            style=Markup("\n".join([svg.page_style(), markup.column_style(), markup.template("style.css")])),
            script=Markup(markup.template("sort.js")),
        )
    )


def to_markdown(page: Page, name: str = "report") -> str:
    """The same as Markdown; what stands in `{{ }}` is escaped unless it is `Plain`."""
    template = markup.markdown_templates().get_template(f"{name}.md.j2")
    text = template.render(report=page, table=markup.markdown_table, plain=Plain, code=markup.fenced)
    return re.sub(r"\n{3,}", "\n\n", text)


def _write(path: Path, text: str) -> Path:
    write_text(path, text)
    return path
