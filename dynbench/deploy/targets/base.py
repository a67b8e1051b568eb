"""What every target is: a place that takes a job and gives a result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from dynbench.errors import DynbenchError


class Lost(DynbenchError):
    """The device vanished or did not finish in time; nothing is left running there as far as it can be reached."""


class Failed(DynbenchError):
    """The agent says that it could not measure; the message is its reason."""


@dataclass(frozen=True)
class Step:
    """One step of `dynbench doctor --target NAME`.

    Attributes:
        name: what was looked at.
        level: 'ok', 'note' (good to know) or 'missing' (it will not work).
        text: what was found.
        remedy: what to do; empty where nothing needs to be done.
    """

    name: str
    level: Literal["ok", "note", "missing"]
    text: str
    remedy: str = ""


class Target(Protocol):
    """A place where jobs are measured. Completion is proved by a result and its hash, never by an exit status."""

    @property
    def name(self) -> str:
        """Unique among targets."""
        ...

    def facts(self) -> dict[str, Any]:
        """What is known of it, for the manifest of a run."""
        ...

    def doctor(self) -> Iterator[Step]:
        """Step by step: what works, what is missing, and the remedy."""
        ...

    def run(self, job: Path, agent: str, *, deadline_s: float, progress: Callable[[str], None]) -> Path:
        """Measures a job.

        Args:
            job: its folder.
            agent: 'python', 'native' or 'browser'.
            deadline_s: after which the device counts as lost.
            progress: is told what happens.

        Returns:
            A `result.json` that was fetched and verified.

        Raises:
            Lost: the device vanished, or did not finish in time.
            Failed: the agent says that it could not measure.
        """
        ...
