"""ONNX Runtime's own record of a graph's calls, divided among the regions of the network: T(n) in a graph.

Nodes are named after the modules that they come from. A record makes every node slower by about the same time, which
is taken off so that the nodes of a call take as long as calls that are not recorded.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

_AGAIN = re.compile(r"_\d+$")
Event = dict[str, Any]  # of a session's profile

BETWEEN, MOVING = "(between)", "(moving)"  # what lies in no region
MOVES = frozenset(
    (
        "Gather",
        "GatherElements",
        "GatherND",
        "ScatterElements",
        "ScatterND",
        "Where",
        "Concat",
        "NonZero",
        "Compress",
    )
)
"""Operators that take rows, put them back, or find them."""
LAYOUT = "Reorder"  # operators that change the layout of what a region takes or gives
LEAST_US = 0.2  # of a node: less is not left of any


@dataclass(frozen=True)
class Node:
    """One node that ran: of which module, its operator, its own time (without nodes inside it), items of its input."""

    module: str
    operator: str
    us: float
    items: int | None


@dataclass(frozen=True)
class CallOf:
    """One call of a region in a graph: its name, items, and time in us."""

    region: str
    items: int
    us: float


def runs_of(events: Sequence[Event]) -> list[list[Node]]:
    """The nodes of each call of the session, in the order in which they began; a branch's own time is what is left.

    Args:
        events: of the session's profile.
    """
    calls = sorted((e for e in events if e.get("name") == "model_run"), key=lambda e: e["ts"])
    nodes = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    nodes.sort(key=lambda e: (e["ts"], -e["dur"]))
    begins = [e["ts"] for e in calls]
    found: list[list[Node]] = [[] for _ in calls]
    inside: list[list[Event]] = [[] for _ in calls]
    for event in nodes:
        at = int(np.searchsorted(begins, event["ts"], side="right")) - 1
        if at >= 0:
            inside[at].append(event)
    for call, mine in zip(found, inside, strict=True):
        own = [float(e["dur"]) for e in mine]
        around: list[int] = []
        for i, e in enumerate(mine):
            while around and mine[around[-1]]["ts"] + mine[around[-1]]["dur"] < e["ts"] + e["dur"]:
                around.pop()
            if around:
                own[around[-1]] -= e["dur"]
            if e["args"]["op_name"] in ("If", "Loop"):
                around.append(i)
        call += [_node(e, us) for e, us in zip(mine, own, strict=True)]
    return found


def divided(nodes: Sequence[Node], whole_us: float, regions: Collection[str]) -> tuple[list[CallOf], dict[str, float]]:
    """The calls of regions in one call of a graph, and what its other nodes take, by `BETWEEN` and `MOVING`.

    Args:
        nodes: of the call, in order.
        whole_us: time of such a call that is not recorded.
        regions: names.

    Returns:
        Times that add up to `whole_us`. All nodes below one name are one call of a region, of as many items as the
        first of them takes: a region that is called again has other names there, as 'policy_1'.
    """
    times = without_recording([node.us for node in nodes], whole_us)
    rest = {BETWEEN: max(whole_us - sum(times), 0.0), MOVING: 0.0}
    calls: dict[str, CallOf] = {}
    last: str | None = None
    for node, us in zip(nodes, times, strict=True):
        region, name = _around(node.module, regions)
        if region is None and last is not None and node.operator.startswith(LAYOUT):
            region, name = calls[last].region, last  # named after nothing: it ends what came before
        if region is None:
            rest[MOVING if node.operator in MOVES else BETWEEN] += us
            continue
        before = calls.get(name)
        calls[name] = CallOf(region, node.items or 1, us) if before is None else replace(before, us=before.us + us)
        last = name
    return list(calls.values()), rest


def without_recording(us: Sequence[float], whole_us: float) -> list[float]:
    """Times of nodes less what recording each takes: the same of all, so that they add up to the whole or stay below.

    Args:
        us: as recorded.
        whole_us: of the call without a record.
    """
    times = np.maximum(np.asarray(us, np.float64), LEAST_US)
    if times.sum() <= whole_us or not len(times):
        return [float(t) for t in times]
    low, high = 0.0, float(times.max())
    for _ in range(50):
        off = (low + high) / 2
        low, high = (off, high) if np.maximum(times - off, LEAST_US).sum() > whole_us else (low, off)
    return [float(t) for t in np.maximum(times - high, LEAST_US)]


def lines(calls: Sequence[CallOf]) -> dict[str, tuple[list[int], list[float]]]:
    """T(n) of each region as a line through its calls: sizes (the smallest and the largest seen) and us.

    Each number of items counts as one point, its median, with relative errors; the line does not fall.
    """
    by_region: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for call in calls:
        by_region[call.region][call.items].append(call.us)
    return {name: _line({n: float(np.median(us)) for n, us in by_n.items()}) for name, by_n in by_region.items()}


def _line(points: Mapping[int, float]) -> tuple[list[int], list[float]]:
    sizes = sorted(points)
    if len(sizes) == 1:
        return sizes, [points[sizes[0]]]
    n, us = np.array(sizes, np.float64), np.array([points[k] for k in sizes])
    table = np.stack([np.ones_like(n), n], 1) / us[:, None]
    (fixed, each), *_ = np.linalg.lstsq(table, np.ones_like(us), rcond=None)
    if each < 0:
        fixed, each = float(np.median(us)), 0.0
    if fixed < 0:
        fixed, each = 0.0, float(np.median(us / n))
    ends = [sizes[0], sizes[-1]]
    return ends, [max(float(fixed + each * k), LEAST_US) for k in ends]


def _node(event: Event, us: float) -> Node:
    path = event["name"].removesuffix("_kernel_time").strip("/").rpartition("/")[0]
    shapes = event["args"].get("input_type_shape") or []
    first = next((dims for given in shapes[:1] for dims in given.values() if dims), None)
    return Node(path.replace("/", "."), event["args"]["op_name"], us, first[0] if first else None)


def _around(module: str, regions: Collection[str]) -> tuple[str | None, str]:
    """The region that a module lies in, None: in none; and under which name: 'policy_1' where it is called again."""
    parts = module.split(".") if module else []
    for name in (".".join(parts[:n]) for n in range(len(parts), 0, -1)):
        for known in (name, _AGAIN.sub("", name)):
            if known in regions:
                return known, name
    return None, ""
