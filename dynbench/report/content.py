"""The whole report as data: built once from a run, rendered twice."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dynbench.analysis.cost_model import model_of
from dynbench.analysis.formatting import bytes_, digits_of, interval, percent, seconds, significant, times, way_in_words
from dynbench.analysis.headline import Timed, contest, of_one_device
from dynbench.analysis.overview import summarise
from dynbench.analysis.resolution import direction
from dynbench.analysis.roles import judged_role
from dynbench.analysis.verdict import paragraphs
from dynbench.report.background import background_sections, legend
from dynbench.report.drawings import (
    Absent,
    Paths,
    Speedups,
    Tradeoff,
    Trend,
    Work,
    by_batch_size,
    by_keep_rate,
    latency_by_path,
    tradeoff,
    work,
)
from dynbench.report.on_devices import devices_section, elsewhere
from dynbench.report.overview_drawings import OverviewDrawing
from dynbench.report.palette import tones_of
from dynbench.report.prediction import (
    Frontier,
    Predicted,
    Scatter,
    frontier,
    prediction_section,
    predictions_of,
    scatter,
)
from dynbench.report.prediction import in_words as predicted_in_words
from dynbench.report.results import result_sections, slug, title_of
from dynbench.report.selection import View, device_phrase, sweeps, views
from dynbench.report.sustained import SUSTAINED_FIGURES, Sustained, sustained_loads
from dynbench.report.sustained import in_words as sustained_in_words
from dynbench.report.tables import Section, Table
from dynbench.report.waterfall import WITHOUT_CONTROLS, Fall, falls, in_words
from dynbench.store.lock import is_written
from dynbench.store.run import Run
from dynbench.store.scaling import read_scaling
from dynbench.store.schema import Cell, Manifest, Sitting, WorkloadInfo

OUTCOMES = {"faster": "faster", "unclear": "not told apart from it", "slower": "slower"}  # than the primary baseline


FIGURES = (
    (
        "speedup-by-batch",
        "Speed-up against batch size",
        "Above the line at 1x an arm is faster than the primary baseline. Thick lines, where ways were tried: each "
        "network in its fastest way against the primary baseline in its own; the others are as written. Dashed: the "
        "ideal, if time followed computation. Bands: 95 % confidence intervals over rounds. Dotted: static networks. "
        "Both axes are logarithmic.",
    ),
    (
        "accuracy-by-time",
        "Accuracy against time",
        "Every network is a row at its accuracy, every way of running it a marker; filled: its fastest way. To the "
        "left is faster, above is better. Dashed: the Pareto front; what lies right of and below it is both slower and "
        "no better than something else that was measured. The axis of times is logarithmic.",
    ),
    (
        "speedup-by-keep-rate",
        "Speed-up against keep-rate",
        "Decisions are made up at a rate, to see from which saving on a strategy pays. A ring marks its break-even; "
        "the dotted line is the keep-rate the trained gates really have.",
    ),
    (
        "flops",
        "Computation: dense, required, executed, accounted",
        "Dense is the primary baseline, required what the decisions ask for, executed what each strategy ran, "
        "accounted what the paper counts. Filled: it ran; hollow: it was asked for, or is claimed.",
    ),
    (
        "waterfall",
        "Where the saving goes",
        "From the ideal, if time followed computation, to the measured speed-up. Each factor in between is a ratio of "
        "two arms of the same rounds that differ in this one respect; the thin line is its 95 % confidence interval. "
        "Grey: the interval contains no difference. The axis is logarithmic.",
    ),
    (
        "latency-by-path",
        "Latency by path",
        "How long an input takes at batch 1 by how deep it went. Marker: median; thick line: middle half; thin line: 5 "
        "to 95 % of all times. Dotted, with its middle half as a band: the primary baseline, which knows no paths. "
        "Deployed: in its fastest way. The "
        "axis of times is logarithmic.",
    ),
)
"""Key, title and text of every kind of figure."""
PREDICTED_FIGURES = (
    (
        "prediction",
        "Predicted against measured time",
        "Cells that the fit of the cost model did not see, a marker each. On the line the prediction is right; between "
        "the dashed lines it is within 25 %. Both axes are logarithmic.",
    ),
    (
        "break-even",
        "Break-even keep-rate over batch size (predicted)",
        "Below its line a strategy is faster than the primary baseline, as the cost model predicts it.",
    ),
)
"""The same of the cost model, where a run has what it is made of."""


Drawing = Speedups | Tradeoff | Work | Paths | Trend | Fall | Scatter | Frontier | Sustained | OverviewDrawing | Absent


@dataclass(frozen=True)
class Verdict:
    """What was found for one workload.

    Attributes:
        paragraphs: from `analysis.verdict`.
        figure: the speed-up it is judged by, '1.83x': deployed against deployed, or as written where no ways were
            tried; None where nothing was timed.
        detail: of which strategy at which batch size, and its interval.
        written: beside a deployed figure that as written; None where there is none.
        outcome: 'faster', 'slower' or 'not told apart from it'.
        strategy: for its colour.
        inputs: one sentence.
        caution: what keeps the verdict from being about the paper's network.
    """

    title: str
    paragraphs: list[str]
    figure: str | None
    detail: str
    written: str | None
    outcome: str | None
    strategy: str | None
    inputs: str
    caution: str | None

    @property
    def sentence(self) -> str:
        """The paragraphs as one text."""
        return " ".join(self.paragraphs)


@dataclass(frozen=True)
class Panel:
    """One figure, or why it is not there.

    Attributes:
        key: unique, fit for a file name.
        caption: beneath it.
        alt: its content in words.
    """

    key: str
    title: str
    caption: str
    alt: str
    drawing: Drawing

    @property
    def absent(self) -> str | None:
        """Why it is not there."""
        return self.drawing.reason if isinstance(self.drawing, Absent) else None


@dataclass(frozen=True)
class FigureGroup:
    """One kind of figure, for every workload."""

    key: str
    title: str
    text: str
    panels: list[Panel]


@dataclass(frozen=True)
class Report:
    """Everything a report says."""

    title: str
    run_id: str
    status: str | None
    facts: list[tuple[str, str]]
    verdicts: list[Verdict]
    figures: list[FigureGroup]
    sections: list[Section]
    tones: dict[str, str] = field(default_factory=dict)


def build(run: Run, *, page: bool = False) -> Report:
    """Reads a run into a report.

    Args:
        run: complete or not; what is missing is said with its reason.
        page: it is about one workload of several, beneath the overview of all, which explains the columns of all.
    """
    manifest, cells = run.manifest, run.cells
    infos = list(manifest.workloads.values())
    by_workload: dict[str, list[Cell]] = {info.name: [] for info in infos}
    for cell in cells:
        by_workload.setdefault(cell.workload, []).append(cell)
    tones = tones_of(c.arm.strategy for c in cells if c.arm.strategy is not None)
    figures = _figures(run, infos, by_workload, tones)
    foretold = predictions_of(manifest.workloads, cells, [model_of(cells, one) for one in read_scaling(run.path)])
    figures += _predicted_figures(foretold, tones)
    figures += _sustained_figures(run, infos)
    absent = [(f"figure: {g.title}: {p.title}", p.absent) for g in figures for p in g.panels if p.absent is not None]
    sections = [
        *devices_section(run, infos, by_workload),
        *result_sections(infos, cells),
        *prediction_section(foretold),
        *background_sections(run, absent, page=page),
    ]
    judged = {info.name: device_phrase(manifest, of_one_device(by_workload[info.name])) for info in infos}
    return Report(
        title=infos[0].title if page else title_of_run(run),
        run_id=manifest.run_id,
        status=status_of(run),
        facts=facts_of(run),
        verdicts=[_verdict(info, by_workload[info.name], judged[info.name]) for info in infos],
        figures=figures,
        sections=sections if page else [*sections, legend(report_tables(sections))],
        tones=tones,
    )


def report_tables(sections: Sequence[Section]) -> list[Table]:
    """All tables of some sections."""
    return [b.table for s in sections for b in s.blocks if b.table is not None]


def title_of_run(run: Run) -> str:
    """How many workloads on which machine."""
    n = len(run.manifest.workloads)
    machine = run.manifest.hardware.get("name") or "an unnamed machine"
    return f"{n} workload{'' if n == 1 else 's'} on {machine}"


def status_of(run: Run, where: str = "Refused and failed") -> str | None:
    """What a reader must know before anything else; None: nothing.

    Args:
        run: what was measured.
        where: the reasons of failures are told.
    """
    manifest, cells = run.manifest, run.cells
    status = {
        "complete": None,
        "interrupted": "This run was interrupted. What was finished by then is here; the rest is under Not measured.",
        "running": "This run had not ended when the report was written."
        if is_written(run.path)
        else "This run was cut off: its process was killed. What was finished by then is here.",
    }[manifest.status]
    failed = sum(c.status == "failed" for c in cells)
    more = f"{failed} of {len(cells)} cells failed; see {where}." if failed else None
    return " ".join(s for s in (status, more) if s) or None


def facts_of(run: Run) -> list[tuple[str, str]]:
    """The machine, the settings and the software, as pairs of a name and a value."""
    manifest, cells = run.manifest, run.cells
    hardware = manifest.hardware
    parts = [str(hardware.get("name") or "unknown")]
    if (cores := hardware.get("cores_usable") or hardware.get("cores_logical")) is not None:
        parts.append(f"{cores} cores")
    if isinstance(memory := hardware.get("memory_bytes"), int | float):
        parts.append(f"{bytes_(memory)} memory")
    found = [("machine", ", ".join(parts))]
    if cells:
        engines: dict[str, dict[str, None]] = {}
        for c in cells:
            setting = f"{c.device}, {c.threads} thread{'' if c.threads == 1 else 's'}, {c.dtype}"
            engines.setdefault(setting, {})[c.arm.engine] = None
        settings = [f"{setting}, {' and '.join(names)}" for setting, names in engines.items()]
        sizes = ", ".join(map(str, sorted({c.batch_size for c in cells})))
        found += [("measured on", "; ".join(settings)), ("batch sizes", sizes)]
    software = [f"dynbench {manifest.dynbench_version}"]
    software += [f"{k} {manifest.software[k]}" for k in ("torch", "python") if k in manifest.software]
    found += [("software", ", ".join(software)), ("begun", _moment(manifest.started))]
    if manifest.resumed:
        found.append(("resumed", "; ".join(_sitting(one, manifest) for one in manifest.resumed)))
    if manifest.command_s is not None:
        timed = "" if manifest.timed_s is None else f", of which {seconds(manifest.timed_s)} inside timed samples"
        found.append(("took", seconds(manifest.command_s) + timed))
    return found


def _sitting(one: Sitting, manifest: Manifest) -> str:
    """When, and by what, if that is another version or commit than the run was begun with."""
    by = [] if one.dynbench_version == manifest.dynbench_version else [f"dynbench {one.dynbench_version}"]
    commit = one.git.get("commit")
    if isinstance(commit, str) and commit != manifest.git.get("commit"):
        by.append(f"commit {commit[:10]}")
    return _moment(one.started) + (f" with {', '.join(by)}" if by else "")


def _moment(iso: str) -> str:
    try:
        return f"{datetime.datetime.fromisoformat(iso).astimezone(datetime.UTC):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return iso


def _verdict(info: WorkloadInfo, cells: list[Cell], where: str) -> Verdict:
    found = contest(info.name, cells)
    best = None if found is None else found.best
    caution = None
    if info.weights is None:
        unknown = "No file of weights: unless the model's function loads some,"
        no = unknown if info.may_be_trained else "Untrained weights:"
        caution = f"{no} decisions, and the computation they save, are those of no trained network."
    if best is not None and best.cell.decisions.source in ("synthetic", "published"):
        caution = "Decisions were made up: this is about execution at a given keep-rate, not about a trained network."
    figure, detail, written, outcome, strategy = None, "nothing was timed", None, None, None
    if found is not None and best is not None:
        figure = times(best.speedup.value, digits_of(best.speedup))
        detail = _detail(best, deployed=bool(found.deployed))
        outcome, strategy = OUTCOMES[direction(best.speedup)], best.cell.arm.strategy
        if found.deployed and (other := found.best_written) is not None:
            value = times(other.speedup.value, digits_of(other.speedup))
            written = f"as written {value}: {_detail(other, deployed=False)}"
    said = [*paragraphs(info, cells, where), *filter(None, [elsewhere(cells)])]
    if (role := judged_role(summarise([info], cells)[0])) is not None:
        said.append(f"This workload is a {role.role}; {role.verdict}: {role.why}.")
    return Verdict(info.title, said, figure, detail, written, outcome, strategy, info.inputs, caution)


def _detail(best: Timed, *, deployed: bool) -> str:
    cell, found = best
    what = f"deployed: {cell.arm.strategy} {way_in_words(cell.arm)}" if deployed else cell.arm.title
    return f"{what}, batch {cell.batch_size}, {percent(found.confidence)} CI {interval(found)}"


def _figures(
    run: Run, infos: Sequence[WorkloadInfo], by_workload: dict[str, list[Cell]], tones: dict[str, str]
) -> list[FigureGroup]:
    keys = Keys()
    groups = [FigureGroup(key, title, text, []) for key, title, text in FIGURES]
    by_size, by_time, by_rate, flops, saving, paths = (group.panels for group in groups)
    for info in infos:
        cells = by_workload[info.name]
        seen, swept = views(info, cells), sweeps(info, cells)
        for view in seen:
            title, name = title_of(view), slug(view)
            by_size.append(_panel(keys(f"speedup {name}"), title, by_batch_size(view, tones)))
            tradeoffs = [tradeoff(view, size, tones) for size in _ends(view.batch_sizes)]
            drawn = [d for d in tradeoffs if isinstance(d, Tradeoff)]
            for d in drawn:
                by_time.append(_panel(keys(f"accuracy {name} {d.batch_size}"), f"{title}, batch {d.batch_size}", d))
            if not drawn:
                why = next(iter(tradeoffs), Absent("no cell was measured"))
                by_time.append(_panel(keys(f"accuracy {name}"), title, why))
            flops.append(_panel(keys(f"flops {name}"), title, work(view, tones)))
            fallen: list[Drawing] = [*falls(view, tones)]
            for fall in fallen or [Absent(WITHOUT_CONTROLS)]:
                saving.append(_panel(keys(f"waterfall {name}"), title, fall))
            paths.append(_panel(keys(f"paths {name}"), title, latency_by_path(view, run, tones)))
        if not seen:
            none = Absent("no cell outside the keep-rate sweep is in this run")
            for panels, kind in (
                (by_size, "speedup"),
                (by_time, "accuracy"),
                (flops, "flops"),
                (saving, "waterfall"),
                (paths, "paths"),
            ):
                panels.append(_panel(keys(f"{kind} {info.name}"), info.title, none))
        for view in swept:
            drawing = by_keep_rate(view, tones, _learned_rate(seen))
            by_rate.append(_panel(keys(f"keep-rate {slug(view)}"), title_of(view), drawing))
        if not swept:
            none = Absent("the workload asks for no keep-rate sweep, or the run ended before it")
            by_rate.append(_panel(keys(f"keep-rate {info.name}"), info.title, none))
    return groups


def _predicted_figures(found: Sequence[Predicted], tones: dict[str, str]) -> list[FigureGroup]:
    """Figures of the cost model, of the workloads of which there is something to draw."""
    keys = Keys()
    groups = [FigureGroup(key, title, text, []) for key, title, text in PREDICTED_FIGURES]
    for one in found:
        for group, drawing in zip(groups, (scatter(one, tones), frontier(one, tones)), strict=True):
            if drawing is not None:
                group.panels.append(_panel(keys(f"{group.key} {one.info.name}"), one.info.title, drawing))
    return [group for group in groups if group.panels]


def _sustained_figures(run: Run, infos: Sequence[WorkloadInfo]) -> list[FigureGroup]:
    """Devices under load that lasts; nothing where none was asked for."""
    keys = Keys()
    drawn = [(info, load) for info in infos for load in sustained_loads(run.manifest, info)]
    panels = [_panel(keys(f"sustained {i.name} {d.device}"), f"{i.title}: {d.device}", d) for i, d in drawn]
    return [FigureGroup(*SUSTAINED_FIGURES, panels)] if panels else []


def _ends(batch_sizes: Sequence[int]) -> list[int]:
    """Batch 1, if it was measured, and the largest."""
    return sorted({*(b for b in batch_sizes if b == 1), *batch_sizes[-1:]})


def _learned_rate(seen: Sequence[View]) -> float | None:
    rates = (c.decisions.keep_rate for view in seen for c in view.cells if c.decisions.source == "learned")
    return next((rate for rate in rates if rate is not None), None)


class Keys:
    """Makes names unique and fit for files and ids."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def __call__(self, name: str) -> str:
        """A name that was not given before."""
        plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:80]
        key, n = plain, 2
        while key in self._given:
            key, n = f"{plain}-{n}", n + 1
        self._given.add(key)
        return key


