"""The tables of what was measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from dynbench.analysis.formatting import percent, significant
from dynbench.analysis.gap import (
    Gap,
    best_speedup,
    break_even_keep_rate,
    deployed_speedup,
    gap,
    is_written,
    primary_speedup,
)
from dynbench.analysis.headline import contest, headline
from dynbench.report.columns import COLUMNS, Column, against, column, deployed_against
from dynbench.report.deploy import deploy_section
from dynbench.report.selection import (
    View,
    is_sweep,
    role,
    sweeps,
    views,
)
from dynbench.report.tables import Block, Row, Section, make_table
from dynbench.report.values import (
    NOTHING,
    Value,
    count,
    missing,
    number,
    quantity,
    ratio,
    with_interval,
    words,
)
from dynbench.report.waterfall import why_section
from dynbench.store.quantities import quantities
from dynbench.store.quantity import Place, Quantity, Reading
from dynbench.store.schema import Accuracy, Cell, Claim, Flops, Interval, Speedup, WorkloadInfo
from dynbench.unavailable import Measured, Unavailable

EQUAL_FLOPS = 0.2  # a static network within 20 % of the required FLOPs is one of equal mean FLOPs
SAME = 0.02  # differences below 2 % need no explanation
LOSSES = ("surplus", "decisions", "movement", "waiting", "utilisation")
SHARES = {  # column: phases of the profile
    "body": ("body",),
    "gates": ("decide", "head"),
    "moves": ("gather", "scatter"),
    "waits": ("sync",),
    "other": ("other",),
}


def result_sections(infos: Sequence[WorkloadInfo], cells: Sequence[Cell]) -> list[Section]:
    """Speed and work of every cell, where the time went, the sweep, what was refused, accuracy, claims."""
    mine: dict[str, list[Cell]] = {info.name: [] for info in infos}
    for cell in cells:
        mine.setdefault(cell.workload, []).append(cell)
    seen = [view for info in infos for view in views(info, mine[info.name])]
    swept = [view for info in infos for view in sweeps(info, mine[info.name])]
    declared = [_declared(info, mine[info.name]) for info in infos if info.declared]
    return [
        *deploy_section(infos, mine),
        Section(
            "results",
            "Speed",
            "Every arm of a batch size was timed in the same rounds, in random order.",
            [b for v in seen for b in _speed(v)] or _none("No cell was measured."),
        ),
        *_declared_section(declared),
        Section(
            "work",
            "Work, memory and energy",
            "From untimed passes over the same stream.",
            [b for v in seen for b in _work(v)] or _none("No cell was measured."),
        ),
        why_section(seen, {i: title_of(view) for i, view in enumerate(seen)}),
        Section(
            "gap",
            "Where the saving went",
            "ideal = speed-up x the losses. Losses are factors: 1.20x means that the arm would be 1.2 times as fast "
            "without this one. Those of a deployed arm are against the deployed primary baseline.",
            [b for v in seen for b in _gap(v)] or _none("No speed-up was measured."),
        ),
        Section(
            "sweep",
            "Keep-rate sweep",
            "Decisions made up at a given rate: how execution behaves, whatever the accuracy.",
            [b for v in swept for b in _sweep(v)]
            or _none("No workload of this run asks for a sweep (run.keep_rates)."),
        ),
        Section(
            "refused",
            "Refused and failed",
            "What there is no result of, and why. Nothing was put in its place.",
            _refused(infos, cells),
        ),
        Section(
            "accuracy",
            "Accuracy",
            "The dynamic network decides for itself here. Speed-ups are against the primary baseline.",
            [b for i in infos for b in _accuracy(i, mine[i.name])] or _none("No workload could be prepared."),
        ),
        Section(
            "claims",
            "What the papers say",
            "Beside it: the same quantity as the paper counts it, as the decisions require it, as it was executed, and "
            "what became of it in time.",
            [b for i in infos for b in _claims(i, mine[i.name])] or _none("No workload could be prepared."),
        ),
    ]


def _declared_section(blocks: list[Block]) -> list[Section]:
    if not blocks:
        return []
    text = (
        "Some answers come from outside the machine, or over a network that is not there. What that takes is what the "
        "workload file says, or follows from it; it is in no time, energy or FLOP of this report."
    )
    return [Section("declared", "Declared, not measured", text, blocks)]


def _declared(info: WorkloadInfo, cells: Sequence[Cell]) -> Block:
    best = headline(info.name, cells)
    machine = None if best is None or best[0].latency is None else best[0].latency.item_ms
    rows: list[Row] = [
        {
            "asked": words(cost.what),
            "decisions": words(cost.decisions),
            "share": number(100 * cost.share),
            "query_s": number(cost.latency_s),
            "query_cost": words(f"{cost.cost:g} {cost.unit}"),
            "expected_s": number(cost.share * cost.latency_s),
            "expected_cost": words(f"{cost.share * cost.cost:.3g} {cost.unit}"),
            "machine_ms": number(machine) if machine is not None else missing("no strategy was measured"),
        }
        for cost in info.declared
    ]
    keys = ["asked", "decisions", "share", "query_s", "query_cost", "expected_s", "expected_cost", "machine_ms"]
    return Block(info.title, table=make_table(f"declared {info.name}", "Declared", _columns(keys), rows))


def _none(sentence: str) -> list[Block]:
    return [Block(text=[sentence])]


def title_of(view: View) -> str:
    """What a view's tables and figures are headed with."""
    return f"{view.info.title} ({view.name})" if view.name else view.info.title


