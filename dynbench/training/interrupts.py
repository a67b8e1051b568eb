"""Ctrl-C and SIGTERM: a loop finishes its step and keeps it; elsewhere a training ends at once."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator

from dynbench.errors import DynbenchError

NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class Stopped(DynbenchError):
    """A signal ended the training.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {NAMES[signal.Signals(number)]}")
        self.number = number


class Interrupts:
    """Waits for the end of a step, if there is one; a second signal does not wait.

    Attributes:
        asked: the number of the signal that asked for the end; None: there was none.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self._deferred = False
        self._say: Callable[[str], None] | None = None

    @contextlib.contextmanager
    def watching(self, say: Callable[[str], None]) -> Iterator[None]:
        """Handles both signals in the block, in the main thread, which alone gets signals."""
        self._say = say
        try:
            before = {number: signal.signal(number, self._ask) for number in NAMES}
        except ValueError:
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """In the block, signals wait for `check`."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def check(self) -> None:
        """Ends the training if that was asked for.

        Raises:
            Stopped: it was.
        """
        if self.asked is not None:
            raise Stopped(self.asked)

    def _ask(self, number: int, frame: object) -> None:
        again = self.asked is not None
        self.asked = number
        if again or not self._deferred:
            raise Stopped(number)
        if self._say is not None:
            self._say("stopping after this step, which is kept (once more: at once)")
