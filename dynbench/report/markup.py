"""Text and tables as HTML and as Markdown; whatever comes from a run is escaped here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from html import escape

from markupsafe import Markup

from dynbench.report.columns import Column
from dynbench.report.tables import Table
from dynbench.report.values import Value

WIDEST = 120  # characters of a line of a Markdown table whose columns are padded
MOST_COLUMNS = 40  # of a table whose columns are aligned one by one
SHOWN = re.compile(r"-?\d[\d,]*\.?\d*(?:e[+-]?\d+)?")  # the number that a text begins with


class Plain(str):
    """Text that is Markdown already."""


# --- HTML ------------------------------------------------------------------------------------------------------------


def unbroken(text: str) -> str:
    """Keeps a percent sign with its number."""
    return re.sub(r"(?<=\d) (?=%)", "\N{NO-BREAK SPACE}", text)


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
    classes = " ".join(
        f"{'p' if column.kind == 'prose' else 'l'}{i}"
        for i, column in enumerate(table.columns, start=1)
        if column.kind != "number"
    )
    values = [[row[i] for row in table.rows] for i in range(len(table.columns))]
    heads = "".join(_html_head(column, found) for column, found in zip(table.columns, values, strict=True))
    by_itself = [_sorts_by_its_text(found) for found in values]
    numbers = {note: i for i, note in enumerate(table.notes, start=1)}
    breaks = set(table.breaks)
    lines = []
    for number, row in enumerate(table.rows):
        cells = []
        for i, value in enumerate(row):
            shown = _html_value(value, tones)
            if value.note is not None:
                n = numbers[value.note]
                shown += f'<sup><a href="#{key}-{n}">{n}</a></sup>'
            sort = "" if by_itself[i] or value.sort is None else f' data-sort="{_sort(value.sort)}"'
            cells.append(f'<th scope="row"{sort}>{shown}</th>' if i == 0 else f"<td{sort}>{shown}")  # ends by itself
        starts = ' class="break"' if number in breaks else ""
        lines.append(f"<tr{starts}>{''.join(cells)}</tr>")
    notes = "".join(f'<li id="{key}-{i}">{escape(note, quote=False)}</li>\n' for note, i in numbers.items())
    text = (
        f'<div class="scroll" tabindex="0" role="region" aria-labelledby="{key}">\n'
        f'<table class="sortable {classes}">\n<caption id="{key}">{escape(table.title, quote=False)}</caption>\n'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n" + "\n".join(lines) + "\n</tbody>\n</table>\n</div>\n"
    )
    return Markup(unbroken(text + (f'<ol class="notes">\n{notes}</ol>\n' if notes else "")))


def _html_head(column: Column, values: Sequence[Value]) -> str:
    unit = f"<small>{escape(column.unit, quote=False)}</small>" if column.unit else ""
    by_text = "" if any(isinstance(v.sort, float | int) for v in values) else ' data-by="text"'
    return f'<th scope="col"{by_text}>{escape(column.header, quote=False)}{unit}</th>'


def _html_value(value: Value, tones: Mapping[str, str]) -> str:
    text = escape(value.text, quote=False)
    if value.mark is None:
        return text
    return f'<i class="t-{tones[value.mark]}"></i>{text}'


def _sorts_by_its_text(values: Sequence[Value]) -> bool:
    """Whether the page can sort a column by what is shown: its texts, or the numbers that they begin with."""
    keyed = [(v.sort, v.text) for v in values if v.sort is not None]
    if all(isinstance(sort, str) for sort, _ in keyed):
        return all(text.lower() == str(sort).lower() for sort, text in keyed)
    shown = [SHOWN.match(text) for _, text in keyed]
    if not all(isinstance(sort, float | int) for sort, _ in keyed) or not all(shown):
        return False
    pairs = sorted((sort, float(m[0].replace(",", ""))) for (sort, _), m in zip(keyed, shown, strict=True) if m)
    return all(a <= b for (_, a), (_, b) in zip(pairs, pairs[1:], strict=False))


def _sort(value: float | str) -> str:
    return escape(value) if isinstance(value, str) else f"{value:.6g}"


# --- Markdown --------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=2**16)
def escaped(text: str) -> str:
    """Text in which no character means anything to Markdown or HTML, on one line."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*\[\]|$~])", r"\\\1", text)
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)


def fenced(text: str) -> Plain:
    """Code in a fence that it cannot close."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return Plain(f"{fence}\n{text}\n{fence}")


def markdown_table(table: Table) -> Plain:
    """A table whose columns are padded, unless that makes it wider than any editor shows."""
    numbers = {note: i for i, note in enumerate(table.notes, start=1)}
    head = [_markdown_head(column) for column in table.columns]
    rows = [
        [escaped(v.text) + (f" ({numbers[v.note]})" if v.note is not None else "") for v in row] for row in table.rows
    ]
    right = [column.kind == "number" for column in table.columns]
    widths = [max(3, *map(len, texts)) for texts in zip(head, *rows, strict=True)]
    if sum(widths) + 3 * len(widths) + 1 > WIDEST:
        widths = [3] * len(widths)
    rule = ["-" * (width - 1) + ":" if is_right else "-" * width for width, is_right in zip(widths, right, strict=True)]
    lines = [
        " | ".join(
            text.rjust(w) if is_right else text.ljust(w) for text, w, is_right in zip(row, widths, right, strict=True)
        )
        for row in (head, rule, *rows)
    ]
    return Plain("\n".join(f"| {line} |" for line in lines))


def _markdown_head(column: Column) -> str:
    if not column.unit:
        return escaped(column.header)
    return escaped(f"{column.header}, {column.unit}" if "(" in column.unit else f"{column.header} ({column.unit})")
