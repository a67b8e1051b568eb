"""Parameters and multiply-accumulates of the models against the figures published for them, or following from them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dynbench.dynamic import points
from dynbench.meters.cost import cost
from dynbench.models.accounting import static_macs
from dynbench.models.resnet import resnet
from dynbench.models.skipnet import skipnet

CIFAR, IMAGENET = (3, 32, 32), (3, 224, 224)
EXACT, WITHIN_1_PERCENT = 1e-9, 1e-2

# model, arguments, quantity, figure, tolerance, where it is from
DEFINITION = "the layers' definitions (He et al. 2016, section 4.2), with option B shortcuts"
FIGURES: list[tuple[str, dict[str, Any], str, float, float, str]] = [
    ("ResNet-38", {"depth": 38}, "macs", 83_280_512, EXACT, DEFINITION),
    ("ResNet-38", {"depth": 38}, "params", 564_122, EXACT, DEFINITION),
    ("ResNet-74", {"depth": 74}, "macs", 168_215_168, EXACT, DEFINITION),
    ("ResNet-110", {"depth": 110}, "macs", 253_149_824, EXACT, DEFINITION),
    ("ResNet-110", {"depth": 110}, "params", 1_730_714, EXACT, DEFINITION),
    ("ResNet-152", {"depth": 152}, "macs", 352_240_256, EXACT, DEFINITION),
    ("ResNet-110", {"depth": 110}, "macs", 2.5e8, 2e-2, "SkipNet paper: '2.5e8 FLOPs', which are MACs; two digits"),
    (
        "ResNet-50",
        {"depth": 50, "dataset": "imagenet", "num_classes": 1000},
        "macs",
        4.089e9,
        WITHIN_1_PERCENT,
        "counted from the definition, stride on the 3x3",
    ),
    (
        "ResNet-101",
        {"depth": 101, "dataset": "imagenet", "num_classes": 1000},
        "macs",
        7.801e9,
        WITHIN_1_PERCENT,
        "counted from the definition, stride on the 3x3",
    ),
]


@pytest.mark.parametrize(("name", "args", "quantity", "figure", "tolerance", "where"), FIGURES)
@pytest.mark.parametrize("factory", [resnet, skipnet])
def test_static_networks_and_static_twins_cost_what_is_published(
    factory: Any, name: str, args: dict[str, Any], quantity: str, figure: float, tolerance: float, where: str
) -> None:
    with torch.device("meta"):
        net = factory(**args)
    if quantity == "params":
        gates = sum(p.numel() for n, p in net.named_parameters() if "gate" in n or "control" in n)
        ours = sum(p.numel() for p in net.parameters()) - gates
    else:
        ours = static_macs(net, net.input_shape(CIFAR))
    assert ours == pytest.approx(figure, rel=tolerance), where


@pytest.mark.parametrize(
    ("depth", "dataset", "decisions"),
    [
        (38, "cifar", 17),
        (74, "cifar", 35),
        (110, "cifar", 53),
        (152, "cifar", 74),
        (18, "imagenet", 7),
        (34, "imagenet", 15),
        (50, "imagenet", 15),
        (101, "imagenet", 32),
        (152, "imagenet", 49),
    ],
)
def test_skipnet_decides_about_every_block_but_the_first(depth: int, dataset: str, decisions: int) -> None:
    with torch.device("meta"):
        net = skipnet(depth, dataset=dataset)
    assert len(points(net)) == decisions


# share of a stride-1 block's 4,718,592 MACs, in percent, on the map each group works on (authors' code, counted)
GATES = [("rnn", 0.020, 0.031), ("ff1", 15.62, 15.64), ("ff2", 12.49, 12.51)]


@pytest.mark.parametrize(("gate", "least", "most"), GATES)
def test_gates_cost_their_published_share_of_a_block(gate: Any, least: float, most: float) -> None:
    for point in cost(skipnet(20, gate), torch.zeros(1, *CIFAR))["decision_points"]:
        assert least < 100 * point["gate_macs"] / 4_718_592 < most, point["name"]


def test_blocks_cost_the_same_but_for_those_of_stride_2() -> None:
    table = cost(skipnet(20), torch.zeros(1, *CIFAR))["decision_points"]
    stride_2 = {"group2_layer0", "group3_layer0"}
    for point in table:
        # without the 131,072 of the shortcut, which is computed whether the block runs or not
        assert point["region_macs"] == (3_538_944 if point["name"] in stride_2 else 4_718_592)
    assert {point["name"] for point in table} > stride_2


def test_an_imagenet_bottleneck_costs_what_its_definition_says() -> None:
    table = {p["name"]: p for p in cost(skipnet(50, dataset="imagenet"), torch.zeros(1, *IMAGENET))["decision_points"]}
    assert table["group1_layer1"]["region_macs"] == pytest.approx(0.2184e9, rel=1e-3)
    assert table["group4_layer2"]["region_macs"] == pytest.approx(0.2184e9, rel=1e-3)
