"""CondConv and dynamic convolution: each input is convolved with its own kernels, mixed from a few.

Yang, Bender, Le, Ngiam, "CondConv: Conditionally Parameterized Convolutions for Efficient Inference", NeurIPS 2019
(arXiv 1904.04971), and, for `routing = "softmax"`, Chen et al., "Dynamic Convolution: Attention over Convolution
Kernels", CVPR 2020 (arXiv 1912.03458). EfficientNet-B0 and which of its blocks are conditional (all of the last three
stages, each with one routing for its three convolutions) are as in the authors' code (tensorflow/tpu,
models/official/efficientnet, condconv/efficientnet_condconv_builder.py). Ours are: softmax routing per block, where
Chen et al. have one per convolution and also mix biases; and the ResNets for images of 32 x 32.

Nothing is skipped: capacity grows with the number of kernels, work by the cost of mixing them, and every input has
weights of its own. So there is no decision by which inputs could be grouped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.dynamic import Trace, Weights
from dynbench.models.accounting import linear_macs, static_macs
from dynbench.models.resnet import BasicBlock, ResNet, architecture, block_names
from dynbench.models.sharing import shared_once

PAPER = "Yang et al., CondConv, NeurIPS 2019; Chen et al., Dynamic Convolution, CVPR 2020"
PROVENANCE = "EfficientNet-B0 as in the authors' code; softmax routing per block and the ResNets for CIFAR are ours"

RoutingKind = Literal["sigmoid", "softmax"]
Kernels = Sequence[Tensor]


class Conv2d(nn.Conv2d):
    """A convolution whose kernel may be passed in: one for all items [O, I, k, k], or one each [n, O, I, k, k]."""

    def forward(self, x: Tensor, kernel: Tensor | None = None) -> Tensor:
        """x [n, C, H, W], kernel as above or None: its own -> [n, O, H', W']."""
        if kernel is None:
            return super().forward(x)
        if kernel.dim() == 4:
            return self._conv_forward(x, kernel, None)
        n, groups = x.shape[0], x.shape[0] * self.groups  # a group of channels per item
        y = F.conv2d(x.reshape(1, -1, *x.shape[2:]), kernel.flatten(0, 1), None, self.stride, self.padding, 1, groups)
        return y.view(n, -1, *y.shape[2:])


class SqueezeExcite(nn.Module):
    """x sigmoid(expand(silu(reduce(pool(x)))))."""

    def __init__(self, channels: int, reduced: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, reduced, 1), nn.Conv2d(reduced, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, C, H, W]."""
        return x * torch.sigmoid(self.expand(F.silu(self.reduce(x.mean((2, 3), keepdim=True)))))


