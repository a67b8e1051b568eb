"""Messages between two processes: JSON objects, one per line, over file descriptors."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

CHUNK_BYTES = 1 << 16
FAREWELL_S = 10.0  # in which a process ends by itself once its input has ended
_PR_SET_PDEATHSIG = 1


class Channel:
    """One end of a connection. It does not own its descriptors: whoever opened them closes them.

    Args:
        read_fd: where messages come from: a pipe or a socket.
        write_fd: where messages go to; may be the same socket.
    """

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self.read_fd, self.write_fd = read_fd, write_fd
        self._received = bytearray()

    def send(self, message: Mapping[str, Any]) -> None:
        """Sends a message.

        Raises:
            OSError: the other end is closed.
        """
        rest = memoryview(json.dumps(message).encode() + b"\n")
        while rest:
            rest = rest[os.write(self.write_fd, rest) :]

    def receive(self, timeout_s: float | None = None) -> dict[str, Any]:
        """The next message.

        Args:
            timeout_s: how long to wait for it; None: for ever.

        Raises:
            TimeoutError: it did not come in time; the part of it that did is kept for the next call.
            EOFError: the other end is closed.
            ValueError: what came is not a JSON object.
        """
        line = self._line(None if timeout_s is None else time.monotonic() + timeout_s)
        message = json.loads(line)
        if not isinstance(message, dict):
            raise ValueError(f"not a JSON object: {line[:80].decode(errors='replace')}")
        return message

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Messages until the other end is closed."""
        while True:
            try:
                yield self.receive()
            except (EOFError, ConnectionError):
                return

    def _line(self, deadline: float | None) -> bytes:
        poll = select.poll()
        poll.register(self.read_fd, select.POLLIN)
        searched = 0
        while (end := self._received.find(b"\n", searched)) < 0:
            searched = len(self._received)
            wait_ms = None if deadline is None else max(deadline - time.monotonic(), 0.0) * 1000
            if not poll.poll(wait_ms):
                raise TimeoutError
            chunk = os.read(self.read_fd, CHUNK_BYTES)
            if not chunk:
                raise EOFError
            self._received += chunk
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return line


@contextlib.contextmanager
def socket_address(folder: Path) -> Iterator[str]:
    """The address of the socket in a folder, to bind or to connect to; short, for the kernel takes about 100 bytes."""
    if not os.path.isdir("/proc/self/fd"):
        yield str(folder / "socket")
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/socket"
    finally:
        os.close(descriptor)


def parent_channel() -> Channel:
    """The channel to the process that started this one; to be called once, before anything is read or printed.

    From then on standard input is empty and what is printed goes to standard error, so that a model that reads or
    prints cannot disturb the messages.
    """
    read_fd, write_fd = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return Channel(read_fd, write_fd)


def end_with_parent(channel: Channel) -> None:
    """From now on this process ends with the one that started it, whatever it is doing: what is not tidy stays so.

    Args:
        channel: to the parent; where the kernel cannot help, its end is noticed there.
    """
    if not _killed_with_parent():
        threading.Thread(target=end_after, args=(channel.read_fd,), daemon=True).start()


def _killed_with_parent() -> bool:
    """Has the kernel kill this process when the thread that started it ends; whether it can (Linux)."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        return bool(ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0)
    except (OSError, AttributeError):
        return False


def end_after(read_fd: int, farewell_s: float = FAREWELL_S) -> None:
    """Ends this process some time after the other end of a pipe is closed. Waits until then."""
    poll = select.poll()
    poll.register(read_fd, 0)  # being hung up is always reported
    poll.poll()
    time.sleep(farewell_s)
    os._exit(1)
