"""DeepMoE: which channels a convolution computes is decided for each input; channels are the experts of a mixture.

Wang, Yu, Dunlap, Ma, Wang, Mirhoseini, Darrell, Gonzalez, "Deep Mixture of Experts via Shallow Embedding", UAI 2019
(arXiv 1806.01531). No code of the authors is known. Where the paper is not enough, a network of another project decides
that was built like it (VITA-Group/M3ViT, models/resnet.py: MixtureBottleBlock, ShallowEmbeddingImageNet): the latent
mixture weights are the softmax over classes that the shallow embedding network says; a gate comes after batch norm and
before the ReLU; stem and shortcuts have none. The embedding network for CIFAR has the paper's four convolutions of
stride 2; their widths are ours, chosen for some 2 % of the computation of ResNet-110.

That code computes every channel and multiplies by the gates; here a strategy may leave closed ones out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.dynamic import Trace, Width, current
from dynbench.models.macs import static_macs
from dynbench.models.resnet import BasicBlock, Bottleneck, ResNet, architecture, conv3x3, shortcut
from dynbench.models.sharing import shared_once

PAPER = "Wang et al., Deep Mixture of Experts via Shallow Embedding, UAI 2019"
PROVENANCE = "paper; details as in VITA-Group/M3ViT, models/resnet.py; the embedding network for CIFAR is ours"

VGG_STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
VGG_WIDTHS = (64, 128, 256, 512, 512)
EMBEDDING = {"cifar": (64, 64, 128, 128), "imagenet": (64, 64, 128, 256, 512, 512)}
Given = tuple[Tensor, Tensor | None]  # x [n, C, H, W] and the gates g [n, channels], None in the static twin


class Embedding(nn.Module):
    """The shallow embedding network: what it says about the classes is, after softmax, e, the latent mixture weights.

    Args:
        widths: of its 3x3 convolutions, each with batch norm and ReLU, stride 2.
        num_classes: of its linear layer, after average pooling.
        dataset: 'imagenet': the first convolution has stride 1 and 3x3 max-pooling of stride 2 behind it.
    """

    def __init__(self, widths: Sequence[int], num_classes: int, dataset: str) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, (inputs, outputs) in enumerate(pairwise((3, *widths))):
            pooled = i == 0 and dataset == "imagenet"
            layers += [conv3x3(inputs, outputs, 1 if pooled else 2), nn.BatchNorm2d(outputs), nn.ReLU()]
            if pooled:
                layers.append(nn.MaxPool2d(3, 2, padding=1))
        self.convs, self.fc = nn.Sequential(*layers), nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, 3, H, W] -> logits [n, K]; the embedding loss is their cross-entropy."""
        logits: Tensor = self.fc(self.convs(x).mean((2, 3)))
        return logits


