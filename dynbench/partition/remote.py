"""The cloud as a second process: starts it, sends it what crosses a cut, and notices when it is gone.

Both processes run on this machine and talk over a loopback socket, limited to a network's bandwidth; its round trip is
waited for, half before a request and half after the answer.
"""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from dynbench.devices.link import Line, PeerLost
from dynbench.devices.network import Network
from dynbench.errors import DynbenchError
from dynbench.launch import LocalLauncher, ProcessLost, thread_environment
from dynbench.partition.half import ModelSource
from dynbench.partition.messages import bucket, pack, unpack

START_S = 300.0  # importing torch and building a network on a busy machine
GRACE_S = 30.0  # until a process that was asked to end is killed
SETTLE_S = 1.0  # until a process whose connection is lost has ended, if it ends


class Cloud:
    """A running second process; use it in a `with`.

    Args:
        source: the network that it is to build.
        network: between the two processes.
        timeout_s: for how long it may be silent.
        threads: of the process.

    Raises:
        DynbenchError: it cannot build the network, in its own words.
        PeerLost: it ended, or did not answer in time.
    """

    def __init__(self, source: ModelSource, network: Network, timeout_s: float = 60.0, threads: int = 1) -> None:
        self._line: Line | None = None
        self._process = LocalLauncher(show_stderr=False).start(
            "dynbench.partition.cloud", environment=thread_environment(threads)
        )
        secret = secrets.token_hex(16)
        request = {
            "source": asdict(source),
            "secret": secret,
            "timeout_s": timeout_s,
            "threads": threads,
            "down_mbit_s": network.down_mbit_s,
        }
        try:
            port = self._port(request)
            connection = socket.create_connection(("127.0.0.1", port), timeout=timeout_s)
            self._line = Line(connection, timeout_s, bucket(network.up_mbit_s))
            self._line.send(secret.encode())
        except OSError as e:
            self.close()
            raise PeerLost(f"the process that plays the cloud cannot be reached: {e}") from e
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def ask(self, parts: Sequence[Tensor], round_trip_s: float = 0.0, **facts: str) -> list[Tensor]:
        """Sends tensors and named strings, and waits for the answer.

        Raises:
            PeerLost: the process is gone or silent.
            DynbenchError: it could not do what it was asked for.
        """
        assert self._line is not None
        message = pack(parts, **facts)
        time.sleep(round_trip_s / 2)
        try:
            self._line.send(message)
            answer, words = unpack(self._line.receive())
        except PeerLost as e:
            raise PeerLost(f"the process that plays the cloud is lost: {e}{self._how_it_ended()}") from e
        time.sleep(round_trip_s / 2)
        if "error" in words:
            raise DynbenchError(f"the process that plays the cloud failed: {words['error']}")
        return answer

    def close(self) -> int:
        """Ends the connection and the process; returns its exit code, a negative one is the signal that ended it."""
        if self._line is None:
            return self._process.kill()
        self._line.close()  # an idle one ends by itself
        return self._process.close(GRACE_S)

    def __enter__(self) -> Cloud:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _port(self, request: dict[str, Any]) -> int:
        self._process.send(request)
        try:
            answer = self._process.receive(START_S)
        except ProcessLost as e:
            raise PeerLost(f"the process that plays the cloud was not ready: {e}") from e
        if "error" in answer:
            raise DynbenchError(answer["error"])
        return int(answer["port"])

    def _how_it_ended(self) -> str:
        code = self._process.wait(SETTLE_S)
        if code is None:
            return ""
        self._process.kill()  # it has ended: its last words are complete then
        words = f", last words: {self._process.last_words}" if self._process.last_words else ""
        return f"; it ended with {code}{words}"
