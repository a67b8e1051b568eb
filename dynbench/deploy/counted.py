"""Executed FLOPs of a graph for the items of a bundle: what runs alike is run once and multiplied."""

from __future__ import annotations

import torch
from torch import Tensor

from dynbench.dynamic import Trace
from dynbench.graph import Graph, Session, executed_flops_each


def flops_per_item(graph: Graph, x: Tensor, trace: Trace | None) -> float | None:
    """FLOPs (1 MAC = 2 FLOPs) that a graph executes for an item, on average; None: an operator has no formula.

    Args:
        graph: of a static network, or one that decides by itself.
        x: items [n, ...].
        trace: what it decides for each of them, alone or among others; None: that is not known.
    """
    try:
        if graph.single:
            each = [x[i : i + 1] for i in range(len(x))]
            return (sum(_of(graph, each)) if trace is None else _by_path(graph, each, trace)) / len(x)
        return (_whole(graph, x) if graph.decisions else _by_size(graph, x)) / len(x)
    except ValueError:  # an operator without a formula
        return None


def _whole(graph: Graph, x: Tensor) -> int:
    return sum(_of(graph, [x]))


def _of(graph: Graph, batches: list[Tensor]) -> list[int]:
    session = Session(graph, fast=False)
    return executed_flops_each(graph, [session.feeds(x) for x in batches])


def _by_size(graph: Graph, x: Tensor) -> int:
    """Without decisions each further item costs the same: seen from one to two, and again from two to three."""
    if len(x) <= 3:
        return _whole(graph, x)
    one, two, three = _of(graph, [x[:n] for n in (1, 2, 3)])
    return one + (len(x) - 1) * (two - one) if three - two == two - one else _whole(graph, x)


def _by_path(graph: Graph, each: list[Tensor], trace: Trace) -> int:
    """For one item at a time: those that are decided alike run the same nodes on the same sizes."""
    tables = [t for _, pair in sorted(trace.reached_only().items()) for t in pair]
    if not tables:
        return len(each) * sum(_of(graph, each[:1]))
    rows = [t.reshape(len(each), -1).contiguous().view(torch.uint8) for t in tables]
    _, path, times = torch.cat(rows, 1).unique(dim=0, return_inverse=True, return_counts=True)
    first = [int((path == i).nonzero()[0]) for i in range(len(times))]
    flops = _of(graph, [each[i] for i in first])
    return sum(int(count) * once for count, once in zip(times, flops, strict=True))