def slug(view: View) -> str:
    """What a view's keys begin with."""
    return f"{view.info.name} {view.name}".strip()


def _columns(keys: Sequence[str]) -> list[Column]:
    return [COLUMNS[k] for k in keys]


def _at(place: Place, info: WorkloadInfo) -> list[Quantity]:
    """The quantities of a workload that are shown at a place, in the order of their table."""
    return [q for q in quantities([info]) if place in q.places]


def shown(wanted: Quantity, cell: Cell) -> Value:
    """A quantity of a cell, scaled and rounded; n/a with its reason; or a dash where it does not apply."""
    found = wanted.of(cell)
    if isinstance(found, Unavailable):
        return missing(found.unavailable)
    if isinstance(found, Interval):
        return with_interval(found)
    if found is None:
        return Value(NOTHING)
    scaled = found / wanted.scale
    if wanted.kind == "count":
        return count(scaled)
    return ratio(scaled) if wanted.kind == "ratio" else number(scaled, wanted.digits)


def _identity(cell: Cell) -> Row:
    name = cell.arm.title
    return {
        "name": Value(name, name, mark=cell.arm.strategy if cell.arm.kind == "strategy" else None),
        "role": words(role(cell)),
        "decisions": words(cell.decisions.label),
        "batch": count(cell.batch_size),
        "decisions_keep_rate": number(cell.decisions.keep_rate),
    }


def _row(cell: Cell, wanted: Iterable[Quantity]) -> Row:
    row = _identity(cell) | {q.key: shown(q, cell) for q in wanted}
    warnings = ", ".join(dict.fromkeys(w.id for w in cell.warnings))
    return row | _speedups(cell) | {"stopped_by": words(cell.stopped_by), "warnings": words(warnings)}


def _speedups(cell: Cell) -> Row:
    """As written and deployed; a dash where a cell is not the one or the other."""
    row: Row = {}
    if is_written(cell):
        row["speedup"] = _speedup(cell, primary_speedup(cell))
    if cell.deployed:
        row["deployed_speedup"] = _speedup(cell, deployed_speedup(cell))
    return row


def _speedup(cell: Cell, found: Speedup | None) -> Value:
    """With its interval; of the primary baseline that it is the reference; else why there is none."""
    if cell.status != "ok":
        return missing(f"{cell.arm.name} {cell.status}: {cell.reason or 'no reason was stored'}")
    if found is not None:
        return with_interval(found)
    if cell.arm.kind == "baseline" and cell.primary:
        return Value("1 (reference)", 1.0)
    return missing("the primary baseline was not measured")


