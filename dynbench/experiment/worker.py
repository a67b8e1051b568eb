"""The measuring process: answers requests until its input ends. Anything that a model prints goes to standard error.

It is started with its thread environment set and replaced after a failure; what it was doing when it died is known from
the events that it sent before.
"""

from __future__ import annotations

import os
import signal
import traceback
from pathlib import Path
from typing import Any

from dynbench.errors import UserError
from dynbench.launch.channel import end_with_parent, parent_channel


class Stop:
    """Set by SIGINT: finish the round and hand over what is measured. A second one ends the process."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGINT, self._ask)

    def _ask(self, *_: object) -> None:
        if self.asked:
            os._exit(130)
        self.asked = True

    def __call__(self) -> bool:
        """Whether SIGINT came."""
        return self.asked


def main() -> None:
    """Serves until the input ends."""
    channel = parent_channel()
    end_with_parent(channel)

    def tell(event: str, **what: Any) -> None:
        try:
            channel.send({"event": event, **what})
        except OSError:  # the process that asked has ended
            os._exit(1)

    stop = Stop()
    from dynbench.experiment.serve import Server  # torch is imported here, after what could disturb the channel

    server = Server(tell, stop)
    tell("ready")
    for request in channel:
        try:
            server.serve(request)
        except UserError as e:
            tell("error", text=str(e), user=True)
        except Exception as e:  # noqa: BLE001 (a user's model may raise anything)
            traceback.print_exc()
            tell("error", text=f"{type(e).__name__}: {e}", user=False, where=_where(e))


def _where(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(last.filename).name}:{last.lineno}"


if __name__ == "__main__":
    main()
