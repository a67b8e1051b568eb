"""DeepMoE: which channels a convolution computes is decided for each input; channels are the experts of a mixture.

Wang, Yu, Dunlap, Ma, Wang, Mirhoseini, Darrell, Gonzalez, "Deep Mixture of Experts via Shallow Embedding", UAI 2019
(arXiv 1806.01531). No code of the authors is known. Where the paper leaves a choice open, a network of another project
that was built like it decides (VITA-Group/M3ViT, models/resnet.py: MixtureBottleBlock, ShallowEmbeddingImageNet): the
latent mixture weights are the softmax over the shallow embedding network's class logits; a gate comes after batch norm
and before the ReLU; stem and shortcuts have no gates. The embedding network for CIFAR has the paper's four convolutions
of stride 2; their widths are ours, chosen for about 2 % of the computation of ResNet-110.

That code computes every channel and multiplies by the gates; here a strategy may leave out closed channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.dynamic import Trace, Width, current
from dynbench.models.accounting import decided, static_macs
from dynbench.models.resnet import BasicBlock, BlockKind, ResNet, architecture, block_names, conv3x3, shortcut
from dynbench.models.sharing import shared_once
from dynbench.models.typed import module_list

PAPER = "Wang et al., Deep Mixture of Experts via Shallow Embedding, UAI 2019"
PROVENANCE = "paper; details as in VITA-Group/M3ViT, models/resnet.py; the embedding network for CIFAR is ours"

VGG_STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
VGG_WIDTHS = (64, 128, 256, 512, 512)
EMBEDDING = {"cifar": (64, 64, 128, 128), "imagenet": (64, 64, 128, 256, 512, 512)}
Given = tuple[Tensor, Tensor | None]  # x [n, C, H, W] and the gates g [n, channels], None in the static twin


class Embedding(nn.Module):
    """The shallow embedding network: the softmax of its class logits is e, the latent mixture weights.

    Args:
        widths: of its 3x3 convolutions of stride 2, each followed by batch norm and ReLU.
        num_classes: outputs of its linear layer, after average pooling.
        dataset: 'imagenet': the first convolution has stride 1 and is followed by 3x3 max-pooling of stride 2.
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
    """A chain of convolutions, y_l = relu(g_l * bn_l(conv_l(y_{l-1}))): a channel is an expert, g_l,i = 0 omits it.

    An omitted channel is no input of the next convolution either, so the computed part of a convolution is a slice of
    its weights along both channel dimensions. The layer of a `Width` whose mask covers the channels of all gated
    convolutions.

    Args:
        convs: without bias.
        gated: number of convolutions with a gate, counted from the first.
    """

    def __init__(self, convs: Sequence[nn.Conv2d], gated: int) -> None:
        super().__init__()
        self.length, self.widths = len(convs), [conv.out_channels for conv in convs[:gated]]
        for i, conv in enumerate(convs, start=1):
            self.add_module(f"conv{i}", conv)
            self.add_module(f"bn{i}", nn.BatchNorm2d(conv.out_channels))

    def conv(self, i: int) -> nn.Conv2d:
        """The convolution i = 1, 2, .."""
        return cast(nn.Conv2d, self._modules[f"conv{i}"])

    def norm(self, i: int) -> nn.Module:
        """The batch norm after convolution i; an identity where it has been folded into the convolution."""
        return cast(nn.Module, self._modules[f"bn{i}"])

    def forward(self, given: Given, mask: Tensor | None = None) -> Tensor:
        """(x, g) and mask [n, channels] -> y; every channel is computed. Without g, the static twin without gates."""
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
        """The layer with only the m channels of mask [channels]: a function of (x, g), each item's mask [n, m]."""
        channels = [part.nonzero().squeeze(1) for part in mask.split(self.widths)]
        kept = [None if c.shape[0] == width else c for c, width in zip(channels, self.widths, strict=True)]  # None: all
        sides = pairwise([None, *kept, *[None] * (self.length - len(kept))])
        layers = [sliced(self.conv(i), self.norm(i), *side) for i, side in enumerate(sides, start=1)]
        chosen = mask.nonzero().squeeze(1)
        slices = [slice(*ends) for ends in pairwise(accumulate((c.shape[0] for c in channels), initial=0))]
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
        """Applied to the gated output of convolution i, to all of its channels or some."""
        raise NotImplementedError

    def end(self, x: Tensor, y: Tensor, kept: Tensor | None) -> Tensor:
        """The layer's output from its input x and the last convolution's output y, channels `kept` [m]; None: all."""
        raise NotImplementedError


