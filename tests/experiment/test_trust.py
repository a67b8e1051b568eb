"""Networks without a right answer: each is found, with its name, and the module or point that does it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.dynamic import DecisionPoint, Exits, Loop, Route, Skip
from dynbench.dynamic.items import map_items
from dynbench.experiment.trust import Finding, inspect
from tests.networks import NETWORKS, make

D = 8


def looked_at(model: nn.Module, x: Any = None, others: Any = None) -> Finding | None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(8, D, generator=draw) if x is None else x
    others = torch.randn(8, D, generator=draw) if others is None else others
    torch.manual_seed(1)
    with torch.inference_mode():
        return inspect(model, x, others)


class Body(nn.Module):
    """A body that does something to its activations."""

    def __init__(self, then: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        self.fc, self.then = nn.Linear(D, D), then

    def forward(self, x: Tensor) -> Tensor:
        return x + self.then(self.fc(x))


class Gate(nn.Module):
    """A gate that decides by something of its scores."""

    def __init__(self, then: Callable[[Tensor], Tensor] = lambda s: s) -> None:
        super().__init__()
        self.fc, self.then = nn.Linear(D, 1), then

    def forward(self, x: Tensor, carry: Any) -> tuple[Tensor, Any]:
        return self.then(self.fc(x).squeeze(1)), carry


class Net(nn.Module):
    """Two skippable blocks and a head."""

    def __init__(self, gate: Any = None, body: nn.Module | None = None, head: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([Skip("plain", Gate(), Body()), Skip("odd", gate or Gate(), body or Body())])
        self.head = head or nn.Linear(D, 4)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x, _ = block(x)
        return self.head(x)


def exits(policy: Callable[[Any, Any, int], Tensor], stage: Callable[[], nn.Module] = Body) -> nn.Module:
    torch.manual_seed(0)
    return Exits("exit", [stage() for _ in range(3)], [nn.Linear(D, 4) for _ in range(3)], policy)


class LeftOn(nn.Module):
    """Dropout that evaluation mode does not switch off."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.drop = nn.Linear(D, D), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop.train()(self.fc(x))


class Counting(nn.Module):
    """Keeps something from call to call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


class Fresh(nn.Module):
    """Makes its layer anew in every call."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.Linear(D, D)(x)


def gumbel(scores: Tensor) -> Tensor:
    return scores - torch.empty_like(scores).exponential_().log() * 3


NOISY = {
    "dropout without `training`": (Net(body=Body(lambda x: F.dropout(x, 0.5))), "Body 'blocks.1.body' of Skip 'odd'"),
    "dropout left on": (Net(body=LeftOn()), "Dropout 'blocks.1.body.drop' of Skip 'odd' is in training mode"),
    "noise in a gate": (Net(gate=Gate(gumbel)), "Gate 'blocks.1.gate' of Skip 'odd' draws random numbers"),
    "noise in a function": (
        Net(gate=lambda x, c: (gumbel(x[:, 0]), c)),
        "what Skip 'odd' decides by draws random numbers",
    ),
    "noise in a policy": (exits(lambda a, s, k: torch.rand(len(a)) > 0.5), "what Exits 'exit' decides by"),
    "noise in the head": (Net(head=Body(lambda x: x + torch.randn_like(x))), "Body 'head' draws random numbers"),
    "a state": (Net(body=Counting()), "Counting 'blocks.1.body' of Skip 'odd' gives something else each time"),
    "layers made anew": (Net(head=Fresh()), "Fresh 'head' draws random numbers"),
    "Python's generator": (Net(head=Body(lambda x: x * random.random())), "Body 'head' draws random numbers"),
}


@pytest.mark.parametrize("case", NOISY)
def test_a_network_that_answers_otherwise_the_second_time_is_found(case: str) -> None:
    model, says = NOISY[case]
    found = looked_at(model.eval())
    assert found is not None and found.name == "not deterministic"
    assert says in str(found)


def test_a_body_that_is_never_run_by_its_own_gate_is_looked_at_too() -> None:
    found = looked_at(Net(gate=lambda x, c: (x[:, 0] * 0 - 1, c), body=LeftOn()).eval())
    assert found is not None and "blocks.1.body.drop" in found.text


class NormalisedOverItems(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0)) / (x.std(0, unbiased=False) + 1)


