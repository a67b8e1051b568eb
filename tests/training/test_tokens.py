"""The recipes of token routing, pruning and merging, on next to nothing: files, cards, and what the losses do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dynbench.models.dynvit import dynvit
from dynbench.models.mixture_of_depths import mixture_of_depths
from dynbench.training import train_workload
from dynbench.training.mixture_of_depths import Both
from dynbench.training.tokens import Finetune, Pruned

QUICK = {"epochs": 1, "items": 64, "batch_size": 32}
VIT = {"image": 16, "patch": 4, "classes": 10, "width": 16, "depth": 4, "heads": 2, "mlp_ratio": 2, "stem": "conv"}


def card(out: Path, name: str) -> dict[str, Any]:
    made: dict[str, Any] = json.loads((out / f"{name}.json").read_text())
    return made


def test_the_pruned_network_is_trained_from_a_plain_one(tmp_path: Path) -> None:
    args = {**VIT, "ratio": 0.5, "places": [1, 2, 3]}
    images = {"name": "digits", "options": {"size": 16}}
    table = {"recipe": "dynbench.training.tokens:train_dynvit", "options": QUICK}
    train_workload(
        {"name": "dynvit_tiny", "inputs": images, "model_args": args, "train": table},
        tmp_path,
        resume=False,
        progress=False,
    )
    assert {p.stem for p in tmp_path.iterdir()} == {"vit_tiny", "vit_small_tiny", "dynvit_tiny"}
    facts, plain = card(tmp_path, "dynvit_tiny"), card(tmp_path, "vit_tiny")
    assert facts["tokens_left"] == [8, 4, 2] and facts["static_twin"]["accuracy"] == plain["accuracy"]
    assert card(tmp_path, "vit_small_tiny")["args"]["depth"] == 3
    assert set(plain["accuracy_when_merged"]) == {"r=1", "r=2", "r=4", "r=8", "r=12"}
    dynvit(**args).load_state_dict(load_file(tmp_path / "dynvit_tiny.safetensors"))


def test_mixture_of_depths_and_its_twin_are_trained_alike(tmp_path: Path) -> None:
    args = {"layers": 2, "width": 16, "heads": 2, "context": 16, "capacity": 0.25}
    text = {"name": "text", "options": {"context": 16}}
    table = {"recipe": "dynbench.training.mixture_of_depths:train", "options": QUICK}
    train_workload(
        {"name": "mod_tiny", "inputs": text, "model_args": args, "train": table}, tmp_path, resume=False, progress=False
    )
    net, twin = card(tmp_path, "mod_tiny"), card(tmp_path, "mod_twin_tiny")
    assert {**net["settings"]} == twin["settings"] and net["dense_twin"] == "mod_twin_tiny"
    assert net["decoding"]["always_no_would_be_right"] == 0.75
    assert 0 <= net["decoding"]["predictor_right"]["route1"] <= 1 and 0 < net["decoding"]["bits_per_byte"] < 9
    stored = load_file(tmp_path / "mod_tiny.safetensors")
    assert all(value.dtype == torch.float16 for value in stored.values())
    mixture_of_depths(**args).load_state_dict(stored)


def test_predictors_come_to_know_who_is_picked() -> None:
    torch.manual_seed(0)
    net = mixture_of_depths(layers=2, width=16, heads=2, context=16, vocab=11, capacity=0.25).train()
    x = torch.randint(0, 11, (8, 16))
    optimizer = torch.optim.Adam(net.predictors.parameters(), 0.02)
    loss, values = Both(1.0), []
    for _ in range(40):
        optimizer.zero_grad()
        value = loss(net, x, x)
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    with torch.no_grad():
        right = [float(((g > 0) == p).double().mean()) for g, p in net.training_form(x)[1]]
    assert values[-1] < values[0] and right[0] > 0.8  # always no would be right in 75 %


@pytest.mark.parametrize("ratio", [0.2, 0.8])
def test_the_ratio_loss_brings_as_many_tokens_as_asked(ratio: float) -> None:
    torch.manual_seed(0)
    net = dynvit(**VIT, ratio=ratio, places=(2,)).train()
    x, y = torch.randn(16, 3, 16, 16), torch.randint(10, (16,))
    optimizer = torch.optim.Adam(net.predictors.parameters(), 0.02)
    loss = Finetune(net.vit, Pruned(epochs=1, ratio_weight=100.0))
    for _ in range(30):
        optimizer.zero_grad()
        loss(net, x, y).backward()
        optimizer.step()
    with torch.no_grad():
        share = float(net.masked(x)[2].mean())
    assert abs(share - net.left[0] / 16) < 0.15 and abs(share - 0.5) > 0.1  # a half before
