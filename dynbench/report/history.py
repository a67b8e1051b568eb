"""The page of a history: curves over commits, and the commits at which a level changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dynbench.analysis.change_points import stand_alone
from dynbench.analysis.trends import FEWEST, Change, changes, values
from dynbench.errors import UserError
from dynbench.report.background import legend
from dynbench.report.columns import COLUMNS, Column, Kind
from dynbench.report.content import FigureGroup, Panel
from dynbench.report.drawings import Absent, Curve, Trend
from dynbench.report.palette import MUTED, tones_of
from dynbench.report.tables import Block, Row, Section, make_table
from dynbench.report.values import Value, interval, number, significant, times, words
from dynbench.report.write import FORMATS, check_formats, write_pages
from dynbench.store.gate import change_text
from dynbench.store.history import History, Key, RecordedCheck, RecordedRun, Series

MOST_TOLD = 12  # commits told at the head of the page, the newest first; the table has all


def _c(key: str, header: str, unit: str = "", definition: str = "", is_not: str = "", kind: Kind = "number") -> Column:
    return Column(key, header, unit, definition, is_not, kind)


_COMMIT = _c("commit", "commit", "", "The first run on the new level, by its commit; a plus sign: with changes that "
             "were not committed. Without a repository the day and time.", kind="name")  # fmt: skip
_CHANGES = [
    _COMMIT,
    _c("subject", "subject", kind="prose"),
    _c("cell", "cell", "", "Workload, decisions, batch size and what ran.", kind="text"),
    _c("quantity", "of", "", "Of a cell its speed-up against the primary baseline of the same run, which a slower "
       "machine leaves alone; of the primary baseline itself its time.",
       "A changed time of the baseline may be the machine's doing.", kind="text"),
    _c("from", "from", "", "Geometric mean of the level before, runs that stand out alone left out."),
    _c("to", "to", "", "The same of the level after."),
    _c("change", "change", "%", "New level / old level - 1. A higher speed-up is better, a higher time is worse."),
    _c("p", "p-value", "", "Probability of a change this clear at any place between its neighbours if there is none.",
       "With many cells some changes come about by chance."),
    _c("after", "last run before", "", "The cause lies after this commit, up to and with the one named first.",
       kind="text"),
    _c("also", "what else changed", "", "Versions that differ between these two runs.", kind="prose"),
]  # fmt: skip
_LATEST = [
    replace(COLUMNS["name"], definition="A strategy that runs the model, or a baseline (a static network)."),
    *(COLUMNS[key] for key in ("workload", "decisions", "batch", "speedup", "item_ms")),
    _c("since", "level since", "", "The commit of the last change of level, or the first one recorded.", kind="text"),
    _c("runs", "runs", "", "Comparable results of this cell."),
    _c("machine", "machine", kind="prose"),
]
_RUNS = [
    _COMMIT,
    _c("subject", "subject", kind="prose"),
    _c("measured", "measured", "UTC", kind="text"),
    _c("workloads", "workloads", kind="prose"),
    _c("cells", "cells", "", "Timed results recorded of this run."),
    _c("versions", "versions", kind="prose"),
    _c("machine", "machine", kind="prose"),
]


_CHECKS = [
    _c("commit", "commit", "", "The head, by its commit; a plus sign: with changes that were not committed.",
       kind="name"),
    _c("subject", "subject", kind="prose"),
    _c("checked", "checked", "UTC", kind="text"),
    _c("base", "base", "", "What it was compared with in the same job.", kind="text"),
    _c("cell", "cell", "", "Workload, strategy and batch size.", kind="text"),
    _c("change", "change of time", "95 % CI", "Time of the head / time of the base - 1.",
       "The time itself: that of two jobs is not compared here."),
    _c("resolution", "resolution", "", "What the base differed from itself by; nothing nearer to 0 is a difference."),
    _c("verdict", "verdict", "", "FASTER and SLOWER: shown again by a second series of fresh processes. AMBIGUOUS: the "
       "machine could not tell.", kind="text"),
    _c("counted", "counted", "", "What does not depend on the clock and differs: work, decisions, answers.",
       kind="prose"),
]  # fmt: skip


@dataclass(frozen=True)
class Told:
    """All changes at one commit: the largest as a figure, all in words."""

    figure: str
    call: str
    commit: str
    subject: str
    sentences: list[str]
    also: list[str]


@dataclass(frozen=True)
class HistoryPage:
    """Everything the page says; the fields that a report has too mean the same."""

    title: str
    where: str
    status: str | None
    facts: list[tuple[str, str]]
    told: list[Told]
    untold: int
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
    series = [s for s in history.series(workloads) if s.key.arm != "control"]
    checks = history.checks(workloads)
    if not series and not checks:
        raise UserError(
            f"{history.where} holds no results yet; `dynbench history add RUN` records a run, and "
            "`dynbench check --history` a check"
        )
    recorded = [entry for entry in history.runs() if not workloads or set(entry[1]) & set(workloads)]
    runs = [run for run, _, _ in recorded]
    found = [change for s in series for change in changes(s)]
    tones = tones_of(s.key.name for s in series if s.key.arm == "strategy")
    told = _told(found, runs)
    sections = [_changes(found, runs, series), _latest(series, found), _recorded(recorded)] if series else []
    sections += [_checks(checks)] if checks else []
    sections += [_compared(series)] if series else []
    tables = [b.table for s in sections for b in s.blocks if b.table is not None]
    names = sorted({s.key.workload for s in series} | {c.gate.workload for c in checks})
    machines = sorted({s.key.machine for s in series} | {c.gate.machine for c in checks})
    counts = [_count(len(what), word) for what, word in ((runs, "run"), (checks, "check")) if what]
    facts = [("workloads", ", ".join(names))]
    if runs:
        facts.append(("runs", f"{len(runs)} of {_span(runs)}"))
    if checks:
        codes = [c.gate.exit_code for c in checks]
        facts.append(
            ("checks", f"{len(checks)} of {_span(checks)}; {codes.count(1)} with a regression, {codes.count(3)} that "
             "could not tell")
        )  # fmt: skip
    return HistoryPage(
        title=f"{_count(len(names), 'workload')} over {' and '.join(counts)}",
        where=history.where,
        status=None,
        facts=[*facts, ("machines", "; ".join(machines)), ("kept in", history.where)],
        told=told[:MOST_TOLD],
        untold=len(told[MOST_TOLD:]),
        figures=_figures(series, found, runs, tones),
        sections=[*sections, legend(tables)],
        tones=tones,
    )


def _count(many: int, word: str) -> str:
    return f"{many} {word}{'s' * (many != 1)}"


def _span(found: Sequence[RecordedRun] | Sequence[RecordedCheck]) -> str:
    """'7 commits, 2026-11-02 to 2026-11-20'."""
    dates = sorted((f.gate.started if isinstance(f, RecordedCheck) else f.started)[:10] for f in found)
    return f"{_count(len({f.label for f in found}), 'commit')}, {dates[0]} to {dates[-1]}"


def cell_in_words(key: Key) -> str:
    """'skipnet38_digits, learned, batch 32: compaction'."""
    form = "" if key.form == "plain" else f", {key.form}"
    return f"{key.workload}, {key.decisions}, batch {key.batch_size}: {key.name}{form}"


def _signed(change: float) -> str:
    return f"{100 * change:+.1f} %"


def _told(found: Sequence[Change], runs: Sequence[RecordedRun]) -> list[Told]:
    """By commit, the newest first."""
    place = {run.identity: i for i, run in enumerate(runs)}
    by_run: dict[str, list[Change]] = {}
    for change in sorted(found, key=lambda c: (-place[c.run.identity], -abs(c.found.change))):
        by_run.setdefault(change.run.identity, []).append(change)
    told = []
    for mine in by_run.values():
        first = mine[0]
        worse = "better" if first.better else "worse"
        call = worse if len(mine) == 1 else f"{worse}, and {len(mine) - 1} more"
        also = list(dict.fromkeys(what for c in mine for what in c.also))
        sentences = [_sentence(c) for c in mine]
        told.append(Told(_signed(first.found.change), call, first.run.label, first.run.subject or "", sentences, also))
    return told


def _sentence(change: Change) -> str:
    c, key = change.found, change.series.key
    shown = times if change.quantity == "speed-up" else lambda v: f"{significant(v)} ms per item"
    what = f"the speed-up against {key.baseline}" if change.quantity == "speed-up" else "the time of the baseline"
    return (
        f"{cell_in_words(key)}: {what} went from {shown(c.before)} to {shown(c.after)} ({_signed(c.change)}), after "
        f"{change.before.label}."
    )


def _figures(
    series: Sequence[Series], found: Sequence[Change], runs: Sequence[RecordedRun], tones: dict[str, str]
) -> list[FigureGroup]:
    """Of each workload the decisions that come first, and whatever else changed: a panel per batch size."""
    groups: dict[Key, list[Series]] = {}
    for s in series:
        groups.setdefault(replace(s.key, arm="", name="", form=""), []).append(s)
    firsts: dict[str, str] = {}
    for key in groups:
        label = firsts.setdefault(key.workload, key.decisions)
        firsts[key.workload] = min(label, key.decisions, key=lambda name: (name != "learned", name))
    changed = {replace(c.series.key, arm="", name="", form="") for c in found}
    machines = {s.key.machine for s in series}
    by_workload: dict[str, list[Panel]] = {}
    for number_, (key, mine) in enumerate(groups.items()):
        if key.decisions != firsts[key.workload] and key not in changed:
            continue
        title = f"{key.workload}, {key.decisions}, batch {key.batch_size}"
        extra = [key.device] * (key.device != "cpu") + [key.machine] * (len(machines) > 1)
        title = ", ".join([title, *extra])
        by_workload.setdefault(key.workload, []).append(_panel(f"trend-{number_}", title, mine, found, runs, tones))
    text = (
        "Above: speed-up against the primary baseline of the same run; below: time per item, the baseline dotted. "
        "A ring and a line: here a level changes. A cross: stands out alone, and is left out of the levels. Thin bars: "
        "95 % confidence intervals within a run. The vertical axes are logarithmic."
    )
    return [FigureGroup(f"history-{i}", name, text, panels) for i, (name, panels) in enumerate(by_workload.items())]


def _panel(
    key: str, title: str, mine: Sequence[Series], found: Sequence[Change], runs: Sequence[RecordedRun],
    tones: dict[str, str],
) -> Panel:  # fmt: skip
    inside = {p.run.identity for s in mine for p in s.points}
    shown = [run for run in runs if run.identity in inside]
    if len(shown) < 2:
        return Panel(key, title, "", "", Absent("there is one comparable run so far"))
    place = {run.identity: i for i, run in enumerate(shown)}
    curves, alt = [], []
    for s in mine:
        at = [place[p.run.identity] for p in s.points]
        changed = [at[c.found.index] for c in found if c.series is s]
        _, numbers = values(s)
        static = s.key.arm == "baseline"
        speedups = [p.speedup for p in s.points if p.speedup is not None]
        name = s.key.name if s.key.form == "plain" else f"{s.key.name}, {s.key.form}"
        curves.append(
            Curve(
                name, MUTED if static else tones[s.key.name], at, list(speedups) if len(speedups) == len(at) else [],
                [p.item_ms for p in s.points], [bool(a) for a in stand_alone(numbers)], changed, static,
            )
        )  # fmt: skip
        last = f"{times(speedups[-1].value)} and " if curves[-1].speedups else ""
        at_commits = f", changed at {', '.join(shown[i].label for i in changed)}" if changed else ""
        alt.append(f"{name}: {last}{significant(s.points[-1].item_ms)} ms per item last{at_commits}")
    baseline = next((s.key.baseline for s in mine if s.key.baseline), None) or "the baseline"
    caption = f"{len(shown)} runs, {shown[0].label} to {shown[-1].label}."
    if len(shown) < FEWEST:
        caption += f" Changes are told from {FEWEST} comparable runs on."
    drawing = Trend(baseline, [run.label for run in shown], curves)
    return Panel(key, title, caption, f"{title}. {caption} {'; '.join(alt)}.", drawing)


def _changes(found: Sequence[Change], runs: Sequence[RecordedRun], series: Sequence[Series]) -> Section:
    place = {run.identity: i for i, run in enumerate(runs)}
    rows: list[Row] = []
    for change in sorted(found, key=lambda c: (-place[c.run.identity], cell_in_words(c.series.key))):
        c, of_time = change.found, change.quantity == "time"
        ends = [Value(f"{significant(v)} ms" if of_time else times(v), v) for v in (c.before, c.after)]
        rows.append(
            {
                "commit": words(change.run.label), "subject": words(change.run.subject),
                "cell": words(cell_in_words(change.series.key)), "quantity": words(change.quantity),
                "from": ends[0], "to": ends[1], "change": Value(_signed(c.change), c.change),
                "p": Value("< 0.0001" if c.p < 1e-4 else significant(c.p, 2), c.p),
                "after": words(change.before.label), "also": words("; ".join(change.also)),
            }
        )  # fmt: skip
    few = sum(len(s.points) < FEWEST for s in series)
    text = [f"{few} of {len(series)} cells have fewer than {FEWEST} comparable runs: too few to tell a change."] * (
        few > 0
    )
    if not rows:
        return Section("changes", "Changes", "", [Block(text=["No level changed.", *text])])
    lead = "Cells are watched for the record: a change told here says where to look, and deserves a second measurement."
    return Section(
        "changes", "Changes", lead, [Block(text=text, table=make_table("changes", "Changes", _CHANGES, rows))]
    )


def _latest(series: Sequence[Series], found: Sequence[Change]) -> Section:
    rows: list[Row] = []
    for s in series:
        last, key = s.points[-1], s.key
        mine = [c for c in found if c.series is s]
        speedup = Value("reference", None) if last.speedup is None else Value(
            f"{times(last.speedup.value)} ({interval(last.speedup)})", last.speedup.value)  # fmt: skip
        rows.append(
            {
                "name": words(key.name if key.form == "plain" else f"{key.name}, {key.form}"),
                "workload": words(key.workload), "decisions": words(key.decisions),
                "batch": number(key.batch_size), "speedup": speedup, "item_ms": number(last.item_ms),
                "since": words((mine[-1].run if mine else s.points[0].run).label), "runs": number(len(s.points)),
                "machine": words(key.machine),
            }
        )  # fmt: skip
    table = make_table("latest", "Newest results", _LATEST, rows, block="workload")
    return Section("latest", "Newest results", "The newest comparable result of every cell.", [Block(table=table)])


def _recorded(recorded: Sequence[tuple[RecordedRun, list[str], int]]) -> Section:
    rows: list[Row] = [
        {
            "commit": words(run.label), "subject": words(run.subject),
            "measured": words(run.started[:16].replace("T", " ")), "workloads": words(", ".join(workloads)),
            "cells": number(cells), "versions": words(_versions(run)), "machine": words(run.machine),
        }
        for run, workloads, cells in reversed(recorded)
    ]  # fmt: skip
    table = make_table("runs", "Runs", _RUNS, rows)
    return Section("runs", "Runs", "In the order of their commits, the newest first.", [Block(table=table)])


def _checks(checks: Sequence[RecordedCheck]) -> Section:
    rows: list[Row] = [
        {
            "commit": words(c.label), "subject": words(c.subject),
            "checked": words(c.gate.started[:16].replace("T", " ")), "base": words(c.gate.base),
            "cell": words(f"{c.gate.workload}: {cell.name}"),
            "change": Value(change_text(cell.change), cell.change.value - 1),
            "resolution": Value(f"{100 * cell.resolution:.1f} %", cell.resolution), "verdict": words(cell.outcome),
            "counted": words("; ".join(e.text for e in cell.exact)),
        }
        for c in reversed(checks)
        for cell in c.gate.cells
    ]  # fmt: skip
    table = make_table("checks", "Checks", _CHECKS, rows)
    lead = "What checks found, the newest commit first; each compared two revisions, measured in one job."
    return Section("checks", "Checks", lead, [Block(table=table)])


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
