"""exits_at: cut by tracing or by watching, the answers are the original's, and what cannot be cut is said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynbench.adapt import confident, exits_at, skip_blocks
from dynbench.counting.flops import FlopCounter
from dynbench.dynamic import points
from dynbench.dynamic.sources import edge
from dynbench.errors import UserError
from tests.adapt import networks
from tests.adapt.same_answer import assert_same_answer, assert_same_static, assert_shares_weights, run


class Last(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, -1]


def pooled(c: int) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, 5))


def last() -> nn.Module:
    return nn.Sequential(Last(), nn.Linear(8, 5))


def half(answer: Tensor, state: Any, k: int) -> Tensor:
    """About half of the items, whatever the weights."""
    return answer[:, 0] > answer[:, 1]


CASES: dict[str, tuple[Callable[[], tuple[nn.Module, networks.Inputs]], dict[str, Callable[[], nn.Module]]]] = {
    "resnet": (networks.resnet, {"layer1": lambda: pooled(4), "layer2.0": lambda: pooled(8)}),
    "sequential": (networks.sequential, {"1": lambda: nn.Linear(8, 5), "2": lambda: nn.Linear(8, 5)}),
    "encoder, first token": (networks.encoder_first, {"encoder.layers.0": last, "encoder.layers.1": last}),
    "encoder, mean": (networks.encoder_mean, {"encoder.layers.1": last}),
    "decoder": (networks.decoder, {"layers.2": last, "layers.0": last}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_network_with_exits_is_the_original_and_the_same_under_every_strategy(case: str) -> None:
    torch.manual_seed(0)
    make, heads = CASES[case]
    net, inputs = make()
    net.eval()
    adapted = exits_at(net, {name: head() for name, head in heads.items()}, half, example=inputs)
    assert not adapted.training
    assert points(adapted)["exit"].exits == len(heads) + 1
    assert_same_static(adapted, net, inputs)
    assert_same_answer(adapted, inputs, ("all", "random"))
    assert_shares_weights(adapted, net)
    left = run(adapted, inputs, "per_sample")[1].entries["exit", (len(heads) + 1,)].value
    assert left.any() and not left.all()


def test_beyond_an_exit_nothing_is_computed() -> None:
    torch.manual_seed(0)
    net, inputs = networks.resnet()
    adapted = exits_at(net.eval(), {"layer1": pooled(4)}, half, example=inputs)
    every = run(adapted, inputs, "masking")[1]
    all_leave = edge(every, adapted, "none")
    called: list[str] = []
    for name, module in adapted.named_modules():
        module.register_forward_hook(lambda m, args, out, name=name: called.append(name))
    run(adapted, inputs, "cascading", all_leave)
    assert any(name.endswith("layer1") for name in called)
    assert not any("layer2" in name or "layer3" in name or name.endswith("fc") for name in called)


def test_the_static_twin_does_the_work_of_the_original() -> None:
    net, inputs = networks.resnet()
    adapted = exits_at(net.eval(), {"layer1": pooled(4), "layer2": pooled(8)}, half, example=inputs)
    work = []
    for model in (adapted, net):
        with torch.no_grad(), FlopCounter() as counter:
            model(*inputs)
        work.append(counter.flops)
    assert work[0] == work[1] > 0


def test_exits_come_in_the_order_of_the_forward_pass() -> None:
    torch.manual_seed(0)
    net, inputs = networks.sequential()
    early, late = nn.Linear(8, 5), nn.Linear(8, 5)
    adapted = exits_at(
        net.eval(), {"2": late, "1": early}, lambda a, s, k: torch.ones(len(a), dtype=bool), example=inputs
    )
    with torch.inference_mode():
        want = early(net[1](net[0](inputs[0])))
    assert torch.equal(run(adapted, inputs, "cascading")[0], want)


def test_skips_and_exits_can_be_combined() -> None:
    torch.manual_seed(0)
    net, inputs = networks.resnet()
    skipping = skip_blocks(net.eval(), ["layer1.1", "layer3.0"], lambda x: x.mean((1, 2, 3)) - 0.4, example=inputs)
    both = exits_at(skipping, {"layer2": pooled(8)}, half, example=inputs)
    assert set(points(both)) == {"exit", "layer1.1", "layer3.0"}
    assert_same_static(both, net, inputs)
    assert_same_answer(both, inputs)
    assert_shares_weights(both, net)


def test_an_original_is_left_as_it_is() -> None:
    net, inputs = networks.decoder()
    before = [(name, type(module)) for name, module in net.named_modules()]
    adapted = exits_at(net, {"layers.1": last()}, half, example=inputs)
    assert [(name, type(module)) for name, module in net.named_modules()] == before
    assert net.training and adapted.training
    assert not any(module._forward_hooks for module in net.modules())


def test_a_mask_that_masks_nothing_may_be_left_out_later() -> None:
    torch.manual_seed(0)
    net, (ids, mask) = networks.decoder()
    adapted = exits_at(net.eval(), {"layers.1": last()}, half, example=(ids, mask))
    assert_same_static(adapted, net, (ids,))
    without = exits_at(net, {"layers.1": last()}, half, example=ids)
    with pytest.raises(
        UserError, match=r"'layers.1' gets mask \[6, 4, 4\].*adapt it with an example like these inputs"
    ):
        without(ids, mask)


def test_confidence_is_the_largest_probability() -> None:
    scores = torch.tensor([[4.0, 0.0], [0.1, 0.0]])
    assert confident(0.9)(scores, None, 0).tolist() == [True, False]
    with pytest.raises(UserError, match="a probability, 0 to 1"):
        confident(2)


@pytest.mark.parametrize("traceable", [True, False])
def test_a_second_tensor_across_the_cut_is_named(traceable: bool) -> None:
    net = networks.Unet(traceable)
    with pytest.raises(UserError, match=r"not a chain at 'down2': \[2, 4, 32, 32\] from 'down1'") as said:
        exits_at(net, {"down2": pooled(4)}, half)
    assert ("goes into 'up' as well" in str(said.value)) != traceable
    adapted = exits_at(net, {"up": nn.Linear(4, 5)}, half)
    assert_same_static(adapted.eval(), net.eval(), (torch.randn(3, 3, 8, 8),))


class Between(nn.Module):
    """A function between its modules, and no tracing."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        if bool(x.isnan().any()):
            raise ValueError("not a number")
        return self.c(self.b(torch.relu(self.a(x))))


