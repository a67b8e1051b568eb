"""What a device did under load that lasts, summed up for the manifest of a run: `result.json` has every second."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dynbench.deploy.job import Sustained

MINUTE_S, LEAST_POINTS = 60.0, 10  # a point a minute; of a shorter load so many points


def summed_up(rows: Sequence[Sustained], load_s: float) -> dict[str, Any]:
    """Minute by minute, or in tenths of a load of less than ten minutes.

    Args:
        rows: of `result.json`.
        load_s: that was asked for, of each network.

    Returns:
        `step_s`, and by name of the arm lists of [end in s, ms per item, hottest temperature in C or None].
    """
    step_s = max(1.0, min(MINUTE_S, load_s / LEAST_POINTS))
    arms: dict[str, dict[int, list[Sustained]]] = {}
    for row in rows:
        arms.setdefault(row.arm, {}).setdefault(int(row.second / step_s), []).append(row)
    found: dict[str, list[list[float | None]]] = {}
    for name, steps in arms.items():
        for step, within in sorted(steps.items()):
            items, ns = sum(r.items for r in within), sum(r.ns for r in within)
            if items:
                celsius = [r.temperature_c for r in within if r.temperature_c is not None]
                point = [min((step + 1) * step_s, load_s), ns / items / 1e6, max(celsius, default=None)]
                found.setdefault(name, []).append(point)
    return {"step_s": step_s, "arms": found}
