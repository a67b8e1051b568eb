"""The IDK recipe: rules compared at equal accuracy, learned rules, and an expert behind the classifiers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from dynbench.errors import UserError
from dynbench.models.idk import Policy, idk_cascade
from dynbench.training import train_workload
from dynbench.training.cascade import EXPERT_COST, RuleSettings, compare_rules, learn_rule


def said(n: int = 600, seed: int = 0) -> tuple[list[Tensor], Tensor]:
    """A fast level, sure of everything, that takes most of class 1 for class 0; and a better one."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (n,), generator=g)
    shown = torch.where((labels == 1) & (torch.rand(n, generator=g) < 0.8), 0, labels)
    fast = 3.0 * F.one_hot(shown, 4) + 0.5 * torch.randn(n, 4, generator=g)
    return [fast, 6.0 * F.one_hot(labels, 4) + torch.randn(n, 4, generator=g)], labels


def test_rules_are_compared_at_equal_accuracy_on_data_they_were_not_chosen_on() -> None:
    settings = RuleSettings(epochs=60, lr=0.1, grid=60, give_up=(0.0, 0.05), cost_weights=(0.1,))
    table = compare_rules(said(), said(seed=1), [0.2, 1.0], settings)
    assert {"probability", "entropy", "learned, cost-oblivious, logistic"} < set(table)
    for rows in table.values():
        same, less = rows["as accurate as the last"], rows["5 points below the last"]
        assert same["held_out_accuracy"] >= 0.99 and less["held_out_cost"] <= same["held_out_cost"]
        for row in (same, less):
            assert row["cost"] == pytest.approx(0.2 + row["reach_rates"][1], abs=1e-3)
    cost = {name: rows["5 points below the last"]["held_out_cost"] for name, rows in table.items()}
    assert cost["learned, cost-oblivious, logistic"] < cost["probability"] - 0.05  # it can know whom to doubt


def test_the_cost_oblivious_rule_learns_where_a_level_is_wrong_and_a_price_makes_the_other_answer() -> None:
    logits, labels = said()
    settings = RuleSettings(epochs=80, lr=0.1)
    wrong = logits[0].argmax(-1) != labels
    policy = Policy("learned", [0.5], 4)
    learn_rule(policy, logits, labels, [0.2, 1.0], settings, None)
    h = policy.doubt(logits[0], 0)
    assert float(h[wrong].mean().detach()) > float(h[~wrong].mean().detach()) + 0.2
    asked = []
    for weight in (0.0, 10.0):
        learn_rule(policy, logits, labels, [0.2, 1.0], settings, weight)
        asked.append(float(policy.doubt(logits[0], 0).mean().detach()))
    assert asked[0] > 0.9 and asked[1] < 0.1


def test_an_unknown_objective_is_refused() -> None:
    with pytest.raises(UserError, match="cost-aware or cost-oblivious"):
        RuleSettings(epochs=1, objective="greedy")


@pytest.mark.parametrize("rule", ["probability", "learned"])
def test_an_expert_is_asked_last_and_stands_in_the_card(tmp_path: Path, rule: str) -> None:
    args: dict[str, Any] = {"depths": [8], "rule": rule, "expert": {"latency_s": 3.0, "cost": 0.1}}
    quick = {"epochs": 1, "items": 64, "batch_size": 32}
    workload = {
        "name": "idk_human_tiny",
        "model_args": args,
        "inputs": {"name": "with_expert", "options": {"of": "digits", "size": 16, "error_rate": 0.1}},
        "train": {
            "recipe": "dynbench.training.cascade:train",
            "options": {**quick, "rule": {"epsilon": 0.05, "grid": 50, "cost_weights": [0.1]}},
        },
    }
    train_workload(workload, tmp_path, progress=False)
    card = json.loads((tmp_path / "idk_human_tiny.json").read_text())
    assert card["expert"]["declared"] == {"latency_s": 3.0, "cost": 0.1, "unit": "USD", "name": "human expert"}
    assert 0.8 < card["expert"]["accuracy"] < 1
    assert card["rule"]["accuracy"] >= 0.95 * card["rule"]["last_accuracy"] - 1e-9
    assert card["rule"]["cost"] == pytest.approx(1 + EXPERT_COST * card["rule"]["idk_rates"][0])
    assert card["computation"] == 1 and len(card["reach_rates"]) == 2  # one classifier, which every item meets
    policy = idk_cascade(**args).policy
    policy.load_state_dict(load_file(tmp_path / "idk_human_tiny.safetensors"))
    assert policy.thresholds.tolist() == pytest.approx(card["rule"]["thresholds"])
