"""Packages of Debian 13 that are unpacked for tests, and what is built with them; without them tests are skipped."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from dynbench.deploy.agents.native import program as native
from dynbench.paths import cache_dir

UNPACK = Path(__file__).with_name("debian13.sh")
CROSS = "aarch64-linux-gnu-g++"
WHEELS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")


def unpacked(name: str, architecture: str, *packages: str, alone: bool = False) -> Path:
    """The root of a folder with packages of Debian 13."""
    for tool in ("apt-get", "dpkg-deb"):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed")
    folder = cache_dir() / name
    command = [str(UNPACK), *(["--alone"] if alone else []), str(folder), architecture, *packages]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600)
    if done.returncode:
        pytest.skip(f"{', '.join(packages)} of Debian 13 cannot be obtained: {done.stderr.strip()[-300:]}")
    return folder / "root"


def headers() -> Path:
    """A prefix for CMake with the headers of ONNX Runtime and nlohmann's JSON."""
    return unpacked("native-headers", "amd64", "libonnxruntime-dev", "nlohmann-json3-dev", alone=True) / "usr"


def native_agent() -> native.Program:
    """The native agent, built for this machine by dynbench itself."""
    for tool in ("cmake", "c++"):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CMAKE_PREFIX_PATH", str(headers()))
        return native.obtain()


def qemu() -> Path:
    """qemu 10 for programs of aarch64; that of Debian 12 crashes on ONNX Runtime."""
    return unpacked("qemu-user", "amd64", "qemu-user", alone=True) / "usr" / "bin" / "qemu-aarch64"


def arm_root() -> Path:
    """What programs of aarch64 need: the C and C++ libraries, and Python."""
    return unpacked("aarch64", "arm64", "python3.13", "libstdc++6")


def arm_packages() -> Path:
    """numpy, and ONNX Runtime in the version that is installed here, for Python 3.13 of aarch64."""
    place = cache_dir() / f"aarch64-onnxruntime-{version('onnxruntime')}"
    if not place.is_dir():
        aside = place.with_name(f"{place.name}.part")
        shutil.rmtree(aside, ignore_errors=True)
        platforms = [word for name in WHEELS for word in ("--platform", name)]
        words = ["--target", str(aside), "--no-deps", "--only-binary=:all:", "--python-version", "3.13", *platforms]
        done = subprocess.run(
            [sys.executable, "-m", "pip", "install", "-q", *words, f"onnxruntime=={version('onnxruntime')}", "numpy"],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        if done.returncode:
            pytest.skip(f"wheels for aarch64 cannot be obtained: {done.stderr.strip()[-300:]}")
        aside.rename(place)
    return place


def arm_agent(folder: Path) -> native.Program:
    """The native agent, built for aarch64 as docs/devices-native.md says, with its library beside it."""
    for tool in ("cmake", CROSS):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed")
    machine = ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", f"-DCMAKE_CXX_COMPILER={CROSS}"]
    configure = ["cmake", "-S", str(native.SOURCE), "-B", str(folder), f"-DCMAKE_PREFIX_PATH={headers()}", *machine]
    for command in (configure, ["cmake", "--build", str(folder)]):
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=900)
    (library,) = (arm_packages() / "onnxruntime" / "capi").glob("libonnxruntime.so.*")
    shutil.copy(library, folder / native.LIBRARY)
    return native.obtain(folder / native.NAME)


def environment(**more: str) -> dict[str, str]:
    """That of this process, and more."""
    return {**os.environ, **more}
