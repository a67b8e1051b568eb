"""The recipes, on next to nothing: files, cards, and what the losses do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dynbench.dynamic import Execution, points
from dynbench.models.idk import idk_cascade
from dynbench.models.moe_gpt import moe_gpt
from dynbench.models.skipnet import SkipNet, skipnet
from dynbench.strategies import Masking
from dynbench.training import train_workload
from dynbench.training.skipnet import Hybrid, Pressed, Reinforced, Supervised, open_gates, pressure, sharpen_gates

IMAGES = {"name": "digits", "options": {"size": 16}}
QUICK = {"epochs": 1, "items": 64, "batch_size": 32}


def train(out: Path, resume: bool = False, **table: Any) -> None:
    train_workload({"inputs": IMAGES, **table}, out, resume=resume, progress=False)


def card(out: Path, name: str) -> dict[str, Any]:
    made: dict[str, Any] = json.loads((out / f"{name}.json").read_text())
    return made


def test_skipnet_and_its_static_twin_are_trained_with_a_card_each(tmp_path: Path) -> None:
    args = {"depth": 8, "gate": "rnn"}
    table = {"recipe": "dynbench.training.skipnet:train", "options": QUICK}
    train(tmp_path, name="skipnet8_tiny", model_args=args, train=table)
    assert {p.name for p in tmp_path.iterdir()} == {
        f"{net}8_tiny.{kind}" for net in ("resnet", "skipnet") for kind in ("json", "safetensors")
    }
    net = skipnet(**args)
    missing = net.load_state_dict(load_file(tmp_path / "skipnet8_tiny.safetensors"), strict=False)
    assert not missing.unexpected_keys
    facts = card(tmp_path, "skipnet8_tiny")
    assert facts["args"] == args and facts["recipe"] == "dynbench train skipnet8_tiny"
    assert set(facts["keep_rates"]) == set(points(net)) and set(facts["stages"]) == {"supervised", "hybrid"}
    blocks = 1 + sum(facts["keep_rates"].values())
    assert facts["computation"] == pytest.approx(blocks / 3, abs=1e-3)
    assert facts["static_twin"]["accuracy"] == card(tmp_path, "resnet8_tiny")["accuracy"]


def test_cascade_s_classifiers_are_trained_once_and_the_rule_follows(tmp_path: Path) -> None:
    table = {"recipe": "dynbench.training.cascade:train", "options": {**QUICK, "rule": {"epochs": 3}}}
    for rule in ("entropy", "learned"):
        train(tmp_path, True, name="idk_tiny", model_args={"depths": [8, 14], "rule": rule}, train=table)
        facts = card(tmp_path, "idk_tiny")
        assert facts["rule"]["kind"] == rule and len(facts["rule"]["thresholds"]) == 1
        assert facts["reach_rates"][0] == 1
        macs = [c["macs"] for c in facts["classifiers"]]
        expected = (macs[0] + facts["reach_rates"][1] * macs[1]) / macs[1]
        assert facts["computation"] == pytest.approx(expected, abs=1e-3)
        policy = idk_cascade((8, 14), rule=rule).policy
        policy.load_state_dict(load_file(tmp_path / "idk_tiny.safetensors"))
        assert policy.thresholds.tolist() == pytest.approx(facts["rule"]["thresholds"])
        (tmp_path / "idk_tiny.json").unlink()
        trained_at = (tmp_path / "resnet14_tiny.safetensors").stat().st_mtime_ns
    assert (tmp_path / "resnet14_tiny.safetensors").stat().st_mtime_ns == trained_at


def test_mixture_and_dense_twin_are_trained_alike(tmp_path: Path) -> None:
    args = {"layers": 1, "width": 16, "heads": 2, "experts": 4, "k": 2, "context": 16}
    table = {"recipe": "dynbench.training.lm:train", "options": QUICK}
    text = {"name": "text", "options": {"context": 16}}
    train(tmp_path, name="moe_tiny", inputs=text, model_args=args, train=table)
    moe, dense = card(tmp_path, "moe_tiny"), card(tmp_path, "dense_tiny")
    assert moe["settings"] == dense["settings"] and moe["stored_as"] == "float16"
    assert dense["args"]["ff_multiple"] == 2 and 0 < moe["bits_per_byte"] < 9
    assert sum(moe["expert_shares"]["moe0"]) == pytest.approx(1, abs=1e-3)
    stored = load_file(tmp_path / "moe_tiny.safetensors")
    assert all(value.dtype == torch.float16 for value in stored.values())
    moe_gpt(**args).load_state_dict(stored)


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(16, 3, 16, 16, generator=generator), torch.randint(10, (16,), generator=generator)


@pytest.fixture
def net() -> SkipNet:
    torch.manual_seed(0)
    return skipnet(14).train()


def gate_gradient(net: SkipNet) -> float:
    assert net.control is not None
    return sum(float(p.grad.abs().sum()) for p in net.control.parameters() if p.grad is not None)


def test_hybrid_stage_teaches_gates_by_reward_alone(net: SkipNet) -> None:
    x, y = batch()
    Hybrid(Reinforced(epochs=1, rl_weight=0.0, pressure=0.0))(net, x, y).backward()
    assert gate_gradient(net) == 0 and float(net.fc.weight.grad.abs().sum()) > 0
    Hybrid(Reinforced(epochs=1, rl_weight=1.0, pressure=0.0))(net, x, y).backward()
    assert gate_gradient(net) > 0


def test_reward_to_go_counts_what_is_skipped_from_here_on() -> None:
    hybrid = Hybrid(Reinforced(epochs=1, alpha=0.6))
    g = torch.tensor([[1.0], [0.0], [0.0]])
    assert hybrid._rewards(torch.tensor([0.5]), g).flatten().tolist() == pytest.approx([-0.1, -0.1, -0.3])


def test_reward_for_skipping_closes_gates(net: SkipNet) -> None:
    x, y = batch()
    optimizer = torch.optim.SGD(net.control.parameters(), 0.5)
    loss = Hybrid(Reinforced(epochs=1, alpha=100.0, pressure=0.0))
    torch.manual_seed(0)
    before = mean_share(net, x)
    for _ in range(20):
        optimizer.zero_grad()
        loss(net, x, y).backward()
        optimizer.step()
    assert mean_share(net, x) < before


def mean_share(net: SkipNet, x: Tensor) -> float:
    scores: list[Tensor] = []
    with torch.no_grad():
        Execution(Masking(), observe=lambda point, s, keep: scores.append(s.sigmoid().mean())).run(net, x)
    return float(torch.stack(scores).mean())


def test_pressure_pushes_the_share_towards_its_target(net: SkipNet) -> None:
    x, y = batch()
    open_gates(net, 3.0)
    optimizer = torch.optim.SGD(net.control.parameters(), 0.5)
    loss = Supervised(Pressed(epochs=1, target=0.2, pressure=100.0))
    before = mean_share(net, x)
    for _ in range(20):
        optimizer.zero_grad()
        loss(net, x, y).backward()
        optimizer.step()
    assert mean_share(net, x) < before


def test_pressure_is_none_at_the_target() -> None:
    kept = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])  # 2 of 3, and the first: 3 of 4
    assert float(pressure(kept, Pressed(epochs=1, target=0.75))) == 0
    assert float(pressure(kept, Pressed(epochs=1, target=0.25, pressure=2.0))) == pytest.approx(0.5)


@pytest.mark.parametrize("gate", ["rnn", "ff1", "ff2"])
def test_opened_gates_run_nearly_everything_and_sharpened_ones_decide_alike(gate: Any) -> None:
    torch.manual_seed(0)
    net, (x, _) = skipnet(14, gate).eval(), batch()

    def decisions() -> list[Tensor]:
        ex = Execution(Masking(), record=True)
        with torch.no_grad():
            ex.run(net, x)
        assert ex.trace is not None
        return [entry.value for entry in ex.trace.entries.values()]

    undecided = decisions()
    sharpen_gates(net, 20.0)
    assert all(torch.equal(a, b) for a, b in zip(undecided, decisions(), strict=True))
    open_gates(net, 1000.0)
    assert all(entry.all() for entry in decisions())
