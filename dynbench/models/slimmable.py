"""Slimmable networks: one set of weights that runs at several widths, by its first channels.

Yu, Yang, Xu, Yang, Huang, "Slimmable Neural Networks", ICLR 2019 (arXiv 1812.08928), and, for `norm = "universal"`, Yu
and Huang, "Universally Slimmable Networks and Improved Training Techniques", ICCV 2019 (arXiv 1903.05134). Channel
counts and blocks are those of the authors' code (JiahuiYu/slimmable_networks, models/s_*.py and us_*.py), with one
difference: the last layer of MobileNetV2, whose own width is fixed, also has a batch norm for each width instead of one
for all. The ResNets for images of 32 x 32 are ours.

The width is decided outside the network, for a device or a batch (`Slimmable.width`), or for each item (dsnet.py). As a
decision point it is a `Width` with nested masks over *levels*: a network of K widths has K - 1 levels that may be left
out, and an item's width is the number of levels that it uses.
"""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.dynamic import Trace, Width
from dynbench.models.accounting import static_macs
from dynbench.models.resnet import architecture
from dynbench.models.sharing import shared_once
from dynbench.models.typed import module_list

PAPER = "Yu et al., Slimmable Neural Networks, ICLR 2019; Yu, Huang, Universally Slimmable Networks, ICCV 2019"
PROVENANCE = "layers as in the authors' code; the ResNets for CIFAR are ours"

Counts = tuple[int, ...]  # channels of a layer at each width, ascending
Norm = Literal["switchable", "universal"]
NETWORKS = "mobilenet_v1, mobilenet_v2, resnet50, resnet101, resnet152 or cifar_resnet8, 14, 20, 26, ..."
WIDTHS = (0.25, 0.5, 0.75, 1.0)


def rounded(channels: float, divisor: int = 8) -> int:
    """To a multiple of `divisor`, at least one, and never by more than a tenth down (make_divisible)."""
    near = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return near + divisor if near < 0.9 * channels else near


class SlimConv2d(nn.Conv2d):
    """A convolution that uses its first inputs[l] and outputs[l] channels at level l; called itself: all of them.

    Args:
        inputs: channels at each level.
        outputs: channels at each level.
        kernel: size; padding keeps the map's size, up to the stride.
        stride: in both directions.
        depthwise: one group per channel.
        bias: whether there is a bias.
    """

    def __init__(
        self,
        inputs: Counts,
        outputs: Counts,
        kernel: int = 1,
        stride: int = 1,
        *,
        depthwise: bool = False,
        bias: bool = False,
    ) -> None:
        groups = inputs[-1] if depthwise else 1
        super().__init__(inputs[-1], outputs[-1], kernel, stride, kernel // 2, groups=groups, bias=bias)
        self.inputs, self.outputs, self.pad = inputs, outputs, kernel // 2

    def at(self, level: int) -> nn.Module:
        """The convolution of a level; its weights are a differentiable copy."""
        out, of = self.outputs[level], self.inputs[level] if self.groups == 1 else 1
        bias = None if self.bias is None else self.bias[:out].clone()
        groups = 1 if self.groups == 1 else out
        return _Conv2d(_copy(self.weight[:out, :of]), bias, self.stride[0], self.pad, groups)


def _copy(t: Tensor) -> Tensor:
    return t.clone(memory_format=torch.contiguous_format)  # a view would require a gradient even where none is taken


class _Conv2d(nn.Module):
    """A slice of a SlimConv2d."""

    def __init__(self, weight: Tensor, bias: Tensor | None, stride: int, padding: int, groups: int) -> None:
        super().__init__()
        self.weight, self.bias, self.how = weight, bias, (stride, padding, 1, groups)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, *self.how)


class SlimLinear(nn.Linear):
    """A linear layer that uses its first inputs[l] columns at level l; called itself: all of them."""

    def __init__(self, inputs: Counts, outputs: int) -> None:
        super().__init__(inputs[-1], outputs)
        self.inputs = inputs

    def at(self, level: int) -> nn.Module:
        """The layer of a level; its weights are a differentiable copy."""
        return _Linear(_copy(self.weight[:, : self.inputs[level]]), self.bias)