def _speed(view: View) -> list[Block]:
    cells = [c for c in view.cells if c.status == "ok"]
    if not cells:
        return [Block(title_of(view), ["Nothing was measured; see Refused and failed."])]
    speed, latency = _at("speed", view.info), _at("latency", view.info)
    others = list(dict.fromkeys(s.baseline for c in cells for s in c.speedups if not s.primary))
    deployed = list(dict.fromkeys(s.baseline for c in cells for s in c.deployed_speedups if not s.primary))
    columns = [
        *_columns(["name", "role", "batch"]),
        *map(column, speed),
        *map(against, others),
        *map(deployed_against, deployed),
        *map(column, latency),
        *_columns(["stopped_by", "warnings"]),
    ]
    rows = [
        _row(c, [*speed, *latency]) | _against(c, others) | _deployed_against(c, deployed)
        if c.status == "ok"
        else _identity(c) | _speedups(c)
        for c in view.cells
    ]
    return [Block(title_of(view), table=make_table(f"speed {slug(view)}", "Speed", columns, rows, block="batch"))]


def _against(cell: Cell, baselines: Iterable[str]) -> Row:
    known = {s.baseline: s for s in cell.speedups}
    return {f"against:{b}": with_interval(known[b]) if b in known else Value(NOTHING) for b in baselines}


def _deployed_against(cell: Cell, baselines: Iterable[str]) -> Row:
    known = {s.baseline: s for s in cell.deployed_speedups}
    return {f"deployed against:{b}": with_interval(known[b]) if b in known else Value(NOTHING) for b in baselines}


def _work(view: View) -> list[Block]:
    cells = [c for c in view.cells if c.status == "ok"]
    if not cells:
        return []
    wanted = _at("work", view.info)
    columns = [*_columns(["name", "role", "batch"]), *map(column, wanted)]
    table = make_table(f"work {slug(view)}", "Work", columns, [_row(c, wanted) for c in cells], block="batch")
    blocks = [Block(title_of(view), table=table)]
    if flops := _flops(view):
        columns = _columns(["kind_of_flops", "batch", "mflop", "of_dense"])
        table = make_table(f"flops {slug(view)}", "FLOPs", columns, flops)
        blocks.append(Block("FLOPs: dense, required, executed, accounted", table=table, folded=True))
    return blocks


def _flops(view: View) -> list[Row]:
    """The amounts of the figure, at the largest batch size that was counted."""
    counted = [c for c in view.cells if c.status == "ok" and c.arm.kind == "strategy" and c.flops is not None]
    if not counted:
        return []
    largest = max(c.batch_size for c in counted)
    counted = [c for c in counted if c.batch_size == largest]
    one = next((c for c in counted if not c.static_twin), counted[0])
    assert one.flops is not None
    rule = f"the paper counts: {one.flops.accounted_rule}" if one.flops.accounted_rule else None
    rows = []
    for wanted in _at("flops", view.info):
        label = words(wanted.header, rule if wanted.key == "accounted_flops_per_item" else None)
        rows.append((label, shown(wanted, one), wanted.of(one)))
    executed = [c.flops.executed for c in counted if c.flops is not None]
    rows += [(words(f"executed: {c.arm.title}"), quantity(f, 1e6), f) for c, f in zip(counted, executed, strict=True)]
    return [
        {"kind_of_flops": label, "batch": count(largest), "mflop": amount, "of_dense": _of_dense(found, one.flops)}
        for label, amount, found in rows
    ]


def _of_dense(amount: Reading, flops: Flops) -> Value:
    """A number of FLOPs in percent of the dense ones."""
    for found in (amount, flops.dense):
        if isinstance(found, Unavailable):
            return missing(found.unavailable)
    if not isinstance(amount, float) or not isinstance(flops.dense, float) or not flops.dense:
        return Value(NOTHING)
    return number(100 * amount / flops.dense)


