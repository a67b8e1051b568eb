"""Waterfalls of the arms of a group, from its rounds: which arms are controls of which, and what they executed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from dynbench.analysis.waterfall import Arms, Timed, disagreements, waterfall
from dynbench.store.schema import Arm, Cell, Energy, Warning_, Waterfall
from dynbench.unavailable import Measured

FEWEST_PARTS = 2  # of a window of the energy counter, of which ratios have an interval
SAME_WORK = 1e-3  # FLOPs are counted exactly; a graph may have folded a few


class Ran(Protocol):
    """An arm that was timed; see `experiment.arms.RunningArm`."""

    cell: Cell
    failed: str | None

    @property
    def arm(self) -> Arm:
        """Its identity."""

    def totals_ns(self) -> np.ndarray:
        """[rounds] times of the whole stream."""


class Did(Protocol):
    """What an arm executed; see `experiment.diagnose.Work`."""

    executed: Measured
    required_region: Measured
    required_total: Measured
    columns: dict[str, Any]


def explained(
    arm: Ran, base: Ran | None, arms: Sequence[Ran], work: Mapping[str, Did], resolution: float | None
) -> tuple[Waterfall | None, list[Warning_]]:
    """Where the saving of an arm went, by its controls; None where there are none, or FLOPs are unknown.

    Args:
        arm: of a strategy.
        base: the primary baseline that it is compared with.
        arms: all of its group.
        work: by the key of an arm.
        resolution: of the comparison.

    Returns:
        The waterfall; and a warning where a profile says otherwise.
    """

    def timed(found: Ran) -> Timed | None:
        totals = found.totals_ns()
        return Timed(totals, _executed(work[found.arm.key])) if len(totals) else None

    given = _arms(arm, base, arms, work, timed)
    found = None if given is None else waterfall(_as_many(given), work[arm.arm.key].columns.get("phases"))
    return found, [] if found is None else disagreements(found, resolution)


def explained_energy(arm: Ran, base: Ran | None, arms: Sequence[Ran], work: Mapping[str, Did]) -> Waterfall | None:
    """The same of joules; None also where there is no counter, or its window holds no two parts.

    The windows of arms follow one another and are not interleaved as rounds are: what changes between them is in the
    factors, and in their intervals only as far as it changes within a window.

    Args:
        arm: of a strategy.
        base: the primary baseline that it is compared with.
        arms: all of its group.
        work: by the key of an arm; its `columns` have the energy.
    """

    def metered(found: Ran) -> Timed | None:
        joules = _parts_j(work[found.arm.key])
        return Timed(np.array(joules), _executed(work[found.arm.key])) if len(joules) >= FEWEST_PARTS else None

    given = _arms(arm, base, arms, work, metered)
    return None if given is None else waterfall(replace(_as_many(given), of="energy"))


def _as_many(arms: Arms) -> Arms:
    """With as many rounds, or parts of a window, of each as there are of all: an arm that takes long has fewer."""
    others = [t for t in (arms.twin, arms.here) if t is not None]
    every = [arms.baseline, arms.dynamic, *arms.without.values(), *others]
    some = min(len(t.totals) for t in every)
    cut = {id(t): replace(t, totals=t.totals[:some]) for t in every}
    return replace(
        arms,
        baseline=cut[id(arms.baseline)],
        dynamic=cut[id(arms.dynamic)],
        without={part: cut[id(t)] for part, t in arms.without.items()},
        twin=None if arms.twin is None else cut[id(arms.twin)],
        here=None if arms.here is None else cut[id(arms.here)],
    )


def _arms(
    arm: Ran, base: Ran | None, arms: Sequence[Ran], work: Mapping[str, Did], taken: Callable[[Ran], Timed | None]
) -> Arms | None:
    """The arms of a waterfall of what `taken` gives; None: one that it cannot do without is not there."""
    mine = work.get(arm.arm.key)
    if base is None or arm.arm.kind != "strategy" or mine is None:
        return None
    region, total = mine.required_region, mine.required_total
    if not isinstance(region, float):
        return None
    measured = {
        a.arm: found for a in arms if a.failed is None and a.arm.key in work and (found := taken(a)) is not None
    }
    if base.arm not in measured or arm.arm not in measured:
        return None
    controls = [a for a in arms if a.arm in measured and is_control(a.arm, arm.arm)]
    fair = [a.arm for a in controls if not leaves_out_bodies(work[a.arm.key].executed, region)]
    twin = (
        None if base.cell.static_twin else next((a for a in arms if a.arm in measured and _is_twin(a, arm.arm)), None)
    )
    here = None
    if base.arm.engine != arm.arm.engine:
        same = [a for a in arms if a.arm in measured and a.arm.baseline == base.arm.baseline and not a.arm.again]
        same = sorted((a for a in same if a.arm.engine == arm.arm.engine), key=lambda a: a.arm.kind != "control")
        here = next((measured[a.arm] for a in same), None)
    surplus = None
    if isinstance(mine.executed, float) and isinstance(total, float) and region > 0:
        surplus = (mine.executed - (total - region)) / region
    return Arms(
        name=base.arm.name,
        baseline=measured[base.arm],
        dynamic=measured[arm.arm],
        without={control.without: measured[control] for control in fair if control.without is not None},
        twin=None if twin is None else measured[twin.arm],
        here=here,
        required=region,
        waits=arm.arm.control == "host" and arm.arm.strategy != "masking",
        surplus=surplus if surplus is None or surplus > 0 else None,
    )


def _executed(did: Did) -> float | None:
    return did.executed if isinstance(did.executed, float) else None


def _parts_j(did: Did) -> list[float]:
    """Joules per item in parts of an arm's window; none without a counter."""
    energy = did.columns.get("energy")
    return energy.parts_j if isinstance(energy, Energy) else []


def leaves_out_bodies(executed: Measured, required: Measured) -> bool:
    """Whether an arm executes less than the decisions ask for; then it differs in more than one respect.

    So does a graph in which decisions are known: what only a gate looked at is no longer computed.
    """
    if not isinstance(executed, float) or not isinstance(required, float):
        return False
    return executed < (1 - SAME_WORK) * required


def is_control(control: Arm, arm: Arm) -> bool:
    """Whether a control differs from an arm in what is left out, and in nothing else that makes a difference."""
    same = {"kind": arm.kind, "without": None, "live": arm.live}
    return control.model_copy(update=same) == arm


def _is_twin(ran: Ran, arm: Arm) -> bool:
    """Whether an arm is the model without its decisions, run in the way of another."""
    return ran.cell.static_twin and ran.arm.kind == "strategy" and ran.arm.way == arm.way
