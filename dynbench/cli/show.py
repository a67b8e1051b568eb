"""`dynbench list`: what there is to choose from."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from dynbench.cli.common import json_option, print_json, print_table


def workloads() -> list[dict[str, Any]]:
    """The workloads that come with dynbench."""
    from dynbench.experiment import DEFAULT_SUITE, load_spec, workload_files

    rows = []
    for name in workload_files():
        spec = load_spec(name)
        rows.append(
            {
                "name": name,
                "title": spec.title,
                "model": spec.model,
                "inputs": spec.inputs.name,
                "default": name in DEFAULT_SUITE,
            }
        )
    return rows


def models() -> list[dict[str, Any]]:
    """The models that come with dynbench."""
    from dynbench.models import MODELS
    from dynbench.paths import load_function

    rows = []
    for name, reference in MODELS.items():
        build = load_function(reference, Path.cwd())
        rows.append({"name": name, "model": reference, "paper": getattr(sys.modules[build.__module__], "PAPER", None)})
    return rows


def strategies() -> list[dict[str, Any]]:
    """The ways to execute decided work."""
    from dynbench.strategies import STRATEGIES

    return [{"name": name, "what": (kind.__doc__ or "").strip().split("\n")[0]} for name, kind in STRATEGIES.items()]


def devices() -> list[dict[str, Any]]:
    """What can be measured on here, and what cannot and why."""
    from dynbench.devices import known_devices

    return [{"name": name, "available": why is None, "why_not": why} for name, why in known_devices()]


KINDS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "workloads": workloads,
    "models": models,
    "strategies": strategies,
    "devices": devices,
}


@click.command("list", short_help="What there is to choose from.")
@click.argument("kind", type=click.Choice(list(KINDS)), required=False)
@json_option
def command(kind: str | None, as_json: bool) -> None:
    """What there is to choose from: workloads, models, strategies, devices (default: all of them)."""
    if as_json:
        print_json(KINDS[kind]() if kind else {k: rows() for k, rows in KINDS.items()})
        return
    for k in [kind] if kind else KINDS:
        if kind is None:
            click.secho(f"\n{k}", bold=True)
        print_table(KINDS[k]())
