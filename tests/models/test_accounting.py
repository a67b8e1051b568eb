"""The building blocks of accounted MACs, against hand-worked figures."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dynbench.counting.flops import NoFormulaError
from dynbench.dynamic import Skip, Trace
from dynbench.dynamic.trace import Entry
from dynbench.models.accounting import (
    decided,
    exits_taken,
    linear_macs,
    macs_run,
    mean_over_exits,
    run_rate,
    skip_macs,
    static_macs,
)
from dynbench.models.checks import check_least
from tests.networks import Attention


def trace(name: str, value: list[int], reached: list[bool] | None = None, sizes: tuple[int, ...] = ()) -> Trace:
    table = torch.tensor(value)
    seen = torch.ones(len(value), dtype=torch.bool) if reached is None else torch.tensor(reached)
    return Trace({(name, sizes): Entry(table, seen)}, items=len(value))


class Skipping(nn.Module):
    """x [n, 4] -> [n, 3]: a linear layer that may be replaced by a cheaper one, and another that always runs."""

    def __init__(self) -> None:
        super().__init__()
        cheap = nn.Sequential(nn.Linear(4, 1), nn.Linear(1, 4))
        self.skip = Skip("s", lambda x, carry: (x[:, 0], carry), nn.Linear(4, 4), otherwise=cheap)
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.skip(x)[0])
        return y


BODY, CHEAP, OUT = 4 * 4, 4 + 4, 4 * 3


def test_the_static_twin_runs_the_body() -> None:
    assert static_macs(Skipping(), (4,)) == BODY + OUT


def test_attention_and_recurrent_layers_are_counted_on_a_cpu() -> None:
    width, tokens = 8, 5
    projections = tokens * 4 * width**2  # queries, keys, values and output
    assert static_macs(Attention(width), (tokens, width)) == projections + 2 * width * tokens**2
    lstm = nn.LSTM(width, 3, batch_first=True)
    assert static_macs(lstm, (tokens, width)) == tokens * 4 * 3 * (width + 3)


def test_an_operator_without_a_formula_is_an_error() -> None:
    class Inverse(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.pinv(x)

    with pytest.raises(NoFormulaError, match="has no FLOP formula"):
        static_macs(Inverse(), (2, 2))


def test_modes_are_restored() -> None:
    net = Skipping().train()
    net.out.eval()
    static_macs(net, (4,))
    skip_macs(net, [net.skip], (4,))
    assert net.training and net.skip.training and not net.out.training


def test_linear_layers_cost_their_weights() -> None:
    assert linear_macs(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Sequential(nn.Linear(3, 2)))) == 4 * 3 + 3 * 2


def test_bodies_of_skips_are_counted_apart_and_leave_no_hooks() -> None:
    net = Skipping()
    assert skip_macs(net, [net.skip], (4,)) == (OUT, {"s": (BODY, CHEAP)})
    assert not net.skip.body._forward_hooks and not net.skip.body._forward_pre_hooks


def test_a_body_counts_as_often_as_it_is_run() -> None:
    net = Skipping()
    asked = trace("s", [1, 0, 0, 1, 1], [True, True, True, True, False])
    assert run_rate(asked, "s") == 0.5  # the fifth item does not reach the Skip
    assert macs_run(net, [net.skip], asked, (4,)) == OUT + 0.5 * BODY + 0.5 * CHEAP


def test_the_exit_taken_is_the_first_that_is_wanted_or_the_last() -> None:
    asked = trace("e", [0, 1, 0, 1, 1, 0, 0, 0, 0], sizes=(3,))
    assert exits_taken(asked, "e", 3).tolist() == [1, 0, 2]
    assert mean_over_exits(asked, "e", [1.0, 10.0, 100.0]) == pytest.approx(37.0)
    assert asked.entries["e", (3,)].value.tolist()[-1] == 0  # the trace is left as it was


def test_a_point_with_one_table_is_found_whatever_its_coordinates() -> None:
    asked = trace("e", [0, 1], sizes=(2,))
    assert decided(asked, "e") is asked.entries["e", (2,)]
    with pytest.raises(ValueError, match="not enough values"):
        decided(asked, "other")
    asked.entries["e", ()] = asked.entries["e", (2,)]
    with pytest.raises(ValueError, match="too many values"):
        decided(asked, "e")


def test_a_size_that_is_too_small_is_named() -> None:
    check_least(1, layers=1, width=2)
    with pytest.raises(ValueError, match="heads=0: it is 1 or more"):
        check_least(1, layers=1, heads=0)
