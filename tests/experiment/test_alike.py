"""Which items two passes decided alike, and how many decisions differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynbench import devices
from dynbench.dynamic import DecisionPoint, Pick, Trace
from dynbench.dynamic.trace import Entry
from dynbench.experiment import Options, load_spec, ways
from dynbench.experiment.alike import decided_alike, flipped, joined, same_rows
from dynbench.experiment.arms import GraphCall, RunningArm, running_arm
from dynbench.experiment.build import Prepared, prepare
from dynbench.experiment.diagnose import Facts, _checked_alike
from dynbench.experiment.graphs import TOLERANCE
from dynbench.experiment.plan import planned_cell
from dynbench.graph import Session
from dynbench.store.schema import Arm, Warning_

WHOLE = {name: DecisionPoint(name) for name in "xy"}  # a row is one decision


def trace(**values: tuple[Tensor, Tensor | None]) -> Trace:
    entries = {
        (name, ()): Entry(value, torch.ones(len(value), dtype=torch.bool) if reached is None else reached)
        for name, (value, reached) in values.items()
    }
    return Trace(entries, len(next(iter(entries.values())).value))


def test_an_item_with_any_other_decision_is_not_alike() -> None:
    a = trace(x=(torch.tensor([1, 2, 3]), None), y=(torch.tensor([0.5, 0.5, 0.5]), None))
    b = trace(x=(torch.tensor([1, 0, 3]), None), y=(torch.tensor([0.5, 0.5, 0.7]), None))
    assert decided_alike(a, b, 1e-4).tolist() == [True, False, False]
    assert flipped(a, b, 1e-4, WHOLE) == (2, 6) and flipped(a, a, 0.0, WHOLE) == (0, 6)


def test_who_is_asked_by_one_only_is_not_alike_and_counts() -> None:
    some = torch.tensor([True, False, True])
    a, b = trace(x=(torch.tensor([1, 1, 1]), None)), trace(x=(torch.tensor([1, 1, 1]), some))
    assert decided_alike(a, b, 0.0).tolist() == decided_alike(b, a, 0.0).tolist() == [True, False, True]
    assert flipped(a, b, 0.0, WHOLE) == flipped(b, a, 0.0, WHOLE) == (1, 3)
    other = trace(y=(torch.tensor([1, 1, 1]), some))
    assert decided_alike(b, other, 0.0).tolist() == [False, True, False] and flipped(b, other, 0.0, WHOLE) == (4, 4)


def test_of_parts_that_are_picked_each_counts_once() -> None:
    a, b = trace(x=(torch.tensor([[0, 1, 2], [3, 4, 5]]), None)), trace(x=(torch.tensor([[0, 2, 6], [3, 5, 4]]), None))
    pick = Pick("x", lambda x, there: x.mean(-1), nn.Identity(), lambda parts: parts // 2)
    assert flipped(a, b, 0.0, {"x": pick}) == (1 + 1, 6) and flipped(a, b, 0.0, WHOLE) == (2, 2)
    assert flipped(a, trace(x=(torch.tensor([[0], [3]]), None)), 0.0, {"x": pick}) == (2, 2)
    some = trace(x=(torch.tensor([[0, 1, 2], [3, 4, 5]]), torch.tensor([True, False])))
    assert flipped(a, some, 0.0, {"x": pick}) == (3, 6)


def test_batches_become_the_stream() -> None:
    a, b = trace(x=(torch.tensor([1, 2]), None)), trace(x=(torch.tensor([3]), None))
    assert joined([a, b]) == trace(x=(torch.tensor([1, 2, 3]), None)) and joined([a, b]).items == 3


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ([1.0, 2.0], [1.0, 2.0001], [True, True]),
        ([1.0, 2.0], [1.0, 2.001], [True, False]),
        ([float("inf"), 1.0], [float("inf"), 1.0], [True, True]),
        ([1.0, 1.0], [float("-inf"), 1.0], [False, True]),
        ([float("nan"), 1.0], [float("nan"), 1.0], [False, True]),
        ([0.0, 0.0], [0.0, 0.0], [True, True]),
        ([1, 2], [1, 3], [True, False]),
        ([True, False], [True, True], [True, False]),
    ],
)
def test_rows_are_the_same_up_to_rounding(a: list[Any], b: list[Any], same: list[bool]) -> None:
    assert same_rows(torch.tensor(a), torch.tensor(b), TOLERANCE).tolist() == same
    stacked = [torch.tensor(v).reshape(2, 1, 1).repeat(1, 2, 1) for v in (a, b)]
    assert same_rows(*stacked, TOLERANCE).tolist() == same


# --- in a run --------------------------------------------------------------------------------------------------------

NET = """
import torch
from torch import nn

