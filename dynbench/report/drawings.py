"""What the figures show, as numbers; or why there is nothing to show. `figures.py` draws them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dynbench.analysis.gap import (
    best_speedup,
    break_even_keep_rate,
    deployed_speedup,
    ideal_speedup,
    is_written,
    primary_speedup,
)
from dynbench.errors import UserError
from dynbench.report.palette import INK, MUTED
from dynbench.report.selection import View, deployed_primary, primary_baseline
from dynbench.store.run import Run
from dynbench.store.schema import Cell, Interval, Speedup
from dynbench.unavailable import Measured, Unavailable

if TYPE_CHECKING:
    import pandas as pd

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
MOST_PATHS = 10  # distinct depths shown one by one; more are put into bins


@dataclass(frozen=True)
class Absent:
    """A figure that is not there, and why."""

    reason: str


@dataclass(frozen=True)
class Line:
    """A measured line with its confidence band, sorted by x.

    Attributes:
        tone: names its colour.
        static: of a static network.
        hollow: another line of the same colour comes before it.
        deployed: of a network in its fastest way, against the primary baseline in its own.
    """

    name: str
    tone: str
    x: list[float]
    y: list[float]
    low: list[float]
    high: list[float]
    static: bool = False
    hollow: bool = False
    deployed: bool = False


@dataclass(frozen=True)
class Speedups:
    """Speed-up against batch size or against keep-rate.

    Attributes:
        over: what x is.
        baseline: what 1 stands for.
        ideal: points (x, ideal speed-up).
        break_even: where each line falls to 1, by its name (keep-rate only).
        learned: keep-rate of the learned decisions, to be marked.
    """

    over: str
    baseline: str
    lines: list[Line]
    ideal: list[tuple[float, float]]
    break_even: dict[str, float]
    learned: float | None = None


@dataclass(frozen=True)
class Bar:
    """An amount of work in FLOPs per item; `executed`: it really ran."""

    label: str
    flops: float
    tone: str
    executed: bool


@dataclass(frozen=True)
class Work:
    """FLOPs per item.

    Attributes:
        batch_size: at which they were counted.
        bars: from top to bottom.
        dense: of the primary baseline, to compare with; None: unavailable.
        missing: which bars there are none of, and why.
        accounted_rule: what the paper counts.
    """

    batch_size: int
    bars: list[Bar]
    dense: float | None
    missing: list[str]
    accounted_rule: str | None


@dataclass(frozen=True)
class Distribution:
    """Times of one strategy in ms.

    Attributes:
        tone: names its colour.
        quantiles: for each path, the QUANTILES.
        hollow: another one of the same colour comes before it.
    """

    name: str
    tone: str
    quantiles: list[list[float]]
    hollow: bool = False


@dataclass(frozen=True)
class Paths:
    """Latency by path.

    Attributes:
        counted_in: 'bodies run of 17'.
        paths: labels of the paths, by depth.
        items: how many inputs of the stream went each.
        rounds: how often each was timed, at least.
        arms: strategies.
        baselines: name and quantiles of the times over all inputs, of the primary baseline as written and deployed.
    """

    counted_in: str
    paths: list[str]
    items: list[int]
    rounds: int
    arms: list[Distribution]
    baselines: list[tuple[str, list[float]]]


@dataclass(frozen=True)
class Point:
    """An arm by its time per item in ms and the accuracy of its network, as it is shown.

    Attributes:
        network: whose accuracy it is.
        tone: names its colour.
        deployed: it is its network's fastest way.
        front: no other arm is at least as fast and more accurate, or faster and as accurate.
    """

    network: str
    name: str
    tone: str
    item_ms: float
    accuracy: float
    deployed: bool
    front: bool


@dataclass(frozen=True)
class Tradeoff:
    """Accuracy against time per item at a batch size.

    Attributes:
        batch_size: in items.
        metric: with its unit: 'top-1 accuracy, %'.
        higher_is_better: of the metric.
        points: the fastest first.
    """

    batch_size: int
    metric: str
    higher_is_better: bool
    points: list[Point]


@dataclass(frozen=True)
class Curve:
    """A cell over the runs of a history.

    Attributes:
        runs: numbers of the runs it is in, along the axis.
        speedups: against the primary baseline; empty: of the primary baseline itself.
        item_ms: time.
        outliers: whether each run is one.
        changes: numbers of the runs at which its level changes.
        static: of a static network.
        hollow: another curve of the same colour comes before it.
    """

    name: str
    tone: str
    runs: list[int]
    speedups: list[Interval]
    item_ms: list[float]
    outliers: list[bool]
    changes: list[int]
    static: bool
    hollow: bool = False


@dataclass(frozen=True)
class Trend:
    """Speed-up and time over the runs of a history; `labels` names every run on the axis by its commit."""

    baseline: str
    labels: list[str]
    curves: list[Curve]


def by_batch_size(view: View, tones: dict[str, str]) -> Speedups | Absent:
    """Speed-up against batch size, a line per strategy and per baseline that is not the primary one.

    Networks in their fastest way come first.
    """
    timed = _timed(view.cells)
    if isinstance(timed, Absent):
        return timed
    sizes = sorted({c.batch_size for c in timed})
    if len(sizes) == 1:
        return Absent(f"only batch size {sizes[0]} was timed: the table has its speed-ups")
    deployed = _deployed_lines(timed, lambda c: float(c.batch_size), tones)
    lines = deployed + _lines(timed, lambda c: float(c.batch_size), tones, taken={line.tone for line in deployed})
    ideal: dict[float, float] = {}
    for c in timed:
        if c.arm.kind == "strategy" and c.flops is not None and (found := ideal_speedup(c.flops)) is not None:
            ideal.setdefault(float(c.batch_size), found)
    return Speedups("batch size", _baseline(timed), lines, sorted(ideal.items()), {})


def by_keep_rate(sweep: View, tones: dict[str, str], learned: float | None) -> Speedups | Absent:
    """Speed-up against the keep-rate of made-up decisions, with the break-even of each strategy."""
    timed = _timed(sweep.cells)
    if isinstance(timed, Absent):
        return timed
    timed = [c for c in timed if c.arm.kind == "strategy" and c.decisions.keep_rate is not None]
    rates = sorted({_rate(c) for c in timed})
    if len(rates) < 2:
        return Absent("fewer than two keep-rates were timed")
    deployed = _deployed_lines(timed, _rate, tones)
    lines = deployed + _lines(timed, _rate, tones, taken={line.tone for line in deployed})
    ideal: dict[float, float] = {}
    for c in timed:
        if c.flops is not None and (found := ideal_speedup(c.flops)) is not None:
            ideal.setdefault(_rate(c), found)
    deciding = {c.arm.title for c in timed if not c.static_twin} | {line.name for line in deployed}
    crossings = {line.name: break_even_keep_rate(line.x, line.y) for line in lines if line.name in deciding}
    known = {name: rate for name, rate in crossings.items() if rate is not None}
    return Speedups("keep-rate", _baseline(timed), lines, sorted(ideal.items()), known, learned)


def tradeoff(view: View, batch_size: int, tones: dict[str, str]) -> Tradeoff | Absent:
    """Accuracy against time of every arm of a batch size that gives its network's own answer."""
    found = view.info.accuracies
    metric = next((a for a in found.values() if not isinstance(a.value, Unavailable)), None)
    of_metric = {name: a for name, a in found.items() if metric is not None and a.metric == metric.metric}
    known = {name: a.value for name, a in of_metric.items() if not isinstance(a.value, Unavailable)}
    if metric is None or len(known) < 2:
        return Absent("accuracy is known of fewer than two networks")
    if not any(c.decisions.source == "learned" for c in view.cells):
        return Absent("accuracy belongs to learned decisions, and these are others")
    percents = metric.in_percent
    unit = "%" if percents else metric.unit
    points: list[Point] = []
    arms = [c for c in view.at(batch_size) if c.arm.kind != "control" and not c.static_twin and c.latency is not None]
    for cell in sorted(arms, key=lambda c: 0.0 if c.latency is None else c.latency.item_ms):
        network = cell.arm.baseline or "dynamic"
        if network in known and cell.latency is not None:
            shown = known[network] * (100 if percents else 1)
            best = [p.accuracy for p in points]
            better = not best or (shown > max(best) if metric.higher_is_better else shown < min(best))
            name = "dynamic network" if network == "dynamic" else network
            tone, ms = _tone(cell, tones), cell.latency.item_ms
            points.append(Point(name, cell.arm.title, tone, ms, shown, cell.deployed, better))
    if len({p.network for p in points}) < 2:
        return Absent(f"fewer than two networks of known accuracy were timed at batch {batch_size}")
    return Tradeoff(batch_size, f"{metric.metric}, {unit}" if unit else metric.metric, metric.higher_is_better, points)


