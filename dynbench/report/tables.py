"""A table as data: constant columns are named once instead of shown, and reasons become footnotes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dynbench.report.columns import Column
from dynbench.report.values import NOTHING, Value

Row = dict[str, Value]
CONSTANT_FROM = 2  # rows: of a single row nothing is constant
SELF_EVIDENT = ("", "x", "x (95 % CI)", "items", "relative")  # units that a value named in a sentence does not need


@dataclass(frozen=True)
class Table:
    """Ready to be shown.

    Attributes:
        key: unique in the report.
        title: its caption.
        columns: those that differ between rows; the first one names the row.
        filled: those that have a value in any row, the constant ones included: what the legend explains.
        rows: a value for every one of `columns`.
        breaks: numbers of the rows that begin another block.
        constants: 'peak memory: n/a (reason)': columns that are the same wherever they apply.
        notes: footnotes, numbered from 1.
    """

    key: str
    title: str
    columns: list[Column]
    filled: list[Column]
    rows: list[list[Value]]
    breaks: list[int] = field(default_factory=list)
    constants: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def note_number(self, value: Value) -> int | None:
        """Which footnote a value has."""
        return None if value.note is None else self.notes.index(value.note) + 1


def make_table(
    key: str, title: str, columns: Sequence[Column], rows: Sequence[Row], *, block: str | None = None
) -> Table:
    """Builds a table from rows of values by column key.

    Args:
        key: unique in the report.
        title: its caption.
        columns: in order; those without any value are left out, constant ones are named once unless they `stay`.
        rows: of values; one that is not there is a dash.
        block: key of the column whose change begins another block.
    """
    nothing = Value(NOTHING)
    filled = [c for c in columns if any(r.get(c.key, nothing).text != NOTHING for r in rows)]
    shown: list[Column] = []
    same: dict[tuple[str, str], list[str]] = {}
    for column in filled:
        first, *others = (v for r in rows if (v := r.get(column.key, nothing)) != nothing)
        stays = column.stays or column.kind in ("name", "prose") or len(rows) < CONSTANT_FROM
        if stays or any(v != first for v in others):
            shown.append(column)
        else:
            why = f" ({first.note})" if first.note else ""
            unit = f" {column.unit}" if column.unit not in SELF_EVIDENT and first.note is None else ""
            same.setdefault((f"{first.text}{unit}", why), []).append(column.header)
    constants = [f"{', '.join(headers)}: {text}{why}" for (text, why), headers in same.items()]
    values = [[r.get(c.key, nothing) for c in shown] for r in rows]
    notes = list(dict.fromkeys(v.note for row in values for v in row if v.note is not None))
    breaks = []
    if block is not None:
        breaks = [i for i in range(1, len(rows)) if rows[i].get(block) != rows[i - 1].get(block)]
    return Table(key, title, shown, filled, values, breaks, constants, notes)


@dataclass(frozen=True)
class Block:
    """A part of a section: text, a table, code, in this order. `folded`: shown when asked for."""

    title: str | None = None
    text: list[str] = field(default_factory=list)
    table: Table | None = None
    code: str | None = None
    folded: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the report under its own heading."""

    key: str
    title: str
    text: str
    blocks: list[Block]
