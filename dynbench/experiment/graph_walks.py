"""T(n) of a network that is one graph: calls of it, some of them recorded by ONNX Runtime, in the rounds of a group."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dynbench.devices.base import Device
from dynbench.experiment.build import Prepared, Source
from dynbench.experiment.graphs import one_tensor, session
from dynbench.graph import Feeds, Session
from dynbench.meters.graph_record import BETWEEN, LEAST_US, MOVING, CallOf, divided, lines, runs_of
from dynbench.scratch import make_scratch
from dynbench.store.scaling import Network, Part
from dynbench.store.schema import Arm

FEW_CALLS = 3  # of a graph after the first, which finds other caches, at each size in each round
MOST_RUNS = 200  # that are recorded in a group


class GraphWalker:
    """Calls the graph of an arm at several sizes, and divides the time among the regions of the network.

    Args:
        p: the workload.
        source: of the decisions.
        arm: of control 'graph'.
        batch_size: of the group.
        regions: of the network, by name.

    Raises:
        CannotTrace: there is no such graph.
    """

    def __init__(self, p: Prepared, source: Source, arm: Arm, batch_size: int, regions: Sequence[str]) -> None:
        self._arm, self._inputs, self._regions = arm, one_tensor(p), frozenset(regions)
        self._plain = session(p, source, arm, batch_size)
        self._folder = make_scratch("walk")
        self._recorder = Session(
            self._plain.graph, answers_only=True, threads=p.options.threads, profile=str(self._folder / "profile")
        )
        self._replay = None if arm.live else p.trace(source, batch_size)
        self._whole: dict[int, list[float]] = defaultdict(list)  # us by items
        self._runs: list[int] = []  # items of each call that is recorded
        self._at = self._rounds = 0  # in the stream; how often all sizes were called

    def some(self, sizes: Sequence[int], device: Device) -> None:
        """Calls the graph with each number of items, as a pass over the stream does: other items each time."""
        for n in [1] if self._plain.graph.single else sizes:
            us: list[float] = []
            called: list[Feeds] = []
            for _ in range(1 + FEW_CALLS):
                feeds = self._next(n)
                start = device.clock_ns()
                self._plain.answer(feeds)
                us.append((device.clock_ns() - start) / 1e3)
                called.append(feeds)
            self._whole[n].append(_of_a_pass(us, -(-len(self._inputs) // n)))
            # one item goes few ways; of a batch another one each time, as a stream may have only a few
            recorded = called if n == 1 else [called[self._rounds % len(called)]]
            for feeds in recorded[: MOST_RUNS - len(self._runs)]:
                self._recorder.answer(feeds)
                self._runs.append(n)
        self._rounds += 1

    def _next(self, n: int) -> Feeds:
        """The next n items of the stream; from its beginning where fewer are left."""
        begin = self._at if self._at + n <= len(self._inputs) else 0
        self._at = begin + n
        return self._plain.feeds(self._inputs[begin : begin + n], self._replay, begin)

    def close(self) -> None:
        """Removes its files."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def network(self) -> Network:
        """T(n) of the regions, and of what lies between them: of all calls so far; nothing is recorded after it."""
        events = json.loads(Path(self._recorder.session.end_profiling()).read_text(encoding="utf-8"))
        calls: list[CallOf] = []
        between: dict[str, dict[int, list[float]]] = {name: defaultdict(list) for name in (BETWEEN, MOVING)}
        for n, nodes in zip(self._runs, runs_of(events), strict=True):
            mine, rest = divided(nodes, float(np.median(self._whole[n])), self._regions)
            calls += mine
            for name, us in rest.items():
                between[name][n].append(us)
        parts = [_part(name, "body", sizes, us) for name, (sizes, us) in lines(calls).items()]
        for name, by_size in between.items():
            middle = [max(float(np.median(by_size[n])), LEAST_US) for n in sorted(by_size)]
            parts.append(_part(name, "moving" if name == MOVING else "points", sorted(by_size), middle))
        return Network(
            engine=self._arm.engine,
            form=self._arm.in_whole_batches.form,
            control="graph",
            single=self._plain.graph.single,
            parts=sorted(parts, key=lambda part: part.name),
        )


def _of_a_pass(us: list[float], calls: int) -> float:
    """The mean time of the calls of a pass, of which the first finds the caches of something else.

    Args:
        us: of the first calls of a pass.
        calls: that it has.
    """
    first, later = us[0], float(np.median(us[1:]))
    return (first + (calls - 1) * later) / calls


def _part(name: str, role: str, sizes: list[int], us: list[float]) -> Part:
    return Part.model_validate({"name": name, "role": role, "sizes": sizes, "us": us, "low_us": us, "high_us": us})
