"""The measuring process: serves requests on standard input, answers on standard output, a JSON object a line.

It is started with its thread environment set and replaced after a failure; what it was doing when it died is known from
its last words. Anything a model prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from dynbench.errors import UserError


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
        """Whether it was asked for."""
        return self.asked


def main() -> None:
    """Serves until standard input ends."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)

    def tell(event: str, **what: Any) -> None:
        channel.write(json.dumps({"event": event, **what}) + "\n")

    stop = Stop()
    from dynbench.experiment.memory import start_forks
    from dynbench.experiment.serve import Server  # torch is imported here, with the environment already set

    start_forks()

    server = Server(tell, stop)
    tell("ready")
    for line in sys.stdin:
        request = json.loads(line)
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
