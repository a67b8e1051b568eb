"""What meters ask of a device; `dynbench.devices` has the real ones."""

from __future__ import annotations

from typing import Any, Protocol


class Event(Protocol):
    """A mark in the device's queue of work."""

    def record(self) -> None:
        """Puts the mark behind all work issued so far."""

    def elapsed_time(self, end: Any) -> float:
        """Milliseconds of device time from this mark to `end`."""


class Sensor(Protocol):
    """An energy counter."""

    name: str
    update_s: float

    def read_j(self) -> float:
        """Joules since some moment in the past."""


class MeasuredDevice(Protocol):
    """A device, as far as measuring goes."""

    name: str

    def synchronize(self) -> None:
        """Waits until all work issued is done."""

    def clock_ns(self) -> int:
        """The host's monotonic clock."""

    def events(self) -> tuple[Event, Event] | None:
        """Two fresh marks; None where there is no device time apart from the host's."""

    def energy_sensor(self) -> Sensor | str:
        """The energy counter, or why there is none."""
