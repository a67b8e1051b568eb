"""EPNet: a light branch behind every block, and when to leave learned as a Markov decision process.

Dai, Kong, Guo, "EPNet: Learning to Exit with Flexible Multi-Branch Network", CIKM 2020
(doi 10.1145/3340531.3411973).

Two things are known from the abstract: many exits by lightweight branches, and an exit policy learned as a Markov
decision process instead of thresholds set by hand. Backbone, branch layers, reward and code are not known. All of the
following is *our reconstruction*, not the authors' design:

- backbone: a ResNet; the branch after a block is average pooling to a few pixels (global: one), optionally a narrow
  layer, and a linear classifier; the last exit is the ResNet's own classifier.
- state s_t = (p_t, z_t, b_t): the softmax of exit t, largest first, its pooled features through a small projection, and
  the fraction of the budget used; actions: exit or go on; reward on exit 1[correct] - lambda cost(t) / cost(N).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.counting.flops import FlopCounter
from dynbench.dynamic import Exits, Trace
from dynbench.models.accounting import mean_over_exits
from dynbench.models.checks import check_least
from dynbench.models.resnet import BlockKind, ResNet, architecture
from dynbench.models.sharing import shared_once
from dynbench.models.typed import module_list

PAPER = "Dai et al., EPNet: Learning to Exit with Flexible Multi-Branch Network, CIKM 2020"
PROVENANCE = "our reconstruction from the abstract: backbone, branches, state and reward are not the authors'"

PolicyKind = Literal["mdp", "threshold"]
State = tuple[Tensor, Tensor | None]  # feature map [n, C, H, W]; the same pooled [n, F], None before the first block


class Stage(nn.Module):
    """The blocks up to the next exit, and the average pooling for its branch and the policy.

    Args:
        blocks: of the backbone.
        pool: side of the pooled map, pixels.
    """

    def __init__(self, blocks: Sequence[nn.Module], pool: int) -> None:
        super().__init__()
        self.blocks, self.pool = nn.Sequential(*blocks), pool

    def forward(self, state: State) -> State:
        """(x [n, C, H, W], previous pooled features) -> (y [n, C', H', W'], pooled [n, C' pool pool])."""
        x = self.blocks(state[0])
        return x, x.mean((2, 3)) if self.pool == 1 else F.adaptive_avg_pool2d(x, self.pool).flatten(1)


class Branch(nn.Module):
    """The light branch of an exit: pooled features -> (a narrow layer) -> classes.

    Args:
        features: F, number of pooled features.
        num_classes: K.
        width: of the narrow layer; 0: none.
    """

    def __init__(self, features: int, num_classes: int, width: int) -> None:
        super().__init__()
        self.classify = mlp(features, num_classes, width)

    def forward(self, state: State) -> Tensor:
        """(x, pooled [n, F]) -> logits [n, K]."""
        logits: Tensor = self.classify(state[1])
        return logits


class LastExit(nn.Module):
    """The exit after the last block: the backbone's own classifier."""

    def __init__(self, fc: nn.Linear) -> None:
        super().__init__()
        self.fc = fc

    def forward(self, state: State) -> Tensor:
        """(x, pooled [n, F]) -> logits [n, K]."""
        logits: Tensor = self.fc(state[1])
        return logits


class Backbone(nn.Module):
    """The static twin: every block and the last exit, no branches."""

    def __init__(self, blocks: Sequence[nn.Module], fc: nn.Linear) -> None:
        super().__init__()
        self.blocks, self.fc = nn.Sequential(*blocks), fc

    def forward(self, state: State) -> Tensor:
        """(x [n, C, H, W], None) -> logits [n, K]."""
        logits: Tensor = self.fc(self.blocks(state[0]).mean((2, 3)))
        return logits


def mlp(inputs: int, outputs: int, hidden: int) -> nn.Module:
    """A linear layer; with `hidden` above 0, preceded by a hidden layer."""
    if hidden == 0:
        return nn.Linear(inputs, outputs)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


class Policy(nn.Module):
    """Exit t is taken where a_t(s_t), the estimated advantage of leaving over going on, is positive."""

    def advantage(self, p: Tensor, pooled: Tensor, k: int) -> Tensor:
        """p [n, K], the softmax of exit k, and its pooled features [n, F] -> a [n]."""
        raise NotImplementedError

    def set_budget(self, shares: Tensor) -> None:
        """Gives the policy cost(t) / cost(N) of every exit but the last [N - 1]; only some policies use it."""

    def forward(self, answer: Tensor, state: State, k: int) -> Tensor:
        """answer [n, K], the logits of exit k, and the state there -> [n] bool: whether to leave."""
        pooled = state[1]
        assert pooled is not None
        return self.advantage(answer.softmax(-1), pooled, k) > 0