X = torch.randn(4, 8)


def wrong(**change: Any) -> Callable[[], nn.Module]:
    arguments: dict[str, Any] = {
        "model": networks.sequential()[0],
        "heads": {"1": nn.Linear(8, 5)},
        "policy": half,
        "example": X,
    }
    return lambda: exits_at(**arguments | change)


WRONG = {
    "a model": (wrong(model="resnet18"), "is a torch.nn.Module, not str"),
    "a scripted model": (wrong(model=torch.jit.script(networks.sequential()[0])), "is scripted"),
    "a compiled model": (wrong(model=torch.compile(networks.sequential()[0])), "is compiled"),
    "a name": (wrong(model=Between(), heads={"bb": nn.Linear(8, 5)}), "Between has no module 'bb': did you mean b"),
    "a name far off": (wrong(heads={"layer7.x": nn.Linear(8, 5)}), "no module 'layer7.x': accepted: 0, 1, 2, 3, 4"),
    "no heads": (wrong(heads={}), "at least one name"),
    "a list of heads": (wrong(heads=["1"]), "heads is list, not a dict"),
    "a head": (wrong(heads={"1": len}), r"heads\['1'\] is builtin_function_or_method, not a torch.nn.Module"),
    "a head's answer": (wrong(heads={"1": nn.Linear(8, 4)}), r"head of '1' makes \[3, 4\] of \[3, 8\].* \[3, 5\]"),
    "a head's input": (wrong(heads={"1": nn.Linear(7, 5)}), r"the head of '1' raised RuntimeError for \[3, 8\]"),
    "a policy": (wrong(policy=0.9), r"policy is float, not a function of \(answer, state, k\)"),
    "a policy's arguments": (wrong(policy=lambda answer: answer), "policy raised TypeError"),
    "a policy's shape": (wrong(policy=lambda a, s, k: a > 0), r"returned \[3, 5\] torch.bool for 3 items, not \[3\]"),
    "a policy's type": (
        wrong(policy=lambda a, s, k: a[:, 0]),
        r"\[3\] torch.float32 for 3 items, not \[3\] torch.bool",
    ),
    "the last module": (wrong(heads={"4": nn.Linear(5, 5)}), "'4' makes the answer of Sequential"),
    "no example": (wrong(example=None), r"raised RuntimeError for inputs \[2, 3, 32, 32\].*example="),
    "an example": (wrong(example=[1]), "one tensor .* not list"),
    "no items": (wrong(example=torch.ones(0, 8)), r"at least one item; not \[0, 8\]"),
    "a function between": (
        wrong(model=Between(), heads={"a": nn.Linear(8, 5)}),
        r"not a chain at 'a': \[2, 8\], which goes into 'b', is not what a module beyond it returned",
    ),
    "tokens without an example": (
        wrong(model=networks.decoder()[0], heads={"layers.1": last()}, example=None),
        "takes tokens: give example=",
    ),
    "inside a decision point": (
        wrong(model=wrong()(), heads={"exits.stages.0.0": nn.Linear(8, 5)}, name="other"),
        "lies inside the decision point 'exits'",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_adapted_is_said_in_a_sentence(what: str) -> None:
    adapt, sentence = WRONG[what]
    with pytest.raises(UserError, match=sentence) as said:
        adapt()
    assert "\n" not in str(said.value)


def test_inputs_may_be_given_by_name() -> None:
    net, (ids, mask) = networks.decoder()
    adapted = exits_at(net.eval(), {"layers.1": last()}, half, example=(ids, mask)).eval()
    with torch.inference_mode():
        assert torch.equal(adapted(ids=ids, mask=mask), net(ids, mask))
        assert torch.equal(adapted(ids, mask=None), net(ids))
