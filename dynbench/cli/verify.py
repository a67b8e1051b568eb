"""`dynbench verify`: the same answer under every strategy."""

from __future__ import annotations

from pathlib import Path

import click

from dynbench.cli.common import data_option, device_option


@click.command("verify", short_help="Same answer under every strategy?")
@click.argument("workloads", nargs=-1, metavar="[WORKLOAD|FILE.toml]...")
@device_option
@click.option(
    "--dtype", default="float32", show_default=True, metavar="NAME", help="float32, float64, bfloat16 or float16."
)
@click.option("--seed", default=0, show_default=True, help="Of the stream and of random decisions.")
@data_option
@click.pass_context
def command(
    ctx: click.Context, workloads: tuple[str, ...], device: str, dtype: str, seed: int, data_dir: Path | None
) -> None:
    """Check that every strategy gives the answer of `per_sample`, edge cases included (default: the default suite).

    Prints the largest difference per strategy, relative to the answer's largest value. Exit code 1: a mismatch.
    """
    from dynbench import devices
    from dynbench.experiment import DEFAULT_SUITE, Options, check_options, load_spec
    from dynbench.experiment.verify import verify_workloads

    options = Options(device=devices.device(device).name, dtype=dtype, seed=seed, data_dir=data_dir)
    check_options(options)
    specs = [load_spec(w) for w in workloads or DEFAULT_SUITE]
    click.echo(f"{'workload':<24}{'strategy':<14}{'largest difference':>20}{'tolerance':>12}  verdict")
    failed = 0
    for v in verify_workloads(specs, options):
        start = f"{v.workload:<24}{v.strategy:<14}"
        if v.refused is not None:
            click.echo(f"{start}{'n/a':>20}{'':>12}  {v.refused}")
            continue
        words = [f"same (worst: {v.worst_trace})" if v.ok else f"DIFFERENT (worst: {v.worst_trace})"]
        if not v.same_decisions:
            words.append("asks for other decisions than per_sample")
        if v.unforced:
            words.append(f"{v.unforced:.2%} of the model's own decisions differ, by rounding")
        click.echo(f"{start}{v.largest:>20.2e}{v.tolerance:>12.2e}  {'; '.join(words)}")
        failed += not v.ok
    if failed:
        click.echo(f"{failed} mismatch{'es' if failed > 1 else ''}", err=True)
        ctx.exit(1)
