"""The agent that is copied to devices: its parsers, its comparison, and whole jobs on this machine."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynbench.analysis.statistics import median_interval
from dynbench.deploy import build
from dynbench.deploy.agents import python_agent as agent
from dynbench.deploy.bundle import sha256
from dynbench.deploy.job import Job, Result, Timing, write_job
from dynbench.deploy.targets.base import Failed, Lost
from dynbench.deploy.targets.local import Local
from dynbench.deploy.targets.profile import Reach
from dynbench.errors import UserError
from dynbench.experiment import Options, load_specs
from tests.deploy.test_bundle import TINY

QUICK = Timing(warm_up_s=0.0, rounds_min=2, time_limit_s=0.02, deadline_s=30)
PMIC = """     3V7_WL_SW_A current(0)=0.10000000A
        VDD_CORE_A current(7)=2.00000000A
     3V7_WL_SW_V volt(8)=3.70000000V
        VDD_CORE_V volt(15)=0.75000000V
           EXT5V_V volt(24)=5.10000000V
"""
BATTERY = """Current Battery Service state:
  AC powered: false
  USB powered: {usb}
  level: 87
  scale: 100
  voltage: 4123
  temperature: 291
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (spec,) = load_specs([str(TINY)])
    return build.compile_bundle(spec, tmp_path_factory.mktemp("bundles") / "tiny", Options()).folder


