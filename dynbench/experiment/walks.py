"""T(n) in place: a group's networks are walked in its rounds, so that drift and load reach cells and T(n) alike."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeVar

import numpy as np
from torch import nn

from dynbench.analysis.cost_model import held_out
from dynbench.devices.base import Device
from dynbench.dynamic import Execution
from dynbench.dynamic.regions import Region, find_regions
from dynbench.errors import DynbenchError
from dynbench.experiment.arms import Call
from dynbench.experiment.build import Prepared, Source
from dynbench.experiment.graph_walks import GraphWalker
from dynbench.experiment.plan import planned_cell, planned_groups
from dynbench.meters.calibration import Rounds, overheads
from dynbench.meters.graph_record import BETWEEN
from dynbench.meters.pace import PaceLog
from dynbench.meters.scaling import Walker, sizes_up_to
from dynbench.store.scaling import Constants, Network, Part
from dynbench.store.schema import Arm, NotMeasured
from dynbench.store.walks import Walked
from dynbench.strategies import Dense, Masking

Way = tuple[str | None, str, str, bool]  # baseline, engine, form, and whether regions are called with what was decided
Piece = tuple[Way | str, int]  # a network and a number of items, or the graph
T = TypeVar("T")
WRITTEN: Way = (None, "eager", "plain", False)
DECIDED: Way = (None, "eager", "plain", True)
LONG_WALK_S = 1.0  # a walk that takes longer is made once in a group


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
        self._long: set[Piece] = set()  # that are not done again
        decided = decided_call(p) if (source, batch_size) == decided_group(p) else None
        ways = ways_of(arms, p.spec.primary.name)
        for way in ways if decided is None else [*ways, DECIDED]:
            try:
                walker = walker_of(p, way, decided)
                walker.once(1, device, keep=False)
            except Exception as e:  # noqa: BLE001 (a user's model may raise anything)
                self._missing.append(NotMeasured(what=f"T(n) of {_in_words(way)}", why=first_line(e)))
            else:
                self._walkers[way] = walker
        graph = next((a for a in arms if a.control == "graph" and a.kind == "strategy"), None)
        if graph is not None and WRITTEN in self._walkers:
            names = [region.name for region, _ in nested_regions(p.model, p)]
            self._graph = self._try(lambda: GraphWalker(p, source, graph, batch_size, names))

    def before(self, arm: str, position: int, of: int) -> None:
        """Does a part of what is done in each round, before an arm.

        Args:
            arm: its key.
            position: of the arm in the round, from 0 on.
            of: how many arms the round has.
        """
        if position == 0:
            pieces: list[Piece] = [(way, n) for way in self._walkers for n in self._sizes]
            self._pieces = [piece for piece in pieces if piece not in self._long] + [("the graph", 0)]
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
        spent_ns = self._device.clock_ns() - begin
        self._log.piece(piece, spent_ns)
        if spent_ns > LONG_WALK_S * 1e9:
            self._long.add(piece)

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
    baseline, engine, form, decided = way
    return Network(baseline=baseline, engine=engine, form=form, decided=decided, parts=parts)


def ways_of(arms: Sequence[Arm], primary: str) -> list[Way]:
    """The networks that the host calls: the dynamic one as written and in other engines, and the primary baseline."""
    ours = [a for a in arms if a.control == "host" and a.kind in ("strategy", "baseline")]
    return list(
        dict.fromkeys(
            [WRITTEN, *((a.baseline, a.engine, a.form, False) for a in ours if a.baseline in (None, primary))]
        )
    )


def decided_group(p: Prepared) -> tuple[Source, int] | None:
    """The group in which T(n) is taken under decisions as well: the first that the fit of the cost model sees."""
    groups = list(planned_groups(p))
    out = held_out([cell for _, _, cells in groups for cell in cells])
    seen = ((source, size) for source, size, cells in groups if any(cell.cell_id not in out for cell in cells))
    return next(seen, None)


def decided_call(p: Prepared) -> Call | None:
    """The dynamic network as written, that calls its regions with what was decided; None: no strategy does that."""
    group = decided_group(p)
    if group is None:
        return None
    kinds = p.parts.strategies.items()
    names = [name for name, kind in kinds if not (kind.fixed_work or kind.static_twin or kind.item_by_item)]
    for name in names:
        cell = planned_cell(p, *group, Arm(kind="strategy", strategy=name))
        if cell.status == "planned":
            execution = Execution(p.strategy(name), replay=p.trace(*group))
            return Call(p.network(cell.arm), execution, p.items)
    return None


def walker_of(p: Prepared, way: Way, decided: Call | None = None) -> Walker:
    """Walks a network prepared by its engine: the dynamic one under masking, which calls every region with all items.

    Args:
        p: the workload.
        way: which network, in which engine and form.
        decided: calls it with what was decided, where the way asks for that.

    Raises:
        CannotPrepare: its engine cannot prepare it.
        UserError: it cannot be brought into its form.
    """
    baseline, engine, form, of_decided = way
    kind: Literal["strategy", "baseline"] = "strategy" if baseline is None else "baseline"
    network = p.network(Arm(kind=kind, baseline=baseline, engine=engine, form=form))
    whole = baseline is not None
    execution = Execution(Dense() if whole else Masking())

    def walk(n: int) -> Any:
        return execution.run(network, p.inputs[:n]) if not of_decided or decided is None else decided(0, p.inputs[:n])

    return Walker([] if whole else regions_of(network, p), walk, whole=whole)


def regions_of(network: nn.Module, p: Prepared) -> list[Region]:
    """The regions of the dynamic network, as masking reaches them; none is called by another one."""
    return [region for region, inner in nested_regions(network, p) if inner is None]


def nested_regions(network: nn.Module, p: Prepared) -> list[tuple[Region, str | None]]:
    """The regions of the dynamic network, and of one that only another one calls, though it lies elsewhere, which.

    Such as the networks of a cascade, which stand in the model by themselves and are called by its stages. Of several
    around each other it is the outermost.
    """

    def run(net: nn.Module) -> Any:
        return Execution(Masking()).run(net, p.inputs[:1])

    regions = find_regions(network, run)
    now: list[str] = []
    around: dict[str, set[str]] = {}

    def enter(name: str) -> Callable[..., None]:
        def note(*_: Any) -> None:
            around[name] = around.get(name, set(now)) & set(now)
            now.append(name)

        return note

    def leave(*_: Any) -> None:
        now.pop()

    hooks = [nn.Module.register_forward_pre_hook(r.module, enter(r.name)) for r in regions]
    hooks += [nn.Module.register_forward_hook(r.module, leave) for r in regions]
    try:
        run(network)
    finally:
        for hook in hooks:
            hook.remove()
    return [(r, min(around.get(r.name, ()), key=lambda outer: len(around[outer]), default=None)) for r in regions]


def first_line(e: Exception) -> str:
    """What went wrong, in a line."""
    text = str(e) if isinstance(e, DynbenchError) else f"{type(e).__name__}: {e}"
    return text.splitlines()[0]


def _in_words(way: Way) -> str:
    baseline, engine, form, decided = way
    name = f"{baseline or 'the dynamic network'} in {engine}" + ("" if form == "plain" else f", {form}")
    return f"{name}, with what was decided" if decided else name
