"""Every workload of a run in one record, and what many of them say together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dynbench.analysis.gap import break_even_keep_rate, gap, primary_speedup
from dynbench.analysis.headline import Contest, Timed, alternatives, contest, of_one_device
from dynbench.analysis.resolution import Direction, direction
from dynbench.store.schema import Accuracy, Cell, Flops, Speedup, Waterfall, WorkloadInfo
from dynbench.unavailable import Measured, Unavailable

KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("composes modules", ("Program",)),
    ("makes its weights", ("Weights",)),
    ("changes its width", ("Width",)),
    ("routes to experts", ("Route",)),
    ("selects inputs or paths", ("Pick", "Choice", "Patches", "Each")),
    ("exits early", ("Exits",)),
    ("skips parts", ("Skip", "Ahead")),
    ("iterates", ("Loop",)),
)
"""Kinds of decision, and the points that make them; a network with points of several kinds is of the first."""
STATIC = "decides nothing"
PROMISING = 1.1  # a saving below 10 % is not what a paper is written for
MANY_ENOUGH = 8  # pairs of which a rank correlation is said


@dataclass(frozen=True)
class Standing:
    """A workload at one batch size.

    Attributes:
        deployed: the dynamic network in its fastest way against the primary baseline in its own; None: no ways were
            tried, or none could be timed.
        written: the best strategy as written.
        masking: masking as written, which is what most published code does.
        ideal: dense FLOPs / required region FLOPs.
        losses: by cause: of the deployed network the factors of its waterfall, where it has controls; else of the best
            strategy as written, by controls or from counters and profile; see `gap.Gap`.
        by_controls: whether they are from controls.
        of_deployed: whether they are those of the deployed network.
        memory: peak memory of the dynamic network over that of the primary baseline, both as `best`; None: unknown.
        energy: the same of energy per item.
        alternative: the strongest static network that is at least as accurate as the dynamic one, and the speed-up
            against it, both deployed; None where that is the primary baseline or accuracies are unknown.
        primary: the primary baseline that `best` was compared with; None: it was not measured.
    """

    batch_size: int
    deployed: Timed | None
    written: Timed | None
    masking: Timed | None
    ideal: float | None
    losses: dict[str, float]
    by_controls: bool
    of_deployed: bool
    memory: float | None
    energy: float | None
    alternative: Speedup | None
    primary: Cell | None = None

    @property
    def best(self) -> Timed | None:
        """What the workload is judged by at this batch size."""
        return self.deployed or self.written

    @property
    def outcome(self) -> Direction | None:
        """'faster', 'slower' or 'unclear'; None: nothing was timed."""
        return None if self.best is None else direction(self.best.speedup)

    @property
    def efficiency(self) -> float | None:
        """Speed-up / ideal."""
        return None if self.best is None or self.ideal is None else self.best.speedup.value / self.ideal

    @property
    def largest_loss(self) -> tuple[str, float] | None:
        """The cause that costs most, with its factor; None where none is known."""
        return max(self.losses.items(), key=lambda loss: loss[1], default=None)

    @property
    def against_static(self) -> Speedup | None:
        """Deployed, against the strongest static network that is at least as accurate, as far as they are known."""
        if self.deployed is None:
            return None
        found = [s for s in (self.deployed.speedup, self.alternative) if s is not None]
        return min(found, key=lambda s: s.value)


@dataclass(frozen=True)
class Summary:
    """A workload in one record.

    Attributes:
        kind: of decision, one of `KINDS`, or `STATIC`.
        saved: share of the dense FLOPs that the decisions do not ask for; None: unknown.
        gain: accuracy of the dynamic network less that of the primary baseline, above 0 where it is better; None: one
            is unknown, or nothing is said about accuracy because the decisions are made up.
        accuracy: of the dynamic network, for its metric and unit; None as above.
        promised: dense FLOPs / accounted FLOPs: the speed-up that the paper's way of counting suggests.
        executed: dense FLOPs / FLOPs that masking executed.
        at: by batch size, the smallest first.
    """

    info: WorkloadInfo
    kind: str
    saved: float | None
    gain: float | None
    accuracy: Accuracy | None
    promised: float | None
    executed: float | None
    at: dict[int, Standing]

    @property
    def judged(self) -> Standing | None:
        """At the largest batch size that was timed."""
        return next((s for s in reversed(self.at.values()) if s.best is not None), None)


def kind_of_decision(points: Iterable[str]) -> str:
    """What kind of decision a network makes, from the kinds of its decision points."""
    present = set(points)
    return next((kind for kind, classes in KINDS if present & set(classes)), STATIC)


def summarise(infos: Sequence[WorkloadInfo], cells: Sequence[Cell]) -> list[Summary]:
    """A record for every workload of a run, measured or not.

    Args:
        infos: the workloads.
        cells: of the run; of several devices the first is what the overview is about.
    """
    mine: dict[str, list[Cell]] = {info.name: [] for info in infos}
    for cell in of_one_device(cells):
        mine.setdefault(cell.workload, []).append(cell)
    return [_summary(info, mine[info.name]) for info in infos]


def _summary(info: WorkloadInfo, cells: Sequence[Cell]) -> Summary:
    found = contest(info.name, cells)
    at: dict[int, Standing] = {}
    if found is not None:
        others = alternatives(info, found)
        for size in sorted({*found.ranked, *found.deployed}):
            static = {a.name for a in others.get(size, []) if a.gain >= 0}
            at[size] = _standing(found, cells, size, static)
    last = next((s for s in reversed(at.values()) if s.best is not None), None)
    best = None if last is None else last.best
    flops = None if best is None else best.cell.flops
    masking = None if last is None or last.masking is None else last.masking.cell.flops
    learned = found is not None and found.source.source == "learned"
    baseline = None if best is None else best.speedup.baseline
    gain, accuracy = _gain(info, baseline) if learned and baseline is not None else (None, None)
    return Summary(
        info=info,
        kind=kind_of_decision(info.points),
        saved=None if last is None or last.ideal is None else 1 - 1 / last.ideal,
        gain=gain,
        accuracy=accuracy,
        promised=_over(flops, "accounted"),
        executed=_over(masking, "executed"),
        at=at,
    )


def _standing(found: Contest, cells: Sequence[Cell], size: int, static: set[str]) -> Standing:
    ranked = found.ranked.get(size, [])
    written, deployed = next(iter(ranked), None), found.deployed.get(size)
    masking = next((t for t in ranked if t.cell.arm.strategy == "masking"), None)
    ideals = [t.cell.ideal for t in (deployed, written) if t is not None and t.cell.ideal is not None]
    stronger = []
    if deployed is not None:
        stronger = [s for s in deployed.cell.deployed_speedups if not s.primary and s.baseline in static]
    best = deployed or written
    explained = None if deployed is None else deployed.cell.deployed_waterfall
    primary = None if best is None else _primary(cells, best, deployed=deployed is not None)
    return Standing(
        batch_size=size,
        deployed=deployed,
        written=written,
        masking=masking,
        ideal=next(iter(ideals), None),
        losses=_losses(explained, written),
        by_controls=explained is not None or (written is not None and written.cell.waterfall is not None),
        of_deployed=explained is not None,
        memory=None if best is None or primary is None else _ratio(_peak(best.cell), _peak(primary)),
        energy=None if best is None or primary is None else _ratio(_joules(best.cell), _joules(primary)),
        alternative=min(stronger, key=lambda s: s.value, default=None),
        primary=primary,
    )


def _losses(deployed: Waterfall | None, written: Timed | None) -> dict[str, float]:
    """By cause: by controls, of the deployed network before that as written; else what the latter's profile says."""
    controls = deployed or (None if written is None else written.cell.waterfall)
    if controls is not None:
        return {factor.name: factor.value for factor in controls.factors}
    return {} if written is None else gap(written.cell.model_copy(update={"deployed_speedups": []})).losses


