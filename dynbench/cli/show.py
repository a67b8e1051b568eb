"""`dynbench list`: the names that other commands accept."""

from __future__ import annotations

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
    """The models that come with dynbench: their papers, decision points, provenance and trained weights."""
    from dynbench import hooks
    from dynbench.models import MODELS
    from dynbench.paths import load_function

    trained, rows = _trained(), []
    for name, reference in MODELS.items():
        build = load_function(reference, Path.cwd())
        paper, provenance = hooks.origin(build)
        rows.append(
            {
                "name": name,
                "paper": paper,
                "decision_points": _decision_points(build),
                "provenance": provenance,
                "trained": ", ".join(sorted(trained.get(reference, ()))),
                "model": reference,
            }
        )
    return rows


def _trained() -> dict[str, set[str]]:
    """By model: the names of the weights that come with dynbench, from the workload files."""
    from dynbench.experiment import load_spec, workload_files

    found: dict[str, set[str]] = {}
    for name in workload_files():
        spec = load_spec(name)
        for part in (spec, *spec.baselines):
            files = [spec.folder / file for file in filter(None, (part.weights, *part.weights_by_part.values()))]
            found.setdefault(part.model, set()).update(file.stem for file in files if file.is_file())
    return found


def _decision_points(build: Callable[..., Any]) -> str:
    """The number of decision points of each kind, in a model built with its default arguments."""
    from collections import Counter

    from dynbench.cli.cost import without_memory
    from dynbench.dynamic import points

    try:
        net = without_memory(build)
    except Exception as e:  # noqa: BLE001  (such as a package that is not installed)
        return f"n/a: {e}"
    kinds = Counter(type(point).__name__ for point in points(net).values())
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "none"


def strategies() -> list[dict[str, Any]]:
    """The ways to execute decided work."""
    from dynbench.strategies import STRATEGIES

    return [{"name": name, "what": _first_line(kind)} for name, kind in STRATEGIES.items()]


def engines() -> list[dict[str, Any]]:
    """What executes the work between decision points, and whether it can on this machine's CPU."""
    from dynbench.engines import ENGINES

    refused = {name: engine.refuses("cpu") for name, engine in ENGINES.items()}
    return [
        {"name": name, "what": _first_line(engine), "on_cpu": refused[name] is None, "why_not": refused[name]}
        for name, engine in ENGINES.items()
    ]


def inputs() -> list[dict[str, Any]]:
    """The data sets and generators."""
    from dynbench.data import INPUTS

    return [{"name": name, "what": what} for name, what in INPUTS.items()]


def devices() -> list[dict[str, Any]]:
    """The devices of this machine, and why one cannot be measured."""
    from dynbench.devices import known_devices

    return [{"name": name, "available": why is None, "why_not": why} for name, why in known_devices()]


def targets() -> list[dict[str, Any]]:
    """The devices that `dynbench run --target` can measure on, described under `hardware/targets/`."""
    from dynbench.deploy.targets.profile import device_files, load_device

    profiles = {name: load_device(path) for name, path in device_files().items()}
    return [{"name": name, "what": p.title, "reached_by": p.target.kind} for name, p in profiles.items()]


def _first_line(part: object) -> str:
    return (part.__doc__ or "").strip().split("\n")[0]


KINDS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "workloads": workloads,
    "models": models,
    "strategies": strategies,
    "engines": engines,
    "inputs": inputs,
    "devices": devices,
    "targets": targets,
}


@click.command("list", short_help="List workloads, models, strategies and more.")
@click.argument("kind", type=click.Choice(list(KINDS)), required=False)
@json_option
def command(kind: str | None, as_json: bool) -> None:
    """List workloads, models, strategies, engines, inputs, devices or targets (default: all of them)."""
    if as_json:
        print_json(KINDS[kind]() if kind else {k: rows() for k, rows in KINDS.items()})
        return
    for k in [kind] if kind else KINDS:
        if kind is None:
            click.secho(f"\n{k}", bold=True)
        print_table(KINDS[k]())
