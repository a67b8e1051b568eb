"""Writes a report: `report.html`, and `report.md` with `figures/` beside it.

A page needs nothing else. Of several workloads `report.*` is the overview, and each has a page in `workloads/`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Protocol

from markupsafe import Markup

from dynbench.errors import UserError, suggestion
from dynbench.escape import xml
from dynbench.files import make_folder, make_own_folder, write_text
from dynbench.report import markup, svg
from dynbench.report.content import FigureGroup, Keys, build, report_tables
from dynbench.report.drawings import Absent
from dynbench.report.markup import Plain
from dynbench.report.overview import build_overview
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
        `report.html` and `report.md`; the latter's figures lie beside it in `figures/`, as SVG. The pages of several
        workloads lie beneath, in `workloads/`.

    Raises:
        UserError: an unknown format, no run or a corrupt one, or a folder that cannot be written.
    """
    check_formats(formats)
    return write_run(Run.open(run_dir), formats, Path(out or run_dir))


def write_run(run: Run, formats: Sequence[str], folder: Path) -> list[Path]:
    """Writes the report of a run that was read; see `write_report`."""
    names = list(run.manifest.workloads)
    if len(names) < 2:
        return write_pages(build(run), "report", formats, folder)
    keys = Keys()
    pages = {name: keys(name) for name in names}
    tables: list[Table] = []
    for name, key in pages.items():
        page = build(_only(run, name), page=True)
        tables += report_tables(page.sections)
        write_pages(page, "report", formats, folder / "workloads", file=key, up="../", above="../report")
    return write_pages(build_overview(run, pages, tables), "overview", formats, folder, file="report")


def _only(run: Run, name: str) -> Run:
    """One workload of a run, without what is said of all of them."""
    info = run.manifest.workloads[name]
    manifest = run.manifest.model_copy(update={"workloads": {name: info}, "warnings": [], "not_measured": []})
    return replace(run, manifest=manifest, cells=[c for c in run.cells if c.workload == name], warnings=[])


def check_formats(formats: Sequence[str]) -> None:
    """Refuses a format that does not exist.

    Raises:
        UserError: which one, and what is accepted.
    """
    for name in formats:
        if name not in FORMATS:
            raise UserError(f"unknown report format {name!r}; {suggestion(name, FORMATS, most=1)}")


def write_pages(
    page: Page,
    name: str,
    formats: Sequence[str],
    folder: Path,
    *,
    file: str | None = None,
    up: str = "",
    above: str = "",
) -> list[Path]:
    """Writes a page, and its figures for Markdown, by the templates NAME.html.j2 and NAME.md.j2.

    Args:
        page: what it says.
        name: of the templates.
        formats: 'html' and 'md'.
        folder: of the page.
        file: its name, without suffix; default: as the templates.
        up: from the page's folder to the one that has `figures/`.
        above: page that leads here, without suffix.

    Raises:
        UserError: the folder cannot be written.
    """
    from dynbench.report import figures, layout  # loading matplotlib and seaborn takes a second

    (make_folder if not up else make_own_folder)(folder)
    panels = [panel for group in page.figures for panel in group.panels]
    with layout.theme():
        pictures = {
            panel.key: svg.picture(figures.draw(panel.drawing), prefix=f"m{number}-")
            for number, panel in enumerate(panels)
            if not isinstance(panel.drawing, Absent)
        }
    written = []
    if "html" in formats:
        inline = {p.key: pictures[p.key].inline(p.alt) for p in panels if p.key in pictures}
        written.append(_write(folder / f"{file or name}.html", to_html(page, inline, name, above)))
    if "md" in formats:
        if pictures:
            make_own_folder(folder / up / "figures")
        for panel in (p for p in panels if p.key in pictures):
            _write(folder / up / "figures" / f"{panel.key}.svg", pictures[panel.key].standalone(panel.title))
        written.append(_write(folder / f"{file or name}.md", to_markdown(page, name, up, above)))
    return written


def to_html(page: Page, figures: Mapping[str, str], name: str = "report", above: str = "") -> str:
    """The page; all text is escaped, all figures, style and script are inside.

    Args:
        page: what it says.
        figures: an `<svg>` element of each figure, by its key.
        name: of its template.
        above: page that leads here, without suffix.
    """
    keys: dict[str, str] = {}

    def show(table: Table) -> Markup:
        return markup.html_table(table, keys.setdefault(table.key, f"t{len(keys) + 1}"), page.tones)

    return (
        markup.html_templates()
        .get_template(f"{name}.html.j2")
        .render(
            report=page,
            above=above,
            figures={key: Markup(element) for key, element in figures.items()},
            table=show,
            code=lambda text: Markup(escape(xml(text), quote=False)),
            style=Markup("\n".join([svg.page_style(), markup.column_style(), markup.template("style.css")])),
            script=Markup(markup.template("sort.js")),
        )
    )


def to_markdown(page: Page, name: str = "report", up: str = "", above: str = "") -> str:
    """The same as Markdown; what stands in `{{ }}` is escaped unless it is `Plain`.

    Args:
        page: what it says.
        name: of its template.
        up: from the page's folder to the one that has `figures/`.
        above: page that leads here, without suffix.
    """
    template = markup.markdown_templates().get_template(f"{name}.md.j2")
    text = template.render(
        report=page, table=markup.markdown_table, plain=Plain, code=markup.fenced, up=up, above=above
    )
    return re.sub(r"\n{3,}", "\n\n", text)


def _write(path: Path, text: str) -> Path:
    write_text(path, text)
    return path
