"""The Universal Transformer's recipe, on next to nothing: files, cards, and what the ponder cost does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dynbench.models.universal import universal_transformer
from dynbench.training import train_workload
from dynbench.training.session import cross_entropy
from dynbench.training.universal import MODEL, PonderLoss

ARGS: dict[str, Any] = {"steps": 4, "width": 16, "heads": 2, "context": 16, "bias": -1.0}


def train(out: Path, resume: bool = False) -> None:
    quick = {"epochs": 1, "items": 64, "batch_size": 32}
    table = {
        "name": "universal_tiny",
        "inputs": {"name": "text", "options": {"context": 16}},
        "model_args": ARGS,
        "baselines": [{"name": "two", "model": MODEL, "model_args": {**ARGS, "steps": 2, "halting": "none"}}],
        "train": {
            "recipe": "dynbench.training.universal:train",
            "options": {"fixed": quick, "ponder": {**quick, "tau": 0.1}},
        },
    }
    train_workload(table, out, resume=resume, progress=False)


def test_networks_of_fixed_depth_come_first_and_the_one_that_ponders_goes_on_from_the_deepest(tmp_path: Path) -> None:
    train(tmp_path)
    names = {"universal_tiny", "universal2_tiny", "universal4_tiny"}
    assert {p.name for p in tmp_path.iterdir()} == {f"{n}.{kind}" for n in names for kind in ("json", "safetensors")}
    facts = json.loads((tmp_path / "universal_tiny.json").read_text())
    assert facts["started_from"] == "universal4_tiny" and facts["settings"]["tau"] == 0.1
    assert 1 <= facts["mean_ponder_steps"] <= 4
    shares = facts["share_by_steps"]
    assert sum(shares) == pytest.approx(1, abs=1e-3)
    assert sum(n * s for n, s in enumerate(shares, 1)) == pytest.approx(facts["mean_ponder_steps"], abs=1e-3)
    assert 0 < facts["bits_per_byte"] < 9 and 0 < facts["static_twin"]["bits_per_byte"] < 9
    universal_transformer(**ARGS).load_state_dict(load_file(tmp_path / "universal_tiny.safetensors"))
    two = {**ARGS, "steps": 2, "halting": "none"}
    universal_transformer(**two).load_state_dict(load_file(tmp_path / "universal2_tiny.safetensors"))
    (tmp_path / "universal_tiny.json").unlink()
    before = (tmp_path / "universal4_tiny.safetensors").stat().st_mtime_ns
    train(tmp_path, resume=True)
    assert (tmp_path / "universal4_tiny.safetensors").stat().st_mtime_ns == before
    assert (tmp_path / "universal_tiny.json").is_file()


def test_the_loss_is_the_cross_entropy_and_tau_times_the_mean_ponder_cost() -> None:
    torch.manual_seed(0)
    net = universal_transformer(**{**ARGS, "bias": -20.0})  # no item halts: N = 4, R = 1, as the static twin
    x = torch.randint(256, (3, 16))
    plain = PonderLoss(0.0)(net, x, x)
    assert torch.allclose(plain, cross_entropy(net, x, x), atol=1e-4)
    assert torch.allclose(PonderLoss(0.5)(net, x, x), plain + 0.5 * 5, atol=1e-4)
