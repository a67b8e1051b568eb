"""Where a cell runs: all that measuring asks of a device."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import Any, Protocol


class Event(Protocol):
    """A mark in a device's queue of work; `torch.cuda.Event` is one."""

    def record(self) -> None:
        """Puts the mark behind all work issued so far."""

    def elapsed_time(self, end: Any) -> float:
        """Milliseconds of device time from this mark to `end`; both must have been passed."""


class EnergySensor(Protocol):
    """A counter of energy used since some moment in the past."""

    name: str
    update_s: float  # at most so often it counts on

    def read_j(self) -> float:
        """Joules."""


class Device(ABC):
    """One device.

    Attributes:
        name: as a user and torch call it: 'cpu', 'cuda:0'.
    """

    name: str

    @abstractmethod
    def available(self) -> str | None:
        """Why it cannot be used here, in a sentence; None: it can."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Facts about it for the manifest; what cannot be read is said to be unavailable, with the reason."""

    def synchronize(self) -> None:  # noqa: B027  (a CPU has nothing to wait for)
        """Waits until all work issued is done."""

    def empty_cache(self) -> None:  # noqa: B027
        """Gives back memory that an allocator keeps for later."""

    def events(self) -> tuple[Event, Event] | None:
        """Two fresh marks that take device time; None where there is no time but the host's."""
        return None

    def energy_sensor(self) -> EnergySensor | str:
        """Its energy counter, or why there is none, in a sentence."""
        return f"{self.name} has no energy counter"

    def clock_ns(self) -> int:
        """The host's monotonic clock."""
        return time.perf_counter_ns()
