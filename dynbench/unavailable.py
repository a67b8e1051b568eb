"""What stands where a number would, when it could not be measured."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Unavailable(BaseModel):
    """A quantity that could not be measured, with the reason: never 0, never an estimate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    unavailable: str


Measured = float | Unavailable
