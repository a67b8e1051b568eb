"""The parent's side of a measuring process: start it, ask it, notice that it died or hangs, replace it."""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

from dynbench.errors import DynbenchError, UserError
from dynbench.experiment.environment import worker_environment

GRACE_S = 2.0
HANG_S = 300.0  # no arm of one round takes longer, or its batch should be smaller


class WorkerDied(DynbenchError):
    """The measuring process ended or hung; `arm` is what it was running."""

    def __init__(self, reason: str, arm: str | None) -> None:
        super().__init__(reason)
        self.reason, self.arm = reason, arm


class Worker:
    """A measuring process.

    Args:
        threads: for OMP and MKL, set before it starts.
        hang_s: silence after which it counts as hanging; default: `HANG_S`.
    """

    def __init__(self, threads: int, hang_s: float | None = None) -> None:
        self._threads, self._hang_s = threads, HANG_S if hang_s is None else hang_s
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.number = -1

    def _start(self) -> None:
        self.number += 1
        self._lines = queue.Queue()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "dynbench.experiment.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=worker_environment(self._threads),
            start_new_session=True,
        )  # fmt: skip
        threading.Thread(target=self._listen, args=(self._process, self._lines), daemon=True).start()
        self._wait(lambda _: None, "ready")

    @staticmethod
    def _listen(process: subprocess.Popen[str], lines: queue.Queue[dict[str, Any] | None]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(json.loads(line))
        lines.put(None)

    def ask(self, request: dict[str, Any], answer: str, on_event: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Sends a request and returns the event named `answer`; other events go to `on_event`.

        Raises:
            UserError: the request cannot be served, in one sentence.
            WorkerDied: the process ended, hung or failed; the next call starts another.
        """
        if self._process is None:
            self._start()
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the reader below says how it ended
        return self._wait(on_event, answer)

    def _wait(self, on_event: Callable[[dict[str, Any]], None], answer: str) -> dict[str, Any]:
        arm: str | None = None
        silent_s = 0.0
        while True:
            try:
                event = self._lines.get(timeout=1.0)
            except queue.Empty:
                silent_s += 1.0
                if silent_s > self._hang_s:
                    self.kill()
                    raise WorkerDied(f"hung: no progress for {self._hang_s:.0f} s", arm) from None
                continue
            if event is None:
                code = self.kill()
                how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
                raise WorkerDied(f"the measuring process died ({how})", arm)
            kind = event["event"]
            silent_s = 0.0
            if kind == answer:
                return event
            if kind == "error":
                if event["user"]:
                    raise UserError(event["text"])
                raise WorkerDied(f"{event['text']} (at {event['where']})", arm)
            if kind == "arm":
                arm = event["name"]
            on_event(event)

    def interrupt(self) -> None:
        """Asks it to finish the round and hand over."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)

    def kill(self) -> int:
        """Ends the process; returns its exit code (negative: the signal)."""
        process, self._process = self._process, None
        if process is None:
            return 0
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()  # an idle one ends by itself, and tidies up
        try:
            return process.wait(timeout=GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
        return process.wait()
