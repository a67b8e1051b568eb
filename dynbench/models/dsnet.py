"""DS-Net: one gate decides for each input the width of the rest of the network.

Li, Wang, Wang, Liang, Li, Chang, "Dynamic Slimmable Network", CVPR 2021 (arXiv 2103.13258). `dsnet_mobilenet` follows
the authors' code (changlin31/DS-Net, dyn_slim/models) in its dynamic form: the stages before the gate always run at
their smallest width. Two differences: their gate draws Gumbel noise in evaluation too, whereas here it takes the
likeliest width; and theirs processes one image at a time. `dsnet` puts such a gate on a slimmable ResNet for images of
32 x 32, which is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.dynamic import Trace, Width
from dynbench.models.accounting import static_macs
from dynbench.models.resnet import architecture
from dynbench.models.sharing import shared_once
from dynbench.models.slimmable import (
    WIDTHS,
    Body,
    Chain,
    ConvNorm,
    Counts,
    Norm,
    SlimConv2d,
    Slimmed,
    basic_group,
    check_norm,
    checked_widths,
    macs_by_level,
    rounded,
    slimmed,
)

PAPER = "Li et al., Dynamic Slimmable Network, CVPR 2021"
PROVENANCE = "authors' code, unsampled in evaluation mode, as ours; the ResNet for CIFAR is ours"

SE_RATIO = 0.25


def likeliest(scores: Tensor) -> Tensor:
    """scores [n, K] of K widths -> mask [n, K - 1]: the levels above the lowest that the likeliest width uses."""
    levels = torch.arange(1, scores.shape[1], device=scores.device)
    return levels <= scores.argmax(1, keepdim=True)


class Gate(nn.Module):
    """Average pool over the whole map, reduce, ReLU, a score for each width (section 3.3).

    Args:
        channels: of the map.
        widths: number of widths.
        reduced: width between the two layers.
    """

    def __init__(self, channels: int, widths: int, reduced: int) -> None:
        super().__init__()
        self.reduce, self.choose = nn.Linear(channels, reduced), nn.Linear(reduced, widths)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, C, H, W] -> scores [n, K]."""
        scores: Tensor = self.choose(F.relu(self.reduce(x.mean((2, 3)))))
        return scores