def work(view: View, tones: dict[str, str]) -> Work | Absent:
    """Dense, required, executed and accounted FLOPs at the largest batch size that was counted."""
    counted = [c for c in view.cells if c.status == "ok" and c.arm.kind == "strategy" and c.flops is not None]
    if not counted:
        return Absent(f"no FLOPs were counted{_why(view.cells)}")
    largest = max(c.batch_size for c in counted)
    counted = [c for c in counted if c.batch_size == largest]
    example = next((c for c in counted if not c.static_twin and is_written(c)), counted[0])
    primary = primary_baseline(view.at(largest), example.arm.engine)
    flops = example.flops
    assert flops is not None
    amounts: list[tuple[str, Measured, str, bool]] = [
        (f"dense: {primary.arm.name}" if primary else "dense", flops.dense, INK, True),
        ("required: bodies", flops.required_region, INK, False),
        ("required: with gates", flops.required_total, INK, False),
        *((f"executed: {_short_title(c)}", c.flops.executed, _tone(c, tones), True) for c in counted if c.flops),
        ("accounted in the paper", flops.accounted, MUTED, False),
    ]
    bars = [Bar(label, a, tone, ran) for label, a, tone, ran in amounts if not isinstance(a, Unavailable)]
    lacking = [f"{label}: n/a ({a.unavailable})" for label, a, _, _ in amounts if isinstance(a, Unavailable)]
    if not bars:
        return Absent("; ".join(lacking))
    dense = None if isinstance(flops.dense, Unavailable) else flops.dense
    return Work(largest, bars, dense, lacking, flops.accounted_rule)


