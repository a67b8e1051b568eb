"""The ways in which a network can run here, and the tournament that finds its fastest one: form, engine, control."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn

from dynbench.devices.base import Device
from dynbench.dynamic import Execution
from dynbench.dynamic.regions import find_regions
from dynbench.engines import ENGINES, applicable
from dynbench.engines.calls import TOLERANCE
from dynbench.errors import DynbenchError
from dynbench.experiment.arms import RunningArm, running_arm
from dynbench.experiment.build import Batch, Prepared, Source
from dynbench.experiment.oracle import answers, left_out, output_error
from dynbench.experiment.plan import planned_cell, refusal
from dynbench.experiment.spec import Baseline
from dynbench.names import in_micro_batches
from dynbench.store.schema import Arm, Candidate, Cell
from dynbench.strategies import PREFERRED, Masking

TOURNAMENT_ENGINES = ("eager", "onnxruntime", "openvino", "compile")
HOST_ENGINES = ("eager", "onnxruntime", "compile")  # of the dynamic network; OpenVINO takes longer to call
PROVING_ENGINES = ("onnxruntime", "openvino")  # compare each region with its module themselves
MICRO_BATCH = 8  # items
OF_GRAPHS = (1, MICRO_BATCH, 32)  # items at a time of a graph
LARGE_BATCH = 32  # items; up to that many micro-batches gain nothing in OpenVINO
MOST_COMPILED = 16  # regions of a network that is compiled without having been asked for
GRAPH: dict[str, Any] = {"engine": "onnxruntime", "control": "graph"}

FEW_ITEMS = 16  # of the stream; a round of the tournament takes at least one batch
ROUNDS = 5  # of ways that may win
CLOSE, CLOSE_ROUNDS = 1.1, 8  # of ways within so much of the fastest, more rounds
HOPELESS = 1.5  # a way that takes so much longer than the fastest in the first round is timed no more
FORM_GAIN = 1.5  # a form is at most so much faster than the network as written
TIME_LIMIT_S, CLOSE_TIME_LIMIT_S = 3.0, 9.0  # of one network's tournament: of all ways, and where only close ones go on

Tell = Callable[..., None]


def static_ways(p: Prepared, baseline: Baseline, batch_size: int) -> Iterator[Arm]:
    """Of a static network: layer by layer in the forms that can make a difference to it, and as one graph or region.

    Other engines than eager fold and lay out weights themselves; micro-batches help those that do not split a batch.
    """
    arm = Arm(kind="baseline", baseline=baseline.name, form=baseline.form, load=p.parts.load.name)
    forms = applicable(p.baselines[baseline.name]) if baseline.form == "plain" else [baseline.form]
    yield from (arm.model_copy(update={"form": form}) for form in forms)
    yield arm.model_copy(update=GRAPH)
    yield arm.model_copy(update={"engine": "openvino"})
    yield arm.model_copy(update={"engine": "compile"})
    if batch_size > MICRO_BATCH and baseline.form == "plain":
        yield arm.model_copy(update={"form": in_micro_batches(forms[-1], MICRO_BATCH)})
    if batch_size > LARGE_BATCH and baseline.form == "plain":
        yield arm.model_copy(update={"form": in_micro_batches("plain", MICRO_BATCH), "engine": "openvino"})


def dynamic_ways(p: Prepared, source: Source) -> Iterator[Arm]:
    """Of the dynamic network: strategies played by the host, region by region, and the whole of it as one graph.

    Only strategies that compute whole batches; as a graph that which skips work, and masking where the user names it.
    In a graph of learned decisions the network's own gates decide; others are replayed.
    """
    if p.spec.model_kind == "opaque":
        return
    names = [name for name, kind in p.parts.strategies.items() if _may_win(kind) and refusal(p, name) is None]
    for engine in HOST_ENGINES:
        for name in names:
            if engine == "eager" or not p.parts.strategies[name].fixed_work:
                yield Arm(kind="strategy", strategy=name, engine=engine, load=p.parts.load.name)
    skipping = next((kind.name for kind in PREFERRED if kind.name in names and not kind.fixed_work), None)
    if skipping is not None:
        live = source.decisions.source == "learned"
        yield Arm(kind="strategy", strategy=skipping, live=live, load=p.parts.load.name, **GRAPH)
    if Masking.name in names and Masking.name in (p.options.strategies or ()):  # for reference, where it is asked for
        live = source.decisions.source == "learned"
        yield Arm(kind="strategy", strategy=Masking.name, live=live, load=p.parts.load.name, **GRAPH)


def _may_win(kind: type) -> bool:
    """Whether it may be the fastest: one that computes everything is where there is little to save or much to move."""
    return not (kind.static_twin or kind.item_by_item)  # type: ignore[attr-defined]


def _too_long(p: Prepared, arm: Arm) -> str | None:
    """Why preparing a way would take longer than a tournament may."""
    if arm.engine != "compile" or "compile" in p.parts.engines:
        return None
    if p.device.type == "cpu":
        return "compiling takes many seconds for each region on a CPU; --engine compile measures it"
    regions = 1 if arm.baseline is not None else len(find_regions(p.model, lambda net: _reach_all(p, net)))
    if regions <= MOST_COMPILED:
        return None
    return f"it has {regions} regions to compile, and more than {MOST_COMPILED} take minutes; --engine compile does it"


def _reach_all(p: Prepared, net: nn.Module) -> Any:
    return Execution(Masking()).run(net, p.inputs[:1])


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
        self._answers: dict[Arm, list[Tensor]] = {}  # of networks as written, to the first batch

    def fastest(self, cells: list[Cell]) -> list[Cell]:
        """The planned cells of a group with those of every network in its fastest way.

        Args:
            cells: as planned.

        Returns:
            The same, those marked whose way is the fastest; where none of them is, a cell is added. Of a network that
            cannot be timed in any way that is a failed one.
        """
        found = list(cells)
        self._add(found, self._ranked(list(dynamic_ways(self._p, self._source)), forms=True))
        for baseline in self._p.spec.baselines or [self._p.spec.primary]:
            self._add(found, self._ranked(list(static_ways(self._p, baseline, self._batch_size))))
        return found

    def _add(self, found: list[Cell], candidates: list[Candidate]) -> None:
        """Marks or adds the cell of the fastest of the ways of a network."""
        if not candidates:
            return
        first, update = candidates[0], {"deployed": True, "candidates": candidates}
        planned = {c.arm: i for i, c in enumerate(found) if c.status == "planned"}
        if first.ratio is not None and first.arm in planned:
            found[planned[first.arm]] = found[planned[first.arm]].model_copy(update=update)
        elif first.ratio is not None:
            found.append(self._cell(first.arm).model_copy(update={**update, "status": "planned", "reason": None}))
        elif not self._stop():
            arm = next((c.arm for c in candidates if c.arm not in planned), first.arm)
            reason = f"it could not be timed in any way; in the first: {first.reason}"
            found.append(self._cell(arm).model_copy(update={**update, "status": "failed", "reason": reason}))

    def _cell(self, arm: Arm) -> Cell:
        return planned_cell(self._p, self._source, self._batch_size, arm)

    def _ranked(self, ways: list[Arm], *, forms: bool = False) -> list[Candidate]:
        """All ways, the fastest first; those that were not timed last.

        Args:
            ways: of a network.
            forms: whether other forms of the best eager way are ways too.
        """
        fatal = {a.engine for a in ways if a.key in self._without}  # engines that ended the process
        entries = [self._entry(arm, fatal) for arm in ways]
        self._play(entries)
        if forms:
            entries += self._other_forms(entries)
        entries += self._in_parts(entries)
        fastest = min((_median_ns(e) for e in entries if e.times_ns), default=0.0)
        ranked = sorted(entries, key=lambda e: _median_ns(e) if e.times_ns else np.inf)
        return [
            Candidate(arm=e.arm, ratio=_median_ns(e) / fastest if e.times_ns else None, reason=e.reason) for e in ranked
        ]

    def _other_forms(self, entries: list[Entry]) -> list[Entry]:
        """The fastest eager way of the dynamic network in other forms; timed where one of them might be the fastest."""
        timed = sorted((e for e in entries if e.times_ns), key=_median_ns)
        plain = next((e for e in timed if e.arm.engine == "eager"), None)
        if plain is None:
            return []
        arms = [plain.arm.model_copy(update={"form": form}) for form in applicable(self._p.model) if form != "plain"]
        ratio = _median_ns(plain) / _median_ns(timed[0])
        if ratio > FORM_GAIN:
            reason = (
                f"as written it takes {ratio:.1f} times as long as the fastest way, and a form gains less than that"
            )
            return [Entry(arm, reason=reason) for arm in arms]
        fatal = {"eager"} if any(arm.key in self._without for arm in arms) else set()
        others = [self._entry(arm, fatal) for arm in arms]
        self._play([*{e.arm: e for e in (timed[0], plain)}.values(), *others])
        return others

    def _in_parts(self, entries: list[Entry]) -> list[Entry]:
        """The fastest graph in micro-batches, timed where one of them might be the fastest of all.

        What it computes on stays in the cache; and of a dynamic network a smaller batch asks for less that not every
        item needs. One item at a time, it is the graph for a single item.
        """
        timed = sorted((e for e in entries if e.times_ns), key=_median_ns)
        whole = next((e for e in timed if e.arm.control == "graph" and e.arm.micro_batch is None), None)
        if whole is None or _median_ns(whole) > FORM_GAIN * _median_ns(timed[0]):
            return []
        sizes = [size for size in OF_GRAPHS if size < self._batch_size]
        if not sizes or self._needs_whole_batches(whole.arm):
            return []
        arms = [whole.arm.model_copy(update={"form": in_micro_batches(whole.arm.form, size)}) for size in sizes]
        fatal = {arm.engine for arm in arms if arm.key in self._without}
        others = [self._entry(arm, fatal) for arm in arms]
        self._play([*{e.arm: e for e in (timed[0], whole)}.values(), *others])
        return others

    def _needs_whole_batches(self, arm: Arm) -> bool:
        """Whether an answer has parts that are not items, or a decision about an item depends on the others."""
        return arm.baseline is None and (self._p.batch_scope or bool(left_out(self._p.model, self._p.inputs)))

    def _entry(self, arm: Arm, fatal: set[str]) -> Entry:
        """A way, ready; or why it is not."""
        if arm.engine in fatal:
            return Entry(arm, reason=f"the network ended the measuring process with engine {arm.engine!r}")
        if (engine := ENGINES.get(arm.engine)) is None:
            return Entry(arm, reason=f"there is no engine {arm.engine!r}")
        if why := _too_long(self._p, arm) or engine.refuses(self._p.options.device):
            return Entry(arm, reason=why)
        self._tell("arm", name=arm.key)
        try:
            running = running_arm(self._p, self._source, self._cell(arm), self._device)
            return Entry(arm, running, reason=self._wrong_answer(running))
        except DynbenchError as e:
            return Entry(arm, reason=str(e))
        except Exception as e:  # noqa: BLE001 (a user's model may raise anything)
            return Entry(arm, reason=f"{type(e).__name__}: {e}".splitlines()[0])

    def _wrong_answer(self, way: RunningArm) -> str | None:
        """Why the answer to the first batch is not that of the network as written; None: it is, or is proved elsewhere.

        A session or a graph is compared when it is made, and what is measured in the end once more.
        """
        arm = way.arm
        described = next((b for b in self._p.spec.baselines if b.name == arm.baseline), self._p.spec.primary)
        plain = "plain" if arm.baseline is None else described.form
        proved = arm.control == "graph" and (arm.baseline is None or arm.micro_batch is None)
        if proved or (arm.form == plain and arm.engine in ("eager", *PROVING_ENGINES)):
            return None
        written = arm.model_copy(update={"form": plain, "engine": "eager", "control": "host"})
        without = left_out(self._p.model, self._p.inputs) if arm.baseline is None else frozenset()
        if written not in self._answers:
            right = running_arm(self._p, self._source, self._cell(written), self._device)
            self._answers[written] = answers(right.call, right.batches[:1], without)
        error = output_error(answers(way.call, way.batches[:1], without), self._answers[written])
        if error <= TOLERANCE[self._p.dtype]:
            return None
        return f"it answers otherwise than the network as written, by {error:.2g} of the largest value"

    def _play(self, entries: list[Entry]) -> None:
        """Times the ways in turns, in random order; those that cannot win drop out."""
        order, begin = random.Random(self._p.options.seed), time.monotonic()
        alive = [e for e in entries if e.running is not None and e.reason is None]
        for played in range(-1, CLOSE_ROUNDS):  # one more at first, to warm up
            order.shuffle(alive)
            for entry in alive:
                self._time(entry, keep=played >= 0)
            alive = [e for e in alive if e.reason is None]
            elapsed_s = time.monotonic() - begin if played >= 2 else 0.0
            if self._stop() or elapsed_s > CLOSE_TIME_LIMIT_S:
                return
            if played >= 0 and alive:
                limit = HOPELESS if played < ROUNDS and elapsed_s <= TIME_LIMIT_S else CLOSE
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
