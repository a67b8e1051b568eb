"""dense: no dynamic execution at all."""

from __future__ import annotations

from dynbench.strategies.base import Strategy


class Dense(Strategy):
    """Every decision point is its static twin; no gate runs."""

    name = "dense"
    trains = True
    static_twin = True
    fixed_work = True
