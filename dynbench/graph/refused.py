"""What no graph can be made of."""

from __future__ import annotations

from dynbench.dynamic import Program
from dynbench.errors import DynbenchError


class CannotTrace(DynbenchError):
    """A model or point that no graph can be made of; the message says which and why, in one sentence."""


def scheduled_on_the_host(point: Program) -> CannotTrace:
    """The error for a program."""
    return CannotTrace(f"Program {point.name!r} is scheduled on the host, from layouts that a graph does not know")
