"""This machine's end of a network that is cut in two: answers what a device sends, and compares the answers.

Messages are those of `deploy.agents.python_split`: NumPy's bytes with a head of JSON, as a device has no torch.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import struct
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
import onnxruntime

from dynbench.deploy.agents.python_split import packed, unpacked
from dynbench.devices.link import Line, PeerLost
from dynbench.errors import UserError
from dynbench.partition.parts import TOLERANCE, Cut

SILENT_S, SECRET_S = 120.0, 5.0
WAIT_S = 0.2  # between looks whether it is to end


class CutServer:
    """Listens while it is used in a `with`; one device at a time.

    Args:
        cuts: whose second parts it computes.
        host: address at which it listens; empty: all of this machine.
        port: 0: any that is free.
        threads: of ONNX Runtime.

    Attributes:
        secret: what a device says first; others could connect as well.
        port: where it listens.
        answered: requests that were computed.
        wrong: of these, how many had another answer than the network in torch.

    Raises:
        UserError: it cannot listen there.
    """

    def __init__(self, cuts: Sequence[Cut], host: str = "127.0.0.1", port: int = 0, threads: int = 1) -> None:
        self.secret, self.answered, self.wrong = secrets.token_hex(16), 0, 0
        self._cuts = {cut.name: cut for cut in cuts if cut.cloud is not None}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 4
        self._sessions = {
            name: onnxruntime.InferenceSession(
                cut.cloud.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            for name, cut in self._cuts.items()
            if cut.cloud is not None
        }
        try:
            self._listener = socket.create_server((host, port), backlog=4)
        except OSError as e:
            raise UserError(f"cannot listen at {host or 'all addresses'}, port {port}: {e.strerror or e}") from e
        self._listener.settimeout(WAIT_S)
        self.port = int(self._listener.getsockname()[1])
        self._line: Line | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._over.set()
        line = self._line
        if line is not None:
            line.close()
        self._thread.join(SILENT_S)
        self._listener.close()

    def _serve(self) -> None:
        while not self._over.is_set():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            with contextlib.suppress(PeerLost, OSError), connection:  # it is gone: the next one may come
                if self._knows_secret(connection):
                    self._line = Line(connection, SILENT_S)
                    self._answer_all(self._line)

    def _knows_secret(self, connection: socket.socket) -> bool:
        """Whether the first message is the secret; of strangers no more than its length is read, and not for long."""
        right = struct.pack(">Q", len(self.secret)) + self.secret.encode()
        said, end = b"", time.monotonic() + SECRET_S
        while len(said) < len(right) and (left := end - time.monotonic()) > 0:
            connection.settimeout(left)
            part = connection.recv(len(right) - len(said))
            if not part:
                break
            said += part
        return secrets.compare_digest(said, right)

    def _answer_all(self, line: Line) -> None:
        while not self._over.is_set():
            body = line.receive()
            try:
                reply = self._reply(*unpacked(np, body))
            except Exception as e:  # noqa: BLE001 - whatever the runtime raises is told to the device
                reply = packed({"error": f"{type(e).__name__}: {' '.join(str(e).split())[:300]}"}, [])
            line.send(reply)

    def _reply(self, head: dict[str, Any], parts: list[np.ndarray]) -> bytes:
        """The answers of a cut; of a transfer alone as many bytes."""
        name = str(head["arm"])
        cut, session = self._cuts[name], self._sessions[name]
        item = int(head["item"])
        if head["do"] == "transfer":
            return packed({"ns": 0}, [np.zeros_like(a[item : item + 1]) for a in cut.answers])
        assert cut.cloud is not None
        feeds = {f"x.{i}" if i else "x": part for i, part in enumerate(parts)}
        takes = {value.name for value in session.get_inputs()}
        start = time.perf_counter_ns()
        answers = session.run(list(cut.cloud.answers), {k: v for k, v in feeds.items() if k in takes})
        ns = time.perf_counter_ns() - start
        self.answered += 1
        self.wrong += not all(
            _same(mine, right[item : item + 1]) for mine, right in zip(answers, cut.answers, strict=True)
        )
        return packed({"ns": ns}, answers)


def _same(mine: np.ndarray, right: np.ndarray) -> bool:
    if mine.shape != right.shape or mine.dtype != right.dtype:
        return False
    slack = TOLERANCE * max(float(np.abs(right).max(initial=0)), 1e-30)
    return bool((np.abs(mine.astype(np.float64) - right) <= slack).all())
