"""Where the time of a call goes: the phases a strategy marks."""

from __future__ import annotations

from types import TracebackType

from dynbench.meters.device import MeasuredDevice
from dynbench.store.schema import Phases

PHASES = ("decide", "gather", "body", "scatter", "sync", "head")


class PhaseTimer:
    """A profile for an execution: adds up the time of each phase, of the phases inside it nothing.

    Inside `with timer:` everything counts; what lies in no phase is 'other'. On a GPU every boundary waits for the
    device, so that its work falls into the phase that issued it. This takes time and hides overlap: the shares are of
    use, the sum is longer than an unprofiled call.
    """

    def __init__(self, device: MeasuredDevice) -> None:
        self._device = device
        self._stack = ["other"]
        self._ns = dict.fromkeys((*PHASES, "other"), 0)
        self._since_ns = 0

    def __enter__(self) -> PhaseTimer:
        self._device.synchronize()
        self._since_ns = self._device.clock_ns()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._settle()

    def enter(self, phase: str, point: str | None, index: int | None) -> None:
        """A phase begins; what ran until now belongs to the one around it."""
        self._settle()
        self._stack.append(phase)

    def exit(self) -> None:
        """The phase entered last ends."""
        self._settle()
        self._stack.pop()

    def phases(self) -> Phases:
        """Milliseconds by phase."""
        return Phases(**{f"{phase}_ms": ns / 1e6 for phase, ns in self._ns.items()})

    def _settle(self) -> None:
        self._device.synchronize()
        now_ns = self._device.clock_ns()
        self._ns[self._stack[-1]] += now_ns - self._since_ns
        self._since_ns = now_ns