class Mixture(nn.Module):
    """Convolutions in a row, y_l = relu(g_l * bn_l(conv_l(y_{l-1}))): a channel is an expert, g_l,i = 0 leaves it out.

    A channel that is left out is no input of the next convolution either, so what is computed of a convolution is a
    slice of its weights along both sides. The layer of a `Width` whose mask has the channels of all gated convolutions.

    Args:
        convs: without bias.
        gated: how many of them have a gate, the first ones.
    """

    def __init__(self, convs: Sequence[nn.Conv2d], gated: int) -> None:
        super().__init__()
        self.length, self.widths = len(convs), [conv.out_channels for conv in convs[:gated]]
        for i, conv in enumerate(convs, start=1):
            self.add_module(f"conv{i}", conv)
            self.add_module(f"bn{i}", nn.BatchNorm2d(conv.out_channels))

    def conv(self, i: int) -> nn.Conv2d:
        """The convolution i = 1, 2, .."""
        conv = self._modules[f"conv{i}"]
        assert isinstance(conv, nn.Conv2d)
        return conv

    def norm(self, i: int) -> nn.Module:
        """What follows it: batch norm; an identity where that has been folded into the convolution."""
        norm = self._modules[f"bn{i}"]
        assert norm is not None
        return norm

    def forward(self, given: Given, mask: Tensor | None = None) -> Tensor:
        """(x, g) and mask [n, channels]: every channel is computed. Without g, the static twin: no gate is asked."""
        x, g = given
        y, begin = x, 0
        for i in range(1, self.length + 1):
            y = self.norm(i)(self.conv(i)(y))
            if g is not None and mask is not None and i <= len(self.widths):
                mine = slice(begin, begin + self.widths[i - 1])
                begin = mine.stop
                y = torch.where(_wide(mask[:, mine]), y * _wide(g[:, mine]), 0)
            y = self.between(i, y)
        return self.end(x, y, None)

    def special(self, mask: Tensor) -> Callable[..., Tensor]:
        """The layer with the m channels of mask [channels] alone: of (x, g), and of who uses which [n, m]."""
        channels = [part.nonzero().squeeze(1) for part in mask.split(self.widths)]
        kept = [None if len(c) == width else c for c, width in zip(channels, self.widths, strict=True)]  # None: all
        sides = pairwise([None, *kept, *[None] * (self.length - len(kept))])
        layers = [sliced(self.conv(i), self.norm(i), *side) for i, side in enumerate(sides, start=1)]
        chosen = mask.nonzero().squeeze(1)
        slices = [slice(*ends) for ends in pairwise(accumulate(map(len, channels), initial=0))]
        last = kept[-1] if self.length == len(kept) else None

        def run(given: Given, inner: Tensor | None = None) -> Tensor:
            x, g = given
            assert g is not None
            g, y = g.index_select(1, chosen), x
            for i, layer in enumerate(layers):
                y = layer(y)
                if i < len(slices):
                    y = y * _wide(g[:, slices[i]])
                    if inner is not None:
                        y = torch.where(_wide(inner[:, slices[i]]), y, 0)
                y = self.between(i + 1, y)
            return self.end(x, y, last)

        return run

    def between(self, i: int, y: Tensor) -> Tensor:
        """What is done to the output of a convolution, gated: all channels of it or some."""
        raise NotImplementedError

    def end(self, x: Tensor, y: Tensor, kept: Tensor | None) -> Tensor:
        """The answer, of the input x and the channels `kept` [m] of the last convolution's output y; None: all."""
        raise NotImplementedError


class MixtureBlock(Mixture):
    """A residual block: relu(F(x) + shortcut(x)), F a mixture whose last ReLU comes after the sum.

    Args:
        kind: BasicBlock or Bottleneck, of which it has the convolutions and the shortcut.
        inputs: channels of x.
        width: of the block without `expand`.
        stride: of its 3x3 convolution, the first of two.
        expand: the inner convolutions, all but the last, are so many times as wide.
        inner: only they have gates, the last has none.
    """

    def __init__(
        self,
        kind: type[BasicBlock] | type[Bottleneck],
        inputs: int,
        width: int,
        stride: int,
        expand: float,
        inner: bool,
    ) -> None:
        wide, outputs = _times(width, expand), width * kind.expansion
        if kind is BasicBlock:
            convs = [conv3x3(inputs, wide, stride), conv3x3(wide, outputs)]
        else:
            convs = [nn.Conv2d(inputs, wide, 1, bias=False), conv3x3(wide, wide, stride)]
            convs.append(nn.Conv2d(wide, outputs, 1, bias=False))
        super().__init__(convs, len(convs) - inner)
        self.downsample = shortcut(inputs, outputs, stride)

    def between(self, i: int, y: Tensor) -> Tensor:
        """ReLU, but for the last."""
        return y if i == self.length else F.relu(y)

    def end(self, x: Tensor, y: Tensor, kept: Tensor | None) -> Tensor:
        """relu(shortcut + y); where a channel was left out, the shortcut alone."""
        x = x if self.downsample is None else self.downsample(x)
        return F.relu(x + y if kept is None else x.index_add(1, kept, y))