def _panel(key: str, title: str, drawing: Drawing) -> Panel:
    caption, alt = "", ""
    if isinstance(drawing, Speedups):
        caption, alt = _speedups_in_words(drawing)
    elif isinstance(drawing, Tradeoff):
        caption, alt = _tradeoff_in_words(drawing)
    elif isinstance(drawing, Work):
        caption, alt = _work_in_words(drawing)
    elif isinstance(drawing, Fall):
        caption, alt = in_words(drawing)
    elif isinstance(drawing, Scatter | Frontier):
        caption, alt = predicted_in_words(drawing)
    elif isinstance(drawing, Sustained):
        caption, alt = sustained_in_words(drawing)
    elif isinstance(drawing, Paths):
        caption, alt = _paths_in_words(drawing)
    return Panel(key, title, caption, f"{title}. {alt}" if alt else "", drawing)


def _speedups_in_words(d: Speedups) -> tuple[str, str]:
    show: Callable[[float], str] = percent if d.over == "keep-rate" else lambda x: f"{x:g}"
    lines = [
        f"{line.name}: " + ", ".join(f"{times(y)} at {show(x)}" for x, y in zip(line.x, line.y, strict=True))
        for line in d.lines
    ]
    if d.ideal:
        lines.append("ideal: " + ", ".join(f"{times(y)} at {show(x)}" for x, y in d.ideal))
    crossings = [f"{name} {percent(rate)}" for name, rate in d.break_even.items()]
    caption = f"1x is {d.baseline}."
    if crossings:
        caption += f" Break-even keep-rate: {', '.join(crossings)}."
    elif d.over == "keep-rate":
        caption += " No strategy crosses 1x between the rates measured."
    return caption, f"Speed-up against {d.baseline} by {d.over}. {'; '.join(lines)}."


