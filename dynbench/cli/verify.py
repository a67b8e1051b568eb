"""`dynbench verify`: the same answer under every strategy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dynbench.cli import completion
from dynbench.cli.common import SEED, Names, data_option, device_option, echo, flat
from dynbench.errors import UserError

if TYPE_CHECKING:
    from dynbench.experiment.verify import Verdict


@click.command("verify", short_help="Same answer under every strategy?")
@click.argument("workloads", nargs=-1, metavar="[WORKLOAD|FILE.toml|all]...", shell_complete=completion.workload_or_all)
@device_option
@click.option(
    "--strategy",
    "strategies",
    type=Names(),
    multiple=True,
    shell_complete=completion.strategies,
    help="Only these, or your own as FILE.py:NAME.",
)
@click.option(
    "--dtype",
    metavar="NAME",
    shell_complete=completion.dtype,
    help="Cast every network to float32, float64, bfloat16 or float16.  [default: as they are built]",
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of the stream and of random decisions.")
@data_option
@click.pass_context
def command(
    ctx: click.Context,
    workloads: tuple[str, ...],
    strategies: tuple[list[str], ...],
    device: str,
    dtype: str | None,
    seed: int,
    data_dir: Path | None,
) -> None:
    """Check that a network has a right answer, and that every strategy gives it, edge cases included.

    Without a workload: the default suite; `all` is every workload that comes along. First each network alone: does it
    answer the same twice, and each item as if it were alone? Then the strategies: prints the largest difference from
    `per_sample`, relative to the answer's largest value. Exit code 1: something was found, a mismatch, or a workload of
    several that could not be checked.
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
    echo(f"{'workload':<24}{'strategy':<14}{'largest difference':>20}{'tolerance':>12}  verdict")
    found = failed = left_out = 0
    for spec in specs:
        noted = False
        try:
            for verdict in verify_workloads([spec], options):
                if verdict.note is not None and not noted:
                    noted = True
                    echo(f"{spec.name:<23} compared in {verdict.type}: {verdict.note}")
                echo(_line(verdict))
                found += verdict.finding is not None
                failed += verdict.finding is None and not verdict.ok
        except UserError as e:
            if len(specs) == 1:
                raise
            echo(f"{spec.name:<23} left out: {e}")
            left_out += 1
    if found:
        echo(f"{found} network{'s have' if found > 1 else ' has'} no right answer", err=True)
    if failed:
        echo(f"{failed} mismatch{'es' if failed > 1 else ''}", err=True)
    if left_out:
        echo(f"{left_out} workload{'s' if left_out > 1 else ''} could not be checked", err=True)
    ctx.exit(int(bool(found or failed or left_out)))


def _line(v: Verdict) -> str:
    if v.finding is not None or v.said is not None:
        return f"{v.workload:<23} {v.finding or v.said}"
    start = f"{v.workload:<23} {v.strategy:<14}"
    if v.refused is not None:
        return f"{start}{'n/a':>20}{'':>12}  {v.refused}"
    worst = f" (worst: {v.worst_trace})" if v.worst_trace else ""
    words = [f"same{worst}" if v.ok else f"DIFFERENT{worst}"]
    if not v.same_decisions:
        words.append("asks for other decisions than per_sample")
    if v.beyond_rounding:
        points = ", ".join(map(repr, v.beyond_rounding))
        words.append(f"{v.unforced:.2%} of the model's own decisions differ, not by rounding: at {points}")
    elif v.unforced:
        words.append(f"{v.unforced:.2%} of the model's own decisions differ, by rounding")
    return f"{start}{v.largest:>20.2e}{v.tolerance:>12.2e}  {'; '.join(words)}"
