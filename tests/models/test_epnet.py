"""EPNet: exits behind every block, policies on what they say, and the same answer under every strategy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dynbench.meters.cost import cost
from dynbench.models.accounting import static_macs
from dynbench.models.epnet import EPNet, MDPPolicy, ThresholdPolicy, accounted_macs, epnet, part_macs
from dynbench.models.resnet import resnet
from tests.models.same_answer import DYNAMIC, assert_same_answer, decided_both_ways, forced, run

KINDS: list[dict[str, Any]] = [
    {"policy": "mdp", "width": 4, "pool": 2},
    {"policy": "mdp", "shared": True, "hidden": 0, "projection": 3},
    {"policy": "threshold", "every": 2},
]


def images(n: int = 6) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(n, 3, 16, 16) * torch.linspace(0.1, 4, n).view(-1, 1, 1, 1)


def make(**args: Any) -> EPNet:
    """A network whose policy lets about half of those who come by leave."""
    torch.manual_seed(0)
    net = epnet(14, **args).eval()
    state: Any = (net.stem(images()), None)
    with torch.no_grad():
        for k, stage in enumerate(net.exits.stages[:-1]):
            state = stage(state)
            p = net.exits.heads[k](state).softmax(-1)
            middle = net.policy.advantage(p, state[1], k).median() - 1e-4
            if isinstance(net.policy, ThresholdPolicy):
                net.policy.thresholds[k] += middle
            elif k < len(net.policy.decide):
                function = net.policy.decide[k]
                (function if isinstance(function, torch.nn.Linear) else function[-1]).bias.sub_(middle)
    return net


@pytest.mark.parametrize("strategy", DYNAMIC)
@pytest.mark.parametrize("args", KINDS)
def test_every_strategy_answers_alike(args: dict[str, Any], strategy: str) -> None:
    net, x = make(**args), images()
    assert decided_both_ways(run(net, x, "per_sample")[1])
    assert_same_answer(net, x, strategy)


def test_the_static_twin_is_the_resnet_it_was_built_on() -> None:
    net, plain = make(), resnet(14).eval()
    assert {name.partition(".")[0] for name in net.state_dict().keys() - plain.state_dict()} == {"branches", "policy"}
    assert not net.load_state_dict(plain.state_dict(), strict=False).unexpected_keys
    with torch.inference_mode():
        assert torch.allclose(net(images()), plain(images()), atol=1e-6)
        stay = dict(forced(net, images()))["all"]
        assert torch.allclose(run(net, images(), "cascading", stay)[0], plain(images()), atol=1e-5)


def test_an_exit_stands_behind_every_block_or_every_so_many() -> None:
    assert len(epnet(38).exits.stages) == 18
    net = epnet(20, every=4)
    assert [len(stage.blocks) for stage in net.exits.stages] == [4, 4, 1]


@pytest.mark.parametrize("pool", [1, 2])
def test_the_answer_is_that_of_the_first_exit_the_policy_takes(pool: int) -> None:
    net, x = make(pool=pool, width=4), images()
    policy = net.policy
    assert isinstance(policy, MDPPolicy)
    with torch.inference_mode():
        h, answers, left = net.stem(x), [], torch.full((len(x),), -1)
        for k, block in enumerate(net.blocks()):
            h = block(h)
            pooled = h.view(len(x), h.shape[1], pool, h.shape[2] // pool, pool, -1).mean((3, 5)).flatten(1)
            if k == 5:
                answers.append(net.fc(h.mean((2, 3))))
                left[left < 0] = k
                continue
            one, _, two = net.branches[k].classify
            answers.append(two(F.relu(one(pooled))))
            p = answers[-1].softmax(-1).sort(-1, descending=True).values
            z = F.relu(policy.project[k](pooled))
            b = torch.full((len(x), 1), (k + 1) / 6)
            a = policy.decide[k](torch.cat([p, z, b], 1)).squeeze(1)
            left[(left < 0) & (a > 0)] = k
        want = torch.stack(answers, 1)[torch.arange(len(x)), left]
    assert len(left.unique()) > 1
    assert torch.allclose(run(net, x, "compaction")[0], want, atol=1e-5)


def test_a_threshold_is_exceeded_by_the_largest_probability() -> None:
    policy = ThresholdPolicy(2)
    policy.thresholds.copy_(torch.tensor([0.5, 0.7]))
    logits = torch.tensor([[0.6, 0.3, 0.1], [0.5, 0.25, 0.25], [0.75, 0.2, 0.05]]).log()
    state = (torch.zeros(3, 1), torch.zeros(3, 1))
    assert policy(logits, state, 0).tolist() == [True, False, True]
    assert policy(logits, state, 1).tolist() == [False, False, True]


def test_counted_parts_agree_with_the_cost_command_and_the_policy_counts() -> None:
    net = epnet(14, pool=2, width=8, projection=2, hidden=16)
    parts, table = part_macs(net, (3, 16, 16)), cost(net, torch.zeros(1, 3, 16, 16))
    assert parts.policy == tuple(
        4 * c * 2 + 13 * 16 + 16 for c in (16, 16, 32, 32, 64)
    )  # P, then 10 + 2 + 1 -> 16 -> 1
    decided = [0, *torch.tensor(parts.policy).cumsum(0).tolist()]
    assert [c + d for c, d in zip(table["exits"], [*decided[1:], decided[-1]], strict=True)] == parts.upto()
    gate = table["decision_points"][0]["gate_macs"]
    assert gate == pytest.approx(sum(parts.policy) / 5, abs=1)
    branches = sum(4 * c * 8 + 8 * 10 for c in (16, 16, 32, 32, 64))
    assert sum(parts.branches) == branches + 64 * 10
    assert parts.upto()[-1] == static_macs(resnet(14), (3, 16, 16)) + branches + sum(parts.policy)


def test_accounting_follows_the_exits_taken() -> None:
    net, x = make(width=4), images()
    costs = part_macs(net, (3, 16, 16)).upto()
    traces = dict(forced(net, x))
    assert accounted_macs(net, traces["none"], (3, 16, 16))[0] == costs[0]
    assert accounted_macs(net, traces["all"], (3, 16, 16))[0] == costs[-1]
    macs, rule = accounted_macs(net, run(net, x, "masking")[1], (3, 16, 16))
    assert costs[0] < macs < costs[-1] and "reconstruction" in rule


def test_imagenet_networks_have_exits_too() -> None:
    with torch.device("meta"):
        net = epnet(18, 1000, "imagenet", every=2)
        assert [f"{c / 1e9:.1f}" for c in part_macs(net, (3, 224, 224)).upto()][-1] == "1.8"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"policy": "entropy"}, "policy='entropy'.*'mdp'.*'threshold'"),
        ({"every": 18}, "of 18 blocks an exit comes after every 1 to 17"),
        ({"every": 0}, "every=0"),
        ({"pool": 0}, "pool=0: it is 1 or more"),
        ({"width": -1}, "width=-1"),
        ({"projection": 0}, "projection=0"),
        ({"depth": 39}, "6n\\+2"),
    ],
)
def test_an_epnet_there_is_not_is_refused_with_the_choices(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        epnet(**args)