class MixtureTrunk(Mixture):
    """All convolutions of a VGG: one mixture, so that a channel is left out of what follows a pooling, too.

    Args:
        stages: convolutions before each 2x2 max-pooling.
        widths: of the stages.
    """

    def __init__(self, stages: Sequence[int], widths: Sequence[int]) -> None:
        outputs = [width for count, width in zip(stages, widths, strict=True) for _ in range(count)]
        convs = [conv3x3(*sides) for sides in pairwise((3, *outputs))]
        super().__init__(convs, len(convs))
        self.pooled = set(accumulate(stages))

    def between(self, i: int, y: Tensor) -> Tensor:
        """ReLU, and pooling at the end of a stage."""
        y = F.relu(y)
        if i not in self.pooled:
            return y
        if y.shape[1] == 0:  # which pooling refuses
            return y[:, :, : y.shape[2] // 2, : y.shape[3] // 2]
        return F.max_pool2d(y, 2)

    def end(self, x: Tensor, y: Tensor, kept: Tensor | None) -> Tensor:
        """Features [n, C], averaged over what is left of the map; zero where a channel was left out."""
        y = y.mean((2, 3))
        return y if kept is None else y.new_zeros(y.shape[0], self.widths[-1]).index_copy(1, kept, y)


def sliced(
    conv: nn.Conv2d, norm: nn.Module, inputs: Tensor | None, outputs: Tensor | None
) -> Callable[[Tensor], Tensor]:
    """A convolution and its norm from some input channels to some output channels.

    Args:
        conv: with or without bias, in one group.
        norm: batch norm, as in evaluation mode; or an identity.
        inputs: channels [k] long, in the order in which they come; None: all.
        outputs: channels [m] long; None: all.

    Returns:
        x [n, k, H, W] -> y [n, m, H', W'], k = 0 and m = 0 included.
    """

    def chosen(t: Tensor | None) -> Tensor | None:
        return t if t is None or outputs is None else t.index_select(0, outputs)

    weight, bias = chosen(conv.weight), chosen(conv.bias)
    assert weight is not None
    if inputs is not None:
        weight = weight.index_select(1, inputs)
    rest: tuple[Tensor | None, ...] | None = None
    if isinstance(norm, nn.BatchNorm2d):
        rest = chosen(norm.running_mean), chosen(norm.running_var), chosen(norm.weight), chosen(norm.bias)

    def run(x: Tensor) -> Tensor:
        if weight.numel() == 0:  # which a convolution refuses
            y = _no_channels(conv, x, weight.shape[0])
            y = y if bias is None else y + bias.view(-1, 1, 1)
        else:
            y = F.conv2d(x, weight, bias, conv.stride, conv.padding)
        if rest is None or weight.shape[0] == 0:
            return y
        assert isinstance(norm, nn.BatchNorm2d)
        mean, variance, scale, shift = rest
        return F.batch_norm(y, mean, variance, scale, shift, eps=norm.eps)

    return run


def _no_channels(conv: nn.Conv2d, x: Tensor, outputs: int) -> Tensor:
    """What a convolution without bias says of no channels."""
    assert not isinstance(conv.padding, str)
    (pad_h, pad_w), (k_h, k_w), (step_h, step_w) = conv.padding, conv.kernel_size, conv.stride
    height = (x.shape[2] + 2 * pad_h - k_h) // step_h + 1
    width = (x.shape[3] + 2 * pad_w - k_w) // step_w + 1
    return x.new_zeros(x.shape[0], outputs, height, width)


def _wide(t: Tensor) -> Tensor:
    return t[:, :, None, None]


def _times(width: int, expand: float) -> int:
    return max(round(width * expand), 1)


class DeepMoEResNet(ResNet):
    """A ResNet with a mixture in every block. Weights of a plain `ResNet` fit, as long as nothing is expanded.

    Args:
        depth: of the ResNet.
        num_classes: outputs.
        dataset: 'cifar' or 'imagenet'.
        expand: see `MixtureBlock`.
        inner: see `MixtureBlock`.
        embedding: widths of the embedding network.
    """

    def __init__(
        self, depth: int, num_classes: int, dataset: str, expand: float, inner: bool, embedding: Sequence[int]
    ) -> None:
        kind, layers = architecture(depth, dataset)
        super().__init__(_Blocks(kind, expand, inner), layers, num_classes, dataset)  # type: ignore[arg-type]
        self.embedding = Embedding(embedding, num_classes, dataset)
        names = [f"group{g}_layer{i}" for g, count in enumerate(layers, start=1) for i in range(count)]
        self.mixtures = nn.ModuleList(map(self._gated, names))
        shared_once(self)

    def _gated(self, name: str) -> Width:
        block = self.get_submodule(name)
        assert isinstance(block, MixtureBlock)
        return gated(name, block, self.fc.out_features)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, 3, H, W] -> logits [n, num_classes]."""
        e = latent(self.embedding, self.mixtures, x)
        x = F.relu(self.bn1(self.conv1(x)))
        if self.dataset == "imagenet":
            x = F.max_pool2d(x, 3, stride=2, padding=1)
        for mixture in self.mixtures:
            x = mixture(x, e)
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


class _Blocks(NamedTuple):
    """A kind of block, as `ResNet` makes them."""

    kind: type[BasicBlock] | type[Bottleneck]
    expand: float
    inner: bool

    @property
    def expansion(self) -> int:
        return self.kind.expansion

    def __call__(self, inputs: int, width: int, stride: int) -> MixtureBlock:
        return MixtureBlock(self.kind, inputs, width, stride, self.expand, self.inner)


class DeepMoEVGG(nn.Module):
    """A VGG for CIFAR with batch norm and one linear layer; all of its convolutions are one mixture.

    Args:
        depth: of the VGG.
        num_classes: outputs.
        expand: all convolutions are so many times as wide.
        embedding: widths of the embedding network.
    """

    def __init__(self, depth: int, num_classes: int, expand: float, embedding: Sequence[int]) -> None:
        super().__init__()
        trunk = MixtureTrunk(VGG_STAGES[depth], [_times(width, expand) for width in VGG_WIDTHS])
        for m in trunk.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out")
        self.embedding = Embedding(embedding, num_classes, "cifar")
        self.mixtures = nn.ModuleList([gated("trunk", trunk, num_classes)])
        self.fc = nn.Linear(trunk.widths[-1], num_classes)

    def input_shape(self, default: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one input: [3, H, W]."""
        return default

    def forward(self, x: Tensor) -> Tensor:
        """x [n, 3, H, W] -> logits [n, num_classes]."""
        e = latent(self.embedding, self.mixtures, x)
        logits: Tensor = self.fc(self.mixtures[0](x, e))
        return logits