def measured(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the agent writes about a job; in this process, so without its watchdog."""
    monkeypatch.setattr(signal, "setitimer", lambda *_: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    agent.main(folder)
    content = (folder / "result.json").read_bytes()
    assert (folder / "result.sha256").read_text() == sha256(content)
    found: dict[str, Any] = json.loads(content)
    return found


@pytest.mark.parametrize("text", [PMIC, PMIC.replace("current(0)", "").replace("volt(8)", "").replace("A\n", "\n")])
def test_power_of_a_raspberry_pi_is_the_sum_of_rails_with_both_readings(text: str) -> None:
    rails = agent.parse_pmic(text)
    assert rails == pytest.approx({"3V7_WL_SW": 0.37, "VDD_CORE": 1.5})


def test_power_of_a_jetson_is_in_watts_by_rail() -> None:
    files = {"in1_label": "VDD_IN\n", "in1_input": "5000", "curr1_input": "1200", "in2_label": "NC", "in2_input": "x"}
    assert agent.parse_ina3221(files) == pytest.approx({"VDD_IN": 6.0})


def test_battery_says_whether_it_is_charged() -> None:
    state = agent.parse_battery(BATTERY.format(usb="false"))
    assert state == {"percent": 87.0, "volts": 4.123, "temperature_c": 29.1, "powered": False}
    assert agent.parse_battery(BATTERY.format(usb="true"))["powered"]  # type: ignore[index]
    assert agent.parse_battery("cmd: can't find service") is None


@pytest.mark.parametrize(("text", "right"), [("45123", 45.123), ("-40000", None), ("250000", None), ("", None)])
def test_implausible_temperatures_are_none(text: str, right: float | None) -> None:
    assert agent.parse_temperature(text) == right


def test_emulators_are_recognised() -> None:
    assert agent.is_emulated("aarch64", "/usr/bin/qemu-aarch64 python3 agent.py", "")
    assert agent.is_emulated("aarch64", "python3 agent.py", "vendor_id : GenuineIntel")
    assert agent.is_emulated("aarch64", "python3 agent.py", "", modalias="cpu:type:x86,ven0000")
    assert agent.is_emulated("x86_64", "python3 agent.py", "", modalias="cpu:type:aarch64:feature:")
    assert agent.is_emulated("aarch64", "agent", "CPU implementer : 0x41", emulator="1\n")
    assert not agent.is_emulated("aarch64", "python3 agent.py", "CPU implementer : 0x41")
    assert not agent.is_emulated("x86_64", "python3 agent.py", "vendor_id : GenuineIntel", "cpu:type:x86,ven0000")
    assert not agent.is_emulated("aarch64", "agent", "", modalias="cpu:type:aarch64:feature:", emulator="0")


def test_half_width_follows_the_sign_test() -> None:
    assert agent.half_width([1.0] * 5) == math.inf  # no two order statistics cover 95 % of five
    assert agent.half_width([float(i) for i in range(1, 11)]) == pytest.approx((9 - 2) / 2 / 5.5)
    for rounds in (6, 40, 1074, 1075, 1280, 20_480):  # from 1075 on 0.5**rounds is 0
        ratios = np.random.default_rng(rounds).lognormal(size=rounds)
        found = median_interval(ratios)
        right = (found.high - found.low) / 2 / float(np.median(ratios))
        assert agent.half_width([float(r) for r in ratios]) == pytest.approx(right, rel=1e-9)


def test_nan_compares_as_a_value() -> None:
    same = np.ones(2, dtype=bool)
    x = np.array([[1.0], [np.nan]], dtype=np.float32)
    assert agent.answer_error(np, x, x, same) == 0.0
    assert math.isnan(agent.answer_error(np, np.ones_like(x), x, same))
    assert agent.answer_error(np, x[:1], x, same) == math.inf


@pytest.mark.parametrize("size", [1, 4])
def test_a_job_is_measured(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    job = write_job(bundle, tmp_path / "job", QUICK.model_copy(update={"batch_sizes": [size]}))
    result = Result.model_validate(measured(tmp_path / "job", monkeypatch)).of(job)
    for arm in result.arms:
        assert arm.reason is None and len(arm.rounds) >= 2
    orders = {tuple(arm.positions[i] for arm in result.arms) for i in range(len(result.arms[0].rounds))}
    assert all(sorted(order) == list(range(len(result.arms))) for order in orders)
    (check,) = (c for c in result.checks if c.arm == "dynamic")
    assert check.decisions > 0 and check.decisions_differ == 0 and float(check.error) < job.tolerance


def test_an_arm_that_answers_otherwise_is_not_timed(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = write_job(bundle, tmp_path / "job", QUICK)
    file = tmp_path / "job" / job.arms[0].answers[0].file
    np.save(file, np.load(file) + 1)
    _sign(tmp_path / "job", job, job.arms[0].answers[0].file)
    dynamic, *others = measured(tmp_path / "job", monkeypatch)["arms"]
    assert dynamic["rounds"] == [] and "answers differ" in dynamic["reason"]
    assert all(arm["rounds"] for arm in others)


def test_an_emulated_job_is_compared_and_not_timed(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = write_job(bundle, tmp_path / "job", QUICK.model_copy(update={"emulated": True}))
    result = Result.model_validate(measured(tmp_path / "job", monkeypatch)).of(job)
    assert result.emulated and len(result.checks) == len(job.arms)
    assert all(not arm.rounds and arm.load_ms is None and arm.first_run_ms is None for arm in result.arms)


def test_a_changed_file_and_another_schema_are_one_sentence(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = write_job(bundle, tmp_path / "job", QUICK)
    (tmp_path / "job" / "inputs.npy").write_bytes(b"other")
    said = measured(tmp_path / "job", monkeypatch)
    assert said["status"] == "failed" and said["reason"] == "inputs.npy was changed: its sha256 differs"
    table = json.loads((tmp_path / "job" / "job.json").read_bytes()) | {"schema_version": 9}
    (tmp_path / "job" / "job.json").write_text(json.dumps(table))
    assert "schema version 9" in measured(tmp_path / "job", monkeypatch)["reason"]
    assert said["job_id"] == job.job_id


def test_a_jump_of_the_wall_clock_is_counted_and_no_time_uses_it(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_job(bundle, tmp_path / "job", QUICK)
    now, asked = agent.time.time, iter(range(10**9))
    monkeypatch.setattr(agent.time, "time", lambda: now() + 3600 * (next(asked) >= 2))  # after the first two looks
    result = measured(tmp_path / "job", monkeypatch)
    assert result["clock_jumps"] == 1
    assert all(ns < 1e9 for arm in result["arms"] for row in arm["rounds"] for ns in row)


def test_sustained_load_is_told_second_by_second(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = write_job(bundle, tmp_path / "job", QUICK.model_copy(update={"sustained_s": 1.1}))
    result = Result.model_validate(measured(tmp_path / "job", monkeypatch)).of(job)
    assert result.sustained is not None
    assert {row.arm for row in result.sustained} == {arm.name for arm in job.arms}
    assert all(row.second == 0 and row.items and 0 < row.ns < 1.1e9 for row in result.sustained)
    energy = result.readings["energy_j"]
    assert all("no sensor" in energy[arm.name]["unavailable"] for arm in job.arms)


def test_local_target_keeps_a_proved_result(bundle: Path, tmp_path: Path) -> None:
    job = write_job(bundle, tmp_path / "job", QUICK)
    target = Local("here", Reach(kind="local"))
    assert [step.level for step in target.doctor()] == ["ok"]
    found = target.run(tmp_path / "job", "python", deadline_s=60, progress=lambda _: None)
    assert Result.model_validate_json(found.read_bytes()).of(job).agent.name == "python"


def test_local_target_says_what_is_wrong(bundle: Path, tmp_path: Path) -> None:
    write_job(bundle, tmp_path / "job", QUICK.model_copy(update={"rounds_min": 10**6, "time_limit_s": 20.0}))

    def run(reach: Reach, who: str = "python", deadline_s: float = 60) -> None:
        Local("here", reach).run(tmp_path / "job", who, deadline_s=deadline_s, progress=lambda _: None)

    with pytest.raises(Lost, match="did not finish within 1 s"):
        run(Reach(kind="local"), deadline_s=1)
    with pytest.raises(UserError, match="by the agent 'python', not 'native'"):
        run(Reach(kind="local"), who="native")
    with pytest.raises(UserError, match="/nowhere/python cannot be started"):
        run(Reach(kind="local", python="/nowhere/python"))
    with pytest.raises(Failed, match="ended without a result"):
        run(Reach(kind="local", python="/bin/false"))


def _sign(folder: Path, job: Job, name: str) -> None:
    hashes = job.sha256 | {name: sha256((folder / name).read_bytes())}
    (folder / "job.json").write_text(job.model_copy(update={"sha256": hashes}).model_dump_json())
