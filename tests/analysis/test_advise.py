"""What to deploy, on made-up cells."""

from __future__ import annotations

import pytest

from dynbench.analysis.advise import Wish, advise
from dynbench.errors import UserError
from dynbench.store.schema import Cell, Interval
from tests.analysis.cells import RESNET, accuracy, baseline, cell, info, latency


def pair(best: Cell, other: Cell) -> Interval | None:
    same = best.group_id == other.group_id
    return Interval(value=1.5, low=1.4, high=1.6) if same else None


CELLS = [
    cell("compaction", latency=latency(10.0)),
    cell("masking", latency=latency(15.0)),
    cell("dense", latency=latency(1.0)),
    baseline(latency=latency(20.0)),
    cell("compaction", latency=latency(40.0), batch_size=1),
]


def test_the_fastest_is_chosen_and_the_runner_up_has_its_interval() -> None:
    found = advise(info(), CELLS, Wish(), pair)
    assert found.candidates[0].arm.strategy == "compaction" and found.candidates[0].batch_size == 32
    assert "compaction in eager PyTorch, batch 32" in found.sentence
    assert "next is masking in eager PyTorch, batch 32, 1.50x its time (95 % CI 1.40 to 1.60)" in found.sentence


def test_a_static_network_must_be_as_accurate_unless_less_is_asked_for() -> None:
    fast = [*CELLS[:3], baseline(latency=latency(5.0))]
    poor = info(accuracies={"dynamic": accuracy(0.92), RESNET: accuracy(0.90)})
    assert advise(poor, fast, Wish(), pair).candidates[0].arm.strategy == "compaction"
    assert advise(poor, fast, Wish(accuracy=0.9), pair).candidates[0].arm.baseline == RESNET
    assert "static network ResNet-38" in advise(info(), fast, Wish(), pair).sentence


def test_a_wish_narrows_the_choice() -> None:
    assert advise(info(), CELLS, Wish(batch_size=1), pair).candidates[0].batch_size == 1
    with pytest.raises(UserError, match="measured were 1, 32"):
        advise(info(), CELLS, Wish(batch_size=7), pair)
    with pytest.raises(UserError, match="asked for are 0.1"):
        advise(info(), CELLS, Wish(slo_ms=0.1), pair)
    with pytest.raises(UserError, match="asked for is 0.99"):
        advise(info(), CELLS, Wish(accuracy=0.99), pair)


def test_nothing_measured_is_a_sentence() -> None:
    with pytest.raises(UserError, match="dynbench run skipnet38"):
        advise(info(), [c.model_copy(update={"status": "failed"}) for c in CELLS], Wish(), pair)