BN = "has no running statistics, so it normalises over the batch"
COUPLED = {
    "batch norm without running statistics": (
        Net(body=nn.Sequential(nn.Linear(D, D), nn.BatchNorm1d(D, track_running_stats=False))),
        f"BatchNorm1d 'blocks.1.body.1' of Skip 'odd' {BN}",
    ),
    "normalisation over items": (
        Net(body=NormalisedOverItems()),
        "NormalisedOverItems 'blocks.1.body' of Skip 'odd' looks over the batch; an item is answered otherwise",
    ),
    "softmax over items": (Net(head=Body(lambda x: x.softmax(0))), "Body 'head' looks over the batch"),
    "a gate that looks over the batch": (
        Net(gate=Gate(lambda s: s - s.mean())),
        "Gate 'blocks.1.gate' of Skip 'odd' looks over the batch; an item is given other scores at 'odd'",
    ),
    "a gate that takes the better half": (
        Net(gate=lambda x, c: ((x[:, 0] > x[:, 0].median()).float() - 0.5, c)),
        "what Skip 'odd' decides by looks over the batch; an item is decided otherwise at 'odd'",
    ),
    "a policy that ranks the items": (
        exits(lambda a, s, k: a[:, 0] > a[:, 0].mean()),
        "what Exits 'exit' decides by looks over the batch",
    ),
    "in the network's own forward": (Net(head=nn.Softmax(dim=0)), "Softmax 'head' looks over the batch"),
}


@pytest.mark.parametrize("case", COUPLED)
def test_a_network_that_looks_over_the_batch_is_found(case: str) -> None:
    model, says = COUPLED[case]
    found = looked_at(model.eval())
    assert found is not None and found.name == "depends on the batch"
    assert says in str(found)


class TimesItems(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * len(x)


def test_a_network_that_depends_on_the_size_of_the_batch_is_found() -> None:
    found = looked_at(TimesItems().eval())
    assert found is not None and str(found).startswith("depends on the batch: TimesItems looks at its size")


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.add_(1))


def test_a_network_that_writes_into_its_input_is_found_and_the_input_is_as_it_was() -> None:
    x = torch.randn(8, D)
    before = x.clone()
    found = looked_at(InPlace().eval(), x)
    assert found is not None and found.name == "writes into its input"
    assert torch.equal(x, before)


class Barred(nn.Module):
    """Some classes are -inf, and one is NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(D, 4)

    def forward(self, x: Tensor) -> Tensor:
        answer = self.fc(x)
        answer[:, 0], answer[:, 1] = -torch.inf, torch.nan
        return answer


def half(net: nn.Module) -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(net.eval(), {nn.Linear})


SOUND = {
    "blocks": Net,
    "barred classes and NaN": lambda: Net(head=Barred()),
    "batch norm": lambda: Net(body=nn.Sequential(nn.Linear(D, D), nn.BatchNorm1d(D))),
    "exits": lambda: exits(lambda a, s, k: a.softmax(1).amax(1) > 0.3),
    "a loop without halt": lambda: Loop("loop", lambda s, k: s * 0.5 + 1, None, 3),
    "experts in bfloat16": lambda: Mixed(),
    "int8": lambda: half(Net()),
    "no points": lambda: nn.Linear(D, 4),
    "dropout that is off": lambda: Net(body=nn.Sequential(nn.Linear(D, D), nn.Dropout(0.5))),
}


class Mixed(nn.Module):
    """Experts in bfloat16, the router in float32."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        experts = [nn.Linear(D, D).bfloat16() for _ in range(4)]
        self.moe = Route("moe", Router(), experts, k=2, weigh=lambda s, c: s.gather(1, c).softmax(1).bfloat16())

    def forward(self, x: Tensor) -> Tensor:
        return self.moe(x.bfloat16())


class Router(nn.Linear):
    def __init__(self) -> None:
        super().__init__(D, 4)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


@pytest.mark.parametrize("case", SOUND)
def test_a_sound_network_is_not_accused(case: str) -> None:
    assert looked_at(SOUND[case]().eval()) is None


class Unpacked(nn.Module):
    """Takes its inputs as one."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, args: Any) -> Any:
        return self.net(*args)


@pytest.mark.parametrize("case", NETWORKS)
def test_no_network_of_the_tests_is_accused_whatever_its_items_couple_by_their_scope(case: str) -> None:
    model, args = make(case, 16)
    first, second = (map_items(lambda t, i=i: t[i : i + 8], args) for i in (0, 8))
    assert looked_at(Unpacked(model).eval(), first, second) is None


def test_a_scope_that_is_declared_is_no_finding() -> None:
    model = Net(gate=Gate(lambda s: s - s.mean()))
    for point in model.modules():
        if isinstance(point, DecisionPoint) and point.name == "odd":
            point.scope = "batch"
    assert looked_at(model.eval()) is None
