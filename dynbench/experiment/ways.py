"""The ways in which a network can run here, and the tournament that finds its fastest one: form, engine, control."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dynbench.devices.base import Device
from dynbench.engines import ENGINES
from dynbench.errors import DynbenchError
from dynbench.experiment.arms import RunningArm, running_arm
from dynbench.experiment.build import Batch, Prepared, Source
from dynbench.experiment.plan import planned_cell, refusal
from dynbench.experiment.spec import Baseline
from dynbench.store.schema import Arm, Candidate, Cell
from dynbench.strategies import PREFERRED

FORMS = ("plain", "folded", "channels_last", "folded+channels_last")
TOURNAMENT_ENGINES = ("eager", "onnxruntime")
GRAPH: dict[str, Any] = {"engine": "onnxruntime", "control": "graph"}

FEW_ITEMS = 16  # of the stream; a round of the tournament takes at least one batch
ROUNDS = 5  # of ways that may win
CLOSE, CLOSE_ROUNDS = 1.1, 8  # of ways within so much of the fastest, more rounds
HOPELESS = 1.5  # a way that takes so much longer than the fastest in the first round is timed no more
TIME_LIMIT_S = 3.0  # of one network's tournament

Tell = Callable[..., None]


def static_ways(p: Prepared, baseline: Baseline) -> Iterator[Arm]:
    """Of a static network: as one graph, and layer by layer in several forms."""
    arm = Arm(kind="baseline", baseline=baseline.name, form=baseline.form, load=p.parts.load.name)
    forms = FORMS if baseline.form == "plain" else (baseline.form,)
    yield from (arm.model_copy(update={"form": form}) for form in forms)
    yield arm.model_copy(update=GRAPH)


def dynamic_ways(p: Prepared, source: Source) -> Iterator[Arm]:
    """Of the dynamic network: strategies played by the host, region by region, and the whole of it as one graph.

    Only strategies that skip work and compute whole batches. In a graph of learned decisions the network's own gates
    decide; others are replayed.
    """
    names = [name for name, kind in p.parts.strategies.items() if _may_win(kind) and refusal(p, name) is None]
    arms = [Arm(kind="strategy", strategy=name, load=p.parts.load.name) for name in names]
    for engine in TOURNAMENT_ENGINES:
        yield from (arm.model_copy(update={"engine": engine}) for arm in arms)
    skipping = next((kind.name for kind in PREFERRED if kind.name in names), None)
    if skipping is not None:
        live = source.decisions.source == "learned"
        yield Arm(kind="strategy", strategy=skipping, live=live, load=p.parts.load.name, **GRAPH)


def _may_win(kind: type) -> bool:
    return not (kind.static_twin or kind.fixed_work or kind.item_by_item)  # type: ignore[attr-defined]


@dataclass
class Entry:
    """A way in the tournament.

    Attributes:
        arm: which.
        running: it, ready to be called; None: it is not.
        times_ns: of the few batches, round by round.
        reason: why it is not timed.
    """

    arm: Arm
    running: RunningArm | None = None
    times_ns: list[int] = field(default_factory=list)
    reason: str | None = None


class Tournament:
    """Finds the fastest way of every network of a workload at a batch size.

    Args:
        p: the workload.
        source: whose decisions are executed.
        batch_size: in items.
        device: where it runs.
        without: keys of arms that are left out because they killed an earlier process.
        tell: reports each arm before it runs.
        stop: whether the user wants it to end.
    """

    def __init__(
        self,
        p: Prepared,
        source: Source,
        batch_size: int,
        device: Device,
        *,
        without: set[str],
        tell: Tell,
        stop: Callable[[], bool],
    ) -> None:
        self._p, self._source, self._batch_size, self._device = p, source, batch_size, device
        self._without, self._tell, self._stop = without, tell, stop

    def fastest(self, cells: list[Cell]) -> list[Cell]:
        """The planned cells of a group with those of every network in its fastest way.

        Args:
            cells: as planned.

        Returns:
            The same, those marked whose way is the fastest; where none of them is, a cell is added. Networks of which
            no way can be timed have none.
        """
        found = list(cells)
        static = [list(static_ways(self._p, b)) for b in self._p.spec.baselines or [self._p.spec.primary]]
        for ways in (list(dynamic_ways(self._p, self._source)), *static):
            candidates = self._ranked(ways, {a.engine for a in ways if a.key in self._without})
            if not candidates or candidates[0].ratio is None:
                continue
            update = {"deployed": True, "candidates": candidates}
            place = next((i for i, c in enumerate(found) if c.arm == candidates[0].arm and c.status == "planned"), None)
            if place is None:
                cell = planned_cell(self._p, self._source, self._batch_size, candidates[0].arm)
                found.append(cell.model_copy(update={**update, "status": "planned", "reason": None}))
            else:
                found[place] = found[place].model_copy(update=update)
        return found

    def _ranked(self, ways: list[Arm], fatal: set[str]) -> list[Candidate]:
        """All ways, the fastest first; those that were not timed last. `fatal`: engines that ended the process."""
        entries = [self._entry(arm, fatal) for arm in ways]
        self._play(entries)
        fastest = min((_median_ns(e) for e in entries if e.times_ns), default=0.0)
        ranked = sorted(entries, key=lambda e: _median_ns(e) if e.times_ns else np.inf)
        return [
            Candidate(arm=e.arm, ratio=_median_ns(e) / fastest if e.times_ns else None, reason=e.reason) for e in ranked
        ]

    def _entry(self, arm: Arm, fatal: set[str]) -> Entry:
        """A way, ready; or why it is not."""
        if arm.engine in fatal:
            return Entry(arm, reason=f"the network ended the measuring process with engine {arm.engine!r}")
        if (engine := ENGINES.get(arm.engine)) is None or (why := engine.refuses(self._p.options.device)):
            return Entry(arm, reason=why if engine is not None else f"there is no engine {arm.engine!r}")
        self._tell("arm", name=arm.key)
        try:
            cell = planned_cell(self._p, self._source, self._batch_size, arm)
            return Entry(arm, running_arm(self._p, self._source, cell, self._device))
        except DynbenchError as e:
            return Entry(arm, reason=str(e))
        except Exception as e:  # noqa: BLE001 (a user's model may raise anything)
            return Entry(arm, reason=f"{type(e).__name__}: {e}".splitlines()[0])

    def _play(self, entries: list[Entry]) -> None:
        """Times the ways in turns, in random order; those that cannot win drop out."""
        order, begin = random.Random(self._p.options.seed), time.monotonic()
        alive = [e for e in entries if e.running is not None]
        for played in range(-1, CLOSE_ROUNDS):  # one more at first, to warm up
            order.shuffle(alive)
            for entry in alive:
                self._time(entry, keep=played >= 0)
            alive = [e for e in alive if e.reason is None]
            if self._stop() or (played >= 2 and time.monotonic() - begin > TIME_LIMIT_S):
                return
            if played >= 0 and alive:
                limit = HOPELESS if played < ROUNDS else CLOSE
                fastest = min(map(_median_ns, alive))
                alive = [e for e in alive if _median_ns(e) <= limit * fastest]
            if len(alive) < 2 and played >= 0:
                return

    def _time(self, entry: Entry, *, keep: bool) -> None:
        assert entry.running is not None
        self._tell("arm", name=entry.arm.key)
        try:
            few = _few(entry.running.batches)
            timings = self._p.parts.load.issue(entry.running.call, few, self._device)
        except Exception as e:  # noqa: BLE001 (a user's model may raise anything)
            entry.reason, entry.times_ns = f"{type(e).__name__}: {e}".splitlines()[0], []
            return
        if keep:
            entry.times_ns.append(sum(t.duration_ns for t in timings))


def _few(batches: list[Batch]) -> list[Batch]:
    return batches[: max(FEW_ITEMS // len(batches[0][1]), 1)]


def _median_ns(entry: Entry) -> float:
    return float(np.median(entry.times_ns))
