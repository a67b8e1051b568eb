"""The cells of a check: an arm at a batch size."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from dynbench.store.schema import Arm


class GateCell(BaseModel):
    """What is measured in every revision.

    Attributes:
        arm: a strategy; its decisions are always the network's own.
        batch_size: in items.
        batches: of the stream.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    arm: Arm
    batch_size: int
    batches: int

    @property
    def name(self) -> str:
        """'compaction, batch 32'."""
        return f"{self.arm.title}, batch {self.batch_size}"
