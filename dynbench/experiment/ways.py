"""The ways in which a network can run here, and the tournament that finds its fastest one: form, engine, control."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
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
BFLOAT16_ENGINES = ("eager", "openvino", "compile")  # the same on a CPU, where ONNX Runtime has no bfloat16
CUDA_ENGINES = ("cuda_graph",)  # of all networks, where they are on a GPU
PROVING_ENGINES = ("onnxruntime", "openvino")  # compare each region with its module themselves
MICRO_BATCH = 8  # items
OF_GRAPHS = (1, MICRO_BATCH, 32)  # items at a time of a graph
LARGE_BATCH = 32  # items; up to that many micro-batches gain nothing in OpenVINO
MOST_COMPILED = 16  # regions of a network that is compiled without having been asked for
GRAPH: dict[str, Any] = {"engine": "onnxruntime", "control": "graph"}

FEW_ITEMS = 16  # of the stream; a round of the tournament takes at least one batch
HEATS, HEATS_LIMIT_S = 3, 3.0  # rounds of ways that may win
HOPELESS = (4.0, 1.5)  # ways whose best heat takes so many times as long as the fastest's: after one, after more
CLOSE = 1.25  # ways within so much of the fastest are in the final
TIE = 1.01  # of finalists within so much of the fastest, one in eager PyTorch needs the least to be deployed
FINAL, LEAST_FINAL, FINAL_LIMIT_S = 9, 3, 9.0  # rounds of these
SHORT_PASS_S = 0.05  # what another network has left in the caches matters in a pass of less
FORM_GAIN = 1.5  # a form is at most so much faster than the network as written

Tell = Callable[..., None]


def engines_tried(device: str) -> tuple[str, ...]:
    """The engines that a tournament on a device tries."""
    return (*TOURNAMENT_ENGINES, *_of_device(torch.device(device)))


def _of_device(device: torch.device) -> tuple[str, ...]:
    return CUDA_ENGINES if device.type == "cuda" else ()


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
    for engine in _of_device(p.device):
        yield from (arm.model_copy(update={"form": form, "engine": engine}) for form in dict.fromkeys(forms))
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
    host = BFLOAT16_ENGINES if (p.device.type, p.dtype) == ("cpu", torch.bfloat16) else HOST_ENGINES
    for engine in (*host, *_of_device(p.device)):
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
        heats_ns: what the few batches took in each heat; what else the machine does makes some of them longer.
        final_ns: likewise, of ways that came so far, in the same rounds.
        reason: why it is not timed.
    """

    arm: Arm
    running: RunningArm | None = None
    heats_ns: list[int] = field(default_factory=list)
    final_ns: list[int] = field(default_factory=list)
    reason: str | None = None

    @property
    def timed(self) -> bool:
        """Whether there is anything to rank it by."""
        return bool(self.heats_ns)

    @property
    def least_ns(self) -> int:
        """Its best heat."""
        return min(self.heats_ns)


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
        self._order = random.Random(p.options.seed)
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
        self._heats(entries)
        if forms:
            entries += self._other_forms(entries)
        entries += self._in_parts(entries)
        self._final(entries)
        return [Candidate(arm=e.arm, ratio=ratio, reason=e.reason) for e, ratio in _ranking(entries)]

    def _other_forms(self, entries: list[Entry]) -> list[Entry]:
        """The fastest eager way of the dynamic network in other forms; timed where one of them might be the fastest."""
        timed = _by_heats(entries)
        plain = next((e for e in timed if e.arm.engine == "eager"), None)
        if plain is None:
            return []
        arms = [plain.arm.model_copy(update={"form": form}) for form in applicable(self._p.model) if form != "plain"]
        ratio = plain.least_ns / timed[0].least_ns
        if ratio > FORM_GAIN:
            reason = (
                f"as written it takes {ratio:.1f} times as long as the fastest way, and a form gains less than that"
            )
            return [Entry(arm, reason=reason) for arm in arms]
        fatal = {"eager"} if any(arm.key in self._without for arm in arms) else set()
        others = [self._entry(arm, fatal) for arm in arms]
        self._heats([*{e.arm: e for e in (timed[0], plain)}.values(), *others])
        return others

    def _in_parts(self, entries: list[Entry]) -> list[Entry]:
        """The fastest graph in micro-batches, timed where one of them might be the fastest of all.

        What it computes on stays in the cache; and of a dynamic network a smaller batch asks for less that not every
        item needs. One item at a time, it is the graph for a single item.
        """
        timed = _by_heats(entries)
        whole = next((e for e in timed if e.arm.control == "graph" and e.arm.micro_batch is None), None)
        if whole is None or whole.least_ns > FORM_GAIN * timed[0].least_ns:
            return []
        sizes = [size for size in OF_GRAPHS if size < self._batch_size]
        if not sizes or self._needs_whole_batches(whole.arm):
            return []
        arms = [whole.arm.model_copy(update={"form": in_micro_batches(whole.arm.form, size)}) for size in sizes]
        fatal = {arm.engine for arm in arms if arm.key in self._without}
        others = [self._entry(arm, fatal) for arm in arms]
        self._heats([*{e.arm: e for e in (timed[0], whole)}.values(), *others])
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

    def _heats(self, entries: list[Entry]) -> None:
        """Times ways in turns, in random order; those that cannot win drop out.

        One long round says little on a machine that does other things, too; a short one cannot be luck.
        """
        begin = time.monotonic()
        alive = [e for e in entries if e.running is not None and e.reason is None]
        for heat in range(HEATS + 1):
            if self._stop() or (heat > 1 and time.monotonic() - begin > HEATS_LIMIT_S):
                return
            for entry, ns in self._round(alive):
                if heat:  # the first one warms up
                    entry.heats_ns.append(ns)
            alive = [e for e in alive if e.reason is None]
            if heat and alive:
                limit = HOPELESS[min(heat - 1, 1)] * min(e.least_ns for e in alive)
                alive = [e for e in alive if e.least_ns <= limit]
            if heat and len(alive) < 2:
                return

    def _final(self, entries: list[Entry]) -> None:
        """Times those that may be the fastest in rounds of their own."""
        timed, begin = _by_heats(entries), time.monotonic()
        finalists = [e for e in timed if e.least_ns <= CLOSE * timed[0].least_ns]
        short = bool(timed) and timed[0].least_ns < 1e9 * SHORT_PASS_S
        for played in range(FINAL if len(finalists) > 1 else 0):
            if self._stop() or (played >= LEAST_FINAL and time.monotonic() - begin > FINAL_LIMIT_S):
                return
            for entry, ns in self._round(finalists, follows_itself=short):
                entry.final_ns.append(ns)
            finalists = [e for e in finalists if e.reason is None]

    def _round(self, entries: list[Entry], *, follows_itself: bool = False) -> Iterator[tuple[Entry, int]]:
        """Plays ways once, in random order: each with what the few batches took; one that fails has its reason.

        Args:
            entries: that are ready.
            follows_itself: one batch that is not timed goes before, as in the rounds of the group.
        """
        for entry in self._order.sample(entries, len(entries)):
            assert entry.running is not None
            self._tell("arm", name=entry.arm.key)
            try:
                if follows_itself:
                    self._p.parts.load.issue(entry.running.call, entry.running.batches[:1], self._device)
                timings = self._p.parts.load.issue(entry.running.call, _few(entry.running.batches), self._device)
            except Exception as e:  # noqa: BLE001 (a user's model may raise anything)
                entry.reason = f"{type(e).__name__}: {e}".splitlines()[0]
                entry.heats_ns, entry.final_ns = [], []
            else:
                yield entry, sum(t.duration_ns for t in timings)