class DSNet(nn.Module):
    """y = tail_w(x)(x), x = front(image), w(x) the width that the gate chooses for the image.

    Args:
        front: `image -> (x, cue)`: the inputs of the tail and of the gate.
        gate: `cue -> scores [n, K]`.
        tail: the slimmable rest, of K levels.
        small: images of 32 x 32, not of 224 x 224.
    """

    def __init__(self, front: nn.Module, gate: nn.Module, tail: Body, small: bool) -> None:
        super().__init__()
        self.front, self.gate, self.tail, self.small = front, gate, tail, small
        self.point = Width("width", gate, Slimmed(tail), rule=likeliest, nested=True)
        shared_once(self)

    def input_shape(self, default: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one input: [3, H, W]."""
        return default if self.small else (3, 224, 224)

    def forward(self, image: Tensor) -> Tensor:
        """image [n, 3, H, W] -> logits [n, num_classes]."""
        x, cue = self.front(image)
        y: Tensor = self.point(x, cue)
        return y


class Front(nn.Module):
    """Layers of fixed width; tail and gate have the same input."""

    def __init__(self, layers: Chain) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """image [n, 3, H, W] -> (x [n, C, H, W], cue: the same)."""
        x = self.layers(image)
        return x, x


class SqueezeExcite(nn.Module):
    """x sigmoid(expand(relu(reduce(pool(x))))) (Hu et al. 2018), on the channels of a width.

    Args:
        channels: at each level.
        widest: the reduction has a quarter of this many channels.
    """

    def __init__(self, channels: Counts, widest: int) -> None:
        super().__init__()
        fixed = (rounded(widest * SE_RATIO, 1),) * len(channels)
        self.reduce, self.expand = SlimConv2d(channels, fixed, bias=True), SlimConv2d(fixed, channels, bias=True)

    def squeeze(self, x: Tensor) -> Tensor:
        """x [n, C, H, W] -> [n, r, 1, 1]."""
        return F.relu(self.reduce(x.mean((2, 3), keepdim=True)))

    def forward(self, x: Tensor, own: Tensor | None = None) -> Tensor:
        """x [n, C, H, W] -> the same shape; channels that an item does not use are zero in both."""
        return x * torch.sigmoid(self.expand(self.squeeze(x)))


class StageEntry(nn.Module):
    """Layers of fixed width up to a squeeze-and-excitation that is shared with the gate: its squeeze is the cue."""

    def __init__(self, layers: Chain, se: SqueezeExcite) -> None:
        super().__init__()
        self.layers, self.se = layers, se

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """image [n, 3, H, W] -> (x [n, C, H', W'], cue [n, r])."""
        x = self.layers(image)
        squeezed = self.se.squeeze(x)
        return x * torch.sigmoid(self.se.expand(squeezed)), squeezed.flatten(1)


def dsnet(
    depth: int = 8,
    base: int = 32,
    front: int = 16,
    widths: Sequence[float] = WIDTHS,
    num_classes: int = 10,
    norm: Norm = "switchable",
    reduced: int = 16,
) -> DSNet:
    """A ResNet for 32 x 32: stem and first group of fixed width, then a gate, then two groups of the width it chooses.

    Args:
        depth: 6n + 2.
        base: the slimmable groups have 2 base and 4 base channels at width 1.
        front: channels of stem and first group.
        widths: ascending; the last is the whole network.
        num_classes: outputs.
        norm: see `dynbench.models.slimmable.slimmable`.
        reduced: width between the gate's two layers.

    Raises:
        ValueError: there is no such network of this depth or with this norm, widths do not ascend, or no channels.
    """
    every, count = checked_widths(widths), architecture(depth, "cifar")[1][0]
    check_norm(norm)
    if base < 8 or front < 1 or reduced < 1:
        raise ValueError(f"base={base}, front={front}, reduced={reduced}: base is 8 or more, the others 1 or more")
    stem = ConvNorm((3,), (front,), 3, norm=norm, act=F.relu)
    c = (front,) * len(every)
    layers = []
    for full in (2 * base, 4 * base):
        layers += basic_group(c, slimmed(full, every), count, 2, norm)
        c = slimmed(full, every)
    first = Front(Chain([stem, *basic_group((front,), (front,), count, 1, norm)]))
    return DSNet(first, Gate(front, len(every), reduced), Body(layers, c, num_classes), small=True)


# The authors' slimmable_mbnet_v1_bn_uniform: for each stage of the front, channels at the smallest and largest width
# (the squeeze is a quarter of the latter), layers, stride. After the gate there are 14 widths.
FRONT = (((32, 88), 1, 1), ((48, 168), 2, 2), ((96, 264), 2, 2))
TAIL = ((tuple(range(224, 641, 32)), 6, 2), (tuple(range(736, 1153, 32)), 2, 2))


def dsnet_mobilenet(subnets: Sequence[int] = (0, 1, 2, 3), num_classes: int = 1000) -> DSNet:
    """The authors' DS-MobileNet of 224 x 224, with squeeze-and-excitation in every block.

    Args:
        subnets: the widths that the gate chooses from, out of 14; the authors train a gate for the first four.
        num_classes: outputs.

    Raises:
        ValueError: fewer than two of the 14, or not in ascending order.
    """
    chosen = list(subnets)
    if len(chosen) < 2 or chosen != sorted(set(chosen)) or chosen[0] < 0 or chosen[-1] >= len(TAIL[0][0]):
        raise ValueError(f"subnets={chosen}: two or more of 0 to {len(TAIL[0][0]) - 1}, ascending")
    conv = partial(ConvNorm, norm="universal", act=F.silu)
    c, widest = (16,), 24
    early: list[nn.Module] = [conv((3,), c, 3, 2)]
    for (narrow, wide), count, stride in FRONT:
        for i in range(count):
            early += [conv(c, c, 3, stride if i == 0 else 1, depthwise=True), SqueezeExcite(c, widest)]
            early.append(conv(c, (narrow,)))
            c, widest = (narrow,), wide
    early.append(conv(c, c, 3, TAIL[0][2], depthwise=True))
    entry = StageEntry(Chain(early), SqueezeExcite(c, widest))
    gate = nn.Linear(rounded(widest * SE_RATIO, 1), len(chosen), bias=False)
    at, late, begun = c * len(chosen), list[nn.Module](), True
    for every, count, stride in TAIL:
        out = tuple(every[s] for s in chosen)
        for i in range(count):
            if not begun:  # the first block's part of this is the gate's entry
                late += [conv(at, at, 3, stride if i == 0 else 1, depthwise=True), SqueezeExcite(at, widest)]
            late.append(conv(at, out))
            at, widest, begun = out, every[-1], False
    return DSNet(entry, gate, Body(late, at, num_classes), small=False)


def macs_by_width(model: DSNet, shape: tuple[int, ...]) -> list[int]:
    """Multiply-accumulates of an input at each width, the smallest first, with the gate."""
    whole = static_macs(model, shape)
    with torch.no_grad():
        x, cue = model.eval().front(torch.zeros(1, *shape, device=next(model.parameters()).device))
    tails = macs_by_level(model.tail, tuple(x.shape[1:]))
    gate = static_macs(model.gate, tuple(cue.shape[1:]))
    return [whole - tails[-1] + tail + gate for tail in tails]


def accounted_macs(model: DSNet, trace: Trace, shape: tuple[int, ...]) -> tuple[float, str]:
    """The width that each input takes and the gate, which the authors count, too."""
    value, reached = trace.entries[model.point.name, ()]
    macs = torch.tensor(macs_by_width(model, shape), dtype=torch.float64)
    taken = macs[value[reached].sum(1).cpu()]
    return float(taken.mean()) if len(taken) else 0.0, "the width each input takes, with the gate"
