"""How small a difference a measurement can resolve, and what speaks against trusting it."""

from __future__ import annotations

import math
from typing import Literal

from dynbench.store.schema import Interval, Speedup, Warning_, Witnesses
from dynbench.unavailable import Measured

FLOOR = {"cpu": 0.01, "cuda": 0.005}  # no difference below this is called one, however quiet the machine
POOR_RESOLUTION = 0.05  # above it only large differences can be seen
WAITED, STOLEN = 0.10, 0.05  # shares of the time lost to others above which results suffer
SWITCHED_PER_S = 20.0  # a quiet machine takes a core away now and then; each time costs a cold cache
CONTROL_DRIFT, CLOCK_DRIFT = 0.05, 0.05
BRAKES = ("power cap", "slowdown", "brake")  # what may hold down a GPU's clock

Direction = Literal["faster", "slower", "unclear"]


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


def direction(found: Speedup) -> Direction:
    """'faster' or 'slower' than the baseline, or 'unclear': no difference that this run could resolve."""
    bound = 1 + (found.resolution or 0.0)
    if found.low > 1 and found.value > bound:
        return "faster"
    return "slower" if found.high < 1 and found.value < 1 / bound else "unclear"


def doubts(seen: Witnesses, tells: float | None) -> list[Warning_]:
    """Warnings about how a group was measured: what was seen, and what to do.

    Args:
        seen: by the witnesses of the group.
        tells: its resolution; None: unknown.
    """
    found: list[Warning_] = []

    def doubt(warning_id: str, text: str, remedy: str) -> None:
        found.append(Warning_(id=warning_id, text=text, remedy=remedy))

    if _above(tells, POOR_RESOLUTION):
        text = f"the same network measured twice may differ by {tells:.0%}; what is smaller cannot be told from none"
        doubt("DB-AA-01", text, "a quieter machine, or more time (--time-limit)")
    if _above(seen.waited, WAITED):
        text = f"processes waited for a core {seen.waited:.0%} of the time"
        doubt("DB-LOAD-02", text, "stop what else runs, or use fewer threads")
    if _above(seen.stolen, STOLEN):
        text = f"the hypervisor gave {seen.stolen:.0%} of a core to other machines"
        doubt("DB-STEAL-01", text, "take a machine with cores of its own")
    if _above(seen.switched_per_s, SWITCHED_PER_S):
        text = f"the measuring process lost its core {seen.switched_per_s:.0f} times a second"
        doubt("DB-SWITCH-01", text, "stop what else runs, or leave it a core of its own (taskset, cpusets)")
    if _above(seen.control_drift, CONTROL_DRIFT):
        text = f"the control kernel's time changed by {seen.control_drift:+.0%} on the way: the machine became another"
        doubt("DB-CONTROL-01", text, "fix the clock, let it cool, or stop what else runs")
    if _above(seen.clock_drift, CLOCK_DRIFT):
        text = f"the clock changed by {seen.clock_drift:+.0%} on the way"
        doubt("DB-FREQ-02", text, "cpupower frequency-set --governor performance; nvidia-smi --lock-gpu-clocks")
    if isinstance(seen.governor, str) and any(brake in seen.governor for brake in BRAKES):
        text = f"the clock is held down by: {seen.governor}"
        doubt("DB-GPU-01", text, "let it cool, raise the power limit, or lock the clocks")
    return found


def _above(value: Measured | None, limit: float) -> bool:
    return isinstance(value, float) and abs(value) > limit
