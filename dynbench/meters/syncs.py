"""How often the host waits for a GPU, and how many kernels it launches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from dynbench.meters.device import MeasuredDevice
from dynbench.unavailable import Measured, Unavailable

# Calls of the CUDA runtime and driver, as the profiler records them on the host.
WAITS = frozenset(
    {
        "cudaStreamSynchronize",
        "cudaDeviceSynchronize",
        "cudaEventSynchronize",
        "cudaMemcpy",
        "cuStreamSynchronize",
        "cuCtxSynchronize",
        "cuEventSynchronize",
    }
)
LAUNCHES = frozenset(
    {
        "cudaLaunchKernel",
        "cudaLaunchKernelExC",
        "cudaLaunchCooperativeKernel",
        "cudaGraphLaunch",
        "cuLaunchKernel",
        "cuLaunchKernelEx",
        "cuLaunchCooperativeKernel",
        "cuGraphLaunch",
    }
)
_RANGE = "dynbench.counted"
HostEvent = tuple[str, int, int]  # name, start_ns, end_ns


class Syncs(NamedTuple):
    """Of one call.

    Attributes:
        host_syncs: times the host waited for the device: synchronisations, those of copies to the host included.
        kernel_launches: kernels launched; a CUDA graph counts as one.
    """

    host_syncs: Measured
    kernel_launches: Measured


def count_syncs(call: Callable[[], Any], device: MeasuredDevice) -> Syncs:
    """Counts over `call()`, under torch's profiler.

    Returns:
        Counts; Unavailable, with the reason, on a CPU and where the profiler sees no CUDA calls.
    """
    if not device.name.startswith("cuda"):
        why = Unavailable(unavailable="a CPU has no launches to count and nothing to wait for")
        return Syncs(why, why)
    device.synchronize()
    return count_in(host_events(call, [ProfilerActivity.CPU, ProfilerActivity.CUDA]))


def host_events(call: Callable[[], Any], activities: list[ProfilerActivity]) -> list[HostEvent]:
    """What torch's profiler saw the host do during `call()`, which is an event itself: the counted range."""
    with profile(activities=activities) as prof, record_function(_RANGE):
        call()
    results = prof.profiler.kineto_results if prof.profiler is not None else None
    events = [] if results is None else results.events()
    host = torch.autograd.DeviceType.CPU
    return [(e.name(), e.start_ns(), e.start_ns() + e.duration_ns()) for e in events if e.device_type() == host]


def count_in(events: Iterable[HostEvent]) -> Syncs:
    """Counts waits and launches among the host events that lie in the counted range.

    The profiler itself waits for the device when it starts and stops; that is outside the range.
    """
    table = list(events)
    inside = [(start, end) for name, start, end in table if name == _RANGE]
    if not inside:
        why = Unavailable(unavailable="torch's profiler did not record the counted range")
        return Syncs(why, why)
    begin, end = inside[0]
    names = [name for name, start, _ in table if begin <= start <= end]
    launches = sum(name in LAUNCHES for name in names)
    if launches == 0:
        why = Unavailable(unavailable="torch's profiler recorded no CUDA calls: it may not be allowed to use CUPTI")
        return Syncs(why, why)
    return Syncs(float(sum(name in WAITS for name in names)), float(launches))
