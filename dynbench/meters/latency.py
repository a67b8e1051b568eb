"""Wall time of whole calls, the device drained before and after."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from dynbench.meters.device import MeasuredDevice


class Timing(NamedTuple):
    """One call.

    Attributes:
        start_ns: on the host's monotonic clock.
        duration_ns: until the device was done.
        device_ns: between the device passing the call's beginning and its end, waits for the host included; None on a
            device without a time of its own.
    """

    start_ns: int
    duration_ns: int
    device_ns: int | None


def time_batches(call: Callable[..., Any], batches: Iterable[tuple[Any, ...]], device: MeasuredDevice) -> list[Timing]:
    """Times `call(*batch)` for every batch, one after the other."""
    timings = []
    device.synchronize()
    for batch in batches:
        marks = device.events()
        start = device.clock_ns()
        if marks is not None:
            marks[0].record()
        call(*batch)
        if marks is not None:
            marks[1].record()
        device.synchronize()
        end = device.clock_ns()
        device_ns = None if marks is None else round(marks[0].elapsed_time(marks[1]) * 1e6)
        timings.append(Timing(start, end - start, device_ns))
    return timings