class _Linear(nn.Module):
    """A slice of a SlimLinear."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class SwitchableBatchNorm2d(nn.Module):
    """A batch norm for each width: separate (section 3.3), or with shared scale and shift ('universal').

    In a batch of several widths each item is normalised by the running statistics of its own width, and the channels
    that an item does not use are zero afterwards.

    Args:
        channels: at each level.
        norm: 'switchable': levels share nothing; 'universal': they share scale and shift, not statistics.
    """

    there: Tensor
    place: Tensor

    def __init__(self, channels: Counts, norm: Norm) -> None:
        super().__init__()
        own = norm == "switchable"
        self.bn = module_list(nn.BatchNorm2d(c, affine=own) for c in channels)
        self.weight = None if own else nn.Parameter(torch.ones(channels[-1]))
        self.bias = None if own else nn.Parameter(torch.zeros(channels[-1]))
        count, c = torch.tensor(channels)[:, None], torch.arange(channels[-1])
        self.register_buffer("there", c < count, persistent=False)  # [K, C]: the channels of each level
        place = count.cumsum(0) - count + torch.minimum(c, count - 1)  # their places in the concatenated levels
        self.register_buffer("place", place, persistent=False)

    def at(self, level: int) -> nn.Module:
        """The same norm with only the levels up to this one, which `forward` then uses; parameters are shared."""
        part = _copied(self)
        part._modules, part._buffers, part._parameters = {"bn": nn.ModuleList(self.bn[: level + 1])}, {}, {}
        top = part.bn[-1].num_features
        for name in ("there", "place"):
            part.__dict__[name] = getattr(self, name)[: level + 1, :top]
        for name in ("weight", "bias"):
            value = getattr(self, name)
            part.__dict__[name] = None if value is None else value[:top]
        return part

    def forward(self, x: Tensor, own: Tensor | None = None) -> Tensor:
        """x [n, C, H, W] -> the same shape; `own`: the items' levels [n] long; None: the highest for all items."""
        top = self.bn[-1]
        if own is None:
            if self.weight is None:
                y: Tensor = top(x)
                return y
            mean, var, scale, shift = top.running_mean, top.running_var, self.weight, self.bias
            return F.batch_norm(x, mean, var, scale, shift, top.training, top.momentum or 0.0, top.eps)
        place = self.place.index_select(0, own)  # [n, C]
        means, variances = (_each(place, (getattr(m, f"running_{k}") for m in self.bn)) for k in ("mean", "var"))
        scales, shifts = self._learned(place)
        scales = scales * torch.rsqrt(variances + top.eps)
        shifts = shifts - means * scales
        return torch.where(_wide(self.there.index_select(0, own)), x * _wide(scales) + _wide(shifts), 0)

    def _learned(self, place: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift, [n, C], or [C] where the levels share them."""
        if self.weight is not None and self.bias is not None:
            return self.weight, self.bias
        return _each(place, (m.weight for m in self.bn)), _each(place, (m.bias for m in self.bn))


def _each(place: Tensor, levels: Iterable[Tensor | None]) -> Tensor:
    """[n, C]: the values at these places of the levels' concatenated tensors."""
    found: Tensor = torch.cat([t for t in levels if t is not None])[place]
    return found


def _wide(t: Tensor) -> Tensor:
    """[n, C] -> [n, C, 1, 1]."""
    return t[:, :, None, None]


Activation = Callable[[Tensor], Tensor]


class ConvNorm(nn.Module):
    """Convolution, batch norm of the width, activation unless it is None; arguments as for SlimConv2d."""

    def __init__(
        self,
        inputs: Counts,
        outputs: Counts,
        kernel: int = 1,
        stride: int = 1,
        *,
        norm: Norm,
        act: Activation | None,
        depthwise: bool = False,
    ) -> None:
        super().__init__()
        self.conv = SlimConv2d(inputs, outputs, kernel, stride, depthwise=depthwise)
        self.norm, self.act = SwitchableBatchNorm2d(outputs, norm), act

    def forward(self, x: Tensor, own: Tensor | None = None) -> Tensor:
        """x [n, inputs, H, W], items' levels own [n] or None -> [n, outputs, H / stride, W / stride]."""
        y: Tensor = self.norm(self.conv(x), own)
        return y if self.act is None else self.act(y)


class Chain(nn.ModuleList):
    """A sequence of layers that take the items' levels as a second argument."""

    def forward(self, x: Tensor, own: Tensor | None = None) -> Tensor:
        """x [n, ...], items' levels own [n] or None -> y [n, ...]."""
        for layer in self:
            x = layer(x, own)
        return x


class Residual(nn.Module):
    """act(body(x) + shortcut(x)); shortcut None: the identity; act None: no activation."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None, act: Activation | None) -> None:
        super().__init__()
        self.body, self.shortcut, self.act = body, shortcut, act

    def forward(self, x: Tensor, own: Tensor | None = None) -> Tensor:
        """x [n, C, H, W], items' levels own [n] or None -> y [n, C', H', W']."""
        y: Tensor = self.body(x, own) + (x if self.shortcut is None else self.shortcut(x, own))
        return y if self.act is None else self.act(y)


class MaxPool(nn.Module):
    """Max pooling, 3 x 3 of stride 2."""

    def forward(self, x: Tensor, own: Tensor | None = None) -> Tensor:
        """x [n, C, H, W] -> [n, C, H / 2, W / 2]."""
        return F.max_pool2d(x, 3, stride=2, padding=1)


class Body(nn.Module):
    """Layers, average pooling, a linear classifier; called itself, the network of the largest width."""

    def __init__(self, layers: Iterable[nn.Module], outputs: Counts, num_classes: int) -> None:
        super().__init__()
        self.features, self.classifier = Chain(layers), SlimLinear(outputs, num_classes)
        for m in self.modules():
            if isinstance(m, SlimConv2d):  # He et al. 2015, eq. 14, by fan-out
                nn.init.normal_(m.weight, 0, math.sqrt(2 / (m.kernel_size[0] * m.kernel_size[1] * m.out_channels)))
        nn.init.normal_(self.classifier.weight, 0, 0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor, own: Tensor | None = None) -> Tensor:
        """x [n, C, H, W], items' levels own [n] long or None: the highest -> logits [n, num_classes]."""
        y: Tensor = self.classifier(self.features(x, own).mean((2, 3)))
        return y


