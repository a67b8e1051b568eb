"""What the command costs apart from measuring."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bench.paired import Row, ratio
from dynbench.store.schema import Interval

MOST_OVERHEAD_S = 60
MOST_TIMES_CLICK = 3


def default_suite(run: Path | None) -> Iterator[Row]:
    """Command time minus timed samples of a finished run."""
    name = "default suite: command minus timed samples, s"
    if run is None:
        yield Row(name, "not measured", note="give --run DIR, a run of the default suite")
        return
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    command, timed = manifest.get("command_s"), manifest.get("timed_s")
    if command is None or timed is None:
        yield Row(name, "not measured", note=f"{run} did not finish")
        return
    rest = command - timed
    note = f"{run}: {command:.1f} s, of which timed {timed:.1f} s"
    yield Row(name, Interval(value=rest, low=rest, high=rest), "<=", MOST_OVERHEAD_S, note)


def newest_run() -> Path | None:
    """The run that was begun last under runs/."""
    found = sorted(Path("runs").glob("*/manifest.json"), key=lambda p: p.parent.name)
    return found[-1].parent if found else None


def help_page(times: int) -> Iterator[Row]:
    """`dynbench --help` against importing click alone."""
    commands = {
        "help": [str(Path(sys.executable).with_name("dynbench")), "--help"],
        "click": [sys.executable, "-c", "import click"],
    }
    ns: dict[str, list[int]] = {name: [] for name in commands}
    for _ in range(times + 1):
        for name, command in commands.items():
            ns[name].append(_run(command))
    late = {name: np.array(values[1:], dtype=np.float64) for name, values in ns.items()}  # the first fills file caches
    share = ratio(late["help"], late["click"])
    note = f"{np.median(late['help']) / 1e6:.0f} ms and {np.median(late['click']) / 1e6:.0f} ms, {times} times"
    yield Row("dynbench --help / python -c 'import click'", share, "<=", MOST_TIMES_CLICK, note)


def _run(command: list[str]) -> int:
    before = time.perf_counter_ns()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter_ns() - before
