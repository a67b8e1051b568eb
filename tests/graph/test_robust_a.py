"""Kinds of networks that a trace easily writes down for the example alone, proved in all four forms."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dynbench.dynamic import Pick
from dynbench.graph import compiled, prove
from dynbench.models.condconv import Basic, MBConv, conditional
from dynbench.models.deepmoe import DeepMoEResNet
from dynbench.models.dmasking import dmasking
from dynbench.models.dynvit import dynvit
from dynbench.models.slimmable import slimmable
from dynbench.models.tome import tome
from tests.graph.networks import FORMS, SIZES


def channels() -> tuple[nn.Module, Tensor]:
    """Any channels may be closed, of a convolution all of them."""
    return DeepMoEResNet(8, 10, "cifar", 0.25, False, (4, 4)), torch.randn(7, 3, 16, 16)


def levels() -> tuple[nn.Module, Tensor]:
    """A few widths, each with statistics of its own."""
    return slimmable("cifar_resnet8", base=8), torch.randn(7, 3, 32, 32)


def prefixes() -> tuple[nn.Module, Tensor]:
    """More widths than are sliced beforehand, of a depthwise convolution."""
    return dmasking(channels=(4, 8), options=((8, 12),), blocks=1), torch.randn(7, 3, 32, 32)


def kernels(block: MBConv | Basic) -> tuple[nn.Module, Tensor]:
    """Kernels of each item's own."""
    return conditional("kernels", block, 4, 3, "sigmoid"), torch.randn(7, 4, 9, 9)


def pruned() -> tuple[nn.Module, Tensor]:
    """Picks in picks, the first part always."""
    net = dynvit("deit_s", places=(1, 2), image=16, patch=4, width=16, depth=3, heads=2, classes=5)
    with torch.no_grad():
        for weight in net.predictors.parameters():
            weight.mul_(4)  # or scores hardly differ, and rounding decides
    return net, torch.randn(7, 3, 16, 16)


def merged() -> tuple[nn.Module, Tensor]:
    """A stable sort, and sums over rows that occur again."""
    return tome("deit_s", r=4, image=16, patch=4, width=16, depth=3, heads=2, classes=5), torch.randn(7, 3, 16, 16)


class Picks(nn.Module):
    """Picks one after the other, the parts put back."""

    def __init__(self, d: int = 6) -> None:
        super().__init__()
        scores = [nn.Linear(d, 1) for _ in range(2)]
        self.picks = nn.ModuleList(Pick(f"pick{i}", Scores(s), Parts(d), lambda n: n // 2, back=True) for i, s in
                                   enumerate(scores))  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        for pick in self.picks:
            x = pick(x)
        return x


class Scores(nn.Module):
    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, there: Tensor | None) -> Tensor:
        return self.layer(x).squeeze(2)


class Parts(nn.Module):
    """Splits what it computes, which an exporter writes down as a Reshape."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.layer = nn.Linear(d, d)

    def forward(self, x: Tensor, there: Tensor | None = None) -> Tensor:
        return self.layer(x).unflatten(-1, (2, -1)).tanh().flatten(2)


KINDS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "channels": channels,
    "levels": levels,
    "prefixes": prefixes,
    "kernels": lambda: kernels(Basic(4, 6, 2)),
    "depthwise kernels": lambda: kernels(MBConv(4, 6, 5, 2, 2)),
    "pruned": pruned,
    "merged": merged,
    "picks": lambda: (Picks(), torch.randn(7, 8, 6)),
}


@pytest.mark.parametrize("single, replay", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_form_is_proved(kind: str, single: bool, replay: bool) -> None:
    torch.manual_seed(0)
    net, x = KINDS[kind]()
    graph = compiled(net.eval(), x, single=single, replay=replay)
    assert [check for check in prove(net, graph, x, SIZES) if not check.ok] == []
