"""NVIDIA GPUs, through torch and NVML."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from dynbench.devices.base import Device, EnergySensor, Event, storable
from dynbench.devices.profiles import profile_of
from dynbench.unavailable import Unavailable

# Why a clock is below its highest: bits of NVML's clocks event reasons.
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


# Arguments: NVML and its handle of the GPU.
_NVML_FACTS: dict[str, Callable[[Any, Any], Any]] = {
    "driver": lambda nvml, gpu: nvml.nvmlSystemGetDriverVersion(),
    "sm_clock_mhz": lambda nvml, gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM),
    "throttled_by": lambda nvml, gpu: reasons(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu)),
    "sm_clock_max_mhz": lambda nvml, gpu: nvml.nvmlDeviceGetMaxClockInfo(gpu, nvml.NVML_CLOCK_SM),
    "memory_clock_mhz": lambda nvml, gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM),
    "power_limit_w": lambda nvml, gpu: nvml.nvmlDeviceGetEnforcedPowerLimit(gpu) / 1000,
    "temperature_c": lambda nvml, gpu: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
    "persistence_mode": lambda nvml, gpu: bool(nvml.nvmlDeviceGetPersistenceMode(gpu)),
    "other_processes": lambda nvml, gpu: max(len(nvml.nvmlDeviceGetComputeRunningProcesses(gpu)) - 1, 0),
}


class Cuda(Device):
    """One GPU.

    Args:
        index: as CUDA counts the visible ones.
    """

    def __init__(self, index: int = 0) -> None:
        self.index, self.name = index, f"cuda:{index}"

    def available(self) -> str | None:
        """The reason names the build of torch, the driver, or the number of GPUs."""
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
        """Makes this GPU torch's default for events and for work that names no device."""
        import torch

        torch.cuda.set_device(self.index)

    def synchronize(self) -> None:
        """Waits until the GPU's queues are empty."""
        import torch

        torch.cuda.synchronize(self.index)

    def empty_cache(self) -> None:
        """Returns the caching allocator's free blocks to the driver."""
        import torch

        with torch.cuda.device(self.index):
            torch.cuda.empty_cache()

    def events(self) -> tuple[Event, Event]:
        """Two CUDA events with timing, for the current stream of the current GPU."""
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

        gpu = torch.cuda.get_device_properties(self.index)
        return storable(
            {
                "name": gpu.name,
                "compute_capability": f"{gpu.major}.{gpu.minor}",
                "multiprocessors": gpu.multi_processor_count,
                "memory_bytes": gpu.total_memory,
                "l2_cache_bytes": gpu.L2_cache_size,
                "cuda": torch.version.cuda,
                "cudnn": torch.backends.cudnn.version(),
                "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
                "tf32_cudnn": torch.backends.cudnn.allow_tf32,
                **nvml_facts(self.index),
                "profile": profile_of(gpu.name),
            }
        )


def nvml_facts(index: int) -> dict[str, Any]:
    """Driver, clocks, power limit, temperature and throttling of a visible GPU; `Unavailable` where NVML fails."""
    return {name: _ask(index, read) for name, read in _NVML_FACTS.items()}


def clock_facts(index: int) -> dict[str, Any]:
    """`sm_clock_mhz` and `throttled_by` of a visible GPU: quick enough to be called often."""
    return {name: _ask(index, _NVML_FACTS[name]) for name in ("sm_clock_mhz", "throttled_by")}


def _ask(index: int, read: Callable[[Any, Any], Any]) -> Any:
    """What NVML answers about a visible GPU, or why it does not."""
    try:
        return read(*_nvml(index))
    except Exception as e:  # noqa: BLE001  (ImportError or any NVMLError)
        return Unavailable(unavailable=_sentence(e))


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
    """NVML and its handle of a visible GPU, found by UUID because NVML may number the GPUs differently."""
    import pynvml
    import torch

    pynvml.nvmlInit()
    uuid = str(torch.cuda.get_device_properties(index).uuid)
    return pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}")


def _sentence(e: Exception) -> str:
    return str(e).splitlines()[0] if str(e) else type(e).__name__