def _gap(view: View) -> list[Block]:
    timed = [c for c in view.cells if c.status == "ok" and c.arm.kind == "strategy" and best_speedup(c) is not None]
    if not timed:
        return []
    rows = [_gap_row(c, gap(c)) for c in timed]
    losses = _columns(
        ["name", "batch", "deployed_speedup", "speedup", "ideal_speedup", *(f"lost_{n}" for n in LOSSES), "causes"]
    )
    blocks = [Block(title_of(view), table=make_table(f"gap {slug(view)}", "Losses", losses, rows, block="batch"))]
    if any(c.phases is not None for c in timed):
        table = make_table(
            f"profile {slug(view)}", "Profile", _columns(["name", "batch", *SHARES]), rows, block="batch"
        )
        blocks.append(Block("Profile of one pass", table=table, folded=True))
    return blocks


def _gap_row(cell: Cell, found: Gap) -> Row:
    row = _identity(cell) | _speedups(cell) | {"ideal_speedup": ratio(found.ideal)}
    row |= {f"lost_{name}": ratio(found.losses.get(name)) for name in LOSSES}
    for key, phases in SHARES.items():
        if found.shares:
            row[key] = number(100 * sum(found.shares.get(p, 0.0) for p in phases), 2)
    return row | {"causes": words("; ".join(found.causes))}


def _sweep(view: View) -> list[Block]:
    timed = [c for c in view.cells if c.status == "ok" and c.arm.kind != "control"]
    if not timed:
        return [Block(title_of(view), ["Nothing was measured; see Refused and failed."])]
    wanted = _at("sweep", view.info)
    deployed = [q for q in _at("speed", view.info) if q.key == "deployed_speedup" and any(c.deployed for c in timed)]
    columns = [*_columns(["name", "role", "batch"]), *map(column, [*deployed, *wanted]), COLUMNS["warnings"]]
    rows = [_row(c, wanted) for c in timed]
    table = make_table(f"sweep {slug(view)}", "Keep-rate sweep", columns, rows, block="decisions_keep_rate")
    return [Block(title_of(view), _break_evens(timed)), Block("Every rate", table=table, folded=True)]


def _break_evens(timed: Sequence[Cell]) -> list[str]:
    sentences = []
    for arm in dict.fromkeys(c.arm for c in timed if c.arm.kind == "strategy" and not c.static_twin):
        mine = [(c, s) for c in timed if c.arm == arm and (s := primary_speedup(c)) is not None]
        points = [(c.decisions.keep_rate, s.value) for c, s in mine if c.decisions.keep_rate is not None]
        if len(points) < 2:
            continue
        rates, speedups = [r for r, _ in points], [s for _, s in points]
        rate, baseline = break_even_keep_rate(rates, speedups), mine[0][1].baseline
        name, span = arm.title, f"{percent(min(rates))} to {percent(max(rates))}"
        if rate is not None:
            sentences.append(f"{name} breaks even with {baseline} at a keep-rate of {percent(rate)}.")
        elif min(speedups) > 1:
            sentences.append(f"{name} is faster than {baseline} at every keep-rate measured ({span}).")
        else:
            sentences.append(f"{name} is slower than {baseline} already at the lowest keep-rate measured ({span}).")
    return sentences


def _refused(infos: Sequence[WorkloadInfo], cells: Sequence[Cell]) -> list[Block]:
    titles = {i.name: i.title for i in infos}
    merged: dict[tuple[str, str, str, str, str], list[int]] = {}
    for c in cells:
        if c.status != "ok":
            label = "keep-rate sweep" if is_sweep(c) else c.decisions.label
            reason = c.reason or "no reason was stored"
            merged.setdefault((c.workload, c.arm.title, label, c.status, reason), []).append(c.batch_size)
    if not merged:
        return _none("Nothing was refused, and nothing failed.")
    rows: list[Row] = [
        {
            "name": words(name),
            "workload": words(titles.get(workload, workload)),
            "decisions": words(label),
            "batches": words(", ".join(map(str, sorted(set(sizes))))),
            "outcome": words(status),
            "reason": words(reason),
        }
        for (workload, name, label, status, reason), sizes in merged.items()
    ]
    keys = ["name", "workload", "decisions", "batches", "outcome", "reason"]
    return [Block(table=make_table("refused", "Refused, failed and interrupted", _columns(keys), rows))]


