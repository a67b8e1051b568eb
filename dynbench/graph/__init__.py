"""Whole networks as one ONNX graph: dynamic ones, in which skipped work is skipped, and static ones."""

from dynbench.graph.branches import opset_of
from dynbench.graph.compile import Graph, compiled, compiled_twice, part_graph, static_graph
from dynbench.graph.export import DecisionOutput
from dynbench.graph.layout import for_this_machine
from dynbench.graph.proof import Check, prove
from dynbench.graph.refused import CannotTrace
from dynbench.graph.right import Answered, Right
from dynbench.graph.session import CannotFeed, Feeds, Session
from dynbench.graph.symbolics import OPSET, OPSETS
from dynbench.graph.work import executed_flops, executed_flops_each

__all__ = [
    "OPSET",
    "OPSETS",
    "Answered",
    "CannotFeed",
    "CannotTrace",
    "Check",
    "DecisionOutput",
    "Feeds",
    "Graph",
    "Right",
    "Session",
    "compiled",
    "compiled_twice",
    "executed_flops",
    "executed_flops_each",
    "for_this_machine",
    "part_graph",
    "opset_of",
    "prove",
    "static_graph",
]
