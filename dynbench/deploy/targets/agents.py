"""What is put on a device beside the job, and how it is started there: the python agent, or the native one."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dynbench.deploy.agents import python_agent, python_split
from dynbench.deploy.agents.native import program as native
from dynbench.deploy.agents.native.program import Program
from dynbench.deploy.targets.base import Step
from dynbench.deploy.targets.profile import Reach

VERSIONS = {"python": python_agent.VERSION, "native": native.VERSION}
AGENT, SPLIT = "agent.py", "python_split.py"
PROBE = "import sys, numpy, onnxruntime; print(sys.version.split()[0], numpy.__version__, onnxruntime.__version__)"
HASHES = "import hashlib, sys; print(*[hashlib.sha256(open(f, 'rb').read()).hexdigest() for f in sys.argv[1:]])"
PYTHON_REMEDY = (
    "on the device: python3 -m venv ~/dynbench && ~/dynbench/bin/pip install numpy onnxruntime; then give "
    '`python = "/home/USER/dynbench/bin/python"` in its file'
)
NATIVE_REMEDY = "it must be built for this device, and its folder must allow programs to be started; " + native.HOW


class Agent(Protocol):
    """A program that measures a job where it runs."""

    @property
    def name(self) -> str:
        """'python' or 'native'."""
        ...

    @property
    def program(self) -> str:
        """What is started, for people."""
        ...

    @property
    def files(self) -> dict[str, Path]:
        """What is copied into the folder of the job, by name there."""
        ...

    def start(self, folder: str) -> list[str]:
        """The command that measures the job in a folder."""
        ...

    def hashes(self, folder: str, names: Sequence[str]) -> str:
        """A script of `sh` that shows that the agent can be started, and prints the SHA-256 of files of the folder."""
        ...


@dataclass(frozen=True)
class PythonAgent:
    """By an interpreter that the device has.

    Attributes:
        python: its path or name there.
    """

    python: str
    name: str = "python"

    @property
    def program(self) -> str:
        """The interpreter."""
        return self.python

    @property
    def files(self) -> dict[str, Path]:
        """The agent, and what it needs for a network that is cut in two."""
        return {AGENT: Path(python_agent.__file__), SPLIT: Path(python_split.__file__)}

    def start(self, folder: str) -> list[str]:
        """The interpreter with the file."""
        return [self.python, f"{folder}/{AGENT}", folder]

    def hashes(self, folder: str, names: Sequence[str]) -> str:
        """By the interpreter: a device without `sha256sum` may have it."""
        return shlex.join([self.python, "-c", HASHES, *(f"{folder}/{name}" for name in names)])


@dataclass(frozen=True)
class NativeAgent:
    """By a program that was built for the device, with its library of ONNX Runtime."""

    built: Program
    name: str = "native"
    program: str = "the native agent"

    @property
    def files(self) -> dict[str, Path]:
        """The program and the library, which it looks for beside itself."""
        return {native.NAME: self.built.agent, native.LIBRARY: self.built.library}

    def start(self, folder: str) -> list[str]:
        """The program."""
        return [f"{folder}/{native.NAME}", folder]

    def hashes(self, folder: str, names: Sequence[str]) -> str:
        """By `sha256sum`, which Android and small systems have, too; adb and tar may not keep the right to start it."""
        agent = shlex.quote(f"{folder}/{native.NAME}")
        files = shlex.join(f"{folder}/{name}" for name in names)
        return f"chmod 700 {agent} && {agent} --version && sha256sum {files}"

    def misfit(self, machine: str, has_loader: bool) -> str:
        """Why it cannot run on a device; empty: nothing speaks against it.

        Args:
            machine: of the device, by `uname -m`.
            has_loader: it has the file that loads the program.
        """
        if machine != self.built.machine:
            return (
                f"it is {machine}, and the native agent {self.built.agent} is for {self.built.machine}: build it for "
                f"{machine} and give `program = ...` in its file; {native.HOW}"
            )
        if self.built.loader and not has_loader:
            return (
                f"it has no {self.built.loader}, so the native agent {self.built.agent} was built for another system, "
                f"such as glibc for Android: build it for this one; {native.HOW}"
            )
        return ""


def agent_for(reach: Reach, python: str, say: Callable[[str], None] = lambda _: None) -> Agent:
    """The agent of a profile; the native one is built where it is not there yet.

    Args:
        reach: of the profile.
        python: the interpreter where it names none.
        say: is told what is done.

    Raises:
        UserError: the native agent or its library is missing, and cannot be built.
    """
    if reach.measures == "native":
        return NativeAgent(native.obtain(reach.program, reach.runtime_folder, say))
    return PythonAgent(reach.python or python)


def started(ok: bool, said: str, error: str) -> Step:
    """What a doctor says of a native agent that was asked for its version.

    Args:
        ok: it ended with 0.
        said: its standard output.
        error: why not, or its standard error.
    """
    words = (said.strip().splitlines() or [""])[0].split()
    if not ok or len(words) != 3:
        last = (error.strip().splitlines() or ["no message"])[-1]
        return Step("native agent", "missing", f"it cannot be started there: {last}", NATIVE_REMEDY)
    if words[0] != native.VERSION:
        text = f"it is of version {words[0]}, and this dynbench needs {native.VERSION}"
        return Step("native agent", "missing", text, f"build it again; {native.HOW}")
    return Step("native agent", "ok", "it starts there: version {}, {}, onnxruntime {}".format(*words))


def digests(text: str) -> list[str]:
    """All SHA-256 in what a command printed."""
    return re.findall(r"\b[0-9a-f]{64}\b", text)
