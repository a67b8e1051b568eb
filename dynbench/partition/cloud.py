"""The process that plays the cloud: builds a network and computes what is left of it after a cut.

Started by `dynbench.partition.remote.Cloud`: the request comes on the channel to the parent, the port goes back on it;
everything else is messages over one connection. It ends when that is closed, when it is silent for too long, or when
nobody connects.
"""

from __future__ import annotations

import secrets
import socket
import sys

from torch import Tensor

from dynbench.devices.link import Line, PeerLost
from dynbench.errors import DynbenchError
from dynbench.launch.channel import Channel, end_with_parent, parent_channel
from dynbench.partition.half import Half, ModelSource
from dynbench.partition.messages import bucket, pack, unpack

CANNOT_BUILD, NOBODY_CAME = 1, 3  # exit codes


def main() -> int:
    """Serves one connection; returns the exit code."""
    channel = parent_channel()
    end_with_parent(channel)
    return serve(channel)


def serve(channel: Channel) -> int:
    """Does what the parent asks for; returns the exit code."""
    request = channel.receive()
    try:
        half = Half(ModelSource(**request["source"]), request["threads"])
    except DynbenchError as e:
        channel.send({"error": str(e)})
        return CANNOT_BUILD
    with socket.create_server(("127.0.0.1", 0), backlog=1) as server:
        server.settimeout(request["timeout_s"])
        channel.send({"port": server.getsockname()[1]})
        line = accept(server, request["secret"], request["timeout_s"], request["down_mbit_s"])
    if line is None:
        return NOBODY_CAME
    try:
        answer_all(line, half)
    except PeerLost:
        pass  # the device has closed the connection or died: nothing is left to do
    finally:
        line.close()
    return 0


def accept(server: socket.socket, secret: str, timeout_s: float, mbit_s: float | None) -> Line | None:
    """The first connection that knows the secret; None: there is none in time.

    Args:
        server: listens.
        secret: the first message of the parent's connection; others on this machine could connect as well.
        timeout_s: for how long a peer may be silent.
        mbit_s: rate at which answers are sent.
    """
    while True:
        try:
            connection, _ = server.accept()
        except TimeoutError:
            return None
        line = Line(connection, timeout_s, bucket(mbit_s))
        try:
            if secrets.compare_digest(line.receive(), secret.encode()):
                return line
        except PeerLost:
            pass
        line.close()


def answer_all(line: Line, half: Half) -> None:
    """Answers messages until the peer is lost.

    Raises:
        PeerLost: it is.
    """
    while True:
        parts, facts = unpack(line.receive())
        answer: list[Tensor] = []
        words = {}
        try:
            answer = half.answer(parts, facts)
        except Exception as e:  # noqa: BLE001 (a user's model may raise anything)
            words = {"error": f"{type(e).__name__}: {e}"}
        line.send(pack(answer, **words))


if __name__ == "__main__":
    sys.exit(main())