class MDPPolicy(Policy):
    """The learned policy on s_t = (p_t, z_t, b_t), z_t = relu(P_t pooled_t).

    Args:
        features: number of pooled features at every exit but the last.
        num_classes: K.
        projection: width of z_t.
        hidden: width of the hidden layer of a_t; 0: a_t is linear.
        shared: one function a for all exits, which distinguishes them by b_t; else one for each, with b_t constant.
    """

    budget: Tensor

    def __init__(self, features: Sequence[int], num_classes: int, projection: int, hidden: int, shared: bool) -> None:
        super().__init__()
        exits, inputs = len(features), num_classes + projection + 1
        self.project = module_list(nn.Linear(f, projection) for f in features)
        self.decide = nn.ModuleList(mlp(inputs, 1, hidden) for _ in range(1 if shared else exits))
        # b_t = cost(t) / cost(N): in blocks, until training sets the counted costs
        self.register_buffer("budget", torch.arange(1, exits + 1) / (exits + 1))

    def set_budget(self, shares: Tensor) -> None:
        """Sets b_t."""
        self.budget.copy_(shares)

    def advantage(self, p: Tensor, pooled: Tensor, k: int) -> Tensor:
        """a_k(p, relu(P_k pooled), b_k): p [n, K], pooled [n, F] -> [n]."""
        z = F.relu(self.project[k](pooled))
        p = p.sort(-1, descending=True).values  # the confidence matters, not which class it is
        s = torch.cat([p, z, self.budget[k].expand(p.shape[0], 1)], 1)  # [n, K + projection + 1]
        a: Tensor = self.decide[k % len(self.decide)](s).squeeze(1)
        return a


class ThresholdPolicy(Policy):
    """The comparison for MDP policies: leave where the largest probability exceeds the threshold of the exit.

    Args:
        exits: N - 1, those with a threshold.
    """

    thresholds: Tensor

    def __init__(self, exits: int) -> None:
        super().__init__()
        self.register_buffer("thresholds", torch.full((exits,), 0.9))

    def advantage(self, p: Tensor, pooled: Tensor, k: int) -> Tensor:
        """max_j p_j - threshold: p [n, K] -> [n]."""
        return p.amax(-1) - self.thresholds[k]


