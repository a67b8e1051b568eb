"""The interface of a device: all that measuring needs of it."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import Any, Protocol

from dynbench.unavailable import Unavailable


class Event(Protocol):
    """A mark in a device's queue of work; `torch.cuda.Event` is one."""

    def record(self) -> None:
        """Places the mark after all work issued so far."""

    def elapsed_time(self, end: Any) -> float:
        """Milliseconds of device time from this mark to `end`, both of which the device has reached."""


class EnergySensor(Protocol):
    """A cumulative energy counter.

    Attributes:
        name: for reports.
        update_s: update interval: two readings that are closer together may be equal.
    """

    name: str
    update_s: float

    def read_j(self) -> float:
        """Joules since an unspecified moment in the past."""


class Device(ABC):
    """One device.

    Attributes:
        name: as users and torch spell it: 'cpu', 'cuda:0'.
    """

    name: str

    @abstractmethod
    def available(self) -> str | None:
        """Why it cannot be used here, in one sentence; None: it can."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Facts for the manifest, as JSON values; one that cannot be read is `{"unavailable": reason}`."""

    def synchronize(self) -> None:  # noqa: B027  (nothing is asynchronous on a CPU)
        """Waits until all work issued so far is done."""

    def empty_cache(self) -> None:  # noqa: B027
        """Releases memory that an allocator caches."""

    def events(self) -> tuple[Event, Event] | None:
        """Two new marks that measure device time; None: the device has no clock of its own."""
        return None

    def energy_sensor(self) -> EnergySensor | str:
        """Its energy counter, or why there is none, in one sentence."""
        return f"{self.name} has no energy counter"

    def clock_ns(self) -> int:
        """The host's monotonic clock."""
        return time.perf_counter_ns()


def storable(facts: dict[str, Any]) -> dict[str, Any]:
    """Facts as JSON values: `Unavailable` becomes `{"unavailable": reason}`."""
    return {name: fact.model_dump() if isinstance(fact, Unavailable) else fact for name, fact in facts.items()}
