"""Where predictions miss: what a control leaves out, as it is predicted and as it was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dynbench.analysis.cost_model import Prediction
from dynbench.store.schema import Cell

PARTS = {
    "deciding": "deciding",
    "waiting": "waiting",
    "moving": "moving",
    "everything": "fewer items per call",
}
"""What a control shows, by what it leaves out; of 'everything' what is left."""


@dataclass(frozen=True)
class Miss:
    """A part of the time of strategies, by the controls of their groups; medians over them.

    Attributes:
        part: in words.
        pairs: how many strategies had such a control.
        predicted: as a share of the strategy's predicted time.
        measured: as a share of its measured time.
    """

    part: str
    pairs: int
    predicted: float
    measured: float

    @property
    def off(self) -> float:
        """Predicted less measured share."""
        return self.predicted - self.measured


def misses(predictions: Sequence[Prediction]) -> list[Miss]:
    """Each part that controls show, the one that is off most first; none where there are no controls.

    Args:
        predictions: of measured cells, held out or not: a control is no strategy that was fitted alone.
    """
    known = [p for p in predictions if p.measured_us is not None]
    strategies = {_group(p): p for p in known if p.arm.kind == "strategy"}
    shares: dict[str, list[tuple[float, float]]] = {}
    for control in known:
        whole = strategies.get(_group(control))
        if control.arm.without not in PARTS or whole is None:
            continue
        predicted = control.item_ms / whole.item_ms
        measured = _measured_item(control) / _measured_item(whole)
        pair = (predicted, measured) if control.arm.without == "everything" else (1 - predicted, 1 - measured)
        shares.setdefault(control.arm.without, []).append(pair)
    found = []
    for without, pairs in shares.items():
        predicted, measured = np.median(np.array(pairs), axis=0)
        found.append(Miss(PARTS[without], len(pairs), float(predicted), float(measured)))
    return sorted(found, key=lambda miss: -abs(miss.off))


def repeated(cells: Sequence[Cell], workload: str) -> float | None:
    """How far the primary baseline is off itself where it was measured twice: the median over groups; None: nowhere."""
    again = {c.group_id: c.again.value for c in cells if c.workload == workload and c.again is not None}
    return float(np.median(np.abs(np.array(list(again.values())) - 1))) if again else None


def _group(p: Prediction) -> tuple[object, ...]:
    return p.workload, p.arm.strategy, p.arm.engine, p.arm.control, p.arm.form, p.usage.label, p.usage.batch_size


def _measured_item(p: Prediction) -> float:
    assert p.measured_us is not None
    return p.measured_us / p.usage.items
