"""Latency, phases and energy on a device whose time only passes when told to."""

from __future__ import annotations

import pytest
import torch

from dynbench.devices.cpu import Cpu
from dynbench.devices.cuda import Cuda
from dynbench.devices.fake import FakeDevice
from dynbench.dynamic import Execution
from dynbench.meters.energy import MIN_WINDOW_S, PARTS, idle_power_w, measure_energy
from dynbench.meters.latency import Timing, time_batches
from dynbench.meters.phases import PhaseTimer
from dynbench.strategies import Compaction
from dynbench.unavailable import Unavailable
from tests.networks import make

MS = 1_000_000
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def test_a_call_lasts_until_the_device_is_done() -> None:
    device = FakeDevice()
    device.work(5 * MS, device_ns=100 * MS)  # left over from before: not part of the first call
    timings = time_batches(lambda ms: device.work(ms * MS, device_ns=10 * ms * MS), [(1,), (2,)], device)
    assert timings == [Timing(105 * MS, 11 * MS, 11 * MS), Timing(116 * MS, 22 * MS, 22 * MS)]


def test_a_cpu_has_no_device_time() -> None:
    (timing,) = time_batches(lambda: None, [()], Cpu())
    assert timing.device_ns is None and timing.duration_ns >= 0


def test_a_phase_has_its_own_time_without_the_phases_inside_it() -> None:
    device = FakeDevice()
    timer = PhaseTimer(device)
    with timer:
        device.work(1 * MS)
        timer.enter("body", "stage", 0)
        device.work(2 * MS, device_ns=3 * MS)
        timer.enter("decide", "gate", None)
        device.work(10 * MS)
        timer.exit()
        device.work(1 * MS)
        timer.exit()
        device.work(1 * MS)
    phases = timer.phases()
    assert (phases.body_ms, phases.decide_ms, phases.other_ms, phases.sync_ms) == (6.0, 10.0, 2.0, 0.0)


def test_the_phases_of_a_pass_add_up_to_its_time() -> None:
    net, args = make("moe_exits")
    timer = PhaseTimer(Cpu())
    with torch.inference_mode(), timer:
        Execution(Compaction(), profile=timer).run(net, *args)
    phases = timer.phases().model_dump()
    assert all(phases[f"{name}_ms"] > 0 for name in ("decide", "gather", "body", "scatter", "sync", "head", "other"))


def test_energy_per_item_is_what_the_counter_says_over_a_window() -> None:
    device = FakeDevice(idle_w=50.0)
    energy = measure_energy(lambda: device.work(100 * MS, extra_w=150.0), device, items=10, idle_w=50.0)
    assert energy.item_j == pytest.approx(200.0 * 0.1 / 10)
    assert energy.idle_share == pytest.approx(0.25)
    assert energy.window_s == pytest.approx(MIN_WINDOW_S) and energy.sensor == "fake counter"
    assert energy.parts_j == pytest.approx([2.0] * PARTS)  # J of an item, in each part


def test_a_long_call_is_a_window_by_itself() -> None:
    device = FakeDevice(idle_w=50.0)
    energy = measure_energy(lambda: device.work(7000 * MS, extra_w=50.0), device, items=1, idle_w=50.0)
    assert energy.window_s == pytest.approx(7.0) and energy.item_j == pytest.approx(700.0)
    assert energy.parts_j == pytest.approx([700.0])


def test_the_parts_of_a_window_are_of_the_calls_inside_them() -> None:
    device, powers = FakeDevice(idle_w=0.0), iter([10.0, 20.0, 30.0, 40.0])
    energy = measure_energy(lambda: device.work(500 * MS, extra_w=next(powers, 30.0)), device, items=1, idle_w=0.0)
    assert energy.parts_j == pytest.approx([10.0, 15.0, 20.0, 15.0])  # the first call of all warms up
    assert energy.item_j == pytest.approx(15.0)


def test_idle_power_is_watched_long_enough_for_the_counter() -> None:
    device = FakeDevice(idle_w=50.0)
    assert idle_power_w(device, idle_s=0.001, sleep=device.sleep) == pytest.approx(50.0)
    assert device.now_ns == 2000 * MS  # twenty updates of 0.1 s


def test_energy_without_a_counter_says_why_and_does_not_run_the_work() -> None:
    device = FakeDevice()
    energy = measure_energy(lambda: pytest.fail("ran for nothing"), device, items=1)
    assert energy.item_j == Unavailable(unavailable="fake has no energy counter") == energy.idle_share


def test_a_counter_that_stands_still_is_no_zero() -> None:
    device = FakeDevice(idle_w=0.0)
    energy = measure_energy(lambda: device.work(100 * MS), device, items=1, idle_w=0.0)
    assert isinstance(energy.item_j, Unavailable) and "did not move in 2.0 s" in energy.item_j.unavailable


@pytest.mark.cuda
@needs_cuda
def test_a_gpu_call_has_device_time() -> None:
    device, x = Cuda(0), torch.randn(512, 512, device="cuda:0")
    timings = time_batches(lambda y: y @ y, [(x,), (x,)], device)
    assert all(t.device_ns is not None and t.device_ns > 0 for t in timings)


@pytest.mark.cuda
@needs_cuda
def test_gpu_energy_is_measured_or_says_why_not() -> None:
    x = torch.randn(2048, 2048, device="cuda:0")
    energy = measure_energy(lambda: x @ x, Cuda(0), items=1)
    assert isinstance(energy.item_j, Unavailable) or energy.item_j > 0
