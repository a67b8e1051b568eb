"""A device with a simulated clock, so that measuring can be tested without waiting."""

from __future__ import annotations

from typing import Any

from dynbench.devices.base import Device, EnergySensor, Event


class FakeDevice(Device):
    """Time passes only by calls of its methods.

    Args:
        idle_w: idle power; None: no energy sensor.
    """

    name = "fake"

    def __init__(self, idle_w: float | None = None) -> None:
        self.now_ns, self.pending_ns, self.idle_w = 0, 0, idle_w
        self.energy_j: float = 0.0

    def work(self, host_ns: int, device_ns: int = 0, extra_w: float = 0.0) -> None:
        """Occupies the host for `host_ns` and queues `device_ns` of device work, at `extra_w` above idle power."""
        self.now_ns += host_ns
        self.pending_ns += device_ns
        self.energy_j += ((self.idle_w or 0.0) * host_ns + extra_w * (host_ns + device_ns)) / 1e9

    def sleep(self, seconds: float) -> None:
        """Lets time pass idle."""
        self.work(round(seconds * 1e9))

    def available(self) -> str | None:
        """None: it always can be used."""
        return None

    def describe(self) -> dict[str, Any]:
        """Only its name."""
        return {"name": self.name}

    def synchronize(self) -> None:
        """Lets the queued device work pass."""
        self.now_ns += self.pending_ns
        self.energy_j += (self.idle_w or 0.0) * self.pending_ns / 1e9
        self.pending_ns = 0

    def clock_ns(self) -> int:
        """The simulated time."""
        return self.now_ns

    def events(self) -> tuple[Event, Event]:
        """Two marks, which record the time at which all queued work will be done."""
        return _Mark(self), _Mark(self)

    def energy_sensor(self) -> EnergySensor | str:
        """A simulated counter, if `idle_w` is given."""
        return "fake has no energy counter" if self.idle_w is None else _Counter(self)


class _Mark:
    def __init__(self, device: FakeDevice) -> None:
        self._device, self.at_ns = device, 0

    def record(self) -> None:
        self.at_ns = self._device.now_ns + self._device.pending_ns

    def elapsed_time(self, end: Any) -> float:
        return float(end.at_ns - self.at_ns) / 1e6


class _Counter:
    name = "fake counter"
    update_s = 0.1

    def __init__(self, device: FakeDevice) -> None:
        self._device = device

    def read_j(self) -> float:
        return self._device.energy_j