def _tradeoff_in_words(d: Tradeoff) -> tuple[str, str]:
    front = [p for p in d.points if p.front]
    on_it = ", ".join(f"{p.network} ({p.name}, {significant(p.item_ms)} ms)" for p in front)
    points = "; ".join(
        f"{p.network}, {p.name}: {significant(p.item_ms)} ms, {significant(p.accuracy)}" for p in d.points
    )
    return f"On the front: {on_it}.", f"{d.metric} by ms per item at batch {d.batch_size}: {points}."


def _work_in_words(d: Work) -> tuple[str, str]:
    bars = ", ".join(f"{b.label} {significant(b.flops / 1e6)}" for b in d.bars)
    rule = f" The paper counts: {d.accounted_rule}." if d.accounted_rule else ""
    lacking = f" {'; '.join(d.missing)}." if d.missing else ""
    return f"At batch {d.batch_size}.{rule}{lacking}", f"MFLOP per item at batch {d.batch_size}: {bars}."


def _paths_in_words(d: Paths) -> tuple[str, str]:
    medians = [
        f"{arm.name}: "
        + ", ".join(f"{significant(q[2])} ms at {p}" for p, q in zip(d.paths, arm.quantiles, strict=True))
        for arm in d.arms
    ]
    medians += [f"{name}: {significant(quantiles[2])} ms" for name, quantiles in d.baselines]
    caption = f"{sum(d.items)} inputs, each timed {d.rounds} times or more."
    return caption, f"Median milliseconds per input by path ({d.counted_in}). {'; '.join(medians)}."