def _primary(cells: Sequence[Cell], best: Timed, *, deployed: bool) -> Cell | None:
    """The measured primary baseline that a cell was compared with."""
    group = [c for c in cells if c.group_id == best.cell.group_id and c.status == "ok" and c.primary]
    if deployed:
        return next((c for c in group if c.deployed), None)
    return next((c for c in group if c.arm.engine == best.cell.arm.engine and c.arm.control == "host"), None)


def _peak(cell: Cell) -> Measured | None:
    return None if cell.memory is None else cell.memory.peak_bytes


def _joules(cell: Cell) -> Measured | None:
    return None if cell.energy is None else cell.energy.item_j


def _ratio(ours: Measured | None, theirs: Measured | None) -> float | None:
    if isinstance(ours, Unavailable | None) or isinstance(theirs, Unavailable | None) or not theirs:
        return None
    return ours / theirs


def _over(flops: Flops | None, what: str) -> float | None:
    """Dense FLOPs over others of the same cell; None where one is unavailable."""
    return None if flops is None else _ratio(flops.dense, getattr(flops, what))


def _gain(info: WorkloadInfo, baseline: str) -> tuple[float | None, Accuracy | None]:
    ours, theirs = info.accuracies.get("dynamic"), info.accuracies.get(baseline)
    if ours is None or theirs is None or ours.metric != theirs.metric:
        return None, None
    if isinstance(ours.value, Unavailable) or isinstance(theirs.value, Unavailable):
        return None, None
    return (ours.value - theirs.value) * (1 if ours.higher_is_better else -1), ours


