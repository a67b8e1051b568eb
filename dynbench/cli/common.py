"""What several commands share: parameter types, options and printing."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from dynbench.cli import completion
from dynbench.escape import terminal

RUNS = Path("runs")
MOST_THREADS = 1024
SEED = click.IntRange(0, 2**63 - 1)
COLUMN_WIDTH = 44  # characters; longer texts are wrapped


class Names(click.ParamType):
    """Comma-separated names; the option may be repeated."""

    name = "NAME,.."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        """Splits; empty names are an error."""
        names = [part.strip() for part in str(value).split(",")]
        if not all(names):
            self.fail(f"{value!r} has an empty name; names are separated by single commas")
        return names


class Finite(click.FloatRange):
    """A number in a range; neither NaN nor infinite."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Checks."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number")
        return number


class Sizes(click.ParamType):
    """Comma-separated positive integers."""

    name = "N,.."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        """Splits and checks."""
        try:
            sizes = [int(part) for part in str(value).split(",")]
        except ValueError:
            sizes = [0]
        if min(sizes) < 1:
            self.fail(f"{value!r} is not a list of sizes: whole numbers from 1, separated by commas, such as 1,8,32")
        return sizes


def flat(given: Sequence[list[Any]]) -> list[Any] | None:
    """All values of an option that may be repeated, without duplicates; None: the option was not given."""
    return list(dict.fromkeys(part for parts in given for part in parts)) or None


def newest_run() -> Path:
    """The run directory under `runs/` that was started last.

    Raises:
        click.UsageError: there is none.
    """
    found = sorted(RUNS.glob("*/manifest.json"), key=lambda p: p.parent.name)
    if not found:
        raise click.UsageError("there is no run under runs/ yet: name a run directory, or begin with `dynbench run`")
    return found[-1].parent


def echo(*lines: object, err: bool = False) -> None:
    """Prints lines that may hold names, paths or messages from outside: a line break in one of them begins no line."""
    click.echo("\n".join(in_a_line(line) for line in lines), err=err)


def silence_stdout() -> None:
    """Makes standard output the null device: it is closed or full, and Python flushes it again at its end."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def in_a_line(text: object) -> str:
    """A text from outside as a line of a terminal."""
    return terminal(re.sub(r"\s*\n\s*", " ", str(text)))


def print_json(value: Any) -> None:
    """Prints a value as JSON."""
    click.echo(json.dumps(value, indent=2))


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Prints rows as a table with their keys as headers; long texts are wrapped, missing values are empty."""
    from tabulate import tabulate

    texts = [{k.replace("_", " "): _shown(v) for k, v in row.items()} for row in rows]
    # Only columns that need it, because tabulate 0.10 fails on numbers like 12,501,632 in a wrapped column.
    long = {key for text in texts for key, value in text.items() if len(str(value)) > COLUMN_WIDTH}
    widths = [COLUMN_WIDTH if key in long else None for key in (texts or [{}])[0]]
    click.echo(tabulate(texts, headers="keys", maxcolwidths=widths))


def _shown(value: Any) -> Any:
    return "" if value is None else terminal(value) if isinstance(value, str) else value


device_option = click.option(
    "--device",
    default="cpu",
    show_default=True,
    metavar="cpu|cuda|cuda:N",
    shell_complete=completion.device,
    help="Where to run.",
)
threads_option = click.option(
    "--threads", type=click.IntRange(1, MOST_THREADS), default=1, show_default=True, metavar="N", help="CPU threads."
)
data_option = click.option(
    "--data",
    "data_dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of a data set that does not come with dynbench, such as CIFAR-10.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