class EPNet(ResNet):
    """A ResNet with an exit after every block, or after every `every` blocks.

    Args:
        block: BasicBlock or Bottleneck.
        layers: blocks per group.
        num_classes: K.
        dataset: 'cifar' or 'imagenet'.
        every: blocks from one exit to the next; there is always one after the last block.
        pool: see `Stage`; the last exit always pools globally, as the ResNet does.
        width: of the narrow layer of a branch; 0: none.
        policy: 'mdp' or 'threshold'.
        projection: see `MDPPolicy`.
        hidden: see `MDPPolicy`.
        shared: see `MDPPolicy`.
    """

    def __init__(
        self,
        block: BlockKind,
        layers: tuple[int, ...],
        num_classes: int,
        dataset: str,
        every: int,
        pool: int,
        width: int,
        policy: PolicyKind,
        projection: int,
        hidden: int,
        shared: bool,
    ) -> None:
        super().__init__(block, layers, num_classes, dataset)
        blocks = list(self.blocks())
        ends = [*range(every, len(blocks), every), len(blocks)]  # number of blocks before each exit
        features = [blocks[end - 1].outputs * pool**2 for end in ends[:-1]]
        self.branches = module_list(Branch(f, num_classes, width) for f in features)
        self.policy: Policy = (
            MDPPolicy(features, num_classes, projection, hidden, shared)
            if policy == "mdp"
            else ThresholdPolicy(len(features))
        )
        pools = [pool] * len(features) + [1]
        stages = [Stage(blocks[a:b], side) for a, b, side in zip([0, *ends], ends, pools, strict=False)]
        heads = [*self.branches, LastExit(self.fc)]
        self.exits = Exits("exit", stages, heads, self.policy, static=Backbone(blocks, self.fc))
        shared_once(self)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, 3, H, W] -> logits [n, K] of the exit taken."""
        logits: Tensor = self.exits((self.stem(x), None))
        return logits


def epnet(
    depth: int = 38,
    num_classes: int = 10,
    dataset: str = "cifar",
    every: int = 1,
    pool: int = 1,
    width: int = 0,
    policy: PolicyKind = "mdp",
    projection: int = 2,
    hidden: int = 16,
    shared: bool = False,
) -> EPNet:
    """An EPNet, as reconstructed here, on a ResNet.

    Args:
        depth: of the ResNet: 6n+2 for 'cifar'; 18, 34, 50, 101 or 152 for 'imagenet'.
        num_classes: outputs.
        dataset: 'cifar' (inputs [n, 3, 32, 32], larger ones work) or 'imagenet' ([n, 3, 224, 224]).
        every: number of blocks from one exit to the next; 1: an exit after every block.
        pool: branches and policy see feature maps pooled to pool x pool pixels; 1: globally.
        width: of the narrow layer of a branch; 0: none.
        policy: 'mdp', learned decision functions, or 'threshold', on the largest probability.
        projection: width of the pooled features in the state of the policy.
        hidden: width of the hidden layer of a decision function; 0: linear.
        shared: one decision function for all exits instead of one each.

    Raises:
        ValueError: an unknown policy, a size out of range, or there is no such ResNet.
    """
    block, layers = architecture(depth, dataset)
    if policy not in ("mdp", "threshold"):
        raise ValueError(f"policy={policy!r}: an EPNet has the policies 'mdp' (learned) or 'threshold'")
    if not 1 <= every < sum(layers):
        raise ValueError(f"every={every}: of {sum(layers)} blocks an exit comes after every 1 to {sum(layers) - 1}")
    check_least(1, pool=pool, projection=projection)
    check_least(0, width=width, hidden=hidden)
    return EPNet(block, layers, num_classes, dataset, every, pool, width, policy, projection, hidden, shared)


@dataclass(frozen=True)
class PartMacs:
    """Multiply-accumulates of the parts of an EPNet for one sample.

    Attributes:
        stages: of every stage, the stem in the first.
        branches: of every exit, the last one's classifier included.
        policy: of deciding at every exit but the last.
    """

    stages: tuple[int, ...]
    branches: tuple[int, ...]
    policy: tuple[int, ...]

    def upto(self) -> list[int]:
        """cost(t): the cost of a sample that leaves at exit t, including the branches and decisions before it."""
        total, costs = 0, []
        for stage, branch, decision in zip(self.stages, self.branches, (*self.policy, 0), strict=True):
            total += stage + branch + decision
            costs.append(total)
        return costs


def part_macs(model: EPNet, shape: tuple[int, ...]) -> PartMacs:
    """Counts the parts of a model in one pass.

    Args:
        model: on any device; its mode is restored.
        shape: of one input, without the sample dimension.
    """
    like, training = next(model.parameters()), model.training
    stages, branches, policy = list[int](), list[int](), list[int]()
    model.eval()
    with torch.no_grad():
        x = torch.zeros(1, *shape, dtype=like.dtype, device=like.device)
        x, stem = _counted(model.stem, x)
        state: State = (x, None)
        for k, (stage, head) in enumerate(zip(model.exits.stages, model.exits.heads, strict=True)):
            state, macs = _counted(stage, state)
            stages.append(macs)
            answer, macs = _counted(head, state)
            branches.append(macs)
            if k < len(model.branches):
                _, macs = _counted(model.policy, answer, state, k)
                policy.append(macs)
    model.train(training)
    return PartMacs((stem + stages[0], *stages[1:]), tuple(branches), tuple(policy))


def _counted(part: Callable[..., Any], *args: Any) -> tuple[Any, int]:
    """The answer of a part, and its multiply-accumulates."""
    with FlopCounter(strict=True) as counter:
        answer = part(*args)
    return answer, sum(counter.by_part.values()) // 2


def accounted_macs(model: EPNet, trace: Trace, shape: tuple[int, ...]) -> tuple[float, str]:
    """As we count, since it is not known what the paper counts: everything up to the exit taken, decisions included."""
    costs = part_macs(model, shape).upto()
    rule = "reconstruction: stem, blocks, branches and decisions up to the exit taken"
    return mean_over_exits(trace, "exit", costs), rule
