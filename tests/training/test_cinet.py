"""The recipe of CiNet on next to nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from dynbench.models.cinet import CiNet, Thumbnail
from dynbench.training import train_workload

ARGS: dict[str, Any] = {"image": 24, "patch": 4, "zoom": 2, "widths": [2, 2], "classifier_widths": [2, 4]}
SMALL: dict[str, Any] = {"image": 24, "patch": 4, "classifier_widths": [2, 4]}


def test_cinet_its_baselines_and_its_controls_are_trained_with_cards(tmp_path: Path) -> None:
    table = {
        "name": "cinet_tiny",
        "model_args": ARGS,
        "inputs": {"name": "digit_scenes", "options": {"size": 24}},
        "baselines": [
            {"name": "all"},
            {
                "model": "dynbench.models.ram:PlainCNN",
                "model_args": {"image": 24, "widths": [2, 4]},
                "weights": "weights/cnn_tiny.safetensors",
            },
            {
                "model": "dynbench.models.cinet:Thumbnail",
                "model_args": SMALL,
                "weights": "weights/thumbnail_tiny.safetensors",
            },
        ],
        "train": {"recipe": "dynbench.training.cinet:train", "options": {"epochs": 1, "items": 64, "batch_size": 32}},
    }
    train_workload(table, tmp_path, progress=False)
    assert {p.name for p in tmp_path.iterdir()} == {
        f"{net}_tiny.{kind}" for net in ("cinet", "cnn", "thumbnail") for kind in ("json", "safetensors")
    }
    CiNet(**ARGS).load_state_dict(load_file(tmp_path / "cinet_tiny.safetensors"))
    Thumbnail(**SMALL).load_state_dict(load_file(tmp_path / "thumbnail_tiny.safetensors"))
    card = json.loads((tmp_path / "cinet_tiny.json").read_text())
    assert (card["sent_bytes"], card["image_bytes"], card["args"]) == (16, 576, ARGS)
    for accuracy in ("accuracy", "accuracy_at_the_centre", "accuracy_with_places_of_other_images"):
        assert 0 <= card[accuracy] <= 1
    assert card["static_twin"]["accuracy"] == card["accuracy"]  # the computation is the same for every input
    before = (tmp_path / "cinet_tiny.safetensors").read_bytes()
    train_workload(table, tmp_path, progress=False, resume=True)
    assert (tmp_path / "cinet_tiny.safetensors").read_bytes() == before
