"""Whole networks as one ONNX graph: dynamic ones, in which skipped work is skipped, and static ones."""

from dynbench.graph.compile import Graph, compiled, compiled_twice, static_graph
from dynbench.graph.export import DecisionOutput
from dynbench.graph.layout import for_this_machine
from dynbench.graph.proof import Check, prove
from dynbench.graph.session import CannotFeed, Feeds, Session
from dynbench.graph.strategy import CannotTrace
from dynbench.graph.symbolics import OPSET
from dynbench.graph.work import executed_flops

__all__ = [
    "OPSET",
    "CannotFeed",
    "CannotTrace",
    "Check",
    "DecisionOutput",
    "Feeds",
    "Graph",
    "Session",
    "compiled",
    "compiled_twice",
    "executed_flops",
    "for_this_machine",
    "prove",
    "static_graph",
]
