"""skip_blocks: gates and shortcuts around blocks of any call, and what has no shortcut is said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynbench.adapt import skip_blocks
from dynbench.dynamic import points
from dynbench.errors import UserError
from tests.adapt import networks
from tests.adapt.same_answer import assert_same_answer, assert_same_static, assert_shares_weights, run
from tests.models.same_answer import decided_both_ways


def about_half(x: Tensor) -> Tensor:
    flat = x.flatten(1)
    return torch.sin(20 * flat @ torch.linspace(-1, 1, flat.shape[1]))


CASES: dict[str, tuple[Callable[[], tuple[nn.Module, networks.Inputs]], list[str]]] = {
    "resnet": (networks.resnet, ["layer1.0", "layer1.1", "layer3.1"]),
    "a block in a block": (networks.resnet, ["layer3", "layer3.1"]),
    "sequential": (networks.sequential, ["2"]),
    "encoder": (networks.encoder_first, ["encoder.layers.1", "encoder.layers.2"]),
    "decoder": (networks.decoder, ["layers.1", "layers.3"]),
}


@pytest.mark.parametrize("case", CASES)
def test_a_network_with_skips_is_the_original_and_the_same_under_every_strategy(case: str) -> None:
    torch.manual_seed(0)
    make, names = CASES[case]
    net, inputs = make()
    net.eval()
    adapted = skip_blocks(net, names, about_half, example=inputs)
    assert set(points(adapted)) == set(names)
    assert_same_static(adapted, net, inputs)
    assert_same_answer(adapted, inputs, ("all", "none", "random"))
    assert_shares_weights(adapted, net)
    assert decided_both_ways(run(adapted, inputs, "per_sample")[1])


@pytest.mark.parametrize("make", [networks.resnet, networks.sequential, networks.encoder_mean])
def test_without_a_gate_each_block_has_a_linear_one(make: Callable[[], tuple[nn.Module, networks.Inputs]]) -> None:
    torch.manual_seed(0)
    net, inputs = make()
    name = {"ResNet": "layer1.1", "Sequential": "2"}.get(type(net).__name__, "encoder.layers.1")
    adapted = skip_blocks(net.eval(), [name], example=inputs)
    new = adapted.state_dict().keys() - net.state_dict().keys()
    assert new == {f"{name}.skip_gate.score.weight", f"{name}.skip_gate.score.bias"}
    assert_same_answer(adapted, inputs)


def test_a_module_stands_in_where_the_shape_changes() -> None:
    torch.manual_seed(0)
    net, inputs = networks.resnet()
    adapted = skip_blocks(
        net.eval(), ["layer2.0"], about_half, otherwise={"layer2.0": nn.Conv2d(4, 8, 1, 2)}, example=inputs
    )
    assert_same_static(adapted, net, inputs)
    assert_same_answer(adapted, inputs, ("all", "none", "random"))
    assert "layer2.0.skip_otherwise.weight" in adapted.state_dict()


def test_gates_by_name_may_be_shared_and_others_are_copied() -> None:
    net, inputs = networks.decoder()

    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.score = nn.Linear(8, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.score(x[:, -1]).squeeze(1)

    gate = Gate()
    copied = skip_blocks(net, ["layers.1", "layers.2"], gate, example=inputs)
    assert len({id(point.gate.gate) for point in points(copied).values()} | {id(gate)}) == 3
    shared = skip_blocks(net, ["layers.1", "layers.2"], {"layers.1": gate, "layers.2": gate}, example=inputs)
    assert {id(point.gate.gate) for point in points(shared).values()} == {id(gate)}


def test_a_block_keeps_its_attributes() -> None:
    net, inputs = networks.decoder()
    adapted = skip_blocks(net, ["layers.1"], about_half, example=inputs)
    assert adapted.layers[1].q is adapted.layers[1].skip.body.block.q
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = adapted.layers[1].nonsense


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.idle, self.memory = nn.Linear(8, 8), nn.Linear(8, 8), nn.GRU(8, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.memory(x.unsqueeze(1))
        return self.layer(self.layer(x)) + y[:, 0]


X = torch.randn(4, 8)
PARTS = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 5))


def wrong(**change: Any) -> Callable[[], nn.Module]:
    arguments: dict[str, Any] = {"model": PARTS, "names": ["0"], "example": X}
    return lambda: skip_blocks(**arguments | change)


WRONG = {
    "a name": (wrong(names=["7"]), "Sequential has no module '7'"),
    "a string": (wrong(names="0"), "names='0': it is a list"),
    "a name twice": (wrong(names=["0", "0"]), "names has '0' twice"),
    "no shortcut": (wrong(names=["1"]), r"'1' takes \[2, 8\] float32 and gives \[2, 5\] float32"),
    "what stands in": (wrong(names=["1"], otherwise={"1": nn.Linear(8, 4)}), r"gives \[2, 5\] .* \[2, 4\]"),
    "a gate": (wrong(gate=3), "gate is int, not a module or function"),
    "a gate's shape": (wrong(gate=nn.Linear(8, 1)), r"the gate of '0' returns \[2, 1\] float32 for 2 items"),
    "a gate's error": (wrong(gate=nn.Linear(7, 1)), "the gate of '0' raised RuntimeError"),
    "a gate missing": (wrong(names=["0", "1"], gate={"0": about_half}), "gate has none for '1'"),
    "a gate too many": (wrong(gate={"0": about_half, "5": about_half}), "'5', which is none of the blocks: 0"),
    "called twice": (wrong(model=Twice(), names=["layer"]), "'layer' is called 2 times in a forward pass of Twice"),
    "not called": (wrong(model=Twice(), names=["idle"]), "'idle' is not called"),
    "a state": (wrong(model=Twice(), names=["memory"]), r"'memory' returns \[1, 2, 8\] beside its output"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_skipped_is_said_in_a_sentence(what: str) -> None:
    adapt, sentence = WRONG[what]
    with pytest.raises(UserError, match=sentence) as said:
        adapt()
    assert "\n" not in str(said.value)
