"""`dynbench cost`: the table and the JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli import call

OWN = """
import torch
from torch import nn
from dynbench.dynamic import Skip


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.scale = float(torch.ones(1))  # looks at a value: cannot be built without memory
        self.skip = Skip("middle", lambda x, carry: (x[:, 0], carry), nn.Linear(width, width))

    def forward(self, x):
        return self.skip(x)[0]


def build(width: int = 8, **others):
    return Net(width)
"""


def cost(*args: object) -> dict[str, Any]:
    """The JSON of a model's cost."""
    result = call("cost", *args, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_the_json_has_the_documented_keys() -> None:
    found = cost("skipnet", "--set", "depth=8")
    assert list(found) == ["params", "macs", "flops", "exits", "decision_points"]
    assert found["flops"] == 2 * found["macs"] == 2 * cost("resnet", "--set", "depth=8")["macs"]
    assert [p["name"] for p in found["decision_points"]] == ["group2_layer0", "group3_layer0"]
    assert list(found["decision_points"][0]) == ["name", "kind", "region_macs", "gate_macs"]


def test_exits_are_cumulative() -> None:
    exits = cost("idk_cascade", "--set", "depths=(8, 14)")["exits"]
    eight, fourteen = (cost("resnet", "--set", f"depth={d}")["macs"] for d in (8, 14))
    assert exits == [eight, eight + fourteen]


def test_a_language_model_is_given_tokens_of_the_length_asked_for() -> None:
    settings = ("--set", "layers=1", "--set", "width=16", "--set", "heads=2", "--set", "ff_multiple=2.0")
    short, long = (cost("dense_gpt", *settings, "--input", tokens)["macs"] for tokens in ("8", "16"))
    attention = 2 * 16  # MACs per pair of positions: q k and its product with v
    per_token = 16 * (4 * 16 + 2 * 32 + 256)
    assert long - short == 8 * per_token + attention * (16**2 - 8**2)


def test_a_user_s_own_model_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    found = cost("own.py:build", "--set", "width=4", "--set", "anything=goes", "--input", "4")
    assert found["params"] == 4 * 4 + 4
    assert found["macs"] == 16
    assert found["decision_points"] == [{"name": "middle", "kind": "Skip", "region_macs": 16, "gate_macs": 0}]


def test_the_table_says_the_same() -> None:
    text = call("cost", "idk_cascade", "--set", "depths=(8, 14)").stdout
    found = cost("idk_cascade", "--set", "depths=(8, 14)")
    assert f"{found['params']:,}" in text
    assert all(f"{macs:,}" in text for macs in found["exits"])
    assert "cascade" in text
