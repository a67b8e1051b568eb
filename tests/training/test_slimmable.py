"""Training at all widths, the sandwich rule, statistics measured again, and the gate of DS-Net."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from dynbench.models.dsnet import DSNet, dsnet, likeliest, macs_by_width
from dynbench.models.slimmable import at_level, slimmable
from dynbench.training import train_workload
from dynbench.training.slimmable import AllWidths, Gated, GateLoss, Sandwich, answers, calibrate

QUICK = {"epochs": 1, "items": 32, "batch_size": 16}


def batch(n: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n, 3, 8, 8, generator=generator), torch.randint(10, (n,), generator=generator)


def train(out: Path, name: str, recipe: str, args: dict[str, Any], **options: Any) -> dict[str, Any]:
    table = {"recipe": f"dynbench.training.slimmable:{recipe}", "options": {**QUICK, **options}}
    inputs = {"name": "digits", "options": {"size": 8}}
    train_workload({"name": name, "inputs": inputs, "model_args": args, "train": table}, out, progress=False)
    card: dict[str, Any] = json.loads((out / f"{name}.json").read_text())
    assert not list(out.glob("*.checkpoint"))
    return card


def test_a_slimmable_network_is_trained_with_an_accuracy_for_every_width(tmp_path: Path) -> None:
    args: dict[str, Any] = {"base": 8, "width": 0.5, "norm": "universal"}
    widths = {"sampled": 1, "distil": True, "calibration": 2}
    card = train(tmp_path, "slim_tiny", "train", args, widths=widths)
    assert list(card["by_width"]) == ["0.25", "0.5", "0.75", "1.0"]
    assert card["accuracy"] == card["by_width"]["0.5"]["accuracy"]
    macs = [w["macs"] for w in card["by_width"].values()]
    assert macs == sorted(macs) and card["trained_alone"]["name"] == "resnet8_tiny"
    slimmable(**args).load_state_dict(load_file(tmp_path / "slim_tiny.safetensors"))


def test_dsnet_is_trained_with_the_share_of_every_width(tmp_path: Path) -> None:
    args: dict[str, Any] = {"base": 8, "front": 8, "widths": [0.5, 1.0]}
    card = train(tmp_path, "dsnet_tiny", "train_dsnet", args)
    assert set(card["stages"]) == {"widths", "gate"} and list(card["by_width"]) == ["0.5", "1.0"]
    small, large = (w["macs"] for w in card["by_width"].values())
    mean = card["share_by_width"][0] * small + card["share_by_width"][1] * large
    assert card["macs"] == pytest.approx(mean, rel=1e-3)
    assert card["computation"] == pytest.approx(card["macs"] / large, abs=1e-3)
    assert 0 <= card["accuracy_with_the_decisions_of_another_input"] <= 1
    dsnet(**args).load_state_dict(load_file(tmp_path / "dsnet_tiny.safetensors"))


def test_every_width_learns_from_the_labels() -> None:
    torch.manual_seed(0)
    net, (x, y) = slimmable(base=8).train(), batch()
    loss = Sandwich(AllWidths(epochs=1))(net, x, y)
    want = sum(F.cross_entropy(at_level(net.body, level)(x), y) for level in range(4))
    assert loss.item() == pytest.approx(want.item(), rel=1e-5)  # type: ignore[union-attr]


def test_the_sandwich_is_the_greatest_the_smallest_and_some_between_and_teaches_itself() -> None:
    torch.manual_seed(0)
    net, (x, y) = slimmable(widths=(0.25, 0.5, 0.75, 1.0, 1.25), norm="universal", base=16).train(), batch()
    loss, seen = Sandwich(AllWidths(epochs=1, sampled=1, distil=True)), set[int]()
    for _ in range(12):
        norms: Any = net.body.features[0].norm.bn  # type: ignore[union-attr]
        means = [m.running_mean.clone() for m in norms]
        value = loss(net, x, y)
        ran = [i for i, m in enumerate(norms) if not torch.equal(m.running_mean, means[i])]
        assert len(ran) == 3 and {0, 4} < set(ran)
        seen |= set(ran)
        said = [at_level(net.body, i)(x) for i in ran]
        soft = said[-1].detach().softmax(1)
        want = F.cross_entropy(said[-1], y) + sum(F.cross_entropy(s, soft) for s in said[:-1])
        assert value.item() == pytest.approx(want.item(), rel=1e-4)
    assert seen == {0, 1, 2, 3, 4}


def test_calibration_is_the_mean_of_the_batches_at_every_width() -> None:
    torch.manual_seed(0)
    net, (x, _) = slimmable(norm="universal", base=16).train(), batch()
    net.eval()
    calibrate(net, x.split(4))
    for level, m in enumerate(net.body.features[0].norm.bn):  # type: ignore[union-attr, arg-type]
        said = at_level(net.body.features[0].conv, level)(x)  # type: ignore[union-attr, arg-type]
        assert torch.allclose(m.running_mean, said.mean((0, 2, 3)), atol=1e-5)
        each = torch.stack([part.var((0, 2, 3)) for part in said.split(4)])
        assert torch.allclose(m.running_var, each.mean(0), rtol=1e-4)
        assert m.momentum == 0.1
    assert not any(m.training for m in net.modules())


def gated() -> DSNet:
    torch.manual_seed(0)
    net = dsnet(base=8, front=8)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d) and m.running_mean is not None:
            nn.init.normal_(m.running_mean, 0, 0.3)
    return net


def test_a_gate_learns_who_is_easy_and_nothing_else_changes() -> None:
    net, (x, _) = gated(), batch(24)
    x[::2] *= 3  # so that there is something to see
    with torch.no_grad():
        y = answers(net.eval(), x, [0])[0].argmax(1)
    y[::2] = (y[::2] + 1) % 10  # hard, as the smallest width is wrong
    before = {k: v.clone() for k, v in net.state_dict().items() if not k.startswith("gate")}
    loss = GateLoss(Gated(epochs=1, target=0.0, cost=0.0), torch.tensor(macs_by_width(net, (3, 8, 8))).float())
    optimizer = torch.optim.Adam(net.gate.parameters(), 0.05)
    net.train()
    for _ in range(80):
        optimizer.zero_grad()
        loss(net, x, y).backward()
        optimizer.step()
    levels = likeliest(net.gate(net.front(x)[1])).sum(1)
    assert float((levels == torch.where(torch.arange(24) % 2 == 0, 3, 0)).float().mean()) > 0.8
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())


def test_cost_pushes_the_gate_to_small_widths() -> None:
    net, (x, y) = gated(), batch()
    macs = torch.tensor(macs_by_width(net, (3, 8, 8))).float()
    loss = GateLoss(Gated(epochs=1, easy=0.0, target=0.0, cost=10.0), macs)
    optimizer = torch.optim.Adam(net.gate.parameters(), 0.05)
    net.gate.choose.bias.data.copy_(torch.tensor([0.0, 0, 0, 2]))  # type: ignore[union-attr, operator]
    net.train()
    for _ in range(60):
        optimizer.zero_grad()
        loss(net, x, y).backward()
        optimizer.step()
    assert int(likeliest(net.gate(net.front(x)[1])).sum(1).max()) == 0