def at_level(module: nn.Module, level: int) -> Any:
    """The same network with the channels of one level: weights are sliced once, here; statistics are shared."""
    slim = getattr(module, "at", None)
    if slim is not None:
        return slim(level)
    part = _copied(module)
    part._modules = {name: m if m is None else at_level(m, level) for name, m in module._modules.items()}
    return part


def _copied(module: nn.Module) -> Any:
    """A copy that shares everything but its own attributes, and runs as its class says: no engine has prepared it."""
    part = copy.copy(module)
    vars(part).pop("forward", None)
    part._forward_pre_hooks, part._forward_hooks = OrderedDict(), OrderedDict()  # of who watches the original
    return part


class Slimmed(nn.Module):
    """A body as the layer of a Width: masks [n, K - 1] over the levels above the lowest."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """All channels for all items, those outside an item's width set to zero; static twin: full width."""
        y: Tensor = self.body(x, None if mask is None else mask.sum(1))
        return y

    def special(self, mask: Tensor) -> Callable[..., Tensor]:
        """The network of the width of mask [K - 1]: a function of x, or of x and the items' masks within that width."""
        part = at_level(self.body, int(mask.sum()))

        def layer(x: Tensor, inner: Tensor | None = None) -> Tensor:
            y: Tensor = part(x, None if inner is None else inner.sum(1))
            return y

        return layer


