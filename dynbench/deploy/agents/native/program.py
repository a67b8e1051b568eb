"""The program of the native agent and its ONNX Runtime on this machine: found, or built here, and for which machine."""

from __future__ import annotations

import hashlib
import platform
import re
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from dynbench.errors import UserError
from dynbench.files import make_folder, write_bytes
from dynbench.paths import cache_dir
from dynbench.scratch import scratch

VERSION = "1"  # of what it measures and writes, as in measure.hpp
NAME, LIBRARY = "dynbench-agent", "libonnxruntime.so"
SOURCE = Path(__file__).parent
BUILD_S = 900.0
HOW = "docs/devices-native.md says how"
MACHINES = {3: "i686", 40: "armv7l", 62: "x86_64", 183: "aarch64", 243: "riscv64"}  # ELF's numbers, uname's names
ABIS = {"aarch64": "arm64-v8a", "armv7l": "armeabi-v7a", "i686": "x86"}  # Android's names, where they are others
_ELF = struct.Struct("<16xHHI")
_INTERPRETER = 3  # type of the part of a program that names what loads it


@dataclass(frozen=True)
class Program:
    """What is put on a device.

    Attributes:
        agent: the program.
        library: the shared library of ONNX Runtime.
        machine: that both are for, as `uname -m` gives it.
        loader: path of what loads the program, which the device must have; empty: it needs none.
    """

    agent: Path
    library: Path
    machine: str
    loader: str


def obtain(
    program: Path | None = None, runtime_folder: Path | None = None, say: Callable[[str], None] = lambda _: None
) -> Program:
    """The program that was named, or else one that is built for this machine, once; and its library.

    Args:
        program: built by the user, such as for another machine.
        runtime_folder: of a release of ONNX Runtime for the same machine; None: the library is looked for beside the
            program, and for this machine in the installed package.
        say: is told what is done.

    Raises:
        UserError: it cannot be built, it is no program, or there is no library for its machine.
    """
    agent = program or _built(runtime_folder, say)
    machine, loader = examine(agent)
    looked: list[Path] = []
    for folder in _folders(agent, program, runtime_folder, machine):
        looked.append(folder)
        for library in sorted(folder.glob(f"{LIBRARY}*")):
            if library.is_file() and examine(library)[0] == machine:
                return Program(agent, library.resolve(), machine, loader)
    places = ", ".join(str(folder) for folder in looked)
    raise UserError(
        f"there is no {LIBRARY} for {machine} in {places}: unpack a release of ONNX Runtime for {machine} and name its "
        "folder by `runtime_folder`"
    )


def examine(path: Path) -> tuple[str, str]:
    """For which machine a program or library is, and the path of its loader; empty: it has none.

    Raises:
        UserError: it cannot be read, or is no program of Linux.
    """
    try:
        content = path.read_bytes()
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror or e}") from e
    try:
        if content[:4] != b"\x7fELF" or content[5] != 1:
            raise ValueError
        _, number, _ = _ELF.unpack_from(content)
        return MACHINES.get(number, f"machine {number}"), _loader(content, wide=content[4] == 2)
    except (ValueError, IndexError, struct.error) as e:
        raise UserError(f"{path} is no program of Linux (ELF, little-endian)") from e


def _loader(content: bytes, wide: bool) -> str:
    start, size, count = (
        (*struct.unpack_from("<Q", content, 32), *struct.unpack_from("<HH", content, 54))
        if wide
        else (*struct.unpack_from("<I", content, 28), *struct.unpack_from("<HH", content, 42))
    )
    for i in range(count):
        at = start + i * size
        if struct.unpack_from("<I", content, at) == (_INTERPRETER,):
            offset, length = (
                (struct.unpack_from("<Q", content, at + 8)[0], struct.unpack_from("<Q", content, at + 32)[0])
                if wide
                else (struct.unpack_from("<I", content, at + 4)[0], struct.unpack_from("<I", content, at + 16)[0])
            )
            return content[offset : offset + length].rstrip(b"\0").decode("ascii")
    return ""


def _folders(agent: Path, program: Path | None, runtime_folder: Path | None, machine: str) -> Iterator[Path]:
    if runtime_folder is not None:
        yield from (runtime_folder / "lib", runtime_folder / "jni" / ABIS.get(machine, machine), runtime_folder)
        return
    if program is not None:
        yield agent.absolute().parent
    if machine == platform.machine() and (package := find_spec("onnxruntime")) and package.origin:
        yield Path(package.origin).parent / "capi"


def _built(runtime_folder: Path | None, say: Callable[[str], None]) -> Path:
    sources = sorted([SOURCE / "CMakeLists.txt", *SOURCE.glob("*.[ch]pp")])
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    place = cache_dir() / f"{NAME}-{platform.machine()}-{digest[:16]}"
    if place.is_file():
        return place
    for name in ("cmake", "c++"):
        if shutil.which(name) is None:
            raise UserError(f"the native agent is built on this machine, which has no {name}; {HOW}")
    say("building the native agent (about a minute, once)")
    make_folder(cache_dir())
    with scratch("native", cache_dir()) as folder:
        prefix = [f"-DCMAKE_PREFIX_PATH={runtime_folder.absolute()}"] if runtime_folder is not None else []
        _cmake("-S", str(SOURCE), "-B", str(folder), *prefix)
        _cmake("--build", str(folder))
        write_bytes(place, (folder / NAME).read_bytes())
    place.chmod(0o755)
    return place


def _cmake(*words: str) -> None:
    try:
        done = subprocess.run(
            ["cmake", *words], stdin=subprocess.DEVNULL, capture_output=True, timeout=BUILD_S, check=False
        )
    except subprocess.TimeoutExpired as e:
        raise UserError(f"cmake did not build the native agent within {BUILD_S:.0f} s; {HOW}") from e
    if done.returncode:
        text = (done.stderr + done.stdout).decode("utf-8", "replace")
        raise UserError(f"the native agent cannot be built: {why(text)}; {HOW}")


def why(text: str) -> str:
    """The first complaint in what cmake and a compiler print, in one line."""
    found = re.search(r"^CMake Error[^\n]*:\n((?:[ \t]+[^\n]+\n?)+)", text, re.MULTILINE)
    found = found or re.search(r"((?:fatal )?error: [^\n]+)", text)
    said = found[1] if found else (text.strip().splitlines() or ["cmake says nothing"])[-1]
    return " ".join(said.split())[:300]
