"""What to deploy: of the networks and the ways of running them that were measured, and of predicted ones, marked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from dynbench.analysis.cost_model import Model
from dynbench.analysis.formatting import interval, significant, times, way_in_words
from dynbench.errors import UserError
from dynbench.store.schema import Arm, Cell, Interval, WorkloadInfo
from dynbench.unavailable import Unavailable


@dataclass(frozen=True)
class Wish:
    """What is asked for.

    Attributes:
        slo_ms: a batch must be answered within it, nine of ten times where that is known, else the median.
        batch_size: in items.
        accuracy: at least; of a metric for which lower is better, at most.
    """

    slo_ms: float | None = None
    batch_size: int | None = None
    accuracy: float | None = None


@dataclass(frozen=True)
class Candidate:
    """A network, run in some way at some batch size.

    Attributes:
        arm: what runs.
        batch_size: in items.
        item_ms: per item.
        batch_ms: of a batch: p90 where it is known, else the median; of a predicted one the mean.
        accuracy: of its network; None: unknown.
        memory_bytes: at its peak; None: unknown.
        cell: as measured; None: it is predicted.
        predicted: it was not measured.
        static: nothing is decided in it.
        why_not: what it misses; empty where it meets it.
    """

    arm: Arm
    batch_size: int
    item_ms: float
    batch_ms: float
    accuracy: float | None
    memory_bytes: float | None
    cell: Cell | None = None
    predicted: bool = False
    static: bool = False
    why_not: str = ""

    @property
    def meets(self) -> bool:
        """Whether it is what was asked for."""
        return not self.why_not

    @property
    def name(self) -> str:
        """'compaction in eager PyTorch, batch 32'."""
        return f"{self.arm.name} {way_in_words(self.arm)}, batch {self.batch_size}"


@dataclass(frozen=True)
class Advice:
    """What to deploy.

    Attributes:
        candidates: what meets the wish first, and of these the fastest per item first.
        metric: of accuracy; None: unknown.
        ratio: time of the runner-up over that of the first, in the same rounds; None: they share none.
        sentence: all of it.
    """

    candidates: list[Candidate]
    metric: str | None
    ratio: Interval | None
    sentence: str


Paired = Callable[[Cell, Cell], Interval | None]


def advise(info: WorkloadInfo, cells: Sequence[Cell], wish: Wish, paired: Paired, model: Model | None = None) -> Advice:
    """Chooses among what was measured of a workload, and what is predicted.

    Args:
        info: the workload.
        cells: of the run; those of other workloads are left out.
        wish: what is asked for.
        paired: time of the second cell over that of the first, from the rounds that they share.
        model: of the workload; None: nothing is predicted.

    Raises:
        UserError: nothing was measured at this batch size, or nothing meets the wish.
    """
    found = [*_measured(info, cells), *([] if model is None else _predicted(info, cells, model))]
    if not found:
        raise UserError(f"no cell of {info.name} was measured that could be deployed; `dynbench run {info.name}`")
    sizes = sorted({c.batch_size for c in found})
    if wish.batch_size is not None:
        found = [c for c in found if c.batch_size == wish.batch_size]
        if not found:
            raise UserError(
                f"--batch {wish.batch_size}: measured were {', '.join(map(str, sizes))}; "
                f"`dynbench run {info.name} --batch {wish.batch_size}` measures it"
            )
    judged = [replace(c, why_not=_why_not(info, c, wish)) for c in found]
    ranked = sorted(judged, key=lambda c: (not c.meets, c.item_ms))
    accuracy = info.accuracies.get("dynamic")
    if not ranked[0].meets:
        nearest = min(ranked, key=lambda c: (c.why_not.count(";"), c.item_ms))
        raise UserError(
            f"nothing measured of {info.name} is what was asked for; nearest: {nearest.name}: {nearest.why_not}"
        )
    best, *others = ranked
    runner_up = next((c for c in others if c.meets and (c.arm, c.batch_size) != (best.arm, best.batch_size)), None)
    ratio = None
    if runner_up is not None and best.cell is not None and runner_up.cell is not None:
        ratio = paired(best.cell, runner_up.cell)
    metric = None if accuracy is None else accuracy.metric
    return Advice(ranked, metric, ratio, _sentence(info, best, runner_up, ratio, metric))


def _measured(info: WorkloadInfo, cells: Sequence[Cell]) -> list[Candidate]:
    found = []
    for c in cells:
        if c.workload != info.name or c.status != "ok" or c.latency is None or c.decisions.sweep:
            continue
        if c.arm.kind == "control" or c.arm.again or c.static_twin and c.arm.baseline is None:
            continue
        if c.arm.live and c.arm.control == "host":
            continue
        p90 = c.latency.batch_p90_ms
        memory = None if c.memory is None else c.memory.peak_bytes
        found.append(
            Candidate(
                arm=c.arm,
                batch_size=c.batch_size,
                item_ms=c.latency.item_ms,
                batch_ms=c.latency.batch_p50_ms if isinstance(p90, Unavailable) else p90,
                accuracy=_accuracy(info, c.arm, c.decisions.source),
                memory_bytes=None if isinstance(memory, Unavailable) else memory,
                cell=c,
                static=c.arm.kind == "baseline",
            )
        )
    return found


def _predicted(info: WorkloadInfo, cells: Sequence[Cell], model: Model) -> list[Candidate]:
    """Strategies in engines that were measured elsewhere, at batch sizes at which they were not."""
    done = {(c.arm.strategy, c.arm.engine, c.arm.control, c.batch_size) for c in cells if c.workload == info.name}
    twins = {c.arm.strategy for c in cells if c.static_twin}
    ways = {(c.arm.engine, c.arm.control): c.arm for c in cells if c.workload == info.name and c.arm.kind == "strategy"}
    found = []
    for usage in model.scaling.usages:
        if usage.arm.kind != "strategy" or usage.made_up or usage.arm.strategy in twins:
            continue
        for family, way in ways.items():
            key = (usage.arm.strategy, *family, usage.batch_size)
            arm = usage.arm.model_copy(update={"engine": way.engine, "control": way.control, "form": way.form})
            if key in done or family not in model.factors or way.control == "graph":
                continue
            if (prediction := model.predict(arm, usage)) is None:
                continue
            found.append(
                Candidate(
                    arm=arm,
                    batch_size=usage.batch_size,
                    item_ms=prediction.item_ms,
                    batch_ms=prediction.item_ms * usage.batch_size,
                    accuracy=_accuracy(info, arm, usage.label),
                    memory_bytes=None,
                    predicted=True,
                )
            )
    return found


def _accuracy(info: WorkloadInfo, arm: Arm, source: str) -> float | None:
    if arm.baseline is None and source != "learned":
        return None
    known = info.accuracies.get(arm.baseline or "dynamic")
    return None if known is None or isinstance(known.value, Unavailable) else known.value


def _why_not(info: WorkloadInfo, c: Candidate, wish: Wish) -> str:
    """What a candidate misses."""
    said = []
    if wish.slo_ms is not None and c.batch_ms > wish.slo_ms:
        said.append(f"a batch takes {significant(c.batch_ms)} ms, asked for are {wish.slo_ms:g}")
    known = info.accuracies.get(c.arm.baseline or "dynamic")
    better = 1 if known is None or known.higher_is_better else -1
    floor = wish.accuracy
    if floor is None and c.static:  # a static network must be as good as the dynamic one that it would replace
        ours = info.accuracies.get("dynamic")
        floor = None if ours is None or isinstance(ours.value, Unavailable) else ours.value
    if floor is not None and c.accuracy is None:
        said.append("its accuracy is unknown")
    elif floor is not None and c.accuracy is not None and better * c.accuracy < better * floor:
        said.append(f"its accuracy is {c.accuracy:.4g}, asked for is {floor:.4g}")
    return "; ".join(said)


def _sentence(
    info: WorkloadInfo, best: Candidate, runner_up: Candidate | None, ratio: Interval | None, metric: str | None
) -> str:
    what = "the static network" if best.static else "the dynamic network with"
    cost = f"{significant(best.item_ms)} ms per item{' (predicted)' if best.predicted else ''}"
    if best.accuracy is not None:
        cost += f", {metric or 'accuracy'} {best.accuracy:.4g}"
    if best.memory_bytes is not None:
        cost += f", {significant(best.memory_bytes / 1e6)} MB at its peak"
    said = f"For {info.title}, deploy {what} {best.name}: {cost}"
    if runner_up is None:
        return f"{said}; nothing else meets what was asked for."
    if ratio is not None:
        return f"{said}; next is {runner_up.name}, {times(ratio.value)} its time (95 % CI {interval(ratio)})."
    rough = times(runner_up.item_ms / best.item_ms)
    doubt = "predicted" if best.predicted or runner_up.predicted else "not measured in the same rounds"
    return f"{said}; next is {runner_up.name}, {rough} its time per item ({doubt})."
