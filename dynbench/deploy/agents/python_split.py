"""The device's end of a network that is cut in two: runs the first part here, sends what crosses, waits for the answer.

It is copied to devices beside the agent, which loads it for jobs that say `split`. A message is its length (8 bytes),
the length of its head (4 bytes), the head as JSON, and the arrays' bytes, one after the other; both ends speak it.
"""

from __future__ import annotations

import json
import os
import random
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

SILENT_S = 60.0  # a peer that says nothing for so long is lost
WARM_UP = 2  # requests of each cut that are not timed
LONGEST = 1 << 30
_HEAD = struct.Struct(">I")
_LENGTH = struct.Struct(">Q")


def packed(head: dict[str, Any], arrays: list[Any]) -> bytes:
    """The body of a message."""
    told = dict(head, parts=[{"dtype": a.dtype.str, "shape": list(a.shape)} for a in arrays])
    words = json.dumps(told).encode()
    return b"".join([_HEAD.pack(len(words)), words, *(a.tobytes() for a in arrays)])


def unpacked(np: Any, body: bytes) -> tuple[dict[str, Any], list[Any]]:
    """Head and arrays of a message's body.

    Raises:
        ValueError: it is none.
    """
    try:
        (length,) = _HEAD.unpack_from(body)
        at = _HEAD.size + length
        head = json.loads(body[_HEAD.size : at])
        arrays = []
        for part in head["parts"]:
            dtype, shape = np.dtype(part["dtype"]), [int(n) for n in part["shape"]]
            if dtype.kind not in "fiub" or min(shape, default=0) < 0:
                raise ValueError(f"arrays of {dtype}")
            count = 1
            for n in shape:
                count *= n
            arrays.append(np.frombuffer(body, dtype, count, at).reshape(shape))
            at += count * dtype.itemsize
        if at != len(body):
            raise ValueError("it is longer than it says")
    except (struct.error, KeyError, TypeError, AttributeError) as e:
        raise ValueError(f"no message of a cut: {e}") from e
    return head, arrays


def exchange(split: dict[str, Any], lanes: dict[str, Any], np: Any, seed: int, within: Callable[[], None]) -> list[Any]:
    """Asks the other end for every cut in random order, as often as the job says.

    split: of the job; lanes: of the agent, by name, each with its session and inputs; within: raises at the deadline.

    Returns a row for each cut: ns of the whole request, of the part here, of the part there as it says, and of sending
    the same bytes and getting as many back as an answer has, without computing.

    Raises OSError or ValueError: the other end cannot be reached, vanished, or says that it failed.
    """
    host = split["host"] or os.environ.get("SSH_CONNECTION", "").split(" ")[0] or "127.0.0.1"
    try:
        connection = socket.create_connection((host, split["port"]), timeout=20)
    except OSError as e:
        raise OSError(f"this machine cannot be reached from the device at {host}, port {split['port']}: {e}") from e
    rows: dict[str, dict[str, Any]] = {
        cut["arm"]: {"arm": cut["arm"], "total_ns": [], "device_ns": [], "cloud_ns": [], "transfer_ns": []}
        for cut in split["cuts"]
    }
    order, clock = random.Random(seed), time.perf_counter_ns
    with connection:
        connection.settimeout(SILENT_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _send(connection, split["secret"].encode())
        for number in range(WARM_UP + split["requests"]):
            for cut in order.sample(split["cuts"], len(split["cuts"])):
                within()
                lane, sends = lanes[cut["arm"]], cut["sends"]
                item = number % len(lane.feeds)
                head = {"do": "cut", "arm": cut["arm"], "item": item}
                start = clock()
                values = lane.session.run(sends or lane.answers, lane.feeds[item])
                middle = clock()
                told = _ask(connection, np, head, values) if sends else {"ns": 0}
                end = clock()
                if sends:
                    _ask(connection, np, dict(head, do="transfer"), values)
                back = clock()
                if number >= WARM_UP:
                    row = rows[cut["arm"]]
                    row["total_ns"].append(end - start)
                    row["device_ns"].append(middle - start)
                    row["cloud_ns"].append(told["ns"])
                    row["transfer_ns"].append(back - end if sends else 0)
    return list(rows.values())


def _ask(connection: socket.socket, np: Any, head: dict[str, Any], arrays: list[Any]) -> dict[str, Any]:
    _send(connection, packed(head, arrays))
    told, _ = unpacked(np, _receive(connection))
    if "error" in told:
        raise ValueError(f"the part on this machine failed: {told['error']}")
    return told


def _send(connection: socket.socket, body: bytes) -> None:
    connection.sendall(_LENGTH.pack(len(body)) + body)


def _receive(connection: socket.socket) -> bytes:
    (length,) = _LENGTH.unpack(_pull(connection, _LENGTH.size))
    if length > LONGEST:
        raise ValueError(f"a message of {length} bytes")
    return _pull(connection, length)


def _pull(connection: socket.socket, n: int) -> bytes:
    parts = []
    while n:
        part = connection.recv(min(n, 1 << 20))
        if not part:
            raise OSError("the connection to the part on this machine was closed")
        parts.append(part)
        n -= len(part)
    return b"".join(parts)
