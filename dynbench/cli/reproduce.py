"""`dynbench reproduce`: a run once more, and both side by side."""

from __future__ import annotations

import datetime
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dynbench.cli.common import RUNS, data_option, echo, print_table
from dynbench.errors import UserError

if TYPE_CHECKING:
    from dynbench.analysis.compare import Change, Exact
    from dynbench.store.run import Run
    from dynbench.store.schema import Cell

NOT_AGAIN = ("--out", "--history", "--resume")  # options of a run, with a value, that belong to it alone


@click.command("reproduce", short_help="Run again what a run or report says, and set both side by side.")
@click.argument("source", type=click.Path(path_type=Path), metavar="RUN|REPORT")
@data_option
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where the new run goes.  [default: runs/DATE-TIME-again]",
)
@click.option(
    "--with",
    "again",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Compare with this run instead of running again.",
)
def command(source: Path, data_dir: Path | None, out: Path | None, again: Path | None) -> None:
    """Run again on this machine what the manifest of RUN, or of the run beside a REPORT, says.

    Inputs, weights, decisions and FLOPs must match exactly (their hashes are shown). Times are flagged where they
    differ by more than both runs can resolve; on another machine they always may.

    Exit code 1: something that does not depend on the clock differs.
    """
    from dynbench.analysis.compare import CHECKED, compare, differences, exact_quantities
    from dynbench.analysis.formatting import change_text, percent
    from dynbench.store.run import Run, holds_run

    before = Run.open(_folder(source))
    if again is None:
        again = out or RUNS / f"{datetime.datetime.now():%Y%m%d-%H%M%S}-again"
        arguments = _arguments(before, data_dir)
        echo(f"dynbench run {' '.join(arguments)} --out {again}")
        done = subprocess.run([sys.executable, "-m", "dynbench", "run", *arguments, "--out", str(again)], check=False)
        if done.returncode == 2 or not holds_run(again):
            raise UserError(f"the run could not be repeated (exit code {done.returncode}); its message is above")
    after = Run.open(again)
    rows = exact_quantities(before, after)
    print_table([_row(r) for r in rows if r.hashed or not r.same])
    other_machine = "machine" in differences(before, after)
    changes, _, differ, deployed = compare(before, after, allow=CHECKED)
    flagged = [c for c in changes if not _is_within(c)]
    echo()
    print_table(
        [
            {
                "cell": c.cell.cell_id,
                "speed-up before": _speedup(c.old),
                "speed-up now": _speedup(c.cell),
                "time": change_text(c.time.value),
                "resolution": percent(c.judged.resolution, 1),
                "": "" if _is_within(c) else f"flagged: {c.judged.outcome}",
            }
            for c in changes
        ]
    )
    for pair in deployed:
        if pair.other_way is not None:
            echo(pair.other_way)
    for text in differ:
        echo(f"differs: {text}")
    wrong = [r for r in rows if not r.same]
    place = "another machine" if other_machine else "the same machine"
    echo(
        "",
        f"{len(rows) - len(wrong)} of {len(rows)} exact quantities are the same; {len(changes) - len(flagged)} of "
        f"{len(changes)} times, on {place}, differ by no more than the resolution; the new run: {again}",
    )
    if wrong:
        raise click.exceptions.Exit(1)


def _folder(source: Path) -> Path:
    from dynbench.store.run import holds_run

    folder = source.parent if source.is_file() else source
    if not holds_run(folder):
        raise UserError(
            f"{source} cannot be reproduced: {folder} holds no manifest.json, which says what was run; give a run "
            "directory, or a report that lies in one"
        )
    return folder


def _arguments(run: Run, data_dir: Path | None) -> list[str]:
    """The command line of a run without what belongs to it alone."""
    kept: list[str] = []
    skip = False
    dropped = NOT_AGAIN if data_dir is None else (*NOT_AGAIN, "--data")
    for part in run.manifest.command[2:]:
        if skip:
            skip = False
        elif part in dropped:
            skip = True
        elif not part.startswith(tuple(f"{option}=" for option in dropped)):
            kept.append(part)
    return kept if data_dir is None else [*kept, "--data", str(data_dir)]


def _is_within(change: Change) -> bool:
    """Whether the time, corrected for the machine's change, differs by no more than both runs can resolve."""
    bound = 1 + change.judged.resolution
    return 1 / bound <= change.judged.change.value <= bound


def _row(exact: Exact) -> dict[str, str]:
    verdict = "same" if exact.same else "DIFFERENT"
    return {"must_be_the_same": exact.what, "before": exact.before, "now": exact.after, "": verdict}


def _speedup(cell: Cell) -> str:
    from dynbench.analysis.formatting import times_with_interval
    from dynbench.analysis.gap import deployed_speedup, primary_speedup

    found = primary_speedup(cell) or deployed_speedup(cell)
    return "" if found is None else times_with_interval(found)
