"""Say what is dynamic once: decision points, decisions, traces and the execution context."""

from dynbench.dynamic.choice import Choice
from dynbench.dynamic.context import Execution, Profile, Refused, Strategy, current, outside
from dynbench.dynamic.draw import Draw
from dynbench.dynamic.each import Each
from dynbench.dynamic.faults import ModelError
from dynbench.dynamic.items import Shared
from dynbench.dynamic.loop import Exits, Loop
from dynbench.dynamic.patches import Grid, Patch, Patches
from dynbench.dynamic.pick import Pick
from dynbench.dynamic.point import DecisionPoint, Label, points, widest_scope
from dynbench.dynamic.pool import Pool
from dynbench.dynamic.program import Op, Program
from dynbench.dynamic.route import Route
from dynbench.dynamic.skip import Ahead, Skip, straight_through
from dynbench.dynamic.trace import Trace, TraceError
from dynbench.dynamic.weights import Weights, Width
from dynbench.dynamic.words import actions

__all__ = [
    "Ahead",
    "Choice",
    "DecisionPoint",
    "Draw",
    "Each",
    "Execution",
    "Exits",
    "Grid",
    "Label",
    "Loop",
    "ModelError",
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
    "actions",
    "current",
    "outside",
    "points",
    "straight_through",
    "widest_scope",
]