class Budget(nn.Module):
    """The same width for all items: scores [n, K - 1], positive for the levels up to `level`."""

    scores: Tensor

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.register_buffer("scores", torch.ones(levels - 1), persistent=False)

    @property
    def level(self) -> int:
        """The level in use; 0: the smallest width."""
        return int((self.scores > 0).sum())

    @level.setter
    def level(self, level: int) -> None:
        self.scores.copy_(torch.where(torch.arange(len(self.scores), device=self.scores.device) < level, 1.0, -1.0))

    def forward(self, x: Tensor) -> Tensor:
        """x [n, ...] -> scores [n, K - 1]."""
        return self.scores.expand(x.shape[0], -1)


class Slimmable(nn.Module):
    """A network that runs at any of several widths.

    Args:
        body: with as many levels as there are widths.
        widths: ascending, the last is the whole network.
        small: images of 32 x 32, not of 224 x 224.

    Attributes:
        width: the current width, one of the widths; may be set at any time. Outside any execution the last is used.
    """

    def __init__(self, body: Body, widths: tuple[float, ...], small: bool) -> None:
        super().__init__()
        self.body, self.widths, self.small = body, widths, small
        self.budget = Budget(len(widths))
        self.point = Width("width", self.budget, Slimmed(body), nested=True)
        shared_once(self)

    @property
    def width(self) -> float:
        """The current width."""
        return self.widths[self.budget.level]

    @width.setter
    def width(self, width: float) -> None:
        self.budget.level = self.level_of(width)

    def level_of(self, width: float) -> int:
        """The level of a width.

        Raises:
            ValueError: it is none of the network's.
        """
        if width not in self.widths:
            raise ValueError(f"width={width}: this network runs at {', '.join(map(str, self.widths))}")
        return self.widths.index(width)

    def input_shape(self, default: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one input: [3, H, W]."""
        return default if self.small else (3, 224, 224)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, 3, H, W] -> logits [n, num_classes]."""
        y: Tensor = self.point(x)
        return y


class AtWidth(nn.Module):
    """A slimmable network deployed at one width: an ordinary network, sliced when first called.

    It has the weights of the whole; later changes of them have no effect.

    Args:
        body: with one level or several.
        level: the one in use.
        small: images of 32 x 32, not of 224 x 224.
    """

    def __init__(self, body: Body, level: int, small: bool) -> None:
        super().__init__()
        self.body, self.level, self.small = body, level, small
        self._forget()

    def _forget(self) -> None:
        self.__dict__["deployed"] = None  # not registered: a slice of weights that are registered already

    def input_shape(self, default: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one input: [3, H, W]."""
        return default if self.small else (3, 224, 224)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, 3, H, W] -> logits [n, num_classes]."""
        if self.__dict__["deployed"] is None:
            with torch.inference_mode(False), torch.no_grad():  # slices are constants of a graph
                self.__dict__["deployed"] = at_level(self.body, self.level)
        y: Tensor = self.__dict__["deployed"](x)
        return y

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AtWidth:
        self._forget()  # the weights move to another device or dtype
        super()._apply(fn, recurse)
        return self


def slimmed(channels: float, widths: Sequence[float]) -> Counts:
    """Channels at each width, out of `channels`, in multiples of 8."""
    return tuple(rounded(channels * w) for w in widths)


def mobilenet_v1(widths: Sequence[float], num_classes: int, norm: Norm) -> Body:
    """MobileNet (Howard et al. 2017, table 1) of 224 x 224: depthwise and pointwise convolutions."""
    c = slimmed(32, widths)
    layers: list[nn.Module] = [ConvNorm((3,) * len(c), c, 3, 2, norm=norm, act=F.relu6)]
    for full, count, stride in ((64, 1, 1), (128, 2, 2), (256, 2, 2), (512, 6, 2), (1024, 2, 2)):
        out = slimmed(full, widths)
        for i in range(count):
            layers += [
                ConvNorm(c, c, 3, stride if i == 0 else 1, norm=norm, act=F.relu6, depthwise=True),
                ConvNorm(c, out, norm=norm, act=F.relu6),
            ]
            c = out
    return Body(layers, c, num_classes)


MOBILENET_V2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenet_v2(widths: Sequence[float], num_classes: int, norm: Norm) -> Body:
    """MobileNetV2 (Sandler et al. 2018, table 2) of 224 x 224; its last layer keeps 1280 channels at every width."""
    c = slimmed(32, widths)
    layers: list[nn.Module] = [ConvNorm((3,) * len(c), c, 3, 2, norm=norm, act=F.relu6)]
    for t, full, count, first_stride in MOBILENET_V2:
        out = slimmed(full, widths)
        for i in range(count):
            stride = first_stride if i == 0 else 1
            mid = tuple(t * k for k in c)
            block = Chain([ConvNorm(c, mid, norm=norm, act=F.relu6)] if t > 1 else [])
            block.append(ConvNorm(mid, mid, 3, stride, norm=norm, act=F.relu6, depthwise=True))
            block.append(ConvNorm(mid, out, norm=norm, act=None))
            layers.append(Residual(block, None, None) if stride == 1 and c == out else block)
            c = out
    last = (rounded(1280 * max(1.0, widths[-1])),) * len(c)
    layers.append(ConvNorm(c, last, norm=norm, act=F.relu6))
    return Body(layers, last, num_classes)


def imagenet_resnet(depth: int, widths: Sequence[float], num_classes: int, norm: Norm) -> Body:
    """ResNet-50 and deeper of 224 x 224, the stride on the 3x3; channels are int(w C), not rounded to 8."""
    c = tuple(int(64 * w) for w in widths)
    layers: list[nn.Module] = [ConvNorm((3,) * len(c), c, 7, 2, norm=norm, act=F.relu), MaxPool()]
    for g, count in enumerate(architecture(depth, "imagenet")[1]):
        out = tuple(int(256 * 2**g * w) for w in widths)
        mid = tuple(k // 4 for k in out)
        for i in range(count):
            stride = 2 if g > 0 and i == 0 else 1
            block = Chain(
                [
                    ConvNorm(c, mid, norm=norm, act=F.relu),
                    ConvNorm(mid, mid, 3, stride, norm=norm, act=F.relu),
                    ConvNorm(mid, out, norm=norm, act=None),
                ]
            )
            layers.append(Residual(block, _projection(c, out, stride, norm), F.relu))
            c = out
    return Body(layers, c, num_classes)


def cifar_resnet(depth: int, base: int, widths: Sequence[float], num_classes: int, norm: Norm) -> Body:
    """ResNet of 6n + 2 layers for 32 x 32, groups of `base`, 2 base and 4 base channels; ours."""
    c = slimmed(base, widths)
    layers: list[nn.Module] = [ConvNorm((3,) * len(c), c, 3, norm=norm, act=F.relu)]
    for g, count in enumerate(architecture(depth, "cifar")[1]):
        out = slimmed(base * 2**g, widths)
        layers += basic_group(c, out, count, 2 if g > 0 else 1, norm)
        c = out
    return Body(layers, c, num_classes)


def basic_group(inputs: Counts, outputs: Counts, count: int, stride: int, norm: Norm) -> list[nn.Module]:
    """`count` residual blocks of two 3x3 convolutions, the stride on the first."""
    blocks: list[nn.Module] = []
    for i in range(count):
        s = stride if i == 0 else 1
        block = Chain(
            [
                ConvNorm(inputs, outputs, 3, s, norm=norm, act=F.relu),
                ConvNorm(outputs, outputs, 3, norm=norm, act=None),
            ]
        )
        blocks.append(Residual(block, _projection(inputs, outputs, s, norm), F.relu))
        inputs = outputs
    return blocks


def _projection(inputs: Counts, outputs: Counts, stride: int, norm: Norm) -> nn.Module | None:
    if stride == 1 and inputs == outputs:
        return None
    return ConvNorm(inputs, outputs, 1, stride, norm=norm, act=None)


def check_norm(norm: str) -> None:
    """Raises ValueError: an unknown kind of batch norm."""
    if norm not in ("switchable", "universal"):
        raise ValueError(f"norm={norm!r}: 'switchable' or 'universal'")


def checked_widths(widths: Sequence[float], least: int = 2) -> tuple[float, ...]:
    """The widths of a slimmable network.

    Raises:
        ValueError: fewer than `least`, or they are not positive or do not ascend.
    """
    found = tuple(float(w) for w in widths)
    if len(found) < least or list(found) != sorted(set(found)) or found[0] <= 0:
        raise ValueError(f"widths={list(widths)}: {least} or more, positive, ascending")
    return found


def _body(network: str, widths: Sequence[float], num_classes: int, norm: Norm, base: int) -> Body:
    check_norm(norm)
    if network == "mobilenet_v1":
        return mobilenet_v1(widths, num_classes, norm)
    if network == "mobilenet_v2":
        return mobilenet_v2(widths, num_classes, norm)
    if network in ("resnet50", "resnet101", "resnet152"):
        return imagenet_resnet(int(network.removeprefix("resnet")), widths, num_classes, norm)
    depth = network.removeprefix("cifar_resnet")
    if depth == network or not depth.isdecimal():
        raise ValueError(f"network={network!r}: {NETWORKS}")
    if base < 8:
        raise ValueError(f"base={base}: the first group has 8 channels or more")
    return cifar_resnet(int(depth), base, widths, num_classes, norm)


def slimmable(
    network: str = "cifar_resnet8",
    width: float | None = None,
    widths: Sequence[float] = WIDTHS,
    num_classes: int = 10,
    norm: Norm = "switchable",
    base: int = 32,
) -> Slimmable:
    """A slimmable network.

    Args:
        network: mobilenet_v1, mobilenet_v2, resnet50, resnet101, resnet152 (inputs [n, 3, 224, 224]) or
            cifar_resnet8, cifar_resnet14, ... (inputs [n, 3, 32, 32], larger ones work).
        width: the initial width, one of the widths; default: the last.
        widths: ascending; the last is the whole network.
        num_classes: outputs.
        norm: 'switchable': each width has its own batch norm; 'universal': only its own statistics, so that there may
            be any number of widths.
        base: channels of the first group of a cifar_resnet at width 1.

    Raises:
        ValueError: an unknown network, norm, base or width, or widths that do not ascend.
    """
    every = checked_widths(widths)
    net = Slimmable(_body(network, every, num_classes, norm, base), every, network.startswith("cifar"))
    net.width = every[-1] if width is None else width
    return net


def at_width(
    network: str = "cifar_resnet8",
    width: float | None = None,
    widths: Sequence[float] = WIDTHS,
    num_classes: int = 10,
    norm: Norm = "switchable",
    base: int = 32,
) -> AtWidth:
    """A slimmable network deployed at one width, with the weights of the whole; arguments as for `slimmable`."""
    net = slimmable(network, width, widths, num_classes, norm, base)
    return AtWidth(net.body, net.budget.level, net.small)


def individual(network: str = "cifar_resnet8", width: float = 1.0, num_classes: int = 10, base: int = 32) -> AtWidth:
    """A separate network of one width, as `slimmable` has among others; arguments as there."""
    every = checked_widths([width], 1)
    return AtWidth(_body(network, every, num_classes, "switchable", base), 0, network.startswith("cifar"))


def macs_by_level(body: Body, shape: tuple[int, ...]) -> list[int]:
    """Multiply-accumulates at each width, the smallest first, for inputs of this shape."""
    levels = len(body.classifier.inputs)
    return [static_macs(_Alone(body, level), shape) for level in range(levels)]


class _Alone(nn.Module):
    """A body at one level; the whole is kept as a submodule for its dtype and device."""

    def __init__(self, body: Body, level: int) -> None:
        super().__init__()
        self.like, self.part = body, at_level(body, level)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.part(x)
        return y


def accounted_macs(model: Slimmable, trace: Trace, shape: tuple[int, ...]) -> tuple[float, str]:
    """As the paper counts: the multiply-accumulates of the width in use."""
    value, reached = trace.entries[model.point.name, ()]
    macs = macs_by_level(model.body, shape)
    share = value[reached].sum(1).bincount(minlength=len(macs)).double() / max(int(reached.sum()), 1)
    return float((share.cpu() * torch.tensor(macs, dtype=torch.float64)).sum()), "the width each input runs at"