def norm(channels: int) -> nn.BatchNorm2d:
    """EfficientNet's batch norm."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class MBConv(nn.Module):
    """Expand 1x1, depthwise kxk, squeeze-and-excitation, project 1x1; a shortcut if the shape is unchanged.

    Args:
        inputs: channels.
        outputs: channels.
        kernel: size of the depthwise convolution.
        stride: its stride.
        expand: inner channels, in multiples of the inputs.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        mid = inputs * expand
        self.expand = None if expand == 1 else Conv2d(inputs, mid, 1, bias=False)
        self.bn0 = None if expand == 1 else norm(mid)
        self.depthwise = Conv2d(mid, mid, kernel, stride, kernel // 2, groups=mid, bias=False)
        self.bn1, self.se = norm(mid), SqueezeExcite(mid, max(1, inputs // 4))
        self.project, self.bn2 = Conv2d(mid, outputs, 1, bias=False), norm(outputs)
        self.shortcut = stride == 1 and inputs == outputs

    def convolutions(self) -> list[Conv2d]:
        """The conditional convolutions, in the order of their kernels."""
        return [conv for conv in (self.expand, self.depthwise, self.project) if conv is not None]

    def forward(self, x: Tensor, kernels: Kernels | None = None) -> Tensor:
        """x [n, inputs, H, W], kernels of `convolutions` or None: its own -> y [n, outputs, H / stride, W / stride]."""
        *first, depthwise, project = kernels or (None, None, None)
        y = x
        if self.expand is not None and self.bn0 is not None:
            y = F.silu(self.bn0(self.expand(x, first[0])))
        y = self.se(F.silu(self.bn1(self.depthwise(y, depthwise))))
        y = self.bn2(self.project(y, project))
        return x + y if self.shortcut else y


class Basic(BasicBlock):
    """A residual block whose two 3x3 convolutions are conditional; its shortcut is not."""

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__(inputs, width, stride)
        self.conv1: Conv2d = Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.conv2: Conv2d = Conv2d(width, width, 3, 1, 1, bias=False)

    def convolutions(self) -> list[Conv2d]:
        """The conditional convolutions, in the order of their kernels."""
        return [self.conv1, self.conv2]

    def forward(self, x: Tensor, kernels: Kernels | None = None) -> Tensor:  # type: ignore[override]
        """x [n, inputs, H, W], kernels of `convolutions` or None: its own -> y [n, outputs, H / stride, W / stride]."""
        first, second = kernels or (None, None)
        y = F.relu(self.bn1(self.conv1(x, first)))
        y = self.bn2(self.conv2(y, second))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Routing(nn.Module):
    """r(x): sigmoid(R pool(x)) (CondConv, section 3.1), or softmax(R' relu(R pool(x)) / tau) (Chen et al., figure 3).

    Args:
        channels: of the block's input.
        experts: K.
        kind: 'sigmoid' or 'softmax'.

    Attributes:
        temperature: tau, of softmax; high at the start of training, so that all kernels learn.
    """

    temperature: Tensor

    def __init__(self, channels: int, experts: int, kind: RoutingKind) -> None:
        super().__init__()
        self.squeeze, hidden = None, channels
        if kind == "softmax":
            hidden = max(channels // 4, 4)
            self.squeeze = nn.Linear(channels, hidden)
            self.register_buffer("temperature", torch.tensor(1.0))
        self.fc = nn.Linear(hidden, experts)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, C, H, W] -> r [n, K]."""
        pooled = x.mean((2, 3))
        if self.squeeze is None:
            return torch.sigmoid(self.fc(pooled))
        return (self.fc(F.relu(self.squeeze(pooled))) / self.temperature).softmax(1)


class Experts(nn.Module):
    """W = sum_i r_i W_i for each of several convolutions (CondConv, eq. 1).

    Args:
        convolutions: each gets K kernels here; its own is removed.
        experts: K.
    """

    def __init__(self, convolutions: Sequence[Conv2d], experts: int) -> None:
        super().__init__()
        self.kernels = nn.ParameterList(torch.stack([_drawn(c) for _ in range(experts)]) for c in convolutions)
        for conv in convolutions:
            del conv.weight
            conv.register_parameter("weight", None)

    def forward(self, r: Tensor) -> tuple[Tensor, ...]:
        """r [m, K] -> the kernels of each convolution [m, O, I, k, k]."""
        return tuple((r @ w.flatten(1)).view(-1, *w.shape[1:]) for w in self.kernels)


def _drawn(conv: nn.Conv2d) -> Tensor:
    """A random kernel, scaled by fan-out (conv_kernel_initializer)."""
    fan_out = conv.kernel_size[0] * conv.kernel_size[1] * conv.out_channels // conv.groups
    return torch.randn_like(conv.weight) * math.sqrt(2 / fan_out)


class Conditional(nn.Module):
    """A block as the layer of Weights; its static twin mixes all kernels in equal shares.

    Args:
        block: its `convolutions()` are conditional.
        experts: K.
        kind: of the routing, which determines equal shares: 1/2 each (sigmoid) or 1/K (softmax).
    """

    equal: Tensor

    def __init__(self, block: MBConv | Basic, experts: int, kind: RoutingKind) -> None:
        super().__init__()
        self.block, self.experts = block, Experts(block.convolutions(), experts)
        share = 0.5 if kind == "sigmoid" else 1 / experts
        self.register_buffer("equal", torch.full((1, experts), share), persistent=False)

    def forward(self, x: Tensor, kernels: Kernels | None = None) -> Tensor:
        """x [n, C, H, W] and each item's kernels [n, O, I, k, k]: a grouped convolution; None: equal shares."""
        if kernels is None:
            kernels = [k[0] for k in self.experts(self.equal)]
        y: Tensor = self.block(x, kernels)
        return y

    def special(self, kernels: Kernels) -> Callable[[Tensor], Tensor]:
        """The block with kernels [O, I, k, k]."""

        def block(x: Tensor) -> Tensor:
            y: Tensor = self.block(x, kernels)
            return y

        return block


def conditional(name: str, block: MBConv | Basic, channels: int, experts: int, kind: RoutingKind) -> Weights:
    """A block with K kernels for each of its convolutions, routed by its own input of `channels` channels."""
    layer = Conditional(block, experts, kind)
    return Weights(name, Routing(channels, experts, kind), layer.experts, layer, shared=False)


STAGES = (  # of EfficientNet-B0 (Tan and Le 2019, table 1): repeats, kernel, stride, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class EfficientNet(nn.Module):
    """EfficientNet for 224 x 224; the last stages may be conditional.

    Args:
        width: factor on channels, which are rounded to multiples of 8.
        depth: factor on the blocks of each stage, rounded up.
        num_classes: outputs.
        experts: kernels of a conditional convolution.
        stages: number of conditional stages, counted from the last.
        routing: of the conditional stages.
    """

    def __init__(
        self, width: float, depth: float, num_classes: int, experts: int, stages: int, routing: RoutingKind
    ) -> None:
        super().__init__()
        c = _rounded(32 * width)
        self.conv_stem, self.bn0 = nn.Conv2d(3, c, 3, 2, 1, bias=False), norm(c)
        blocks: list[nn.Module] = []
        for s, (repeats, kernel, stride, expand, full) in enumerate(STAGES, start=1):
            out = _rounded(full * width)
            for i in range(math.ceil(depth * repeats)):
                block: nn.Module = MBConv(c, out, kernel, stride if i == 0 else 1, expand)
                if s > len(STAGES) - stages:
                    block = conditional(f"stage{s}_block{i}", block, c, experts, routing)  # type: ignore[arg-type]
                blocks.append(block)
                c = out
        self.blocks = nn.ModuleList(blocks)
        last = _rounded(1280 * width)
        self.conv_head, self.bn1 = nn.Conv2d(c, last, 1, bias=False), norm(last)
        self.fc = nn.Linear(last, num_classes)
        with torch.no_grad():
            for m in self.modules():
                if isinstance(m, nn.Conv2d) and m.weight is not None:
                    m.weight.copy_(_drawn(m))
        shared_once(self)

    def input_shape(self, default: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one input: [3, H, W]."""
        return (3, 224, 224)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, 3, H, W] -> logits [n, num_classes]."""
        x = F.silu(self.bn0(self.conv_stem(x)))
        for block in self.blocks:
            x = block(x)
        x = F.silu(self.bn1(self.conv_head(x)))
        y: Tensor = self.fc(x.mean((2, 3)))
        return y


def _rounded(channels: float) -> int:
    """Rounds to a multiple of 8, down by at most a tenth (round_filters)."""
    near = max(8, int(channels + 4) // 8 * 8)
    return near + 8 if near < 0.9 * channels else near


class CondResNet(ResNet):
    """A ResNet whose last groups are conditional.

    Args:
        layers: blocks per group.
        num_classes: outputs.
        experts: kernels of a conditional convolution.
        groups: number of conditional groups, counted from the last.
        routing: of the conditional groups.
    """

    def __init__(
        self, layers: tuple[int, ...], num_classes: int, experts: int, groups: int, routing: RoutingKind
    ) -> None:
        super().__init__(BasicBlock, layers, num_classes, "cifar")
        first = sum(layers[: len(layers) - groups])  # the first conditional block
        for name, plain in list(zip(block_names(layers), self.blocks(), strict=True))[first:]:
            c = plain.conv1.in_channels
            block = Basic(c, plain.outputs, plain.stride)
            self.add_module(name, conditional(name, block, c, experts, routing))
        shared_once(self)


def condconv(
    network: str = "efficientnet_b0",
    experts: int = 4,
    routing: RoutingKind = "sigmoid",
    stages: int | None = None,
    num_classes: int = 1000,
    width: float = 1.0,
    depth: float = 1.0,
) -> EfficientNet | CondResNet:
    """A network of conditional convolutions.

    Args:
        network: 'efficientnet_b0' (inputs [n, 3, 224, 224]) or 'cifar_resnet8', 14, 20, ... (inputs [n, 3, 32, 32],
            larger ones work).
        experts: kernels of each conditional convolution.
        routing: 'sigmoid' (CondConv) or 'softmax' (dynamic convolution).
        stages: number of conditional stages (EfficientNet: of 7) or groups (ResNet: of 3), counted from the last;
            default: 3 stages, 1 group.
        num_classes: outputs.
        width: factor on EfficientNet's channels.
        depth: factor on EfficientNet's blocks (the authors' B0-Depth: 1.1).

    Raises:
        ValueError: an unknown network or routing, or a number out of range.
    """
    if experts < 1:
        raise ValueError(f"experts={experts}: a convolution has 1 kernel or more")
    if routing not in ("sigmoid", "softmax"):
        raise ValueError(f"routing={routing!r}: 'sigmoid' or 'softmax'")
    if network == "efficientnet_b0":
        return _efficientnet(width, depth, num_classes, experts, 3 if stages is None else stages, routing)
    size = network.removeprefix("cifar_resnet")
    if size == network or not size.isdecimal():
        raise ValueError(f"network={network!r}: efficientnet_b0, or cifar_resnet8, 14, 20, 26, ...")
    if width != 1 or depth != 1:
        raise ValueError(f"width={width}, depth={depth}: for EfficientNet only; a ResNet's depth is in its name")
    groups = 1 if stages is None else stages
    if not 1 <= groups <= 3:
        raise ValueError(f"stages={groups}: 1 to 3 groups of a ResNet are conditional")
    return CondResNet(architecture(int(size), "cifar")[1], num_classes, experts, groups, routing)


def efficientnet(num_classes: int = 1000, width: float = 1.0, depth: float = 1.0) -> EfficientNet:
    """The plain EfficientNet; arguments as for `condconv`."""
    return _efficientnet(width, depth, num_classes, 1, 0, "sigmoid")


def _efficientnet(
    width: float, depth: float, num_classes: int, experts: int, stages: int, routing: RoutingKind
) -> EfficientNet:
    if width <= 0 or depth <= 0:
        raise ValueError(f"width={width}, depth={depth}: both are positive")
    if not 0 <= stages <= len(STAGES):
        raise ValueError(f"stages={stages}: up to {len(STAGES)} stages of an EfficientNet are conditional")
    return EfficientNet(width, depth, num_classes, experts, stages, routing)


def routings(model: nn.Module) -> list[Routing]:
    """The routings of a network."""
    return [m for m in model.modules() if isinstance(m, Routing)]


def accounted_macs(model: EfficientNet | CondResNet, trace: Trace, shape: tuple[int, ...]) -> tuple[float, str]:
    """As the authors count: the products of the plain network, of mixing an input's kernels, and of routing."""
    macs = static_macs(model, shape) + sum(map(linear_macs, routings(model)))
    return float(macs), "the plain network, mixing of each input's kernels, routing"