def gated(name: str, layer: Mixture, classes: int) -> Width:
    """A mixture and its gates g_l = relu(W_g^l e), the W_g^l [C_l, K] of its convolutions in a row, without bias.

    A score that is not positive is a closed gate. At first nearly all are open, as in M3ViT.
    """
    w_g = nn.Linear(classes, sum(layer.widths), bias=False)
    nn.init.uniform_(w_g.weight, -0.5, 1)
    return Width(name, w_g, layer, weigh=_relu)


def _relu(scores: Tensor, mask: Tensor) -> Tensor:
    return F.relu(scores)


def latent(embedding: Embedding, mixtures: nn.ModuleList, x: Tensor) -> Tensor | None:
    """x [n, 3, H, W] -> e [n, K], the latent mixture weights; None outside any execution: no gate looks at them.

    All gates do, once they are there: that they are made counts as a part of deciding at the first.
    """
    ex, first = current(), mixtures[0]
    if ex is None:
        return None
    assert isinstance(first, Width)
    with ex.phase("decide", first.name):
        e: Tensor = embedding(x).softmax(1)
    return e


def deepmoe(
    depth: int = 56,
    num_classes: int = 10,
    dataset: str = "cifar",
    base: str = "resnet",
    expand: float = 1,
    inner: bool = False,
    embedding: Sequence[int] | None = None,
) -> DeepMoEResNet | DeepMoEVGG:
    """A DeepMoE.

    The wide form of the paper is `expand=2, inner=True`: the channels inside every residual block are doubled, and the
    gates leave most of them out.

    Args:
        depth: of a ResNet, 6n+2 for 'cifar' (the paper: 56, 110) and 18, 34, 50, 101 or 152 for 'imagenet' (the paper:
            18, 34, 50); of a VGG, 11, 13, 16 or 19 (the paper: 16).
        num_classes: outputs, and length of the latent mixture weights.
        dataset: 'cifar' (inputs [n, 3, 32, 32], larger ones work) or 'imagenet' ([n, 3, 224, 224]).
        base: 'resnet' or 'vgg' (for 'cifar').
        expand: the convolutions inside the residual blocks, all but the last of each, are so many times as wide (1/2:
            half as wide); of a VGG, all are.
        inner: of a residual block, only the convolutions inside have gates, the last has none.
        embedding: widths of the embedding network's convolutions. None: those that there are for the data set.

    Raises:
        ValueError: a base, depth or data set there is no such network for, or widths without channels.
    """
    if base not in ("resnet", "vgg"):
        raise ValueError(f"base={base!r}: a DeepMoE is built on 'resnet' or 'vgg'")
    if not expand > 0:
        raise ValueError(f"expand={expand}: convolutions are more than 0 times as wide")
    if base == "vgg":
        if depth not in VGG_STAGES or dataset != "cifar":
            known = ", ".join(map(str, VGG_STAGES))
            raise ValueError(f"depth={depth}, dataset={dataset!r}: a VGG has {known} layers, and is built for 'cifar'")
        if inner:
            raise ValueError("inner=True: in a VGG no convolution is inside a residual block; all have gates")
    else:
        architecture(depth, dataset)  # raises where there is none
    widths = EMBEDDING[dataset] if embedding is None else tuple(embedding)
    if not widths or any(width < 1 for width in widths):
        raise ValueError(f"embedding={list(widths)}: an embedding network has 1 convolution or more, 1 or more wide")
    if base == "vgg":
        return DeepMoEVGG(depth, num_classes, expand, widths)
    return DeepMoEResNet(depth, num_classes, dataset, expand, inner, widths)


