"""The parent's side of a measuring process: start it, ask it, notice that it died or hangs, replace it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dynbench.errors import DynbenchError, UserError
from dynbench.launch import Launcher, LocalLauncher, LocalProcess, Process, ProcessLost, thread_environment

HANG_S = 300.0  # no arm of one round takes longer, or its batch should be smaller
SILENCE_S = 20.0  # between two events that say that there is none
KILLED = ", from outside: by the system for want of memory, or by hand"
OnEvent = Callable[[dict[str, Any]], None]


class WorkerDied(DynbenchError):
    """The measuring process ended, hung or failed.

    Args:
        reason: in words.
        arm: key of the arm that it was running; None: of none.
    """

    def __init__(self, reason: str, arm: str | None) -> None:
        super().__init__(reason)
        self.reason, self.arm = reason, arm


class Worker:
    """A measuring process; it is started when it is first asked, and again after it has died.

    Args:
        threads: of the process.
        hang_s: without an event for so long it counts as hanging; default: `HANG_S`.
        launcher: what starts it, and where; default: on this machine.
        log: file for what the process prints, beside this process; None: it is passed on to standard error.

    Attributes:
        number: how often it has been started again; -1: it has not been started yet.
    """

    def __init__(
        self, threads: int, hang_s: float | None = None, launcher: Launcher | None = None, log: Path | None = None
    ) -> None:
        self._threads, self._hang_s = threads, HANG_S if hang_s is None else hang_s
        self._launcher, self._log = launcher or LocalLauncher(), log
        self._process: Process | None = None
        self.number = -1

    def ask(self, request: dict[str, Any], answer: str, on_event: OnEvent) -> dict[str, Any]:
        """Sends a request and returns the event named `answer`; other events go to `on_event`.

        While none comes, `on_event` gets an event 'silent' every `SILENCE_S`, with `seconds` and the `arm` that runs.

        Raises:
            UserError: the request cannot be served, in one sentence.
            WorkerDied: the process ended, hung or failed; the next call starts another if it has to.
        """
        process = self._process or self._start()
        process.send(request)
        return self._wait(process, answer, on_event)

    def started(self) -> int:
        """The number of the process that the next request goes to; it is started if there is none.

        Raises:
            WorkerDied: it could not be.
        """
        if self._process is None:
            self._start()
        return self.number

    def interrupt(self) -> None:
        """Asks the process to finish the round and to answer."""
        if self._process is not None:
            self._process.interrupt()

    def kill(self) -> None:
        """Ends the process; one that is idle ends by itself, and tidies up."""
        process, self._process = self._process, None
        if process is not None:
            process.close()

    def _start(self) -> Process:
        self.number += 1
        environment = thread_environment(self._threads)
        self._process = process = self._launcher.start("dynbench.experiment.worker", environment=environment)
        if self._log is not None and isinstance(process, LocalProcess):
            process.log_to(self._log)
        self._wait(process, "ready", lambda _: None)
        return process

    def _wait(self, process: Process, answer: str, on_event: OnEvent) -> dict[str, Any]:
        arm: str | None = None
        while True:
            try:
                event = self._receive(process, arm, on_event)
            except ProcessLost as e:
                self.kill()
                raise WorkerDied(self._reason(e), arm) from e
            kind = event["event"]
            if kind == answer:
                return event
            if kind == "error":
                if event["user"]:
                    raise UserError(event["text"])
                raise WorkerDied(f"{event['text']} (at {event['where']})", arm)
            if kind == "arm":
                arm = event["name"]
            on_event(event)

    def _receive(self, process: Process, arm: str | None, on_event: OnEvent) -> dict[str, Any]:
        """The next event."""
        begin = time.monotonic()
        while True:
            left_s = self._hang_s - (time.monotonic() - begin)
            try:
                return process.receive(max(min(left_s, SILENCE_S), 0.0))
            except ProcessLost as e:
                if e.cause != "silent" or left_s <= SILENCE_S:
                    raise
                on_event({"event": "silent", "seconds": round(time.monotonic() - begin), "arm": arm})

    def _reason(self, lost: ProcessLost) -> str:
        if lost.cause == "silent":
            return f"hung: no progress for {self._hang_s:.0f} s"
        if lost.cause == "ended":
            words = f"; last words: {lost.last_words}" if lost.last_words else ""
            return f"the measuring process died ({lost.ending}{KILLED if lost.exit_code == -9 else ''}{words})"
        return f"the measuring process failed: {lost}"
