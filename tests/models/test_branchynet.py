"""BranchyNet: layers against a hand-written pass, where branches sit, who leaves, and the same answer everywhere."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.dynamic.sources import edge
from dynbench.meters.cost import cost
from dynbench.models.branchynet import LRN, BranchyNet, EntropyBelow, ResBlock, accounted_macs, branchynet, plain, pool
from tests.models.same_answer import DYNAMIC, assert_same_answer, decided_both_ways, run

KINDS = [("lenet", "code"), ("alexnet", "code"), ("alexnet", "paper"), ("resnet110", "code"), ("resnet110", "paper")]


def images(net: BranchyNet, n: int = 6) -> Tensor:
    """Of growing contrast, so that the answers differ in how sure they are."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, *net.input_shape(()), generator=generator)
    return x * torch.linspace(0.2, 4, n).view(-1, 1, 1, 1)


def entropies(logits: Tensor) -> Tensor:
    """By hand: - sum p log p."""
    return torch.tensor([-sum(p * math.log(p) for p in row if p > 0) for row in logits.softmax(1).tolist()])


def make(kind: tuple[str, str], n: int = 6) -> tuple[BranchyNet, Tensor]:
    """A network whose branches are sure of about half of the inputs."""
    torch.manual_seed(0)
    net = branchynet(*kind).eval()  # type: ignore[arg-type]
    x = images(net, n)
    with torch.inference_mode():
        for k, logits in enumerate(net.every_exit(x)[:-1]):
            net.policy.thresholds[k] = entropies(logits).median() + 1e-6
    return net, x


@pytest.mark.parametrize("strategy", DYNAMIC)
@pytest.mark.parametrize("kind", KINDS[:3])
def test_every_strategy_answers_alike(kind: tuple[str, str], strategy: str) -> None:
    net, x = make(kind)
    assert decided_both_ways(run(net, x, "per_sample")[1])
    assert_same_answer(net, x, strategy)


@pytest.mark.parametrize("kind", KINDS)
def test_the_answer_is_that_of_the_first_exit_whose_entropy_is_below_its_threshold(kind: tuple[str, str]) -> None:
    net, x = make(kind, 4)
    answer, _ = run(net, x, "cascading")
    with torch.inference_mode():
        said = net.every_exit(x)
    sure = [entropies(z) < t for z, t in zip(said[:-1], net.policy.thresholds, strict=True)]
    assert 0 < int(sure[0].sum()) < len(x)
    for i in range(len(x)):
        k = next((k for k, leaves in enumerate(sure) if leaves[i]), len(said) - 1)
        assert torch.allclose(answer[i], said[k][i], rtol=1e-3, atol=1e-4)


def test_an_entropy_at_the_threshold_is_not_below_it() -> None:
    policy, certain = EntropyBelow((0.0,), 3), torch.tensor([[200.0, 0, 0]])
    assert float(policy.doubt(certain, 0)) == 0
    assert not policy(certain, None, 0)
    assert EntropyBelow((1e-4,), 3)(certain, None, 0)


@pytest.mark.parametrize("kind", KINDS[:4])
def test_the_static_twin_is_the_backbone_and_runs_no_branch(kind: tuple[str, str]) -> None:
    net, x = make(kind, 2)
    ran: list[int] = []
    for k, head in enumerate(net.heads):
        head.register_forward_hook(lambda *_, k=k: ran.append(k))
    with torch.inference_mode():
        twin = net(x)
        assert ran == [len(net.heads) - 1]
        assert torch.equal(twin, net.every_exit(x)[-1])
        alone = plain(*kind).eval()  # type: ignore[arg-type]
        alone.load_state_dict(net.twin.state_dict())
        assert torch.equal(twin, alone(x))


def test_lrn_is_torch_s_with_the_mean_written_as_a_sum() -> None:
    x = 30 * torch.randn(2, 7, 4, 5, generator=torch.Generator().manual_seed(0))
    theirs = F.local_response_norm(x, 3, alpha=3 * 5e-5, beta=0.75, k=2.0)
    assert torch.allclose(LRN()(x), theirs, rtol=1e-5)
    assert float((theirs - x * 2**-0.75).abs().max()) > 0.01  # the sum matters at all


