"""What each piece of hardware or runtime would win: terms of the cost model set to zero. All of it is predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dynbench.analysis.cost_model import Levers, Model, usage_of
from dynbench.analysis.formatting import times
from dynbench.errors import UserError
from dynbench.store.scaling import Constants
from dynbench.store.schema import Arm, Cell

LEVERS = {
    "no wait": Levers(no_wait=True),
    "no launch": Levers(no_launch=True),
    "free gather": Levers(free_gather=True),
    "perfect small batches": Levers(perfect_small_batches=True),
    "known ahead": Levers(known_ahead=True),
}
"""By name; 'known ahead' is what a control shows, and no hardware gives."""
CONTROLS = {"no wait": "waiting", "free gather": "moving", "known ahead": "deciding"}
"""The control that leaves out the same as a lever."""
WORTH = 1.01  # a win below 1 % is none


@dataclass(frozen=True)
class WhatIf:
    """What levers would win for one measured arm.

    Attributes:
        workload: its name.
        label: of the decisions.
        batch_size: in items.
        arm: which.
        item_ms: per item, as measured.
        predicted_ms: per item, as predicted.
        wins: predicted time over predicted time with the lever, by its name.
        by_control: the same as a control shows it, where there is one: measured.
        together: with all of them.
        elsewhere: predicted time here over that on another device; None: none was asked for.
    """

    workload: str
    label: str
    batch_size: int
    arm: Arm
    item_ms: float
    predicted_ms: float
    wins: dict[str, float]
    by_control: dict[str, float]
    together: float
    elsewhere: float | None = None

    @property
    def largest(self) -> str | None:
        """The lever that wins most; None: none wins anything."""
        name = max(self.wins, key=lambda lever: self.wins[lever], default=None)
        return name if name is not None and self.wins[name] >= WORTH else None


def what_if(
    model: Model, cells: Sequence[Cell], levers: Sequence[str], elsewhere: Levers | None = None
) -> list[WhatIf]:
    """What levers would win for every measured arm that decides, outside a keep-rate sweep.

    Args:
        model: fitted, of one workload.
        cells: of the run; those of other workloads are left out.
        levers: names of `LEVERS`.
        elsewhere: another device.
    """
    mine = [c for c in cells if c.workload == model.scaling.workload and c.status == "ok" and c.latency is not None]
    taken = _all([LEVERS[name] for name in levers])
    found = []
    for cell in mine:
        usage = usage_of(cell, model.scaling)
        if usage is None or cell.arm.kind != "strategy" or cell.static_twin or cell.decisions.sweep:
            continue
        base = model.predict(cell.arm, usage, pace=model.scaling.pace(cell))
        if base is None or cell.latency is None:
            continue

        def won(asked: Levers, cell: Cell = cell, usage: object = usage, base_us: float = base.predicted_us) -> float:
            there = model.predict(cell.arm, usage, asked, pace=model.scaling.pace(cell))  # type: ignore[arg-type]
            assert there is not None
            return base_us / max(there.predicted_us, 1e-9)

        found.append(
            WhatIf(
                workload=cell.workload,
                label=cell.decisions.label,
                batch_size=cell.batch_size,
                arm=cell.arm,
                item_ms=cell.latency.item_ms,
                predicted_ms=base.item_ms,
                wins={name: won(LEVERS[name]) for name in levers},
                by_control=_by_control(cell, mine, levers),
                together=won(taken),
                elsewhere=None if elsewhere is None else won(elsewhere),
            )
        )
    return found


def on_another(here: Mapping[str, float], there: Mapping[str, float], constants: Constants) -> Levers:
    """Another device, by the figures of two calibrated profiles.

    What is computed goes by the ceilings of convolutions, or of products; calls, waits and rows by their own figures,
    which are taken in the proportion of the two profiles, from the constants of the run.

    Args:
        here: figures of the device of the run by name.
        there: of the other one.
        constants: of the run.

    Raises:
        UserError: a figure is missing.
    """
    try:
        kind = "convolution" if "convolution" in here and "convolution" in there else "matmul"
        ours, theirs = Constants.of(here), Constants.of(there)
        scaled = {
            name: getattr(constants, name) * getattr(theirs, name) / getattr(ours, name)
            for name in Constants.model_fields
        }
        return Levers(slower=here[kind] / there[kind], on=Constants(**scaled))
    except KeyError as e:
        raise UserError(f"a calibrated profile has no figure {e}; measure it again with `dynbench calibrate`") from e


def largest(rows: Sequence[WhatIf]) -> str:
    """The lever that wins most over all rows, in a sentence."""
    names = [name for name in LEVERS if name != "known ahead" and any(name in row.wins for row in rows)]
    if not rows or not names:
        return "There is nothing to predict."
    means = {n: float(np.exp(np.mean([np.log(row.wins[n]) for row in rows]))) for n in names}
    best = max(means, key=lambda name: means[name])
    if means[best] < WORTH:
        return f"Predicted: none of {', '.join(names)} wins more than 1 %."
    most = max(rows, key=lambda row: row.wins[best])
    return (
        f"Predicted: the largest lever is '{best}', {times(means[best])} on average; most for {most.arm.title} on "
        f"{most.workload} at batch {most.batch_size}, {times(most.wins[best])}."
    )


def _all(levers: Sequence[Levers]) -> Levers:
    return Levers(
        no_wait=any(one.no_wait for one in levers),
        no_launch=any(one.no_launch for one in levers),
        free_gather=any(one.free_gather for one in levers),
        perfect_small_batches=any(one.perfect_small_batches for one in levers),
        known_ahead=any(one.known_ahead for one in levers),
    )


def _by_control(cell: Cell, cells: Sequence[Cell], levers: Sequence[str]) -> dict[str, float]:
    """Measured time over that of the control of the same group that leaves out the same."""
    found = {}
    for lever in levers:
        wanted = cell.arm.model_copy(update={"kind": "control", "live": False, "without": CONTROLS.get(lever)})
        if wanted.without is None or cell.latency is None:
            continue
        control = next((c for c in cells if c.group_id == cell.group_id and c.arm == wanted), None)
        if control is not None and control.latency is not None:
            found[lever] = cell.latency.stream_ms / control.latency.stream_ms
    return found
