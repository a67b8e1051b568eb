"""Energy from real counters, over windows long enough for them. Never an estimate."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from dynbench.meters.device import MeasuredDevice, Sensor
from dynbench.store.schema import Energy
from dynbench.unavailable import Unavailable

MIN_WINDOW_S = 2.0  # NVML's power figures cover part of the time only (arXiv 2312.02741): seconds average that out
MIN_UPDATES = 20  # a window spans so many updates of the counter: at most 5 % is cut off at its ends


def idle_power_w(
    device: MeasuredDevice, *, idle_s: float = MIN_WINDOW_S, sleep: Callable[[float], None] = time.sleep
) -> float | Unavailable:
    """Watts the device uses doing nothing, over `idle_s` seconds; Unavailable, with the reason, without a counter."""
    sensor = device.energy_sensor()
    if isinstance(sensor, str):
        return Unavailable(unavailable=sensor)
    device.synchronize()
    least_s = max(idle_s, MIN_UPDATES * sensor.update_s)
    used_j, window_ns, _ = _window(sensor, device, lambda: sleep(least_s), 0.0)
    return used_j / (window_ns / 1e9)


def measure_energy(
    call: Callable[[], Any],
    device: MeasuredDevice,
    *,
    items: int,
    window_s: float = MIN_WINDOW_S,
    idle_w: float | Unavailable | None = None,
) -> Energy:
    """Repeats `call()` for a window of time and reads the device's energy counter at both ends.

    Args:
        call: the work, a whole stream.
        device: whose counter is read.
        items: how many items one call computes.
        window_s: the least length of the window; the sensor may ask for more.
        idle_w: power of the device doing nothing; default: it is watched first.

    Returns:
        Joules per item, and the share of them that the device would have used idling for as long. Unavailable, with
        the reason, without a counter or where it did not move.
    """
    sensor = device.energy_sensor()
    if isinstance(sensor, str):
        return _none(sensor)
    idle_w = idle_power_w(device) if idle_w is None else idle_w
    call()
    device.synchronize()
    used_j, window_ns, calls = _window(sensor, device, call, max(window_s, MIN_UPDATES * sensor.update_s))
    seconds = window_ns / 1e9
    if used_j <= 0:
        return _none(f"the counter {sensor.name} did not move in {seconds:.1f} s", sensor.name)
    share = idle_w if isinstance(idle_w, Unavailable) else idle_w * seconds / used_j
    return Energy(item_j=used_j / (calls * items), idle_share=share, window_s=seconds, sensor=sensor.name)


def _window(sensor: Sensor, device: MeasuredDevice, call: Callable[[], Any], least_s: float) -> tuple[float, int, int]:
    """Joules, nanoseconds and calls of a window: at least one call, at least `least_s`."""
    begin_j, begin_ns, calls = sensor.read_j(), device.clock_ns(), 0
    while calls == 0 or device.clock_ns() - begin_ns < least_s * 1e9:
        call()
        device.synchronize()
        calls += 1
    return sensor.read_j() - begin_j, device.clock_ns() - begin_ns, calls


def _none(why: str, sensor: str | None = None) -> Energy:
    nothing = Unavailable(unavailable=why)
    return Energy(item_j=nothing, idle_share=nothing, window_s=nothing, sensor=sensor)
