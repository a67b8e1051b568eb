"""BlockDrop: one policy for all blocks, one wait for it, and the same answer under every strategy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from dynbench.dynamic import Ahead, Execution, Skip, points
from dynbench.dynamic.sources import synthetic
from dynbench.models.accounting import static_macs
from dynbench.models.blockdrop import BlockDrop, PooledShortcut, accounted_macs, blockdrop, plain
from dynbench.models.convnet_aig import convnet_aig
from dynbench.strategies import Compaction, Masking
from dynbench.training import train_workload
from dynbench.training.blockdrop import Curriculum, Learner, Reinforce, Together
from tests.models.same_answer import DYNAMIC, assert_same_answer, decided_both_ways, forced, run


def make(depth: int = 14, dataset: str = "cifar", **args: Any) -> BlockDrop:
    """With statistics in the batch norms, and a policy that decides both ways."""
    torch.manual_seed(0)
    net = blockdrop(depth, dataset=dataset, **args).train()
    with torch.no_grad():
        for _ in range(3):
            Execution(Masking()).run(net, images(8, 64 if dataset == "imagenet" else 16))
        fc = net.eval().policy.net.fc
        fc.weight.mul_(20)
        fc.bias.sub_(net.policy(images(8, 64 if dataset == "imagenet" else 16)).median(0).values)
    return net


def images(n: int = 4, size: int = 16) -> Tensor:
    return torch.randn(n, 3, size, size) * torch.linspace(0.3, 3, n).view(-1, 1, 1, 1)


@pytest.mark.parametrize("strategy", DYNAMIC)
@pytest.mark.parametrize("shortcut", ["pool", "projection"])
def test_every_strategy_answers_alike(shortcut: Any, strategy: str) -> None:
    net, x = make(shortcut=shortcut), images()
    assert decided_both_ways(run(net, x, "per_sample")[1])
    assert_same_answer(net, x, strategy)


def test_every_strategy_answers_alike_for_bottlenecks() -> None:
    assert_same_answer(make(50, "imagenet"), images(2, 64), "compaction")


def as_the_authors_run_it(net: BlockDrop, x: Tensor) -> tuple[Tensor, Tensor]:
    """The loop of the published `FlatResNet.forward`: branch and shortcut apart, ReLU of the sum, then the mask."""
    u = (torch.sigmoid(net.policy(x)) >= 0.5).float()
    x = F.relu(net.bn1(net.conv1(x)))
    for t, block in enumerate(net.blocks()):
        residual = x
        if isinstance(block.downsample, PooledShortcut):  # type: ignore[attr-defined]
            pooled = F.avg_pool2d(x, 2)
            residual = torch.cat([pooled, torch.zeros_like(pooled)], 1)
        branch = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))  # type: ignore[operator,attr-defined]
        mask = u[:, t].view(-1, 1, 1, 1)
        x = F.relu(residual + branch) * mask + residual * (1 - mask)
    return net.fc(F.avg_pool2d(x, x.shape[2]).flatten(1)), u.bool()


@pytest.mark.parametrize("size", [16, 32])
def test_masking_computes_what_the_authors_code_computes(size: int) -> None:
    net, x = make(), images(6, size)
    with torch.no_grad():
        want, u = as_the_authors_run_it(net, x)
    y, trace = run(net, x, "masking")
    assert decided_both_ways(trace)
    assert torch.allclose(y, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))
    got = [e.value for (name, _), e in trace.entries.items()]
    assert torch.equal(torch.stack(got, 1), u)


class Waits:
    """A profile that counts the waits for a decision."""

    def __init__(self) -> None:
        self.count = 0

    def enter(self, phase: str, point: str | None, index: int | None) -> None:
        self.count += phase == "sync"

    def exit(self) -> None:
        pass


@pytest.mark.parametrize("n", [1, 5])
def test_one_wait_where_gates_in_sequence_wait_at_every_block(n: int) -> None:
    """The same blocks, the same decisions of them: taken at once, and one by one."""
    at_once, in_sequence, x = make(shortcut="projection"), convnet_aig(14).eval(), images(n)
    decided = dict(forced(at_once, x))["random"]
    counted = []
    for net in (at_once, in_sequence):
        decided.covers = frozenset(points(net))
        waits = Waits()
        with torch.inference_mode():
            Execution(Compaction(), replay=decided, profile=waits).run(net, x)
        counted.append(waits.count)
    assert counted[0] == 1 and counted[1] >= 6


def test_made_up_decisions_are_the_same_as_for_gates_in_sequence() -> None:
    """So a keep-rate sweep of the two compares ways of deciding and nothing else."""
    x, made_up = images(5), []
    for net in (make(shortcut="projection"), convnet_aig(14).eval()):
        every = Execution(Masking(), record=True)
        with torch.inference_mode():
            every.run(net, x)
        assert every.trace is not None
        made_up.append(synthetic(every.trace, net, keep_rate=0.5, seed=3))
    assert made_up[0].entries.keys() == made_up[1].entries.keys() and made_up[0].hash() == made_up[1].hash()


def test_the_policy_sees_the_image_and_no_strategy_runs_it_twice() -> None:
    net, x = make(), images(3)
    seen: list[Tensor] = []
    net.policy.register_forward_hook(lambda m, args, out: seen.append(args[0]))
    for strategy in ("masking", "compaction"):
        run(net, x, strategy)
    assert len(seen) == 2 and all(torch.equal(s, x) for s in seen)
    with torch.inference_mode():
        net(x)
    assert len(seen) == 2  # the static twin has no policy


def test_the_static_twin_is_the_resnet_it_starts_from() -> None:
    for args in ({"shortcut": "pool"}, {"shortcut": "projection"}):
        net, static, x = make(**args), plain(14, **args).eval(), images(2)  # type: ignore[arg-type]
        state = net.state_dict()
        assert not any(name.startswith(("skips", "ahead")) for name in state)
        static.load_state_dict({name: state[name] for name in static.state_dict()})
        with torch.inference_mode():
            assert torch.equal(net(x), static(x))


def test_pooled_shortcuts_keep_what_goes_by_and_have_no_parameters() -> None:
    x = torch.randn(2, 4, 7, 6)
    y = PooledShortcut(8, 2)(x)
    assert y.shape == (2, 8, 4, 3) and not bool(y[:, 4:].any())
    assert torch.allclose(y[:, :4, 0, 0], x[:, :, :2, :2].mean((2, 3)))
    assert not list(PooledShortcut(8, 2).parameters())


def test_points_are_the_policy_and_a_skip_for_every_block() -> None:
    kinds = [type(p) for p in points(make()).values()]
    assert kinds == [Ahead] + [Skip] * 6


def test_accounting_counts_the_policy() -> None:
    net, x = make(shortcut="pool"), images(8)
    traces, dense = dict(forced(net, x)), static_macs(net, (3, 32, 32))
    policy = static_macs(net.policy, (3, 32, 32))
    assert policy == 442368 + 4718592 + 2 * 3538944 + 64 * 6
    assert accounted_macs(net, traces["all"], (3, 32, 32))[0] == dense + policy
    assert accounted_macs(net, traces["none"], (3, 32, 32))[0] == 442368 + 640 + policy
    assert "policy" in accounted_macs(net, traces["none"], (3, 32, 32))[1]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"depth": 39}, "6n\\+2"),
        ({"dataset": "svhn"}, "svhn"),
        ({"shortcut": "conv"}, "'pool' or 'projection'"),
        ({"policy_blocks": 0}, "policy_blocks=0"),
    ],
)
def test_a_network_there_is_not_is_refused_with_the_choices(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        blockdrop(**args)


def test_reward_is_one_less_the_square_of_the_share_and_a_wrong_answer_costs() -> None:
    reward = Reinforce(Curriculum(epochs=1, penalty=3.0)).reward
    said = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    u = torch.tensor([[True, True], [True, False], [False, False]])
    assert reward(said, torch.tensor([0, 0, 0]), u).tolist() == pytest.approx([0.0, 0.75, -3.0])


def test_the_curriculum_frees_the_last_blocks_first() -> None:
    rule = Reinforce(Curriculum(epochs=1, every=5))
    assert [rule.free(step, 3) for step in (0, 4, 5, 10, 99)] == [1, 1, 2, 3, 3]
    assert Reinforce(Together(epochs=1)).free(0, 3) == 3
    torch.manual_seed(0)
    learner = Learner(blockdrop(14), together=False).train()
    learner.net.policy.net.fc.weight.data.zero_()
    asked: list[Tensor] = []
    answer = learner.answer
    learner.answer = lambda x, u: asked.append(u) or answer(x, u)  # type: ignore[method-assign,func-returns-value]
    rule(learner, images(16), torch.zeros(16, dtype=torch.long)).backward()
    greedy, drawn = asked
    assert bool(greedy[:, :5].all()) and bool(drawn[:, :5].all()) and not bool(drawn[:, 5].all())


def test_the_curriculum_teaches_the_policy_alone_and_then_both_learn() -> None:
    torch.manual_seed(0)
    x, y = images(16), torch.zeros(16, dtype=torch.long)
    net = blockdrop(14)
    learner = Learner(net, together=False).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    Reinforce(Curriculum(epochs=1, every=0))(learner, x, y).backward()
    taught = {name.split(".")[0] for name, p in net.named_parameters() if p.grad is not None}
    moved = {name.split(".")[0] for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert taught == {"policy"} and moved == {"policy"}  # the ResNet's statistics, too, are as they were
    learner = Learner(net, together=True).train()
    Reinforce(Together(epochs=1))(learner, x, y).backward()
    assert all(p.grad is not None for p in net.parameters())


def test_rewards_for_skipping_close_blocks() -> None:
    torch.manual_seed(0)
    net, x = make(8), images(16)
    with torch.no_grad():
        net.fc.weight.zero_()
        y = net.fc.bias.argmax().expand(16)  # right with any blocks
    net.policy.net.fc.weight.data.zero_()
    net.policy.net.fc.bias.data.fill_(1.0)
    learner = Learner(net, together=False).train()
    optimizer = torch.optim.Adam([net.policy.net.fc.bias], 0.1)
    rule = Reinforce(Curriculum(epochs=1, every=0, entropy=0.0))
    for _ in range(40):
        optimizer.zero_grad()
        rule(learner, x, y).backward()
        optimizer.step()
    assert float((net.policy(x) > 0).float().mean()) < 0.2


def test_it_is_trained_from_its_static_twin_with_a_card(tmp_path: Path) -> None:
    table = {"recipe": "dynbench.training.blockdrop:train", "options": {"epochs": 1, "items": 64, "batch_size": 32}}
    args = {"depth": 8, "shortcut": "projection"}
    train_workload(
        {
            "name": "drop8_tiny",
            "inputs": {"name": "digits", "options": {"size": 16}},
            "model_args": args,
            "train": table,
        },
        tmp_path,
        progress=False,
    )
    names = ("drop8_tiny", "resnet8_tiny")
    assert {p.name for p in tmp_path.iterdir()} == {f"{n}.{kind}" for n in names for kind in ("json", "safetensors")}
    blockdrop(**args).load_state_dict(load_file(tmp_path / "drop8_tiny.safetensors"))  # type: ignore[arg-type]
    card = json.loads((tmp_path / "drop8_tiny.json").read_text())
    assert len(card["keep_rates"]) == 3 and set(card["stages"]) == {"curriculum", "together"}
    assert card["accuracy_with_the_decisions_of_another_input"] <= 1
