"""`dynbench run`: measure, then write the report."""

from __future__ import annotations

import contextlib
import datetime
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dynbench.cli import completion, on_devices
from dynbench.cli.common import (
    RUNS,
    SEED,
    Finite,
    Names,
    Sizes,
    data_option,
    device_option,
    echo,
    flat,
    print_json,
    print_table,
    threads_option,
)
from dynbench.errors import UserError

if TYPE_CHECKING:
    from dynbench.experiment import Plan, Result

INTERRUPTED, TERMINATED = 130, 143  # what a shell says of a command ended by Ctrl-C or by SIGTERM
MOST_REASONS = 5  # of failed cells, in the last lines; the report has all of them


class _KeepsArguments(click.Command):
    """Remembers its command line, so that a run can say how it was asked for."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["arguments"] = list(args)
        return super().parse_args(ctx, args)


@click.command("run", cls=_KeepsArguments, short_help="Measure, and write a report.")
@click.argument("workloads", nargs=-1, metavar="[WORKLOAD|FILE.toml|all]...", shell_complete=completion.workload_or_all)
@device_option
@click.option(
    "--strategy",
    "strategies",
    type=Names(),
    multiple=True,
    shell_complete=completion.strategies,
    help="Only these: names of `dynbench list strategies`, your own as FILE.py:NAME, or auto: the fastest way only.",
)
@click.option("--batch", "batch_sizes", type=Sizes(), multiple=True, help="Batch sizes, such as 1,8,32.")
@click.option(
    "--decisions",
    type=Names(),
    multiple=True,
    shell_complete=completion.decisions,
    help="learned, synthetic, published or replay:TRACE (file without suffix).",
)
@click.option(
    "--dtype",
    metavar="NAME",
    shell_complete=completion.dtype,
    help="Cast every network to float32, float64, bfloat16 or float16.  [default: as they are built]",
)
@click.option(
    "--engine",
    "engines",
    type=Names(),
    multiple=True,
    shell_complete=completion.engines,
    help="What executes the regions; of several, every arm runs under each.  [default: eager, and whatever is fastest]",
)
@click.option(
    "--as-written",
    is_flag=True,
    help="Measure networks as they are written only; do not look for the fastest way to run each.",
)
@click.option(
    "--deployed-sweep",
    is_flag=True,
    help="Measure networks in their fastest way in keep-rate sweeps, too.",
)
@click.option(
    "--controls",
    type=click.Choice(["none", "default", "all"]),
    default="default",
    show_default=True,
    help="Arms with a part left out, which show where the saving goes: of the strategy that is preferred and of the "
    "fastest way, at the largest batch size; or of every strategy at every batch size.",
)
@click.option("--load", default="closed loop", show_default=True, metavar="NAME", help="How batches are issued.")
@click.option(
    "--target",
    "targets",
    multiple=True,
    default=["local"],
    metavar="NAME",
    help="A device, of which several may be given, as FILE.toml or a name of `dynbench list targets`: each runs the "
    "deployed networks at batch 1. Or where the measuring process runs: this machine, or a launcher as FILE.py:NAME.  "
    "[default: local]",
)
@click.option(
    "--devices",
    "browsers",
    type=click.IntRange(min=1),
    metavar="N",
    help="With --target browser: end when so many have finished.  [default: at Ctrl-C]",
)
@click.option(
    "--sustained",
    "sustained_s",
    type=Finite(min=0, max=3600),
    metavar="S",
    help="On devices: seconds of load for each network after its rounds; energy needs 10.",
)
@threads_option
@click.option(
    "--time-limit",
    "time_limit_s",
    type=Finite(min=0, min_open=True),
    metavar="S",
    help="Seconds of sampling at most per group of compared cells.",
)
@click.option(
    "--precision",
    type=Finite(0, 100, min_open=True, max_open=True),
    metavar="PERCENT",
    help="A group is done when its speed-ups are known this well (half the 95 % interval).",
)
@click.option(
    "--seed",
    type=SEED,
    default=0,
    show_default=True,
    metavar="N",
    help="Of the stream, the order and random decisions.",
)
@click.option(
    "--scaling",
    is_flag=True,
    help="Also the time of every region at every number of items, in place: for `dynbench whatif` and predictions.",
)
@data_option
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", help="Run directory.  [default: runs/DATE-TIME-DEVICE]"
)
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Go on with the run in DIR, as it was asked for; give nothing else.",
)
@click.option(
    "--retry-failed", is_flag=True, help="With --resume: measure again what failed, such as for want of memory."
)
@click.option(
    "--hang-s",
    type=Finite(min=0, min_open=True),
    metavar="S",
    help="Without a sign of life for so long, what is measured counts as hanging.  [default: 300]",
)
@click.option("--history", metavar="PATH|URL", help="Record the run here when it ends; see `dynbench history`.")
@click.option(
    "--dry-run", is_flag=True, help="Show what would be measured, what is refused and why, and how long it takes."
)
@click.option("--quiet", is_flag=True, help="No progress, and at the end only where the report is.")
@click.option("--json", "as_json", is_flag=True, help="No progress, and at the end one JSON document.")
@click.pass_context
def command(ctx: click.Context, resume: Path | None, retry_failed: bool, **given: Any) -> None:
    """Measure workloads under every strategy and write a report.

    Without a workload: the default suite, which needs no download and takes about 4 minutes on 2 cores; `all` is
    every workload that comes along. Ctrl-C ends the round, keeps what is measured and still writes the report.
    """
    arguments, said = ctx.meta["arguments"], ctx
    if resume is not None:
        _only_resume(ctx)
        arguments = _arguments_of(resume)
        said = ctx.command.make_context("run", list(arguments))
        given = {name: said.params[name] for name in given} | {"out": resume}
    elif retry_failed:
        raise UserError("--retry-failed needs --resume DIR, the run whose failures are to be measured again")
    measure = _run_on_devices if on_devices.only_devices(said, given["targets"]) else _run
    ctx.exit(measure(arguments, resume is not None, retry_failed, **given))


def _only_resume(ctx: click.Context) -> None:
    said = [name for name in ctx.params if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE]
    if set(said) - {"retry_failed"} != {"resume"}:
        raise UserError(
            "--resume goes on with a run as it was asked for; give no workloads and no other option with it"
        )


def _arguments_of(folder: Path) -> list[str]:
    from dynbench.store.run import Run

    return Run.open(folder).manifest.command[2:]


def _run_on_devices(
    arguments: list[str],
    resume: bool,
    retry_failed: bool,
    history: str | None,
    quiet: bool,
    as_json: bool,
    batch_sizes: tuple[list[int], ...],
    **given: Any,
) -> int:
    if history is not None:
        _check_history(history)
    meant = {name: value for name, value in given.items() if name in on_devices.MEANT}
    command, sizes = ["dynbench", "run", *arguments], flat(batch_sizes)
    silent = quiet or as_json
    out, result = on_devices.run(command, resume, retry_failed, batch_sizes=sizes, quiet=silent, **meant)
    _conclude(out, result, history, quiet=quiet, as_json=as_json)
    return _code(result)


def _code(result: Result) -> int:
    """The exit code, after it was said what could not be measured."""
    for name, reason in result.unmeasured.items():
        echo(f"nothing could be measured of {name}: {reason}", err=True)
    return INTERRUPTED if result.interrupted else int(bool(result.failures or result.unmeasured))


def _run(
    arguments: list[str],
    resume: bool,
    retry_failed: bool,
    workloads: tuple[str, ...],
    strategies: tuple[list[str], ...],
    engines: tuple[list[str], ...],
    as_written: bool,
    batch_sizes: tuple[list[int], ...],
    decisions: tuple[list[str], ...],
    device: str,
    precision: float | None,
    time_limit_s: float | None,
    hang_s: float | None,
    out: Path | None,
    dry_run: bool,
    history: str | None,
    quiet: bool,
    as_json: bool,
    targets: tuple[str, ...],
    browsers: None,
    sustained_s: None,
    **others: Any,
) -> int:
    from dynbench import devices
    from dynbench.cli.progress import Terminal
    from dynbench.experiment import Observer, Options, Terminated, chosen_workloads, run_experiment

    limits = {"time_limit_s": time_limit_s, "precision": None if precision is None else precision / 100}
    options = Options(
        device=devices.device(device).name,
        strategies=flat(strategies),
        engines=flat(engines) or ["eager"],
        deployed=not (as_written or engines),
        batch_sizes=flat(batch_sizes),
        decisions=flat(decisions),
        target=targets[0],
        **{k: v for k, v in limits.items() if v is not None},
        **others,
    )
    if options.deployed_sweep and not options.deployed:
        raise UserError("--deployed-sweep needs networks in their fastest way: leave out --as-written and --engine")
    out = out or RUNS / f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{options.device.replace(':', '')}"
    if history is not None and not dry_run:
        _check_history(history)
    try:
        with contextlib.nullcontext(Observer()) if quiet or as_json else Terminal() as observer:
            result = run_experiment(
                chosen_workloads(workloads),
                options,
                out,
                command=["dynbench", "run", *arguments],
                resume=resume,
                retry_failed=retry_failed,
                hang_s=hang_s,
                dry_run=dry_run,
                observer=observer,
            )
    except Terminated as e:
        echo(f"Error: {e}", err=True)
        return TERMINATED
    if dry_run:
        if not result.plan.infos:
            raise UserError("; ".join(result.failures.values()))
        _print_plan(result.plan)
    else:
        _conclude(out, result, history, quiet=quiet, as_json=as_json)
    return _code(result)


def _conclude(out: Path, result: Result, history: str | None, *, quiet: bool, as_json: bool) -> None:
    """Writes the report, records the run, and says what was found."""
    from dynbench.cli.report import write

    found = write(out, quiet=quiet or as_json)
    if history is not None:
        _record(out, history, quiet=quiet or as_json)
    if as_json:
        print_json({**found, "failed": {**result.failures, **result.unmeasured}, "interrupted": result.interrupted})
    elif quiet:
        echo(out)
    else:
        _print_outcome(out)


def _print_outcome(out: Path) -> None:
    """How many cells were measured, refused and failed, and why; and which accuracies are missing."""
    from dynbench.store.run import Run
    from dynbench.unavailable import Unavailable

    run = Run.open(out)
    cells = Counter[str](cell.status for cell in run.cells)
    words = {"ok": "measured", "failed": "failed", "interrupted": "interrupted", "refused": "refused"}
    echo(f"cells: {', '.join(f'{cells[status]} {word}' for status, word in words.items() if cells[status]) or 'none'}")
    failed = [(cell.workload, cell.reason) for cell in run.cells if cell.status == "failed"]
    missing = [
        (name, accuracy.value.unavailable)
        for name, info in run.manifest.workloads.items()
        for accuracy in info.accuracies.values()
        if isinstance(accuracy.value, Unavailable)
    ]
    for (workload, reason), number in Counter(failed).most_common(MOST_REASONS):
        echo(f"{number} failed of {workload}: {reason}")
    if len(set(failed)) > MOST_REASONS:
        echo("other reasons stand in the report")
    for (workload, reason), number in Counter(missing).items():
        echo(f"accuracy of {number} network{'s' if number > 1 else ''} of {workload} not measured: {reason}")


def _check_history(address: str) -> None:
    """Before anything is measured: can the run be recorded when it ends?"""
    from dynbench.store.history import History, has_password

    if has_password(address):
        raise UserError(
            "--history with a password would be stored with the run, as part of its command; give the password by "
            "PGPASSWORD or ~/.pgpass"
        )
    History.open(address, create=True)


def _record(out: Path, address: str, *, quiet: bool) -> None:
    from dynbench.store.history import record

    done = record(out, address)
    if not quiet:
        echo(f"history: {done.added + done.changed} cells recorded in {address}")


def _print_plan(plan: Plan) -> None:
    rows = []
    for g in plan.groups:
        measured = [c.arm.title for c in g.cells if c.status != "refused"]
        rows.append(
            {
                "workload": g.workload,
                "decisions": g.label,
                "batch": g.batch_size,
                "measured": "; ".join(measured),
                "at most s": round(g.estimate_s),
            }
        )
    print_table(rows)
    refused = {(c.workload, c.arm.title): c.reason for g in plan.groups for c in g.refused}
    for (workload, name), reason in refused.items():
        echo(f"n/a: {name} on {workload}: {reason}")
    for workload, reason in plan.failures.items():
        echo(f"left out: {workload}: {reason}")
    echo(f"{len(plan.groups)} groups, at most {plan.estimate_s / 60:.1f} minutes of sampling; nothing was measured")
