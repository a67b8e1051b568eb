"""How many lines a dynamic network takes: our form beside its authors' code."""

from __future__ import annotations

from collections.abc import Sequence

from dynbench.analysis.formatting import times
from dynbench.analysis.overview import Summary, median
from dynbench.report.answer import folded
from dynbench.report.lines import Compared, compared
from dynbench.report.tables import Block, Row
from dynbench.report.values import count, ratio, words


def lines_of_code(summaries: Sequence[Summary]) -> tuple[list[str], list[Block]]:
    """A sentence and a table of the networks of a run whose authors' code was counted; nothing where there is none.

    Args:
        summaries: of the run's workloads.
    """
    found = [(c, titles) for c in compared() if (titles := _titles(c, summaries))]
    if not found:
        return [], []
    pairs = [(c.our_lines, c.their_lines) for c, _ in found]
    middle = median(ours / theirs for ours, theirs in pairs) or 1.0
    many = f"{len(found)} networks of this run" if len(found) > 1 else "A network of this run"
    said = (
        f"{many} {'take' if len(found) > 1 else 'takes'} {sum(o for o, _ in pairs)} lines of code here and "
        f"{sum(t for _, t in pairs)} in the authors' repositories (median ratio {times(middle)}), counted by the same "
        "rule: lines with code that define the network and its gates, routers, policies and exits, without comments, "
        "docstrings, training and data. Their lines hold one form of execution, or two that are written apart; ours "
        "are run by every strategy. Lines here are up to 120 characters wide."
    )
    rows = [_row(c, titles, ours, theirs) for (c, titles), (ours, theirs) in zip(found, pairs, strict=True)]
    keys = ["method", "workload", "our_lines", "their_lines", "lines_ratio", "their_form", "backbone", "counted_in"]
    return [said], [folded("Lines of code, ours and the authors'", "answer lines", keys, rows)]


def _titles(c: Compared, summaries: Sequence[Summary]) -> list[str]:
    return [s.info.title for s in summaries if s.info.name.startswith(c.workloads)]


def _row(c: Compared, titles: Sequence[str], ours: int, theirs: int) -> Row:
    return {
        "method": words(c.method),
        "workload": words("; ".join(titles)),
        "our_lines": count(ours),
        "their_lines": count(theirs),
        "lines_ratio": ratio(ours / theirs),
        "their_form": words(c.form),
        "backbone": words(c.backbone),
        "counted_in": words(f"{c.repository} at {c.commit[:10]}: {', '.join(c.theirs)}"),
    }
