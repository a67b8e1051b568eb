"""Where the saving went: from the ideal to the measured speed-up, factor by factor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dynbench.analysis.formatting import percent, times
from dynbench.analysis.phases import phase_shares
from dynbench.analysis.waterfall import IN_WORDS
from dynbench.store.quantities import ideal_of
from dynbench.store.schema import Cell, Factor, Flops, Speedup, Waterfall
from dynbench.unavailable import Unavailable

REACHED = 0.95  # efficiency from which there is no gap to explain
WORTH_SAYING = 1.02  # a loss below 2 % is within the precision of the measurement


@dataclass(frozen=True)
class Gap:
    """`ideal = speedup x product of losses`, exactly: what counters and profile do not explain is `utilisation`.

    Attributes:
        baseline: the primary one, that the speed-up and the rates refer to; of a deployed cell the deployed one.
        ideal: dense FLOPs / required region FLOPs.
        speedup: measured.
        efficiency: speedup / ideal.
        shares: of the profiled pass, by phase; they add up to 1. Empty where nothing was profiled. `other` is the time
            outside any phase: the fixed parts of the model, and the host.
        losses: factors, above 1 where something is lost, as far as they are known:
            'surplus' (FLOPs executed that no decision asked for), 'decisions' (gates and heads), 'movement' (gather and
            scatter), 'waiting' (for decisions on the host), 'utilisation' (the rest: fewer items per call, launches,
            and the error of the profile, which itself takes time).
        by_controls: the same factors as controls give them, in the place of counters and profile; None: there are no
            controls.
        causes: the losses worth saying, largest first, each in words: by controls where there are some. Empty where
            the ideal is reached.
    """

    baseline: str | None
    ideal: float | None
    speedup: float | None
    efficiency: float | None
    shares: dict[str, float]
    losses: dict[str, float]
    by_controls: Waterfall | None
    causes: list[str]


def gap(cell: Cell) -> Gap:
    """Explains one cell; what was not measured stays None or is left out."""
    against = best_speedup(cell)
    speedup = None if against is None else against.value
    ideal = cell.ideal if cell.flops is None else ideal_speedup(cell.flops)
    efficiency = None if speedup is None or ideal is None else speedup / ideal
    shares = {} if cell.phases is None else phase_shares(cell.phases)
    losses = _surplus(cell.flops) | _overheads(shares)
    if speedup is not None and ideal is not None:
        losses["utilisation"] = ideal / speedup / math.prod(losses.values())
    controls = waterfall_of(cell)
    causes: list[str] = []
    if controls is not None and controls.speedup / controls.ideal < REACHED:
        told = [f for f in controls.factors if f.low > 1 and f.value >= WORTH_SAYING]
        causes = [_by_control(f, cell, losses, against) for f in sorted(told, key=lambda f: -f.value)]
    elif controls is None and (efficiency is None or efficiency < REACHED):
        worth = [name for name, loss in losses.items() if loss >= WORTH_SAYING]
        causes = [_in_words(n, cell, shares, losses, against) for n in sorted(worth, key=lambda n: -losses[n])]
    return Gap(
        baseline=None if against is None else against.baseline,
        ideal=ideal,
        speedup=speedup,
        efficiency=efficiency,
        shares=shares,
        losses=losses,
        by_controls=controls,
        causes=causes,
    )


def primary_speedup(cell: Cell) -> Speedup | None:
    """The speed-up against the primary baseline, both as written; None where it was not measured."""
    return next((s for s in cell.speedups if s.primary), None)


def deployed_speedup(cell: Cell) -> Speedup | None:
    """The speed-up against the primary baseline, both in their fastest way; None where it was not measured."""
    return next((s for s in cell.deployed_speedups if s.primary), None)


def best_speedup(cell: Cell) -> Speedup | None:
    """What a cell is judged by: the deployed speed-up, or that as written; None where neither was measured."""
    return deployed_speedup(cell) or primary_speedup(cell)


def waterfall_of(cell: Cell) -> Waterfall | None:
    """Where the saving of a cell went, by controls, from what it is judged by; None: there are no controls of it."""
    return cell.waterfall if deployed_speedup(cell) is None else cell.deployed_waterfall


def is_written(cell: Cell) -> bool:
    """Whether a cell is a network as it is written; the deployed ones in another way are not."""
    plain = cell.arm.control == "host" and cell.arm.engine == "eager" and cell.arm.form == "plain"
    return not cell.deployed or bool(cell.speedups) or plain


def ideal_speedup(flops: Flops) -> float | None:
    """Dense FLOPs / required region FLOPs; None where it is unavailable."""
    found = ideal_of(flops)
    return None if isinstance(found, Unavailable) else found


def break_even_keep_rate(keep_rates: Sequence[float], speedups: Sequence[float]) -> float | None:
    """The keep-rate up to which a strategy is at least as fast as the baseline, at every rate measured below it.

    Time is linear in the keep-rate where each kept item costs the same, so 1 / speed-up is interpolated.

    Args:
        keep_rates: of a synthetic sweep, in any order.
        speedups: against the primary baseline, at these rates.

    Returns:
        The first crossing from below; None where there is none: faster at every rate, or slower at the lowest.

    Raises:
        ValueError: the two differ in length.
    """
    points = sorted((r, 1 / s) for r, s in zip(keep_rates, speedups, strict=True))
    if not points or points[0][1] > 1:
        return None
    for (r0, t0), (r1, t1) in zip(points, points[1:], strict=False):
        if t1 > 1:
            return r0 + (r1 - r0) * (1 - t0) / (t1 - t0)
    return points[-1][0] if points[-1][1] == 1 else None


def _surplus(flops: Flops | None) -> dict[str, float]:
    """Executed over required, gates and heads left out on both sides."""
    if flops is None:
        return {}
    region, total, executed = flops.required_region, flops.required_total, flops.executed
    if not (isinstance(region, float) and isinstance(total, float) and isinstance(executed, float)):
        return {}
    bodies = executed - (total - region)
    return {"surplus": bodies / region} if region > 0 and bodies > 0 else {}


def _overheads(shares: dict[str, float]) -> dict[str, float]:
    """All time / time that computes (body, other), split into factors in proportion to the time each overhead takes."""
    times = _overhead_shares(shares)
    overhead = sum(times.values())
    if not shares or overhead >= 1:
        return {}
    return {name: (1 - overhead) ** (-t / overhead) if overhead else 1.0 for name, t in times.items()}


def _overhead_shares(shares: dict[str, float]) -> dict[str, float]:
    return {
        "decisions": shares.get("decide", 0.0) + shares.get("head", 0.0),
        "movement": shares.get("gather", 0.0) + shares.get("scatter", 0.0),
        "waiting": shares.get("sync", 0.0),
    }


def _by_control(found: Factor, cell: Cell, losses: dict[str, float], against: Speedup | None) -> str:
    if found.name == "surplus" and "surplus" in losses:
        return _in_words("surplus", cell, {}, losses, against)
    if found.share is not None:
        return f"{IN_WORDS[found.name]} takes {percent(found.share)} of the time"
    if found.name == "fewer_items":
        return f"called with fewer items than a batch has, its parts take {times(found.value)} the time per FLOP"
    return (
        f"{found.how}: {times(found.value)}"
        if found.name == "rest"
        else f"{IN_WORDS[found.name]}: {times(found.value)}"
    )


def _in_words(
    name: str, cell: Cell, shares: dict[str, float], losses: dict[str, float], against: Speedup | None
) -> str:
    if name == "surplus":
        assert cell.flops is not None
        dense, executed = cell.flops.dense, cell.flops.executed
        if isinstance(dense, float) and isinstance(executed, float) and 0 < 0.99 * dense <= executed:
            ratio = executed / dense
            equal = "equal dense" if ratio < WORTH_SAYING else f"are {ratio:.2f}x dense"
            return f"executed FLOPs {equal}: {cell.arm.name} computes everything"
        return f"{cell.arm.name} executes {losses[name]:.2f}x the FLOPs that the decisions ask for"
    if name == "utilisation":
        assert against is not None
        return f"what it computes runs at {100 / losses[name]:.0f} % of the speed per FLOP of {against.baseline}"
    share = 100 * _overhead_shares(shares)[name]
    return {
        "decisions": f"gates and heads take {share:.0f} % of the time",
        "movement": f"gather and scatter take {share:.0f} % of the time",
        "waiting": f"waiting for decisions takes {share:.0f} % of the time",
    }[name]