class MixtureBlock(Mixture):
    """A residual block: relu(F(x) + shortcut(x)), F a mixture whose last ReLU comes after the sum.

    Args:
        kind: BasicBlock or Bottleneck, whose convolutions and shortcut it has.
        inputs: channels of x.
        width: of the block without `expand`.
        stride: of its 3x3 convolution, the first of two.
        expand: factor on the width of the inner convolutions, all but the last.
        inner: only the inner convolutions have gates, the last has none.
    """

    def __init__(self, kind: BlockKind, inputs: int, width: int, stride: int, expand: float, inner: bool) -> None:
        wide, outputs = _times(width, expand), width * kind.expansion
        if kind is BasicBlock:
            convs = [conv3x3(inputs, wide, stride), conv3x3(wide, outputs)]
        else:
            convs = [nn.Conv2d(inputs, wide, 1, bias=False), conv3x3(wide, wide, stride)]
            convs.append(nn.Conv2d(wide, outputs, 1, bias=False))
        super().__init__(convs, len(convs) - inner)
        self.downsample = shortcut(inputs, outputs, stride)

    def between(self, i: int, y: Tensor) -> Tensor:
        """ReLU after all convolutions but the last."""
        return y if i == self.length else F.relu(y)

    def end(self, x: Tensor, y: Tensor, kept: Tensor | None) -> Tensor:
        """relu(shortcut + y); for an omitted channel the shortcut alone."""
        x = x if self.downsample is None else self.downsample(x)
        return F.relu(x + y if kept is None else x.index_add(1, kept, y))


