"""Energy from real counters, over windows long enough for them. Never an estimate."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from dynbench.meters.device import MeasuredDevice, Sensor
from dynbench.store.schema import Energy
from dynbench.unavailable import Unavailable

MIN_WINDOW_S = 2.0  # NVML's power figures cover part of the time only (arXiv 2312.02741): seconds average that out
PARTS = 6  # of a window: of so many the median has a 95 % interval that assumes nothing about the noise
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
    watched = _window(sensor, device, lambda: sleep(least_s), 0.0)
    return watched.used_j / (watched.ns / 1e9)


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
        Joules per item, also in up to `PARTS` parts of the window, and the share of them that the device would have
        used idling for as long. Unavailable, with the reason, without a counter or where it did not move.
    """
    sensor = device.energy_sensor()
    if isinstance(sensor, str):
        return _none(sensor)
    idle_w = idle_power_w(device) if idle_w is None else idle_w
    call()
    device.synchronize()
    window = _window(sensor, device, call, max(window_s, MIN_UPDATES * sensor.update_s))
    used_j, seconds = window.used_j, window.ns / 1e9
    if used_j <= 0:
        return _none(f"the counter {sensor.name} did not move in {seconds:.1f} s", sensor.name)
    share = idle_w if isinstance(idle_w, Unavailable) else idle_w * seconds / used_j
    parts = [part_j / (calls * items) for part_j, calls in window.parts]
    return Energy(
        item_j=used_j / (window.calls * items),
        idle_share=share,
        window_s=seconds,
        sensor=sensor.name,
        parts_j=parts if all(part > 0 for part in parts) else [],  # a counter too coarse for parts
    )


class _Window(NamedTuple):
    """Joules, nanoseconds and calls of a window; joules and calls of its parts."""

    used_j: float
    ns: int
    calls: int
    parts: list[tuple[float, int]]


def _window(sensor: Sensor, device: MeasuredDevice, call: Callable[[], Any], least_s: float) -> _Window:
    """At least one call, at least `least_s`; a part ends with the first call that reaches its share of that."""
    begin_j, begin_ns, calls = sensor.read_j(), device.clock_ns(), 0
    marks = [(begin_j, 0)]
    while calls == 0 or device.clock_ns() - begin_ns < least_s * 1e9:
        call()
        device.synchronize()
        calls += 1
        if device.clock_ns() - begin_ns >= len(marks) * least_s * 1e9 / PARTS:
            marks.append((sensor.read_j(), calls))
    parts = [(j - j0, n - n0) for (j0, n0), (j, n) in zip(marks, marks[1:], strict=False)]
    return _Window(sensor.read_j() - begin_j, device.clock_ns() - begin_ns, calls, parts)


def _none(why: str, sensor: str | None = None) -> Energy:
    nothing = Unavailable(unavailable=why)
    return Energy(item_j=nothing, idle_share=nothing, window_s=nothing, sensor=sensor)
