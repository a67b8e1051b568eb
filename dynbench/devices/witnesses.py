"""What else happened while something was measured: waiting, stolen time, switches, clocks, heat, a control kernel."""

from __future__ import annotations

import math
import os
import resource
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

from dynbench.devices.base import Device
from dynbench.devices.cpu import governor
from dynbench.devices.cuda import Cuda, clock_facts, nvml_facts
from dynbench.unavailable import Measured, Unavailable

CONTROL_CALLS = 4  # of the control kernel in one sample, which takes some milliseconds
READING_INTERVAL_S = 0.5  # at least, between two readings of the clock, because a reading disturbs the measurement


class Witnesses(NamedTuple):
    """What was observed between the start and the end of a measurement.

    Attributes:
        window_s: duration.
        waited: share of the time in which some process waited for a core (CPU pressure).
        stolen: share of one core's time that the hypervisor gave to other machines.
        switched_per_s: involuntary context switches of this process per second.
        control_us: median time of the control kernel, which is the same arithmetic in every run.
        control_drift: how much slower the control kernel was in the second half than in the first, as a share.
        clock_mhz: of the core or of the GPU, beside the control kernel: median of the readings.
        clock_low_mhz: lowest reading.
        clock_drift: how much faster the clock was in the second half of the readings than in the first, as a share.
        temperature_c: of the hottest sensor at the end.
        governor: the kernel's policy for the clock; of a GPU: what throttled it, and in how many of the readings.
    """

    window_s: float
    waited: Measured
    stolen: Measured
    switched_per_s: Measured
    control_us: Measured
    control_drift: Measured
    clock_mhz: Measured
    clock_low_mhz: Measured
    clock_drift: Measured
    temperature_c: Measured
    governor: str | Unavailable


class Watch:
    """Observes from its creation until `end`.

    Args:
        device: whose clock and arithmetic is observed; the host's counters always are.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._kernel: Callable[[], object] | None = None  # created by the first `tick`, because it needs torch
        self._control_ns: list[int] = []
        self._begin_s, self._lost, self._switches = time.monotonic(), lost_s(), _switches()
        self._readings: list[ClockReading] = []
        self._last_reading_s = -math.inf

    def tick(self) -> None:
        """Times the control kernel once and, now and then, reads the clock. To be called between rounds."""
        if self._kernel is None:
            self._kernel = control_kernel(self._device)
            self._kernel()
        start = self._device.clock_ns()
        for _ in range(CONTROL_CALLS):
            self._kernel()
        self._device.synchronize()
        self._control_ns.append(self._device.clock_ns() - start)
        if time.monotonic() - self._last_reading_s > READING_INTERVAL_S:
            for _ in range(CONTROL_CALLS):  # an idle GPU lowers its clock
                self._kernel()
            self._readings.append(read_clock(self._device))
            self._device.synchronize()
            self._last_reading_s = time.monotonic()

    def end(self) -> Witnesses:
        """What was observed so far."""
        window_s = max(time.monotonic() - self._begin_s, 1e-9)
        stolen, waited = (
            Unavailable(unavailable="the system does not report it")
            if before is None or after is None
            else (after - before) / window_s
            for before, after in zip(self._lost, lost_s(), strict=True)
        )
        control_us = [t / CONTROL_CALLS / 1000 for t in self._control_ns]
        readings = self._readings or [read_clock(self._device)]
        clocks = [r.clock_mhz for r in readings if not isinstance(r.clock_mhz, Unavailable)]
        unknown = None if clocks else readings[0].clock_mhz
        return Witnesses(
            window_s=window_s,
            waited=waited,
            stolen=stolen,
            switched_per_s=(_switches() - self._switches) / window_s,
            control_us=float(np.median(control_us)) if control_us else Unavailable(unavailable="timed 0 times"),
            control_drift=_drift(control_us, "timed"),
            clock_mhz=float(np.median(clocks)) if unknown is None else unknown,
            clock_low_mhz=min(clocks) if unknown is None else unknown,
            clock_drift=_drift(clocks, "read") if unknown is None else unknown,
            temperature_c=_temperature(self._device),
            governor=_throttling(readings) if isinstance(self._device, Cuda) else governor(),
        )


def control_kernel(device: Device) -> Callable[[], object]:
    """The same arithmetic on every machine and in every run: a matrix product of about half a millisecond."""
    import torch

    size, place = (192, "cpu") if not isinstance(device, Cuda) else (2048, device.name)
    a = torch.full((size, size), 0.5, device=place)
    return lambda: a @ a


def lost_s() -> tuple[float | None, float | None]:
    """Seconds since boot that the hypervisor stole (sum over cores), and in which some process waited for a core.

    None: the system does not report it.
    """
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


class ClockReading(NamedTuple):
    """The clock at one moment.

    Attributes:
        clock_mhz: of the core or of the GPU.
        throttled_by: what kept a GPU below its highest clock; empty for a CPU.
    """

    clock_mhz: Measured
    throttled_by: list[str] | Unavailable


def read_clock(device: Device) -> ClockReading:
    """Reads the clock of the core or of the GPU."""
    if isinstance(device, Cuda):
        facts = clock_facts(device.index)
        return ClockReading(_number(facts["sm_clock_mhz"]), facts["throttled_by"])
    found = psutil.cpu_freq()
    if not found or not found.current:
        return ClockReading(Unavailable(unavailable="the system reports no clock"), [])
    return ClockReading(float(found.current), [])


def _throttling(readings: list[ClockReading]) -> str | Unavailable:
    """'power cap (in 3 of 40 readings)'; 'nothing'."""
    first = readings[0].throttled_by
    known = [r.throttled_by for r in readings if not isinstance(r.throttled_by, Unavailable)]
    if not known and isinstance(first, Unavailable):
        return first
    counts = Counter(reason for reasons in known for reason in reasons)
    return ", ".join(f"{reason} (in {n} of {len(known)} readings)" for reason, n in counts.most_common()) or "nothing"


def _drift(values: list[float], verb: str) -> Measured:
    """Median of the second half / median of the first - 1."""
    half = len(values) // 2
    if half < 2:
        return Unavailable(unavailable=f"{verb} {len(values)} times")
    return float(np.median(values[-half:]) / np.median(values[:half])) - 1


def _temperature(device: Device) -> Measured:
    if isinstance(device, Cuda):
        return _number(nvml_facts(device.index)["temperature_c"])
    sensors = psutil.sensors_temperatures() if hasattr(psutil, "sensors_temperatures") else {}
    found = [entry.current for group in sensors.values() for entry in group if entry.current]
    return max(found) if found else Unavailable(unavailable="the system shows no temperature sensor")


def _number(fact: float | Unavailable) -> Measured:
    return fact if isinstance(fact, Unavailable) else float(fact)
