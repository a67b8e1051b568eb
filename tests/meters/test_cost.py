"""Cost on paper, from the modules."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dynbench.counting.params import count_params
from dynbench.dynamic import Weights, points
from dynbench.meters.cost import cost
from dynbench.models.resnet import resnet
from tests.meters.test_required import Tiny
from tests.networks import NETWORKS, make


def test_static_net_costs_its_closed_form() -> None:
    conv, fc = nn.Conv2d(3, 8, 3, bias=False), nn.Linear(8 * 36, 10)
    net = nn.Sequential(conv, nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), fc)
    macs = 36 * 8 * 27 + 8 * 36 * 10
    assert cost(net, torch.zeros(1, 3, 8, 8)) == {
        "params": 8 * 27 + 16 + 8 * 36 * 10 + 10,
        "macs": macs,
        "flops": 2 * macs,
        "exits": [],
        "decision_points": [],
    }


@pytest.mark.parametrize(("depth", "gmacs"), [(18, 1.81), (50, 4.09), (152, 11.5)])
def test_imagenet_resnets_cost_what_is_published(depth: int, gmacs: float) -> None:
    """torchvision's model pages: 1.81, 4.09 and 11.51 GFLOPS, which are MACs."""
    with torch.device("meta"):
        net = resnet(depth=depth, dataset="imagenet", num_classes=1000)
    found = cost(net.to_empty(device="cpu"), torch.zeros(1, 3, 224, 224))
    assert found["macs"] / 1e9 == pytest.approx(gmacs, rel=0.02)


class FirstRows(nn.Module):
    """As many rows of a layer as the code says; all of them for a batch of several codes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 6, bias=False)

    def forward(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        return self.linear(x)

    def special(self, rows: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda x: nn.functional.linear(x, self.linear.weight[: int(rows) + 1])


def test_weights_of_known_codes_cost_what_the_layer_made_for_one_does() -> None:
    for codes, macs in ((3, 4 * (1 + 2 + 3) / 3), (1, 4), (None, 4 * 6)):
        net = Weights("w", lambda x: x[:, 0].long(), lambda code: code, FirstRows(), codes=codes)
        found = cost(net, torch.zeros(1, 4))
        assert found["macs"] == 4 * 6
        assert found["decision_points"] == [{"name": "w", "kind": "Weights", "region_macs": macs, "gate_macs": 0}]


def test_an_exit_costs_all_before_it_with_its_heads_and_a_point_its_region_and_gate() -> None:
    stem, mix, gate, body, head = 16, 16, 4, 64, 12
    found = cost(Tiny(), torch.zeros(1, 4))
    assert found["macs"] == stem + 2 * (mix + body) + head
    assert found["exits"] == [stem + (mix + body + head), stem + 2 * (mix + body + head)]
    assert found["decision_points"] == [
        {"name": "exit", "kind": "Exits", "region_macs": 2 * (mix + body), "gate_macs": 0},
        {"name": "skip0", "kind": "Skip", "region_macs": body, "gate_macs": gate},
        {"name": "skip1", "kind": "Skip", "region_macs": body, "gate_macs": gate},
    ]


def test_a_route_costs_one_expert_for_one_token() -> None:
    net, args = make("moe_exits")
    route = next(p for p in cost(net, *args)["decision_points"] if p["name"] == "moe0")
    assert route == {"name": "moe0", "kind": "Route", "region_macs": 2 * 16 * 32, "gate_macs": 16 * 4}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_word_can_be_costed(name: str) -> None:
    net, args = make(name)
    found = cost(net, *args)
    assert [p["name"] for p in found["decision_points"]] == list(points(net))
    assert found["macs"] > 0 and all(a < b for a, b in zip(found["exits"], found["exits"][1:], strict=False))


def test_a_model_that_looks_at_values_is_run_in_earnest() -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x) if x.sum().item() >= 0 else x

    assert cost(Looks(), torch.ones(1, 4))["macs"] == 12


def test_an_operator_without_a_formula_is_named() -> None:
    class Distance(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cdist(x, x)

    assert "_cdist_forward" in cost(Distance(), torch.ones(1, 2, 4))["macs"]["unavailable"]


def test_shared_parameters_count_once() -> None:
    layer = nn.Linear(4, 4)
    assert count_params(nn.Sequential(layer, layer)) == 20
