"""An answer of the first page: sentences, figures and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dynbench.report.content import Panel
from dynbench.report.overview_columns import COLUMNS
from dynbench.report.tables import Block, Row, make_table


@dataclass(frozen=True)
class Answer:
    """One question and what this run says about it.

    Attributes:
        key: unique, fit for an id.
        sentences: with figures.
        panels: figures.
        blocks: tables, folded.
    """

    key: str
    question: str
    sentences: list[str]
    panels: list[Panel]
    blocks: list[Block]


def folded(title: str, key: str, columns: Sequence[str], rows: list[Row]) -> Block:
    """A table that is shown when asked for.

    Args:
        title: above it.
        key: unique in the report.
        columns: keys of `overview_columns`.
        rows: of the table.
    """
    return Block(title, table=make_table(key, title, [COLUMNS[c] for c in columns], rows), folded=True)
