"""BranchyNet: side branches answer easy inputs, those for which the entropy of the branch's answer is low.

Teerapittayanon, McDanel, Kung, "BranchyNet: Fast Inference via Early Exiting from Deep Neural Networks", ICPR 2016
(arXiv 1709.01686). Layers are those of the authors' code (kunglab/branchynet, networks/*.py).

On the published times:

- The authors' code (branchynet/net.py) times only the parts of the backbone. Branches, entropies and the selection of
  the inputs that leave are not timed, and the branch of an input that leaves is computed twice.
- They are means at batch 1, where time follows the number of layers called rather than their multiply-accumulates: the
  measured gain exceeds the gain in multiply-accumulates.
- Thresholds were chosen on the test set.

A related work, Shallow-Deep Networks (Kaya, Hong, Dumitras, ICML 2019), charges an input that is confident at no exit
the cost of the exit whose answer it finally takes, although the whole network ran: its mean costs are too low. Here
every input is charged what was executed for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.dynamic import Exits, Trace
from dynbench.models.accounting import mean_over_exits, static_macs
from dynbench.models.idk import Policy
from dynbench.models.sharing import shared_once

PAPER = "Teerapittayanon et al., BranchyNet: Fast Inference via Early Exiting from Deep Neural Networks, ICPR 2016"
PROVENANCE = "authors' code for the layers; with placement='paper' the branches sit where the paper says"

Net = Literal["lenet", "alexnet", "resnet110"]
Placement = Literal["code", "paper"]
GAIN = math.sqrt(2)  # initialisation gain of the ResNet's convolutions


class EntropyBelow(Policy):
    """Leave at exit n where entropy(y) = - sum_c y_c log y_c < T_n, y the softmax, in nats (section III-C).

    Args:
        thresholds: T_n, one per exit but the last, which takes all remaining inputs.
        num_classes: outputs.
    """

    def __init__(self, thresholds: Sequence[float], num_classes: int) -> None:
        super().__init__("entropy", thresholds, num_classes)

    def forward(self, answer: Tensor, state: object, k: int) -> Tensor:
        """answer [n, C], the logits of exit k -> [n] bool: whether to leave."""
        return self.doubt(answer, k) < self.thresholds[k]


class LRN(nn.Module):
    """Local response normalisation with Chainer's constants: y = x / (2 + alpha sum x_j^2) ^ beta, over n channels."""

    def __init__(self, n: int = 3, alpha: float = 5e-5, beta: float = 0.75) -> None:
        super().__init__()
        self.n, self.alpha, self.beta = n, alpha, beta

    def forward(self, x: Tensor) -> Tensor:
        """x [n, C, H, W] -> the same shape."""
        channels = x.shape[1]
        squares = F.pad(x * x, (0, 0, 0, 0, self.n // 2, self.n // 2))
        total = squares[:, :channels]
        for j in range(1, self.n):
            total = total + squares[:, j : j + channels]
        return x * (2 + self.alpha * total).pow(-self.beta)


def conv(inputs: int, outputs: int, size: int, stride: int = 1, padding: int = 0, gain: float = 1.0) -> nn.Conv2d:
    """A convolution with a bias, initialised as Chainer does: weights from N(0, gain / sqrt(fan in))."""
    return _initialised(nn.Conv2d(inputs, outputs, size, stride, padding), gain)


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer, initialised in the same way as `conv`."""
    return _initialised(nn.Linear(inputs, outputs), 1.0)


L = TypeVar("L", nn.Conv2d, nn.Linear)


def _initialised(layer: L, gain: float) -> L:
    nn.init.normal_(layer.weight, 0, gain / math.sqrt(layer.weight[0].numel()))
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


class ResBlock(nn.Module):
    """Two 3x3 convolutions plus the identity; where the shape changes, subsampled and padded with zero channels."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, outputs, 3, stride, 1, GAIN), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv(outputs, outputs, 3, 1, 1, GAIN), nn.BatchNorm2d(outputs)
        self.stride, self.more = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """x [n, inputs, H, W] -> [n, outputs, H / stride, W / stride]."""
        h = F.relu(self.bn1(self.conv1(x)))
        h = self.bn2(self.conv2(h))
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.more:
            x = F.pad(x, (0, 0, 0, 0, self.more, 0))  # the zero channels come first
        return F.relu(h + x)


def pool(size: int) -> nn.Module:
    """Max pooling of stride 2 whose last window may extend over the edge (Chainer's cover_all)."""
    return nn.MaxPool2d(size, 2, ceil_mode=True)


def norm() -> list[nn.Module]:
    """The layers after a convolution of the AlexNet."""
    return [nn.ReLU(), pool(3), LRN()]


class Layers(NamedTuple):
    """A backbone cut at its exits, the branches, and the shape of one input.

    Attributes:
        stages: the layers of the backbone up to each exit.
        heads: the layers of each branch; the last one is the end of the backbone.
        shape: [C, H, W].
    """

    stages: list[list[nn.Module]]
    heads: list[list[nn.Module]]
    shape: tuple[int, ...]


def lenet(placement: Placement, classes: int) -> Layers:
    """B-LeNet, MNIST: paper and code agree on one branch after the first convolution."""
    first = conv(1, 5, 5, padding=3)  # 28 -> 30
    rest = [pool(2), nn.ReLU(), conv(5, 10, 5, padding=3)]  # 15 -> 17
    rest += [pool(2), nn.ReLU(), conv(10, 20, 5, padding=3)]  # 9 -> 11
    rest += [pool(2), nn.ReLU(), nn.Flatten(), linear(20 * 6 * 6, 84)]
    branch = [pool(2), nn.ReLU(), conv(5, 10, 3, padding=1), pool(2), nn.ReLU(), *_classify(10 * 8 * 8, classes)]
    return Layers([[first], rest], [branch, [linear(84, classes)]], (1, 28, 28))


def alexnet(placement: Placement, classes: int) -> Layers:
    """B-AlexNet, CIFAR-10: two branches, after convolutions 2 and 3 (code) or 1 and 2 (paper).

    The paper gives the number of layers of each branch, two convolutions and one, but not their widths: those are the
    code's.
    """

    def after(channels: int, size: int, convs: int) -> list[nn.Module]:
        """The branch on a map of this size."""
        layers, width = norm(), channels
        for _ in range(convs):
            layers += [conv(width, 32, 3, padding=1), nn.ReLU()]
            width = 32
        left = math.ceil((math.ceil((size - 1) / 2) - 1) / 2)  # after two 3x3 poolings of stride 2
        return [*layers, pool(3), *_classify(width * left * left, classes)]

    conv1, conv2 = conv(3, 32, 5, padding=2), conv(32, 64, 5, padding=2)
    conv3 = conv(64, 96, 3, padding=1)
    rest = [nn.ReLU(), conv(96, 96, 3, padding=1), nn.ReLU(), conv(96, 64, 3, padding=1), nn.ReLU(), pool(3)]
    rest += [nn.Flatten(), linear(64 * 4 * 4, 256), nn.ReLU(), nn.Dropout()]
    rest += [linear(256, 128), nn.ReLU(), nn.Dropout()]
    end: list[nn.Module] = [linear(128, classes)]
    stages: list[list[nn.Module]]
    if placement == "code":
        stages = [[conv1, *norm(), conv2], [*norm(), conv3], rest]
        return Layers(stages, [after(64, 16, 2), after(96, 8, 1), end], (3, 32, 32))
    stages = [[conv1], [*norm(), conv2], [*norm(), conv3, *rest]]
    return Layers(stages, [after(32, 32, 2), after(64, 16, 1), end], (3, 32, 32))


def resnet110(placement: Placement, classes: int) -> Layers:
    """B-ResNet, CIFAR-10: a branch after convolution 1 (code) or 2 (paper), another after convolution 37 (both).

    Convolution 2 lies inside the first residual block, which is not cut: with placement='paper' the branch comes after
    that block, as in the first version of the code. Its layers are those of the code.
    """
    stem = [conv(3, 16, 3, gain=GAIN), nn.BatchNorm2d(16), nn.ReLU()]  # 32 -> 30
    group1 = [ResBlock(16, 16) for _ in range(18)]
    group2 = [ResBlock(16, 32, 2), *(ResBlock(32, 32) for _ in range(17))]  # 15
    group3 = [ResBlock(32, 64, 2), *(ResBlock(64, 64) for _ in range(17))]  # 8
    branch1 = [conv(16, 64, 5, padding=2), nn.ReLU(), LRN(), conv(64, 32, 3, padding=1), nn.ReLU()]
    branch1 += [conv(32, 32, 3, padding=1), nn.ReLU(), *_classify(32 * 30 * 30, classes)]
    branch2 = [ResBlock(16, 16), *_classify(16 * 30 * 30, classes)]
    end = [nn.AvgPool2d(6, 1), *_classify(64 * 3 * 3, classes)]
    cut = 0 if placement == "code" else 1
    stages: list[list[nn.Module]] = [[*stem, *group1[:cut]], [*group1[cut:]], [*group2, *group3]]
    return Layers(stages, [branch1, branch2, end], (3, 32, 32))


def _classify(inputs: int, classes: int) -> list[nn.Module]:
    return [nn.Flatten(), linear(inputs, classes)]


class Plain(nn.Module):
    """The static twin: the backbone without branches.

    Args:
        stages: of the backbone.
        head: the end of the backbone.
        shape: of one input.
    """

    def __init__(self, stages: nn.ModuleList, head: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.stages, self.head, self.shape = stages, head, shape

    def input_shape(self, default: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one input."""
        return self.shape

    def forward(self, x: Tensor) -> Tensor:
        """x [n, *shape] -> logits [n, C]."""
        for stage in self.stages:
            x = stage(x)
        logits: Tensor = self.head(x)
        return logits


class BranchyNet(nn.Module):
    """A backbone with branches; an input leaves at the first branch that is confident.

    Args:
        layers: the backbone cut at its exits, and the branches.
        policy: which inputs leave at an exit.
    """

    def __init__(self, layers: Layers, policy: Policy) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nn.Sequential(*part) for part in layers.stages)
        self.heads = nn.ModuleList(nn.Sequential(*part) for part in layers.heads)
        self.policy, self.shape = policy, layers.shape
        self.twin = Plain(self.stages, self.heads[-1], layers.shape)
        self.exits = Exits("exit", self.stages, self.heads, policy, static=self.twin)
        shared_once(self)

    def input_shape(self, default: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one input."""
        return self.shape

    def forward(self, x: Tensor) -> Tensor:
        """x [n, *shape] -> logits [n, C] of the exit that answered."""
        logits: Tensor = self.exits(x)
        return logits

    def every_exit(self, x: Tensor) -> tuple[Tensor, ...]:
        """x [n, *shape] -> logits [n, C] of each exit, for joint training."""
        answers = []
        for stage, head in zip(self.stages, self.heads, strict=True):
            x = stage(x)
            answers.append(head(x))
        return tuple(answers)


NETS: dict[str, Callable[[Placement, int], Layers]] = {"lenet": lenet, "alexnet": alexnet, "resnet110": resnet110}
TABLE_I = {"lenet": (0.025,), "alexnet": (1e-4, 0.05), "resnet110": (0.3, 0.2)}  # T_n of the paper


def branchynet(
    net: Net = "alexnet",
    placement: Placement = "code",
    thresholds: Sequence[float] | None = None,
    num_classes: int = 10,
) -> BranchyNet:
    """A BranchyNet.

    Thresholds are part of the weights (`policy.thresholds`): those chosen on held-out data are saved with them.

    Args:
        net: 'lenet' (inputs [n, 1, 28, 28]), 'alexnet' or 'resnet110' (both [n, 3, 32, 32]).
        placement: of the branches. 'code': as in the authors' code, for AlexNet after convolutions 2 and 3, for
            ResNet-110 after 1 and 37. 'paper': as in the text, after 1 and 2, and after 2 and 37 (see `resnet110`).
            LeNet's is the same in both.
        thresholds: T_n in nats, one per exit but the last; default: those of table I.
        num_classes: outputs.

    Raises:
        ValueError: an unknown network or placement, or not one threshold per exit but the last.
    """
    if net not in NETS:
        raise ValueError(f"net={net!r}: a BranchyNet is built on {', '.join(map(repr, NETS))}")
    if placement not in ("code", "paper"):
        raise ValueError(f"placement={placement!r}: branches sit as in the 'code' or as in the 'paper'")
    thresholds = TABLE_I[net] if thresholds is None else thresholds
    layers = NETS[net](placement, num_classes)
    if len(thresholds) != len(layers.heads) - 1:
        raise ValueError(
            f"thresholds={list(thresholds)}: the {len(layers.heads)} exits need one each, but for the last"
        )
    return BranchyNet(layers, EntropyBelow(thresholds, num_classes))


def plain(net: Net = "alexnet", placement: Placement = "code", num_classes: int = 10) -> Plain:
    """The baseline of a BranchyNet: its backbone alone. The placement of branches affects only the names of layers.

    Args:
        net: see `branchynet`.
        placement: see `branchynet`.
        num_classes: outputs.

    Raises:
        ValueError: see `branchynet`.
    """
    return branchynet(net, placement, None, num_classes).twin


def accounted_macs(model: BranchyNet, trace: Trace, shape: tuple[int, ...]) -> tuple[float, str]:
    """What the authors' clock covers, in MACs: the backbone up to the exit taken; branches are free."""
    costs = [_backbone_macs(model, k, shape) for k in range(len(model.stages))]
    rule = "the backbone as far as an input goes, which the authors' clock covers; branches not counted"
    return mean_over_exits(trace, "exit", costs), rule


def _backbone_macs(model: BranchyNet, k: int, shape: tuple[int, ...]) -> int:
    """Of the backbone up to exit k."""
    if k == len(model.stages) - 1:
        return static_macs(model.twin, shape)
    return static_macs(nn.Sequential(*model.stages[: k + 1]), shape)
