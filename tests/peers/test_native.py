"""The native agent, built here: it finds and times what the python agent does, and what is wrong is one sentence."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from dynbench.deploy import build
from dynbench.deploy.agents import python_agent
from dynbench.deploy.agents.native import program as native
from dynbench.deploy.bundle import sha256
from dynbench.deploy.job import Job, Result, Split, Timing, write_job
from dynbench.deploy.targets import outcome
from dynbench.deploy.targets.base import Failed
from dynbench.deploy.targets.local import Local
from dynbench.deploy.targets.profile import Reach
from dynbench.experiment import Options, load_specs
from dynbench.experiment.build import prepare
from tests.deploy.test_bundle import TINY
from tests.deploy.test_python_agent import BATTERY, PMIC
from tests.peers.debian import environment, headers, native_agent
from tests.peers.test_ssh import bundle, nothing_is_left, place

__all__ = ["bundle", "place"]  # fixtures

QUICK = Timing(warm_up_s=0.0, rounds_min=12, time_limit_s=0.05, batch_sizes=[1, 4], deadline_s=60)
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def built() -> native.Program:
    return native_agent()


@pytest.fixture
def commands(built: native.Program, tmp_path: Path) -> dict[str, list[str]]:
    """How both agents are started by hand."""
    folder = tmp_path / "native"
    folder.mkdir()
    shutil.copy(built.agent, folder / native.NAME)
    (folder / native.LIBRARY).symlink_to(built.library)
    return {"native": [str(folder / native.NAME)], "python": [sys.executable, python_agent.__file__]}


def here(place: Path, built: native.Program, **changes: object) -> Local:
    usual = {"kind": "local", "agent": "native", "folder": str(place), "program": built.agent}
    runtime = {"runtime_folder": built.library.parent}
    return Local("here", Reach.model_validate(usual | runtime | changes))


def silent(_: str) -> None:
    """Tells nobody."""


def by_hand(command: list[str], folder: Path, **more: str) -> tuple[Result | None, subprocess.CompletedProcess[str]]:
    """What an agent writes and says about the job in a folder."""
    done = subprocess.run(
        [*command, str(folder)], capture_output=True, text=True, timeout=120, env=environment(**more), check=False
    )
    if not (folder / "result.sha256").exists():
        return None, done
    content = (folder / "result.json").read_bytes()
    assert (folder / "result.sha256").read_text() == sha256(content)
    return Result.model_validate_json(content), done


def changed(folder: Path, job: Job, **keys: Any) -> None:
    """Writes a job anew, with the right hashes of its files."""
    hashes = {name: sha256((folder / name).read_bytes()) for name in job.sha256}
    (folder / "job.json").write_text(job.model_copy(update={"sha256": hashes, **keys}).model_dump_json())


def test_it_finds_what_the_python_agent_finds_and_times_every_arm(
    built: native.Program, place: Path, tmp_path: Path
) -> None:
    (spec,) = load_specs([str(TINY)])
    written = build.compile_prepared(prepare(spec, Options()), tmp_path / "bundle", controls=True)
    job = write_job(written.folder, tmp_path / "job", QUICK, twice="plain", controls=True)
    assert any(arm.given for arm in job.arms)  # the arm that gets its decisions
    found = {
        name: Result.model_validate_json(
            target.run(tmp_path / "job", name, deadline_s=120, progress=silent).read_bytes()
        )
        for name, target in (("native", here(place, built)), ("python", Local("here", Reach(kind="local"))))
    }
    ours, right = found["native"].of(job), found["python"]
    assert ours.checks == right.checks and len(ours.checks) == 2 * sum(arm.compared for arm in job.arms) >= 6
    assert ours.agent.model_dump() == right.agent.model_dump() | {"name": "native"}
    assert ours.device == right.device
    for arm in ours.arms:
        assert arm.reason is None and len(arm.rounds) >= 12 and arm.load_ms and arm.first_run_ms
    for size in (1, 4):
        arms = [arm for arm in ours.arms if arm.batch_size == size]
        orders = {tuple(arm.positions[i] for arm in arms) for i in range(len(arms[0].rounds))}
        assert len(orders) > 1 and all(sorted(order) == list(range(len(arms))) for order in orders)
    assert set(ours.readings) == set(right.readings) and ours.memory_bytes and not ours.clock_jumps
    assert nothing_is_left(place)


def test_doctor_starts_it(built: native.Program, place: Path) -> None:
    (step,) = here(place, built).doctor()
    assert step.level == "ok" and onnxruntime.__version__ in step.text
    (step,) = here(place, built, runtime_folder=place).doctor()
    assert step.level == "missing" and "there is no libonnxruntime.so" in step.text
    assert nothing_is_left(place)


def test_an_agent_of_another_version_is_refused(
    built: native.Program, bundle: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(outcome.VERSIONS, "native", "2")
    write_job(bundle, tmp_path / "job", QUICK)
    with pytest.raises(Failed, match="of version 1; 'native' of version 2 was asked for"):
        here(place, built).run(tmp_path / "job", "native", deadline_s=60, progress=silent)


def test_a_changed_file_is_one_sentence(built: native.Program, bundle: Path, place: Path, tmp_path: Path) -> None:
    job = write_job(bundle, tmp_path / "job", QUICK)
    (tmp_path / "job" / job.arms[0].graphs.any).write_bytes(b"another graph")
    with pytest.raises(Failed, match=r"dynamic\.onnx was changed: its sha256 differs"):
        here(place, built).run(tmp_path / "job", "native", deadline_s=60, progress=silent)
    assert nothing_is_left(place)


def test_arms_that_are_wrong_on_purpose_are_timed_and_a_network_is_not_split(
    built: native.Program, bundle: Path, place: Path, tmp_path: Path
) -> None:
    job = write_job(bundle, tmp_path / "job", QUICK)
    plain = next(arm for arm in job.arms if arm.name == "plain").model_copy(update={"compared": False})
    wrong = tmp_path / "job" / plain.answers[0].file
    np.save(wrong, np.load(wrong) + 1)
    changed(tmp_path / "job", job, arms=[plain])
    found = here(place, built).run(tmp_path / "job", "native", deadline_s=60, progress=silent)
    result = Result.model_validate_json(found.read_bytes())
    assert not result.checks and all(arm.rounds for arm in result.arms)
    cuts = {"port": 1, "secret": "0" * 32, "requests": 1, "cuts": [{"arm": "plain", "sends": []}]}
    changed(tmp_path / "job", job, arms=[plain], split=Split.model_validate(cuts))
    with pytest.raises(Failed, match="measures no network that is split"):
        here(place, built).run(tmp_path / "job", "native", deadline_s=60, progress=silent)


def test_a_library_that_is_not_onnx_runtime_is_one_sentence(
    built: native.Program, shared: dict[str, Path], bundle: Path, place: Path, tmp_path: Path
) -> None:
    write_job(bundle, tmp_path / "job", QUICK)
    (tmp_path / "runtime").mkdir()
    shutil.copy(shared["clock_jump"], tmp_path / "runtime" / native.LIBRARY)
    target = here(place, built, runtime_folder=tmp_path / "runtime")
    with pytest.raises(Failed, match="ONNX Runtime cannot be loaded: the library has no OrtGetApiBase"):
        target.run(tmp_path / "job", "native", deadline_s=60, progress=silent)
    (step,) = target.doctor()
    assert step.level == "missing" and "has no OrtGetApiBase" in step.text
    assert nothing_is_left(place)


@pytest.mark.parametrize("agent", ["native", "python"])
def test_other_answers_are_not_timed_and_nan_is_a_value(
    agent: str, commands: dict[str, list[str]], bundle: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "job"
    job = write_job(bundle, folder, QUICK)
    (plain,) = (arm for arm in job.arms if arm.name == "plain")
    answers = folder / plain.answers[0].file
    right = np.load(answers)
    for value, reason in ((right + 1, "answers differ by"), (right * np.nan, "NaN or infinities in other places")):
        np.save(answers, value)
        changed(folder, job)
        result, _ = by_hand(commands[agent], folder)
        assert result is not None
        others = [arm for arm in result.arms if arm.name != "plain"]
        assert others and all(arm.rounds and arm.reason is None for arm in others)
        for arm in result.arms:
            assert arm.name != "plain" or (not arm.rounds and reason in str(arm.reason))
    inputs = np.load(folder / "inputs.npy")
    inputs[3] = np.nan
    np.save(folder / "inputs.npy", inputs)
    session = onnxruntime.InferenceSession(folder / plain.graphs.any, providers=["CPUExecutionProvider"])
    (with_nan,) = session.run([plain.answers[0].output], {job.input.name: inputs})
    assert np.isnan(with_nan[3]).any()
    np.save(answers, with_nan)
    changed(folder, job, arms=[plain])
    result, _ = by_hand(commands[agent], folder)
    assert result is not None
    assert all(arm.rounds for arm in result.arms) and all(float(check.error) < 1e-6 for check in result.checks)


@pytest.mark.parametrize("agent", ["native", "python"])
def test_other_decisions_are_counted(agent: str, commands: dict[str, list[str]], bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "job"
    job = write_job(bundle, folder, QUICK)
    dynamic = job.arms[0]
    expected = folder / dynamic.decisions[0].expected
    values = np.load(expected)
    values[:8] = ~values[:8] if values.dtype == bool else values[:8] + 1
    np.save(expected, values)
    reached = np.load(folder / dynamic.decisions[0].reached)
    changed(folder, job)
    result, _ = by_hand(commands[agent], folder)
    assert result is not None
    for check in result.checks:
        assert check.decisions_differ == (int(reached[:8].sum()) if check.arm == "dynamic" else 0)
    assert {arm.name for arm in result.arms if "decisions differ" in str(arm.reason)} == {"dynamic"}


@pytest.mark.parametrize("agent", ["native", "python"])
def test_a_job_that_is_cut_off_leaves_no_result(
    agent: str, commands: dict[str, list[str]], bundle: Path, tmp_path: Path
) -> None:
    write_job(bundle, tmp_path / "job", QUICK)
    text = (tmp_path / "job" / "job.json").read_text()
    (tmp_path / "job" / "job.json").write_text(text[: len(text) // 2])
    result, done = by_hand(commands[agent], tmp_path / "job")
    assert result is None and done.returncode == 1
    assert done.stderr.strip().endswith("job.json is no job") and len(done.stderr.splitlines()) == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("a small disk can be mounted as root only")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("agent", ["native", "python"])
def test_a_disk_that_is_full_at_the_end_leaves_no_proof(
    agent: str, commands: dict[str, list[str]], bundle: Path, small_disk: Path
) -> None:
    folder = small_disk / "job"
    write_job(bundle, folder, QUICK)
    with (small_disk / "filler").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))
    with (small_disk / "filler").open("r+b") as file:
        file.truncate(file.seek(0, 2) - 4096)  # room for the number of the process
    result, done = by_hand(commands[agent], folder)
    assert result is None and done.returncode == 1 and "No space left on device" in done.stderr


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small shared libraries, by the name of their source."""
    if not shutil.which("cc"):
        pytest.skip("no C compiler is installed")
    folder = tmp_path_factory.mktemp("shared")
    for name in ("clock_jump", "hanging_runtime"):
        command = ["cc", "-shared", "-fPIC", "-o", str(folder / f"{name}.so"), str(HERE / f"{name}.c"), "-ldl"]
        subprocess.run(command, check=True)
    return {name: folder / f"{name}.so" for name in ("clock_jump", "hanging_runtime")}


