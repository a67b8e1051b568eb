"""From the ideal to the measured speed-up by controls: each factor is a ratio of two arms of the same rounds.

With the times of the primary baseline B, of the static twin T, of the dynamic arm S, and of its controls (S without
everything: E; without deciding and waiting: D; without waiting: W), and with FLOPs F and the required ones R:

    ideal / speedup = (F(B) / R) * (S / B)

                      F(E)   E / F(E)   D   W   S   T / F(T)
                    = ---- * -------- * - * - * - * --------
                       R     T / F(T)   E   D   W   B / F(B)

which are surplus work, fewer items per call, moving, deciding, waiting, and a rest: another network's speed per FLOP.
Where B runs in another engine than S, a further control is B in the engine of S; it takes the place of B, and its time
over that of B is a factor of its own. A control that is missing leaves its factor to the next one, or to the rest.
Values are medians of paired rounds; their product would miss the whole by the little by which a median of products
differs from a product of medians, and the rest takes that in, so that the product is exact.

The same holds for joules in the place of times; the rounds are then parts of each arm's window of the counter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dynbench.analysis.formatting import digits_of, interval, times
from dynbench.analysis.phases import phase_shares
from dynbench.analysis.statistics import median_interval, ratio_of_totals
from dynbench.store.schema import Factor, Phases, Warning_, Waterfall

Part = Literal["everything", "deciding", "waiting", "moving"]
Ratios = NDArray[np.float64]

NEAR = 0.05  # of the time: by so much a profile may differ from controls without a word, as profiling itself takes time
PHASES = {"moving": ("gather", "scatter"), "deciding": ("decide", "head"), "waiting": ("sync",)}
IN_WORDS = {
    "surplus": "surplus work",
    "fewer_items": "fewer items per call",
    "moving": "moving items",
    "deciding": "deciding",
    "waiting": "waiting and launching",
    "engine": "another engine",
    "rest": "the rest",
}
"""Names of factors, for people."""


@dataclass(frozen=True)
class Timed:
    """One arm: [rounds] what the whole stream takes, in ns or in J, and the FLOPs per item that it executed.

    FLOPs of None are unknown.
    """

    totals: NDArray[np.int64] | NDArray[np.float64]
    flops: float | None = None


@dataclass(frozen=True)
class Arms:
    """The arms of one waterfall, of the same rounds.

    Attributes:
        name: of the primary baseline.
        baseline: the primary one, with its FLOPs.
        dynamic: the arm that is explained.
        without: its controls, by what is left out.
        twin: the model without its decisions, in the same engine; None: not measured, or it is the baseline itself.
        here: the baseline in the engine of the dynamic arm; None: not measured, or it runs there anyway.
        required: FLOPs per item that the decisions ask for, gates and heads left out.
        waits: the host waits for decisions of the dynamic arm: what no control takes apart is deciding and waiting.
        surplus: executed over required FLOPs of the dynamic arm, where no control without everything tells them.
        of: what is explained: 'time' or 'energy'.
    """

    name: str
    baseline: Timed
    dynamic: Timed
    without: Mapping[Part, Timed]
    twin: Timed | None
    required: float
    here: Timed | None = None
    waits: bool = True
    surplus: float | None = None
    of: Literal["time", "energy"] = "time"


def waterfall(arms: Arms, phases: Phases | None = None) -> Waterfall | None:
    """Explains `ideal / speedup`, factor by factor; None where no control was measured or FLOPs are unknown.

    Args:
        arms: as they were measured.
        phases: the profiled pass of the dynamic arm, to be set beside.

    Raises:
        ValueError: arms of different numbers of rounds, or a time that is not positive.
    """
    dense = arms.baseline.flops
    if not arms.without or not dense or arms.required <= 0:
        return None
    ideal = dense / arms.required
    speedups = ratio_of_totals(arms.baseline.totals, arms.dynamic.totals)
    speedup = median_interval(speedups).value
    factors = [*_of_work(arms), *_overheads(arms, {} if phases is None else phase_shares(phases)), *_of_engine(arms)]
    left = np.full(len(speedups), ideal) / speedups
    for ratios, _ in factors:
        left = left / ratios
    known = [factor for _, factor in factors]
    value = ideal / speedup / float(np.prod([f.value for f in known]))
    spread = median_interval(left)
    how = _rest_in_words(arms, [f.name for f in known])
    rest = Factor(value=value, low=min(spread.low, value), high=max(spread.high, value), name="rest", how=how)
    return Waterfall(baseline=arms.name, ideal=ideal, speedup=speedup, factors=[*known, rest])


def _of_work(arms: Arms) -> list[tuple[Ratios, Factor]]:
    """Surplus work, and fewer items per call."""
    found = []
    rounds = len(arms.dynamic.totals)
    bare = arms.without.get("everything")
    counted = bare is not None and bool(bare.flops)
    surplus = bare.flops / arms.required if bare is not None and bare.flops else arms.surplus
    if surplus is not None:
        how = "FLOPs of " + ("the arm with everything left out" if counted else "its bodies") + " over required FLOPs"
        exact = Factor(value=surplus, low=surplus, high=surplus, name="surplus", how=how)
        found.append((np.full(rounds, surplus), exact))
    if bare is not None and bare.flops:
        static = arms.here if arms.here is not None and arms.here.flops else arms.baseline
        whole = static if arms.twin is None or not arms.twin.flops else arms.twin
        assert whole.flops
        ratios = ratio_of_totals(bare.totals, whole.totals) * (whole.flops / bare.flops)
        against = arms.name if whole is static else "the static twin"
        how = f"dense at the active count over {against}, {arms.of} per FLOP"
        found.append((ratios, Factor(**median_interval(ratios).model_dump(), name="fewer_items", how=how)))
    return found


def _overheads(arms: Arms, profile: Mapping[str, float]) -> list[tuple[Ratios, Factor]]:
    """Moving, deciding and waiting, as far as there are controls for them."""
    chain: list[tuple[str, str, Timed | None]] = [
        ("", "dense at the active count", arms.without.get("everything")),
        ("moving", "decisions known ahead", arms.without.get("deciding")),
        ("deciding", "no wait", arms.without.get("waiting")),
        ("waiting", "the arm itself", arms.dynamic),
    ]
    if not arms.waits:
        chain = [*chain[:2], ("deciding", "the arm itself", arms.dynamic)]
    found: list[tuple[Ratios, Factor]] = []
    covered: list[str] = []
    below: tuple[str, Timed] | None = None
    for name, called, arm in chain:
        covered += [name] if name else []
        if arm is None:
            continue
        if below is not None:
            of, beneath = below
            ratios = ratio_of_totals(arm.totals, beneath.totals)
            shares = (arm.totals - beneath.totals) / arms.dynamic.totals
            seen = median_interval(ratios)
            low, high = _spread(shares)
            also = f"; {' and '.join(IN_WORDS[c] for c in covered)} together" if len(covered) > 1 else ""
            if name == "moving" and (still := arms.without.get("moving")) is not None:
                alone = float(np.median(1 - still.totals / arms.dynamic.totals))
                also += f"; leaving out moving alone saves {100 * alone:.0f} % of the {arms.of}"
            by_profile = sum(profile.get(p, 0.0) for c in covered for p in PHASES[c]) if profile else None
            factor = Factor(
                **seen.model_dump(),
                name=covered[0],
                how=f"{called} over {of}{also}",
                share=float(np.median(shares)),
                share_low=low,
                share_high=high,
                profile_share=by_profile,
            )
            found.append((ratios, factor))
        below, covered = (called, arm), []
    return found


def _of_engine(arms: Arms) -> list[tuple[Ratios, Factor]]:
    """The baseline in the engine of the dynamic arm, over the same in its own."""
    if arms.here is None:
        return []
    ratios = ratio_of_totals(arms.here.totals, arms.baseline.totals)
    how = f"{arms.name} in the engine of the dynamic network over {arms.name} in its fastest one"
    return [(ratios, Factor(**median_interval(ratios).model_dump(), name="engine", how=how))]


def _spread(shares: Ratios) -> tuple[float, float]:
    """An interval for the median of shares, which may be below 0: that of ratios 1 + share, which are positive."""
    seen = median_interval(np.exp(shares))
    return float(np.log(seen.low)), float(np.log(seen.high))


def _rest_in_words(arms: Arms, known: list[str]) -> str:
    if "fewer_items" not in known:
        gone = [IN_WORDS["fewer_items"]] + ([IN_WORDS["moving"]] if "moving" not in known else [])
        return f"{' and '.join(gone)}: no control tells them apart here"
    if arms.twin is not None:
        where = "" if arms.here is None else " in the same engine"
        return f"the static twin over {arms.name}{where}, {arms.of} per FLOP"
    return "what the product of medians leaves"


def disagreements(found: Waterfall, resolution: float | None) -> list[Warning_]:
    """A warning where the profiler's phases and the controls say different things.

    Args:
        found: with shares by controls and by the profile.
        resolution: of the group; None: unknown.
    """
    near = max(NEAR, resolution or 0.0)
    said = []
    for f in found.factors:
        if f.profile_share is None or f.share is None or f.share_low is None or f.share_high is None:
            continue
        if f.share_low - near <= f.profile_share <= f.share_high + near:
            continue
        said.append(
            f"{IN_WORDS[f.name]} takes {100 * f.share:.0f} % of the time by controls ({100 * f.share_low:.0f} to "
            f"{100 * f.share_high:.0f} %), {100 * f.profile_share:.0f} % by the profile"
        )
    if not said:
        return []
    remedy = "go by the controls: they are timed as the arm itself is, and a profile takes time of its own"
    return [Warning_(id="DB-WHY-01", text="; ".join(said), remedy=remedy)]


def sentence(who: str, found: Waterfall, of: Literal["time", "energy"] = "time") -> str:
    """What an arm reached of the ideal, and where most of the rest went."""
    reached = f"Of an ideal of {times(found.ideal)}, {who} reached {times(found.speedup)} against {found.baseline}"
    reached += " in joules" if of == "energy" else ""
    if (worst := largest_loss(found)) is None:
        return f"{reached}; controls tell no loss apart from none."
    lost = f"{times(worst.value, digits_of(worst))}"
    asides = {"rest": f"the rest ({worst.how})", "engine": f"the engine ({worst.how})"}
    cause = asides.get(worst.name, IN_WORDS[worst.name])
    if worst.name != "surplus":  # that one is counted, not timed
        lost += f" (95 % CI {interval(worst)})"
    where = "by controls in the same rounds" if of == "time" else "by controls"
    return f"{reached}; {where} the largest loss is {cause}: {lost}."


def largest_loss(found: Waterfall) -> Factor | None:
    """The factor that costs most, of those whose interval lies above 1; None: none does."""
    lost = [f for f in found.factors if f.low > 1 and f.value > 1]
    return max(lost, key=lambda f: f.value, default=None)
