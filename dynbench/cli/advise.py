"""`dynbench advise`: which network, strategy, engine and batch size to deploy here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dynbench.cli import completion
from dynbench.cli.common import RUNS, Finite, echo, json_option, print_json, print_table

if TYPE_CHECKING:
    from dynbench.analysis.advise import Advice, Candidate
    from dynbench.store.run import Run
    from dynbench.store.schema import Cell, Interval, WorkloadInfo

MOST = 12  # rows


@click.command("advise", short_help="Which network and which way of running it to deploy here?")
@click.argument("what", metavar="WORKLOAD|RUN", shell_complete=completion.workload)
@click.option("--slo-ms", type=Finite(min=0, min_open=True), metavar="MS", help="A batch must be answered within it.")
@click.option("--batch", "batch_size", type=click.IntRange(min=1), metavar="N", help="At this batch size alone.")
@click.option(
    "--accuracy",
    type=Finite(),
    metavar="VALUE",
    help="At least so much, as the report says it, such as 0.92.  [default: a static network no less than the dynamic]",
)
@json_option
def command(what: str, slo_ms: float | None, batch_size: int | None, accuracy: float | None, as_json: bool) -> None:
    """Chooses among what was measured, and what the cost model predicts, which is marked; one table, one sentence.

    Of a WORKLOAD the newest run under runs/ that measured it is taken; a RUN is a run directory.
    """
    from dynbench.analysis.advise import Wish, advise
    from dynbench.analysis.cost_model import model_of
    from dynbench.store.scaling import read_scaling

    run, infos = _find(what)
    scalings = {one.workload: one for one in read_scaling(run.path)}
    wish = Wish(slo_ms, batch_size, accuracy)
    documents = []
    for info in infos:
        scaling = scalings.get(info.name)
        model = None if scaling is None else model_of(run.cells, scaling)
        advice = advise(info, run.cells, wish, lambda a, b: _paired(run, a, b), model)
        if as_json:
            documents.append(_json(run, info, advice))
            continue
        shown = advice.candidates[:MOST]
        print_table([_row(c) for c in shown])
        if len(advice.candidates) > len(shown):
            echo(f"{len(advice.candidates) - len(shown)} more are left out; --json shows all")
        echo(advice.sentence)
    if as_json:
        print_json(documents)


def _find(what: str) -> tuple[Run, list[WorkloadInfo]]:
    """The run, and the workloads that it is about."""
    from dynbench.errors import UserError
    from dynbench.experiment import workload_files
    from dynbench.store.run import Run, holds_run

    if holds_run(Path(what)):
        run = Run.open(Path(what))
        infos = list(run.manifest.workloads.values())
        if not infos:
            raise UserError(f"{what} holds no workload that was measured")
        return run, infos
    name = Path(what).stem if what.endswith(".toml") else what
    for manifest in sorted(RUNS.glob("*/manifest.json"), key=lambda p: p.parent.name, reverse=True):
        run = Run.open(manifest.parent)
        if name in run.manifest.workloads:
            return run, [run.manifest.workloads[name]]
    if what in workload_files() or what.endswith(".toml"):
        raise UserError(f"no run under runs/ has measured {name} yet: `dynbench run {what}` makes one")
    raise UserError(f"{what!r} is neither a run directory nor a workload; `dynbench list` names those that there are")


def _paired(run: Run, best: Cell, other: Cell) -> Interval | None:
    """Time of the other over that of the best in the rounds that both have; None: they share too few."""
    from dynbench.analysis.statistics import ratio_in_rounds

    if best.group_id != other.group_id:
        return None
    return ratio_in_rounds(run.samples(best.group_id), other.arm.key, best.arm.key)


def _row(c: Candidate) -> dict[str, Any]:
    from dynbench.analysis.formatting import significant

    return {
        "network": c.arm.baseline or "dynamic",
        "strategy": c.arm.strategy or "-",
        "engine": f"{c.arm.engine}{' graph' if c.arm.control == 'graph' else ''}",
        "form": c.arm.form,
        "batch": c.batch_size,
        "ms/item": significant(c.item_ms) + (" predicted" if c.predicted else ""),
        "ms/batch": significant(c.batch_ms),
        "accuracy": "unknown" if c.accuracy is None else f"{c.accuracy:.4g}",
        "memory MB": "unknown" if c.memory_bytes is None else significant(c.memory_bytes / 1e6),
        "misses": c.why_not,
    }


def _json(run: Run, info: WorkloadInfo, advice: Advice) -> dict[str, Any]:
    ratio = advice.ratio
    return {
        "run": str(run.path),
        "workload": info.name,
        "sentence": advice.sentence,
        "metric": advice.metric,
        "runner_up_ratio": None if ratio is None else ratio.model_dump(),
        "candidates": [
            {
                "arm": c.arm.model_dump(),
                "batch_size": c.batch_size,
                "item_ms": c.item_ms,
                "batch_ms": c.batch_ms,
                "accuracy": c.accuracy,
                "memory_bytes": c.memory_bytes,
                "predicted": c.predicted,
                "misses": c.why_not,
            }
            for c in advice.candidates
        ],
    }
