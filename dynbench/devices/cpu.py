"""The host's processor."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import psutil

from dynbench.devices.base import Device, EnergySensor, storable
from dynbench.devices.profiles import profile_of
from dynbench.unavailable import Unavailable

BFLOAT16_UNITS = ("amx_bf16", "avx512_bf16", "svebf16", "bf16")  # of x86 and of Arm
_CPU0 = Path("/sys/devices/system/cpu/cpu0")
_NO_RAPL = "this system shows no RAPL energy counter (/sys/class/powercap), as is usual in virtual machines"


class Cpu(Device):
    """All cores this process may use."""

    name = "cpu"

    def available(self) -> str | None:
        """None: it always can."""
        return None

    def describe(self) -> dict[str, Any]:
        """Name, cores, memory, clocks, caches, and the data sheet's ceilings if known."""
        model = cpu_model()
        return storable(
            {
                "name": model,
                "architecture": platform.machine(),
                "cores_physical": psutil.cpu_count(logical=False)
                or Unavailable(unavailable="the system does not report it"),
                "cores_logical": psutil.cpu_count(),
                "cores_usable": usable_cores(),
                "memory_bytes": psutil.virtual_memory().total,
                "clock_mhz": clock_mhz(),
                "governor": governor(),
                "bfloat16_units": bfloat16_units(),
                "caches_bytes": caches_bytes(),
                "profile": profile_of(model),
            }
        )

    def energy_sensor(self) -> EnergySensor | str:
        """RAPL or a board's sensor, through zeus."""
        return zeus_sensor()


def cpu_model() -> str:
    """The processor's name, from the kernel."""
    info = _read(Path("/proc/cpuinfo")) or ""
    names = (line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def usable_cores() -> int:
    """Logical cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def bfloat16_units() -> list[str]:
    """Instructions that multiply numbers of bfloat16, by the kernel's names; [] where there are none."""
    info = _read(Path("/proc/cpuinfo")) or ""
    flags = (line.split(":", 1)[1].split() for line in info.splitlines() if line.startswith(("flags", "Features")))
    first = next(flags, [])
    return [unit for unit in BFLOAT16_UNITS if unit in first]


def clock_mhz() -> dict[str, float] | Unavailable:
    """Current, lowest and highest clock; in a virtual machine perhaps only the current one."""
    freq = psutil.cpu_freq()
    if freq is None:
        return Unavailable(unavailable="the system reports no clock")
    known = {"current": freq.current, "min": freq.min, "max": freq.max}
    return {name: value for name, value in known.items() if value}


def governor() -> str | Unavailable:
    """The kernel's policy for the clock, e.g. 'performance' or 'powersave'."""
    found = _read(_CPU0 / "cpufreq" / "scaling_governor")
    why = "the kernel does not control the clock here, as in most virtual machines"
    return found or Unavailable(unavailable=why)


def caches_bytes() -> dict[str, int] | Unavailable:
    """Sizes of core 0's caches, e.g. {'L1 Data': 32768, 'L3 Unified': 33554432}."""
    sizes = {}
    for index in sorted((_CPU0 / "cache").glob("index*")):
        level, kind, size = (_read(index / part) for part in ("level", "type", "size"))
        if level and kind and size and size.endswith("K"):
            sizes[f"L{level} {kind}"] = int(size[:-1]) * 1024
    return sizes or Unavailable(unavailable="the system reports no cache sizes")


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


class _Zeus:
    """Package and memory energy of all sockets."""

    name = "RAPL through zeus"
    update_s = 0.001

    def __init__(self, cpus: Any) -> None:
        self._cpus = cpus

    def read_j(self) -> float:
        """Joules since the counters started."""
        total_mj = 0.0
        for cpu in self._cpus.cpus:
            found = cpu.get_total_energy_consumption()
            total_mj += found.cpu_mj + (found.dram_mj or 0.0)
        return total_mj / 1000


def zeus_sensor() -> EnergySensor | str:
    """The processor's energy counter, or why it cannot be read."""
    try:
        from zeus.device.cpu import get_cpus
        from zeus.device.cpu.common import ZeusCPUInitError
    except ImportError:
        if any(Path("/sys/class/powercap").glob("intel-rapl*")):
            return "there is a RAPL energy counter, but zeus is not installed: pip install 'dynbench[energy]'"
        return _NO_RAPL
    try:
        sensor = _Zeus(get_cpus())
        sensor.read_j()
    except ZeusCPUInitError:
        return _NO_RAPL
    except Exception as e:  # noqa: BLE001  (zeus has a family of errors for each platform)
        return f"the RAPL energy counter cannot be read: {e}".splitlines()[0]
    return sensor
