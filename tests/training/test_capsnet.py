"""The CapsNet recipe, on next to nothing: file, card, and what the loss does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dynbench.models.capsnet import capsnet, lengths, margin_loss
from dynbench.training import train_workload
from dynbench.training.capsnet import MarginAndDrawing, brightness

ARGS: dict[str, Any] = {
    "routings": 3,
    "size": 18,
    "image_channels": 3,
    "channels": 8,
    "capsule_types": 2,
    "decoder": True,
    "decoder_widths": [16],
}


@pytest.mark.parametrize(("halt", "most"), [({}, 3.0), ({"halt": "convergence", "tolerance": 10.0}, 1.0)])
def test_a_capsnet_is_trained_with_a_card_that_says_how_long_it_iterates(
    tmp_path: Path, halt: dict[str, Any], most: float
) -> None:
    table = {
        "name": "capsnet_tiny",
        "inputs": {"name": "digits", "options": {"size": 18}},
        "model_args": {**ARGS, **halt},
        "train": {
            "recipe": "dynbench.training.capsnet:train",
            "options": {"capsnet": {"epochs": 1, "items": 64, "batch_size": 32}},
        },
    }
    train_workload(table, tmp_path, progress=False)
    facts = json.loads((tmp_path / "capsnet_tiny.json").read_text())
    assert facts["mean_iterations"] == most and facts["static_twin"]["iterations"] == 3
    assert len(facts["reach_rates"]) == 3 and sum(facts["reach_rates"]) == most
    assert 0 <= facts["accuracy"] <= 1 and 0 < facts["squared_error_per_pixel"] < 1
    stored = load_file(tmp_path / "capsnet_tiny.safetensors")
    assert all(value.dtype == torch.float16 for value in stored.values())
    capsnet(**ARGS).load_state_dict(stored)


def test_the_loss_is_the_margin_loss_and_the_weighted_squared_error_of_the_drawing() -> None:
    torch.manual_seed(0)
    net, x, y = capsnet(**ARGS), torch.randn(4, 3, 18, 18), torch.arange(4)
    with torch.no_grad():
        v = net.capsules(x)
        error = (net.reconstruct(v, y) - brightness(x, 3)).square().sum() / 4
        alone = MarginAndDrawing(0.0)(net, x, y)
        assert torch.allclose(alone, margin_loss(lengths(v), y))
        assert torch.allclose(MarginAndDrawing(0.01)(net, x, y), alone + 0.01 * error)


def test_what_is_drawn_is_the_image_before_it_was_normalised() -> None:
    x = torch.tensor([-2.0, 0.0, 1.0, 9.0]).view(1, 1, 2, 2)
    assert brightness(x, 3).flatten().tolist() == [0.0, 0.5, 0.75, 1.0]
    x = torch.cat([x, x, -x], 1)
    assert brightness(x, 1).shape == (1, 1, 2, 2)