# --- many together ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """All workloads at one batch size.

    Attributes:
        standings: of those that were timed there.
        outcomes: how many are faster, slower, unclear.
        rank_correlation: Spearman's, of ideal and speed-up, with its interval; None: fewer than `MANY_ENOUGH` pairs.
    """

    batch_size: int
    standings: list[Standing]
    outcomes: Counter[str]
    rank_correlation: tuple[float, float, float] | None

    def median(self, what: str) -> float | None:
        """Of 'ideal', 'efficiency', 'memory' or 'energy' over the workloads where it is known; None: nowhere."""
        return median(getattr(s, what) for s in self.standings)

    @property
    def speedup(self) -> float | None:
        """Median of the speed-ups that the workloads are judged by."""
        return median(s.best.speedup.value for s in self.standings if s.best is not None)


def by_batch_size(summaries: Sequence[Summary]) -> list[Batch]:
    """The batch sizes of a run, the smallest first; only those at which anything was timed."""
    sizes = sorted({size for s in summaries for size, at in s.at.items() if at.best is not None})
    found = []
    for size in sizes:
        standings = [s.at[size] for s in summaries if size in s.at and s.at[size].best is not None]
        outcomes = Counter(str(s.outcome) for s in standings)
        pairs = [(s.ideal, s.best.speedup.value) for s in standings if s.ideal is not None and s.best is not None]
        found.append(Batch(size, standings, outcomes, spearman(pairs)))
    return found


def spearman(pairs: Sequence[tuple[float, float]]) -> tuple[float, float, float] | None:
    """The rank correlation of pairs, and its 95 % confidence interval; None for fewer than `MANY_ENOUGH` pairs.

    The interval is Fisher's z with the standard error of Bonett and Wright (Psychometrika 65, 2000): sqrt((1 + r^2 / 2)
    / (n - 3)).
    """
    if len(pairs) < MANY_ENOUGH:
        return None
    first, second = (_ranks([pair[i] for pair in pairs]) for i in (0, 1))
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    r = float(np.corrcoef(first, second)[0, 1])
    z = math.atanh(max(min(r, 1 - 1e-12), -1 + 1e-12))
    half = 1.96 * math.sqrt((1 + r * r / 2) / (len(pairs) - 3))
    return r, math.tanh(z - half), math.tanh(z + half)


def _ranks(values: Sequence[float]) -> np.ndarray:
    """[n] ranks from 1; equal values share the mean of theirs."""
    array = np.asarray(values, dtype=float)
    ranks = np.empty(len(array))
    ranks[np.argsort(array, kind="stable")] = np.arange(1, len(array) + 1)
    for value in np.unique(array):
        ranks[array == value] = ranks[array == value].mean()
    return ranks


def median(values: Iterable[float | None]) -> float | None:
    """Of those that are known; None: none is."""
    known = [v for v in values if v is not None]
    return float(np.median(known)) if known else None


def quartiles(values: Iterable[float]) -> tuple[float, float, float] | None:
    """The lower quartile, the median, and the upper one; None of nothing."""
    known = list(values)
    if not known:
        return None
    low, middle, high = np.quantile(known, (0.25, 0.5, 0.75))
    return float(low), float(middle), float(high)


def told(standings: Sequence[Standing]) -> list[Standing]:
    """Those whose losses can be put together: of the deployed networks, else by controls, else by the profile."""
    deployed = [s for s in standings if s.of_deployed]
    return deployed or [s for s in standings if s.by_controls] or list(standings)


def causes(standings: Sequence[Standing]) -> dict[str, list[float]]:
    """Loss factors by cause, one per workload where it is known; the costliest cause (by its median) first."""
    found: dict[str, list[float]] = {}
    for standing in told(standings):
        for cause, factor in standing.losses.items():
            found.setdefault(cause, []).append(factor)
    return dict(sorted(found.items(), key=lambda item: -float(np.median(item[1]))))


@dataclass(frozen=True)
class BreakEven:
    """The keep-rate up to which the best strategy of a workload pays at a batch size, from its sweep.

    Attributes:
        rate: None: not even the lowest rate that was measured pays.
        lowest: rate that was measured.
    """

    workload: str
    batch_size: int
    strategy: str
    rate: float | None
    lowest: float


def break_evens(infos: Mapping[str, WorkloadInfo], cells: Sequence[Cell]) -> list[BreakEven]:
    """Of every keep-rate sweep of a run, the strategy that pays up to the highest rate."""
    swept: dict[tuple[str, int], dict[str, list[tuple[float, float]]]] = {}
    for cell in cells:
        rate, speedup = cell.decisions.keep_rate, primary_speedup(cell)
        mine = cell.decisions.sweep and cell.arm.kind == "strategy" and not cell.static_twin
        if mine and rate is not None and speedup is not None and cell.workload in infos and not cell.item_by_item:
            of_workload = swept.setdefault((cell.workload, cell.batch_size), {})
            of_workload.setdefault(cell.arm.title, []).append((rate, speedup.value))
    found = []
    for (workload, size), by_arm in sorted(swept.items()):
        rates = {
            name: break_even_keep_rate([r for r, _ in points], [s for _, s in points])
            for name, points in by_arm.items()
            if len(points) > 1
        }
        if rates:
            best = max(rates, key=lambda name: -1.0 if rates[name] is None else float(rates[name] or 0.0))
            lowest = min(r for r, _ in by_arm[best])
            found.append(BreakEven(infos[workload].title, size, best, rates[best], lowest))
    return found


@dataclass(frozen=True)
class Member:
    """A workload of a family at its largest common batch size."""

    value: float
    standing: Standing


@dataclass(frozen=True)
class Family:
    """Workloads that differ in one number of their model: of experts, tasks, modules, classes.

    Attributes:
        of: title of the workload as its file says, or its name.
        argument: that was varied.
        batch_size: the largest at which all members were timed.
        members: by value.
    """

    of: str
    argument: str
    batch_size: int
    members: list[Member]


def families(summaries: Sequence[Summary]) -> list[Family]:
    """The families of a run with two timed members or more."""
    found: dict[tuple[str, str], list[tuple[float, Summary]]] = {}
    for summary in summaries:
        varied = summary.info.varied
        if varied is not None and isinstance(varied.value, int | float) and not isinstance(varied.value, bool):
            found.setdefault((varied.of, varied.argument), []).append((float(varied.value), summary))
    families = []
    for (of, argument), pairs in found.items():
        timed = [(v, {n for n, at in s.at.items() if at.best is not None}, s) for v, s in pairs]
        common = set.intersection(*(sizes for _, sizes, _ in timed)) if timed else set()
        if len(timed) > 1 and common:
            size = max(common)
            ordered = sorted(timed, key=lambda entry: entry[0])
            families.append(Family(of, argument, size, [Member(v, s.at[size]) for v, _, s in ordered]))
    return families
