"""ResNet has the size its paper says."""

from __future__ import annotations

import pytest
import torch

from dynbench.models.accounting import static_macs
from dynbench.models.resnet import resnet


@pytest.mark.parametrize(("depth", "macs", "params"), [(38, 83_280_512, 564_122), (110, 253_149_824, 1_730_714)])
def test_cifar_networks_have_the_known_size(depth: int, macs: int, params: int) -> None:
    net = resnet(depth)
    assert static_macs(net, (3, 32, 32)) == macs
    assert sum(p.numel() for p in net.parameters()) == params


@pytest.mark.parametrize(("depth", "params"), [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032), (101, 44_549_160)])
def test_imagenet_networks_have_the_known_size(depth: int, params: int) -> None:
    with torch.device("meta"):
        net = resnet(depth, num_classes=1000, dataset="imagenet")
    assert sum(p.numel() for p in net.parameters()) == params


def test_imagenet_resnet50_multiplies_as_often_as_known() -> None:
    with torch.device("meta"):
        net = resnet(50, num_classes=1000, dataset="imagenet")
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            net(torch.zeros(1, *net.input_shape((3, 32, 32))))
    assert counter.get_total_flops() / 2 == pytest.approx(4.089e9, rel=1e-3)


def test_a_block_without_residual_branch_passes_its_input_on() -> None:
    block = resnet(8).group1_layer0.eval()
    torch.nn.init.zeros_(block.bn2.weight)
    x = torch.rand(2, 16, 8, 8)
    with torch.inference_mode():
        assert torch.equal(block(x), x)


def test_larger_images_are_accepted() -> None:
    assert resnet(8, num_classes=7)(torch.zeros(2, 3, 48, 40)).shape == (2, 7)


@pytest.mark.parametrize(
    "args", [{"depth": 37}, {"depth": 2}, {"depth": 38, "dataset": "imagenet"}, {"dataset": "mnist"}]
)
def test_a_network_that_does_not_exist_is_refused(args: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"depth|dataset"):
        resnet(**args)
