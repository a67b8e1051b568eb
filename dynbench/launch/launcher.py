"""The interface of a launcher, which starts processes, and of the processes that it starts."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from dynbench.errors import DynbenchError

GRACE_S = 2.0
PROTOCOL = ("name", "facts", "start")
"""What a launcher of a user's own must have."""


class ProcessLost(DynbenchError):
    """A process gave no answer.

    Args:
        cause: 'ended': it ended, by itself or by a signal. 'silent': no answer came in time; it may still run.
            'unreachable': the connection to it is lost and nothing is known of it. 'garbled': what came is not a
            message.
        exit_code: of a process that ended; a negative one is the signal that ended it. None: unknown.
        last_words: the last line that it wrote to standard error; empty if there is none.
        detail: what is known beyond that.
    """

    def __init__(
        self,
        cause: Literal["ended", "silent", "unreachable", "garbled"],
        *,
        exit_code: int | None = None,
        last_words: str = "",
        detail: str = "",
    ) -> None:
        self.cause, self.exit_code, self.last_words = cause, exit_code, last_words
        happened = {
            "ended": f"the process ended ({self.ending})",
            "silent": "the process is silent",
            "unreachable": "the connection to the process is lost",
            "garbled": "the process sent what is not a message",
        }[cause]
        words = f"last words: {last_words}" if last_words else ""
        super().__init__("; ".join(filter(None, [happened, detail, words])))

    @property
    def ending(self) -> str:
        """How it ended: 'exit code 7', 'signal SIGKILL'."""
        if self.exit_code is None:
            return "unknown exit code"
        if self.exit_code >= 0:
            return f"exit code {self.exit_code}"
        try:
            return f"signal {signal.Signals(-self.exit_code).name}"
        except ValueError:  # a real-time signal has no name
            return f"signal {-self.exit_code}"


class Process(Protocol):
    """A running process. Messages to it and from it are JSON objects."""

    def send(self, message: Mapping[str, Any]) -> None:
        """Sends a message. Nothing is raised if the process has ended: `receive` says so."""

    def receive(self, timeout_s: float) -> dict[str, Any]:
        """The next message.

        Raises:
            ProcessLost: none came within `timeout_s`, or the process has ended.
        """

    def interrupt(self) -> None:
        """Asks the process to finish what it does and to answer (SIGINT)."""

    def close(self, grace_s: float = GRACE_S) -> int | None:
        """Ends the process: its input ends, and if it has not ended after `grace_s`, it is killed.

        Returns:
            Its exit code, a negative one is the signal that ended it; None: unknown.
        """

    def kill(self) -> int | None:
        """Ends the process at once; returns as `close`."""


class Launcher(Protocol):
    """Starts processes on one target.

    Attributes:
        name: of the target, unique among launchers.
    """

    name: str

    def facts(self) -> dict[str, object]:
        """What a manifest says of the target."""

    def start(self, module: str, *, environment: Mapping[str, str], folder: Path | None = None) -> Process:
        """Starts `python -m module` on the target.

        The process reads messages from its standard input, one JSON object per line, and writes them to its standard
        output: see `dynbench.launch.channel.parent_channel`.

        Args:
            module: can be imported there.
            environment: variables to be set before the process starts, beside those it has there anyway.
            folder: where it runs; None: anywhere.
        """
