"""`dynbench train`: train a workload's weights again."""

from __future__ import annotations

from pathlib import Path

import click

from dynbench.cli.common import data_option, device_option, echo
from dynbench.errors import DynbenchError, UserError


@click.command("train", short_help="Train a workload's weights.")
@click.argument("workload", metavar="WORKLOAD|FILE.toml")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder for weights, model cards and checkpoints.  [default: runs/trained/WORKLOAD]",
)
@device_option
@data_option
@click.option("--resume", is_flag=True, help="Continue from the checkpoints in --out; finished networks are kept.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def command(workload: str, out: Path | None, device: str, data_dir: Path | None, resume: bool, quiet: bool) -> None:
    """Train the networks of WORKLOAD and its baselines, as its [train] table says: seeded and resumable."""
    from dynbench import devices
    from dynbench.cli.common import RUNS
    from dynbench.dynamic.faults import in_a_line
    from dynbench.experiment import load_spec
    from dynbench.training import train_workload

    spec = load_spec(workload)
    out = out or RUNS / "trained" / spec.name
    try:
        train_workload(
            spec.model_dump(mode="json", by_alias=True, exclude_none=True),
            out,
            devices.device(device).name,
            data_dir=data_dir,
            resume=resume,
            progress=not quiet,
            folder=spec.folder,
        )
    except (DynbenchError, OSError, MemoryError):
        raise
    except Exception as e:
        raise UserError(f"{spec.file}: training raised {in_a_line(e)}") from e
    echo(f"weights and model cards: {out}")
