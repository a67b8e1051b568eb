"""Memory, synchronisations and launches, accuracy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity

from dynbench.devices.cpu import Cpu
from dynbench.devices.cuda import Cuda
from dynbench.meters import memory
from dynbench.meters.memory import peak_bytes
from dynbench.meters.syncs import Syncs, count_in, count_syncs, host_events
from dynbench.unavailable import Unavailable

MIB, ROOT = 2**20, Path(__file__).parents[2]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc/self/status")
def test_peak_memory_in_a_fresh_process_is_what_a_call_holds_at_most() -> None:
    code = (
        "import torch; from dynbench.devices.cpu import Cpu; from dynbench.meters.memory import peak_bytes\n"
        "x = torch.ones(8, 2**20); y = x + x; del y\n"
        "print(peak_bytes(lambda: (x + 1).sum() + (x + 1).sum(), Cpu()))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert 32 * MIB <= float(out.stdout) < 64 * MIB  # one temporary of 32 MiB at a time, and what else is touched


def test_a_peak_that_an_earlier_one_hides_is_unavailable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "status").write_text("VmHWM:\t 900 kB\nVmRSS:\t 500 kB\n")
    (tmp_path / "clear_refs").mkdir()  # cannot be written
    monkeypatch.setattr(memory, "_SELF", tmp_path)
    found = peak_bytes(lambda: None, Cpu())
    assert isinstance(found, Unavailable) and "earlier peak" in found.unavailable
    risen = peak_bytes(lambda: (tmp_path / "status").write_text("VmHWM:\t 1000 kB\nVmRSS:\t 500 kB\n"), Cpu())
    assert risen == 500 * 1024


def test_a_system_without_proc_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_SELF", tmp_path)
    found = peak_bytes(lambda: None, Cpu())
    assert isinstance(found, Unavailable) and "/proc/self/status" in found.unavailable


def test_waits_and_launches_are_counted_inside_the_range_only() -> None:
    events = [
        ("cudaDeviceSynchronize", 5, 6),
        ("dynbench.counted", 10, 100),
        ("cudaLaunchKernel", 20, 21),
        ("aten::mm", 19, 22),
        ("cuLaunchKernel", 30, 31),
        ("cudaMemcpyAsync", 40, 41),
        ("cudaStreamSynchronize", 41, 60),
        ("cudaDeviceSynchronize", 101, 120),
    ]
    assert count_in(events) == Syncs(1.0, 2.0)


def test_a_profiler_that_sees_no_launches_is_no_zero() -> None:
    found = count_in([("dynbench.counted", 10, 100), ("aten::mm", 19, 22)])
    assert isinstance(found.kernel_launches, Unavailable) and isinstance(found.host_syncs, Unavailable)


def test_the_profiler_records_the_counted_range_and_what_lies_in_it() -> None:
    events = host_events(lambda: torch.ones(3) @ torch.ones(3), [ProfilerActivity.CPU])
    (begin, end) = next((start, end) for name, start, end in events if name == "dynbench.counted")
    assert any(name == "aten::dot" and begin <= start <= stop <= end for name, start, stop in events)
    assert "no CUDA calls" in str(count_in(events).host_syncs)


def test_a_cpu_has_no_launches_and_says_so() -> None:
    found = count_syncs(lambda: pytest.fail("ran for nothing"), Cpu())
    assert isinstance(found.host_syncs, Unavailable) and "CPU" in found.host_syncs.unavailable


@pytest.mark.cuda
@needs_cuda
def test_reading_a_number_back_is_one_wait() -> None:
    x = torch.ones(64, device="cuda:0")
    (x + 1).sum().item()
    found = count_syncs(lambda: (x + 1).sum().item(), Cuda(0))
    assert found.host_syncs == 1 and isinstance(found.kernel_launches, float) and found.kernel_launches >= 2


@pytest.mark.cuda
@needs_cuda
def test_peak_memory_on_a_gpu_is_what_a_call_holds_at_most() -> None:
    x = torch.ones(8, 2**20, device="cuda:0")
    assert peak_bytes(lambda: (x + 1) + 1, Cuda(0)) == 2 * 32 * MIB
