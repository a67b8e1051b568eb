"""Fresh processes that start within milliseconds: forked from one that has imported what takes long.

A forked process has its own memory but the environment, the imports and the address space layout of the fork server.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dynbench.launch.channel import Channel, socket_address
from dynbench.launch.launcher import GRACE_S, Launcher, Process, ProcessLost
from dynbench.scratch import make_scratch

START_S = 120.0  # importing torch on a busy machine


class ForkServer:
    """A process that has imported what takes long and forks others. It runs on this machine.

    Args:
        launcher: starts it.
        preload: modules that it imports once, for all processes that it will fork.
        environment: see `Launcher.start`.
        folder: where it runs; None: where this process does.
        inside: folder in which its scratch folder is made, and which somebody else removes if this process is killed;
            None: the system's for temporary files, where a later start removes it.

    Attributes:
        scratch: folder for files that all processes share; removed when the server ends.
    """

    def __init__(
        self,
        launcher: Launcher,
        preload: Sequence[str],
        *,
        environment: Mapping[str, str],
        folder: Path | None = None,
        inside: Path | None = None,
    ) -> None:
        self.scratch = (
            make_scratch("forks") if inside is None else Path(tempfile.mkdtemp(prefix="dynbench-forks-", dir=inside))
        )
        self._listener = socket.socket(socket.AF_UNIX)
        with socket_address(self.scratch) as address:
            self._listener.bind(address)
        self._listener.listen()
        self._process: Process = launcher.start("dynbench.launch.fork_server", environment=environment, folder=folder)
        self._process.send({"preload": list(preload), "folder": str(self.scratch)})
        self._ready = False
        self._exit_codes: dict[int, int] = {}

    def ready(self) -> None:
        """Waits until it has imported everything.

        Raises:
            ProcessLost: it ended, or takes longer than `START_S`.
        """
        if not self._ready:
            self._process.receive(START_S)
            self._ready = True

    def fork(self, serve: str) -> ForkedProcess:
        """A fresh process.

        Args:
            serve: `package.module:function`, called there with the channel to this process; the process ends when it
                returns.

        Raises:
            ProcessLost: there is no fork server any more.
        """
        self.ready()
        self._process.send({"do": "fork", "serve": serve})
        while (event := self._process.receive(START_S))["event"] != "forked":
            self._note(event)
        self._exit_codes.pop(event["pid"], None)  # of an earlier process that had the same id
        connection, _ = self._listener.accept()
        return ForkedProcess(self, event["pid"], connection)

    def signal(self, pid: int, number: int) -> None:
        """Sends a signal to a process that it forked, if that still runs."""
        self._process.send({"do": "signal", "pid": pid, "number": number})

    def exit_code(self, pid: int, timeout_s: float) -> int | None:
        """The exit code of a process that it forked; None: it has not ended within `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        with contextlib.suppress(ProcessLost):
            while pid not in self._exit_codes:
                self._note(self._process.receive(max(deadline - time.monotonic(), 0.0)))
        return self._exit_codes.get(pid)

    def close(self) -> None:
        """Ends it and all processes that it forked."""
        self._process.close()
        self._listener.close()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _note(self, event: dict[str, Any]) -> None:
        self._exit_codes[event["pid"]] = event["exit_code"]


class ForkedProcess:
    """A process that a fork server forked.

    Args:
        server: its parent.
        pid: its process id.
        connection: to it; closed with it.
    """

    def __init__(self, server: ForkServer, pid: int, connection: socket.socket) -> None:
        self.pid = pid
        self._server, self._connection = server, connection
        self._channel = Channel(connection.fileno(), connection.fileno())
        self._exit_code: int | None = None

    def send(self, message: Mapping[str, Any]) -> None:
        """Sends a message. Nothing is raised if the process has ended: `receive` says so."""
        if self._connected:
            with contextlib.suppress(OSError):
                self._channel.send(message)

    def receive(self, timeout_s: float) -> dict[str, Any]:
        """The next message.

        Raises:
            ProcessLost: none came within `timeout_s`, it is not a message, or the process has ended.
        """
        if not self._connected:
            raise self._lost()
        try:
            return self._channel.receive(timeout_s)
        except TimeoutError:
            raise ProcessLost("silent", detail=f"no answer for {timeout_s:g} s") from None
        except (EOFError, ConnectionError):
            self.close()
            raise self._lost() from None
        except ValueError as e:
            raise ProcessLost("garbled", detail=str(e)) from e

    def interrupt(self) -> None:
        """Sends SIGINT to the process."""
        self._server.signal(self.pid, signal.SIGINT)

    def close(self, grace_s: float = GRACE_S) -> int | None:
        """Ends its input, waits at most `grace_s` for its end and kills it; its exit code, None: unknown."""
        self._connection.close()
        if self._exit_code is None:
            self._exit_code = self._server.exit_code(self.pid, grace_s)
        return self.kill()

    def kill(self) -> int | None:
        """Kills it; its exit code, below 0: the signal that ended it; None: unknown."""
        self._connection.close()
        if self._exit_code is None:
            self._server.signal(self.pid, signal.SIGKILL)
            self._exit_code = self._server.exit_code(self.pid, GRACE_S)
        return self._exit_code

    @property
    def _connected(self) -> bool:
        return self._connection.fileno() >= 0

    def _lost(self) -> ProcessLost:
        return ProcessLost("unreachable" if self._exit_code is None else "ended", exit_code=self._exit_code)
