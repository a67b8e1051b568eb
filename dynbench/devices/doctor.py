"""Is this machine fit to measure on? The findings of `dynbench doctor`."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from dynbench.devices import Cuda, known_devices
from dynbench.devices.base import Device
from dynbench.devices.cpu import Cpu, bfloat16_units, cpu_model, governor, usable_cores
from dynbench.devices.cuda import nvml_facts
from dynbench.devices.profiles import calibration_of
from dynbench.devices.witnesses import control_kernel, lost_s
from dynbench.unavailable import Unavailable

ROUNDS = 20  # of the A/A comparison: after so many rounds a run checks its precision for the second time
GOOD, USABLE = 0.01, 0.02  # half-widths of a ratio's interval; the second is the target of a run
BUSY = 0.05  # share of time lost to other processes or machines above which results suffer


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes:
        id: stable, e.g. 'DB-NOISE-01'.
        level: 'ok', 'note' (good to know) or 'warning' (results suffer).
        text: what was found.
        remedy: what to change; empty if nothing needs to be.
    """

    id: str
    level: Literal["ok", "note", "warning"]
    text: str
    remedy: str = ""


class Noise(NamedTuple):
    """An A/A comparison: the same work measured twice, as if it were two different things.

    Attributes:
        resolution: half-width of the 95 % interval of the ratio's median; smaller differences cannot be resolved.
        off: distance of the median ratio from 1.
        stolen: share of the time that the hypervisor gave to other machines; None: not reported.
        waited: share of the time in which some process waited for a core; None: not reported.
    """

    resolution: float
    off: float
    stolen: float | None
    waited: float | None


def examine(seconds: float = 3.0) -> list[Finding]:
    """Checks devices, sensors, threads and load, and measures for `seconds` how noisy this machine is now."""
    findings = [*_devices(), *_processor(), *bfloat16_findings(bfloat16_units()), *_threads(), _calibrated()]
    noise = measure_noise(control_kernel(Cpu()), seconds)
    return findings + noise_findings(noise)


def _devices() -> list[Finding]:
    found: list[Finding] = []
    for name, why in known_devices():
        if why is not None:
            found.append(Finding("DB-DEVICE-02", "note", f"{name}: not available: {why}"))
            continue
        device: Device = Cpu() if name == "cpu" else Cuda(int(name.partition(":")[2]))
        facts = device.describe()
        size_gib = facts["memory_bytes"] / 2**30
        found.append(Finding("DB-DEVICE-01", "ok", f"{name}: {facts['name']}, {size_gib:.0f} GiB memory"))
        sensor = device.energy_sensor()
        if isinstance(sensor, str):
            found.append(Finding("DB-SENSOR-02", "note", f"{name}: no energy will be reported: {sensor}"))
        else:
            found.append(Finding("DB-SENSOR-01", "ok", f"{name}: energy from {sensor.name}"))
        if isinstance(device, Cuda):
            found += gpu_findings(name, nvml_facts(device.index))
    return found


def gpu_findings(name: str, facts: dict[str, object]) -> list[Finding]:
    """What NVML's facts about a GPU mean for results."""
    found = []
    throttled = facts["throttled_by"]
    slow = [why for why in throttled if why != "idle"] if isinstance(throttled, list) else []
    if slow:
        found.append(
            Finding(
                "DB-GPU-01",
                "warning",
                f"{name}: the clock is held down by: {', '.join(slow)}",
                "let it cool, raise the power limit, or lock the clocks: nvidia-smi --lock-gpu-clocks",
            )
        )
    others = facts["other_processes"]
    if isinstance(others, int) and others > 0:
        found.append(
            Finding(
                "DB-GPU-02",
                "warning",
                f"{name}: {others} other processes use it",
                "stop them, or take another GPU",
            )
        )
    return found


def bfloat16_findings(units: list[str]) -> list[Finding]:
    """What a processor's units for bfloat16 mean for results."""
    if not units:
        return []
    text = f"the processor multiplies bfloat16 in hardware ({', '.join(units)}), which a run in float32 does not use"
    return [Finding("DB-DTYPE-01", "note", text, "measure that, too: dynbench run --dtype bfloat16")]


