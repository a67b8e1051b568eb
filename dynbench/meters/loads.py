"""Loads: how batches are issued to what is measured. A load is part of a cell's identity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from dynbench.meters.device import MeasuredDevice
from dynbench.meters.latency import Timing, time_batches


class Load(Protocol):
    """How the batches of a stream are issued.

    Attributes:
        name: unique among loads.
    """

    name: str

    def issue(
        self, call: Callable[..., Any], batches: Sequence[tuple[Any, ...]], device: MeasuredDevice
    ) -> list[Timing]:
        """Calls `call(*batch)` for every batch of the stream and times each.

        Args:
            call: what is measured.
            batches: of the stream, in order.
            device: to be drained, and whose clock is read.

        Returns:
            A timing for each batch, in order.
        """


class ClosedLoop:
    """The next batch is issued when the one before is done: no queue, no idle time."""

    name = "closed loop"

    def issue(
        self, call: Callable[..., Any], batches: Sequence[tuple[Any, ...]], device: MeasuredDevice
    ) -> list[Timing]:
        """One batch after the other, the device drained before and after each."""
        return time_batches(call, batches, device)


LOADS: dict[str, Load] = {"closed loop": ClosedLoop()}

PROTOCOL = ("name", "issue")
"""What a load of a user's own must have."""
