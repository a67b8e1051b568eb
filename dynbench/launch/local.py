"""Processes of this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dynbench.files import open_own
from dynbench.launch.channel import CHUNK_BYTES, Channel
from dynbench.launch.launcher import GRACE_S, ProcessLost

KEPT_BYTES = 4096  # of standard error, for its last line
LOG_BYTES = 1 << 20  # of a log, at most
SETTLE_S = 1.0  # until the last words of a process that ended have arrived


class LocalLauncher:
    """Starts processes on this machine.

    Args:
        python: the interpreter; None: the one that runs this.
        show_stderr: pass on what processes write to standard error.
    """

    name = "local"

    def __init__(self, python: str | None = None, *, show_stderr: bool = True) -> None:
        self._python, self._show_stderr = python, show_stderr

    def facts(self) -> dict[str, object]:
        """The name of the interpreter."""
        return {"executable": Path(self._python or sys.executable).name}

    def start(self, module: str, *, environment: Mapping[str, str], folder: Path | None = None) -> LocalProcess:
        """Starts `python -m module`; it finds this dynbench unless `environment` has a PYTHONPATH of its own."""
        command = [self._python or sys.executable, "-m", module]
        own_path = {"PYTHONPATH": python_path()}
        return LocalProcess(command, {**os.environ, **own_path, **environment}, folder, show_stderr=self._show_stderr)


def python_path(*first: Path) -> str:
    """PYTHONPATH with these folders first, then that of this dynbench, then the present ones."""
    folders = [*map(str, first), str(Path(__file__).parents[2])]
    present = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(dict.fromkeys([*folders, *filter(None, present)]))


class LocalProcess:
    """A child process that speaks by its standard input and output: of this machine, or a command that reaches another.

    It leads a session of its own: a Ctrl-C in the terminal does not reach it, and it ends with all its descendants.

    Args:
        command: program and arguments.
        environment: the whole of it.
        folder: where it runs; None: where this process does.
        show_stderr: pass on what it writes to standard error.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        folder: Path | None = None,
        *,
        show_stderr: bool = True,
    ) -> None:
        self._process = subprocess.Popen(
            command,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            cwd=folder,
            start_new_session=True,
        )
        stdin, stdout, stderr = self._process.stdin, self._process.stdout, self._process.stderr
        assert stdin is not None and stdout is not None and stderr is not None
        self._stdin, self._stdout, self._stderr = stdin, stdout, stderr
        self._channel = Channel(stdout.fileno(), stdin.fileno())
        self._words = b""
        self._log: Path | None = None
        self._exit_code: int | None = None
        self._listener = threading.Thread(target=self._listen, args=(show_stderr,), daemon=True)
        self._listener.start()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def last_words(self) -> str:
        """The last line that it wrote to standard error; empty if there is none."""
        lines = self._words.decode(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else ""

    def log_to(self, file: Path) -> None:
        """What it writes to standard error from now on goes to the end of a file instead, `LOG_BYTES` at most."""
        self._log = file

    def send(self, message: Mapping[str, Any]) -> None:
        """Sends a message. Nothing is raised if the process has ended: `receive` says so."""
        if not self._stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._channel.send(message)

    def receive(self, timeout_s: float) -> dict[str, Any]:
        """The next message.

        Raises:
            ProcessLost: none came within `timeout_s`, it is not a message, or the process has ended.
        """
        if self._exit_code is not None:
            raise self._ended(self._exit_code)
        try:
            return self._channel.receive(timeout_s)
        except TimeoutError:
            raise ProcessLost("silent", detail=f"no answer for {timeout_s:g} s") from None
        except EOFError:
            raise self._ended(self.close()) from None
        except ValueError as e:
            raise ProcessLost("garbled", detail=str(e), last_words=self.last_words) from e

    def interrupt(self) -> None:
        """Sends SIGINT to the process, not to its descendants."""
        self._process.send_signal(signal.SIGINT)

    def wait(self, timeout_s: float) -> int | None:
        """Its exit code once it has ended; None: it has not within `timeout_s`."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def close(self, grace_s: float = GRACE_S) -> int:
        """Ends its input, waits at most `grace_s` for its end, kills it and all its descendants; its exit code."""
        self._stdin.close()
        self.wait(grace_s)
        return self.kill()

    def kill(self) -> int:
        """Kills it and all its descendants; its exit code, below 0: the signal that ended it."""
        if self._exit_code is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # no process of the session is left
                os.killpg(self.pid, signal.SIGKILL)
            self._exit_code = self._process.wait()
            self._stdin.close()
            self._stdout.close()
            self._listener.join(SETTLE_S)
        return self._exit_code

    def _ended(self, exit_code: int) -> ProcessLost:
        return ProcessLost("ended", exit_code=exit_code, last_words=self.last_words)

    def _listen(self, show: bool) -> None:
        with self._stderr as stream:
            while chunk := os.read(stream.fileno(), CHUNK_BYTES):
                self._words = (self._words + chunk)[-KEPT_BYTES:]
                with contextlib.suppress(OSError):  # nothing is lost but words
                    if self._log is not None:
                        _append(self._log, chunk)
                    elif show:
                        os.write(2, chunk)


def _append(log: Path, words: bytes) -> None:
    with os.fdopen(open_own(log, os.O_WRONLY | os.O_APPEND), "ab") as file:
        room = LOG_BYTES - file.tell()
        if room >= len(words):
            file.write(words)
        elif room > 0:
            file.write(words[:room] + b"\n[the rest is left out]\n")