def _accuracy(info: WorkloadInfo, cells: Sequence[Cell]) -> list[Block]:
    if not info.accuracies:
        why = "the weights are untrained" if info.weights is None else "the run ended before it, or it failed"
        return [Block(info.title, [f"Not measured: {why}."])]
    best = headline(info.name, cells)
    measured = [c for c in cells if c.status == "ok"]
    group = measured if best is None else [c for c in measured if c.group_id == best.cell.group_id]
    fastest = {c.arm.baseline: c for c in group if c.arm.kind == "baseline" and c.deployed}
    written = {c.arm.baseline: c for c in group if c.arm.kind == "baseline" and is_written(c)}
    static = fastest | written
    required = next((c.flops.required_total for c in group if c.arm.kind == "strategy" and c.flops is not None), None)
    equal = _of_equal_flops(static.values(), required)
    rows = []
    for name, found in sorted(info.accuracies.items(), key=lambda pair: pair[0] != "dynamic"):
        row: Row = {
            "network": words(name),
            "metric": words(found.metric),
            "accuracy": accuracy_value(found),
            "labelled": count(found.items),
        }
        if name == "dynamic":
            row |= {"network": words("dynamic network"), "place": words("dynamic"), "cost": quantity(required, 1e6)}
            row |= _best_speedups(info, cells)
        elif (cell := static.get(name)) is not None:
            place = "static network of equal mean FLOPs" if cell is equal else role(cell)
            row |= {"place": words(place), "cost": quantity(None if cell.flops is None else cell.flops.executed, 1e6)}
            for c in {c.cell_id: c for c in (written.get(name), fastest.get(name)) if c is not None}.values():
                row |= _speedups(c)
        rows.append(row)
    keys = ["network", "place", "metric", "accuracy", "labelled", "cost", "deployed_speedup", "speedup"]
    text = []
    if equal is None and required is not None:
        text = [f"There is no static network within {percent(EQUAL_FLOPS)} of the required FLOPs in this run."]
    if info.weights is None and not info.may_be_trained:
        text.insert(0, "The weights are untrained: these figures say nothing about the paper's network.")
    return [Block(info.title, text, make_table(f"accuracy {info.name}", "Accuracy", _columns(keys), rows))]


def _best_speedups(info: WorkloadInfo, cells: Sequence[Cell]) -> Row:
    """Of the dynamic network with learned decisions, deployed and as written, at the largest batch size of each."""
    found = contest(info.name, cells)
    if found is None or found.source.source != "learned":
        return {}
    best = {"deployed_speedup": next(iter(found.deployed.values()), None), "speedup": found.best_written}
    return {
        key: Value(with_interval(t.speedup).text, t.speedup.value, f"{t.cell.arm.title} at batch {t.cell.batch_size}")
        for key, t in best.items()
        if t is not None
    }


def _of_equal_flops(static: Iterable[Cell], required: Measured | None) -> Cell | None:
    """The static network, other than the primary baseline, whose FLOPs are nearest to the required ones."""
    if required is None or isinstance(required, Unavailable) or required <= 0:
        return None
    known = [
        (abs(math.log(c.flops.executed / required)), c)
        for c in static
        if not c.primary and c.flops is not None and isinstance(c.flops.executed, float) and c.flops.executed > 0
    ]
    distance, nearest = min(known, key=lambda pair: pair[0], default=(math.inf, None))
    return nearest if distance <= math.log(1 + EQUAL_FLOPS) else None


