"""The fork server's own process: imports what takes long, then forks a process for every request.

Started by `dynbench.launch.forks.ForkServer`. When its input ends, which it does however its parent ends, it kills
everything that it forked, and itself.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import shutil
import signal
import socket
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from dynbench.launch.channel import Channel, end_with_parent, parent_channel, socket_address


def main() -> None:
    """Serves until the input ends."""
    channel = parent_channel()
    request = channel.receive()
    folder = Path(request["folder"])
    try:
        for name in request["preload"]:
            importlib.import_module(name)
        gc.freeze()  # a collection in a forked process would touch, and so copy, every page
        if os.getpgrp() != os.getpid():
            os.setpgid(0, 0)
        forks = Forks(channel, folder)
        channel.send({"event": "ready"})
    except BaseException:  # an import fails, or the parent has ended meanwhile
        shutil.rmtree(folder, ignore_errors=True)
        raise
    try:
        forks.serve()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.killpg(os.getpgrp(), signal.SIGKILL)


class Forks:
    """The processes forked so far, and how they end.

    Args:
        channel: to the parent.
        folder: has the socket at which the parent waits for connections.
    """

    def __init__(self, channel: Channel, folder: Path) -> None:
        self._channel, self._folder = channel, folder
        self._running: set[int] = set()

    def serve(self) -> None:
        """Serves requests until the input ends; tells the parent of every process that ends."""
        signal.signal(signal.SIGCHLD, self._reap)
        for request in self._channel:
            with _no_reaping():
                if request["do"] == "fork":
                    self._fork(request["serve"])
                elif request["pid"] in self._running:
                    os.kill(request["pid"], request["number"])

    def _reap(self, *_: object) -> None:
        with _no_reaping():
            for pid in list(self._running):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    self._running.remove(pid)
                    self._tell({"event": "ended", "pid": pid, "exit_code": os.waitstatus_to_exitcode(status)})

    def _fork(self, serve: str) -> None:
        connection = socket.socket(socket.AF_UNIX)
        with socket_address(self._folder) as address:
            connection.connect(address)
        pid = os.fork()
        if pid == 0:
            self._become(serve, connection)
        connection.close()
        self._running.add(pid)
        self._tell({"event": "forked", "pid": pid})

    def _tell(self, event: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # the parent has ended: so does the input
            self._channel.send(event)

    def _become(self, serve: str, connection: socket.socket) -> NoReturn:
        """The forked process from here on."""
        code = 1
        try:
            os.close(self._channel.read_fd)
            os.close(self._channel.write_fd)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
            module, _, function = serve.partition(":")
            channel = Channel(connection.fileno(), connection.fileno())
            end_with_parent(channel)
            getattr(importlib.import_module(module), function)(channel)
            code = 0
        except BaseException:  # noqa: BLE001 (nothing may return to the fork server's own code)
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)


@contextlib.contextmanager
def _no_reaping() -> Iterator[None]:
    """Meanwhile no process is reaped by a signal's handler: an id in the table stays that of a process of ours."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


if __name__ == "__main__":
    main()