def latency_by_path(view: View, run: Run, tones: dict[str, str]) -> Paths | Absent:
    """Times at batch 1 by how deep each input went."""
    if 1 not in view.batch_sizes:
        return Absent("batch 1 was not measured, and a larger batch mixes the paths of its items")
    cells = [c for c in view.at(1) if c.arm.kind == "strategy" and c.batch_paths and c.path_label]
    if not cells:
        return Absent("the paths of the inputs were not recorded")
    first = cells[0]
    assert first.path_label is not None
    try:
        samples = run.samples(first.group_id)
    except UserError as e:
        return Absent(str(e))
    if samples.empty:
        return Absent("no single times are stored for batch 1")
    depths, batch_ids = np.array(first.batch_paths), samples["batch_id"].to_numpy()
    if batch_ids.max() >= len(depths):
        return Absent(f"paths are stored for {len(depths)} inputs, times for {batch_ids.max() + 1}")
    if len(np.unique(depths)) == 1:
        return Absent(f"every input took a path of the same length ({depths[0]:g} {first.path_label})")
    path_of, labels = _bins(depths)
    times, path = samples["duration_ns"].to_numpy() / 1e6, path_of[batch_ids]  # [samples] ms, number of the path
    found: list[Distribution] = []
    for cell in cells:
        mine = _samples_of(cell, samples)
        by_path = [times[mine & (path == p)] for p in range(len(labels))]
        if all(len(t) for t in by_path):
            tone = _tone(cell, tones)
            again = any(other.tone == tone for other in found)
            found.append(Distribution(_short_title(cell), tone, [_quantiles(t) for t in by_path], again))
    if not found:
        return Absent("no strategy was timed on every path")
    written = next((c for c in cells if is_written(c)), first)
    bases = (primary_baseline(view.at(1), written.arm.engine), deployed_primary(view.at(1)))
    static = [
        (_short_title(c), _quantiles(times[mine]))
        for c in {c.cell_id: c for c in bases if c is not None}.values()
        if (mine := _samples_of(c, samples)).any()
    ]
    items = np.bincount(path_of, minlength=len(labels))
    return Paths(first.path_label, labels, items.tolist(), min(c.rounds for c in cells), found, static)


def _short_title(cell: Cell) -> str:
    """What an arm is called in a figure that has only one deployed arm of its network."""
    deployed = cell.deployed and not is_written(cell)
    return f"{cell.arm.strategy or cell.arm.name}, deployed" if deployed else cell.arm.title


