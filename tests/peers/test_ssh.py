"""A device by ssh: a server of its own on the loopback, and what can happen to it in the middle."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from dynbench.deploy import build
from dynbench.deploy.agents.native.program import Program
from dynbench.deploy.job import Result, Timing, write_job
from dynbench.deploy.targets import outcome
from dynbench.deploy.targets.base import Failed, Lost
from dynbench.deploy.targets.profile import Reach
from dynbench.deploy.targets.ssh import Ssh
from dynbench.experiment import Options, load_specs
from tests.deploy.test_bundle import TINY
from tests.deploy.test_native_program import elf, put
from tests.peers.debian import native_agent

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
pytestmark = pytest.mark.skipif(SSHD is None or not shutil.which("ssh"), reason="no OpenSSH server is installed")
LONG = Timing(warm_up_s=0.0, rounds_min=1, time_limit_s=6.0, precision=1e-9, deadline_s=30)
QUICK = Timing(warm_up_s=0.0, rounds_min=1, time_limit_s=0.05, deadline_s=30)


@dataclass
class Server:
    """An sshd that lets this user in by a key of its own."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None
    cuts: int = 0

    def start(self) -> None:
        assert SSHD is not None
        command = [SSHD, "-D", "-f", str(self.folder / "config")]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError("sshd does not start")

    def cut(self) -> None:
        """Ends every connection; the server goes on."""
        assert self.process is not None
        sessions = psutil.Process(self.process.pid).children()
        self.cuts += len(sessions)
        for session in sessions:
            session.kill()

    def stop(self) -> None:
        if self.process is not None:
            children = psutil.Process(self.process.pid).children()
            self.process.kill()
            self.process.wait()
            for session in children:
                session.kill()
            self.process = None


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("DYNBENCH_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "sshd"
    folder.mkdir(mode=0o700)
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True)
    shutil.copy(folder / "user.pub", folder / "authorized")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    (folder / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
        f"StrictModes no\nUsePAM no\nPasswordAuthentication no\nPidFile {folder}/pid\nPermitRootLogin yes\n"
    )
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    server = Server(folder, port)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (spec,) = load_specs([str(TINY)])
    return build.compile_bundle(spec, tmp_path_factory.mktemp("bundles") / "tiny", Options()).folder


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The folder on the device."""
    (tmp_path / "device").mkdir()
    return tmp_path / "device"


def device(server: Server, place: Path, **changes: object) -> Ssh:
    usual = {"host": "127.0.0.1", "port": server.port, "identity": server.folder / "user", "accept_new_host": True}
    reach = {"kind": "ssh", "python": sys.executable, "folder": str(place)} | usual | changes
    return Ssh("board", Reach.model_validate(reach))


def agents(place: Path) -> list[int]:
    """Agents that run for jobs in a folder."""
    found = psutil.process_iter(["pid", "cmdline"])
    return [p.pid for p in found if any(str(place) in part for part in p.info["cmdline"] or [])]


def nothing_is_left(place: Path) -> bool:
    return not list(place.iterdir()) and not agents(place)


def test_a_job_is_measured_and_nothing_is_left(server: Server, bundle: Path, place: Path, tmp_path: Path) -> None:
    job = write_job(bundle, tmp_path / "job", QUICK)
    found = device(server, place).run(tmp_path / "job", "python", deadline_s=60, progress=lambda _: None)
    result = Result.model_validate_json(found.read_bytes()).of(job)
    assert all(check.decisions_differ == 0 and check.error != "nan" for check in result.checks)
    assert {arm.name for arm in result.arms if arm.rounds} == {arm.name for arm in job.arms}
    assert nothing_is_left(place)


def test_doctor_names_each_step(server: Server, place: Path) -> None:
    assert {s.name: s.level for s in device(server, place).doctor()} == {
        "connection": "ok",
        "python": "ok",
        "disk": "ok",
    }
    (python,) = (s for s in device(server, place, python="/nowhere/python").doctor() if s.name == "python")
    assert python.level == "missing" and "pip install" in python.remedy


def test_a_connection_cut_in_the_middle_does_not_lose_the_result(
    server: Server, bundle: Path, place: Path, tmp_path: Path
) -> None:
    write_job(bundle, tmp_path / "job", LONG)

    def progress(text: str) -> None:
        if "measuring" in text:
            threading.Timer(1.5, server.cut).start()

    found = device(server, place).run(tmp_path / "job", "python", deadline_s=60, progress=progress)
    assert found.is_file() and server.cuts
    assert nothing_is_left(place)


def test_a_device_that_vanishes_is_lost_and_its_agent_ends_by_itself(
    server: Server, bundle: Path, place: Path, tmp_path: Path
) -> None:
    timing = LONG.model_copy(update={"deadline_s": 4.0, "time_limit_s": 100.0})
    write_job(bundle, tmp_path / "job", timing)

    def progress(text: str) -> None:
        if "measuring" in text:
            server.stop()

    with pytest.raises(Lost, match="board: .*"):
        device(server, place).run(tmp_path / "job", "python", deadline_s=3, progress=progress)
    end = time.monotonic() + 60
    while agents(place) and time.monotonic() < end:
        time.sleep(0.2)
    assert not agents(place)


def test_an_interrupt_ends_the_agent(server: Server, bundle: Path, place: Path, tmp_path: Path) -> None:
    write_job(bundle, tmp_path / "job", LONG)
    target = device(server, place)

    def wait(*_: object) -> str:
        assert agents(place)
        raise KeyboardInterrupt

    object.__setattr__(target, "_wait", wait)
    with pytest.raises(KeyboardInterrupt):
        target.run(tmp_path / "job", "python", deadline_s=60, progress=lambda _: None)
    assert nothing_is_left(place)


def test_two_runs_at_once_have_their_own_folders(server: Server, bundle: Path, place: Path, tmp_path: Path) -> None:
    found: list[Path] = []

    def measure(name: str) -> None:
        write_job(bundle, tmp_path / name, QUICK)
        target = device(server, place)
        found.append(target.run(tmp_path / name, "python", deadline_s=60, progress=lambda _: None))

    threads = [threading.Thread(target=measure, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {path.parents[2].name for path in found} == {"one", "two"}
    assert nothing_is_left(place)


def test_a_changed_file_is_refused_by_the_agent(server: Server, bundle: Path, place: Path, tmp_path: Path) -> None:
    job = write_job(bundle, tmp_path / "job", QUICK)
    (tmp_path / "job" / job.arms[0].graphs.any).write_bytes(b"another graph")
    with pytest.raises(Failed, match=r"dynamic\.onnx was changed: its sha256 differs"):
        device(server, place).run(tmp_path / "job", "python", deadline_s=60, progress=lambda _: None)
    assert nothing_is_left(place)


def test_an_agent_of_another_version_is_refused(
    server: Server, bundle: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(outcome.VERSIONS, "python", "2")
    write_job(bundle, tmp_path / "job", QUICK)
    with pytest.raises(Failed, match="of version 1; 'python' of version 2 was asked for"):
        device(server, place).run(tmp_path / "job", "python", deadline_s=60, progress=lambda _: None)


def test_a_full_disk_is_one_sentence(server: Server, bundle: Path, place: Path, tmp_path: Path) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small disk can be mounted as root only")
    try:
        write_job(bundle, tmp_path / "job", QUICK)
        with pytest.raises(Failed, match="its disk is full"):
            device(server, place).run(tmp_path / "job", "python", deadline_s=60, progress=lambda _: None)
        assert nothing_is_left(place)
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.fixture(scope="module")
def built() -> Program:
    return native_agent()  # before a test has a cache of its own


def test_the_native_agent_measures_and_is_removed(
    built: Program, server: Server, bundle: Path, place: Path, tmp_path: Path
) -> None:
    board = device(server, place, python=None, agent="native", program=built.agent, runtime_folder=built.library.parent)
    assert {s.name: s.level for s in board.doctor()} == {"connection": "ok", "native agent": "ok", "disk": "ok"}
    assert nothing_is_left(place)
    job = write_job(bundle, tmp_path / "job", QUICK)
    found = board.run(tmp_path / "job", "native", deadline_s=60, progress=lambda _: None)
    result = Result.model_validate_json(found.read_bytes()).of(job)
    assert result.agent.name == "native" and {a.name for a in result.arms if a.rounds} == {a.name for a in job.arms}
    assert nothing_is_left(place)


def test_a_program_for_another_machine_is_refused_before_it_is_sent(
    server: Server, bundle: Path, place: Path, tmp_path: Path
) -> None:
    write_job(bundle, tmp_path / "job", QUICK)
    other = "riscv64"
    program = put(tmp_path / "agent", elf(other, "/lib/ld-linux.so.1"))
    put(tmp_path / "libonnxruntime.so", elf(other))
    board = device(server, place, python=None, agent="native", program=program)
    with pytest.raises(Failed, match=f"board: it is .*, and the native agent .* is for {other}: build it for"):
        board.run(tmp_path / "job", "native", deadline_s=60, progress=lambda _: None)
    (step,) = (s for s in board.doctor() if s.name == "native agent")
    assert step.level == "missing" and f"is for {other}" in step.text
    foreign = put(tmp_path / "foreign" / "agent", elf(platform.machine(), "/system/bin/linker64"))
    put(tmp_path / "foreign" / "libonnxruntime.so", elf(platform.machine()))
    with pytest.raises(Failed, match="it has no /system/bin/linker64, so the native agent .* for another system"):
        device(server, place, python=None, agent="native", program=foreign).run(
            tmp_path / "job", "native", deadline_s=60, progress=lambda _: None
        )
    assert nothing_is_left(place)


def test_what_cannot_be_reached_is_lost_with_a_remedy(
    server: Server, bundle: Path, place: Path, tmp_path: Path
) -> None:
    write_job(bundle, tmp_path / "job", QUICK)
    for changes, remedy in (
        ({"accept_new_host": False}, "accept_new_host"),
        ({"identity": server.folder / "host"}, "ssh-copy-id"),
        ({"port": 1}, "cannot be reached"),
    ):
        with pytest.raises(Lost, match=remedy):
            target = device(server, place, **changes)
            target.run(tmp_path / "job", "python", deadline_s=60, progress=lambda _: None)
