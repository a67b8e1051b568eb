"""NVIDIA GPUs, through torch and NVML."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from dynbench.devices.base import Device, EnergySensor, Event
from dynbench.devices.profiles import profile_of

# Why a clock is below what it could be: bits of NVML's clocks event reasons.
_REASONS = {
    0x1: "idle",
    0x2: "clocks set by an application",
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
    0x100: "display clocks",
}


class Cuda(Device):
    """One GPU.

    Args:
        index: as CUDA counts the visible ones.
    """

    def __init__(self, index: int = 0) -> None:
        self.index, self.name = index, f"cuda:{index}"

    def available(self) -> str | None:
        """Also says so where this build of torch cannot use a GPU."""
        import torch

        if torch.version.cuda is None:
            return f"this build of torch ({torch.__version__}) has no CUDA support"
        if not torch.cuda.is_available():
            return "torch finds no CUDA device: no GPU is visible to this process, or its driver is missing or too old"
        count = torch.cuda.device_count()
        if self.index >= count:
            return f"there are {count} CUDA devices here, cuda:0 to cuda:{count - 1}"
        return None

    def make_current(self) -> None:
        """Events and work without a device of their own go to this GPU from now on."""
        import torch

        torch.cuda.set_device(self.index)

    def synchronize(self) -> None:
        """Waits until the GPU's queues are empty."""
        import torch

        torch.cuda.synchronize(self.index)

    def empty_cache(self) -> None:
        """Gives the caching allocator's free blocks back."""
        import torch

        with torch.cuda.device(self.index):
            torch.cuda.empty_cache()

    def events(self) -> tuple[Event, Event]:
        """Two CUDA events that record time on the current stream of the current GPU."""
        import torch

        return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def energy_sensor(self) -> EnergySensor | str:
        """NVML's total-energy counter (Volta and later)."""
        try:
            sensor = _Nvml(self.index)
            sensor.read_j()
        except Exception as e:  # noqa: BLE001  (ImportError or any NVMLError)
            return f"NVML's total-energy counter cannot be read on {self.name}: {_sentence(e)}"
        return sensor

    def describe(self) -> dict[str, Any]:
        """Name, memory, capability, clocks, power limit, throttling, and the data sheet's ceilings if known."""
        import torch

        p = torch.cuda.get_device_properties(self.index)
        return {
            "name": p.name,
            "compute_capability": f"{p.major}.{p.minor}",
            "multiprocessors": p.multi_processor_count,
            "memory_bytes": p.total_memory,
            "l2_cache_bytes": p.L2_cache_size,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
            "tf32_cudnn": torch.backends.cudnn.allow_tf32,
            **nvml_facts(self.index),
            "profile": profile_of(p.name),
        }


def nvml_facts(index: int) -> dict[str, Any]:
    """Driver, clocks, power limit, temperature and throttling of a visible GPU; each, or why it cannot be read."""
    try:
        nvml, handle = _nvml(index)
    except Exception as e:  # noqa: BLE001  (ImportError or any NVMLError)
        return {"nvml": f"unavailable: {_sentence(e)}"}

    sm, memory = nvml.NVML_CLOCK_SM, nvml.NVML_CLOCK_MEM
    return {
        "driver": _fact(nvml.nvmlSystemGetDriverVersion),
        **clock_facts(index),
        "sm_clock_max_mhz": _fact(lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, sm)),
        "memory_clock_mhz": _fact(lambda: nvml.nvmlDeviceGetClockInfo(handle, memory)),
        "power_limit_w": _fact(lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000),
        "temperature_c": _fact(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
        "persistence_mode": _fact(lambda: bool(nvml.nvmlDeviceGetPersistenceMode(handle))),
        "other_processes": _fact(lambda: max(len(nvml.nvmlDeviceGetComputeRunningProcesses(handle)) - 1, 0)),
    }


def clock_facts(index: int) -> dict[str, Any]:
    """The clock of a visible GPU's multiprocessors, and what holds it down; quick enough to be asked often."""
    try:
        nvml, handle = _nvml(index)
    except Exception as e:  # noqa: BLE001  (ImportError or any NVMLError)
        return dict.fromkeys(("sm_clock_mhz", "throttled_by"), f"unavailable: {_sentence(e)}")
    return {
        "sm_clock_mhz": _fact(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
        "throttled_by": _fact(lambda: reasons(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))),
    }


def _fact(read: Callable[[], Any]) -> Any:
    """What is read, or why it cannot be."""
    import pynvml

    try:
        return read()
    except pynvml.NVMLError as e:
        return f"unavailable: {_sentence(e)}"


def reasons(bits: int) -> list[str]:
    """NVML's clocks event reasons in words."""
    return [text for bit, text in _REASONS.items() if bits & bit]


class _Nvml:
    """A GPU's total-energy counter."""

    name = "NVML total energy"
    update_s = 0.1

    def __init__(self, index: int) -> None:
        self._nvml, self._handle = _nvml(index)

    def read_j(self) -> float:
        """Joules since the driver was loaded."""
        millijoules: int = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        return millijoules / 1000


@functools.cache
def _nvml(index: int) -> tuple[Any, Any]:
    """NVML and its handle of a visible GPU, found by UUID: CUDA may number the GPUs otherwise than NVML."""
    import pynvml
    import torch

    pynvml.nvmlInit()
    uuid = str(torch.cuda.get_device_properties(index).uuid)
    return pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}")


def _sentence(e: Exception) -> str:
    return str(e).splitlines()[0] if str(e) else type(e).__name__
