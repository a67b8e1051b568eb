"""The page of a history: curves over commits, and the commits at which a level changes."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dynbench.analysis.change_points import outliers
from dynbench.analysis.formatting import change_text, change_with_interval, percent, significant, times
from dynbench.analysis.trends import FEWEST, Change, changes, values
from dynbench.errors import UserError
from dynbench.report.background import legend
from dynbench.report.columns import COLUMNS, Column
from dynbench.report.content import FigureGroup, Panel
from dynbench.report.drawings import Absent, Curve, Trend
from dynbench.report.palette import MUTED, tones_of
from dynbench.report.tables import Block, Row, Section, make_table
from dynbench.report.values import Value, number, with_interval, words
from dynbench.report.write import FORMATS, check_formats, write_pages
from dynbench.store.history import History, Key, RecordedCheck, RecordedRun, Series

MOST_COMMITS = 12  # at the head of the page, the newest first; the table has all


COMMIT = Column(
    key="commit",
    header="commit",
    definition="The first run on the new level, by its commit; a plus sign: with changes that were not committed. "
    "Without a repository the day and time.",
    kind="name",
)
SUBJECT = Column("subject", "subject", kind="prose")
MACHINE = Column("machine", "machine", kind="prose")
CHANGES = [
    COMMIT,
    SUBJECT,
    Column("cell", "cell", definition="Workload, decisions, batch size and what ran.", kind="text"),
    Column(
        key="quantity",
        header="of",
        definition="Of a cell its speed-up against the primary baseline of the same run, which a slower machine leaves "
        "alone; of the primary baseline itself its time.",
        is_not="A changed time of the baseline may be the machine's doing.",
        kind="text",
    ),
    Column(
        key="from",
        header="from",
        definition="Geometric mean of the level before, without outliers.",
    ),
    Column("to", "to", definition="The same of the level after."),
    Column(
        key="change",
        header="change",
        unit="%",
        definition="New level / old level - 1. A higher speed-up is better, a higher time is worse.",
    ),
    Column(
        key="p",
        header="p-value",
        definition="Probability of a change this clear at any place between its neighbours if there is none.",
        is_not="With many cells some changes come about by chance.",
    ),
    Column(
        key="after",
        header="last run before",
        definition="The cause lies after this commit, up to and with the one named first.",
        kind="text",
    ),
    Column(
        key="also",
        header="what else changed",
        definition="Versions that differ between these two runs.",
        kind="prose",
    ),
]
LATEST = [
    replace(COLUMNS["name"], definition="A strategy that runs the model, or a baseline (a static network)."),
    *(COLUMNS[key] for key in ("workload", "decisions", "batch", "speedup", "latency_item_ms")),
    Column(
        key="since",
        header="level since",
        definition="The commit of the last change of level, or the first one recorded.",
        kind="text",
    ),
    Column("runs", "runs", definition="Comparable results of this cell."),
    MACHINE,
]
RUNS = [
    COMMIT,
    SUBJECT,
    Column("measured", "measured", "UTC", kind="text"),
    Column("workloads", "workloads", kind="prose"),
    Column("cells", "cells", definition="Timed results recorded of this run."),
    Column("versions", "versions", kind="prose"),
    MACHINE,
]
CHECKS = [
    replace(COMMIT, definition="The head, by its commit; a plus sign: with changes that were not committed."),
    SUBJECT,
    Column("checked", "checked", "UTC", kind="text"),
    Column("base", "base", definition="What it was compared with in the same job.", kind="text"),
    Column("cell", "cell", definition="Workload, strategy and batch size.", kind="text"),
    Column(
        key="change",
        header="change of time",
        unit="95 % CI",
        definition="Time of the head / time of the base - 1.",
        is_not="The time itself: that of two jobs is not compared here.",
    ),
    Column(
        key="resolution",
        header="resolution",
        definition="What the base differed from itself by; nothing nearer to 0 is a difference.",
    ),
    Column(
        key="verdict",
        header="verdict",
        definition="FASTER and SLOWER: shown again by a second series of fresh processes. AMBIGUOUS: the machine could "
        "not tell.",
        kind="text",
    ),
    Column(
        key="counted",
        header="counted",
        definition="What does not depend on the clock and differs: work, decisions, answers.",
        kind="prose",
    ),
]


@dataclass(frozen=True)
class ChangedCommit:
    """All changes of level at one commit.

    Attributes:
        figure: the largest, in percent.
        outcome: 'better' or 'worse', of the largest, and how many more there are.
        commit: the first one on the new levels.
        subject: of that commit.
        sentences: one for each change.
        also: what else differs from the run before.
    """

    figure: str
    outcome: str
    commit: str
    subject: str
    sentences: list[str]
    also: list[str]


@dataclass(frozen=True)
class HistoryPage:
    """Everything the page says; the fields that a report has too mean the same.

    Attributes:
        where: the database.
        newest: commits at which a level changed, the newest first; at most `MOST_COMMITS`.
        earlier: how many more there are.
    """

    title: str
    where: str
    status: str | None
    facts: list[tuple[str, str]]
    newest: list[ChangedCommit]
    earlier: int
    figures: list[FigureGroup]
    sections: list[Section]
    tones: dict[str, str]


def write_history(history: History, workloads: Sequence[str], formats: Sequence[str], out: Path) -> list[Path]:
    """Writes `history.html`, one file that needs nothing else, and `history.md` with `figures/` beside it.

    Args:
        history: where the results are.
        workloads: only these; none: all.
        formats: 'html' and 'md'.
        out: folder to write into.

    Raises:
        UserError: an unknown format or workload, nothing recorded, or a folder that cannot be written.
    """
    check_formats(formats)
    return write_pages(build(history, workloads), "history", formats or FORMATS, out)


def build(history: History, workloads: Sequence[str] = ()) -> HistoryPage:
    """Reads a history into a page.

    Raises:
        UserError: nothing is recorded, or nothing of one of `workloads`.
    """
    series = [s for s in history.series(workloads) if s.key.arm.kind != "control"]
    checks = history.checks(workloads)
    if not series and not checks:
        raise UserError(
            f"{history.where} holds no results yet; `dynbench history add RUN` records a run, and "
            "`dynbench check --history` a check"
        )
    recorded = [entry for entry in history.runs() if not workloads or set(entry[1]) & set(workloads)]
    runs = [run for run, _, _ in recorded]
    found = [change for s in series for change in changes(s)]
    tones = tones_of(s.key.arm.strategy for s in series if s.key.arm.strategy is not None)
    commits = _commits(found, runs)
    sections = [_changes(found, runs, series), _latest(series, found), _recorded(recorded)] if series else []
    sections += [_checks(checks)] if checks else []
    sections += [_compared(series)] if series else []
    tables = [b.table for s in sections for b in s.blocks if b.table is not None]
    names = sorted({s.key.workload for s in series} | {c.gate.workload for c in checks})
    counts = [_count(len(entries), word) for entries, word in ((runs, "run"), (checks, "check")) if entries]
    return HistoryPage(
        title=f"{_count(len(names), 'workload')} over {' and '.join(counts)}",
        where=history.where,
        status=None,
        facts=[("workloads", ", ".join(names)), *_facts(series, runs, checks), ("kept in", history.where)],
        newest=commits[:MOST_COMMITS],
        earlier=len(commits[MOST_COMMITS:]),
        figures=_figures(series, found, runs, tones),
        sections=[*sections, legend(tables)],
        tones=tones,
    )


def _facts(
    series: Sequence[Series], runs: Sequence[RecordedRun], checks: Sequence[RecordedCheck]
) -> Iterator[tuple[str, str]]:
    if runs:
        yield "runs", f"{len(runs)} of {_span(runs)}"
    if checks:
        codes = [c.gate.exit_code for c in checks]
        outcomes = f"{codes.count(1)} with a regression, {codes.count(3)} that could not tell"
        yield "checks", f"{len(checks)} of {_span(checks)}; {outcomes}"
    yield "machines", "; ".join(sorted({s.key.machine for s in series} | {c.gate.machine for c in checks}))


def _count(many: int, word: str) -> str:
    return f"{many} {word}{'s' * (many != 1)}"


def _span(found: Sequence[RecordedRun] | Sequence[RecordedCheck]) -> str:
    """'7 commits, 2026-11-02 to 2026-11-20'."""
    dates = sorted((f.gate.started if isinstance(f, RecordedCheck) else f.started)[:10] for f in found)
    return f"{_count(len({f.label for f in found}), 'commit')}, {dates[0]} to {dates[-1]}"


def cell_in_words(key: Key) -> str:
    """'skipnet38_digits, learned, batch 32: compaction'."""
    return f"{key.workload}, {key.decisions}, batch {key.batch_size}: {key.arm.title}"


def _commits(found: Sequence[Change], runs: Sequence[RecordedRun]) -> list[ChangedCommit]:
    """The commits at which a level changed, the newest first."""
    place = {run.identity: i for i, run in enumerate(runs)}
    by_run: dict[str, list[Change]] = {}
    for change in sorted(found, key=lambda c: (-place[c.run.identity], -abs(c.found.change))):
        by_run.setdefault(change.run.identity, []).append(change)
    commits = []
    for mine in by_run.values():
        largest = mine[0]
        outcome = "better" if largest.better else "worse"
        commits.append(
            ChangedCommit(
                figure=change_text(1 + largest.found.change),
                outcome=outcome if len(mine) == 1 else f"{outcome}, and {len(mine) - 1} more",
                commit=largest.run.label,
                subject=largest.run.subject or "",
                sentences=[_sentence(c) for c in mine],
                also=list(dict.fromkeys(what for c in mine for what in c.also)),
            )
        )
    return commits


def _sentence(change: Change) -> str:
    found, key = change.found, change.series.key
    if change.quantity == "speed-up":
        what, before, after = f"the speed-up against {key.baseline}", times(found.before), times(found.after)
    else:
        what = "the time of the baseline"
        before, after = (f"{significant(level)} ms per item" for level in (found.before, found.after))
    return (
        f"{cell_in_words(key)}: {what} went from {before} to {after} ({change_text(1 + found.change)}), after "
        f"{change.before.label}."
    )


def _group(key: Key) -> Hashable:
    """What cells have in common that are drawn together: all but the arm."""
    return tuple(value for name, value in key if name != "arm")


def _figures(
    series: Sequence[Series], found: Sequence[Change], runs: Sequence[RecordedRun], tones: dict[str, str]
) -> list[FigureGroup]:
    """Of each workload the decisions that come first, and whatever else changed: a panel per batch size."""
    groups: dict[Hashable, list[Series]] = {}
    firsts: dict[str, str] = {}
    for s in series:
        groups.setdefault(_group(s.key), []).append(s)
        label = firsts.setdefault(s.key.workload, s.key.decisions)
        firsts[s.key.workload] = min(label, s.key.decisions, key=lambda name: (name != "learned", name))
    changed = {_group(c.series.key) for c in found}
    machines = {s.key.machine for s in series}
    by_workload: dict[str, list[Panel]] = {}
    for number_, (group, mine) in enumerate(groups.items()):
        key = mine[0].key
        if key.decisions != firsts[key.workload] and group not in changed:
            continue
        parts = [key.workload, key.decisions, f"batch {key.batch_size}"]
        parts += [key.device] * (key.device != "cpu") + [key.machine] * (len(machines) > 1)
        panel = _panel(f"trend-{number_}", ", ".join(parts), mine, found, runs, tones)
        by_workload.setdefault(key.workload, []).append(panel)
    text = (
        "Above: speed-up against the primary baseline of the same run (of a deployed arm: against it in its fastest "
        "way); below: time per item, the baseline dotted. "
        "A ring and a line: here a level changes. A cross: an outlier, which is left out of the levels. Thin bars: "
        "95 % confidence intervals within a run. The vertical axes are logarithmic."
    )
    return [FigureGroup(f"history-{i}", name, text, panels) for i, (name, panels) in enumerate(by_workload.items())]


def _panel(
    key: str,
    title: str,
    mine: Sequence[Series],
    found: Sequence[Change],
    runs: Sequence[RecordedRun],
    tones: dict[str, str],
) -> Panel:
    inside = {p.run.identity for s in mine for p in s.points}
    shown = [run for run in runs if run.identity in inside]
    if len(shown) < 2:
        return Panel(key, title, "", "", Absent("there is one comparable run so far"))
    place = {run.identity: i for i, run in enumerate(shown)}
    curves: list[Curve] = []
    alt = []
    for s in mine:
        curve = _curve(s, place, [c for c in found if c.series is s], tones)
        hollow = not curve.static and any(other.tone == curve.tone for other in curves)
        curves.append(replace(curve, hollow=hollow))
        last = f"{times(curve.speedups[-1].value)} and " if curve.speedups else ""
        commits = ", ".join(shown[i].label for i in curve.changes)
        at_commits = f", changed at {commits}" if commits else ""
        alt.append(f"{curve.name}: {last}{significant(curve.item_ms[-1])} ms per item last{at_commits}")
    baseline = next((s.key.baseline for s in mine if s.key.baseline), None) or "the baseline"
    caption = f"{len(shown)} runs, {shown[0].label} to {shown[-1].label}."
    if len(shown) < FEWEST:
        caption += f" Changes can be seen from {FEWEST} comparable runs on."
    drawing = Trend(baseline, [run.label for run in shown], curves)
    return Panel(key, title, caption, f"{title}. {caption} {'; '.join(alt)}.", drawing)


def _curve(series: Series, place: dict[str, int], found: Sequence[Change], tones: dict[str, str]) -> Curve:
    """A series as it is drawn; `place` of a run along the axis, by its identity."""
    arm, points = series.key.arm, series.points
    at = [place[p.run.identity] for p in points]
    speedups = [p.speedup for p in points if p.speedup is not None]
    return Curve(
        name=arm.title,
        tone=MUTED if arm.strategy is None else tones[arm.strategy],
        runs=at,
        speedups=list(speedups) if len(speedups) == len(at) else [],
        item_ms=[p.item_ms for p in points],
        outliers=outliers(values(series)[1]).tolist(),
        changes=[at[c.found.index] for c in found],
        static=arm.kind == "baseline",
    )


def _changes(found: Sequence[Change], runs: Sequence[RecordedRun], series: Sequence[Series]) -> Section:
    place = {run.identity: i for i, run in enumerate(runs)}
    rows: list[Row] = []
    for change in sorted(found, key=lambda c: (-place[c.run.identity], cell_in_words(c.series.key))):
        at = change.found
        before, after = (
            Value(times(level) if change.quantity == "speed-up" else f"{significant(level)} ms", level)
            for level in (at.before, at.after)
        )
        rows.append(
            {
                "commit": words(change.run.label),
                "subject": words(change.run.subject),
                "cell": words(cell_in_words(change.series.key)),
                "quantity": words(change.quantity),
                "from": before,
                "to": after,
                "change": Value(change_text(1 + at.change), at.change),
                "p": Value("< 0.0001" if at.p < 1e-4 else significant(at.p, 2), at.p),
                "after": words(change.before.label),
                "also": words("; ".join(change.also)),
            }
        )
    few = sum(len(s.points) < FEWEST for s in series)
    text = []
    if few:
        text = [f"{few} of {len(series)} cells have fewer than {FEWEST} comparable runs: too few to see a change."]
    if not rows:
        return Section("changes", "Changes", "", [Block(text=["No level changed.", *text])])
    lead = "Cells are watched for the record: a change says where to look, and deserves a second measurement."
    table = make_table("changes", "Changes", CHANGES, rows)
    return Section("changes", "Changes", lead, [Block(text=text, table=table)])


def _latest(series: Sequence[Series], found: Sequence[Change]) -> Section:
    rows: list[Row] = []
    for s in series:
        last, key = s.points[-1], s.key
        changed = [c.run for c in found if c.series is s]
        rows.append(
            {
                "name": words(key.arm.title),
                "workload": words(key.workload),
                "decisions": words(key.decisions),
                "batch": number(key.batch_size),
                "speedup": Value("reference") if last.speedup is None else with_interval(last.speedup),
                "latency_item_ms": number(last.item_ms),
                "since": words((changed[-1] if changed else s.points[0].run).label),
                "runs": number(len(s.points)),
                "machine": words(key.machine),
            }
        )
    table = make_table("latest", "Newest results", LATEST, rows, block="workload")
    return Section("latest", "Newest results", "The newest comparable result of every cell.", [Block(table=table)])


def _recorded(recorded: Sequence[tuple[RecordedRun, list[str], int]]) -> Section:
    rows: list[Row] = [
        {
            "commit": words(run.label),
            "subject": words(run.subject),
            "measured": words(_minute(run.started)),
            "workloads": words(", ".join(workloads)),
            "cells": number(cells),
            "versions": words(_versions(run)),
            "machine": words(run.machine),
        }
        for run, workloads, cells in reversed(recorded)
    ]
    table = make_table("runs", "Runs", RUNS, rows)
    return Section("runs", "Runs", "In the order of their commits, the newest first.", [Block(table=table)])


def _checks(checks: Sequence[RecordedCheck]) -> Section:
    rows: list[Row] = [
        {
            "commit": words(c.label),
            "subject": words(c.subject),
            "checked": words(_minute(c.gate.started)),
            "base": words(c.gate.base),
            "cell": words(f"{c.gate.workload}: {cell.name}"),
            "change": Value(change_with_interval(cell.change), cell.change.value - 1),
            "resolution": Value(percent(cell.resolution, 1), cell.resolution),
            "verdict": words(cell.outcome),
            "counted": words("; ".join(e.text for e in cell.exact)),
        }
        for c in reversed(checks)
        for cell in c.gate.cells
    ]
    table = make_table("checks", "Checks", CHECKS, rows)
    lead = "What checks found, the newest commit first; each compared two revisions, measured in one job."
    return Section("checks", "Checks", lead, [Block(table=table)])


def _minute(iso: str) -> str:
    return iso[:16].replace("T", " ")


def _versions(run: RecordedRun) -> str:
    known = {"dynbench": run.dynbench_version, **run.software}
    return ", ".join(f"{name} {known[name]}" for name in ("dynbench", "torch", "python") if name in known)


def _compared(series: Sequence[Series]) -> Section:
    text = [
        "Results stand in one curve only if these are the same: workload, model, primary baseline and their arguments, "
        "inputs (hash), decisions (hash), what ran, its form and engine, batch size, number type, threads, device, and "
        "the machine: name, architecture, usable cores and caches. A cell of which one of these changes begins a new "
        "curve; so new weights, with which a network decides otherwise, are never taken for a change of speed.",
        "Commits, and versions of torch or dynbench, are not among them: they are what is watched.",
        f"There are {len(series)} such curves here.",
    ]
    return Section("compared", "What is compared with what", "", [Block(text=text)])