from dynbench.dynamic import Skip


def items(split, seed=0):
    return torch.randn(300, 8, generator=torch.Generator().manual_seed(seed)).numpy(), None


def gate(x, carry):
    return x[:, 0], carry


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Skip("block", gate, nn.Linear(8, 8))

    def forward(self, x):
        return self.block(x)[0]
"""


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> tuple[Prepared, Facts, RunningArm]:
    """A workload of 100 decisions, what is right for it, and its arm as one graph that decides by itself."""
    folder = tmp_path_factory.mktemp("alike")
    (folder / "net.py").write_text(NET, encoding="utf-8")
    (folder / "w.toml").write_text(
        'schema = 1\nname = "w"\ntitle = "W"\nmodel = "net.py:Net"\ninputs = { name = "net.py:items" }\n'
        "run = { batch_sizes = [100] }\n",
        encoding="utf-8",
    )
    p = prepare(load_spec(str(folder / "w.toml")), Options())
    (source,) = p.sources
    assert p.items == 100
    cell = planned_cell(p, source, 100, Arm(kind="strategy", strategy="compaction", live=True, **ways.GRAPH))
    return p, Facts.of(p, source, 100), running_arm(p, source, cell, devices.device("cpu"))


def in_a_run(
    group: tuple[Prepared, Facts, RunningArm], change: Callable[[Tensor, Tensor], None]
) -> tuple[dict[str, Any], list[Warning_]]:
    """What a run says of the graph, where `change` is applied to the answers [100, 8] and decisions [100]."""
    p, facts, arm = group
    run = Session.run

    def changed(self: Session, *args: Any) -> tuple[list[Tensor], Trace]:
        (answer,), said = run(self, *args)
        ((key, entry),) = said.entries.items()
        answer, value = answer.clone(), entry.value.clone()
        change(answer, value)
        return [answer], Trace({key: Entry(value, entry.reached)}, said.items, covers=said.covers)

    assert isinstance(arm.call, GraphCall)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "run", changed)
        return _checked_alike(p, p.sources[0], arm, arm.call, facts)


def decides_otherwise(n: int, *, also_item: int | None = None) -> Callable[[Tensor, Tensor], None]:
    """The first n items take the other way; item `also_item` is answered otherwise after the same decision."""

    def change(answer: Tensor, decisions: Tensor) -> None:
        decisions[:n] = ~decisions[:n]
        answer[:n] += 1  # right after another decision
        if also_item is not None:
            answer[also_item] += 1

    return change


def test_an_item_that_rounding_decides_otherwise_is_left_out_and_counted(
    group: tuple[Prepared, Facts, RunningArm],
) -> None:
    columns, warnings = in_a_run(group, decides_otherwise(1))
    assert "status" not in columns and columns["max_error"] <= columns["tolerance"]
    (doubt,) = warnings
    assert doubt.id == "DB-CHECK-03" and "1 of 100 decisions (1.00%)" in doubt.text
    assert "the answers to the 99 of 100 items" in doubt.text
    assert in_a_run(group, decides_otherwise(0))[1] == []


def test_more_than_one_in_a_hundred_is_not_rounding(
    group: tuple[Prepared, Facts, RunningArm],
) -> None:
    columns, warnings = in_a_run(group, decides_otherwise(2))
    assert columns["status"] == "failed" and warnings == []
    assert columns["reason"].startswith("wrong decisions: the graph makes 2 of 100 decisions (2.00%) otherwise")


def test_another_answer_after_the_same_decisions_fails(
    group: tuple[Prepared, Facts, RunningArm],
) -> None:
    for n in (0, 1):
        columns, _ = in_a_run(group, decides_otherwise(n, also_item=50))
        assert columns["status"] == "failed" and columns["reason"].startswith("wrong answer: differs from per_sample")


def test_what_is_timed_is_compared_as_well(group: tuple[Prepared, Facts, RunningArm]) -> None:
    answer = Session.answer
    for n, status in ((0, None), (1, None), (2, "failed")):

        def changed(self: Session, feeds: Any, n: int = n) -> list[Tensor]:
            (found,) = answer(self, feeds)
            found = found.clone()
            found[:n] += 1
            return [found]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Session, "answer", changed)
            columns, warnings = in_a_run(group, decides_otherwise(0))
        assert columns.get("status") == status and len(warnings) == (n == 1)
