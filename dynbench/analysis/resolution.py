"""How small a difference a measurement can tell from none, and what speaks against trusting it."""

from __future__ import annotations

import math

from dynbench.store.schema import Interval, Quantity, Speedup, Unavailable, Warning_, Witnesses

FLOOR = {"cpu": 0.01, "cuda": 0.005}  # no difference below this is called one, however quiet the machine
WAITED, STOLEN = 0.10, 0.05  # shares of the time lost to others above which results suffer
SWITCHED_PER_S = 20.0  # a quiet machine takes a core away now and then; each time costs a cold cache
CONTROL_DRIFT, CLOCK_DRIFT = 0.05, 0.05
BRAKES = ("power cap", "slowdown", "brake")  # what may hold down a GPU's clock


def resolution(again: Interval, device: str = "cpu") -> float:
    """The largest difference that the same work, measured twice, may have shown: both its offset and its spread.

    Args:
        again: the ratio of a cell to itself, measured like any other pair.
        device: 'cpu', 'cuda:0', ...: below the floor of its kind nothing is called a difference.

    Returns:
        A share: 0.02 reads 'ratios between 1/1.02 and 1.02 are no difference'.
    """
    furthest = max(abs(math.log(again.low)), abs(math.log(again.high)))
    return max(math.expm1(furthest), FLOOR.get(device.partition(":")[0], FLOOR["cpu"]))


def call(found: Speedup) -> int:
    """1: faster than the baseline, -1: slower, 0: no difference that this run could tell from none."""
    bound = 1 + (found.resolution or 0.0)
    return int(found.low > 1 and found.value > bound) - int(found.high < 1 and found.value < 1 / bound)


def doubts(seen: Witnesses, tells: float | None) -> list[Warning_]:
    """Warnings about what was measured meanwhile: what was seen, and what to do.

    Args:
        seen: by the witnesses of a group.
        tells: its resolution; None: it has none.
    """
    found = []

    def above(value: Quantity, limit: float) -> bool:
        return not isinstance(value, Unavailable) and abs(value) > limit

    if tells is not None and tells > 0.05:
        found.append(Warning_(
            id="DB-AA-01", text=f"the same network measured twice may differ by {tells:.0%}; what is smaller "
            "cannot be told from none", remedy="a quieter machine, or more time (--time-limit)"))  # fmt: skip
    if above(seen.waited, WAITED):
        found.append(Warning_(
            id="DB-LOAD-02", text=f"processes waited for a core {seen.waited:.0%} of the time",
            remedy="stop what else runs, or use fewer threads"))  # fmt: skip
    if above(seen.stolen, STOLEN):
        found.append(Warning_(
            id="DB-STEAL-01", text=f"the hypervisor gave {seen.stolen:.0%} of a core to other machines",
            remedy="take a machine with cores of its own"))  # fmt: skip
    if above(seen.switched_per_s, SWITCHED_PER_S):
        found.append(Warning_(
            id="DB-SWITCH-01", text=f"the measuring process lost its core {seen.switched_per_s:.0f} times a second",
            remedy="stop what else runs, or leave it a core of its own (taskset, cpusets)"))  # fmt: skip
    if above(seen.control_drift, CONTROL_DRIFT):
        found.append(Warning_(
            id="DB-CONTROL-01", text=f"the control kernel's time changed by {seen.control_drift:+.0%} on the way: the "
            "machine became another", remedy="fix the clock, let it cool, or stop what else runs"))  # fmt: skip
    if above(seen.clock_drift, CLOCK_DRIFT):
        found.append(Warning_(
            id="DB-FREQ-02", text=f"the clock changed by {seen.clock_drift:+.0%} on the way",
            remedy="cpupower frequency-set --governor performance; nvidia-smi --lock-gpu-clocks"))  # fmt: skip
    if any(brake in seen.governor for brake in BRAKES):
        found.append(Warning_(
            id="DB-GPU-01", text=f"the clock is held down by: {seen.governor}",
            remedy="let it cool, raise the power limit, or lock the clocks"))  # fmt: skip
    return found
