"""What a shell may complete: names that are known without importing anything heavy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from dynbench.names import DTYPES, ENGINE_NAMES, SOURCE_NAMES, STRATEGY_NAMES
from dynbench.paths import workload_files

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]
NVIDIA = Path("/proc/driver/nvidia/gpus")  # a folder per GPU


def one_of(names: Callable[[], Iterable[str]], *, or_file: bool = False) -> Complete:
    """Completes one name, or a path."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        found = [CompletionItem(name) for name in names() if name.startswith(incomplete)]
        return [*found, CompletionItem(incomplete, type="file")] if or_file else found

    return complete


def several_of(names: Callable[[], Iterable[str]]) -> Complete:
    """Completes the last of names that are separated by commas; none twice."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        before, comma, last = incomplete.rpartition(",")
        left = [name for name in names() if name.startswith(last) and name not in before.split(",")]
        return [CompletionItem(before + comma + name) for name in left]

    return complete


def _devices() -> list[str]:
    """'cpu', and what a driver shows."""
    gpus = len(list(NVIDIA.iterdir())) if NVIDIA.is_dir() else 0
    return ["cpu", *["cuda"] * bool(gpus), *(f"cuda:{n}" for n in range(gpus))]


workload = one_of(workload_files, or_file=True)
workload_or_all = one_of(lambda: [*workload_files(), "all"], or_file=True)
device = one_of(_devices)
dtype = one_of(lambda: DTYPES)
strategy = one_of(lambda: STRATEGY_NAMES)
strategies = several_of(lambda: STRATEGY_NAMES)
engines = several_of(lambda: ENGINE_NAMES)
engine = one_of(lambda: ENGINE_NAMES)
decision = one_of(lambda: SOURCE_NAMES)
decisions = several_of(lambda: SOURCE_NAMES)
