"""The first page of a report on several workloads: all of them in one table, and what they say together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dynbench.analysis.cost_model import model_of
from dynbench.analysis.formatting import percent, significant, times
from dynbench.analysis.headline import of_one_device
from dynbench.analysis.overview import Batch, Standing, Summary, by_batch_size, summarise
from dynbench.analysis.roles import judged_role
from dynbench.report.answer import Answer
from dynbench.report.answers import CAUSES, answers
from dynbench.report.background import (
    environment_section,
    legend,
    not_measured_section,
    reproduce_section,
    warnings_section,
)
from dynbench.report.columns import Column
from dynbench.report.content import FigureGroup, Panel, facts_of, status_of, title_of_run
from dynbench.report.deploy import choices_section
from dynbench.report.drawings import Absent
from dynbench.report.on_devices import devices_overview
from dynbench.report.overview_columns import AS_WRITTEN, BY_PROFILE, COLUMNS
from dynbench.report.overview_drawings import Dot, Scatter
from dynbench.report.palette import MUTED, tones_of
from dynbench.report.prediction import prediction_overview
from dynbench.report.tables import Block, Row, Section, Table, make_table
from dynbench.report.values import NOTHING, Value, missing, number, ratio, with_interval, words
from dynbench.store.run import Run
from dynbench.store.scaling import read_scaling
from dynbench.store.schema import Cell

WORDS = {"faster": "faster", "slower": "slower", "unclear": "no difference"}
SCATTER = (
    "A marker for each workload: its ideal, if time followed computation (dashed), and what was measured, with its "
    "95 % confidence interval. Above 1x it is faster than the primary baseline. Hollow: not told apart from 1x."
)


@dataclass(frozen=True)
class Overview:
    """What the first page says.

    Attributes:
        sentences: what was found, in short.
        table: of all workloads.
        answers: to the questions behind dynamic networks.
        panels: figures of all workloads.
        sections: the machine, doubts, and how to do it again.
        tones: name of the colour of each strategy.
    """

    title: str
    run_id: str
    status: str | None
    facts: list[tuple[str, str]]
    sentences: list[str]
    table: Block
    panels: list[Panel]
    answers: list[Answer]
    sections: list[Section]
    tones: dict[str, str]

    @property
    def figures(self) -> list[FigureGroup]:
        """Those of all workloads, and those of each answer."""
        groups = [FigureGroup("overview", "All workloads", SCATTER, self.panels)]
        return groups + [FigureGroup(a.key, a.question, "", a.panels) for a in self.answers]


def build_overview(run: Run, pages: dict[str, str], tables: Sequence[Table] = ()) -> Overview:
    """Reads a run of several workloads into its first page.

    Args:
        run: complete or not.
        pages: name of the page of each workload.
        tables: of these pages; their columns are explained here, too.
    """
    infos = list(run.manifest.workloads.values())
    mine: dict[str, list[Cell]] = {info.name: [] for info in infos}
    for cell in run.cells:
        mine.setdefault(cell.workload, []).append(cell)
    tones = tones_of(c.arm.strategy for c in run.cells if c.arm.strategy is not None)
    summaries = summarise(infos, run.cells)
    batches = by_batch_size(summaries)
    table = _table(summaries, [b.batch_size for b in batches], pages)
    panels = [_scatter(summaries, batch, tones) for batch in _ends(batches)]
    about_one = of_one_device(run.cells)
    replies = answers(replace(run, cells=about_one), summaries, batches)
    absent = [(f"figure: {p.title}", p.absent) for p in panels if p.absent is not None]
    sections = [
        *devices_overview(run, infos, mine),
        *choices_section(infos, mine),
        *prediction_overview(run.manifest.workloads, [model_of(run.cells, one) for one in read_scaling(run.path)]),
        warnings_section(run, every=False),
        not_measured_section(run, absent),
        environment_section(run),
        reproduce_section(run),
    ]
    blocks = [table, *(b for a in replies for b in a.blocks), *(b for s in sections for b in s.blocks)]
    return Overview(
        title=title_of_run(run),
        run_id=run.manifest.run_id,
        status=status_of(run, "the page of each workload"),
        facts=facts_of(run),
        sentences=[*_sentences(summaries, batches), *_other_devices(run, about_one)],
        table=table,
        panels=panels,
        answers=replies,
        sections=[*sections, legend([*(b.table for b in blocks if b.table is not None), *tables])],
        tones=tones,
    )


def _other_devices(run: Run, about: Sequence[Cell]) -> list[str]:
    """Which of several devices this page is about."""
    others = {c.device for c in run.cells} - {c.device for c in about}
    return [f"All of this is about {about[0].device}; the other devices are under On devices."] if others else []


def _sentences(summaries: Sequence[Summary], batches: Sequence[Batch]) -> list[str]:
    if not batches:
        return ["Nothing was timed; see Not measured."]
    found = []
    for batch in _ends(batches):
        counts = batch.outcomes
        text = (
            f"At batch {batch.batch_size}, of {len(batch.standings)} dynamic networks {counts['faster']} are "
            f"measurably faster than their static counterpart, {counts['slower']} slower, and {counts['unclear']} are "
            "not told apart from it"
        )
        ideal, speedup = batch.median("ideal"), batch.speedup
        if ideal is not None and speedup is not None:
            text += f"; the median speed-up is {times(speedup)} of an ideal {times(ideal)}"
        found.append(f"{text}.")
    untimed = sum(s.judged is None for s in summaries)
    if untimed:
        found.append(f"{untimed} of {len(summaries)} workloads have no timed dynamic network; see Not measured.")
    return found + _roles(summaries)


def _roles(summaries: Sequence[Summary]) -> list[str]:
    """Whether workloads whose result is known beforehand came out so; one sentence for each that did not."""
    judged = [(s.info.title, found) for s in summaries if (found := judged_role(s)) is not None]
    said = []
    for role in ("positive control", "null control"):
        mine = [(title, found) for title, found in judged if found.role == role]
        if not mine:
            continue
        good = sum(found.verdict == "as expected" for _, found in mine)
        said.append(f"{good} of {len(mine)} {role}s came out as expected.")
        said += [f"{title}, a {role}: {j.verdict}; {j.why}." for title, j in mine if j.verdict != "as expected"]
    return said


def _ends(batches: Sequence[Batch]) -> list[Batch]:
    """The smallest batch size and the largest."""
    return [*batches[:1], *batches[1:][-1:]]


def _table(summaries: Sequence[Summary], sizes: Sequence[int], pages: dict[str, str]) -> Block:
    """One row per workload, by kind of decision."""
    per_size = [
        Column(
            f"at:{size}",
            f"batch {size}",
            "x (95 % CI)",
            "Speed-up against the primary baseline at this batch size: deployed against deployed where ways were "
            f"tried, else as written. {AS_WRITTEN}: as written, as no way of this network gave a result; its page says "
            "why.",
            stays=True,
        )
        for size in sizes
    ]
    first = [COLUMNS[k] for k in ("overview_workload", "overview_verdict", "decision_kind", "saved", "accuracy_gain")]
    last = [COLUMNS[k] for k in ("overview_ideal", "overview_efficiency", "largest_loss", "overview_role")]
    ordered = sorted(summaries, key=lambda s: (s.kind, s.info.title.lower()))
    ways = any(at.deployed is not None for s in summaries for at in s.at.values())
    rows = [_row(s, sizes, pages, ways) for s in ordered]
    table = make_table("overview", "All workloads", [*first, *per_size, *last], rows, block="decision_kind")
    return Block(table=table)


def _row(summary: Summary, sizes: Sequence[int], pages: dict[str, str], ways: bool) -> Row:
    """Of a workload; `ways`: whether the run tried ways of networks, so that one without a result stands out."""
    info, judged = summary.info, summary.judged
    role = judged_role(summary)
    row: Row = {
        "overview_role": Value(NOTHING) if role is None else words(f"{role.role}: {role.verdict}"),
        "overview_workload": Value(info.title, info.title.lower(), link=pages[info.name]),
        "decision_kind": words(summary.kind),
        "saved": number(None if summary.saved is None else 100 * summary.saved, 2),
        "accuracy_gain": _gain(summary),
    }
    for size in sizes:
        at = summary.at.get(size)
        best = None if at is None else at.best
        row[f"at:{size}"] = Value(NOTHING) if best is None else with_interval(best.speedup)
        if ways and best is not None and at is not None and at.deployed is None:
            row[f"at:{size}"] = replace(row[f"at:{size}"], text=f"{row[f'at:{size}'].text} {AS_WRITTEN}")
    if judged is None:
        return row | {"overview_verdict": missing("no dynamic network was timed")}
    row |= {"overview_ideal": ratio(judged.ideal), "largest_loss": _loss(judged)}
    if judged.efficiency is not None:
        row["overview_efficiency"] = number(100 * judged.efficiency, 3)
    return row | {"overview_verdict": words(_verdict(judged))}


def _gain(summary: Summary) -> Value:
    if summary.gain is None or summary.accuracy is None:
        return Value(NOTHING)
    if summary.accuracy.in_percent:
        return Value(f"{100 * summary.gain:+.1f}", summary.gain)
    unit = summary.accuracy.unit or summary.accuracy.metric
    sign = "+" if summary.gain > 0 else ""
    return Value(f"{sign}{significant(summary.gain)} {unit}", summary.gain)


def _loss(judged: Standing) -> Value:
    if judged.largest_loss is None or judged.efficiency is None or judged.efficiency >= 0.95:
        return Value(NOTHING)
    cause, factor = judged.largest_loss
    mark = "" if judged.by_controls else f" {BY_PROFILE}"
    return Value(f"{CAUSES.get(cause, cause)} {times(factor)}{mark}", factor)


def _verdict(judged: Standing) -> str:
    text = WORDS[str(judged.outcome)]
    against = judged.against_static
    if judged.deployed is not None and against is not None and against.baseline != judged.deployed.speedup.baseline:
        return f"{text}; use {against.baseline}"
    return text


def _scatter(summaries: Sequence[Summary], batch: Batch, tones: dict[str, str]) -> Panel:
    dots, strategies = [], {}
    for summary in summaries:
        at = summary.at.get(batch.batch_size)
        if at is None or at.best is None or at.ideal is None:
            continue
        cell, speedup = at.best
        strategy = cell.arm.strategy or ""
        tone = tones.get(strategy, MUTED)
        strategies[strategy] = tone
        certain = at.outcome != "unclear"
        dots.append(Dot(summary.info.title, tone, at.ideal, speedup.value, speedup.low, speedup.high, certain))
    title = f"Batch {batch.batch_size}"
    key = f"all-batch-{batch.batch_size}"
    if not dots:
        return Panel(key, title, "", "", Absent("no workload has both an ideal and a measured speed-up"))
    alt = "; ".join(f"{d.name}: {times(d.speedup)} of {times(d.ideal)}" for d in dots)
    caption = f"{len(dots)} workloads."
    if batch.rank_correlation is not None:
        r, low, high = batch.rank_correlation
        caption += f" Rank correlation of ideal and measured: {r:.2f} (95 % CI {low:.2f} to {high:.2f})."
    if (efficiency := batch.median("efficiency")) is not None:
        caption += f" Median efficiency {percent(efficiency)}."
    drawing = Scatter(batch.batch_size, dots, sorted(strategies.items()))
    return Panel(key, title, caption, f"Measured and ideal speed-up at batch {batch.batch_size}. {alt}.", drawing)
