"""What the witnesses of a measurement observe."""

from __future__ import annotations

import math
import time

import pytest

from dynbench.devices import witnesses
from dynbench.devices.cpu import Cpu
from dynbench.devices.cuda import Cuda
from dynbench.devices.fake import FakeDevice
from dynbench.devices.witnesses import CONTROL_CALLS, Watch
from dynbench.unavailable import Unavailable


def watched(monkeypatch: pytest.MonkeyPatch, kernel_ns: list[int]) -> Watch:
    """A watch whose control kernel takes these times, one after the other."""
    device, times = FakeDevice(), iter([0, *kernel_ns])  # the first call is not timed
    monkeypatch.setattr(witnesses, "control_kernel", lambda d: lambda: d.work(next(times)))
    monkeypatch.setattr(witnesses, "READING_INTERVAL_S", math.inf)
    watch = Watch(device)
    for _ in range(len(kernel_ns) // CONTROL_CALLS):
        watch.tick()
    return watch


def test_the_control_kernel_has_a_median_and_a_drift(monkeypatch: pytest.MonkeyPatch) -> None:
    slower = [100_000] * 3 * CONTROL_CALLS + [150_000] * 3 * CONTROL_CALLS
    found = watched(monkeypatch, slower).end()
    assert found.control_us == pytest.approx(125) and found.control_drift == pytest.approx(0.5)


def test_too_few_control_samples_are_said_to_be_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    found = watched(monkeypatch, []).end()
    assert found.control_us == found.control_drift == Unavailable(unavailable="timed 0 times")


def test_lost_time_is_a_share_of_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    now, lost = [10.0], [(1.0, 2.0)]
    monkeypatch.setattr(witnesses, "lost_s", lambda: lost[0])
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watch = Watch(Cpu())
    now[0], lost[0] = 14.0, (1.4, 4.0)
    found = watch.end()
    assert (found.window_s, found.stolen, found.waited) == pytest.approx((4.0, 0.1, 0.5))


def test_what_a_system_does_not_report_is_unavailable_and_not_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(witnesses, "lost_s", lambda: (None, None))
    monkeypatch.setattr(witnesses.psutil, "cpu_freq", lambda: None)
    monkeypatch.setattr(witnesses.psutil, "sensors_temperatures", dict, raising=False)
    found = Watch(Cpu()).end()
    for fact in (found.stolen, found.waited, found.clock_mhz, found.clock_drift, found.temperature_c):
        assert isinstance(fact, Unavailable) and fact.unavailable.startswith("the system ")


class FakeGpu(Cuda):
    """A GPU in name only; the test makes up its facts."""

    def synchronize(self) -> None:
        """Nothing was launched."""


def watched_gpu(monkeypatch: pytest.MonkeyPatch, readings: list[dict[str, object]]) -> witnesses.Witnesses:
    facts = iter(readings)
    monkeypatch.setattr(witnesses, "control_kernel", lambda device: lambda: None)
    monkeypatch.setattr(witnesses, "clock_facts", lambda index: next(facts))
    monkeypatch.setattr(witnesses, "nvml_facts", lambda index: {"temperature_c": 61})
    monkeypatch.setattr(witnesses, "READING_INTERVAL_S", -1.0)
    watch = Watch(FakeGpu(0))
    for _ in readings:
        watch.tick()
    return watch.end()


def test_a_gpus_clock_is_read_between_rounds_and_its_throttling_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free: dict[str, object] = {"sm_clock_mhz": 1980, "throttled_by": []}
    held: dict[str, object] = {"sm_clock_mhz": 1485, "throttled_by": ["power cap"]}
    found = watched_gpu(monkeypatch, [free, free, free, held, held, free])
    assert (found.clock_mhz, found.clock_low_mhz, found.temperature_c) == (1980.0, 1485.0, 61.0)
    assert found.clock_drift == pytest.approx(-0.25) and found.governor == "power cap (in 2 of 6 readings)"
    found = watched_gpu(monkeypatch, [free, held])
    assert found.clock_low_mhz == 1485.0 and found.clock_drift == Unavailable(unavailable="read 2 times")
    assert watched_gpu(monkeypatch, [free] * 4).governor == "nothing"


def test_a_gpu_whose_facts_cannot_be_read_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    why = Unavailable(unavailable="NVML Shared Library Not Found")
    found = watched_gpu(monkeypatch, [{"sm_clock_mhz": why, "throttled_by": why}] * 4)
    assert found.clock_mhz == found.clock_low_mhz == found.clock_drift == found.governor == why


def test_the_clock_is_not_read_at_every_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[float] = []

    def read_clock(device: object) -> witnesses.ClockReading:
        taken.append(1000.0 + len(taken))
        return witnesses.ClockReading(taken[-1], [])

    device = FakeDevice()
    monkeypatch.setattr(witnesses, "read_clock", read_clock)
    monkeypatch.setattr(witnesses, "control_kernel", lambda device: lambda: device.work(1000))
    monkeypatch.setattr(witnesses, "READING_INTERVAL_S", 3600.0)
    watch = Watch(device)
    for _ in range(100):
        watch.tick()
    assert watch.end().clock_mhz == 1000.0 and len(taken) == 1


def test_the_real_control_kernel_takes_time() -> None:
    watch = Watch(Cpu())
    for _ in range(4):
        watch.tick()
    found = watch.end()
    assert isinstance(found.control_us, float) and found.control_us > 0
    assert isinstance(found.control_drift, float) and found.window_s > 0