@pytest.mark.parametrize("agent", ["native", "python"])
def test_a_clock_that_jumps_is_counted_and_no_time_uses_it(
    agent: str, commands: dict[str, list[str]], shared: dict[str, Path], bundle: Path, tmp_path: Path
) -> None:
    # Each round looks at the clock once; the jump comes after more looks than loading takes.
    write_job(bundle, tmp_path / "job", QUICK.model_copy(update={"rounds_min": 400, "batch_sizes": [1]}))
    result, _ = by_hand(commands[agent], tmp_path / "job", LD_PRELOAD=str(shared["clock_jump"]))
    assert result is not None and result.clock_jumps == 1
    assert result.ended_unix_s - result.started_unix_s > 3000  # the wall clock did jump
    assert all(ns < 60e9 for arm in result.arms for row in arm.rounds for ns in row)


def test_a_runtime_that_hangs_is_ended_at_the_deadline(
    commands: dict[str, list[str]], shared: dict[str, Path], bundle: Path, tmp_path: Path
) -> None:
    write_job(bundle, tmp_path / "job", QUICK.model_copy(update={"deadline_s": 0.5}))
    library = Path(commands["native"][0]).with_name(native.LIBRARY)
    library.unlink()
    shutil.copy(shared["hanging_runtime"], library)
    begin = time.monotonic()
    result, done = by_hand(commands["native"], tmp_path / "job")
    assert result is None and done.returncode == -14  # SIGALRM, of the kernel
    assert time.monotonic() - begin > python_agent.SPARE_S


