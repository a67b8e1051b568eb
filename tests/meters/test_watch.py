"""What an arm calls, moves and waits for, and T(n) in place, on networks whose counts are known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynbench.dynamic import Execution, Skip
from dynbench.dynamic.regions import find_regions
from dynbench.meters.calibration import Benchmark, best, measure
from dynbench.meters.scaling import Walker, sizes_up_to
from dynbench.meters.watch import Watched, roles
from dynbench.strategies import Compaction, Masking


class Gate(nn.Module):
    """Runs the body for items above 0."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(3, 1)

    def forward(self, x: Tensor, carry: Any) -> tuple[Tensor, Any]:
        return self.score(x).flatten() * 0 + x[:, 0], carry


class Net(nn.Module):
    """A stem, and one block that is skipped where the first feature is not above 0."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Identity()
        self.block = Skip("block", Gate(), nn.Sequential(nn.Linear(3, 3), nn.ReLU()))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.stem(x))[0]


X = torch.tensor([[1.0, 0, 0], [-1, 0, 0], [2, 0, 0], [-1, 0, 0]])


def net() -> Net:
    return Net().eval()


@torch.inference_mode()
def watched(strategy: Any, x: Tensor) -> Watched:
    model = net()
    regions = find_regions(model, lambda m: Execution(Masking()).run(m, x))
    with Watched(model, regions) as found:
        Execution(strategy).run(model, x)
    return found


def test_regions_are_called_with_as_many_items_as_were_decided() -> None:
    found = watched(Compaction(), X)
    assert found.calls["block.body"] == {2: 1} and found.calls["stem"] == {4: 1}
    assert found.points == 1 and found.waits == 1
    assert found.movings >= 2 and found.moved_bytes >= 2 * 2 * 3 * 4
    assert found.inside["block.body"] == 2  # a product and a rectifier


def test_the_work_of_a_region_is_counted_and_what_products_outside_execute() -> None:
    found = watched(Compaction(), X)
    assert found.work["block.body"][2].flops == 2 * 2 * 3 * 3 and found.work["block.body"][2].elements == 2 * 3
    assert found.work["stem"][4].flops == 0 and found.work["stem"][4].elements == 4 * 3
    assert found.products.operators == 2 and found.outside.operators == 0  # the gate's and the body's
    model = nn.Linear(3, 5)
    with torch.inference_mode(), Watched(model, []) as alone:
        model(X)
    assert (alone.outside.operators, alone.outside.flops) == (1, 2 * 4 * 3 * 5)
    assert alone.operators == 1 and alone.operator_bytes == 0  # what a product reads is part of its time


def test_masking_calls_all_and_waits_for_nothing() -> None:
    found = watched(Masking(), X)
    assert found.calls["block.body"] == {4: 1} and found.waits == 0


def test_where_all_are_alike_nothing_moves() -> None:
    found = watched(Compaction(), X[:1].repeat(4, 1))
    assert found.calls["block.body"] == {4: 1} and found.movings == 0


def test_hooks_are_gone_afterwards() -> None:
    model = net()
    regions = find_regions(model, lambda m: Execution(Masking()).run(m, X))
    with pytest.raises(ZeroDivisionError), Watched(model, regions):
        raise ZeroDivisionError
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_gates_are_told_from_bodies() -> None:
    model = net()
    regions = find_regions(model, lambda m: Execution(Masking()).run(m, X))
    found = roles(model, regions, lambda profile: Execution(Masking(), profile=profile).run(model, X))
    assert {name: role for name, role in found.items() if role == "decide"}.keys() == {"block.gate"}
    assert found["block.body"] == "body"


def test_sizes_are_geometric_and_hold_both_ends() -> None:
    assert sizes_up_to(1) == [1]
    assert sizes_up_to(32) == [1, 2, 4, 8, 16, 32]
    assert sizes_up_to(3) == [1, 3]
    assert all(sizes_up_to(n)[0] == 1 and sizes_up_to(n)[-1] == n for n in range(1, 70))


def test_times_are_medians_by_number_of_items_and_warm_up_does_not_count() -> None:
    model = net()
    regions = find_regions(model, lambda m: Execution(Masking()).run(m, X))

    def walk(n: int) -> Any:
        with torch.inference_mode():
            return Execution(Masking()).run(model, X[:n])

    walker, whole = Walker(regions, walk), Walker([], walk, whole=True)
    for one in (walker, whole):
        one.some([1, 4], _Clock())
    body = walker.times()["block.body"]
    assert body.sizes == [1, 4] and body.us == body.low_us == body.high_us == [1.0, 1.0]
    assert whole.times()[""].sizes == [1, 4]


def test_a_region_that_a_walk_does_not_call_has_no_time() -> None:
    model = net()
    regions = find_regions(model, lambda m: Execution(Masking()).run(m, X))

    def walk(n: int) -> Any:
        with torch.inference_mode():
            return Execution(Compaction()).run(model, X[1:2])  # its block is skipped

    walker = Walker(regions, walk)
    walker.some([1], _Clock())
    assert "block.body" not in walker.times() and "stem" in walker.times()


def test_a_benchmark_has_the_rate_that_its_time_says() -> None:
    rate, call = measure(
        [Benchmark("copy", "", "bytes/s", lambda: None, 100.0), Benchmark("wait", "", "s", lambda: None)], _Clock()
    )
    assert rate.low <= rate.value <= rate.high and call.low <= call.value <= call.high
    assert rate.value == pytest.approx(100 / call.value)
    slower = Benchmark("wait", "", "s", lambda: None)
    assert best([call, *measure([slower], _Clock())])["wait"].value <= call.value


class _Clock:
    """A device whose clock goes on by 1 us whenever it is read."""

    name = "cpu"

    def __init__(self) -> None:
        self._now = 0

    def synchronize(self) -> None:
        pass

    def clock_ns(self) -> int:
        self._now += 1000
        return self._now

    def events(self) -> None:
        return None

    def energy_sensor(self) -> str:
        return "none"
