"""`dynbench export`: a run for other programs."""

from __future__ import annotations

from pathlib import Path

import click

from dynbench.cli.common import Names, echo, flat, newest_run


@click.command("export", short_help="A run as CSV tables and JSON.")
@click.argument("run", type=click.Path(path_type=Path), required=False)
@click.option("--format", "formats", type=Names(), multiple=True, help="csv, json.  [default: both]")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Where to write.  [default: RUN/export]")
def command(run: Path | None, formats: tuple[list[str], ...], out: Path | None) -> None:
    """Write RUN, a run directory, as CSV tables and as one JSON document (default: the newest under runs/)."""
    from dynbench.files import make_own_folder
    from dynbench.store.export import FORMATS, export
    from dynbench.store.run import Run

    folder = run or newest_run()
    found = Run.open(folder)
    if out is None:
        make_own_folder(folder / "export")
    for file in export(found, flat(formats) or FORMATS, out or folder / "export"):
        echo(file)
