"""`dynbench report`: write a run's report again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dynbench.cli.common import Names, echo, flat, newest_run


@click.command("report", short_help="Write a run's report again.")
@click.argument("run", type=click.Path(path_type=Path), required=False)
@click.option("--format", "formats", type=Names(), multiple=True, help="html, md.  [default: both]")
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", help="Where to write it.  [default: the run directory]"
)
def command(run: Path | None, formats: tuple[list[str], ...], out: Path | None) -> None:
    """Write the report of RUN, a run directory, from what is stored there (default: the newest under runs/)."""
    write(run or newest_run(), flat(formats), out)


def write(
    run: Path, formats: list[str] | None = None, out: Path | None = None, *, quiet: bool = False
) -> dict[str, Any]:
    """Writes a report; prints its verdicts and where it is, unless `quiet`, and returns them."""
    from dynbench.report.content import build
    from dynbench.report.write import FORMATS, check_formats, write_run
    from dynbench.store.run import Run

    check_formats(formats or FORMATS)
    found = Run.open(run)
    report = build(found)
    files = write_run(found, formats or FORMATS, out or run)
    for verdict in () if quiet else report.verdicts:
        echo(verdict.sentence)
    for file in () if quiet else files:
        echo(f"report: {file}")
    return {"run": str(run), "verdicts": [v.sentence for v in report.verdicts], "reports": [str(f) for f in files]}
