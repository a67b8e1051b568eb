"""The networks of `tests.networks` as functions of one tensor, which is what a graph takes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dynbench.dynamic import Loop, Shared
from dynbench.graph import Graph, compiled
from tests.networks import NETWORKS, make, mlp


class Given(nn.Module):
    """A network of several arguments, all made from one tensor x [n, ...]."""

    def __init__(self, net: nn.Module, arguments: Callable[[Tensor], tuple[Any, ...]]) -> None:
        super().__init__()
        self.net, self.arguments = net, arguments

    def forward(self, x: Tensor) -> Any:
        return self.net(*self.arguments(x))


class Fixed(nn.Module):
    """A Loop that nobody leaves."""

    def __init__(self, d: int = 6) -> None:
        super().__init__()
        self.cell = mlp(d, 12)
        self.loop = Loop("fixed", lambda state, k: state + self.cell(state), None, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.loop(x)


def of_one_tensor(name: str, n: int = 7, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """(a network, x [n, ...])."""
    if name == "fixed":
        torch.manual_seed(seed)
        return Fixed().eval(), torch.randn(n, 6)
    net, args = make(name, n, seed)
    if name in ("moe_exits", "capacity_exits"):
        x, (h, _), table = args[0]
        zeros = lambda x: x.new_zeros(x.shape[0], h.shape[1])  # noqa: E731
        return Given(net, lambda x: ((x, (zeros(x), zeros(x)), Shared(table.value)),)).eval(), x
    if name == "generated":
        return Given(net, lambda x: (x, (10 * x[:, 0].abs()).long() % 3)).eval(), args[0]
    if name in ("programs", "programs_of_parts"):
        layouts = args[1][:1]
        return Given(net, lambda x: (x, layouts.expand(x.shape[0], *layouts.shape[1:]))).eval(), args[0]
    (x,) = args
    return net, x


GRAPHS = [*(n for n in NETWORKS if n not in ("fixed_loop", "programs", "programs_of_parts")), "fixed"]
FORMS = [(single, replay) for single in (True, False) for replay in (False, True)]
# the exporter writes down the example's number of items where a Pick decides itself and some parts always go on
PROVED = [(n, *form) for n in GRAPHS for form in FORMS if (n, *form) != ("picking", False, False)]
SIZES = (1, 2, 7)  # none is that of the example that a graph is traced with


@functools.cache
def graph_of(name: str, single: bool, replay: bool) -> Graph:
    """The graph of a network, made once."""
    net, x = of_one_tensor(name)
    return compiled(net, x, single=single, replay=replay)
