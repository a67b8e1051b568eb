"""`dynbench whatif`: what each piece of hardware or runtime would win, as the cost model predicts it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dynbench.cli.common import echo, json_option, newest_run, print_json, print_table

if TYPE_CHECKING:
    from dynbench.analysis.cost_model import Levers, Model
    from dynbench.analysis.whatif import WhatIf
    from dynbench.store.scaling import Scaling


@click.command("whatif", short_help="What would each piece of hardware or runtime win?")
@click.argument("folder", required=False, type=click.Path(path_type=Path), metavar="[RUN]")
@click.option("--no-wait", is_flag=True, help="The host never waits for decisions.")
@click.option("--no-launch", is_flag=True, help="A call of an operator takes no time of its own.")
@click.option("--free-gather", is_flag=True, help="Items are gathered and put back in no time.")
@click.option("--perfect-small-batches", is_flag=True, help="n items take n / B of the time of a whole batch B.")
@click.option("--known-ahead", is_flag=True, help="Nothing is decided; only to be compared with that control.")
@click.option("--device", metavar="PROFILE", help="On another device: a profile that `dynbench calibrate` wrote.")
@click.option(
    "--calibration",
    metavar="PROFILE",
    help="The profile of the run's own device, to set beside --device.  [default: yours of that name]",
)
@json_option
def command(folder: Path | None, device: str | None, calibration: str | None, as_json: bool, **asked: bool) -> None:
    """Sets terms of the cost model to zero and says what that would win; everything here is predicted.

    RUN is a run with --scaling; the newest under runs/ if none is named. Without options: every lever. Where the run
    has a control that leaves out the same, its measured ratio stands beside the prediction.
    """
    from dynbench.analysis.cost_model import errors, model_of
    from dynbench.analysis.whatif import LEVERS, largest, what_if
    from dynbench.errors import UserError
    from dynbench.store.run import Run
    from dynbench.store.scaling import read_scaling

    run = Run.open(folder or newest_run())
    scalings = read_scaling(run.path)
    if not scalings:
        raise UserError(f"{run.path} has no T(n) to predict from; measure it with `dynbench run --scaling`")
    if calibration is not None and device is None:
        raise UserError("--calibration is set beside --device PROFILE; give that as well")
    levers = [name for name in LEVERS if asked[name.replace(" ", "_")]] or list(LEVERS)
    models = [model_of(run.cells, scaling) for scaling in scalings]
    rows = [
        row
        for model in models
        for row in what_if(model, run.cells, levers, _elsewhere(device, calibration, model.scaling))
    ]
    judged = {model.scaling.workload: errors(model.predictions) for model in models}
    if as_json:
        print_json(
            {
                "predicted": [_json(row) for row in rows],
                "largest": largest(rows),
                "model": {name: e if isinstance(e, str) else e.__dict__ for name, e in judged.items()},
                "break_even": _break_even(models, run),
            }
        )
        return
    print_table([_row(row) for row in rows])
    echo(largest(rows))
    for line in _break_even(models, run):
        echo(f"Predicted break-even keep-rate of {line['strategy']} on {line['workload']}: {line['in_words']}.")
    for name, e in judged.items():
        echo(f"{name}: {e if isinstance(e, str) else _judged(e)}.")


def _judged(e: Any) -> str:
    from dynbench.analysis.formatting import percent

    return (
        f"on {e.cells} held-out cells the model is off by {percent(e.median, 1)} (median), 90 % within "
        f"{percent(e.p90)}; most by the term {e.worst!r}"
    )


def _elsewhere(device: str | None, calibration: str | None, scaling: Scaling) -> Levers | None:
    import re

    from dynbench.analysis.whatif import on_another
    from dynbench.devices.profiles import Profile, calibrated, calibration_of
    from dynbench.errors import UserError

    if device is None:
        return None
    there = calibrated(device)
    here = calibration_of(scaling.machine, scaling.threads) if calibration is None else calibrated(calibration)
    if here is None or here.calibration is None:
        raise UserError(
            f"there is no calibrated profile of the run's own device, {scaling.machine} with {scaling.threads} "
            "threads, to set --device beside: `dynbench calibrate` there, and give the file by --calibration"
        )
    if not re.fullmatch(here.match, scaling.machine) or here.calibration.threads != scaling.threads:
        raise UserError(
            f"--calibration {calibration}: it is of {here.name} with {here.calibration.threads} threads; the run was "
            f"measured on {scaling.machine} with {scaling.threads}"
        )

    def figures(profile: Profile) -> dict[str, float]:
        assert profile.calibration is not None
        return {name: figure.value for name, figure in profile.calibration.figures.items()}

    return on_another(figures(here), figures(there), scaling.constants)


def _row(row: WhatIf) -> dict[str, Any]:
    from dynbench.analysis.formatting import significant, times

    shown: dict[str, Any] = {
        "workload": row.workload,
        "decisions": row.label,
        "batch": row.batch_size,
        "arm": row.arm.title,
        "ms/item": significant(row.item_ms),
        "predicted": significant(row.predicted_ms),
    }
    for name, win in row.wins.items():
        control = f" (control {times(row.by_control[name])})" if name in row.by_control else ""
        shown[f"{name}, predicted"] = times(win) + control
    shown["all, predicted"] = times(row.together)
    if row.elsewhere is not None:
        shown["there, predicted"] = times(row.elsewhere)
    return shown | {"largest": row.largest or "none"}


def _json(row: WhatIf) -> dict[str, Any]:
    return {
        "workload": row.workload,
        "decisions": row.label,
        "batch_size": row.batch_size,
        "arm": row.arm.title,
        "measured_item_ms": row.item_ms,
        "predicted_item_ms": row.predicted_ms,
        "predicted_wins": row.wins,
        "measured_by_control": row.by_control,
        "predicted_together": row.together,
        "predicted_elsewhere": row.elsewhere,
        "largest": row.largest,
    }


def _break_even(models: list[Model], run: Any) -> list[dict[str, Any]]:
    from dynbench.analysis.cost_model import break_even, primary_of

    return [
        {
            "workload": model.scaling.workload,
            "strategy": line.strategy,
            "baseline": line.baseline,
            "rates": line.rates,
            "in_words": line.in_words,
        }
        for model in models
        if (primary := primary_of(run.cells, model.scaling.workload)) is not None
        for line in break_even(model, primary)
    ]
