"""Text and tables as HTML and as Markdown; whatever comes from a run is escaped here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup
from tabulate import tabulate

from dynbench.escape import markdown, xml
from dynbench.report.columns import Column
from dynbench.report.tables import Table
from dynbench.report.values import Value

WIDEST = 120  # characters of a line of a Markdown table whose columns are padded
MOST_COLUMNS = 40  # of a table whose columns are aligned one by one
SHOWN = re.compile(r"-?\d[\d,]*\.?\d*(?:e[+-]?\d+)?")  # the number that a text begins with


class Plain(str):
    """Text that is Markdown already."""


def template(name: str) -> str:
    """The text of a file beside this one, in `templates/`."""
    return (resources.files("dynbench.report") / "templates" / name).read_text(encoding="utf-8")


def _templates(**options: Any) -> Environment:
    return Environment(
        loader=FunctionLoader(template), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, **options
    )


def _note_numbers(table: Table) -> dict[str | None, int]:
    return {note: i for i, note in enumerate(table.notes, start=1)}


# --- HTML ------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def html_templates() -> Environment:
    """Templates in which all text is escaped unless it is `Markup`."""
    return _templates(autoescape=True, finalize=lambda value: _unbroken(xml(value)) if type(value) is str else value)


def column_style() -> str:
    """CSS that aligns the columns of tables: numbers stand at the right, `l3` makes the third column text, `p3` prose.

    One class of the table, where every place of the column would need its own.
    """
    numbers = range(1, MOST_COLUMNS + 1)
    left = ",".join(f".l{i}>*>*>:nth-child({i}),.p{i}>*>*>:nth-child({i})" for i in numbers)
    prose = ",".join(f".p{i}>*>*>:nth-child({i})" for i in numbers)
    return (
        f"{left}{{text-align:left}}{prose}{{white-space:normal;min-width:15rem;max-width:34rem;overflow-wrap:anywhere}}"
    )


def html_table(table: Table, key: str, tones: Mapping[str, str]) -> Markup:
    """A table that can be sorted, with its footnotes.

    Args:
        table: with as many rows and columns as it may have.
        key: unique in the page, for ids.
        tones: name of the colour of each strategy.
    """
    classes = [
        f"{'p' if column.kind == 'prose' else 'l'}{i}"
        for i, column in enumerate(table.columns, start=1)
        if column.kind != "number"
    ]
    sortings = [_sorting([row[i] for row in table.rows]) for i in range(len(table.columns))]
    numbers = _note_numbers(table)
    return Markup(
        html_templates()
        .get_template("table.html.j2")
        .render(
            table=table,
            key=key,
            tones=tones,
            classes=" ".join(classes),
            columns=list(zip(table.columns, sortings, strict=True)),
            rows=(
                [(v, sorting, numbers.get(v.note)) for v, sorting in zip(row, sortings, strict=True)]
                for row in table.rows
            ),
            sort_key=_sort_key,
        )
    )


@dataclass(frozen=True)
class _Sorting:
    """How the page sorts a column.

    Attributes:
        by_text: not by number.
        written: by values that stand in the page beside what is shown, which is sorted otherwise.
    """

    by_text: bool
    written: bool


def _sorting(values: Sequence[Value]) -> _Sorting:
    keyed = [(v.sort, v.text) for v in values if v.sort is not None]
    if not any(isinstance(sort, float | int) for sort, _ in keyed):
        return _Sorting(by_text=True, written=any(text.lower() != str(sort).lower() for sort, text in keyed))
    shown = [SHOWN.match(text) for _, text in keyed]
    if not all(isinstance(sort, float | int) for sort, _ in keyed) or not all(shown):
        return _Sorting(by_text=False, written=True)
    pairs = sorted((sort, float(m[0].replace(",", ""))) for (sort, _), m in zip(keyed, shown, strict=True) if m)
    in_order = all(a <= b for (_, a), (_, b) in zip(pairs, pairs[1:], strict=False))
    return _Sorting(by_text=False, written=not in_order)


def _sort_key(value: Value) -> str:
    return value.sort if isinstance(value.sort, str) else f"{value.sort:.6g}"


def _unbroken(text: str) -> str:
    """Keeps a percent sign with its number."""
    return re.sub(r"(?<=\d) (?=%)", "\N{NO-BREAK SPACE}", text) if " %" in text else text


# --- Markdown --------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def markdown_templates() -> Environment:
    """Templates in which all text is escaped unless it is `Plain`."""
    return _templates(
        finalize=lambda value: value if isinstance(value, Plain) else escaped(str(value)), keep_trailing_newline=True
    )


@lru_cache(maxsize=2**16)
def escaped(text: str) -> str:
    """Text in which no character means anything to Markdown or HTML, on one line."""
    return markdown(" ".join(text.split())).replace(">", "&gt;")  # at its beginning it would be a quotation


def fenced(text: str) -> Plain:
    """Code in a fence that it cannot close."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return Plain(f"{fence}\n{xml(text)}\n{fence}")


def markdown_table(table: Table) -> Plain:
    """A table whose columns are padded, unless that makes it wider than any editor shows."""
    numbers = _note_numbers(table)
    rows = [[_in_markdown(v, numbers) for v in row] for row in table.rows]
    text = tabulate(
        rows,
        headers=[_markdown_head(column) for column in table.columns],
        tablefmt="pipe",
        colalign=["right" if column.kind == "number" else "left" for column in table.columns],
        disable_numparse=True,
    )
    if text.find("\n") > WIDEST:
        head, rule, body = re.sub(r" {2,}", " ", text).split("\n", 2)
        text = "\n".join([head, re.sub(r"-{3,}", "---", rule), body])
    return Plain(text)


def _in_markdown(value: Value, numbers: Mapping[str | None, int]) -> str:
    text = escaped(value.text) if value.link is None else f"[{escaped(value.text)}](workloads/{value.link}.md)"
    return text if value.note is None else f"{text} ({numbers[value.note]})"


def _markdown_head(column: Column) -> str:
    if not column.unit:
        return escaped(column.header)
    return escaped(f"{column.header}, {column.unit}" if "(" in column.unit else f"{column.header} ({column.unit})")
