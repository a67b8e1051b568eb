"""Peak memory of a call: what it needs at most beyond what was there before (weights, inputs, the interpreter)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dynbench.meters.device import MeasuredDevice
from dynbench.unavailable import Measured, Unavailable

_SELF = Path("/proc/self")


def peak_bytes(call: Callable[[], Any], device: MeasuredDevice) -> Measured:
    """Peak memory growth during `call()`, in bytes.

    On CUDA by the caching allocator's own account. On a CPU by the resident set of this process, so memory that an
    earlier call freed and the allocator kept hides growth: ask in a fresh process.

    Returns:
        Bytes; Unavailable, with the reason, where the system does not tell.
    """
    if device.name.startswith("cuda"):
        device.synchronize()
        before = torch.cuda.memory_allocated(device.name)
        torch.cuda.reset_peak_memory_stats(device.name)
        call()
        device.synchronize()
        return float(torch.cuda.max_memory_allocated(device.name) - before)
    if not (_SELF / "status").exists():
        return Unavailable(unavailable="this system has no /proc/self/status to read peak memory from")
    forgotten = _forget_peak()
    before, old_peak = _status_bytes("VmRSS"), _status_bytes("VmHWM")
    call()
    peak = _status_bytes("VmHWM")
    if not forgotten and peak == old_peak:
        return Unavailable(
            unavailable="an earlier peak hides this one, and /proc/self/clear_refs may not be written to forget it"
        )
    return float(max(peak - before, 0))


def _forget_peak() -> bool:
    """Sets the peak resident set back to the current one (proc_pid_clear_refs(5), value 5)."""
    try:
        (_SELF / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status_bytes(field: str) -> int:
    for line in (_SELF / "status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)
