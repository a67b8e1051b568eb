"""Chains: where a network can be cut, what crosses, and that two halves compute what the whole computes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dynbench.devices.fake import FakeDevice
from dynbench.dynamic import Choice, Exits, Skip
from dynbench.errors import UserError
from dynbench.meters.chain import Chain, layer_times_ms

IMAGE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 5)
    ).eval()


class Residual(nn.Module):
    """Two blocks with a shortcut each, and a look at shapes on the way."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))
        self.scale = nn.Parameter(torch.ones(3, 1, 1))
        self.out = nn.Linear(3, 2)

    def forward(self, x: Tensor, factor: float | None = None) -> Tensor:
        if x.shape[1] != 3:
            raise ValueError("three channels")
        for block in self.blocks:
            x = x + block(x).relu() * self.scale
        y: Tensor = self.out(x.flatten(2).mean(2)[torch.arange(len(x))])
        return y


class Looks(nn.Module):
    """Finds a part of its input, and computes on this part only."""

    class Part(nn.Module):
        pixels = True

        def forward(self, x: Tensor, column: Tensor) -> Tensor:
            return x.gather(3, column.view(-1, 1, 1, 1).expand(-1, x.shape[1], x.shape[2], 1))

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        body = nn.Sequential(nn.Conv2d(3, 1, 3, padding=1), nn.Flatten())
        self.look = Choice("look", body, lambda score: score.argmax(1) % 8)
        self.part, self.out = self.Part(), nn.Sequential(nn.Flatten(), nn.Linear(24, 2))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.part(x, self.look(x)))
        return y


def assert_halves_compute_the_whole(net: nn.Module, chain: Chain, x: Tensor) -> None:
    with torch.inference_mode():
        for cut in range(len(chain.layers) + 1):
            values = chain.half(0, cut)(x)
            assert tuple(tuple(v.shape[1:]) for v in values) == chain.crossings[cut].shapes
            (answer,) = chain.half(cut, len(chain.layers))(*values)
            assert torch.equal(answer, net(x)), cut


def test_a_chain_has_a_layer_for_what_computes_with_what_follows_it() -> None:
    net = plain()
    chain = Chain(net, IMAGE)
    assert [(layer.name, layer.kind) for layer in chain.layers] == [
        ("0", "Conv2d + BatchNorm2d + ReLU"),
        ("3", "MaxPool2d + Flatten"),
        ("5", "Linear"),
    ]
    assert [c.bytes for c in chain.crossings] == [3 * 8 * 8, 4 * 4 * 8 * 8, 4 * 64, 4 * 5]
    assert [c.pixels for c in chain.crossings] == [(True,), (False,), (False,), (False,)]
    assert_halves_compute_the_whole(net, chain, IMAGE)


def test_a_shortcut_crosses_the_cuts_within_its_block() -> None:
    net = Residual().eval()
    chain = Chain(net, IMAGE)
    assert_halves_compute_the_whole(net, chain, IMAGE)
    values = [len(c.shapes) for c in chain.crossings]
    assert max(values) == 2 and values[0] == values[-1] == 1
    within = [c for c in chain.crossings if len(c.shapes) == 2]
    assert within[0].pixels == (True, False)  # the image itself is still needed
    assert within[0].bytes == 3 * 64 + 4 * 3 * 64
    assert within[-1].bytes == 2 * 4 * 3 * 64


def test_a_network_that_looks_at_a_part_sends_its_input_until_it_has_the_part() -> None:
    net = Looks().eval()
    chain = Chain(net, IMAGE)
    assert_halves_compute_the_whole(net, chain, IMAGE)
    part = next(i for i, layer in enumerate(chain.layers) if layer.name == "part")
    assert all("x" in c.names for c in chain.crossings[: part + 1])
    assert all("x" not in c.names for c in chain.crossings[part + 1 :])
    assert (chain.crossings[part + 1].bytes, chain.crossings[part + 1].pixels) == (3 * 8, (True,))


