"""`dynbench compare`: two runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dynbench.cli.common import Finite, Names, echo, flat, json_option, print_json, print_table

if TYPE_CHECKING:
    from dynbench.analysis.compare import Change, DeployedChange


@click.command("compare", short_help="Set two runs side by side: what changed, the code or the machine?")
@click.argument("run_a", type=click.Path(path_type=Path))
@click.argument("run_b", type=click.Path(path_type=Path))
@click.option(
    "--allow",
    type=Names(),
    multiple=True,
    help="What may differ: machine, threads, software, inputs, decisions, weights.",
)
@click.option(
    "--matters",
    type=Finite(0, min_open=True),
    default=3.0,
    show_default=True,
    metavar="PERCENT",
    help="Smallest change of time that matters; smaller ones may be called SAME.",
)
@json_option
def command(run_a: Path, run_b: Path, allow: tuple[list[str], ...], matters: float, as_json: bool) -> None:
    """Compare RUN_B, the later run directory, with RUN_A, cell by cell.

    A shared machine changes between two runs by more than most code does. So the time is first corrected by that of the
    control kernel, the same arithmetic in every run, and a verdict stands only if the time against the primary
    baseline, measured in the same rounds, confirms it. To judge a change of code, `dynbench check` measures both
    revisions at once and sees smaller differences.

    Exit code 1: something became slower.
    """
    from dynbench.analysis.compare import CHECKED, compare
    from dynbench.store.run import Run

    allowed = flat(allow) or []
    unknown = [name for name in allowed if name not in CHECKED]
    if unknown:
        raise click.UsageError(f"--allow {unknown[0]}: what may differ is one of {', '.join(CHECKED)}")
    a, b = Run.open(run_a), Run.open(run_b)
    changes, single, differ, deployed = compare(a, b, allow=allowed, matters=matters / 100)
    if as_json:
        found = {"changes": [_json(c) for c in changes], "only_in_one": single, "differ": differ}
        print_json({**found, "deployed": [_deployed_json(c) for c in deployed]})
    else:
        print_table([_row(c) for c in changes])
        for change in changes:
            if change.judged.outcome != "SAME" or change.exact:
                echo("", f"{change.cell.cell_id}: {change.judged.outcome}: {change.judged.reason}")
                for line in change.exact:
                    echo(f"  {line}")
        if deployed:
            echo("", "Each network in its fastest way, against the primary baseline in its own:")
            print_table([_deployed_row(c) for c in deployed])
            for pair in deployed:
                if pair.other_way is not None:
                    echo(pair.other_way)
        for line in [*single, *(f"allowed to differ: {text}" for text in differ)]:
            echo(line)
        outcomes = [c.judged.outcome for c in changes]
        echo("", ", ".join(f"{outcomes.count(o)} {o}" for o in dict.fromkeys(outcomes)))
    if any(c.judged.outcome == "SLOWER" for c in changes):
        raise click.exceptions.Exit(1)


def _row(change: Change) -> dict[str, Any]:
    from dynbench.analysis.formatting import change_text, change_with_interval, percent

    cell, relative = change.cell, change.against_baseline
    return {
        "cell": f"{cell.workload}, {cell.decisions.label}",
        "batch": cell.batch_size,
        "what_ran": cell.arm.title,
        "time": change_text(change.time.value),
        "control_kernel": "n/a" if change.machine is None else change_text(change.machine),
        "corrected": change_with_interval(change.judged.change),
        "against_baseline": "" if relative is None else change_text(relative.value),
        "resolution": percent(change.judged.resolution, 1),
        "verdict": change.judged.outcome,
    }


def _deployed_row(change: DeployedChange) -> dict[str, Any]:
    from dynbench.analysis.formatting import change_with_interval, percent, times_with_interval
    from dynbench.analysis.gap import deployed_speedup

    cells = (change.old, change.cell)
    before, now = (times_with_interval(s) for s in map(deployed_speedup, cells) if s is not None)
    return {
        "cell": f"{change.cell.workload}, {change.cell.decisions.label}",
        "batch": change.cell.batch_size,
        "network": change.cell.arm.baseline or "dynamic",
        "deployed_before": before,
        "deployed_now": now,
        "relative_time": change_with_interval(change.judged.change),
        "resolution": percent(change.judged.resolution, 1),
        "verdict": change.judged.outcome,
    }


def _deployed_json(change: DeployedChange) -> dict[str, Any]:
    from dynbench.analysis.gap import deployed_speedup

    speedups = [s.model_dump() for s in map(deployed_speedup, (change.old, change.cell)) if s is not None]
    return {
        "group_id": change.cell.group_id,
        "network": change.cell.arm.baseline or "dynamic",
        "cell_ids": [change.old.cell_id, change.cell.cell_id],
        "deployed_speedups": speedups,
        "outcome": change.judged.outcome,
        "reason": change.judged.reason,
        "relative_time_ratio": change.judged.change.model_dump(),
        "resolution": change.judged.resolution,
    }


def _json(change: Change) -> dict[str, Any]:
    judged, relative = change.judged, change.against_baseline
    return {
        "cell_id": change.cell.cell_id,
        "outcome": judged.outcome,
        "reason": judged.reason,
        "time_ratio": change.time.model_dump(),
        "machine_ratio": change.machine,
        "corrected_ratio": judged.change.model_dump(),
        "resolution": judged.resolution,
        "against_baseline_ratio": None if relative is None else relative.model_dump(),
        "exact": change.exact,
    }
