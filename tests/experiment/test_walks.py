"""Which parts of a network have a time of their own in walks, and in which group they are taken with decisions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynbench import devices
from dynbench.dynamic import Exits
from dynbench.experiment import Options
from dynbench.experiment.build import Prepared, prepare
from dynbench.experiment.spec import load_spec
from dynbench.experiment.walks import (
    DECIDED,
    WRITTEN,
    Walks,
    decided_call,
    decided_group,
    nested_regions,
    regions_of,
    walker_of,
)

TINY = Path(__file__).parent / "tiny"


@pytest.fixture(scope="module")
def tiny() -> Prepared:
    return prepare(load_spec(str(TINY / "tiny.toml")), Options(batch_sizes=[1, 4]))


class Calls(nn.Module):
    """A stage that calls a network that stands elsewhere."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.called = [network]  # not a part of it

    def forward(self, x: Tensor) -> Tensor:
        return self.called[0](x)


class Cascade(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.networks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(2))
        self.stem = nn.Linear(4, 4)
        stages = [Calls(network) for network in self.networks]
        self.exits = Exits("exit", stages, [nn.Identity(), nn.Identity()], lambda answer, state, k: answer[:, 0] > 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.exits(self.stem(x))


def test_a_network_that_only_a_stage_calls_is_a_part_of_that_stage() -> None:
    class P:
        inputs = torch.randn(3, 4)

    model, p = Cascade().eval(), P()
    with torch.inference_mode():
        found = {region.name: outer for region, outer in nested_regions(model, p)}  # type: ignore[arg-type]
        names = {region.name for region in regions_of(model, p)}  # type: ignore[arg-type]
    assert found["networks.0"] == "exits.stages.0" and found["networks.1"] == "exits.stages.1"
    assert found["stem"] is None and found["exits.stages.0"] is None
    assert names == {name for name, outer in found.items() if outer is None}


@torch.inference_mode()
def test_what_was_decided_is_walked_in_the_first_group_that_the_fit_sees(tiny: Prepared) -> None:
    group = decided_group(tiny)
    assert group is not None and group[0].decisions.label == "learned" and group[1] == 1
    call = decided_call(tiny)
    assert call is not None and call.execution.strategy.name == "compaction"
    device = devices.device("cpu")
    of_all, of_decided = walker_of(tiny, WRITTEN), walker_of(tiny, DECIDED, call)
    for walker in (of_all, of_decided):
        walker.some([4], device)
    assert of_all.times()["blocks.0.body"].sizes == [4]
    decided = tiny.trace(*group).look_up("block0", (tiny.items,), range(4))
    kept = 0 if decided is None else int(decided.sum())
    assert 0 < kept < 4
    assert of_decided.times()["blocks.0.body"].sizes == [kept]


@torch.inference_mode()
def test_other_groups_are_walked_with_all_items_alone(tiny: Prepared) -> None:
    group = decided_group(tiny)
    assert group is not None
    for source, size in ((group[0], 1), (group[0], 4)):
        walks = Walks(tiny, source, size, [], devices.device("cpu"))
        assert (DECIDED in walks._walkers) == ((source, size) == group)


@torch.inference_mode()
def test_a_walk_that_takes_long_is_made_once(tiny: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynbench.experiment.walks.LONG_WALK_S", 0.0)
    group = decided_group(tiny)
    assert group is not None
    walks: Any = Walks(tiny, group[0], 4, [], devices.device("cpu"))
    for _ in range(3):
        walks.before("an arm", 0, 1)
    counts = {n: len(us) for n, us in walks._walkers[WRITTEN]._between.items()}
    once = walker_of(tiny, WRITTEN)
    once.some(list(counts), devices.device("cpu"))
    assert counts == {n: len(us) for n, us in once._between.items()}
