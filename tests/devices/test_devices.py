"""Devices, profiles and the doctor."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import psutil
import pynvml
import pytest

from dynbench.devices import cpu, cuda, device, known_devices
from dynbench.devices.cpu import Cpu
from dynbench.devices.cuda import Cuda, clock_facts, nvml_facts, reasons
from dynbench.devices.doctor import (
    Noise,
    _median_ranks,
    bfloat16_findings,
    examine,
    gpu_findings,
    measure_noise,
    noise_findings,
)
from dynbench.devices.fake import FakeDevice
from dynbench.devices.profiles import profile_of
from dynbench.errors import UserError
from dynbench.unavailable import Unavailable

MS = 1_000_000


def test_the_cpu_is_described_in_values_that_can_be_stored() -> None:
    facts = json.loads(json.dumps(device("cpu").describe()))
    assert facts["cores_usable"] >= 1 and facts["memory_bytes"] > 0 and facts["name"]


def test_what_cannot_be_read_of_the_cpu_is_stored_as_unavailable_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cpu, "_CPU0", tmp_path)
    monkeypatch.setattr(psutil, "cpu_freq", lambda: None)
    facts = json.loads(json.dumps(Cpu().describe()))
    assert facts["clock_mhz"] == {"unavailable": "the system reports no clock"}
    assert facts["caches_bytes"] == {"unavailable": "the system reports no cache sizes"}
    assert facts["governor"].keys() == {"unavailable"}


@pytest.mark.parametrize(
    ("info", "units"),
    [
        ("model name : A\nflags\t\t: fpu avx512_bf16 amx_bf16 amx_tile\nflags : fpu", ["amx_bf16", "avx512_bf16"]),
        ("processor : 0\nFeatures\t: fp asimd bf16 svebf16\n", ["svebf16", "bf16"]),
        ("flags : fpu avx2\n", []),
        (None, []),
    ],
)
def test_units_for_bfloat16_are_those_of_the_first_core(
    monkeypatch: pytest.MonkeyPatch, info: str | None, units: list[str]
) -> None:
    monkeypatch.setattr(cpu, "_read", lambda path: info)
    assert cpu.bfloat16_units() == units


def test_the_doctor_says_where_bfloat16_would_be_faster() -> None:
    assert bfloat16_findings([]) == []
    (finding,) = bfloat16_findings(["amx_bf16"])
    assert finding.level == "note" and "amx_bf16" in finding.text and "--dtype bfloat16" in finding.remedy


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("cdua", "did you mean cuda?"),
        ("cpu0", "did you mean cpu?"),
        ("cuda:x", "did you mean cuda:N?"),
        ("CPU", "accepted: cpu, cuda, cuda:N"),
    ],
)
def test_an_unknown_device_names_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"unknown device '{name}'; {hint}")):
        device(name)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_cuda_where_there_is_none_says_why(name: str) -> None:
    with pytest.raises(UserError, match=f"device '{name}' is not available: .*CUDA"):
        device(name)


def test_known_devices_begin_with_the_cpu_and_include_cuda() -> None:
    names = dict(known_devices())
    assert names["cpu"] is None and "cuda:0" in names


def test_looking_for_devices_needs_no_torch() -> None:
    code = "import sys, dynbench.devices; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_a_cpu_without_an_energy_counter_says_why_and_one_with_it_counts() -> None:
    sensor = Cpu().energy_sensor()
    assert ("RAPL" in sensor) if isinstance(sensor, str) else (sensor.read_j() >= 0)


def test_a_profile_fits_the_whole_name_of_a_device_and_names_its_source() -> None:
    profile = profile_of("NVIDIA H200")
    assert profile is not None and "data sheet" in profile["source"]
    assert profile["ceilings"]["memory_bytes_per_s"] == 4.8e12
    assert profile_of("NVIDIA H200 NVL") is None


def test_every_profile_can_be_read() -> None:
    import tomllib

    from dynbench.paths import project_dir

    for path in project_dir("hardware").glob("*.toml"):
        profile = tomllib.loads(path.read_text())
        assert profile.keys() == {"name", "match", "source", "ceilings"}, path
        assert profile["ceilings"].keys() == {"memory_bytes_per_s", "flops_per_s"}, path


def test_throttle_bits_are_named() -> None:
    assert reasons(0x1 | 0x4) == ["idle", "power cap"] and reasons(0) == []


def test_half_of_all_values_lie_on_each_side_of_the_median_ranks() -> None:
    """Binomial: for 20 values the 6th and the 15th enclose the median with 95.9 %; for 10 the 2nd and the 9th."""
    assert _median_ranks(20) == (5, 14) and _median_ranks(10) == (1, 8) and _median_ranks(3) == (0, 2)


def test_a_steady_machine_compared_with_itself_shows_no_difference() -> None:
    fake = FakeDevice()
    noise = measure_noise(lambda: fake.work(MS), 3.0, fake.clock_ns)
    assert noise.resolution == noise.off == 0
    assert 2.5e9 < fake.now_ns < 3.5e9
    assert [f.level for f in noise_findings(noise) if f.id == "DB-NOISE-01"] == ["ok"]


def test_a_machine_that_is_slow_now_and_then_has_a_coarse_resolution() -> None:
    fake, calls = FakeDevice(), iter(range(10**9))
    noise = measure_noise(lambda: fake.work(MS * (1 + 20 * (next(calls) % 97 == 0))), 3.0, fake.clock_ns)
    (finding, *_) = noise_findings(noise)
    assert noise.resolution > 0.02
    assert (finding.id, finding.level) == ("DB-NOISE-01", "warning") and finding.remedy


def test_lost_time_is_reported_with_a_remedy() -> None:
    found = noise_findings(Noise(0.001, 0.0, stolen=0.2, waited=0.5))
    assert [(f.id, f.level) for f in found[1:]] == [("DB-STEAL-01", "warning"), ("DB-LOAD-02", "warning")]
    assert len(noise_findings(Noise(0.001, 0.0, stolen=None, waited=None))) == 1


def test_a_gpu_that_is_held_down_or_shared_is_a_warning() -> None:
    found = gpu_findings("cuda:0", {"throttled_by": ["idle", "power cap"], "other_processes": 2})
    assert [f.id for f in found] == ["DB-GPU-01", "DB-GPU-02"] and "power cap" in found[0].text
    assert gpu_findings("cuda:0", {"throttled_by": ["idle"], "other_processes": 0}) == []
    unknown = Unavailable(unavailable="no driver")
    assert gpu_findings("cuda:0", {"throttled_by": unknown, "other_processes": unknown}) == []


@pytest.mark.usefixtures("no_gpu")
def test_facts_about_a_gpu_without_nvml_are_unavailable_and_say_why() -> None:
    facts = nvml_facts(97)
    assert facts and all(isinstance(fact, Unavailable) and fact.unavailable for fact in facts.values())
    assert clock_facts(97).keys() == {"sm_clock_mhz", "throttled_by"} <= facts.keys()


def test_facts_about_a_gpu_come_from_nvml_each_with_its_own_reason_where_it_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nvml = Mock(spec=pynvml)  # refuses names that NVML does not have
    nvml.nvmlSystemGetDriverVersion.return_value = "580.65"
    nvml.nvmlDeviceGetClockInfo.return_value = 1980
    nvml.nvmlDeviceGetCurrentClocksThrottleReasons.return_value = 0x4
    nvml.nvmlDeviceGetEnforcedPowerLimit.return_value = 700_000
    nvml.nvmlDeviceGetComputeRunningProcesses.return_value = ["this", "another"]
    nvml.nvmlDeviceGetTemperature.side_effect = pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
    monkeypatch.setattr(cuda, "_nvml", lambda index: (nvml, "handle"))
    facts = nvml_facts(0)
    assert clock_facts(0) == {"sm_clock_mhz": 1980, "throttled_by": ["power cap"]}
    assert (facts["driver"], facts["power_limit_w"], facts["other_processes"]) == ("580.65", 700.0, 1)
    assert facts["temperature_c"] == Unavailable(unavailable="Not Supported")


def test_the_doctor_looks_at_everything() -> None:
    ids = {f.id for f in examine(seconds=0.1)}
    assert ids >= {"DB-DEVICE-01", "DB-FREQ-01", "DB-THREADS-01", "DB-LOAD-01", "DB-NOISE-01"}
    assert ids & {"DB-SENSOR-01", "DB-SENSOR-02"}


@pytest.mark.cuda
def test_a_gpu_is_described_in_values_that_can_be_stored() -> None:
    facts = json.loads(json.dumps(Cuda(0).describe()))
    assert facts["memory_bytes"] > 0 and facts["driver"] and isinstance(facts["throttled_by"], (list, dict))


@pytest.mark.cuda
def test_a_gpu_that_is_not_there_says_how_many_are() -> None:
    with pytest.raises(UserError, match="CUDA devices here"):
        device("cuda:99")
