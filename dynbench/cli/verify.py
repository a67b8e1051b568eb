"""`dynbench verify`: the same answer under every strategy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dynbench.cli.common import Names, data_option, device_option, flat
from dynbench.errors import UserError

if TYPE_CHECKING:
    from dynbench.experiment.verify import Verdict


@click.command("verify", short_help="Same answer under every strategy?")
@click.argument("workloads", nargs=-1, metavar="[WORKLOAD|FILE.toml|all]...")
@device_option
@click.option("--strategy", "strategies", type=Names(), multiple=True, help="Only these, or your own as FILE.py:NAME.")
@click.option(
    "--dtype", default="float32", show_default=True, metavar="NAME", help="float32, float64, bfloat16 or float16."
)
@click.option("--seed", default=0, show_default=True, help="Of the stream and of random decisions.")
@data_option
@click.pass_context
def command(
    ctx: click.Context,
    workloads: tuple[str, ...],
    strategies: tuple[list[str], ...],
    device: str,
    dtype: str,
    seed: int,
    data_dir: Path | None,
) -> None:
    """Check that every strategy gives the answer of `per_sample`, edge cases included.

    Without a workload: the default suite; `all` is every workload that comes along. Prints the largest difference per
    strategy, relative to the answer's largest value. Exit code 1: a mismatch, or a workload of several that could not
    be checked.
    """
    from dynbench import devices
    from dynbench.experiment import Options, check_options, chosen_workloads, load_specs
    from dynbench.experiment.verify import verify_workloads

    options = check_options(
        Options(
            device=devices.device(device).name,
            strategies=flat(strategies),
            dtype=dtype,
            seed=seed,
            data_dir=data_dir,
        )
    )
    specs = load_specs(chosen_workloads(workloads))
    click.echo(f"{'workload':<24}{'strategy':<14}{'largest difference':>20}{'tolerance':>12}  verdict")
    failed = left_out = 0
    for spec in specs:
        try:
            for verdict in verify_workloads([spec], options):
                click.echo(_line(verdict))
                failed += not verdict.ok
        except UserError as e:
            if len(specs) == 1:
                raise
            click.echo(f"{spec.name:<23} left out: {e}")
            left_out += 1
    if failed:
        click.echo(f"{failed} mismatch{'es' if failed > 1 else ''}", err=True)
    if left_out:
        click.echo(f"{left_out} workload{'s' if left_out > 1 else ''} could not be checked", err=True)
    ctx.exit(int(bool(failed or left_out)))


def _line(v: Verdict) -> str:
    start = f"{v.workload:<23} {v.strategy:<14}"
    if v.refused is not None:
        return f"{start}{'n/a':>20}{'':>12}  {v.refused}"
    words = [f"same (worst: {v.worst_trace})" if v.ok else f"DIFFERENT (worst: {v.worst_trace})"]
    if not v.same_decisions:
        words.append("asks for other decisions than per_sample")
    if v.unforced:
        words.append(f"{v.unforced:.2%} of the model's own decisions differ, by rounding")
    return f"{start}{v.largest:>20.2e}{v.tolerance:>12.2e}  {'; '.join(words)}"