def test_the_deadline_ends_the_rounds_and_keeps_them(
    commands: dict[str, list[str]], bundle: Path, tmp_path: Path
) -> None:
    endless = {"rounds_min": 10**6, "deadline_s": 2.0, "batch_sizes": [64]}  # long before the most samples of a job
    job = write_job(bundle, tmp_path / "job", QUICK.model_copy(update=endless))
    result, _ = by_hand(commands["native"], tmp_path / "job")
    assert result is not None and result.of(job).stopped_by == "deadline"
    assert all(arm.rounds for arm in result.arms)


def test_sustained_load_is_told_second_by_second(commands: dict[str, list[str]], bundle: Path, tmp_path: Path) -> None:
    timing = QUICK.model_copy(update={"sustained_s": 1.1, "batch_sizes": [1], "sensors": ["jetson_ina3221"]})
    job = write_job(bundle, tmp_path / "job", timing)
    result, _ = by_hand(commands["native"], tmp_path / "job")
    assert result is not None and result.of(job).sustained is not None
    assert {row.arm for row in result.sustained or []} == {arm.name for arm in job.arms}
    assert all(row.second == 0 and row.items and 0 < row.ns < 1.1e9 for row in result.sustained or [])
    energy = result.readings["energy_j"]
    assert all("no INA3221" in energy[arm.name]["unavailable"] for arm in job.arms)


