"""Shares of a profiled pass."""

from __future__ import annotations

from dynbench.store.schema import Phases


def phase_shares(phases: Phases) -> dict[str, float]:
    """Shares of the profiled pass by phase ('decide', 'gather', ...), adding up to 1; empty if it took no time."""
    times = {name.removesuffix("_ms"): ms for name, ms in phases.model_dump().items()}
    total = sum(times.values())
    return {name: ms / total for name, ms in times.items()} if total > 0 else {}
