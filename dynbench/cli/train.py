"""`dynbench train`: train a workload's weights again."""

from __future__ import annotations

from pathlib import Path

import click

from dynbench.cli import completion
from dynbench.cli.common import data_option, device_option, echo
from dynbench.errors import DynbenchError, UserError

MOST_EPOCHS = 1_000_000


@click.command("train", short_help="Train a workload's weights.")
@click.argument("workload", metavar="WORKLOAD|FILE.toml", shell_complete=completion.workload)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder for weights, model cards and what is unfinished.  [default: runs/trained/WORKLOAD]",
)
@device_option
@data_option
@click.option(
    "--epochs", type=click.IntRange(1, MOST_EPOCHS), metavar="N", help="Of every stage, in place of the recipe's."
)
@click.option("--resume", is_flag=True, help="Keep finished networks in --out, of any training, even with --fresh.")
@click.option("--fresh", is_flag=True, help="Begin anew, even if there is an unfinished training in --out.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
@click.pass_context
def command(
    ctx: click.Context,
    workload: str,
    out: Path | None,
    device: str,
    data_dir: Path | None,
    epochs: int | None,
    resume: bool,
    fresh: bool,
    quiet: bool,
) -> None:
    """Train the networks of WORKLOAD and its baselines, as its [train] table says.

    What is interrupted goes on when the same command is started again, exactly as it would have: the state is written
    every 30 s, and when Ctrl-C or SIGTERM ends the training.
    """
    from dynbench import devices
    from dynbench.cli.common import RUNS
    from dynbench.dynamic.faults import in_a_line
    from dynbench.experiment import load_spec
    from dynbench.training import train_workload
    from dynbench.training.interrupts import Stopped

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
            fresh=fresh,
            epochs=epochs,
        )
    except Stopped as e:
        echo(f"Error: {e}", err=True)
        ctx.exit(128 + e.number)  # what a shell says of a command that a signal ended
    except (DynbenchError, OSError, MemoryError):
        raise
    except Exception as e:
        raise UserError(f"{spec.file}: training raised {in_a_line(e)}") from e
    echo(f"weights and model cards: {out}")
