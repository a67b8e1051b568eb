"""Adapted networks as one ONNX graph, compared with `per_sample`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dynbench.adapt import exits_at, skip_blocks
from dynbench.adapt.transformers import early_exit, mixture_of_experts
from dynbench.graph import compiled, prove
from tests.adapt import networks
from tests.adapt.test_exits import half, pooled
from tests.adapt.test_transformers import DECODERS, IDS, MIXTURES


def resnet() -> tuple[nn.Module, Tensor]:
    net, (x,) = networks.resnet()
    skipping = skip_blocks(net.eval(), ["layer3.1"], example=x)
    return exits_at(skipping, {"layer1": pooled(4), "layer2": pooled(8)}, half, example=x), x


def mixtral() -> tuple[nn.Module, Tensor]:
    return mixture_of_experts(MIXTURES["mixtral"], 4), IDS


def llama() -> tuple[nn.Module, Tensor]:
    return early_exit(DECODERS["llama"], [2], 0.3, 4), IDS


@pytest.mark.parametrize("make", [resnet, mixtral, llama])
def test_an_adapted_network_is_one_graph(make: Callable[[], tuple[nn.Module, Tensor]]) -> None:
    torch.manual_seed(0)
    net, x = make()
    graph = compiled(net.eval(), x, single=False)
    with torch.inference_mode():
        checks = prove(net, graph, x, (1, len(x)))
    assert checks and all(check.ok for check in checks), checks
