"""The engine interface, and the engine that changes nothing."""

from __future__ import annotations

from typing import Protocol

from torch import nn


class Engine(Protocol):
    """What executes the plain modules between decision points."""

    name: str

    def refuses(self, device: str) -> str | None:
        """Why this engine cannot be used on a device ('cpu', 'cuda:0') here, in a sentence; None: it can."""

    def prepare(self, model: nn.Module) -> nn.Module:
        """Makes a model's regions ready, in place; returns it. A model without decision points is one region."""


class Eager:
    """Operators one after the other, as written."""

    name = "eager"

    def refuses(self, device: str) -> str | None:
        """Works everywhere."""
        return None

    def prepare(self, model: nn.Module) -> nn.Module:
        """Nothing to do."""
        return model
