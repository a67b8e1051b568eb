"""A connection between two processes: length-prefixed messages, paced like a network of a given bandwidth.

The two ends define what a message contains. Nothing in dynbench unpickles what it receives.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable

from dynbench.errors import DynbenchError

LARGEST = 1 << 30  # bytes of a message; a greater length is a protocol error
CHUNK = 1460  # bytes given to the socket at once: the payload of a TCP segment on Ethernet
_LENGTH = struct.Struct(">Q")


class PeerLost(DynbenchError):
    """The other end closed the connection, sent nothing for too long, or violated the protocol."""


class TokenBucket:
    """A token bucket: it fills at `bytes_per_s` up to `burst_bytes` tokens, and each byte sent takes one.

    Its state is one number: the time at which it was, or will be, empty.

    Args:
        bytes_per_s: the rate.
        burst_bytes: how many bytes may pass at once after a pause.

    Raises:
        ValueError: a rate of 0 or below, or a negative burst.
    """

    def __init__(self, bytes_per_s: float, burst_bytes: float = 0.0) -> None:
        if not (bytes_per_s > 0 and burst_bytes >= 0):
            raise ValueError(f"a rate of {bytes_per_s} bytes/s and a burst of {burst_bytes} bytes")
        self._rate, self._burst_s = bytes_per_s, burst_bytes / bytes_per_s
        self._empty_at = float("-inf")

    def reserve(self, n: int, since: float) -> float:
        """Takes n tokens for bytes that are ready since a given time; returns when they may be sent, in the same clock.

        A sender that oversleeps loses no bandwidth if `since` is the time at which the whole message was ready.
        """
        self._empty_at = max(self._empty_at, since - self._burst_s) + n / self._rate
        return self._empty_at


class Line:
    """One end of a connection; it sends and receives whole messages.

    Args:
        connection: a connected stream socket; closed with the line.
        timeout_s: for how long the other end may send nothing, or accept nothing.
        bucket: limits the rate at which this end sends; None: no limit.
        clock: monotonic, in seconds.
        sleep: waits for a number of seconds.
    """

    def __init__(
        self,
        connection: socket.socket,
        timeout_s: float,
        bucket: TokenBucket | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._socket, self._bucket, self._clock, self._sleep = connection, bucket, clock, sleep
        self._timeout_s = timeout_s
        connection.settimeout(timeout_s)
        if connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, message: bytes) -> None:
        """Sends a message at the rate of the bucket.

        Raises:
            PeerLost: the other end is gone, or accepts nothing.
        """
        if len(message) > LARGEST:
            raise ValueError(f"a message of {len(message)} bytes; the longest is {LARGEST}")
        framed = memoryview(_LENGTH.pack(len(message)) + message)
        if self._bucket is None:
            self._push(framed)
            return
        ready = self._clock()
        for start in range(0, len(framed), CHUNK):
            part = framed[start : start + CHUNK]
            wait = self._bucket.reserve(len(part), ready) - self._clock()
            if wait > 0:
                self._sleep(wait)
            self._push(part)

    def receive(self) -> bytes:
        """The next message.

        Raises:
            PeerLost: the other end is gone, sends nothing, or violates the protocol.
        """
        (length,) = _LENGTH.unpack(self._pull(_LENGTH.size))
        if length > LARGEST:
            raise PeerLost(f"the other end announces a message of {length} bytes; the longest is {LARGEST}")
        return self._pull(length)

    def close(self) -> None:
        """Closes the connection; the other end sees the end of the stream."""
        self._socket.close()

    def _push(self, data: memoryview) -> None:
        try:
            self._socket.sendall(data)
        except TimeoutError as e:
            raise PeerLost(f"the other end accepted nothing for {self._timeout_s:g} s") from e
        except OSError as e:
            raise PeerLost(f"the other end is gone ({e.strerror or e})") from e

    def _pull(self, n: int) -> bytes:
        parts, missing = [], n
        while missing:
            try:
                part = self._socket.recv(min(missing, 1 << 20))
            except TimeoutError as e:
                raise PeerLost(f"the other end was silent for {self._timeout_s:g} s") from e
            except OSError as e:
                raise PeerLost(f"the other end is gone ({e.strerror or e})") from e
            if not part:
                raise PeerLost("the other end is gone (it closed the connection)")
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)


def framed_bytes(message_bytes: int) -> int:
    """Bytes on the wire for a message of `message_bytes`."""
    return _LENGTH.size + message_bytes
