"""Two runs side by side: which cells are the same ones, what may not be compared, and what changed, code or machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dynbench.analysis.formatting import change_text
from dynbench.analysis.gap import best_speedup, deployed_speedup, is_written, primary_speedup
from dynbench.analysis.judge import MATTERS, Judgement, judge
from dynbench.analysis.resolution import FLOOR
from dynbench.analysis.statistics import median_interval, quotient
from dynbench.errors import UserError
from dynbench.store.quantities import quantities
from dynbench.store.quantity import Quantity
from dynbench.store.run import Run
from dynbench.store.schema import Arm, Cell, Interval, WorkloadInfo
from dynbench.unavailable import Unavailable

CHECKED = ("machine", "threads", "software", "inputs", "decisions", "weights")
"""What must be the same before two runs say something about code; dtype, device and batch size are part of a cell."""

UNKNOWN_RESOLUTION = 0.05
"""Of a run without A/A arms: two runs of the same network differ by several percent on a shared machine."""

Address = tuple[str, Arm]  # what a cell is found by in another run: its group and its arm


@dataclass(frozen=True)
class Change:
    """One cell in both runs.

    Attributes:
        old: in the earlier run.
        cell: in the later run.
        time: later time / earlier time of the stream, as measured.
        machine: the same of the control kernel, whose code never changes; None: a run has none.
        against_baseline: the same of the time relative to the primary baseline of the run; None for that one itself.
        judged: of the time, corrected for the machine's change.
        exact: counted quantities that differ: 'executed FLOPs per item: 120 -> 140'.
    """

    old: Cell
    cell: Cell
    time: Interval
    machine: float | None
    against_baseline: Interval | None
    judged: Judgement
    exact: list[str]


class DeployedChange(NamedTuple):
    """A network in its fastest way in both runs, whichever way that is.

    Attributes:
        old: in the earlier run.
        cell: in the later run.
        judged: of its time relative to the primary baseline in its own fastest way in the same run.
    """

    old: Cell
    cell: Cell
    judged: Judgement

    @property
    def other_way(self) -> str | None:
        """Says so where the fastest way is another one now."""
        if self.old.arm == self.cell.arm:
            return None
        ways = f"{self.old.arm.title} before, {self.cell.arm.title} now"
        return f"another way is the fastest in {self.cell.group_id}: {ways}"


class Comparison(NamedTuple):
    """Two runs side by side.

    Attributes:
        changes: of the cells that both runs have measured.
        single: cells that only one of the runs has measured, in words; not those of networks in `deployed`.
        differ: what of `CHECKED` differs and was allowed to, in words.
        deployed: the deployed speed-ups of networks that both runs have.
    """

    changes: list[Change]
    single: list[str]
    differ: list[str]
    deployed: list[DeployedChange]


def differences(a: Run, b: Run) -> dict[str, str]:
    """What of `CHECKED` differs between two runs, in words, by key."""
    found = {}

    def check(key: str, before: object, after: object, show: Callable[[Any], str] = str, of: str = "") -> None:
        if before != after:
            found[key] = f"{key}{of}: {show(before)} and {show(after)}"

    check("machine", a.manifest.hardware.get("name"), b.manifest.hardware.get("name"))
    check("threads", a.manifest.environment.get("threads"), b.manifest.environment.get("threads"))
    check("software", _versions(a), _versions(b))
    for name in sorted(a.manifest.workloads.keys() & b.manifest.workloads.keys()):
        before, after = a.manifest.workloads[name], b.manifest.workloads[name]
        check("inputs", before.stream_hash, after.stream_hash, _hash, f" of {name}")
        check("weights", before.weights_sha256, after.weights_sha256, _hash, f" of {name}")
        check("decisions", *_other_traces(before, after), of=f" of {name}")
    return found


def _versions(run: Run) -> str:
    return f"python {str(run.manifest.software.get('python'))[:4]}, torch {run.manifest.software.get('torch')}"


def _other_traces(before: WorkloadInfo, after: WorkloadInfo) -> tuple[dict[str, str], dict[str, str]]:
    """The hashes of decisions that both have under one label and that differ."""
    both = before.trace_hashes.keys() & after.trace_hashes.keys()
    labels = sorted(label for label in both if before.trace_hashes[label] != after.trace_hashes[label])
    one, other = ({label: i.trace_hashes[label][:8] for label in labels} for i in (before, after))
    return one, other


def compare(a: Run, b: Run, *, allow: Sequence[str] = (), matters: float = MATTERS) -> Comparison:
    """Sets the cells of run `b` beside those of run `a`.

    Args:
        a: the earlier run.
        b: the later one.
        allow: keys of `CHECKED` that may differ.
        matters: smallest change worth reporting, as a share.

    Raises:
        UserError: the runs differ in what was not allowed to, or have no cell in common.
    """
    differ = differences(a, b)
    refused = [text for key, text in differ.items() if key not in allow]
    if refused:
        raise UserError(
            f"{a.path} and {b.path} are not comparable: {'; '.join(refused)}; "
            f"allow it with --allow {','.join(k for k in differ if k not in allow)}"
        )
    before, after = _timed(a), _timed(b)
    both = [address for address in after if address in before]
    deployed = list(_deployed(a, b, matters))
    if not both and not deployed:
        raise UserError(f"{a.path} and {b.path} have no measured cell in common")
    known = quantities([*a.manifest.workloads.values(), *b.manifest.workloads.values()])
    streams_a, streams_b = _Streams(a), _Streams(b)
    changes = []
    for address in both:
        old, new = before[address], after[address]
        time = quotient(streams_b.of(new), streams_a.of(old))
        changes.append(_change(old, new, time, matters, known))
    paired = {c.cell_id for pair in deployed for c in (pair.old, pair.cell)}
    single = [
        f"{c.cell_id}: only in {run.path}"
        for run, mine, others in ((a, before, after), (b, after, before))
        for address, c in mine.items()
        if address not in others and (c.cell_id not in paired or is_written(c))
    ]
    return Comparison(changes, single, list(differ.values()), deployed)


def _deployed(a: Run, b: Run, matters: float) -> Iterator[DeployedChange]:
    """The networks that are not the primary baseline, by group; their ways may differ between the runs."""
    before, after = (
        {(c.group_id, c.arm.baseline): c for c in run.cells if c.status == "ok" and deployed_speedup(c) is not None}
        for run in (a, b)
    )
    for address, new in after.items():
        if (old := before.get(address)) is None:
            continue
        ours, theirs = deployed_speedup(new), deployed_speedup(old)
        assert ours is not None and theirs is not None
        resolution = _combined([UNKNOWN_RESOLUTION if s.resolution is None else s.resolution for s in (theirs, ours)])
        yield DeployedChange(old, new, judge(quotient(theirs, ours), resolution, matters=matters))


def _timed(run: Run) -> dict[Address, Cell]:
    return {(c.group_id, c.arm): c for c in run.cells if c.status == "ok" and c.latency is not None}


def _change(old: Cell, new: Cell, time: Interval, matters: float, known: Iterable[Quantity]) -> Change:
    machine = _machine(old, new)
    relative = _relative(old, new)
    resolution = _combined([_resolution(old), _resolution(new)])
    corrected = time if machine is None else _scaled(time, 1 / machine)
    judged = judge(corrected, resolution, matters=matters)
    if judged.outcome in ("FASTER", "SLOWER"):
        doubt = None
        if machine is None:
            doubt = "no control kernel says whether the machine changed meanwhile"
        elif relative is not None and judge(relative, resolution, matters=matters).outcome != judged.outcome:
            doubt = (
                f"against {_baseline(new)}, measured in the same rounds, it changed by {change_text(relative.value)} "
                "only: the machine may have changed in a way that the control kernel does not see"
            )
        if doubt is not None:
            judged = Judgement("AMBIGUOUS", corrected, resolution, f"{judged.reason}; {doubt}")
    return Change(old, new, time, machine, relative, judged, list(_exact(old, new, known)))


def _relative(old: Cell, new: Cell) -> Interval | None:
    """How the time relative to the primary baseline changed, as written or, where a cell is not, deployed."""
    for speedup_of in (primary_speedup, deployed_speedup):
        theirs, ours = speedup_of(old), speedup_of(new)
        if theirs is not None and ours is not None:
            return quotient(theirs, ours)
    return None


def _baseline(cell: Cell) -> str:
    found = best_speedup(cell)
    return "the baseline" if found is None else found.baseline


def _machine(old: Cell, new: Cell) -> float | None:
    before, after = (None if c.witnesses is None else c.witnesses.control_us for c in (old, new))
    if isinstance(before, float) and isinstance(after, float):
        return after / before
    return None


def _resolution(cell: Cell) -> float:
    """How small a difference this cell's run can resolve, as a share."""
    known = [s.resolution for s in cell.speedups or cell.deployed_speedups if s.resolution is not None]
    if known:
        return known[0]
    if cell.again is not None:
        return max(abs(math.log(cell.again.low)), abs(math.log(cell.again.high)), FLOOR["cpu"])
    return UNKNOWN_RESOLUTION


