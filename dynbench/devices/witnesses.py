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

CONTROL_CALLS = 4  # of one control sample, some milliseconds
LOOK_S = 0.5  # at least between two looks at the clock, which cost something themselves
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
        clock_mhz: of the core, or of the GPU: median of the looks at it, beside the control kernel.
        clock_low_mhz: the lowest of them.
        clock_drift: how much faster it was in the second half of the looks than in the first, as a share.
        temperature_c: the hottest sensor at the end.
        governor: how the kernel picks the clock; of a GPU: what held its clock down, and in how many of the looks.
    """

    window_s: float
    waited: Fact
    stolen: Fact
    switched_per_s: Fact
    control_us: Fact
    control_drift: Fact
    clock_mhz: Fact
    clock_low_mhz: Fact
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
        self._looks: list[Look] = []
        self._looked_s = -math.inf

    def tick(self) -> None:
        """Times the control kernel once, and may look at the clock; between rounds."""
        if self._kernel is None:
            self._kernel = control_kernel(self._device)
            self._kernel()
        start = self._device.clock_ns()
        for _ in range(CONTROL_CALLS):
            self._kernel()
        self._device.synchronize()
        self._control_ns.append(self._device.clock_ns() - start)
        if time.monotonic() - self._looked_s > LOOK_S:
            for _ in range(CONTROL_CALLS):  # a GPU that has nothing to do lowers its clock
                self._kernel()
            self._looks.append(look(self._device))
            self._device.synchronize()
            self._looked_s = time.monotonic()

    def end(self) -> Witnesses:
        """What was seen so far."""
        window_s = max(time.monotonic() - self._begin_s, 1e-9)
        stolen, waited = (
            "unavailable: the system does not tell" if a is None or b is None else (b - a) / window_s
            for a, b in zip(self._lost, lost_s(), strict=True)
        )
        times = [t / CONTROL_CALLS / 1000 for t in self._control_ns]
        looks = self._looks or [look(self._device)]
        clocks = [seen.clock_mhz for seen in looks if isinstance(seen.clock_mhz, float)]
        why = next((seen.clock_mhz for seen in looks if isinstance(seen.clock_mhz, str)), "")
        return Witnesses(
            window_s=window_s,
            waited=waited,
            stolen=stolen,
            switched_per_s=(_switches() - self._switches) / window_s,
            control_us=float(np.median(times)) if times else "unavailable: timed 0 times",
            control_drift=_drift(times, "timed"),
            clock_mhz=float(np.median(clocks)) if clocks else why,
            clock_low_mhz=min(clocks) if clocks else why,
            clock_drift=_drift(clocks, "looked at") if clocks else why,
            temperature_c=_temperature(self._device),
            governor=_held([seen.held for seen in looks]) if isinstance(self._device, Cuda) else governor(),
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


class Look(NamedTuple):
    """A clock at one moment: in MHz, and what holds it down (of a GPU); or why that is not known."""

    clock_mhz: Fact
    held: list[str] | str


def look(device: Device) -> Look:
    """At the clock of the core or of the GPU, now."""
    if isinstance(device, Cuda):
        facts = clock_facts(device.index)
        clock = facts["sm_clock_mhz"]
        return Look(clock if isinstance(clock, str) else float(clock), facts["throttled_by"])
    found = psutil.cpu_freq()
    return Look(float(found.current) if found and found.current else "unavailable: the system tells no clock", [])


def _held(seen: list[list[str] | str]) -> str:
    """'power cap (in 3 of 40 looks)'; 'nothing'."""
    known = [held for held in seen if not isinstance(held, str)]
    if not known:
        return str(seen[0])
    counts = Counter(why for held in known for why in held)
    return ", ".join(f"{why} (in {n} of {len(known)} looks)" for why, n in counts.most_common()) or "nothing"


def _drift(values: list[float], what: str) -> Fact:
    """Median of the second half / that of the first - 1."""
    half = len(values) // 2
    if half < 2:
        return f"unavailable: {what} {len(values)} times"
    return float(np.median(values[-half:]) / np.median(values[:half])) - 1


def _temperature(device: Device) -> Fact:
    if isinstance(device, Cuda):
        facts = nvml_facts(device.index)
        heat = facts.get("temperature_c", facts.get("nvml", "unavailable: NVML does not tell"))
        return heat if isinstance(heat, str) else float(heat)
    sensors = psutil.sensors_temperatures() if hasattr(psutil, "sensors_temperatures") else {}
    found = [entry.current for group in sensors.values() for entry in group if entry.current]
    return max(found) if found else "unavailable: the system shows no temperature sensor"
