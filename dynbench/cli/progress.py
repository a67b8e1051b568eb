"""Progress of a run on stderr: a bar, and a line per finished group."""

from __future__ import annotations

from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from dynbench.analysis.formatting import way_in_words
from dynbench.analysis.gap import deployed_speedup, primary_speedup
from dynbench.escape import rich, terminal
from dynbench.experiment import Group, Observer, Plan
from dynbench.store.schema import Cell


class Terminal(Observer):
    """A context manager that shows the progress of a run."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=Console(stderr=True, highlight=False), transient=True)
        self._task = self._progress.add_task("planning", total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def planned(self, plan: Plan) -> None:
        """Sets the length of the bar."""
        self._progress.update(self._task, total=len(plan.groups), description="measuring")

    def group(self, group: Group) -> None:
        """Shows which group is measured."""
        self._progress.update(self._task, description=rich(_title(group)))

    def finished(self, group: Group, cells: list[Cell]) -> None:
        """Prints the speed-ups of the group and advances the bar."""
        found = [
            _result(c) for c in sorted(cells, key=lambda c: not c.deployed) if c.arm.kind in ("strategy", "opaque")
        ]
        self.say(f"{_title(group)}: {', '.join(found) or 'nothing measured'}")
        self._progress.advance(self._task)

    def event(self, group: Group, event: dict[str, Any]) -> None:
        """Shows the number of finished rounds."""
        if event["event"] == "round":
            self._progress.update(self._task, description=rich(f"{_title(group)}, round {event['n']}"))

    def waiting(self, on: str, seconds: int) -> None:
        """Shows that there is no answer, and from what."""
        self._progress.update(self._task, description=rich(f"no answer from {on} for {seconds} s"))

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        self._progress.console.print(terminal(text), markup=False, soft_wrap=True)


def _title(group: Group) -> str:
    return f"{group.workload}, {group.label}, batch {group.batch_size}"


def _result(cell: Cell) -> str:
    """'deployed 1.44x (compaction as one ONNX Runtime graph)', 'compaction 1.43x', 'cascading refused'."""
    if cell.status != "ok":  # a failed one may have been timed before its answer was found to be wrong
        return f"{cell.arm.title} {cell.status}"
    deployed, written = deployed_speedup(cell), primary_speedup(cell)
    parts = []
    if deployed is not None:
        parts.append(f"deployed {deployed.value:.2f}x ({cell.arm.strategy} {way_in_words(cell.arm)})")
    if written is not None:
        parts.append(f"{cell.arm.title} {written.value:.2f}x")
    return ", ".join(parts) or f"{cell.arm.title} {cell.status}"
