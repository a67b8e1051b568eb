"""`dynbench check`: the gate for CI."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dynbench.cli import completion
from dynbench.cli.common import (
    Finite,
    Names,
    Sizes,
    data_option,
    device_option,
    echo,
    flat,
    silence_stdout,
    threads_option,
)
from dynbench.errors import DynbenchError, UserError

if TYPE_CHECKING:
    from dynbench.store.gate import Gate

BAD_USE, CANNOT_TELL = 2, 3


def _file(option: str, what: str) -> Callable[..., Any]:
    return click.option(option, type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help=what)


@click.command("check", short_help="The gate for CI: is this change slower than its base?")
@click.argument("workload", metavar="WORKLOAD|FILE.toml", shell_complete=completion.workload)
@click.option("--base", metavar="REVISION", help="What to compare with, such as origin/main: measured in the same job.")
@_file("--baseline", "Instead of a base: what --save wrote; compared through a static network that is measured again.")
@_file("--save", "Write a baseline file; nothing is judged.")
@click.option(
    "--strategy",
    "strategies",
    type=Names(),
    multiple=True,
    shell_complete=completion.strategies,
    help="[default: the first of cascading, compaction, batch_union, masking that fits]",
)
@click.option("--batch", "batch_sizes", type=Sizes(), multiple=True, help="[default: the largest of the workload]")
@device_option
@threads_option
@click.option(
    "--time",
    "seconds",
    type=Finite(5),
    default=60.0,
    show_default=True,
    metavar="S",
    help="Seconds for everything.",
)
@click.option(
    "--matters",
    type=Finite(0, min_open=True),
    default=3.0,
    show_default=True,
    metavar="PERCENT",
    help="Smallest change of time that matters; smaller ones may be called SAME.",
)
@click.option(
    "--accept", type=Names(), multiple=True, help="What may change without failing: answers, decisions, work."
)
@click.option(
    "--same-environment",
    is_flag=True,
    help="Run the base with the installed packages, also where its dependency files differ.",
)
@data_option
@_file("--markdown", "Write the summary there; in a GitHub Action it is also put on the job's page.")
@_file("--junit", "Write JUnit XML.")
@_file("--json", "Write everything as JSON.")
@_file("--github-action-benchmark", "Write JSON for github-action-benchmark (customSmallerIsBetter).")
@_file("--bencher", "Write JSON in Bencher's metric format.")
@click.option("--history", metavar="PATH|URL", help="Record what was found here; see `dynbench history checks`.")
def command(
    workload: str,
    base: str | None,
    baseline: Path | None,
    save: Path | None,
    strategies: tuple[list[str], ...],
    batch_sizes: tuple[list[int], ...],
    device: str,
    threads: int,
    seconds: float,
    matters: float,
    accept: tuple[list[str], ...],
    same_environment: bool,
    data_dir: Path | None,
    history: str | None,
    **outputs: Path | None,
) -> None:
    """Measure WORKLOAD as it is here (the head) against a base revision, both at once, and say which is slower.

    The base is checked out beside the working tree; each revision runs in processes of its own, with its own source
    first on the path, in turns of a few batches. The base takes part twice, which shows how small a difference this
    machine can resolve now. A difference is reported only if a second series of fresh processes shows it, too.
    Answers, decisions, FLOPs and operator calls must be the same, unless accepted.

    \b
    Exit code 0: no regression
              1: a confirmed one: slower, other answers or decisions, or more work
              2: bad use
              3: could not tell
    """  # noqa: D301
    from dynbench import devices
    from dynbench.experiment.spec import Options, load_spec
    from dynbench.files import make_place
    from dynbench.gate import check as gate_check
    from dynbench.gate.trees import CannotTell
    from dynbench.store.history import History

    accepted = flat(accept) or []
    _check_use(base, baseline, save, accepted, history)
    options = Options(
        device=devices.device(device).name,
        threads=threads,
        strategies=flat(strategies),
        batch_sizes=flat(batch_sizes) or [max(load_spec(workload).run.batch_sizes)],
        data_dir=data_dir,
    )
    for file in filter(None, (save, *outputs.values())):  # before anything is measured
        make_place(file)
    database = None if history is None else History.open(history, create=True)
    try:
        gate = gate_check.check(
            workload,
            options,
            base=base,
            baseline=baseline,
            save=save,
            seconds=seconds,
            matters=matters / 100,
            accept=accepted,
            same_environment=same_environment,
            say=lambda text: echo(text, err=True),
        )
    except CannotTell as e:
        echo(f"Could not tell: {' '.join(str(e).split())}", err=True)
        raise click.exceptions.Exit(CANNOT_TELL) from e
    if save is not None:
        echo(f"baseline: {save}")
        return
    failed: list[str] = []
    _write(gate, outputs, failed)
    if database is not None:
        with _told(failed):
            database.record_check(gate, load_spec(workload).file.parent)
    if code := gate.exit_code or (BAD_USE if failed else 0):  # the verdict comes first
        raise click.exceptions.Exit(code)


def _check_use(
    base: str | None, baseline: Path | None, save: Path | None, accepted: list[str], history: str | None
) -> None:
    from dynbench.gate.exact import ACCEPTED

    if unknown := next((a for a in accepted if a not in ACCEPTED), None):
        raise click.UsageError(f"--accept {unknown}: what may change is {', '.join(ACCEPTED)}")
    if sum(given is not None for given in (base, baseline, save)) != 1:
        raise click.UsageError("give one of --base REVISION, --baseline FILE and --save FILE")
    if save is not None and history is not None:
        raise click.UsageError("--save judges nothing, so there is nothing for --history")


@contextlib.contextmanager
def _told(failed: list[str]) -> Iterator[None]:
    """Tells what cannot be written and goes on: the verdict stands."""
    try:
        yield
    except Exception as e:  # noqa: BLE001 (whatever it is, a verdict that took a minute is not lost for it)
        failed.append(f"{e}" if isinstance(e, DynbenchError) else f"{type(e).__name__}: {e}")
        echo(f"Error: {' '.join(failed[-1].split())}", err=True)


def _write(gate: Gate, outputs: dict[str, Path | None], failed: list[str]) -> None:
    """Prints the summary and writes the files that were asked for; adds what cannot be written to `failed`."""
    from dynbench.files import append_text, write_text
    from dynbench.report import gate as forms

    renderers: dict[str, Callable[[Gate], str]] = {
        "markdown": forms.to_markdown,
        "junit": forms.to_junit,
        "json": lambda gate: gate.model_dump_json(indent=1) + "\n",
        "github_action_benchmark": forms.to_github_action_benchmark,
        "bencher": forms.to_bencher,
    }
    with _told(failed):
        _print(forms.to_markdown(gate))
    for name, render in renderers.items():
        if (file := outputs[name]) is not None:
            with _told(failed):
                write_text(file, render(gate))
    if page := os.environ.get("GITHUB_STEP_SUMMARY"):
        with _told(failed):
            append_text(Path(page), forms.to_markdown(gate))


def _print(summary: str) -> None:
    """Prints the summary.

    Raises:
        UserError: standard output is closed or full; from then on it is the null device, for Python flushes it again.
    """
    try:
        click.echo(summary, nl=False)
    except OSError as e:
        silence_stdout()
        raise UserError(f"cannot print the summary: {e.strerror or e}") from e
