"""Say what is dynamic once: decision points, decisions, traces and the execution context."""

from dynbench.dynamic.context import Execution, Profile, Refused, Strategy, current, outside
from dynbench.dynamic.items import Shared
from dynbench.dynamic.patches import Grid, Patch, Patches
from dynbench.dynamic.points import (
    Ahead,
    Choice,
    DecisionPoint,
    Each,
    Exits,
    Loop,
    Pick,
    Route,
    Skip,
    Weights,
    Width,
    points,
    regions,
    straight_through,
    widest_scope,
)
from dynbench.dynamic.pool import Pool
from dynbench.dynamic.program import Op, Program
from dynbench.dynamic.trace import Trace, TraceError

__all__ = [
    "Ahead",
    "Choice",
    "DecisionPoint",
    "Each",
    "Execution",
    "Exits",
    "Grid",
    "Loop",
    "Op",
    "Patch",
    "Patches",
    "Pick",
    "Pool",
    "Profile",
    "Program",
    "Refused",
    "Route",
    "Shared",
    "Skip",
    "Strategy",
    "Trace",
    "TraceError",
    "Weights",
    "Width",
    "current",
    "outside",
    "points",
    "regions",
    "straight_through",
    "widest_scope",
]
