"""A device by adb: Debian 13's adbd in a network of its own, and what can happen to it in the middle."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dynbench.deploy.job import Result, Timing, write_job
from dynbench.deploy.targets.adb import Adb
from dynbench.deploy.targets.base import Failed, Lost
from dynbench.deploy.targets.local import Local
from dynbench.deploy.targets.profile import Reach
from dynbench.errors import UserError
from tests.peers.debian import native_agent, unpacked
from tests.peers.test_ssh import LONG, QUICK, agents, bundle, nothing_is_left, place

__all__ = ["bundle", "place"]  # fixtures

SERIAL = "127.0.0.1:5555"
ADBD = "usr/lib/android-sdk/platform-tools/adbd"
LIBRARIES = "usr/lib/x86_64-linux-gnu"
ENDLESS = LONG.model_copy(update={"time_limit_s": 100.0, "batch_sizes": [64]})  # long before the most samples of a job


@dataclass
class Device:
    """An adbd, and the adb that reaches it: both in a network of their own, for adbd listens on all of it."""

    root: Path
    network: int
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        libraries = ":".join(str(self.root / LIBRARIES / part) for part in ("", "android", "systemd"))
        loader = self.root / "usr/lib64/ld-linux-x86-64.so.2"
        command = ["nsenter", f"--net=/proc/{self.network}/ns/net", str(loader), "--library-path", libraries]
        self.process = subprocess.Popen(
            [*command, str(self.root / ADBD)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture(scope="module")
def root() -> Path:
    if os.getuid() != 0 or platform.machine() != "x86_64":
        pytest.skip("adbd is started as root, on x86-64 only")
    for program in ("adb", "unshare", "nsenter", "ip"):
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed")
    return unpacked("adbd", "amd64", "adbd")


@pytest.fixture
def device(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    holder = subprocess.Popen(
        ["unshare", "-n", "sh", "-c", "ip link set lo up && echo up && exec sleep 600"], stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    if not holder.stdout.readline():
        pytest.skip("no network of its own can be made")
    adb = tmp_path / "bin" / "adb"
    adb.parent.mkdir()
    adb.write_text(
        f'#!/bin/sh\nHOME={tmp_path} exec nsenter --net=/proc/{holder.pid}/ns/net {shutil.which("adb")} "$@"\n'
    )
    adb.chmod(0o755)
    monkeypatch.setenv("PATH", f"{adb.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", "5137")
    monkeypatch.delenv("ANDROID_SERIAL", raising=False)
    device = Device(root, holder.pid)
    device.start()
    subprocess.run(["adb", "start-server"], capture_output=True, check=True, timeout=30)
    for _ in range(100):
        subprocess.run(["adb", "connect", SERIAL], capture_output=True, check=False, timeout=30)
        if f"{SERIAL}\tdevice" in subprocess.run(["adb", "devices"], capture_output=True, text=True, check=True).stdout:
            break
        time.sleep(0.1)
    else:
        raise AssertionError("adbd does not answer")
    yield device
    subprocess.run(["adb", "kill-server"], capture_output=True, check=False, timeout=30)
    device.stop()
    holder.kill()
    holder.wait()


def phone(place: Path, **changes: object) -> Adb:
    reach = {"kind": "adb", "serial": SERIAL, "python": sys.executable, "folder": str(place)} | changes
    return Adb("phone", Reach.model_validate(reach))


def silent(_: str) -> None:
    """Tells nobody."""


def checks(found: Path) -> list[tuple[str, int, object, int]]:
    result = Result.model_validate_json(found.read_bytes())
    return [(c.arm, c.batch_size, c.error, c.decisions_differ) for c in result.checks]


def test_answers_are_equal_to_those_of_this_machine_and_nothing_is_left(
    device: Device, bundle: Path, place: Path, tmp_path: Path
) -> None:
    job = write_job(bundle, tmp_path / "job", QUICK)
    found = phone(place).run(tmp_path / "job", "python", deadline_s=60, progress=silent)
    result = Result.model_validate_json(found.read_bytes()).of(job)
    assert {arm.name for arm in result.arms if arm.rounds} == {arm.name for arm in job.arms}
    local = Local("here", Reach(kind="local")).run(tmp_path / "job", "python", deadline_s=60, progress=silent)
    assert checks(found) == checks(local) and checks(found)
    assert nothing_is_left(place)


def test_the_native_agent_measures_and_is_removed(device: Device, bundle: Path, place: Path, tmp_path: Path) -> None:
    built = native_agent()
    native = phone(place, python=None, agent="native", program=built.agent, runtime_folder=built.library.parent)
    assert {s.name: s.level for s in native.doctor()} == {"connection": "ok", "native agent": "ok", "disk": "ok"}
    assert nothing_is_left(place)
    job = write_job(bundle, tmp_path / "job", QUICK)
    found = native.run(tmp_path / "job", "native", deadline_s=60, progress=silent)
    result = Result.model_validate_json(found.read_bytes()).of(job)
    assert {arm.name for arm in result.arms if arm.rounds} == {arm.name for arm in job.arms}
    local = Local("here", Reach(kind="local")).run(tmp_path / "job", "python", deadline_s=60, progress=silent)
    assert checks(found) == checks(local) and result.agent.name == "native"
    assert nothing_is_left(place)


def test_doctor_names_each_step(device: Device, place: Path) -> None:
    assert {s.name: s.level for s in phone(place).doctor()} == {"connection": "ok", "python": "ok", "disk": "ok"}
    (python,) = (s for s in phone(place, python="/nowhere/python").doctor() if s.name == "python")
    assert python.level == "missing" and "browser" in python.remedy
    (lost,) = phone(place, serial="nobody").doctor()
    assert lost.level == "missing" and "does not see the device nobody" in lost.text


def test_a_connection_cut_in_the_middle_does_not_lose_the_result(
    device: Device, bundle: Path, place: Path, tmp_path: Path
) -> None:
    write_job(bundle, tmp_path / "job", LONG)

    def cut() -> None:
        device.stop()
        time.sleep(1.0)
        device.start()

    told: list[str] = []

    def progress(text: str) -> None:
        told.append(text)
        if "measuring" in text:
            threading.Timer(1.0, cut).start()

    found = phone(place).run(tmp_path / "job", "python", deadline_s=60, progress=progress)
    assert checks(found) and any("the agent goes on there" in text for text in told)
    assert nothing_is_left(place)


def test_a_device_that_vanishes_is_lost_and_its_agent_ends_by_itself(
    device: Device, bundle: Path, place: Path, tmp_path: Path
) -> None:
    write_job(bundle, tmp_path / "job", ENDLESS.model_copy(update={"deadline_s": 4.0}))
    with pytest.raises(Lost, match="phone: "):
        phone(place).run(
            tmp_path / "job", "python", deadline_s=3, progress=lambda t: device.stop() if "measuring" in t else None
        )
    end = time.monotonic() + 60
    while agents(place) and time.monotonic() < end:
        time.sleep(0.2)
    assert not agents(place)


def test_a_device_that_is_too_slow_is_lost_and_cleaned_up(
    device: Device, bundle: Path, place: Path, tmp_path: Path
) -> None:
    write_job(bundle, tmp_path / "job", ENDLESS)
    ran: list[int] = []

    def progress(text: str) -> None:
        if "measuring" in text:
            threading.Timer(2.0, lambda: ran.extend(agents(place))).start()

    with pytest.raises(Lost, match="did not finish within 4 s"):
        phone(place).run(tmp_path / "job", "python", deadline_s=4, progress=progress)
    assert ran and nothing_is_left(place)


def test_an_interrupt_ends_the_agent(device: Device, bundle: Path, place: Path, tmp_path: Path) -> None:
    write_job(bundle, tmp_path / "job", ENDLESS)
    ran: list[int] = []

    def interrupt() -> None:
        ran.extend(agents(place))
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        phone(place).run(
            tmp_path / "job", "python", deadline_s=60,
            progress=lambda t: threading.Timer(2.0, interrupt).start() if "measuring" in t else None,
        )  # fmt: skip
    assert ran and nothing_is_left(place)


def test_a_changed_file_is_refused_by_the_agent(device: Device, bundle: Path, place: Path, tmp_path: Path) -> None:
    job = write_job(bundle, tmp_path / "job", Timing(warm_up_s=0.0, rounds_min=1, time_limit_s=0.05, deadline_s=30))
    (tmp_path / "job" / job.arms[0].graphs.any).write_bytes(b"another graph")
    with pytest.raises(Failed, match="was changed: its sha256 differs"):
        phone(place).run(tmp_path / "job", "python", deadline_s=60, progress=silent)
    assert nothing_is_left(place)


def test_what_cannot_be_reached_has_a_remedy(device: Device, bundle: Path, place: Path, tmp_path: Path) -> None:
    write_job(bundle, tmp_path / "job", QUICK)
    with pytest.raises(Lost, match="adb does not see the device nobody .*enable USB debugging"):
        phone(place, serial="nobody").run(tmp_path / "job", "python", deadline_s=60, progress=silent)
    with pytest.raises(Failed, match="cannot be started there"):
        phone(place, python="/nowhere").run(tmp_path / "job", "python", deadline_s=60, progress=silent)
    with pytest.raises(UserError, match="measures by the agent 'python'"):
        phone(place).run(tmp_path / "job", "native", deadline_s=60, progress=silent)
    assert nothing_is_left(place)