def _combined(shares: Sequence[float]) -> float:
    return math.sqrt(sum(s * s for s in shares))


class _Streams:
    """The times of the streams of a run; the samples of a group are read once, as its cells are asked for in turn."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._group: str | None = None
        self._totals: dict[str, NDArray[np.float64]] = {}

    def of(self, cell: Cell) -> Interval:
        """Median time of the stream over the rounds, with its interval, in ms."""
        if cell.group_id != self._group:
            samples = self._run.samples(cell.group_id)
            sums = samples.groupby(["arm", "process", "round"], observed=True)["duration_ns"].sum()
            by_arm = sums.groupby(level="arm", observed=True)
            self._totals = {str(arm): rounds.to_numpy(dtype=np.float64) / 1e6 for arm, rounds in by_arm}
            self._group = cell.group_id
        totals = self._totals.get(cell.arm.key)
        if totals is None or totals.size < 2:
            assert cell.latency is not None
            return Interval(value=cell.latency.stream_ms, low=cell.latency.stream_ms, high=cell.latency.stream_ms)
        return median_interval(totals)


def _scaled(found: Interval, factor: float) -> Interval:
    ends = {end: getattr(found, end) * factor for end in ("value", "low", "high")}
    return Interval(**ends, confidence=found.confidence)


def _exact(old: Cell, new: Cell, known: Iterable[Quantity]) -> Iterator[str]:
    """Counted quantities that differ. Where one of the two is unavailable, nothing is said."""
    for quantity in known:
        before, after = quantity.of(old), quantity.of(new)
        if quantity.exact and isinstance(before, int | float) and isinstance(after, int | float) and before != after:
            per = f" per {quantity.per}" if quantity.per else ""
            yield f"{quantity.name}{per}: {before:,.6g} -> {after:,.6g}"


# --- a run repeated --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exact:
    """What does not depend on the clock, in both runs.

    Attributes:
        what: 'inputs of skipnet38', 'executed FLOPs of <cell>'.
        before: in the earlier run.
        after: in the later one.
        hashed: both are hashes, of a whole workload.
    """

    what: str
    before: str
    after: str
    hashed: bool = field(default=False, kw_only=True)

    @property
    def same(self) -> bool:
        """Whether it is the same in both runs."""
        return self.before == self.after


def exact_quantities(a: Run, b: Run) -> list[Exact]:
    """What must be exactly the same when a run is repeated: inputs, weights, decisions, outcomes and what is counted.

    A workload, or a cell, that one of the runs does not have is a difference, too; but for ways of a network that only
    one of the runs found to be the fastest, as that depends on the clock.
    """
    rows: list[Exact] = []
    for name in dict.fromkeys([*a.manifest.workloads, *b.manifest.workloads]):
        rows += _hashes(name, a.manifest.workloads.get(name), b.manifest.workloads.get(name))
    known = quantities([*a.manifest.workloads.values(), *b.manifest.workloads.values()])
    counted = [q for q in known if q.exact and not q.depends_on_software]
    before, after = ({(c.group_id, c.arm): c for c in run.cells} for run in (a, b))
    for address in dict.fromkeys([*before, *after]):
        found = [c for c in (before.get(address), after.get(address)) if c is not None]
        if len(found) == 1 and not is_written(found[0]):
            continue
        rows += _counts(before.get(address), after.get(address), counted)
    return rows


def _hashes(workload: str, before: WorkloadInfo | None, after: WorkloadInfo | None) -> Iterator[Exact]:
    infos = (before, after)
    yield Exact(f"inputs of {workload}", *(_hash(i and i.stream_hash) for i in infos), hashed=True)
    yield Exact(f"weights of {workload}", *(_hash(i and i.weights_sha256) for i in infos), hashed=True)
    for label in dict.fromkeys(label for i in infos if i is not None for label in i.trace_hashes):
        hashes = (_hash(i and i.trace_hashes.get(label)) for i in infos)
        yield Exact(f"decisions of {workload}, {label}", *hashes, hashed=True)


def _counts(before: Cell | None, after: Cell | None, counted: Iterable[Quantity]) -> Iterator[Exact]:
    cells = (before, after)
    name = next(c.cell_id for c in cells if c is not None)
    yield Exact(f"outcome of {name}", *("not there" if c is None else c.status for c in cells))
    for quantity in counted:
        found = [None if c is None else quantity.of(c) for c in cells]
        if any(value is not None for value in found):
            yield Exact(f"{quantity.name} of {name}", *map(_count, found))


def _hash(value: object) -> str:
    return str(value)[:12] if value else "none"


def _count(found: object) -> str:
    if isinstance(found, Unavailable):
        return f"unavailable: {found.unavailable}"
    if not isinstance(found, int | float):
        return "not counted"
    return f"{found:,.0f}" if abs(found) >= 1000 else f"{found:.6g}"
