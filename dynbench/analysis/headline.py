"""The cell that a workload is judged by. It is chosen here, for the verdict, the tables and the figures alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from dynbench.analysis.gap import deployed_speedup, is_written, primary_speedup
from dynbench.analysis.resolution import direction
from dynbench.store.schema import Cell, Decisions, Speedup, WorkloadInfo
from dynbench.unavailable import Unavailable

SOURCES = ("learned", "replay", "published", "synthetic")  # the first that was measured is what a workload is judged by


class Timed(NamedTuple):
    """A measured cell with its speed-up against the primary baseline."""

    cell: Cell
    speedup: Speedup


class Alternative(NamedTuple):
    """A static network beside the dynamic one at a batch size.

    Attributes:
        name: of the static network.
        dynamic: the dynamic network, in its fastest way if ways were tried, else under its best strategy.
        speedup: of the dynamic network against the static one; below 1 the static one is faster.
        gain: accuracy of the static network less that of the dynamic one, above 0 where the static one is better.
    """

    name: str
    dynamic: Cell
    speedup: Speedup
    gain: float


class Choice(NamedTuple):
    """The network to use at a batch size, of those in their fastest way.

    Attributes:
        cell: of that network.
        speedup: against the primary baseline in its fastest way; None: it is that one.
        why: in words.
    """

    cell: Cell
    speedup: Speedup | None
    why: str


@dataclass(frozen=True)
class Contest:
    """The strategies that a workload is judged by.

    Attributes:
        source: whose decisions they execute.
        entrants: all of them as written, measured or not.
        ranked: the measured ones as written by batch size, the largest first; the best of a batch size first.
        deployed: the dynamic network in its fastest way against the primary baseline in its own, by batch size, the
            largest first.
        not_deployed: cells of the dynamic network in its fastest way that have no such speed-up.
    """

    source: Decisions
    entrants: list[Cell]
    ranked: dict[int, list[Timed]]
    deployed: dict[int, Timed] = field(default_factory=dict)
    not_deployed: list[Cell] = field(default_factory=list)

    @property
    def best_written(self) -> Timed | None:
        """The best strategy as written at the largest batch size; None where none was timed."""
        return next((found[0] for found in self.ranked.values()), None)

    @property
    def best(self) -> Timed | None:
        """What the workload is judged by: deployed against deployed, else as written; None: nothing was timed."""
        return next(iter(self.deployed.values()), None) or self.best_written


def of_one_device(cells: Sequence[Cell]) -> list[Cell]:
    """The cells of the first device on which anything was measured: nothing is compared across devices.

    A run on this machine alone has one; one on targets has one for each of them.
    """
    devices = [*(c.device for c in cells if c.status == "ok"), *(c.device for c in cells)]
    return [c for c in cells if c.device == devices[0]]


def by_device(cells: Sequence[Cell]) -> list[list[Cell]]:
    """The cells of each device, in the order in which these appear."""
    return [[c for c in cells if c.device == device] for device in dict.fromkeys(c.device for c in cells)]


def timed(cells: Sequence[Cell]) -> list[Timed]:
    """The cells that were measured against the primary baseline, both as written."""
    return [Timed(c, s) for c in cells if c.status == "ok" and (s := primary_speedup(c)) is not None]


def contest(workload: str, cells: Sequence[Cell]) -> Contest | None:
    """Sets the strategies of a workload side by side; None where there is none that makes a decision.

    Args:
        workload: its name.
        cells: of the run; those of other workloads are left out, and so are those of devices but the first.
    """
    mine = of_one_device([c for c in cells if c.workload == workload])
    dynamic = [c for c in mine if c.arm.kind == "strategy" and not c.static_twin]
    if not dynamic:
        return None
    measured = timed(dynamic)
    deployed = [Timed(c, s) for c in dynamic if c.status == "ok" and (s := deployed_speedup(c)) is not None]
    decisions = [t.cell.decisions for t in (*measured, *deployed)] or [c.decisions for c in dynamic]
    source = min(decisions, key=lambda d: SOURCES.index(d.source))
    mine = [c for c in dynamic if c.decisions.label == source.label]
    by_size: dict[int, list[Timed]] = {}
    for t in timed(mine):
        by_size.setdefault(t.cell.batch_size, []).append(t)
    fastest = {t.cell.batch_size: t for t in deployed if t.cell.decisions.label == source.label}
    return Contest(
        source=source,
        entrants=[c for c in mine if is_written(c)],
        ranked={size: sorted(by_size[size], key=_rank, reverse=True) for size in sorted(by_size, reverse=True)},
        deployed=dict(sorted(fastest.items(), reverse=True)),
        not_deployed=[c for c in mine if c.deployed and (c.status != "ok" or deployed_speedup(c) is None)],
    )


def headline(workload: str, cells: Sequence[Cell]) -> Timed | None:
    """The cell a workload is judged by, at the largest batch size; None where nothing was timed.

    That is the dynamic network in its fastest way, or the best strategy as written where ways were not tried.
    """
    found = contest(workload, cells)
    return None if found is None else found.best


def alternatives(info: WorkloadInfo, found: Contest) -> dict[int, list[Alternative]]:
    """Static networks that are faster than the dynamic one, by batch size, the largest first.

    Only trained networks with decisions of their own, as others have no accuracy; a network whose accuracy is unknown
    is left out. Those at least as accurate come first, and of these the fastest.
    """
    ours = info.accuracies.get("dynamic")
    if found.source.source != "learned" or ours is None or isinstance(ours.value, Unavailable):
        return {}
    cells = {size: t.cell for size, t in found.deployed.items()} or {s: ts[0].cell for s, ts in found.ranked.items()}
    by_size: dict[int, list[Alternative]] = {}
    for size, cell in cells.items():
        compared = (s for s in cell.deployed_speedups or cell.speedups if s.baseline not in info.opaque)
        faster = [s for s in compared if direction(s) == "slower"]
        known = [
            Alternative(s.baseline, cell, s, gain) for s in faster if (gain := _gain(info, s.baseline)) is not None
        ]
        by_size[size] = sorted(known, key=lambda a: (a.gain < 0, a.speedup.value, -a.gain))
    return by_size


def choices(info: WorkloadInfo, cells: Sequence[Cell]) -> list[Choice]:
    """The network to use at each batch size, the smallest first; none where no ways were tried.

    A static network that is faster and at least as accurate as the dynamic one goes first. Otherwise it is the dynamic
    one, if it is faster than the primary baseline, or the more accurate of the two; and the primary baseline if not.

    Args:
        info: the workload.
        cells: of the run; those of other workloads are left out.
    """
    found = contest(info.name, cells)
    if found is None:
        return []
    others = alternatives(info, found)
    chosen = []
    for size, dynamic in sorted(found.deployed.items()):
        group = (c for c in cells if c.group_id == dynamic.cell.group_id and c.deployed and c.status == "ok")
        static = {c.arm.baseline: c for c in group if c.arm.kind == "baseline"}
        chosen.append(_choice(info, found.source, dynamic, static, others.get(size, [])))
    return chosen


def _choice(
    info: WorkloadInfo,
    source: Decisions,
    dynamic: Timed,
    static: dict[str | None, Cell],
    others: list[Alternative],
) -> Choice:
    better = next((a for a in others if a.gain >= 0 and a.name in static), None)
    if better is not None:
        cell = static[better.name]
        return Choice(cell, deployed_speedup(cell), "faster than the dynamic network, and at least as accurate")
    cell, speedup = dynamic
    stands = direction(speedup)
    if stands == "faster":
        return Choice(cell, speedup, f"faster than {speedup.baseline}")
    known = source.source == "learned" and "dynamic" in info.accuracies
    gain = _gain(info, speedup.baseline) if known else None
    if gain is not None and gain < 0:
        less = "slower" if stands == "slower" else "not measurably faster"
        return Choice(cell, speedup, f"more accurate than {speedup.baseline}, though {less}")
    primary = static.get(speedup.baseline)
    if primary is None:
        return Choice(cell, speedup, f"{speedup.baseline} has no cell of its own")
    return Choice(
        primary, None, f"the dynamic network is {'slower' if stands == 'slower' else 'not measurably faster'}"
    )


def _gain(info: WorkloadInfo, baseline: str) -> float | None:
    ours, theirs = info.accuracies["dynamic"], info.accuracies.get(baseline)
    if theirs is None or isinstance(theirs.value, Unavailable) or isinstance(ours.value, Unavailable):
        return None
    if theirs.metric != ours.metric:
        return None
    return (theirs.value - ours.value) * (1 if ours.higher_is_better else -1)


def _rank(found: Timed) -> tuple[int, float]:
    """What is certain counts before how much: 1.1x that may be none comes after a certain 1.05x."""
    return ("slower", "unclear", "faster").index(direction(found.speedup)), found.speedup.value