def _processor() -> list[Finding]:
    policy = governor()
    known = policy if isinstance(policy, str) else f"unavailable: {policy.unavailable}"
    text = f"{cpu_model()}: {usable_cores()} usable cores, clock governor {known}"
    if isinstance(policy, Unavailable) or policy == "performance":
        return [Finding("DB-FREQ-01", "ok", text)]
    return [
        Finding(
            "DB-FREQ-01",
            "warning",
            f"{text}: the clock follows the load",
            "cpupower frequency-set --governor performance",
        )
    ]


def _threads() -> list[Finding]:
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    settings = ", ".join(f"{n}={os.environ.get(n, 'not set')}" for n in names)
    found = [
        Finding(
            "DB-THREADS-01",
            "ok",
            f"{settings} here; a run sets them for its measuring process, before it starts (--threads)",
        )
    ]
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > 0.25 * cores:
        found.append(
            Finding(
                "DB-LOAD-01",
                "warning",
                f"load average {load:.1f} on {cores} cores: other processes run at the same time",
                "stop them, or wait",
            )
        )
    else:
        found.append(Finding("DB-LOAD-01", "ok", f"load average {load:.1f} on {cores} cores"))
    return found


def _calibrated() -> Finding:
    """Whether the ceilings and overheads of this processor are known."""
    found = calibration_of(cpu_model(), 1)
    if found is None:
        text = "the ceilings and overheads of this processor are not known; predictions for other devices need them"
        return Finding("DB-CALIB-01", "note", text, "dynbench calibrate")
    return Finding("DB-CALIB-01", "ok", f"ceilings and overheads of this processor: {found.source}")


def measure_noise(
    kernel: Callable[[], object], seconds: float, clock_ns: Callable[[], int] = time.perf_counter_ns
) -> Noise:
    """Measures `kernel` against itself for about `seconds`, interleaved, swapping the order each round."""
    before, begin_ns = lost_s(), clock_ns()
    slot_ns = seconds * 1e9 / (2 * ROUNDS)
    kernel()
    calls, since_ns = 0, clock_ns()
    while calls == 0 or clock_ns() - since_ns < slot_ns / 2:  # each slot of a round has two calls
        kernel()
        calls += 1
    pairs = np.zeros((ROUNDS, 2))
    for r in range(ROUNDS):
        for _ in range(calls):
            for arm in (0, 1) if r % 2 else (1, 0):
                start = clock_ns()
                kernel()
                kernel()
                pairs[r, arm] += clock_ns() - start
    wall_s = (clock_ns() - begin_ns) / 1e9
    ratios = np.sort(pairs[:, 0] / pairs[:, 1])
    low, high = _median_ranks(ROUNDS)
    shares = [None if a is None or b is None else (b - a) / wall_s for a, b in zip(before, lost_s(), strict=True)]
    return Noise((ratios[high] - ratios[low]) / 2, abs(float(np.median(ratios)) - 1), *shares)


def noise_findings(noise: Noise) -> list[Finding]:
    """What an A/A comparison means for results."""
    percent = 100 * max(noise.resolution, noise.off)
    text = (
        f"the same work compared with itself in {ROUNDS} rounds differs by {100 * noise.off:.2f} % "
        f"(95 % interval +- {100 * noise.resolution:.2f} %): differences below {percent:.1f} % cannot be seen now"
    )
    if percent <= 100 * GOOD:
        found = [Finding("DB-NOISE-01", "ok", text)]
    else:
        level: Literal["note", "warning"] = "note" if percent <= 100 * USABLE else "warning"
        found = [Finding("DB-NOISE-01", level, text, "stop other programs, fix the clock, or allow a longer run")]
    if noise.stolen is not None and noise.stolen > BUSY:
        found.append(
            Finding(
                "DB-STEAL-01",
                "warning",
                f"the hypervisor gave {100 * noise.stolen:.0f} % of a core to other machines",
                "use a machine with dedicated cores",
            )
        )
    if noise.waited is not None and noise.waited > BUSY:
        found.append(
            Finding(
                "DB-LOAD-02",
                "warning",
                f"processes waited for a core {100 * noise.waited:.0f} % of the time",
                "stop other programs, or use fewer threads",
            )
        )
    return found


def _median_ranks(n: int, confidence: float = 0.95) -> tuple[int, int]:
    """Positions among n sorted values that enclose the median with at least this confidence (binomial)."""
    outside = 0.0
    for k in range(n // 2):
        outside += 2 * math.comb(n, k) / 2**n
        if outside > 1 - confidence:
            return max(k - 1, 0), n - 1 - max(k - 1, 0)
    return 0, n - 1
