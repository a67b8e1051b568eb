"""`dynbench calibrate`: what this machine can do at best, and what calls, moved rows and waits take."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import click

from dynbench.cli.common import device_option, echo, json_option, print_json, print_table, threads_option

SCALES = {"flops/s": (1e9, "GFLOP/s"), "bytes/s": (1e9, "GB/s"), "s": (1e-6, "us")}


@click.command("calibrate", short_help="Measure the ceilings and overheads of this machine.")
@device_option
@threads_option
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.toml",
    help="Where the profile goes.  [default: your own folder of profiles, DYNBENCH_HARDWARE or ~/.config/dynbench]",
)
@click.option("--thorough", is_flag=True, help="More sizes and three times as many rounds.")
@json_option
def command(device: str, threads: int, out: Path | None, thorough: bool, as_json: bool) -> None:
    """Micro-benchmarks: products, convolutions, memory, gather and scatter, calls and waits; takes some 10 seconds.

    The profile is what `dynbench whatif --device` compares machines by. Every figure has its 95 % interval.
    """
    from dynbench.devices.profiles import write_profile
    from dynbench.errors import UserError
    from dynbench.experiment.calibrate import calibrate
    from dynbench.files import make_place
    from dynbench.paths import own_hardware_dir

    if out is not None and out.suffix != ".toml":
        raise UserError(f"--out {out}: a profile is a file NAME.toml")
    if out is not None:
        make_place(out)
    profile, rates, why = calibrate(device, threads, thorough=thorough)
    if out is None:
        name = re.sub(r"[^a-z0-9]+", "-", f"{profile.name}-{threads}-threads".lower()).strip("-")
        out = own_hardware_dir() / f"{name}.toml"
    write_profile(out, profile)
    if as_json:
        print_json({"file": str(out), "rates": [dataclasses.asdict(r) for r in rates], "no_session": why})
        return
    rows = []
    for rate in rates:
        scale, unit = SCALES[rate.unit]
        value, low, high = (f"{v / scale:.4g}" for v in (rate.value, rate.low, rate.high))
        rows.append({"what": rate.name, "at": rate.at, "median": value, "95 % CI": f"{low} to {high}", "unit": unit})
    print_table(rows)
    if why is not None:
        echo(f"not measured: a call of an engine's session: {why}")
    echo(f"{profile.name}, {threads} thread{'' if threads == 1 else 's'}: written to {out}")
