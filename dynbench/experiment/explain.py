"""Waterfalls of the arms of a group, from its rounds: which arms are controls of which, and what they executed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from dynbench.analysis.waterfall import Arms, Timed, disagreements, waterfall
from dynbench.store.schema import Arm, Cell, Warning_, Waterfall
from dynbench.unavailable import Measured

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
    mine = work.get(arm.arm.key)
    if base is None or base.failed is not None or arm.arm.kind != "strategy" or mine is None:
        return None, []
    region, total = mine.required_region, mine.required_total
    if not isinstance(region, float):
        return None, []

    def timed(found: Ran) -> Timed:
        executed = work[found.arm.key].executed
        return Timed(found.totals_ns(), executed if isinstance(executed, float) else None)

    rounds = len(arm.totals_ns())
    measured = [a for a in arms if a.failed is None and len(a.totals_ns()) == rounds and a.arm.key in work]
    if base not in measured:
        return None, []
    controls = [a for a in measured if _is_control(a.arm, arm.arm)]
    fair = [a for a in controls if not leaves_out_bodies(work[a.arm.key].executed, region)]
    without = {part: timed(a) for a in fair if (part := a.arm.without) is not None}
    twin = None if base.cell.static_twin else next((a for a in measured if _is_twin(a, arm.arm)), None)
    surplus = None
    if isinstance(mine.executed, float) and isinstance(total, float) and region > 0:
        surplus = (mine.executed - (total - region)) / region
    found = waterfall(
        Arms(
            name=base.arm.name,
            baseline=timed(base),
            dynamic=timed(arm),
            without=without,
            twin=None if twin is None else timed(twin),
            required=region,
            waits=arm.arm.control == "host" and arm.arm.strategy != "masking",
            surplus=surplus if surplus is None or surplus > 0 else None,
        ),
        mine.columns.get("phases"),
    )
    return found, [] if found is None else disagreements(found, resolution)


def leaves_out_bodies(executed: Measured, required: Measured) -> bool:
    """Whether an arm executes less than the decisions ask for; then it differs in more than one respect.

    So does a graph in which decisions are known: what only a gate looked at is no longer computed.
    """
    if not isinstance(executed, float) or not isinstance(required, float):
        return False
    return executed < (1 - SAME_WORK) * required


def _is_control(control: Arm, arm: Arm) -> bool:
    """Whether a control differs from an arm in what is left out, and in nothing else that makes a difference."""
    same = {"kind": arm.kind, "without": None, "live": arm.live}
    return control.model_copy(update=same) == arm


def _is_twin(ran: Ran, arm: Arm) -> bool:
    """Whether an arm is the model without its decisions, run in the way of another."""
    return ran.cell.static_twin and ran.arm.kind == "strategy" and ran.arm.way == arm.way
