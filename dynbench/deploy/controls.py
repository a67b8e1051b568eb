"""Controls of a bundle: its network with decisions known ahead, so that a ratio of two arms is what deciding takes.

Gates, routers and heads that only decide are left out of the graph, and decisions are inputs. Where a gate also gives
the weight with which a part counts, that is made up: answers are then wrong on purpose, and nobody compares them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from dynbench.deploy.bundle import Control, Given
from dynbench.dynamic import Trace
from dynbench.experiment.alike import same_rows
from dynbench.experiment.build import Prepared, Source
from dynbench.experiment.explain import leaves_out_bodies
from dynbench.experiment.graphs import TOLERANCE, known_ahead
from dynbench.graph import CannotFeed, CannotTrace, Graph, Session, executed_flops
from dynbench.strategies.controls import refuses_control

FILES = {False: "known.onnx", True: "known-single.onnx"}


@dataclass(frozen=True)
class Steady:
    """The items [n, ...] of a bundle, what is right for them, and what their decisions ask for.

    Attributes:
        x: the items.
        answers: each [n, ...].
        trace: their decisions.
        region_flops: per item, gates and heads left out; None: unknown.
        labels: of the decisions that the bundle holds.
    """

    x: Tensor
    answers: list[Tensor]
    trace: Trace
    region_flops: float | None
    labels: frozenset[str]


def known_ahead_controls(
    p: Prepared, source: Source, strategy: str, steady: Steady
) -> tuple[list[Control], dict[str, Graph], str | None]:
    """The network for any number of items, and for a single one, with decisions as inputs.

    Args:
        p: the workload.
        source: of the decisions.
        strategy: that the graph of the network plays.
        steady: what is in the bundle.

    Returns:
        Entries of the manifest, graphs by file; and why there are none, or None.
    """
    if why := refuses_control(strategy, "deciding", p.model):
        return [], {}, why
    entries, graphs = [], {}
    for single, file in FILES.items():
        try:
            graph = known_ahead(p, source, single=single)
            entry = _entry(graph, file, steady)
        except (CannotTrace, CannotFeed) as e:
            return [], {}, f"with decisions known ahead it cannot be a graph: {e}"
        if not entry.given or any(given.label not in steady.labels for given in entry.given):
            return [], {}, "with decisions known ahead its graph takes none, or others than it makes"
        if (
            entry.flops_per_item
            and steady.region_flops
            and leaves_out_bodies(entry.flops_per_item, steady.region_flops)
        ):
            return [], {}, "with decisions known ahead its graph leaves out more than deciding"
        entries.append(entry)
        graphs[file] = graph
    return entries, graphs, None


def _entry(graph: Graph, file: str, s: Steady) -> Control:
    """What the manifest says of a control; its answers are compared with the right ones."""
    session, n = Session(graph, fast=False), 1 if graph.single else len(s.x)
    feeds = [session.feeds(s.x[i : i + n], s.trace, i) for i in range(0, len(s.x), n)]
    alike = True
    for i, inputs in enumerate(feeds):
        found = session.answer(inputs)
        alike &= all(
            bool(same_rows(mine, right[i * n : (i + 1) * n], TOLERANCE).all())
            for mine, right in zip(found, s.answers, strict=True)
        )
    try:
        flops: float | None = executed_flops(graph, feeds) / len(s.x)
    except ValueError:  # an operator without a formula
        flops = None
    takes = {i.name for i in session.session.get_inputs()}
    given = [
        Given(input=d.table, label=d.key[0] + "".join(f"/{k}" for k in d.key[1]), rows=math.prod(d.key[1]))
        for d in graph.decisions
        if d.table is not None and d.table in takes
    ]
    return Control(
        file=file, single=graph.single, answers=list(graph.answers), given=given, alike=alike, flops_per_item=flops
    )