def _by_heats(entries: list[Entry]) -> list[Entry]:
    """Those that were timed, the fastest first, as far as heats say."""
    return sorted((e for e in entries if e.timed), key=lambda e: e.least_ns)


def _ranking(entries: list[Entry]) -> list[tuple[Entry, float | None]]:
    """All ways, the fastest first, with their time over its: finalists by the final, others by the heats, untimed last.

    What is as fast in eager PyTorch, up to `TIE`, comes before it.

    Of those that were in no final, or for which it was cut off, heats alone say.
    """
    timed = _by_heats(entries)
    played = max((len(e.final_ns) for e in timed), default=0)
    final = {e.arm: float(np.median(e.final_ns)) for e in timed if played and len(e.final_ns) == played}
    ratios = {e.arm: e.least_ns / timed[0].least_ns for e in timed}
    ratios |= {arm: ns / min(final.values()) for arm, ns in final.items()}
    ranked = sorted(timed, key=lambda e: (ratios[e.arm], e.arm not in final))
    tied = [e for e in ranked if e.arm in final and ratios[e.arm] <= TIE]
    if simple := next((e for e in tied if e.arm.engine == "eager"), None):
        ranked.remove(simple)
        ranked.insert(0, simple)
    return [(e, ratios.get(e.arm)) for e in (*ranked, *(e for e in entries if not e.timed))]


def _few(batches: list[Batch]) -> list[Batch]:
    return batches[: max(FEW_ITEMS // len(batches[0][1]), 1)]