def test_decision_points_are_cut_as_their_static_twins() -> None:
    torch.manual_seed(0)
    skip = Skip("s", lambda x, carry: (x.mean((1, 2, 3)), carry), nn.Conv2d(3, 3, 1))
    stages = [nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)]
    heads = [nn.Sequential(nn.Flatten(), nn.Linear(192, 2)) for _ in stages]
    exits = Exits("e", stages, heads, lambda answer, state, k: answer[:, 0] > 0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.skip, self.exits = skip, exits

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.exits(self.skip(x)[0])
            return y

    net = Net().eval()
    chain = Chain(net, IMAGE)
    assert [layer.name for layer in chain.layers if "Conv2d" in layer.kind] == [
        "skip.body",
        "exits.stages.0",
        "exits.stages.1",
    ]
    assert sum("Linear" in layer.kind for layer in chain.layers) == 1  # the last head
    assert_halves_compute_the_whole(net, chain, IMAGE)


def test_tracing_leaves_nothing_behind_in_the_network() -> None:
    net = Residual().eval()
    before = (set(dir(net)), set(net.state_dict()))
    Chain(net, IMAGE)
    assert (set(dir(net)), set(net.state_dict())) == before


@settings(deadline=None, max_examples=20)
@given(st.lists(st.sampled_from(["conv", "relu", "pool", "shortcut", "norm"]), max_size=6), st.integers(0, 99))
def test_any_chain_of_operations_can_be_cut_anywhere(kinds: list[str], seed: int) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(seed)
            self.layers = nn.ModuleList(
                nn.MaxPool2d(3, 1, 1)
                if kind == "pool"
                else nn.BatchNorm2d(3)
                if kind == "norm"
                else nn.Conv2d(3, 3, 3, padding=1)
                for kind in kinds
            )

        def forward(self, x: Tensor) -> Tensor:
            for kind, layer in zip(kinds, self.layers, strict=True):
                x = x.relu() if kind == "relu" else x + layer(x) if kind == "shortcut" else layer(x)
            return x.mean((2, 3))

    net = Net().eval()
    assert_halves_compute_the_whole(net, Chain(net, IMAGE), IMAGE)


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Two(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + 1, x


class Wrap(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.more = nn.Sequential(inner), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner[0].forward(x)
        return y


@pytest.mark.parametrize(
    ("net", "message"),
    [(Wrap(Branches()), "its static twin is not a fixed sequence of operations"), (Wrap(Two()), "it returns tuple")],
)
def test_a_network_that_is_no_chain_is_an_error_of_one_sentence(net: nn.Module, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        Chain(net, IMAGE)
    assert "\n" not in str(error.value)


def test_layers_are_timed_by_the_device_s_clock() -> None:
    device = FakeDevice()
    costs = {"0": 3_000_000, "3": 500_000, "5": 1_000_000}

    class Timed(nn.Module):
        def __init__(self, inner: nn.Module, ns: int) -> None:
            super().__init__()
            self.run, self.ns = inner.forward, ns

        def forward(self, x: Tensor) -> Tensor:
            device.work(self.ns)
            y: Tensor = self.run(x)
            return y

    net = plain()
    for name, ns in costs.items():
        net[int(name)] = Timed(net[int(name)], ns)  # type: ignore[index, operator]
    chain = Chain(net, IMAGE)
    layers, whole = layer_times_ms(chain, IMAGE, device, rounds=3, warm_up=1)
    assert len(layers) == len(chain.layers)
    assert sum(layers) == pytest.approx(whole) == pytest.approx(4.5)
    assert max(layers) == pytest.approx(3.0)


class Counts(nn.Module):
    """Gives a different output at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.inner = 0, nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y: Tensor = self.inner(x) * float(self.calls)
        return y


def test_a_network_whose_traced_operations_give_another_answer_is_refused() -> None:
    with pytest.raises(UserError, match="give a different output"):
        Chain(nn.Sequential(Counts()), IMAGE)


def test_an_unused_operation_is_no_layer() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.unused = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            self.unused(x).new_zeros(3)
            y: Tensor = self.conv(x)
            return y

    assert [layer.name for layer in Chain(Idle().eval(), IMAGE).layers] == ["conv"]
