"""What else happened while something was measured: waiting, stolen time, switches, clocks, heat, a control kernel."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from dynbench.devices.base import Device
from dynbench.devices.cpu import governor
from dynbench.devices.cuda import Cuda, nvml_facts

CONTROL_CALLS = 4  # of one control sample, some milliseconds
Fact = float | str  # a number, or 'unavailable: why'


class Witnesses(NamedTuple):
    """What was seen between the beginning and the end; each fact, or why it is not known.

    Attributes:
        window_s: how long.
        waited: share of the time that some process waited for a core (CPU pressure).
        stolen: share of one core's time that the hypervisor gave to others.
        switched_per_s: times per second that this process had to give its core to another.
        control_us: median time of the control kernel, the same arithmetic in every run.
        control_drift: how much slower it was in the second half than in the first, as a share.
        clock_mhz: of the core, or of the GPU, at the end.
        clock_drift: how much faster that was than at the beginning, as a share.
        temperature_c: the hottest sensor at the end.
        governor: how the kernel picks the clock; of a GPU: what holds its clock down.
    """

    window_s: float
    waited: Fact
    stolen: Fact
    switched_per_s: Fact
    control_us: Fact
    control_drift: Fact
    clock_mhz: Fact
    clock_drift: Fact
    temperature_c: Fact
    governor: str


class Watch:
    """Watches from its making until `end`.

    Args:
        device: whose clock and arithmetic is watched; the host's counters always are.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._kernel: Callable[[], object] | None = None  # made when it is first wanted: it takes torch
        self._control_ns: list[int] = []
        self._begin_s, self._lost, self._switches = time.monotonic(), lost_s(), _switches()
        self._clock, _, _ = _state(device)

    def tick(self) -> None:
        """Times the control kernel once; between rounds."""
        if self._kernel is None:
            self._kernel = control_kernel(self._device)
            self._kernel()
        start = self._device.clock_ns()
        for _ in range(CONTROL_CALLS):
            self._kernel()
        self._device.synchronize()
        self._control_ns.append(self._device.clock_ns() - start)

    def end(self) -> Witnesses:
        """What was seen so far."""
        window_s = max(time.monotonic() - self._begin_s, 1e-9)
        stolen, waited = (
            "unavailable: the system does not tell" if a is None or b is None else (b - a) / window_s
            for a, b in zip(self._lost, lost_s(), strict=True)
        )
        clock, heat, held = _state(self._device)
        both = isinstance(clock, float) and isinstance(self._clock, float)
        times = [t / CONTROL_CALLS / 1000 for t in self._control_ns]
        half = len(times) // 2
        few = f"unavailable: timed {len(times)} times"
        return Witnesses(
            window_s=window_s,
            waited=waited,
            stolen=stolen,
            switched_per_s=(_switches() - self._switches) / window_s,
            control_us=_median(times) if times else few,
            control_drift=_median(times[-half:]) / _median(times[:half]) - 1 if half >= 2 else few,
            clock_mhz=clock,
            clock_drift=clock / self._clock - 1 if both else clock if isinstance(clock, str) else self._clock,  # type: ignore[operator]
            temperature_c=heat,
            governor=held,
        )


def control_kernel(device: Device) -> Callable[[], object]:
    """The same arithmetic on every machine and in every run: a matrix product of about half a millisecond."""
    import torch

    side, where = (192, "cpu") if not isinstance(device, Cuda) else (2048, device.name)
    a = torch.full((side, side), 0.5, device=where)
    return lambda: a @ a


def lost_s() -> tuple[float | None, float | None]:
    """Seconds stolen by the hypervisor, all cores together, and seconds some process waited for a core, since boot."""
    stolen = waited = None
    try:
        stolen = int(Path("/proc/stat").read_text().split("\n")[0].split()[8]) / os.sysconf("SC_CLK_TCK")
        some = Path("/proc/pressure/cpu").read_text().split("\n")[0]
        waited = int(some.rpartition("total=")[2]) / 1e6
    except (OSError, IndexError, ValueError):
        pass
    return stolen, waited


def _switches() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _state(device: Device) -> tuple[Fact, Fact, str]:
    """Clock in MHz, temperature in C, and what sets the clock, now."""
    if isinstance(device, Cuda):
        facts = nvml_facts(device.index)
        why = str(facts.get("nvml", "unavailable: NVML does not tell"))
        held = facts.get("throttled_by", why)
        return (
            _number(facts.get("sm_clock_mhz", why)),
            _number(facts.get("temperature_c", why)),
            held if isinstance(held, str) else ", ".join(held) or "nothing",
        )
    clock = psutil.cpu_freq()
    sensors = psutil.sensors_temperatures() if hasattr(psutil, "sensors_temperatures") else {}
    heat = [entry.current for group in sensors.values() for entry in group if entry.current]
    return (
        float(clock.current) if clock and clock.current else "unavailable: the system tells no clock",
        max(heat) if heat else "unavailable: the system shows no temperature sensor",
        governor(),
    )


def _number(fact: Any) -> Fact:
    return fact if isinstance(fact, str) else float(fact)


def _median(values: list[float]) -> float:
    ordered = sorted(values)
    n = len(ordered)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
