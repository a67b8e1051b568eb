"""`python -m bench.gpu.energy RUN..`: joules per item of runs, by the device's counter; exit code 1 without any."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from tabulate import tabulate

from dynbench.analysis.formatting import significant
from dynbench.errors import DynbenchError
from dynbench.store.run import Run
from dynbench.store.schema import Cell
from dynbench.unavailable import Unavailable

HEADERS = ("workload", "batch", "arm", "deployed", "mJ/item", "of it idle", "window s", "parts", "counter")


def rows(run: Run) -> Iterator[tuple[str | float, ...]]:
    """A row for each cell whose energy was measured."""
    for cell in run.cells:
        energy = cell.energy
        if energy is None or not isinstance(energy.item_j, float):
            continue
        idle = "unknown" if isinstance(energy.idle_share, Unavailable) else f"{energy.idle_share:.0%}"
        window = energy.window_s if isinstance(energy.window_s, float) else 0.0
        yield (
            *(cell.workload, cell.batch_size, cell.arm.title, "yes" if cell.deployed else ""),
            *(significant(1e3 * energy.item_j), idle, f"{window:.1f}", len(energy.parts_j), energy.sensor or ""),
        )


def why_not(cells: list[Cell]) -> set[str]:
    """The reasons why energy was not measured."""
    found = (c.energy.item_j for c in cells if c.energy is not None)
    return {item.unavailable for item in found if isinstance(item, Unavailable)}


def main() -> int:
    """Prints the table."""
    found, reasons = [], set[str]()
    for name in sys.argv[1:]:
        try:
            run = Run.open(Path(name))
        except DynbenchError as e:
            reasons.add(str(e))
            continue
        found += list(rows(run))
        reasons |= why_not(run.cells)
    if found:
        print(tabulate(found, HEADERS))
    for reason in sorted(reasons):
        print(f"not measured: {reason}")
    return int(not found)


if __name__ == "__main__":
    sys.exit(main())