def accounted_macs(
    model: DeepMoEResNet | DeepMoEVGG, trace: Trace, shape: tuple[int, ...] | None = None
) -> tuple[float, str]:
    """w h k k c_in c_out of every convolution with a gate, c the channels in use, and the fixed parts.

    As M3ViT's code counts, but that it sees in the activations which channels are in use, and leaves shortcuts out.

    Args:
        model: whose decisions they are.
        trace: decisions of a stream.
        shape: of one input; default: that of the data set.

    Returns:
        (MACs per sample, the rule in words).
    """
    total, sizes = _dense(model, shape or model.input_shape((3, 32, 32)))
    macs = float(total)
    for mixture in model.mixtures:
        assert isinstance(mixture, Width) and isinstance(mixture.layer, Mixture)
        layer, (value, reached) = mixture.layer, trace.entries[mixture.name, ()]
        parts = value[reached].split(layer.widths, 1)
        c_in: Tensor | float = float(layer.conv(1).in_channels)
        for i in range(1, layer.length + 1):
            conv = layer.conv(i)
            c_out = parts[i - 1].sum(1).double() if i <= len(parts) else float(conv.out_channels)
            of_each = sizes[conv] * conv.kernel_size[0] * conv.kernel_size[1]  # w h k k
            used = torch.as_tensor(c_in * c_out, dtype=torch.float64).mean()
            macs += of_each * (float(used) - conv.in_channels * conv.out_channels)
            c_in = c_out
    return macs, "w h k k c_in c_out of the channels in use, and the fixed parts; gates and their embedding not counted"


def _dense(model: nn.Module, shape: tuple[int, ...]) -> tuple[int, dict[nn.Module, int]]:
    """Multiply-accumulates of the static twin for one sample, and the size h w of every convolution's output."""
    sizes: dict[nn.Module, int] = {}
    hooks = [
        m.register_forward_hook(lambda conv, _, y: sizes.update({conv: y.shape[2] * y.shape[3]}))
        for m in model.modules()
        if isinstance(m, nn.Conv2d)
    ]
    try:
        return static_macs(model, shape), sizes
    finally:
        for hook in hooks:
            hook.remove()