def test_the_layers_of_b_alexnet_are_those_of_the_authors_code() -> None:
    net, x = make(("alexnet", "code"), 3)
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    linears = [m for m in net.modules() if isinstance(m, nn.Linear)]
    one, two, three, four, five, a1, a2, b1 = ((m.weight, m.bias) for m in convs)
    f1, f2, a_fc, b_fc, f3 = ((m.weight, m.bias) for m in linears)

    def rest(h: Tensor) -> Tensor:  # ReLU, pool 3/2 that covers all, LRN
        h = F.max_pool2d(F.pad(F.relu(h), (0, 1, 0, 1)), 3, 2)  # zeros never win: all values are 0 or more
        return F.local_response_norm(h, 3, alpha=3 * 5e-5, beta=0.75, k=2.0)

    with torch.inference_mode():
        h = F.conv2d(rest(F.conv2d(x, *one, padding=2)), *two, padding=2)
        assert h.shape[1:] == (64, 16, 16)
        a = F.relu(F.conv2d(F.relu(F.conv2d(rest(h), *a1, padding=1)), *a2, padding=1))
        exit1 = F.linear(F.max_pool2d(F.pad(a, (0, 1, 0, 1)), 3, 2).flatten(1), *a_fc)
        h = F.conv2d(rest(h), *three, padding=1)
        b = F.relu(F.conv2d(rest(h), *b1, padding=1))
        exit2 = F.linear(F.max_pool2d(F.pad(b, (0, 1, 0, 1)), 3, 2).flatten(1), *b_fc)
        h = F.relu(F.conv2d(F.relu(F.conv2d(F.relu(h), *four, padding=1)), *five, padding=1))
        h = F.max_pool2d(F.pad(h, (0, 1, 0, 1)), 3, 2).flatten(1)
        exit3 = F.linear(F.relu(F.linear(F.relu(F.linear(h, *f1)), *f2)), *f3)
        for mine, theirs in zip(net.every_exit(x), (exit1, exit2, exit3), strict=True):
            assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("size", "side", "left"), [(3, 32, 16), (3, 16, 8), (3, 8, 4), (2, 30, 15), (2, 17, 9)])
def test_pools_round_up(size: int, side: int, left: int) -> None:
    assert pool(size)(torch.zeros(1, 1, side, side)).shape[-1] == left


def test_a_block_that_changes_shape_subsamples_and_puts_zero_channels_in_front() -> None:
    block = ResBlock(2, 4, stride=2).eval()
    for conv in (block.conv1, block.conv2):
        nn.init.zeros_(conv.weight)
    x = torch.rand(1, 2, 5, 5)
    y = block(x)
    assert y.shape == (1, 4, 3, 3)
    assert not y[:, :2].any() and torch.equal(y[:, 2:], x[:, :, ::2, ::2])


@pytest.mark.parametrize(
    ("kind", "before"),
    [
        (("lenet", "code"), [1, 3]),
        (("lenet", "paper"), [1, 3]),
        (("alexnet", "code"), [2, 3, 5]),
        (("alexnet", "paper"), [1, 2, 5]),
        (("resnet110", "code"), [1, 37, 109]),
        (("resnet110", "paper"), [3, 37, 109]),
    ],
)
def test_branches_sit_behind_so_many_convolutions_of_the_backbone(kind: Any, before: list[int]) -> None:
    with torch.device("meta"):
        net = branchynet(*kind)
    convs = torch.tensor([sum(isinstance(m, nn.Conv2d) for m in stage.modules()) for stage in net.stages])
    assert convs.cumsum(0).tolist() == before


def test_weights_begin_as_chainer_s_do() -> None:
    torch.manual_seed(0)
    net = branchynet("resnet110")
    conv, block = net.heads[0][0], net.stages[1][5].conv1
    assert float(conv.weight.detach().std()) == pytest.approx(math.sqrt(1 / (16 * 25)), rel=0.05)
    assert float(block.weight.detach().std()) == pytest.approx(math.sqrt(2 / (16 * 9)), rel=0.1)
    assert not conv.bias.any()


def test_thresholds_come_with_the_weights_and_no_tensor_comes_twice() -> None:
    net = branchynet("alexnet", thresholds=(0.4, 0.6))
    state = net.state_dict()
    assert state["policy.thresholds"].tolist() == pytest.approx([0.4, 0.6])
    assert len({t.data_ptr() for t in state.values()}) == len(state)
    other = branchynet("alexnet")
    other.load_state_dict(state)
    assert other.policy.thresholds.tolist() == pytest.approx([0.4, 0.6])


def test_defaults_are_the_thresholds_of_table_i() -> None:
    assert branchynet("lenet").policy.thresholds.tolist() == pytest.approx([0.025])
    assert branchynet("alexnet").policy.thresholds.tolist() == pytest.approx([1e-4, 0.05])


def test_the_authors_clock_covers_the_backbone_only() -> None:
    net, x = make(("alexnet", "code"))
    _, learned = run(net, x, "masking")
    backbone = [2_457_600 + 13_107_200, 3_538_944, 28_247_296 - 19_103_744]  # layers of the code, by exit
    no_exits, first_exits = edge(learned, net, "all"), edge(learned, net, "none")
    assert accounted_macs(net, no_exits, net.shape)[0] == sum(backbone) == cost(net, x)["macs"]
    assert accounted_macs(net, first_exits, net.shape)[0] == backbone[0]
    assert not any(m.training for m in net.modules())
    one = edge(learned, net, "one")
    left = one.entries["exit", (3,)].value.view(-1, 3)[:, 0].double().mean()
    assert 0 < left < 1
    assert accounted_macs(net, one, net.shape)[0] == pytest.approx(
        float(left * backbone[0] + (1 - left) * sum(backbone))
    )


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"net": "vgg"}, "net='vgg': a BranchyNet is built on 'lenet', 'alexnet', 'resnet110'"),
        ({"placement": "here"}, "placement='here'"),
        ({"net": "lenet", "thresholds": [0.1, 0.2]}, "the 2 exits need one each, but for the last"),
    ],
)
def test_bad_arguments_are_refused_by_name(args: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        branchynet(**args)
