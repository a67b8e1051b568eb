"""FiShNet's recipe, on next to nothing: files, cards, and what the cards say of sharing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from dynbench.errors import UserError
from dynbench.models.fishnet import fishnet, fishnet_apart, fishnet_one_trunk, folded
from dynbench.training import train_workload
from dynbench.training.fishnet import Joint, shared_filters

ARGS: dict[str, Any] = {"tasks": [10, 2], "widths": [4, 6], "strides": [2, 2], "bank": 1.5}
INPUTS = {"name": "digit_tasks", "options": {"of": "digits", "tasks": ["digit", "parity"], "size": 16}}
QUICK = {"epochs": 1, "items": 64, "batch_size": 32}


def train(out: Path, inputs: dict[str, Any] = INPUTS, **settings: Any) -> None:
    recipe = {"recipe": "dynbench.training.fishnet:train", "options": {**QUICK, **settings}}
    table = {"name": "fishnet_tiny", "inputs": inputs, "model_args": ARGS, "train": recipe}
    train_workload(table, out, resume=True, progress=False)


def test_fishnet_its_folded_form_and_both_baselines_are_trained_with_a_card_each(tmp_path: Path) -> None:
    train(tmp_path)
    names = {"fishnet_tiny", *(f"fishnet_tiny_{part}" for part in ("folded", "apart", "one_trunk"))}
    assert {p.name for p in tmp_path.iterdir()} == {f"{n}.{kind}" for n in names for kind in ("json", "safetensors")}
    cards = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in names}
    plain = {k: v for k, v in ARGS.items() if k != "bank"}
    net, kept = fishnet(**ARGS).eval(), fishnet_apart(**plain).eval()
    net.load_state_dict(load_file(tmp_path / "fishnet_tiny.safetensors"))
    kept.load_state_dict(load_file(tmp_path / "fishnet_tiny_folded.safetensors"))
    fishnet_one_trunk(**plain).load_state_dict(load_file(tmp_path / "fishnet_tiny_one_trunk.safetensors"))
    x = torch.randn(3, 4, 16, 16)
    with torch.inference_mode():
        assert torch.allclose(kept(x), net(x), atol=1e-5)
    facts = cards["fishnet_tiny"]
    assert facts["accuracy"] == cards["fishnet_tiny_folded"]["accuracy"]
    assert set(facts["accuracy_by_task"]) == {"digit", "parity"}
    assert {row["macs"] for row in facts["cost_by_tasks"]} == {facts["cost_by_tasks"][0]["macs"]}
    assert [row["tasks"] for row in facts["cost_by_tasks"]] == [1, 2, 4, 8, 16, 32]
    settings = [{**cards[n]["settings"]} for n in names - {"fishnet_tiny_folded"}]
    assert settings[0] == settings[1] == settings[2]  # trained alike
    assert cards["fishnet_tiny_folded"]["folded_from"] == "fishnet_tiny"


def test_scores_learn_at_a_rate_of_their_own(tmp_path: Path) -> None:
    moved = []
    for rate in (0.0, 10.0):
        train(tmp_path / str(rate), selection=rate, weight_decay=0.0)
        state = load_file(tmp_path / str(rate) / "fishnet_tiny.safetensors")
        torch.manual_seed(0)
        begin = fishnet(**ARGS).state_dict()
        moved.append(float((state["banks.1.scores"] - begin["banks.1.scores"]).abs().max()))
    assert moved[0] == 0 < moved[1]


def test_the_loss_is_the_sum_over_tasks() -> None:
    net, x, y = torch.nn.Identity(), torch.randn(4, 3), torch.tensor([3, 1, 0, 1])
    answers = torch.tensor([[0, 1], [2, 0], [1, 1], [2, 1]])
    loss = Joint(answers, lambda model, x: [x, x[:, :2]])(net, x, y)
    want = F.cross_entropy(x, torch.tensor([2, 2, 0, 2])) + F.cross_entropy(x[:, :2], torch.tensor([1, 0, 1, 0]))
    assert float(loss) == pytest.approx(float(want))


def test_shared_filters_are_those_that_tasks_have_in_common() -> None:
    net = fishnet(**ARGS)
    first, second = net.banks
    with torch.no_grad():
        first.scores[0], first.scores[1] = torch.arange(6.0), -torch.arange(6.0)  # 2 to 5, and 0 to 3
        second.scores[1] = second.scores[0]
    a, b = shared_filters(net, ["digit", "parity"])
    assert (a["filters"], a["selected"], a["used"], a["common"]) == (6, 4, 6, {"digit, parity": 0.5})
    assert (b["used"], b["common"], b["at_random"]) == (6, {"digit, parity": 1.0}, pytest.approx(6 / 9, abs=1e-4))
    assert len(folded(net).nets) == 2


def test_other_inputs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="digit_tasks"):
        train(tmp_path, {"name": "digits"})
    with pytest.raises(UserError, match="list of names"):
        train(tmp_path, {"name": "digit_tasks", "options": {"tasks": 2}})
