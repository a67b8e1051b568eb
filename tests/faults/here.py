"""A launcher whose process is this one: `dynbench run` without a second process, for many runs in little time."""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dynbench.errors import UserError
from dynbench.experiment.serve import Server
from dynbench.launch import ProcessLost


class Here:
    """Starts nothing.

    Attributes:
        faults: tracebacks of what was raised while a request was served and is no `UserError`.
    """

    name = "local"

    def __init__(self) -> None:
        self.faults: list[str] = []

    def facts(self) -> dict[str, object]:
        return {}

    def start(self, module: str, *, environment: Mapping[str, str], folder: Path | None = None) -> HereProcess:
        return HereProcess(self)


class HereProcess:
    """Serves a request when it is sent."""

    def __init__(self, launcher: Here) -> None:
        self._launcher, self._events = launcher, deque([{"event": "ready"}])
        self._server = Server(self._tell, lambda: False)

    def _tell(self, event: str, **what: Any) -> None:
        self._events.append({"event": event, **what})

    def send(self, message: Mapping[str, Any]) -> None:
        try:
            self._server.serve(dict(message))
        except UserError as e:
            self._tell("error", text=str(e), user=True)
        except Exception as e:  # noqa: BLE001 (as the worker does)
            self._launcher.faults.append(traceback.format_exc())
            self._tell("error", text=f"{type(e).__name__}: {e}", user=False, where="here")

    def receive(self, timeout_s: float) -> dict[str, Any]:
        if not self._events:
            raise ProcessLost("silent")
        return self._events.popleft()

    def interrupt(self) -> None: ...

    def close(self, grace_s: float = 0.0) -> int:
        return 0

    def kill(self) -> int:
        return 0
