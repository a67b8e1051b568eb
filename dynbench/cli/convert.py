"""`dynbench convert`: weights that torch.save wrote, as a safetensors file."""

from __future__ import annotations

from pathlib import Path

import click

from dynbench.cli.common import echo


@click.command("convert", short_help="Weights from .pt, .pth, .bin, .ckpt to safetensors.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--key", metavar="NAME", help="Of the state dict, where a checkpoint holds several: model, ema, ...")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="[default: *.safetensors]")
@click.option("--force", is_flag=True, help="Replace an existing file.")
def command(file: Path, key: str | None, out: Path | None, force: bool) -> None:
    """Write the weights in FILE, which torch.save wrote, as a safetensors file that a workload can name.

    Of a checkpoint the state dict is taken. Nothing in FILE is run: only tensors and plain values are loaded.
    """
    from dynbench.experiment.convert import convert

    done = convert(file, out, key=key, force=force)
    where = f", from {done.key!r}" if done.key else ""
    echo(f"{done.file}: {done.tensors} tensors, {done.bytes:,} bytes{where}")
    if done.left_out:
        echo(f"left out, as they are no tensors: {', '.join(done.left_out)}")
