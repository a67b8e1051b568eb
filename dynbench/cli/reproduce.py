"""`dynbench reproduce`: a run once more, and both side by side."""

from __future__ import annotations

import datetime
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dynbench.cli.common import RUNS, data_option, print_table
from dynbench.errors import UserError

if TYPE_CHECKING:
    from dynbench.analysis.compare import Change
    from dynbench.store.run import Run

NOT_AGAIN = ("--out", "--history", "--resume")  # options of a run, with a value, that belong to it alone


@click.command("reproduce", short_help="Run again what a run or report says, and set both side by side.")
@click.argument("source", type=click.Path(path_type=Path), metavar="RUN|REPORT")
@data_option
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Where the new run goes.  "
              "[default: runs/DATE-TIME-again]")  # fmt: skip
@click.option("--with", "again", type=click.Path(path_type=Path), metavar="RUN",
              help="Compare with this run instead of running again.")  # fmt: skip
def command(source: Path, data_dir: Path | None, out: Path | None, again: Path | None) -> None:
    """Run again on this machine what the manifest of RUN, or of the run beside a REPORT, says.

    Inputs, weights, decisions and FLOPs must match exactly (their hashes are shown). Times are flagged where they
    differ by more than both runs can tell from none; on another machine they always may.

    Exit code 1: something that does not depend on the clock is another.
    """
    from dynbench.analysis.compare import CHECKED, compare, differences, exact_quantities
    from dynbench.store.run import Run

    before = Run.open(_folder(source))
    if again is None:
        again = out or RUNS / f"{datetime.datetime.now():%Y%m%d-%H%M%S}-again"
        arguments = _arguments(before, data_dir)
        click.echo(f"dynbench run {' '.join(arguments)} --out {again}")
        done = subprocess.run([sys.executable, "-m", "dynbench", "run", *arguments, "--out", str(again)], check=False)
        if done.returncode == 2 or not (again / "manifest.json").is_file():
            raise UserError(f"the run could not be repeated (exit code {done.returncode}); its own words are above")
    after = Run.open(again)
    rows = exact_quantities(before, after)
    print_table([_row(r.what, r.before, r.after, r.same) for r in rows if _is_shown(r.what) or not r.same])
    other_machine = "machine" in differences(before, after)
    changes, _, unlike = compare(before, after, allow=CHECKED)
    flagged = [c for c in changes if not _is_within(c)]
    click.echo()
    print_table(
        [
            {
                "cell": c.cell.cell_id,
                "speed-up before": _speedup(before, c.cell.cell_id),
                "speed-up now": _speedup(after, c.cell.cell_id),
                "time": f"{c.time.value - 1:+.1%}",
                "resolution": f"{c.judged.resolution:.1%}",
                "": "" if _is_within(c) else f"flagged: {c.judged.outcome}",
            }
            for c in changes
        ]
    )
    for text in unlike:
        click.echo(f"not alike: {text}")
    wrong = [r for r in rows if not r.same]
    place = "another machine" if other_machine else "the same machine"
    click.echo(
        f"\n{len(rows) - len(wrong)} of {len(rows)} exact quantities are the same; {len(changes) - len(flagged)} of "
        f"{len(changes)} times, on {place}, differ by no more than the resolution; the new run: {again}"
    )
    if wrong:
        raise click.exceptions.Exit(1)


def _folder(source: Path) -> Path:
    folder = source.parent if source.is_file() else source
    if not (folder / "manifest.json").is_file():
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
    """Whether the time, the machine's own change taken out, differs by no more than both runs can tell from none."""
    bound = 1 + change.judged.resolution
    return 1 / bound <= change.judged.change.value <= bound


def _is_shown(what: str) -> bool:
    return what.startswith(("inputs", "weights", "decisions"))


def _row(what: str, before: str, after: str, same: bool) -> dict[str, str]:
    return {"must_be_the_same": what, "before": before, "now": after, "": "same" if same else "DIFFERENT"}


def _speedup(run: Run, cell_id: str) -> str:
    from dynbench.analysis.gap import primary_speedup

    found = next(primary_speedup(c) for c in run.cells if c.cell_id == cell_id)
    return "" if found is None else f"{found.value:.2f}x ({found.low:.2f} to {found.high:.2f})"
