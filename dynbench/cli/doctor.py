"""`dynbench doctor`: is this machine fit to measure on?"""

from __future__ import annotations

import dataclasses

import click

from dynbench.cli.common import Finite, json_option, print_json
from dynbench.escape import terminal

MARKS = {
    "ok": ("ok     ", "green"),
    "note": ("note   ", "cyan"),
    "warning": ("warning", "yellow"),
    "missing": ("missing", "red"),
}


@click.command("doctor", short_help="Is this machine fit to measure on?")
@click.option(
    "--seconds",
    default=3.0,
    show_default=True,
    type=Finite(min=0, max=60, min_open=True),
    help="How long to measure the noise.",
)
@click.option("--target", metavar="NAME|FILE.toml", help="Look at this device instead, step by step.")
@json_option
@click.pass_context
def command(ctx: click.Context, seconds: float, target: str | None, as_json: bool) -> None:
    """Checks devices, sensors, threads and noise of this machine: what it means for results, and what to change.

    With --target: whether a device can be reached and can measure. Exit code 1: something is missing there.
    """
    if target is not None:
        ctx.exit(_look_at(target, as_json))
    from dynbench.devices.doctor import examine

    findings = examine(seconds)
    if as_json:
        print_json([dataclasses.asdict(f) for f in findings])
        return
    for f in findings:
        _tell(f.level, f.id, f.text, f.remedy)


def _look_at(target: str, as_json: bool) -> int:
    from dynbench.deploy.targets.find import find_device, open_target

    steps = []
    for step in open_target(*find_device(target)).doctor():
        steps.append(step)
        if not as_json:
            _tell(step.level, step.name, step.text, step.remedy)
    if as_json:
        print_json([dataclasses.asdict(step) for step in steps])
    return int(any(step.level == "missing" for step in steps))


def _tell(level: str, name: str, text: str, remedy: str) -> None:
    mark, colour = MARKS[level]
    click.echo(f"{click.style(mark, fg=colour)} {name:<15} {terminal(text)}")
    if remedy:
        click.echo(f"{'':24}what to do: {terminal(remedy)}")