def accuracy_value(found: Accuracy) -> Value:
    """Shares in percent, those of right items with the 95 % sampling error of their number, others with their unit."""
    if isinstance(found.value, Unavailable):
        return missing(found.value.unavailable)
    note = None if found.higher_is_better else f"{found.metric}: lower is better"
    if not found.in_percent:
        unit = f" {found.unit}" if found.unit else ""
        return Value(f"{significant(found.value, 4)}{unit}", found.value, note)
    known = found.items if found.share_of_items else 0
    error = 1.96 * math.sqrt(max(found.value * (1 - found.value), 0.0) / known) if known else None
    return Value(percent(found.value, 1) + (f" ± {100 * error:.1f}" if error is not None else ""), found.value, note)


def _claims(info: WorkloadInfo, cells: Sequence[Cell]) -> list[Block]:
    if not info.claims:
        return [Block(info.title, ["The workload names no published figure."])]
    best = headline(info.name, cells)
    cell = None if best is None else best[0]
    if cell is None:  # what was counted stands, also where nothing was timed
        counted = [c for v in views(info, cells) for c in v.cells if c.status == "ok" and c.flops is not None]
        cell = next((c for c in counted if c.arm.kind == "strategy" and not c.static_twin), None)
    measured = _measured(cell)
    rows = [_claim(c) | measured for c in info.claims]
    keys = ["claim", "how", "status", "where", "accounted_saved", "required_saved", "executed_saved", "measured"]
    table = make_table(f"claims {info.name}", "Claims", _columns(keys), rows)
    return [Block(info.title, [_difference(cell)], table)]


def _claim(claim: Claim) -> Row:
    setting = [f"batch {claim.batch_size}"] if claim.batch_size else []
    setting += [claim.hardware] if claim.hardware else []
    return {
        "claim": words(f"{claim.metric}: {claim.value:g} {claim.unit}"),
        "how": words(claim.how),
        "status": words(claim.status),
        "where": words(claim.where + (f" ({', '.join(setting)})" if setting else "")),
    }


def _measured(cell: Cell | None) -> Row:
    if cell is None:
        return {"measured": missing("no strategy of this workload was measured")}
    found = best_speedup(cell)
    row = {"measured": missing("no speed-up was measured") if found is None else with_interval(found)}
    if cell.flops is not None:
        row |= {
            "accounted_saved": _of_dense(cell.flops.accounted, cell.flops),
            "required_saved": _of_dense(cell.flops.required_total, cell.flops),
            "executed_saved": _of_dense(cell.flops.executed, cell.flops),
        }
    return row


def _difference(cell: Cell | None) -> str:
    """Why accounted, required, executed and time differ, for the strategy the workload is judged by."""
    if cell is None:
        return "No strategy of this workload was measured."
    sentences = [f"Measured: {cell.arm.title} at batch {cell.batch_size}, {cell.decisions.label} decisions."]
    flops, explained = cell.flops, gap(cell)
    if flops is not None and isinstance(flops.accounted, float) and isinstance(flops.required_total, float):
        rule = f" ({flops.accounted_rule})" if flops.accounted_rule else ""
        apart = flops.accounted / flops.required_total - 1 if flops.required_total else 0.0
        if abs(apart) > SAME:
            more = "more" if apart > 0 else "less"
            sentences.append(
                f"The paper's way of counting{rule} gives {percent(abs(apart))} {more} than bodies and gates require."
            )
        else:
            sentences.append(f"The paper's way of counting{rule} agrees with what bodies and gates require.")
    elif flops is not None and isinstance(flops.accounted, Unavailable):
        sentences.append(f"Accounted FLOPs: n/a ({flops.accounted.unavailable}).")
    if explained.causes:
        sentences.append(f"Computation and time differ because {'; '.join(explained.causes)}.")
    elif explained.efficiency is not None:
        sentences.append("What computation saves, time saves.")
    return " ".join(sentences)