class MixtureTrunk(Mixture):
    """All convolutions of a VGG as one mixture: an omitted channel is omitted after pooling, too.

    Args:
        stages: number of convolutions before each 2x2 max-pooling.
        widths: channels of each stage.
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
        if y.shape[1] == 0:  # max_pool2d refuses tensors without channels
            return y[:, :, : y.shape[2] // 2, : y.shape[3] // 2]
        return F.max_pool2d(y, 2)

    def end(self, x: Tensor, y: Tensor, kept: Tensor | None) -> Tensor:
        """Features [n, C], averaged over the remaining map; zero for omitted channels."""
        y = y.mean((2, 3))
        return y if kept is None else y.new_zeros(y.shape[0], self.widths[-1]).index_copy(1, kept, y)


def sliced(
    conv: nn.Conv2d, norm: nn.Module, inputs: Tensor | None, outputs: Tensor | None
) -> Callable[[Tensor], Tensor]:
    """A convolution and its norm from some input channels to some output channels.

    Args:
        conv: with or without bias, with one group.
        norm: batch norm, applied as in evaluation mode; or an identity.
        inputs: channels [k] long, in the order of x; None: all.
        outputs: channels [m] long; None: all.

    Returns:
        A function of x [n, k, H, W] that gives y [n, m, H', W']; k and m may be 0.
    """

    def chosen(t: Tensor | None) -> Tensor | None:
        return t if t is None or outputs is None else t.index_select(0, outputs)

    weight, bias = chosen(conv.weight), chosen(conv.bias)
    assert weight is not None
    if inputs is not None:
        weight = weight.index_select(1, inputs)
    statistics: tuple[Tensor | None, ...] | None = None
    eps = 0.0
    if isinstance(norm, nn.BatchNorm2d):
        statistics = chosen(norm.running_mean), chosen(norm.running_var), chosen(norm.weight), chosen(norm.bias)
        eps = norm.eps

    def run(x: Tensor) -> Tensor:
        if weight.numel() == 0:  # conv2d refuses weights without channels
            y = _no_channels(conv, x, weight.shape[0])
            y = y if bias is None else y + bias.view(-1, 1, 1)
        else:
            y = F.conv2d(x, weight, bias, conv.stride, conv.padding)
        if statistics is None or weight.shape[0] == 0:
            return y
        mean, variance, scale, shift = statistics
        return F.batch_norm(y, mean, variance, scale, shift, eps=eps)

    return run


def _no_channels(conv: nn.Conv2d, x: Tensor, outputs: int) -> Tensor:
    """The output of a convolution without bias on no input channels: zeros."""
    (pad_h, pad_w), (k_h, k_w), (step_h, step_w) = cast(tuple[int, int], conv.padding), conv.kernel_size, conv.stride
    height = (x.shape[2] + 2 * pad_h - k_h) // step_h + 1
    width = (x.shape[3] + 2 * pad_w - k_w) // step_w + 1
    return x.new_zeros(x.shape[0], outputs, height, width)


def _wide(t: Tensor) -> Tensor:
    return t[:, :, None, None]


def _times(width: int, expand: float) -> int:
    return max(round(width * expand), 1)


class DeepMoEResNet(ResNet):
    """A ResNet with a mixture in every block. Weights of a plain `ResNet` fit as long as `expand` is 1.

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
        self.mixtures = module_list(
            gated(name, cast(MixtureBlock, self.get_submodule(name)), num_classes) for name in block_names(layers)
        )
        shared_once(self)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, 3, H, W] -> logits [n, num_classes]."""
        e = latent(self.embedding, self.mixtures[0], x)
        x = self.stem(x)
        for mixture in self.mixtures:
            x = mixture(x, e)
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


class _Blocks(NamedTuple):
    """A kind of block for `ResNet`, which builds `MixtureBlock`s."""

    kind: BlockKind
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
        expand: factor on the width of all convolutions.
        embedding: widths of the embedding network.
    """

    def __init__(self, depth: int, num_classes: int, expand: float, embedding: Sequence[int]) -> None:
        super().__init__()
        trunk = MixtureTrunk(VGG_STAGES[depth], [_times(width, expand) for width in VGG_WIDTHS])
        for m in trunk.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out")
        self.embedding = Embedding(embedding, num_classes, "cifar")
        self.mixtures = module_list([gated("trunk", trunk, num_classes)])
        self.fc = nn.Linear(trunk.widths[-1], num_classes)

    def input_shape(self, default: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one input: [3, H, W]."""
        return default

    def forward(self, x: Tensor) -> Tensor:
        """x [n, 3, H, W] -> logits [n, num_classes]."""
        e = latent(self.embedding, self.mixtures[0], x)
        logits: Tensor = self.fc(self.mixtures[0](x, e))
        return logits


def gated(name: str, layer: Mixture, classes: int) -> Width:
    """A mixture and its gates g_l = relu(W_g^l e), W_g^l [C_l, K] without bias, concatenated over its convolutions.

    A gate is closed where its score is not positive. Initially nearly all are open, as in M3ViT.
    """
    w_g = nn.Linear(classes, sum(layer.widths), bias=False)
    nn.init.uniform_(w_g.weight, -0.5, 1)
    return Width(name, w_g, layer, weigh=_relu)


def _relu(scores: Tensor, mask: Tensor) -> Tensor:
    return F.relu(scores)


def latent(embedding: Embedding, first: Width, x: Tensor) -> Tensor | None:
    """x [n, 3, H, W] -> e [n, K], the latent mixture weights; None outside any execution, where no gate is evaluated.

    They serve all gates; computing them counts as part of the decision at the `first`.
    """
    ex = current()
    if ex is None:
        return None
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
        expand: factor on the width of the convolutions inside the residual blocks, all but the last of each (1/2: half
            as wide); of a VGG, of all convolutions.
        inner: in a residual block only the inner convolutions have gates, the last has none.
        embedding: widths of the embedding network's convolutions. None: the default for the data set.

    Raises:
        ValueError: there is no such network on this base, of this depth or for this data set, or widths are below 1.
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
        architecture(depth, dataset)  # raises if there is none
    widths = EMBEDDING[dataset] if embedding is None else tuple(embedding)
    if not widths or any(width < 1 for width in widths):
        raise ValueError(f"embedding={list(widths)}: an embedding network has 1 convolution or more, 1 or more wide")
    if base == "vgg":
        return DeepMoEVGG(depth, num_classes, expand, widths)
    return DeepMoEResNet(depth, num_classes, dataset, expand, inner, widths)


def accounted_macs(model: DeepMoEResNet | DeepMoEVGG, trace: Trace, shape: tuple[int, ...]) -> tuple[float, str]:
    """w h k k c_in c_out of every convolution with a gate, c the channels in use, and the fixed parts.

    As M3ViT's code counts, except that it infers the channels in use from the activations, and leaves out shortcuts.
    """
    total, sizes = _dense(model, shape)
    macs = float(total)
    for mixture in model.mixtures:
        layer, (value, reached) = cast(Mixture, mixture.layer), decided(trace, mixture.name)
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
