"""`dynbench doctor`: is this machine fit to measure on?"""

from __future__ import annotations

import dataclasses

import click

from dynbench.cli.common import Finite, json_option, print_json

MARKS = {"ok": ("ok     ", "green"), "note": ("note   ", "cyan"), "warning": ("warning", "yellow")}


@click.command("doctor", short_help="Is this machine fit to measure on?")
@click.option(
    "--seconds",
    default=3.0,
    show_default=True,
    type=Finite(min=0, max=60, min_open=True),
    help="How long to measure the noise.",
)
@json_option
def command(seconds: float, as_json: bool) -> None:
    """Checks devices, sensors, threads and noise of this machine: what it means for results, and what to change."""
    from dynbench.devices.doctor import examine

    findings = examine(seconds)
    if as_json:
        print_json([dataclasses.asdict(f) for f in findings])
        return
    for f in findings:
        mark, colour = MARKS[f.level]
        click.echo(f"{click.style(mark, fg=colour)} {f.id:<15} {f.text}")
        if f.remedy:
            click.echo(f"{'':24}what to do: {f.remedy}")
