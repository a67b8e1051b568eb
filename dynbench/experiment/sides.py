"""The sides of a check as the process that measures sees them: a nursery each, and the children that it forks."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynbench.errors import DynbenchError, UserError
from dynbench.experiment.environment import THREAD_VARIABLES
from dynbench.experiment.side import READY
from dynbench.experiment.trees import CannotTell, source_path

START_S = 120.0  # importing torch on a busy machine
CALL_S = 300.0  # one turn, or preparing a workload
# glibc gives memory back to the system and takes it again, page by page, with every large buffer, or does not: that
# hangs on what lies at the end of the heap, made a small network's time 20 or 13 ms from process to process, and says
# nothing about the code. With these (mallopt(3)) it keeps what it has; elsewhere than under glibc they do nothing.
KEEPING = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**36), "MALLOC_TOP_PAD_": str(2**26)}


class SideError(DynbenchError):
    """A side could not do what it was asked; `kind` names the exception there."""

    def __init__(self, text: str, kind: str) -> None:
        super().__init__(text)
        self.kind = kind


class Child:
    """A forked process of one side."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(CALL_S)
        self._connection, self._channel = connection, connection.makefile("rw", encoding="utf-8")

    def send(self, do: str, **what: Any) -> None:
        """Asks for something; the answer comes by `receive`."""
        with contextlib.suppress(BrokenPipeError):
            self._channel.write(json.dumps({"do": do, **what}) + "\n")
            self._channel.flush()

    def receive(self) -> dict[str, Any]:
        """The answer.

        Raises:
            SideError: there is none.
        """
        try:
            line = self._channel.readline()
        except (TimeoutError, ConnectionError) as e:
            raise SideError(f"the process does not answer ({e})", "Died") from e
        if not line:
            raise SideError("the process died", "Died")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise SideError(answer["error"], answer["kind"])
        return answer

    def ask(self, do: str, **what: Any) -> dict[str, Any]:
        """`send` and `receive`."""
        self.send(do, **what)
        return self.receive()

    def close(self) -> None:
        """It ends when nobody can ask any more."""
        self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()


class Nursery:
    """A process that has imported torch and forks the others of its side."""

    def __init__(self, python: str, tree: Path, threads: int, folder: Path) -> None:
        threads_of = dict.fromkeys(THREAD_VARIABLES, str(threads))
        env = {**KEEPING, **os.environ, **threads_of, "PYTHONHASHSEED": "0", "PYTHONPATH": source_path(tree)}
        self._address = str(folder / "socket")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self._address)
        self._listener.listen()
        self._words = folder / "stderr"
        with self._words.open("w") as words:
            self._process = subprocess.Popen(
                [python, "-m", "dynbench.experiment.side"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=words, text=True, env=env, start_new_session=True, cwd=tree,
            )  # fmt: skip

    def ready(self) -> None:
        """Waits until it is.

        Raises:
            SideError: it ended.
        """
        assert self._process.stdout is not None
        said = self._process.stdout.readline().strip()
        if said.startswith("ready") and said != READY:
            raise SideError("it has another version of dynbench, which this one cannot ask", "Version")
        if said != READY:
            self._process.wait()
            words = self._words.read_text(errors="replace").strip().splitlines() or ["no reason given"]
            raise SideError(f"its process does not start: {words[-1]}", "Died")

    def fork(self) -> Child:
        """A fresh process."""
        assert self._process.stdin is not None
        self._process.stdin.write(self._address + "\n")
        self._process.stdin.flush()
        self._listener.settimeout(START_S)
        return Child(self._listener.accept()[0])

    def close(self) -> None:
        """Ends it."""
        self._listener.close()
        self._process.kill()
        self._process.wait()


@dataclass
class Role:
    """One of the three that take part in a lap.

    Attributes:
        name: for messages.
        nursery: whose processes.
        prepare: what they are asked to prepare.
    """

    name: str
    nursery: Nursery
    prepare: dict[str, Any]


@contextlib.contextmanager
def blame(role: Role) -> Iterator[None]:
    """Says whose fault an error is."""
    try:
        yield
    except SideError as e:
        if role.name == "head" and e.kind in ("UserError", "ValueError"):
            raise UserError(str(e)) from e
        raise CannotTell(f"{role.name}: {e}") from e
