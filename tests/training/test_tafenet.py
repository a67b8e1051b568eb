"""TAFE-Net's recipe, on next to nothing: files, cards, what is learned from what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dynbench.data.attribute_objects import load, pairs_of
from dynbench.errors import UserError
from dynbench.models.tafenet import tafenet, tafenet_classifier, tafenet_loss
from dynbench.training import train_workload
from dynbench.training.tafenet import PairsPresent, plain_loss

ARGS: dict[str, Any] = {"tasks": [6, 6], "embedding": 8, "widths": [8, 8], "hidden": 8, "cnn": [4, 8]}
INPUTS: dict[str, Any] = {"name": "attribute_objects", "options": {"size": 16}}
QUICK = {"epochs": 1, "items": 64, "batch_size": 32}


def train(out: Path, inputs: dict[str, Any] = INPUTS, args: dict[str, Any] = ARGS) -> None:
    recipe = {"recipe": "dynbench.training.tafenet:train", "options": QUICK}
    table = {"name": "tafenet_tiny", "inputs": inputs, "model_args": args, "train": recipe}
    train_workload(table, out, resume=True, progress=False)


def test_extractor_baselines_and_tafenet_are_trained_with_a_card_each(tmp_path: Path) -> None:
    train(tmp_path)
    names = {"tafenet_tiny", *(f"tafenet_tiny_{part}" for part in ("features", "factors", "pairs"))}
    assert {p.name for p in tmp_path.iterdir()} == {f"{n}.{kind}" for n in names for kind in ("json", "safetensors")}
    cards = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in names}
    stored = {name: load_file(tmp_path / f"{name}.safetensors") for name in names}
    tafenet(**ARGS).load_state_dict(stored["tafenet_tiny"])
    for key, value in stored["tafenet_tiny_features"].items():
        if key.startswith("cnn.") and value.is_floating_point():  # frozen: all three have the same
            assert torch.equal(stored["tafenet_tiny_factors"][key], value)
            assert torch.equal(stored["tafenet_tiny_pairs"][key], value)
            assert torch.equal(stored["tafenet_tiny"][key], value.half())
    assert "other colours" in cards["tafenet_tiny_features"]["training_data"]["description"]
    for name in names - {"tafenet_tiny_features"}:
        assert "seen pairs of 6 colours" in cards[name]["training_data"]["description"]
    facts = cards["tafenet_tiny"]
    assert facts["args"] == ARGS and facts["recipe"] == "dynbench train tafenet_tiny"
    assert set(facts["accuracy_of"]) >= {"seen", "unseen", "harmonic_mean", "unseen_among_unseen", "chance"}
    assert facts["accuracy_of"]["chance_among_unseen"] == pytest.approx(1 / 12, abs=1e-4)
    assert facts["static_twin"]["accuracy"] == pytest.approx(facts["accuracy"], abs=2e-3)
    written = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    train(tmp_path)  # all is there: nothing is made again
    assert written == {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}


def test_an_image_is_compared_with_the_pairs_of_its_batch() -> None:
    torch.manual_seed(0)
    net = tafenet(**ARGS).eval()
    x, y = torch.randn(4, 3, 16, 16), torch.tensor([7, 3, 7, 30])
    present = torch.tensor([3, 7, 30])
    with torch.no_grad():
        loss = PairsPresent(0.3)(net, x, y)
        features = net.cnn(x).repeat_interleave(3, 0)  # type: ignore[misc]
        said, similar = (t.view(4, 3) for t in net.published(features, present.repeat(4)))
        assert torch.allclose(said, net(x)[:, present], atol=1e-6)
    right = torch.tensor([[0.0, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    assert float(loss) == pytest.approx(float(tafenet_loss(said, similar, right, 0.3)), abs=1e-6)


def test_attribute_and_object_are_learned_apart() -> None:
    net, x = tafenet_classifier(cnn=[4, 8]), torch.randn(4, 3, 16, 16)
    y = torch.tensor([0, 7, 14, 35])
    plain_loss(net, x, y).backward()
    both = net.attribute.weight.grad, net.object.weight.grad
    net.zero_grad()
    with torch.no_grad():
        net.object.weight.mul_(-3)
    plain_loss(net, x, y).backward()
    assert both[0] is not None and net.attribute.weight.grad is not None
    assert torch.allclose(both[0], net.attribute.weight.grad, atol=1e-6)


def test_no_image_of_an_unseen_pair_is_learned_from() -> None:
    labels = load("train", limit=500, size=16).labels
    assert labels is not None and not set(labels) & set(pairs_of("unseen"))


@pytest.mark.parametrize(
    ("inputs", "args", "says"),
    [
        ({"name": "digits"}, ARGS, "attribute_objects"),
        (INPUTS, {**ARGS, "cnn": []}, "a `cnn`"),
        (INPUTS, {**ARGS, "tasks": [3, 3]}, r"accepted: \[6, 6\]"),
    ],
)
def test_what_cannot_be_learned_is_refused(
    inputs: dict[str, Any], args: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=says):
        train(tmp_path, inputs, args)
