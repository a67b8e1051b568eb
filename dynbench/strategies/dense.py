"""dense: no dynamic execution at all."""

from __future__ import annotations

from typing import Any

from torch import nn

from dynbench.dynamic.context import Execution, outside
from dynbench.strategies.base import Strategy


class Dense(Strategy):
    """Every decision point is its static twin; no gate runs."""

    name = "dense"
    trains = True
    static_twin = True
    fixed_work = True

    def run(self, ex: Execution, model: nn.Module, args: tuple[Any, ...]) -> Any:
        """The static twin's answer."""
        with outside():
            return model(*args)
