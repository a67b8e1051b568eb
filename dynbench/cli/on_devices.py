"""`dynbench run --target DEVICE`: the part of the command that is about devices."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dynbench.cli.common import RUNS, echo
from dynbench.errors import UserError

if TYPE_CHECKING:
    from dynbench.experiment import Result

MEANT = frozenset(
    ("workloads", "targets", "batch_sizes", "browsers", "sustained_s", "threads", "time_limit_s", "precision", "seed")
    + ("data_dir", "out", "history", "quiet", "as_json")
)
"""Parameters of the command that mean something on a device."""
ONLY_DEVICES = ("browsers", "sustained_s")


def is_launcher(target: str) -> bool:
    """Whether the measuring process itself runs there: this machine, or a launcher of the user's own."""
    return target == "local" or (":" in target and not target.endswith(".toml"))


def only_devices(ctx: click.Context, targets: Sequence[str]) -> bool:
    """Whether a command line is about devices.

    Raises:
        UserError: it names both a launcher and other targets, or an option that means nothing for what it names.
    """
    launchers = [name for name in targets if is_launcher(name)]
    said = [p for p in ctx.command.params if ctx.get_parameter_source(p.name or "") is _SAID]
    if not launchers:
        if unfit := [p.opts[0] for p in said if p.name not in MEANT and p.opts[0].startswith("--")]:
            raise UserError(
                f"{unfit[0]} means nothing with --target {targets[0]}: a device runs the graphs of a bundle as they are"
            )
        return True
    if len(targets) > 1:
        raise UserError(
            f"--target {launchers[0]} is where the measuring process runs, of which there is one; only devices can be "
            "several"
        )
    if unfit := [p.opts[0] for p in said if p.name in ONLY_DEVICES]:
        raise UserError(f"{unfit[0]} is about devices: name one by --target, such as --target browser")
    return False


_SAID = click.core.ParameterSource.COMMANDLINE


def run(
    asked: list[str],
    resume: bool,
    retry_failed: bool,
    *,
    targets: Sequence[str],
    workloads: Sequence[str],
    batch_sizes: list[int] | None,
    threads: int,
    time_limit_s: float | None,
    precision: float | None,
    seed: int,
    data_dir: Path | None,
    browsers: int | None,
    sustained_s: float | None,
    out: Path | None,
    quiet: bool,
) -> tuple[Path, Result]:
    """Measures on devices. Returns the run directory and how it ended."""
    from dynbench.deploy.targets.find import find_device

    found = dict(find_device(name) for name in targets)  # before anything heavy is loaded
    if browsers is not None and not any(p.target.kind == "browser" for p in found.values()):
        raise UserError("--devices says how many browsers are waited for: it needs --target browser")
    _check_distinct(targets, found)
    from dynbench.deploy.run import Devices, run_on_devices
    from dynbench.experiment import Options, chosen_workloads

    limits: dict[str, Any] = {"time_limit_s": time_limit_s, "precision": precision and precision / 100}
    options = Options(
        batch_sizes=batch_sizes or [1],
        decisions=["learned"],
        threads=threads,
        seed=seed,
        data_dir=data_dir,
        **{key: value for key, value in limits.items() if value is not None},
    )
    out = out or RUNS / f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{'-'.join(found)}"

    def say(text: str) -> None:
        if not quiet:
            echo(text, err=True)

    devices = Devices(found, options, browsers, sustained_s or 0.0)
    return out, run_on_devices(
        chosen_workloads(workloads),
        devices,
        out,
        command=asked,
        resume=resume,
        retry_failed=retry_failed,
        say=say,
        show=lambda text: click.echo(text, err=True),
    )


def _check_distinct(targets: Sequence[str], found: Iterable[str]) -> None:
    if len(set(targets)) > len(list(found)):
        raise UserError("two targets have the same name, by which their results are told apart; rename a file")
