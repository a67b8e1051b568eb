"""The native agent without a compiler: which program is taken, for which machine, and what is said without one."""

from __future__ import annotations

import platform
import re
import struct
from pathlib import Path

import pytest

from dynbench.deploy.agents import python_agent
from dynbench.deploy.agents.native import program as native
from dynbench.deploy.targets.agents import NativeAgent, PythonAgent, agent_for, digests, started
from dynbench.deploy.targets.local import Local
from dynbench.deploy.targets.profile import Reach
from dynbench.errors import UserError

NUMBERS = {name: number for number, name in native.MACHINES.items()}


def elf(machine: str, loader: str = "", wide: bool = True) -> bytes:
    """The beginning of a program as a linker writes it: two parts, of which the second may name the loader."""
    start, size = (64, 56) if wide else (52, 32)
    at = start + 2 * size
    name = loader.encode() + b"\0"
    begin = b"\x7fELF" + bytes([2 if wide else 1, 1, 1]) + bytes(9) + struct.pack("<HHI", 3, NUMBERS[machine], 1)
    if wide:
        head = begin + struct.pack("<QQQIHHHHHH", 0, start, 0, 0, start, size, 2, 0, 0, 0)
        parts = [struct.pack("<IIQQQQQQ", 1, 0, 0, 0, 0, 0, 0, 0)]
        parts += [struct.pack("<IIQQQQQQ", 3 if loader else 2, 0, at, 0, 0, len(name), 0, 0)]
    else:
        head = begin + struct.pack("<IIIIHHHHHH", 0, start, 0, 0, start, size, 2, 0, 0, 0)
        parts = [struct.pack("<IIIIIIII", 1, 0, 0, 0, 0, 0, 0, 0)]
        parts += [struct.pack("<IIIIIIII", 3 if loader else 2, at, 0, 0, len(name), 0, 0, 0)]
    return head + b"".join(parts) + name


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("machine", "loader", "wide"),
    [
        ("aarch64", "/lib/ld-linux-aarch64.so.1", True),
        ("aarch64", "/system/bin/linker64", True),
        ("armv7l", "/lib/ld-linux-armhf.so.3", False),
        ("x86_64", "", True),
    ],
)
def test_machine_and_loader_of_a_program_are_read(tmp_path: Path, machine: str, loader: str, wide: bool) -> None:
    assert native.examine(put(tmp_path / "agent", elf(machine, loader, wide))) == (machine, loader)


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n", b"\x7fELF", elf("aarch64")[:20], elf("aarch64", "/l")[:100]])
def test_what_is_no_program_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UserError, match="is no program of Linux"):
        native.examine(put(tmp_path / "agent", content))
    with pytest.raises(UserError, match="cannot read .*/nothing: No such file"):
        native.examine(tmp_path / "nothing")


@pytest.mark.parametrize(
    "place", ["lib/libonnxruntime.so.1.32.0", "jni/arm64-v8a/libonnxruntime.so", "libonnxruntime.so"]
)
def test_the_library_is_found_in_a_release_for_the_same_machine(tmp_path: Path, place: str) -> None:
    agent = put(tmp_path / "build" / "agent", elf("aarch64", "/l"))
    put(tmp_path / "release" / "libonnxruntime.so.0", elf("x86_64"))
    right = put(tmp_path / "release" / place, elf("aarch64"))
    assert native.obtain(agent, tmp_path / "release") == native.Program(agent, right, "aarch64", "/l")


def test_the_library_beside_the_program_needs_no_folder(tmp_path: Path) -> None:
    agent = put(tmp_path / "agent", elf("aarch64", "/l"))
    with pytest.raises(
        UserError, match=r"no libonnxruntime.so for aarch64 in .*: unpack a release .* `runtime_folder`"
    ):
        native.obtain(agent)
    library = put(tmp_path / "libonnxruntime.so", elf("aarch64"))
    assert native.obtain(agent).library == library


def test_for_this_machine_the_installed_package_has_it(tmp_path: Path) -> None:
    agent = put(tmp_path / "agent", elf(platform.machine()))
    found = native.obtain(agent)
    assert found.library.parent.name == "capi" and found.machine == platform.machine()


