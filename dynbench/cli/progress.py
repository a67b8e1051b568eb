"""What a user sees while a run goes on: a bar and a line per finished group, on stderr."""

from __future__ import annotations

from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from dynbench.experiment import Group, Observer, Plan
from dynbench.store.schema import Cell


class Terminal(Observer):
    """A context manager that shows a run."""

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
        """The bar gets its length."""
        self._progress.update(self._task, total=len(plan.groups), description="measuring")

    def group(self, group: Group) -> None:
        """The bar says what is measured."""
        self._progress.update(self._task, description=_title(group))

    def finished(self, group: Group, cells: list[Cell]) -> None:
        """A line with the speed-ups, and the bar advances."""
        found = [_result(c) for c in cells if c.arm == "strategy"]
        self.say(f"{_title(group)}: {', '.join(found) or 'nothing measured'}")
        self._progress.advance(self._task)

    def event(self, group: Group, event: dict[str, Any]) -> None:
        """The bar says how many rounds are done."""
        if event["event"] == "round":
            self._progress.update(self._task, description=f"{_title(group)}, round {event['n']}")

    def say(self, text: str) -> None:
        """A line above the bar."""
        self._progress.console.print(text, markup=False, soft_wrap=True)


def _title(group: Group) -> str:
    return f"{group.workload}, {group.label}, batch {group.batch_size}"


def _result(cell: Cell) -> str:
    primary = next((s for s in cell.speedups if s.primary), None)
    return f"{cell.name} {cell.status}" if primary is None else f"{cell.name} {primary.value:.2f}x"