def test_it_reads_sensors_and_statistics_as_the_python_agent_does(built: native.Program, tmp_path: Path) -> None:
    includes = [f"-I{native.SOURCE}", f"-I{headers()}/include", f"-I{headers()}/include/onnxruntime"]
    source = HERE / "native_parsers.cpp"
    subprocess.run(
        ["c++", "-std=c++17", *includes, str(source), "-o", str(tmp_path / "p"), "-ldl", "-pthread"], check=True
    )
    jetson = {"in1_label": "VDD_IN\n", "in1_input": "5000", "curr1_input": "1200", "in2_label": "NC", "in2_input": "x"}
    draw = np.random.default_rng(0)
    cases: dict[str, Any] = {
        "pmic": [PMIC, PMIC.replace("current(0)", "").replace("volt(8)", "").replace("A\n", "\n"), "no such command"],
        "ina3221": [jetson, {}],
        "battery": [BATTERY.format(usb="false"), BATTERY.format(usb="true"), "cmd: can't find service"],
        "temperature": ["45123", "-40000", "250000", ""],
        "emulated": [
            ["aarch64", "/usr/bin/qemu-aarch64 agent", "", "", ""],
            ["aarch64", "agent qemu-aarch64", "", "", ""],
            ["aarch64", "agent", "vendor_id : GenuineIntel", "", ""],
            ["aarch64", "agent", "", "cpu:type:x86,ven0000", ""],
            ["aarch64", "agent", "CPU implementer : 0x41", "cpu:type:aarch64:feature:", ""],
            ["aarch64", "agent", "CPU implementer : 0x41", "", "1"],
            ["aarch64", "agent", "CPU implementer : 0x41", "", "0"],
            ["x86_64", "agent", "vendor_id : GenuineIntel", "cpu:type:x86,ven0000", ""],
            ["x86_64", "agent", "", "cpu:type:aarch64:feature:", ""],
        ],
        "half_width": [[1.0] * 5, *(draw.lognormal(size=n).tolist() for n in (6, 40, 1074, 1075, 20_480))],
        "sha256": ["", "abc", "a" * 55, "a" * 56, "a" * 63, "a" * 64, "a" * 119, "b" * 100_000],
    }
    done = subprocess.run([str(tmp_path / "p")], input=json.dumps(cases), capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["pmic"] == [pytest.approx(python_agent.parse_pmic(text)) for text in cases["pmic"]]
    assert found["ina3221"] == [pytest.approx(python_agent.parse_ina3221(files)) for files in cases["ina3221"]]
    assert found["battery"] == [python_agent.parse_battery(text) for text in cases["battery"]]
    assert found["temperature"] == [python_agent.parse_temperature(text) for text in cases["temperature"]]
    assert found["emulated"] == [python_agent.is_emulated(*words) for words in cases["emulated"]]
    widths = [python_agent.half_width(ratios) for ratios in cases["half_width"]]
    assert found["half_width"] == ["inf", *(pytest.approx(width, rel=1e-9) for width in widths[1:])]
    assert found["sha256"] == [hashlib.sha256(text.encode()).hexdigest() for text in cases["sha256"]]
