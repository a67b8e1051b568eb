"""DeepMoE's recipe: its loss, what is frozen, and what the card says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from dynbench.dynamic import Execution
from dynbench.models.deepmoe import deepmoe
from dynbench.strategies import Masking
from dynbench.training import train_workload
from dynbench.training.deepmoe import Joint, Sparse, chosen_by, embedding_loss, frozen_loss, gates, spread_gates


def batch(n: int = 8) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 3, 16, 16), torch.randint(10, (n,))


def settings(**given: float) -> Joint:
    return Joint(epochs=1, **given)  # type: ignore[arg-type]


def test_the_loss_is_that_of_the_network_the_open_gates_and_the_embedding_network() -> None:
    torch.manual_seed(0)
    net, (x, y) = deepmoe(8, embedding=[4]).eval(), batch()
    with torch.no_grad():
        for gate in gates(net):
            gate.weight.uniform_(-1, 1)
        logits = net.embedding(x)
        g = torch.cat([F.relu(logits.softmax(1) @ gate.weight.T) for gate in gates(net)], 1)
        share = (g > 0).double().mean()
        assert 0.3 < share < 0.7
        sparse = 0.02 * (share - 0.2) / 0.8 * g.sum(1).mean()
        want = F.cross_entropy(Execution(Masking()).run(net, x), y) + sparse + 3 * F.cross_entropy(logits, y)
        got = Sparse(settings(sparsity=0.02, target=0.2, embedding_weight=3))(net, x, y)
        assert got.item() == pytest.approx(want.item(), rel=1e-5)
        beyond = Sparse(settings(sparsity=100, target=0.9, embedding_weight=0))(net, x, y)
        assert beyond.item() == pytest.approx(F.cross_entropy(Execution(Masking()).run(net, x), y).item(), rel=1e-5)


def test_sparsity_closes_gates_down_to_the_target_and_leaves_the_embedding_alone() -> None:
    torch.manual_seed(0)
    net, (x, y) = deepmoe(8, embedding=[4]).train(), batch(32)
    loss = Sparse(settings(sparsity=1.0, target=0.5, embedding_weight=0.0))

    def share() -> float:
        with torch.no_grad():
            e = net.embedding(x).softmax(1)
            return torch.cat([gate(e) > 0 for gate in gates(net)], 1).double().mean().item()

    assert share() > 0.9
    optimizer = torch.optim.SGD([gate.weight for gate in gates(net)], 0.3)
    for _ in range(30):
        optimizer.zero_grad()
        loss(net, x, y).backward()
        optimizer.step()
    assert 0.3 < share() < 0.7
    heavy, light = (Sparse(settings(sparsity=s, target=0.0, embedding_weight=0.0)) for s in (1000.0, 0.0))
    gradients = []
    for each in (heavy, light):
        net.zero_grad()
        each(net, x, y).backward()
        assert net.embedding.fc.weight.grad is not None
        gradients.append(net.embedding.fc.weight.grad.clone())
    assert torch.equal(*gradients)


def test_gates_begin_around_one_lower_for_some_channels_and_for_some_classes() -> None:
    torch.manual_seed(0)
    weight = torch.empty(500, 10)
    spread_gates(weight, settings(spread=0.75, class_spread=0.25))
    channels, within = weight.mean(1), weight - weight.mean(1, keepdim=True)
    assert 0.1 < channels.min() < 0.4 and 1.6 < channels.max() < 1.9 and abs(channels.mean() - 1) < 0.1
    assert 0.2 < within.abs().max() < 0.5


def test_what_decides_is_frozen_in_the_last_stage() -> None:
    torch.manual_seed(0)
    net, (x, y) = deepmoe(8, embedding=[4]), batch()
    for p in chosen_by(net):
        p.requires_grad = False
    before = {name: t.clone() for name, t in net.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1)
    frozen_loss(net.train(), x, y).backward()
    optimizer.step()
    changed = {name for name, t in net.state_dict().items() if not torch.equal(t, before[name])}
    deciding = {name for name in before if name.startswith(("embedding", "mixtures"))}
    assert not changed & deciding
    assert {"conv1.weight", "bn1.running_mean", "group1_layer0.conv1.weight", "fc.bias"} <= changed


def test_the_first_stage_trains_the_embedding_network_alone() -> None:
    net, (x, y) = deepmoe(8, embedding=[4]).train(), batch()
    embedding_loss(net, x, y).backward()
    moved = {name for name, p in net.named_parameters() if p.grad is not None}
    assert moved == {name for name, _ in net.named_parameters() if name.startswith("embedding")}


def test_it_is_trained_from_its_static_twin_with_a_card(tmp_path: Path) -> None:
    table: dict[str, Any] = {
        "recipe": "dynbench.training.deepmoe:train",
        "options": {"epochs": 1, "items": 64, "batch_size": 32},
    }
    table["options"]["joint"] = {"class_spread": 2.0}  # some gates are closed from the start
    train_workload(
        {
            "name": "deepmoe8_tiny",
            "inputs": {"name": "digits", "options": {"size": 16}},
            "model_args": {"depth": 8, "embedding": [4, 8]},
            "train": table,
        },
        tmp_path,
        progress=False,
    )
    names = ("deepmoe8_tiny", "resnet8_tiny")
    assert {p.name for p in tmp_path.iterdir()} == {f"{n}.{kind}" for n in names for kind in ("json", "safetensors")}
    net: nn.Module = deepmoe(8, embedding=[4, 8])
    net.load_state_dict(load_file(tmp_path / "deepmoe8_tiny.safetensors"))
    card = json.loads((tmp_path / "deepmoe8_tiny.json").read_text())
    assert card["channels"] == 2 * (16 + 32 + 64) and 0 < card["channels_closed"] < 1
    assert 0 < card["computation"] < 1 and card["static_twin"]["name"] == "resnet8_tiny"
    assert list(card["stages"]) == ["embedding", "joint", "frozen"]
    assert 1 <= max(card["distinct_masks_of_a_mixture"].values()) <= card["distinct_masks"]
