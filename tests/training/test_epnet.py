"""EPNet's policies: optimal stopping against brute force, the gradient against enumeration, and the recipe."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from dynbench.models.epnet import MDPPolicy, ThresholdPolicy, epnet
from dynbench.training import train_workload
from dynbench.training.epnet import (
    Learned,
    PolicySettings,
    Seen,
    backward_induction,
    choose,
    climb,
    evaluate,
    exits_taken,
    expected_reward,
    fit_threshold,
    induce,
    rewards,
    sharpen,
)


def tabular(states: Tensor, rule: dict[tuple[int, int], bool]):  # type: ignore[no-untyped-def]
    """The best decision for every state: leave where the mean advantage is above 0."""

    def fit(k: int, advantage: Tensor) -> Tensor:
        leave = torch.zeros(len(advantage), dtype=torch.bool)
        for s in states[:, k].unique().tolist():
            here = states[:, k] == s
            rule[k, s] = bool(advantage[here].mean() > 1e-12)
            leave[here] = rule[k, s]
        return leave

    return fit


def reward_of(rule: dict[tuple[int, int], bool], states: Tensor, gain: Tensor) -> float:
    total, last = 0.0, gain.shape[1] - 1
    for i in range(len(gain)):
        k = next((k for k in range(last) if rule[k, int(states[i, k])]), last)
        total += float(gain[i, k])
    return total / len(gain)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), exits=st.integers(2, 4), price=st.floats(0, 1))
def test_backward_induction_finds_the_best_of_all_stopping_rules(seed: int, exits: int, price: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    draws, future = 2, 3  # a state remembers the past: it is the path so far, as a tree
    paths = torch.tensor(list(itertools.product(range(draws), repeat=exits - 1)))
    paths = paths.repeat_interleave(future, 0)  # what the last exit says is not known before
    weights = draws ** torch.arange(exits - 1)
    states = torch.stack([(paths[:, : k + 1] * weights[: k + 1]).sum(1) for k in range(exits - 1)], 1)
    right = torch.rand(len(paths), exits, generator=generator).round()
    gain = right.double() - price * torch.arange(1, exits + 1) / exits
    rule: dict[tuple[int, int], bool] = {}
    value = backward_induction(gain, tabular(states, rule))
    keys = [(k, s) for k in range(exits - 1) for s in states[:, k].unique().tolist()]
    if len(keys) > 8:  # enumerate the first levels only: below them what was found stands
        fixed = {key: rule[key] for key in keys[8:]}
        keys = keys[:8]
    else:
        fixed = {}
    best = max(
        reward_of({**fixed, **dict(zip(keys, choice, strict=True))}, states, gain)
        for choice in itertools.product([False, True], repeat=len(keys))
    )
    assert float(value.mean()) == pytest.approx(best)
    assert reward_of(rule, states, gain) == pytest.approx(best)


def seen(n: int = 40, exits: int = 4, seed: int = 0) -> Seen:
    """Exits of which a later one is right more often, and an early one knows when it is."""
    g = torch.Generator().manual_seed(seed)
    hard = torch.rand(n, generator=g)
    p, right = [], []
    for k in range(exits):
        knows = hard < (k + 1) / exits
        sure = (0.5 + 0.5 * (1 - hard) + 0.1 * torch.rand(n, generator=g)).clamp(0.34, 0.99)
        p.append(torch.stack([sure, (1 - sure) * 0.7, (1 - sure) * 0.3], 1))
        right.append(knows | (torch.rand(n, generator=g) < 0.2))
    return Seen(p, [torch.randn(n, 5, generator=g) for _ in p], torch.stack(right, 1).double())


def test_the_reward_is_a_right_answer_less_the_price_of_its_computation() -> None:
    table = Seen([], [], torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double())
    assert rewards(table, torch.tensor([0.25, 1.0]), 0.4).tolist() == [
        pytest.approx([0.9, -0.4]),
        pytest.approx([-0.1, 0.6]),
    ]


def test_a_threshold_gains_as_much_as_any() -> None:
    for seed in range(10):
        table, policy = seen(seed=seed), ThresholdPolicy(3)
        advantage = torch.randn(40, generator=torch.Generator().manual_seed(seed)).double()
        fit_threshold(policy, 1, table, advantage)
        sure = table.p[1].amax(-1)
        candidates = [-1.0, *sure.tolist(), 2.0]
        best = max(float(advantage[sure > t].sum()) for t in candidates)
        assert float(advantage[sure > policy.thresholds[1]].sum()) == pytest.approx(best)


def test_equals_cannot_be_told_apart_by_a_threshold() -> None:
    p = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4]])
    policy = ThresholdPolicy(1)
    fit_threshold(policy, 0, Seen([p], [p], torch.zeros(3, 2)), torch.tensor([5.0, -6.0, -1.0]))
    assert not (p.amax(-1) > policy.thresholds[0]).any()
    fit_threshold(policy, 0, Seen([p], [p], torch.zeros(3, 2)), torch.tensor([5.0, -4.0, -1.0]))
    assert (p.amax(-1) > policy.thresholds[0]).tolist() == [True, True, False]


def test_another_round_of_induction_never_makes_thresholds_worse() -> None:
    for seed in range(5):
        table = seen(200, seed=seed)
        gain, found = rewards(table, torch.tensor([0.25, 0.5, 0.75, 1.0]), 0.3), []
        for rounds in (1, 2, 3):
            policy = ThresholdPolicy(3)
            induce(policy, table, gain, lambda k, of, a, policy=policy: fit_threshold(policy, k, of, a), rounds)
            found.append(float(gain.gather(1, exits_taken(policy, table).unsqueeze(1)).mean()))
        assert found[0] <= found[1] + 1e-12 <= found[2] + 2e-12


def policy_for(exits: int = 4) -> MDPPolicy:
    torch.manual_seed(0)
    return MDPPolicy([5] * (exits - 1), 3, 2, 4, False)


def test_the_expected_reward_is_that_of_all_paths() -> None:
    policy, table = policy_for(), seen()
    gain = rewards(table, torch.tensor([0.25, 0.5, 0.75, 1.0]), 0.3)
    leave = torch.stack([torch.sigmoid(policy.advantage(table.p[k], table.pooled[k], k)) for k in range(3)], 1).double()
    want = torch.zeros(len(gain)).double()
    for choices in itertools.product([0, 1], repeat=3):  # what would be decided at every exit, asked or not
        chance = torch.stack([leave[:, k] if c else 1 - leave[:, k] for k, c in enumerate(choices)]).prod(0)
        k = choices.index(1) if 1 in choices else 3
        want += chance * gain[:, k]
    got = expected_reward(policy, table, gain).detach()
    assert float(got) == pytest.approx(float(want.mean().detach()), rel=1e-6)


def test_a_sharp_policy_is_expected_to_get_what_its_decisions_get_and_climbing_gets_more() -> None:
    policy, table = policy_for(), seen(300)
    gain = rewards(table, torch.tensor([0.25, 0.5, 0.75, 1.0]), 0.3)
    before = exits_taken(policy, table)
    sharpen(policy, 1e6)
    assert torch.equal(before, exits_taken(policy, table))
    got = float(gain.gather(1, before.unsqueeze(1)).mean())
    assert float(expected_reward(policy, table, gain).detach()) == pytest.approx(got, abs=1e-3)
    sharpen(policy, 1e-6)
    soft = float(expected_reward(policy, table, gain).detach())
    climb(policy, table, gain, PolicySettings(epochs=40, lr=0.05, weight_decay=0.0))
    assert float(expected_reward(policy, table, gain).detach()) > soft + 0.02


def test_the_cheapest_policy_that_is_accurate_enough_is_chosen() -> None:
    table, found = seen(200), []
    for price, limit in ((0.1, 2.0), (0.2, 0.8), (0.3, 0.0)):
        policy = ThresholdPolicy(3)
        policy.thresholds.fill_(limit)
        found.append(Learned("thresholds", price, policy))
    costs = torch.tensor([1.0, 2.0, 3.0, 4.0]).double()
    facts = [evaluate(f.policy, table, costs) for f in found]
    assert [f["computation"] for f in facts] == sorted((f["computation"] for f in facts), reverse=True)
    assert facts[0]["exit_rates"] == [0, 0, 0, 1] and facts[2]["exit_rates"] == [1, 0, 0, 0]
    assert choose(found, table, costs, 0.0) is found[0]
    assert choose(found, table, costs, 1.0) is found[2]
    between = facts[0]["accuracy"] - facts[1]["accuracy"]
    assert between > 0 and choose(found, table, costs, between + 1e-6) is found[1]


@pytest.mark.parametrize("policy", ["mdp", "threshold"])
def test_branches_and_policies_are_trained_on_a_backbone_that_stays(tmp_path: Path, policy: str) -> None:
    args = {"depth": 8, "policy": policy, "width": 4}
    quick = {"epochs": 1, "items": 64, "batch_size": 32}
    workload = {
        "name": "epnet_tiny",
        "inputs": {"name": "digits", "options": {"size": 16}},
        "model_args": args,
        "train": {"recipe": "dynbench.training.epnet:train", "options": {**quick, "policy": {"prices": [0.1, 0.5]}}},
    }
    train_workload(workload, tmp_path, progress=False)
    static, state = (load_file(tmp_path / f"{name}_tiny.safetensors") for name in ("resnet8", "epnet"))
    net = epnet(**args)  # type: ignore[arg-type]
    net.load_state_dict(state)
    assert all(torch.equal(value, state[name]) for name, value in static.items())
    card = json.loads((tmp_path / "epnet_tiny.json").read_text())
    assert "ours" in card["reconstruction"] and card["args"] == args
    learned = {"thresholds"} | ({"backward induction", "policy gradient"} if policy == "mdp" else set())
    assert set(card["sweep"]) == learned and set(card["sweep"]["thresholds"]) == {"lambda 0.1", "lambda 0.5"}
    assert len(card["exits"]["accuracy"]) == 3 and sum(card["exit_rates"]) == pytest.approx(1, abs=1e-3)
    mean = sum(r * c for r, c in zip(card["exit_rates"], card["exits"]["computation"], strict=True))
    assert card["computation"] == pytest.approx(mean, abs=2e-3)
    if policy == "mdp":
        assert torch.allclose(net.policy.budget, torch.tensor(card["exits"]["computation"][:-1]), atol=0.02)