def _samples_of(cell: Cell, samples: pd.DataFrame) -> np.ndarray:
    """Which of a group's samples are of a cell: [samples] bool."""
    return (samples["arm"] == cell.arm.key).to_numpy(bool)


def _tone(cell: Cell, tones: dict[str, str]) -> str:
    return MUTED if cell.arm.strategy is None else tones[cell.arm.strategy]


def _timed(cells: Sequence[Cell]) -> list[Cell] | Absent:
    """Strategies and secondary baselines with a speed-up against the primary one."""
    found = [c for c in cells if c.status == "ok" and c.arm.kind != "control" and best_speedup(c) is not None]
    if any(c.arm.kind == "strategy" for c in found):
        return found
    return Absent(f"no speed-up was measured{_why(cells)}")


def _why(cells: Sequence[Cell]) -> str:
    reasons = list(
        dict.fromkeys(f"{c.arm.title} {c.status}: {c.reason}" for c in cells if c.status != "ok" and c.reason)
    )
    if not reasons:
        return "" if cells else ": no cell of it is in this run"
    more = f", and {len(reasons) - 2} more" if len(reasons) > 2 else ""
    return f" ({'; '.join(reasons[:2])}{more})"


def _baseline(timed: Sequence[Cell]) -> str:
    return next(s.baseline for c in timed if (s := best_speedup(c)) is not None)


def _rate(cell: Cell) -> float:
    assert cell.decisions.keep_rate is not None
    return cell.decisions.keep_rate


def _lines(
    timed: Sequence[Cell], x: Callable[[Cell], float], tones: dict[str, str], taken: Iterable[str] = ()
) -> list[Line]:
    """A line per arm as written; `taken`: colours of lines that come before these."""
    by_arm: dict[str, list[Cell]] = {}
    for cell in timed:
        if primary_speedup(cell) is not None:
            by_arm.setdefault(cell.arm.key, []).append(cell)
    lines: list[Line] = []
    used = set(taken)
    for mine in by_arm.values():
        points = sorted(((x(c), s) for c in mine if (s := primary_speedup(c)) is not None), key=lambda point: point[0])
        tone, static = _tone(mine[0], tones), mine[0].arm.kind == "baseline"
        lines.append(_line(mine[0].arm.title, tone, points, static=static, hollow=not static and tone in used))
        used.add(tone)
    return lines


def _deployed_lines(timed: Sequence[Cell], x: Callable[[Cell], float], tones: dict[str, str]) -> list[Line]:
    """A line per network in its fastest way, whichever that is at each x."""
    networks: dict[str | None, list[tuple[Cell, Speedup]]] = {}
    for cell in timed:
        if (found := deployed_speedup(cell)) is not None:
            networks.setdefault(cell.arm.baseline, []).append((cell, found))
    lines = []
    for baseline, mine in networks.items():
        ordered = sorted(mine, key=lambda pair: x(pair[0]))
        strategies = list(dict.fromkeys(c.arm.strategy for c, _ in ordered))
        name = baseline or (strategies[0] if len(strategies) == 1 else "dynamic network")
        points = [(x(c), s) for c, s in ordered]
        tone = _tone(ordered[-1][0], tones)
        lines.append(_line(f"{name}, deployed", tone, points, static=baseline is not None, deployed=True))
    return lines


def _line(name: str, tone: str, points: Sequence[tuple[float, Speedup]], **how: bool) -> Line:
    found = [s for _, s in points]
    x, y = [at for at, _ in points], [s.value for s in found]
    return Line(name, tone, x, y, [s.low for s in found], [s.high for s in found], **how)


def _bins(depths: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The number of each input's path, and the labels of the paths, shortest first."""
    distinct = np.unique(depths)
    if len(distinct) <= MOST_PATHS:
        return np.searchsorted(distinct, depths), [f"{d:g}" for d in distinct]
    inner = np.unique(np.quantile(depths, np.linspace(0, 1, MOST_PATHS + 1)[1:-1], method="inverted_cdf"))
    path_of = np.unique(np.searchsorted(inner, depths, side="left"), return_inverse=True)[1]
    ends = [(depths[path_of == p].min(), depths[path_of == p].max()) for p in range(path_of.max() + 1)]
    return path_of, [f"{a:g}" if a == b else f"{a:g}–{b:g}" for a, b in ends]


def _quantiles(times: np.ndarray) -> list[float]:
    return [float(q) for q in np.quantile(times, QUANTILES, method="inverted_cdf")]
