"""The revisions that take part in a check: a fork server each, and the processes that it forks."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dynbench.errors import DynbenchError, UserError
from dynbench.gate.protocol import PROTOCOL
from dynbench.gate.trees import CannotTell, source_path
from dynbench.launch import ForkServer, LocalLauncher, Process, ProcessLost, thread_environment

SOCKET_FOLDER_BYTES = 70  # of the path of a folder; a socket's own path, deeper down, has at most 107
CALL_S = 300.0  # one turn, or preparing a workload
# glibc may return large buffers to the system and get them again, page by page, or keep them: which one depends on what
# lies at the end of the heap. It made a small network take 20 or 13 ms from process to process and says nothing about
# the code. With these settings (mallopt(3)) memory is kept; C libraries other than glibc ignore them.
MALLOC_SETTINGS = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**36), "MALLOC_TOP_PAD_": str(2**26)}


class RevisionError(DynbenchError):
    """A process of a revision gave no answer, or an error.

    Args:
        text: what went wrong.
        kind: name of the exception there; 'Lost': there is no process any more; 'Version': it cannot be asked.
    """

    def __init__(self, text: str, kind: str) -> None:
        super().__init__(text)
        self.kind = kind


class RevisionProcess:
    """A process of one revision; see `dynbench.gate.revision_worker` for what it can be asked."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def send(self, do: str, **arguments: Any) -> None:
        """Sends a request; `receive` gives the answer."""
        self._process.send({"do": do, **arguments})

    def receive(self) -> dict[str, Any]:
        """The answer to the request sent before.

        Raises:
            RevisionError: there is none, or it is an error.
        """
        try:
            answer = self._process.receive(CALL_S)
        except ProcessLost as e:
            raise RevisionError(str(e), "Lost") from e
        if "error" in answer:
            raise RevisionError(answer["error"], answer["kind"])
        return answer

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Sends a request and returns the answer; raises as `receive`."""
        self.send(do, **arguments)
        return self.receive()

    def close(self) -> None:
        """Ends it."""
        self._process.close()


class Revision:
    """One of the three that take part in a lap.

    Args:
        name: 'base' or 'head', for messages.
        python: the interpreter that has its dependencies.
        tree: where its source lies.
        threads: of its processes.
        scratch: folder for temporary files.
        request: the arguments of `prepare` for its processes.
    """

    def __init__(
        self, name: str, python: str, tree: Path, threads: int, scratch: Path, request: dict[str, Any]
    ) -> None:
        self.name, self.request = name, request
        present = {name: os.environ.get(name, value) for name, value in MALLOC_SETTINGS.items()}
        self._server = ForkServer(
            LocalLauncher(python, show_stderr=False),
            ["dynbench.gate.revision_worker"],
            environment={**present, **thread_environment(threads), "PYTHONPATH": source_path(tree)},
            folder=tree,
            inside=scratch if len(os.fsencode(scratch)) <= SOCKET_FOLDER_BYTES else None,
        )

    def ready(self) -> None:
        """Waits until processes can be forked.

        Raises:
            RevisionError: they cannot be.
        """
        try:
            self._server.ready()
        except ProcessLost as e:
            if "No module named 'dynbench." in e.last_words:
                raise _other_version() from e
            raise RevisionError(f"its process does not start: {e.last_words or e}", "Lost") from e

    def fork(self) -> RevisionProcess:
        """A fresh process.

        Raises:
            RevisionError: there is none, or it is of another dynbench, which cannot be asked.
        """
        try:
            process = RevisionProcess(self._server.fork("dynbench.gate.revision_worker:serve"))
        except ProcessLost as e:
            raise RevisionError(str(e), "Lost") from e
        if process.receive().get("protocol") != PROTOCOL:
            process.close()
            raise _other_version()
        return process

    def close(self) -> None:
        """Ends all its processes."""
        self._server.close()


def _other_version() -> RevisionError:
    return RevisionError("it has another version of dynbench, which this one cannot ask", "Version")


@contextlib.contextmanager
def blame(name: str) -> Iterator[None]:
    """Turns errors of a revision into those of a check.

    Raises:
        UserError: the head cannot be measured, which its author can put right.
        CannotTell: anything else went wrong; the message says in which revision.
    """
    try:
        yield
    except RevisionError as e:
        if name == "head" and e.kind in ("UserError", "ValueError"):
            raise UserError(str(e)) from e
        raise CannotTell(f"{name}: {e}") from e
