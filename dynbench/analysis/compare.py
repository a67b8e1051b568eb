"""Two runs side by side: which cells are the same ones, what may not be compared, and what changed, code or machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dynbench.analysis.gap import primary_speedup
from dynbench.analysis.judge import MATTERS, Judgement, judge
from dynbench.analysis.resolution import FLOOR
from dynbench.analysis.statistics import median_interval, quotient
from dynbench.errors import UserError
from dynbench.store.run import Run
from dynbench.store.schema import Cell, Interval, Unavailable

CHECKED = ("machine", "threads", "software", "inputs", "decisions", "weights")
"""What must be alike before two runs say something about code; dtype, device and batch size are part of a cell."""

UNKNOWN_RESOLUTION = 0.05
"""Of a run without A/A arms. Two separate blocks of the same network differ by several percent on a shared machine."""


@dataclass(frozen=True)
class Change:
    """One cell in both runs.

    Attributes:
        cell: in the later run.
        time: later time / earlier time of the stream, as the clock says.
        machine: the same of the control kernel, whose code never changes; None: a run has none.
        against_baseline: the same of the time relative to the primary baseline of the run; None for that one itself.
        judged: of the time with the machine's change taken out.
        exact: quantities that are counted, not timed, and differ: 'executed FLOPs: 120 -> 140'.
    """

    cell: Cell
    time: Interval
    machine: float | None
    against_baseline: Interval | None
    judged: Judgement
    exact: list[str]


def differences(a: Run, b: Run) -> dict[str, str]:
    """What of `CHECKED` is not alike in two runs, in words, by key."""
    found = {}

    def check(key: str, one: object, other: object) -> None:
        if one != other:
            found[key] = f"{key}: {one} and {other}"

    check("machine", a.manifest.hardware.get("name"), b.manifest.hardware.get("name"))
    check("threads", a.manifest.environment.get("threads"), b.manifest.environment.get("threads"))
    check("software", _versions(a), _versions(b))
    for key, told in (("inputs", "stream_hash"), ("weights", "weights_sha256"), ("decisions", "trace_hashes")):
        both = a.manifest.workloads.keys() & b.manifest.workloads.keys()
        for name in sorted(both):
            one, other = (getattr(r.manifest.workloads[name], told) for r in (a, b))
            if isinstance(one, dict):
                labels = sorted(label for label in one.keys() & other.keys() if one[label] != other[label])
                one, other = ({k: v[:8] for k, v in t.items() if k in labels} for t in (one, other))
            if one != other:
                found[key] = f"{key} of {name}: {_short(one)} and {_short(other)}"
    return found


def _versions(run: Run) -> str:
    return f"python {str(run.manifest.software.get('python'))[:4]}, torch {run.manifest.software.get('torch')}"


def _short(value: object) -> str:
    return value[:12] if isinstance(value, str) else str(value)


def compare(
    a: Run, b: Run, *, allow: Sequence[str] = (), matters: float = MATTERS
) -> tuple[list[Change], list[str], list[str]]:
    """Sets the cells of run `b` beside those of run `a`.

    Args:
        a: the earlier run.
        b: the later one.
        allow: keys of `CHECKED` that may differ.
        matters: smallest change that anybody cares about.

    Returns:
        The changes; the cells that only one of the runs has a result of; what was allowed to differ.

    Raises:
        UserError: the runs differ in what was not allowed to, or have no cell in common.
    """
    unlike = differences(a, b)
    refused = [text for key, text in unlike.items() if key not in allow]
    if refused:
        raise UserError(
            f"{a.path} and {b.path} are not comparable: {'; '.join(refused)}; "
            f"allow it with --allow {','.join(k for k in unlike if k not in allow)}"
        )
    before, after = ({c.cell_id: c for c in run.cells if c.status == "ok" and c.latency} for run in (a, b))
    both = [cell_id for cell_id in after if cell_id in before]
    if not both:
        raise UserError(f"{a.path} and {b.path} have no measured cell in common")
    changes = [_change(a, b, before[i], after[i], matters) for i in both]
    single = [f"{i}: only in {run.path}" for run, mine, other in ((a, before, after), (b, after, before))
              for i in mine if i not in other]  # fmt: skip
    return changes, single, list(unlike.values())


def _change(a: Run, b: Run, old: Cell, new: Cell, matters: float) -> Change:
    time = quotient(_stream(b, new), _stream(a, old))
    machine = _machine(old, new)
    ours, theirs = primary_speedup(new), primary_speedup(old)
    relative = None if ours is None or theirs is None else quotient(theirs, ours)
    tells = _combined([_tells(old), _tells(new)])
    unknown = machine is None
    corrected = time if machine is None else _scaled(time, 1 / machine)
    judged = judge(corrected, tells, matters=matters)
    if judged.outcome in ("FASTER", "SLOWER"):
        doubt = None
        if unknown:
            doubt = "no control kernel says whether the machine changed meanwhile"
        elif relative is not None and judge(relative, tells, matters=matters).outcome != judged.outcome:
            doubt = (
                f"against {_baseline(new)}, measured in the same rounds, it changed by {relative.value - 1:+.1%} only: "
                "the machine may have changed in a way that the control kernel does not see"
            )
        if doubt is not None:
            judged = Judgement("AMBIGUOUS", corrected, tells, f"{judged.reason}; {doubt}")
    return Change(new, time, machine, relative, judged, list(_exact(old, new)))


def _baseline(cell: Cell) -> str:
    found = primary_speedup(cell)
    return "the baseline" if found is None else found.baseline


def _machine(old: Cell, new: Cell) -> float | None:
    times = [None if c.witnesses is None else c.witnesses.control_us for c in (old, new)]
    if any(t is None or isinstance(t, Unavailable) for t in times):
        return None
    before, after = times
    return float(after) / float(before)  # type: ignore[arg-type]


def _tells(cell: Cell) -> float:
    known = [s.resolution for s in cell.speedups if s.resolution is not None]
    if known:
        return known[0]
    if cell.again is not None:
        return max(abs(math.log(cell.again.low)), abs(math.log(cell.again.high)), FLOOR["cpu"])
    return UNKNOWN_RESOLUTION


def _combined(shares: Sequence[float]) -> float:
    return math.sqrt(sum(s * s for s in shares))


def _stream(run: Run, cell: Cell) -> Interval:
    """Median time of the stream over the rounds, with its interval, in ms."""
    name = f"baseline:{cell.name}" if cell.arm == "baseline" else cell.name
    samples = run.samples(cell.group_id)
    mine = samples[samples["arm"] == name]
    totals: NDArray[np.float64] = (
        mine.groupby(["process", "round"])["duration_ns"].sum().to_numpy().astype(np.float64) / 1e6
    )
    if totals.size < 2:
        assert cell.latency is not None
        return Interval(value=cell.latency.stream_ms, low=cell.latency.stream_ms, high=cell.latency.stream_ms)
    return median_interval(totals)


def _scaled(interval: Interval, factor: float) -> Interval:
    return Interval(value=interval.value * factor, low=interval.low * factor, high=interval.high * factor,
                    confidence=interval.confidence)  # fmt: skip


def _exact(old: Cell, new: Cell) -> Iterator[str]:
    """Counted quantities that differ. Where one of the two is unavailable, nothing is said."""
    counted: dict[str, Callable[[Cell], object]] = {
        "executed FLOPs per item": lambda c: c.flops and c.flops.executed,
        "required FLOPs per item": lambda c: c.flops and c.flops.required_total,
        "operator calls per stream": lambda c: c.operator_calls,
        "host waits per stream": lambda c: c.host_syncs,
        "parameters": lambda c: c.params,
    }
    for what, read in counted.items():
        one, other = read(old), read(new)
        if isinstance(one, (int, float)) and isinstance(other, (int, float)) and one != other:
            yield f"{what}: {one:,.6g} -> {other:,.6g}"


@dataclass(frozen=True)
class Exact:
    """A quantity that does not depend on the clock, in both runs."""

    what: str
    before: str
    after: str

    @property
    def same(self) -> bool:
        """Whether both runs say the same."""
        return self.before == self.after


def exact_quantities(a: Run, b: Run) -> list[Exact]:
    """What another run of the same thing must show again exactly: inputs, weights, decisions, FLOPs, outcomes.

    A workload, or a cell, that one of the runs does not have is a difference, too.
    """
    rows = []
    for name in dict.fromkeys([*a.manifest.workloads, *b.manifest.workloads]):
        one, other = (r.manifest.workloads.get(name) for r in (a, b))
        told = [("inputs", "stream_hash"), ("weights", "weights_sha256")]
        rows += [
            Exact(f"{what} of {name}", *(_hash(i and getattr(i, key)) for i in (one, other))) for what, key in told
        ]
        labels = dict.fromkeys(label for i in (one, other) if i is not None for label in i.trace_hashes)
        rows += [
            Exact(f"decisions of {name}, {label}", *(_hash(i and i.trace_hashes.get(label)) for i in (one, other)))
            for label in labels
        ]
    before, after = ({c.cell_id: c for c in run.cells} for run in (a, b))
    for cell_id in dict.fromkeys([*before, *after]):
        cells = [before.get(cell_id), after.get(cell_id)]
        rows.append(Exact(f"outcome of {cell_id}", *("not there" if c is None else c.status for c in cells)))
        for what, key in (("executed", "executed"), ("required", "required_total")):
            if any(c is not None and c.flops is not None for c in cells):
                rows.append(Exact(f"{what} FLOPs of {cell_id}", *(_count(c, key) for c in cells)))
    return rows


def _hash(value: object) -> str:
    return str(value)[:12] if value else "none"


def _count(cell: Cell | None, key: str) -> str:
    if cell is None or cell.flops is None:
        return "not counted"
    found = getattr(cell.flops, key)
    return f"unavailable: {found.unavailable}" if isinstance(found, Unavailable) else f"{found:,.0f}"
