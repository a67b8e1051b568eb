"""T(n) in place: a group's networks are walked in its rounds, so that drift and load reach cells and T(n) alike."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeVar

import numpy as np
from torch import nn

from dynbench.devices.base import Device
from dynbench.dynamic import Execution
from dynbench.dynamic.regions import Region, find_regions
from dynbench.errors import DynbenchError
from dynbench.experiment.build import Prepared, Source
from dynbench.experiment.graph_walks import GraphWalker
from dynbench.meters.calibration import Rounds, overheads
from dynbench.meters.graph_record import BETWEEN
from dynbench.meters.pace import PaceLog
from dynbench.meters.scaling import Walker, sizes_up_to
from dynbench.store.scaling import Constants, Network, Part
from dynbench.store.schema import Arm, NotMeasured
from dynbench.store.walks import Walked
from dynbench.strategies import Dense, Masking

Way = tuple[str | None, str, str]  # baseline, engine, form
Piece = tuple[Way | str, int]  # a network and a number of items, or the graph
T = TypeVar("T")
WRITTEN: Way = (None, "eager", "plain")


class Walks:
    """The networks of a group that are walked between the arms of its rounds.

    Args:
        p: the workload.
        source: of the group's decisions.
        batch_size: of the group.
        arms: of the group.
        device: where they run.
    """

    def __init__(self, p: Prepared, source: Source, batch_size: int, arms: Sequence[Arm], device: Device) -> None:
        self._device, self._sizes = device, sizes_up_to(max(p.batch_sizes))
        self._constants = Rounds(overheads(p.device), device)
        self._missing: list[NotMeasured] = []
        self._walkers: dict[Way, Walker] = {}
        self._graph: GraphWalker | None = None
        self._log, self._order = PaceLog(), random.Random(p.options.seed)
        self._pieces: list[Piece] = []  # of this round, that are still to be done
        for way in ways_of(arms, p.spec.primary.name):
            try:
                walker = walker_of(p, way)
                walker.once(1, device, keep=False)
            except Exception as e:  # noqa: BLE001 (a user's model may raise anything)
                self._missing.append(NotMeasured(what=f"T(n) of {_in_words(way)}", why=first_line(e)))
            else:
                self._walkers[way] = walker
        graph = next((a for a in arms if a.control == "graph" and a.kind == "strategy"), None)
        if graph is not None and WRITTEN in self._walkers:
            names = [region.name for region in self._walkers[WRITTEN].regions]
            self._graph = self._try(lambda: GraphWalker(p, source, graph, batch_size, names))

    def before(self, arm: str, position: int, of: int) -> None:
        """Does a part of what is done in each round, before an arm.

        Args:
            arm: its key.
            position: of the arm in the round, from 0 on.
            of: how many arms the round has.
        """
        if position == 0:
            self._pieces = [(way, n) for way in self._walkers for n in self._sizes] + [("the graph", 0)]
            self._order.shuffle(self._pieces)
            self._constants.once()
        for _ in range(math.ceil(len(self._pieces) / (of - position))):
            self._do(self._pieces.pop())
        self._log.arm(arm)

    def _do(self, piece: Piece) -> None:
        """Walks a network at a size, or the graph at all; what fails is walked no more."""
        way, n = piece
        if isinstance(way, str):
            if (graph := self._graph) is not None:
                self._try(partial(graph.some, self._sizes, self._device))
            return
        if (walker := self._walkers.get(way)) is None:
            return
        begin = self._device.clock_ns()
        try:
            walker.some([n], self._device)
        except Exception as e:  # noqa: BLE001 (a user's model may raise anything)
            del self._walkers[way]
            self._missing.append(NotMeasured(what=f"T(n) of {_in_words(way)}", why=first_line(e)))
            return
        self._log.piece(piece, self._device.clock_ns() - begin)

    def _try(self, work: Callable[[], T]) -> T | None:
        """What `work` gives about the network as one graph; None: it fails, which is noted, and is not tried again."""
        try:
            return work()
        except Exception as e:  # noqa: BLE001 (a user's model may raise anything)
            self._missing.append(NotMeasured(what="T(n) of the dynamic network as one graph", why=first_line(e)))
            if self._graph is not None:
                self._graph.close()
            self._graph = None
            return None

    def found(self, workload: str, group_id: str, totals_ns: Mapping[str, np.ndarray]) -> Walked:
        """T(n) of all regions of all networks, as it was in this group; and the pace of each arm.

        Args:
            workload: its name.
            group_id: of the group.
            totals_ns: by the key of an arm, [rounds] times of the stream.
        """
        networks = [_network(way, walker) for way, walker in self._walkers.items() if walker.times()]
        if (graph := self._graph) is not None:
            network = self._try(graph.network)
            networks += [] if network is None else [network]
            graph.close()
        constants = Constants.of({rate.name: rate.value for rate in self._constants.rates()})
        return Walked(
            workload=workload,
            group_id=group_id,
            networks=networks,
            constants=constants,
            paces=self._log.paces(totals_ns),
            missing=self._missing,
        )


def _network(way: Way, walker: Walker) -> Network:
    parts = [
        Part(name=name, sizes=t.sizes, us=t.us, low_us=t.low_us, high_us=t.high_us)
        for name, t in sorted(walker.times().items())
    ]
    if (t := walker.between()) is not None:
        parts.append(Part(name=BETWEEN, role="points", sizes=t.sizes, us=t.us, low_us=t.low_us, high_us=t.high_us))
    baseline, engine, form = way
    return Network(baseline=baseline, engine=engine, form=form, parts=parts)


def ways_of(arms: Sequence[Arm], primary: str) -> list[Way]:
    """The networks that the host calls: the dynamic one as written and in other engines, and the primary baseline."""
    ours = [a for a in arms if a.control == "host" and a.kind in ("strategy", "baseline")]
    return list(
        dict.fromkeys([WRITTEN, *((a.baseline, a.engine, a.form) for a in ours if a.baseline in (None, primary))])
    )


def walker_of(p: Prepared, way: Way) -> Walker:
    """Walks a network prepared by its engine: the dynamic one under masking, which calls every region with all items.

    Raises:
        CannotPrepare: its engine cannot prepare it.
        UserError: it cannot be brought into its form.
    """
    baseline, engine, form = way
    kind: Literal["strategy", "baseline"] = "strategy" if baseline is None else "baseline"
    network = p.network(Arm(kind=kind, baseline=baseline, engine=engine, form=form))
    whole = baseline is not None
    execution = Execution(Dense() if whole else Masking())

    def walk(n: int) -> Any:
        return execution.run(network, p.inputs[:n])

    return Walker([] if whole else regions_of(network, p), walk, whole=whole)


def regions_of(network: nn.Module, p: Prepared) -> list[Region]:
    """The regions of the dynamic network, as masking reaches them."""
    return find_regions(network, lambda net: Execution(Masking()).run(net, p.inputs[:1]))


def first_line(e: Exception) -> str:
    """What went wrong, in a line."""
    text = str(e) if isinstance(e, DynbenchError) else f"{type(e).__name__}: {e}"
    return text.splitlines()[0]


def _in_words(way: Way) -> str:
    baseline, engine, form = way
    return f"{baseline or 'the dynamic network'} in {engine}" + ("" if form == "plain" else f", {form}")