def test_without_a_compiler_it_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYNBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"this machine, which has no cmake; docs/devices-native\.md says how"):
        native.obtain()
    (step,) = Local("here", Reach(kind="local", agent="native")).doctor()
    assert step.level == "missing" and "no cmake" in step.text


def test_what_cmake_complains_about_is_one_line() -> None:
    missing = (
        "CMake Error at CMakeLists.txt:17 (message):\n  onnxruntime_c_api.h is not found: unpack\n  it\n\n\n-- Done\n"
    )
    assert native.why(missing) == "onnxruntime_c_api.h is not found: unpack it"
    assert (
        native.why("agent.cpp:3:10: fatal error: x.h: No such file\n 3 | #include\n")
        == "fatal error: x.h: No such file"
    )
    assert native.why("") == "cmake says nothing"


def test_a_cmake_that_fails_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYNBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    put(tmp_path / "c++", b"")
    put(tmp_path / "cmake", b"#!/bin/sh\necho 'agent.cpp:1:1: error: no such thing' >&2\nexit 1\n")
    for name in ("c++", "cmake"):
        (tmp_path / name).chmod(0o755)
    told: list[str] = []
    with pytest.raises(UserError, match="the native agent cannot be built: error: no such thing; docs/"):
        native.obtain(say=told.append)
    assert told and not list((tmp_path / "cache").iterdir())


def test_both_agents_measure_in_the_same_way() -> None:
    text = "".join(path.read_text() for path in sorted(native.SOURCE.glob("*.[ch]pp")))
    for name in (
        "MOST_DIFFERENT",
        "MOST_SAMPLES",
        "FIRST_LOOK",
        "CLOCK_JUMP_S",
        "READ_EVERY_S",
        "SPARE_S",
        "SCHEMA_VERSION",
    ):
        (value,) = re.findall(rf"constexpr \w+ {name} = ([\d.]+);", text)
        assert float(value) == getattr(python_agent, name), name
    assert f'VERSION = "{native.VERSION}";' in text
    table = text[text.index("SENSORS = {") :]
    assert set(re.findall(r'\{"(\w+)",\s*\{watts_', table)) == set(python_agent.SENSORS)


def test_a_device_that_does_not_fit_is_told_from_one_that_does(tmp_path: Path) -> None:
    agent = NativeAgent(native.Program(tmp_path / "agent", tmp_path / "library", "aarch64", "/system/bin/linker64"))
    assert agent.misfit("aarch64", has_loader=True) == ""
    assert "it is x86_64, and the native agent" in agent.misfit("x86_64", has_loader=True)
    assert "it has no /system/bin/linker64" in agent.misfit("aarch64", has_loader=False)


def test_a_local_device_refuses_a_program_for_another_machine(tmp_path: Path) -> None:
    other = "aarch64" if platform.machine() != "aarch64" else "x86_64"
    agent = put(tmp_path / "agent", elf(other, "/l"))
    put(tmp_path / "libonnxruntime.so", elf(other))
    (step,) = Local("here", Reach(kind="local", agent="native", program=agent)).doctor()
    assert step.level == "missing" and f"is for {other}: build it for {platform.machine()}" in step.text and step.remedy


def test_a_doctor_reads_what_the_agent_says_of_itself() -> None:
    assert started(True, "1 aarch64 1.32.0\n", "").level == "ok"
    old = started(True, "0 aarch64 1.32.0\n", "")
    assert old.level == "missing" and "version 0" in old.text and "build it again" in old.remedy
    refused = started(False, "", "sh: ./dynbench-agent: Permission denied\n")
    assert refused.level == "missing" and "Permission denied" in refused.text


def test_names_on_a_device_are_quoted() -> None:
    agent = agent_for(Reach(kind="local", python="/my python"), "python3")
    assert isinstance(agent, PythonAgent)
    assert agent.start("/a folder") == ["/my python", "/a folder/agent.py", "/a folder"]
    assert "'/my python' -c " in agent.hashes("/a folder", ["job.json"])
    built = NativeAgent(native.Program(Path("agent"), Path("library"), "aarch64", ""))
    assert built.hashes("/a folder", ["job.json"]).endswith("sha256sum '/a folder/job.json'")
    assert digests(f"1 aarch64 1.32.0\n{'a' * 64}  /x\n{'0' * 64}  /y\n") == ["a" * 64, "0" * 64]
