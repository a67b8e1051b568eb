"""Say what is dynamic once: decision points, decisions, traces and the execution context."""

from dynbench.dynamic.context import Execution, Profile, Refused, Strategy, current, outside
from dynbench.dynamic.items import Shared
from dynbench.dynamic.points import (
    DecisionPoint,
    Each,
    Exits,
    Loop,
    Route,
    Skip,
    Weights,
    points,
    regions,
    straight_through,
    widest_scope,
)
from dynbench.dynamic.trace import Trace, TraceError

__all__ = [
    "DecisionPoint",
    "Each",
    "Execution",
    "Exits",
    "Loop",
    "Profile",
    "Refused",
    "Route",
    "Shared",
    "Skip",
    "Strategy",
    "Trace",
    "TraceError",
    "Weights",
    "current",
    "outside",
    "points",
    "regions",
    "straight_through",
    "widest_scope",
]
