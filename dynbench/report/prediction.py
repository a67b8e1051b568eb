"""The cost model in a report: predicted against measured for held-out cells, levers, and break-even keep-rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dynbench.analysis.cost_model import (
    TERMS,
    BreakEven,
    Errors,
    Model,
    Prediction,
    break_even,
    errors,
    primary_of,
)
from dynbench.analysis.formatting import percent, significant, times
from dynbench.analysis.misses import Miss, misses, repeated
from dynbench.analysis.whatif import LEVERS, WhatIf, largest, what_if
from dynbench.report.columns import COLUMNS, Column
from dynbench.report.tables import Block, Row, Section, make_table
from dynbench.report.values import Value, count, missing, number, ratio, words
from dynbench.store.schema import Cell, WorkloadInfo

PREDICTED = [
    Column("arm", "arm", definition="What ran.", kind="name"),
    Column("trace", "decisions", definition="Whose decisions it replayed.", kind="text"),
    Column("measured", "measured", "ms/item", "Time per item, as the table of speeds has it."),
    Column("predicted", "predicted", "ms/item", "By the cost model, which did not see this cell."),
    Column("off", "predicted / measured", "x", "1 is right.", stays=True),
    *(
        Column(f"term {name}", name, "% of predicted", f"Share of the term '{name}' in the prediction.")
        for name in TERMS
    ),
]
WINS = [
    PREDICTED[0],
    PREDICTED[1],
    Column("predicted", "predicted", "ms/item", "By the cost model."),
    *(
        Column(
            f"lever {name}",
            f"{name} (predicted)",
            "x",
            f"How many times as fast it would be: {text}. In brackets: measured, by the control that leaves out the "
            "same.",
            stays=True,
        )
        for name, text in (
            ("no wait", "the host never waits for decisions"),
            ("no launch", "a call of an operator takes no time of its own"),
            ("free gather", "items are gathered and put back in no time"),
            ("perfect small batches", "n items take n / B of the time of the largest batch B"),
            ("known ahead", "nothing is decided"),
        )
    ),
    Column("largest", "largest", definition="The lever that wins most.", kind="text"),
]

JUDGED = [
    Column("workload", "workload", definition="The model of cost is fitted for each by itself.", kind="name"),
    Column("held_out", "held-out cells", definition="That the fit did not see.", stays=True),
    Column(
        "off_median", "off", "%, median", "How far predictions are from what was measured, whichever way.", stays=True
    ),
    Column("off_p90", "off", "%, 90 %", "Nine of ten predictions are nearer than this.", stays=True),
    Column(
        "off_near",
        "within 25 %",
        "% of cells",
        "How many predictions are within 25 % of the measured time.",
        stays=True,
    ),
    Column("off_bias", "predicted / measured", "x, median", "Below 1 predictions are too fast.", stays=True),
    Column("off_worst", "worst where", definition="Term whose share goes best with what is off.", kind="text"),
]


TITLE = "The cost model: predicted"
TEXT = (
    "Times follow from T(n) of every region, measured in place, from what an arm was seen to call, move and wait for, "
    "and from constants of the device. Factors of the terms were fitted on some batch sizes and keep-rates, and are "
    "judged here on cells that the fit did not see: other batch sizes, other keep-rates, and other traces. All but the "
    "columns of what was measured is predicted."
)


@dataclass(frozen=True)
class Scatter:
    """Predicted against measured time per item.

    Attributes:
        points: measured ms, predicted ms, and the colour of the strategy; held-out cells alone.
        errors: over them.
    """

    points: list[tuple[float, float, str]]
    errors: Errors


@dataclass(frozen=True)
class Frontier:
    """Predicted break-even keep-rate over batch size, a line per strategy with its colour."""

    baseline: str
    lines: list[tuple[str, str, list[tuple[int, float]]]]


@dataclass(frozen=True)
class Predicted:
    """The cost model of one workload.

    Attributes:
        info: the workload.
        model: fitted.
        judged: how far held-out cells are off, or why that is not known.
        held_out: predictions of them.
        rows: levers.
        frontiers: break-even keep-rates.
        missed: parts of the time by controls.
        again: how far a network is off itself, measured twice; None: unknown.
    """

    info: WorkloadInfo
    model: Model
    judged: Errors | str
    held_out: list[Prediction]
    rows: list[WhatIf]
    frontiers: list[BreakEven]
    missed: list[Miss]
    again: float | None


def predicted(info: WorkloadInfo, cells: Sequence[Cell], model: Model) -> Predicted:
    """All that is predicted of a workload."""
    primary = primary_of(cells, info.name)
    return Predicted(
        info=info,
        model=model,
        judged=errors(model.predictions),
        held_out=[p for p in model.predictions if p.held_out],
        rows=what_if(model, cells, list(LEVERS)),
        frontiers=[] if primary is None else break_even(model, primary),
        missed=misses(model.predictions),
        again=repeated(cells, info.name),
    )


def predictions_of(
    infos: Mapping[str, WorkloadInfo], cells: Sequence[Cell], models: Sequence[Model]
) -> list[Predicted]:
    """Those of all workloads of a run that have a model."""
    known = [m for m in models if m.scaling.workload in infos]
    return [predicted(infos[m.scaling.workload], cells, m) for m in known]


def scatter(found: Predicted, tones: Mapping[str, str]) -> Scatter | None:
    """What is drawn of held-out cells; None: they are too few."""
    if isinstance(found.judged, str):
        return None
    points = [
        (p.measured_us / 1e3 / p.usage.items, p.item_ms, tones.get(p.arm.strategy or "", "ink"))
        for p in found.held_out
        if p.measured_us is not None
    ]
    return Scatter(points, found.judged)


def frontier(found: Predicted, tones: Mapping[str, str]) -> Frontier | None:
    """What is drawn of break-even keep-rates; None: they were watched at fewer than two batch sizes."""
    lines = [
        (line.strategy, tones.get(line.strategy, "ink"), [(b, r) for b, r in line.rates.items() if r is not None])
        for line in found.frontiers
    ]
    lines = [line for line in lines if len(line[2]) > 1]
    return Frontier(found.frontiers[0].baseline, lines) if lines else None


def in_words(d: Scatter | Frontier) -> tuple[str, str]:
    """The caption of a figure, and its content in words."""
    if isinstance(d, Scatter):
        e = d.errors
        caption = (
            f"{e.cells} held-out cells; median error {percent(e.median, 1)}, {percent(e.near)} of them within 25 %."
        )
        points = "; ".join(f"{significant(p)} for {significant(m)}" for m, p, _ in d.points)
        return caption, f"Predicted for measured ms per item: {points}."
    said = "; ".join(f"{name}: " + ", ".join(f"{r:.2f} at {b}" for b, r in points) for name, _, points in d.lines)
    return f"Predicted; below the line it is faster than {d.baseline}.", f"Break-even keep-rate by batch size. {said}."


def prediction_section(found: Sequence[Predicted]) -> list[Section]:
    """The section of all workloads; none where a run has no T(n)."""
    if not found:
        return []
    return [Section("prediction", TITLE, TEXT, [block for one in found for block in _blocks(one)])]


def prediction_overview(infos: Mapping[str, WorkloadInfo], models: Sequence[Model]) -> list[Section]:
    """How good the models of several workloads are, together and one by one; none where a run has no T(n)."""
    found = [(infos[m.scaling.workload].title, m) for m in models if m.scaling.workload in infos]
    if not found:
        return []
    rows = [_judged(title, model) for title, model in sorted(found, key=lambda one: one[0].lower())]
    table = make_table("prediction errors", "Errors by workload", JUDGED, rows)
    return [Section("prediction", TITLE, TEXT, [_overall([m for _, m in found]), Block(table=table, folded=True)])]


def _judged(title: str, model: Model) -> Row:
    row: Row = {
        "workload": Value(title, title.lower()),
        "held_out": count(sum(p.held_out for p in model.predictions)),
    }
    judged = errors(model.predictions)
    if isinstance(judged, str):
        return row | {"off_worst": missing(judged)}
    shares = {"off_median": judged.median, "off_p90": judged.p90, "off_near": judged.near}
    row |= {key: number(100 * share, 2) for key, share in shares.items()}
    return row | {"off_bias": ratio(judged.bias), "off_worst": words(judged.worst)}


def _overall(models: Sequence[Model]) -> Block:
    """The errors over all workloads, for each way."""
    held_out = [p for model in models for p in model.predictions if p.held_out]
    said = []
    for control, what in (("host", "Strategies that the host plays"), ("graph", "Networks as one graph")):
        mine = [p for p in held_out if p.arm.control == control]
        if mine:
            workloads = len({p.workload for p in mine})
            said.append(f"{what}, {workloads} workload{'s' if workloads > 1 else ''}: {_sentence(errors(mine))}")
    return Block("All workloads", text=said)


def _blocks(one: Predicted) -> list[Block]:
    said = [_sentence(one.judged), *_doubt(one), largest(one.rows), *_fitted(one.model)]
    said += [
        f"Predicted break-even keep-rate of {f.strategy} against {f.baseline}: {f.in_words}." for f in one.frontiers
    ]
    said += [f"Not measured: {m.what}: {m.why}." for m in one.model.scaling.missing]
    blocks = [Block(one.info.title, text=said)]
    if not isinstance(one.judged, str):
        columns = [PREDICTED[0], COLUMNS["batch"], *PREDICTED[1:]]
        table = make_table(
            f"held out {one.info.name}", "Held-out cells", columns, [_row(p) for p in one.held_out], block="batch"
        )
        blocks.append(Block(table=table, folded=len(one.held_out) > 20))
    if one.rows:
        columns = [WINS[0], COLUMNS["batch"], *WINS[1:]]
        table = make_table(f"what if {one.info.name}", "What if (predicted)", columns, [_won(r) for r in one.rows])
        blocks.append(Block(table=table))
    return blocks


def _sentence(judged: Errors | str) -> str:
    if isinstance(judged, str):
        return f"{judged[0].upper()}{judged[1:]}."
    return (
        f"Of {judged.cells} held-out cells the prediction is off by {percent(judged.median, 1)} in the median, and "
        f"nine of ten by at most {percent(judged.p90)}; {percent(judged.near)} are off by at most 25 %. Predicted over "
        f"measured is {times(judged.bias)} in the median; it is off most where much of the time is '{judged.worst}'."
    )


def _doubt(one: Predicted) -> list[str]:
    """What the machine can tell at all, and the part of the time that is predicted worst, by controls."""
    said = []
    if one.again is not None:
        said.append(
            f"The primary baseline, measured twice in the same rounds, differs by {percent(one.again, 1)} in the "
            "median of the groups: a prediction cannot be seen to be better than that."
        )
    if one.missed and (worst := one.missed[0]).off:
        said.append(
            f"By controls the part that is off most is {worst.part}: predicted {percent(worst.predicted)} of a "
            f"strategy's time, measured {percent(worst.measured)} (median of {worst.pairs})."
        )
    return said


def _fitted(model: Model) -> list[str]:
    called = {family: f"{family[0]}, as one graph" if family[1] == "graph" else family[0] for family in model.factors}
    return [
        f"Factors fitted on {model.fitted[family]} cells of {called[family]}: "
        + ", ".join(f"{name} {factor:.2f}" for name, factor in factors.items())
        + "."
        for family, factors in model.factors.items()
    ]


def _row(p: Prediction) -> Row:
    shares = {f"term {name}": number(100 * us / p.predicted_us, 2) for name, us in p.parts_us.items()}
    return {
        "arm": Value(p.arm.title, p.arm.title, mark=p.arm.strategy),
        "batch": count(p.usage.batch_size),
        "trace": words(p.usage.label),
        "measured": number(None if p.measured_us is None else p.measured_us / 1e3 / p.usage.items),
        "predicted": number(p.item_ms),
        "off": ratio(p.ratio),
        **shares,
    }


def _won(r: WhatIf) -> Row:
    wins = {
        f"lever {name}": Value(times(win) + (f" ({times(r.by_control[name])})" if name in r.by_control else ""), win)
        for name, win in r.wins.items()
    }
    return {
        "arm": Value(r.arm.title, r.arm.title, mark=r.arm.strategy),
        "batch": count(r.batch_size),
        "trace": words(r.label),
        "predicted": number(r.predicted_ms),
        "largest": words(r.largest),
        **wins,
    }
