"""`dynbench history`: results over commits and machines, in a database."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dynbench.cli.common import Names, Sizes, echo, flat, in_a_line, json_option, print_json, print_table
from dynbench.errors import UserError, suggestion

if TYPE_CHECKING:
    from dynbench.store.history import Series

database_option = click.option(
    "--db",
    "database",
    default="runs/history.sqlite",
    show_default=True,
    envvar="DYNBENCH_HISTORY",
    show_envvar=True,
    metavar="PATH|URL",
    help="The database: an SQLite file, or postgresql://USER:PASSWORD@HOST:PORT/DATABASE.",
)


@click.group("history", short_help="Results over commits: record, list, show, report.")
def command() -> None:
    """Results over commits and machines, kept in a database.

    `dynbench run --history PATH|URL` records a run when it ends, `add` one that exists already, and
    `dynbench check --history PATH|URL` a check. Only comparable results are compared: those of the same workload,
    networks, inputs, decisions, strategy, form, engine, load, batch size, number type, threads, device, and the same
    kind of machine. PostgreSQL needs `pip install 'dynbench[postgresql]'`.
    """


@command.command("add", short_help="Record run directories.")
@click.argument("runs", nargs=-1, required=True, metavar="RUN_DIR...", type=click.Path(path_type=Path))
@database_option
def add(runs: tuple[Path, ...], database: str) -> None:
    """Record run directories. One that is recorded already changes nothing; one that was resumed gains what is new."""
    from dynbench.store.history import History
    from dynbench.store.run import Run

    itself = os.path.realpath(database)  # runs/* may hold it
    folders = [run for run in runs if os.path.realpath(run) != itself]
    opened = [Run.open(folder) for folder in folders]  # all of them before the first is recorded
    history = History.open(database, create=True)
    for run in opened:
        done = history.record(run)
        new = [f"{done.added} cells recorded"] * bool(done.added) + [f"{done.changed} updated"] * bool(done.changed)
        echo(f"{run.path}: {', '.join(new) or f'recorded before, all {done.same} cells'}")


@command.command("list", short_help="The recorded runs.")
@database_option
@json_option
def list_(database: str, as_json: bool) -> None:
    """The recorded runs, in the order of their commits."""
    from dynbench.store.history import History

    found = History.open(database).runs()
    if as_json:
        print_json([{**asdict(run), "workloads": workloads, "cells": cells} for run, workloads, cells in found])
        return
    rows = [
        {
            "commit": run.label,
            "subject": run.subject,
            "measured": run.started[:16].replace("T", " "),
            "run": run.run_id,
            "workloads": ", ".join(workloads),
            "cells": cells,
            "machine": run.machine,
        }
        for run, workloads, cells in found
    ]
    if rows:
        print_table(rows)


@command.command("show", short_help="A cell over the commits.")
@click.argument("workloads", nargs=-1, required=True, metavar="WORKLOAD...")
@click.option("--strategy", "names", type=Names(), multiple=True, help="Only these strategies or baselines.")
@click.option("--batch", "batch_sizes", type=Sizes(), multiple=True, help="Batch sizes.  [default: the largest]")
@click.option("--decisions", "labels", type=Names(), multiple=True, help="Such as learned.  [default: the first]")
@click.option("--quantity", "keys", type=Names(), multiple=True, help="Also these, by key: executed_flops_per_item.")
@database_option
@json_option
def show(
    workloads: tuple[str, ...],
    names: tuple[list[str], ...],
    batch_sizes: tuple[list[int], ...],
    labels: tuple[list[str], ...],
    keys: tuple[list[str], ...],
    database: str,
    as_json: bool,
) -> None:
    """How a workload's speed-up and time changed from commit to commit, a table per cell.

    The speed-up is against the primary baseline of the same run; a mark shows where its level changes. Other quantities
    are shown as they are stored, without a scale; --json has all of them.
    """
    from dynbench.store.history import History

    found = History.open(database).series(workloads)
    chosen = [
        s
        for workload in workloads
        for s in _chosen([s for s in found if s.key.workload == workload], flat(names), flat(batch_sizes), flat(labels))
    ]
    if not found:
        raise UserError(f"of {', '.join(workloads)} no runs are recorded, only checks; see `dynbench history checks`")
    if not chosen:
        cells = dict.fromkeys(f"{s.key.arm.name} at batch {s.key.batch_size}, {s.key.decisions}" for s in found)
        raise UserError(f"no such cell; of {', '.join(workloads)} there are: {'; '.join(cells)}")
    extra = flat(keys) or []
    if extra:
        _check_quantities(extra, chosen)
    if as_json:
        print_json([{"key": s.key.model_dump(), "points": _json_rows(s)} for s in chosen])
        return
    for s in chosen:
        k = s.key
        title = f"{k.workload}, {k.decisions}, batch {k.batch_size}: {k.arm.title}"
        click.secho(f"\n{in_a_line(title)}", bold=True)
        against = "the primary baseline itself" if k.baseline == k.arm.name else f"against {k.baseline}"
        echo(f"{against}; {k.device}, {k.dtype}, {k.threads} threads, {k.arm.engine}; {k.machine}")
        print_table(_rows(s, extra))


@command.command("checks", short_help="What checks found, commit by commit.")
@click.argument("workloads", nargs=-1, metavar="[WORKLOAD]...")
@database_option
@json_option
def checks(workloads: tuple[str, ...], database: str, as_json: bool) -> None:
    """What `dynbench check --history PATH|URL` found, in the order of the commits (default: of all workloads)."""
    from dynbench.analysis.formatting import change_with_interval, percent, significant
    from dynbench.store.history import History

    found = History.open(database).checks(workloads)
    if not found:
        raise UserError(
            f"no check {'of ' + ', '.join(workloads) + ' ' if workloads else ''}is recorded in {database}; "
            "`dynbench check --history` records one"
        )
    if as_json:
        print_json([{"subject": c.subject, "committed": c.committed, **c.gate.model_dump(mode="json")} for c in found])
        return
    rows = [
        {
            "commit": c.label,
            "subject": c.subject,
            "checked": c.gate.started[:16].replace("T", " "),
            "base": c.gate.base,
            "workload": c.gate.workload,
            "cell": cell.name,
            "head ms": significant(cell.head_ms),
            "change of time": change_with_interval(cell.change),
            "resolution": percent(cell.resolution, 1),
            "verdict": cell.outcome,
            "counted": "; ".join(e.text for e in cell.exact) or None,
        }
        for c in found
        for cell in c.gate.cells
    ]
    print_table(rows)


@command.command("report", short_help="A page of curves and change points.")
@click.argument("workloads", nargs=-1, metavar="[WORKLOAD]...")
@click.option("--format", "formats", type=Names(), multiple=True, help="html, md.  [default: both]")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    default=Path("history"),
    show_default=True,
    help="Where to write history.html and history.md.",
)
@database_option
def report(workloads: tuple[str, ...], formats: tuple[list[str], ...], out: Path, database: str) -> None:
    """Write a page with a curve per cell, and the commits at which its level changes (default: all workloads)."""
    from dynbench.report.history import write_history
    from dynbench.report.write import FORMATS
    from dynbench.store.history import History

    for file in write_history(History.open(database), workloads, flat(formats) or FORMATS, out):
        echo(f"report: {file}")


def _chosen(
    found: list[Series], names: list[str] | None, batch_sizes: list[int] | None, labels: list[str] | None
) -> list[Series]:
    """The requested ones; by default the strategies at the largest batch size under the decisions that come first."""
    if not found:
        return []
    labels = labels or [min({s.key.decisions for s in found}, key=lambda label: (label != "learned", label))]
    found = [s for s in found if s.key.decisions in labels]
    found = [s for s in found if (s.key.arm.name in names if names else s.key.arm.kind == "strategy")]
    batch_sizes = batch_sizes or [max((s.key.batch_size for s in found), default=1)]
    return [s for s in found if s.key.batch_size in batch_sizes]


def _check_quantities(keys: list[str], series: list[Series]) -> None:
    known = dict.fromkeys(key for s in series for point in s.points for key in point.numbers)
    for key in keys:
        if key not in known:
            raise UserError(f"no quantity {key!r} is recorded of these cells; {suggestion(key, known)}")


def _rows(series: Series, keys: list[str]) -> list[dict[str, Any]]:
    """For people."""
    from dynbench.analysis.formatting import change_text, significant, times_with_interval
    from dynbench.analysis.trends import changes

    marks = {c.found.index: c for c in changes(series)}
    rows = []
    for i, point in enumerate(series.points):
        found, mark = point.speedup, marks.get(i)
        change = None
        if mark is not None:
            also = f" (also {'; '.join(mark.also)})" if mark.also else ""
            change = change_text(1 + mark.found.change) + also
        row = {
            "commit": point.run.label,
            "subject": point.run.subject,
            "measured": point.run.started[:16].replace("T", " "),
            "speed-up": None if found is None else times_with_interval(found),
            "ms/item": significant(point.item_ms),
        }
        numbers = point.numbers if keys else {}
        extra = {key: significant(numbers[key]) if key in numbers else None for key in keys}
        rows.append({**row, **extra, "change of level": change})
    return rows


def _json_rows(series: Series) -> list[dict[str, Any]]:
    """For programs."""
    from dynbench.analysis.trends import changes

    marks = {c.found.index: c for c in changes(series)}
    return [
        {
            "commit": point.run.commit,
            "subject": point.run.subject,
            "measured": point.run.started,
            "run": point.run.run_id,
            "item_ms": point.item_ms,
            "speedup": None if point.speedup is None else point.speedup.model_dump(),
            "change": mark and mark.found.change,
            "p": mark and mark.found.p,
            "also": mark and mark.also,
            "numbers": point.numbers,
        }
        for point, mark in ((point, marks.get(i)) for i, point in enumerate(series.points))
    ]
