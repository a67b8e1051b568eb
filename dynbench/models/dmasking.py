"""DMaskingNAS: channels and resolution of a network are learned with its weights, by masks on one set of feature maps.

Wan, Dai, Zhang, He, Tian, Xie, Wu, Yu, Xu, Chen, Vajda, Gonzalez, "FBNetV2: Differentiable Neural Architecture Search
for Spatial and Channel Dimensions", CVPR 2020 (arXiv 2004.05565). The equations of section 3 are reproduced from
memory. The search space is ours and small: inverted residuals on 32 x 32 images; the channels of the stem and of each
stage, the width of each block between its two 1x1 convolutions, and the resolution of the input are searched. The
networks found by the authors are in `dynbench.models.fbnet`.

The resulting network is static. `DMasking` expresses its widths as decisions that do not depend on the input: the
learned weights alpha of a block give its width, the same for all items, as a nested mask on the widest block. So
strategies can run the width that was found, or any other, with one set of weights. The decision is ours, as a null
case: as nothing depends on the input, what a strategy loses against the network built with just these channels
(`plain`) is the strategy's own cost.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.dynamic import Trace, Width
from dynbench.models.accounting import static_macs
from dynbench.models.typed import module_list

PAPER = "Wan et al., FBNetV2: Differentiable Neural Architecture Search for Spatial and Channel Dimensions, CVPR 2020"
PROVENANCE = (
    "masking, subsampling and effective shapes as recalled from section 3; space and execution by Width are ours"
)

IMAGE = 32  # side of the input
RESOLUTIONS = (16, 24, 32)
CHANNELS = ((8, 12, 16), (8, 12, 16), (16, 24, 32), (24, 40, 56))  # of the stem and of each stage
WIDTHS = ((16, 24, 32, 48), (24, 48, 72, 96), (48, 96, 144, 192))  # of a block between its 1x1 convolutions, by stage
BLOCKS = 2  # in each stage
STRIDES = (1, 2)  # of the first block in the first stage, and in the other stages; the stem's is 2


@dataclass(frozen=True)
class Architecture:
    """One network of a space.

    Attributes:
        resolution: side of the image, after nearest-neighbour subsampling.
        channels: of the stem and of each stage.
        widths: of each block, in order.
    """

    resolution: int
    channels: tuple[int, ...]
    widths: tuple[int, ...]


@dataclass(frozen=True)
class Space:
    """A search space.

    Attributes:
        resolutions: options, ascending.
        channels: options of the stem and of each stage, ascending.
        widths: options of each stage's blocks, ascending.
        blocks: in each stage.
        num_classes: outputs.

    Raises:
        ValueError: options that do not ascend, not one list per stage, or resolutions that do not fit the image.
    """

    resolutions: Sequence[int] = RESOLUTIONS
    channels: Sequence[Sequence[int]] = CHANNELS
    widths: Sequence[Sequence[int]] = WIDTHS
    blocks: int = BLOCKS
    num_classes: int = 10

    def __post_init__(self) -> None:
        if len(self.channels) != len(self.widths) + 1 or not self.widths or self.blocks < 1:
            raise ValueError(
                f"a space of {len(self.widths)} stages of {self.blocks} blocks has {len(self.channels)} lists of "
                "channels: it needs at least one stage and one block, and one list for the stem and for each stage"
            )
        for what, options in self.questions():
            if not options or list(options) != sorted(set(options)) or options[0] < 1:
                raise ValueError(f"options {list(options)} of {what}: give whole numbers from 1, ascending")
        steps = IMAGE // self.halvings
        for r in self.resolutions:
            if r > IMAGE or r * steps % IMAGE:
                raise ValueError(
                    f"resolution {r}: it is a multiple of {IMAGE // steps} and at most {IMAGE}, as the stem and each "
                    "stage but the first halve the map"
                )

    @property
    def halvings(self) -> int:
        """The ratio of the image's side to that of the last stage's map."""
        halved: int = 2 ** len(self.widths)
        return halved

    def questions(self) -> Iterator[tuple[str, Sequence[int]]]:
        """The choices and their options, in the order of an encoded architecture."""
        yield "resolution", self.resolutions
        for stage, options in enumerate(self.channels):
            yield f"channels{stage}", options
        for stage, options in enumerate(self.widths, start=1):
            for block in range(self.blocks):
                yield f"width{stage}_{block}", options

    @property
    def networks(self) -> int:
        """Number of networks in the space."""
        return math.prod(len(options) for _, options in self.questions())

    def choose(self, picked: Sequence[int]) -> Architecture:
        """The architecture with one option index per question."""
        values = [options[k] for (_, options), k in zip(self.questions(), picked, strict=True)]
        stages = len(self.channels)
        return Architecture(values[0], tuple(values[1 : 1 + stages]), tuple(values[1 + stages :]))

    def picked(self, a: Architecture) -> list[int]:
        """The option indices of an architecture, one per question."""
        values = (a.resolution, *a.channels, *a.widths)
        return [list(options).index(v) for (_, options), v in zip(self.questions(), values, strict=True)]

    def random(self, draw: random.Random) -> Architecture:
        """A random architecture, all equally likely."""
        return self.choose([draw.randrange(len(options)) for _, options in self.questions()])

    @property
    def largest(self) -> Architecture:
        """The architecture with the largest option everywhere."""
        return self.choose([len(options) - 1 for _, options in self.questions()])


# --- the blocks -------------------------------------------------------------------------------------------------------


def grid(size: int, of: int, device: torch.device | None = None) -> Tensor:
    """The `size` places out of `of` of nearest-neighbour subsampling: evenly spaced, rounded down."""
    return torch.arange(size, device=device) * of // size


def subsample(x: Tensor, size: int) -> Tensor:
    """x [n, C, H, H] -> [n, C, size, size]."""
    if size == x.shape[2]:
        return x
    at = grid(size, x.shape[2], x.device)
    return x.index_select(2, at).index_select(3, at)


def spread(y: Tensor, size: int) -> Tensor:
    """The inverse, with zeros in between: y [n, C, h, h] -> [n, C, size, size].

    Padding at the edge would misalign pixels; running on the full map would shrink the receptive field.
    """
    if size == y.shape[2]:
        return y
    at = grid(y.shape[2], size, y.device)
    wide = y.new_zeros(*y.shape[:3], size).index_copy(3, at, y)
    return wide.new_zeros(*y.shape[:2], size, size).index_copy(2, at, wide)


class Bottleneck(nn.Module):
    """1x1 to the width, depthwise 3x3, 1x1 without activation; batch norm after each. A layer that can be sliced.

    Args:
        inputs: channels of x.
        width: between the 1x1 convolutions.
        outputs: channels of y.
        stride: of the depthwise convolution.
    """

    def __init__(self, inputs: int, width: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.expand, self.expand_norm = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.depth = nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False)
        self.depth_norm = nn.BatchNorm2d(width)
        self.project, self.project_norm = nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)

    def inner(self, x: Tensor) -> Tensor:
        """x [n, inputs, H, W] -> h [n, width, H / stride, W / stride]."""
        h = F.relu(self.expand_norm(self.expand(x)))
        return F.relu(self.depth_norm(self.depth(h)))

    def outer(self, h: Tensor) -> Tensor:
        """h -> y [n, outputs, H / stride, W / stride]."""
        y: Tensor = self.project_norm(self.project(h))
        return y

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [n, inputs, H, W] and each item's mask over the channels of h [n, width] -> y."""
        h = self.inner(x)
        if mask is not None:
            h = torch.where(mask[:, :, None, None], h, torch.zeros((), dtype=h.dtype, device=h.device))
        return self.outer(h)

    def special(self, mask: Tensor) -> Callable[..., Tensor]:
        """The block with only the m channels of a mask [width]: a function of x, and optionally of masks [n, m]."""
        at = mask.nonzero().squeeze(1)
        if at.numel() == 0:
            return self._nothing
        return _Sliced(self, at)

    def _nothing(self, x: Tensor, inner: Tensor | None = None) -> Tensor:
        """The block without any channel: the last norm, applied to zeros."""
        n, _, height, width = x.shape
        size = ((height - 1) // self.stride + 1, (width - 1) // self.stride + 1)
        return self.project_norm(x.new_zeros(n, self.project.out_channels, *size))


class _Sliced:
    """A bottleneck with some of its inner channels, `at` [m]."""

    def __init__(self, block: Bottleneck, at: Tensor) -> None:
        self._stride, self._m = block.stride, at.numel()
        self._expand = block.expand.weight.index_select(0, at)
        self._depth = block.depth.weight.index_select(0, at)
        self._project = block.project.weight.index_select(1, at)
        self._expand_norm, self._depth_norm = _Norm(block.expand_norm, at), _Norm(block.depth_norm, at)
        self._project_norm = block.project_norm

    def __call__(self, x: Tensor, inner: Tensor | None = None) -> Tensor:
        h = F.relu(self._expand_norm(F.conv2d(x, self._expand)))
        h = F.relu(self._depth_norm(F.conv2d(h, self._depth, None, self._stride, 1, 1, self._m)))
        if inner is not None:
            h = torch.where(inner[:, :, None, None], h, torch.zeros((), dtype=h.dtype, device=h.device))
        y: Tensor = self._project_norm(F.conv2d(h, self._project))
        return y


class _Norm:
    """Batch norm of some channels, in evaluation mode."""

    def __init__(self, norm: nn.BatchNorm2d, at: Tensor) -> None:
        assert norm.running_mean is not None and norm.running_var is not None
        self._mean, self._variance = norm.running_mean.index_select(0, at), norm.running_var.index_select(0, at)
        self._weight, self._bias, self._eps = norm.weight.index_select(0, at), norm.bias.index_select(0, at), norm.eps

    def __call__(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self._mean, self._variance, self._weight, self._bias, eps=self._eps)


class Stem(nn.Module):
    """3x3 of stride 2, batch norm, ReLU."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, 3, H, W] -> [n, outputs, H / 2, W / 2]."""
        return F.relu(self.norm(self.conv(x)))


def bottlenecks(channels: Sequence[int], widths: Sequence[int], blocks: int) -> list[Bottleneck]:
    """All blocks of a network, in order; the first block of a stage takes the channels of the stage before."""
    made, inputs = [], channels[0]
    for stage, outputs in enumerate(channels[1:]):
        for i in range(blocks):
            stride = STRIDES[min(stage, 1)] if i == 0 else 1
            made.append(Bottleneck(inputs, widths[stage * blocks + i], outputs, stride))
            inputs = outputs
    return made


def is_residual(block: Bottleneck) -> bool:
    """Whether the block's output has the shape of its input, so that x can be added."""
    return block.stride == 1 and block.expand.in_channels == block.project.out_channels


# --- the supernet, for the search -------------------------------------------------------------------------------------


class Supernet(nn.Module):
    """All networks of a space in the weights of the largest.

    Args:
        space: the networks.

    Attributes:
        alpha: for each question, one parameter per option.
        temperature: tau of the Gumbel-softmax.
        sharpness: factor on alpha, whose gradient is small beside that of the weights.
    """

    def __init__(self, space: Space) -> None:
        super().__init__()
        self.space, self.temperature, self.sharpness = space, 1.0, 15.0
        most = space.largest
        self.stem = Stem(most.channels[0])
        self.blocks = module_list(bottlenecks(most.channels, most.widths, space.blocks))
        self.fc = nn.Linear(most.channels[-1], space.num_classes)
        self.alpha = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(len(options))) for name, options in space.questions()}
        )

    def chances(self) -> dict[str, Tensor]:
        """The probability of each option, by question."""
        return {name: (self.sharpness * a).softmax(0) for name, a in self.alpha.items()}

    def sample(self, learning: bool = True) -> dict[str, Tensor]:
        """g = softmax((log p + Gumbel noise) / tau), by question; p has a gradient only if `learning`."""
        drawn = {}
        for name, a in self.alpha.items():
            log_p = (self.sharpness * (a if learning else a.detach())).log_softmax(0)
            noise = -torch.empty_like(log_p).exponential_().log()
            drawn[name] = ((log_p + noise) / self.temperature).softmax(0)
        return drawn

    def only(self, k: int) -> Tensor:
        """The weights g that select resolution k."""
        at = next(iter(self.alpha.values()))
        return F.one_hot(torch.tensor(k, device=at.device), len(self.space.resolutions)).to(at.dtype)

    def found(self) -> Architecture:
        """The likeliest option of each question."""
        return self.space.choose([int(self.alpha[name].argmax()) for name, _ in self.space.questions()])

    def forward(self, x: Tensor, g: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """x [n, 3, 32, 32], weights g -> logits [n, num_classes], and the expected MACs, both differentiable in g."""
        space, r = self.space, g["resolution"]
        channels = [self._effective(options, g[f"channels{s}"]) for s, options in enumerate(space.channels)]
        side = self._effective(space.resolutions, r)
        side = side / 2  # of the stem's output
        out = _mask(space.channels[0], g["channels0"])
        x = self._at_resolutions(lambda part: self.stem(part) * out, x, 2, r)
        cost = 27 * channels[0] * side**2
        inputs = channels[0]
        for k, block in enumerate(self.blocks):
            stage, i = divmod(k, space.blocks)
            weights = g[f"width{stage + 1}_{i}"]
            mid, out = _mask(space.widths[stage], weights), _mask(space.channels[stage + 1], g[f"channels{stage + 1}"])
            y = self._at_resolutions(_masked(block, mid, out), x, block.stride, r)
            x = x + y if is_residual(block) and i > 0 else y  # only within a stage, where channels agree
            # k^2 * Cin_eff * Cout_eff * H_eff * W_eff / groups of the three convolutions
            width, outputs = self._effective(space.widths[stage], weights), channels[stage + 1]
            cost = cost + inputs * width * side**2
            side = side / block.stride
            cost = cost + 9 * width * side**2 + width * outputs * side**2
            inputs = outputs
        pooled = sum(
            weight * subsample(x, size * x.shape[2] // IMAGE).mean((2, 3))
            for weight, size in zip(r, space.resolutions, strict=True)
        )
        return self.fc(pooled), cost + inputs * space.num_classes

    def _effective(self, options: Sequence[int], g: Tensor) -> Tensor:
        return g @ g.new_tensor([float(o) for o in options])

    def _at_resolutions(self, op: Callable[[Tensor], Tensor], x: Tensor, stride: int, g: Tensor) -> Tensor:
        """y = sum_r g_r spread(op(subsample_r(x)))."""
        full = x.shape[2]
        parts = [
            weight * spread(op(subsample(x, size * full // IMAGE)), full // stride)
            for weight, size in zip(g, self.space.resolutions, strict=True)
            if weight.requires_grad or float(weight)  # fixed zero weights are skipped
        ]
        return reduce(torch.add, parts)


def _mask(options: Sequence[int], g: Tensor) -> Tensor:
    """sum_i g_i m_i, m_i the first c_i of the channels: [1, C, 1, 1]."""
    first = [torch.arange(max(options), device=g.device) < c for c in options]
    return (g @ torch.stack(first).to(g.dtype))[None, :, None, None]


def _masked(block: Bottleneck, mid: Tensor, out: Tensor) -> Callable[[Tensor], Tensor]:
    """y = b(x) * sum_i g_i m_i: one convolution for all options."""
    return lambda x: block.outer(block.inner(x) * mid) * out


# --- the result -------------------------------------------------------------------------------------------------------


class Plain(nn.Module):
    """One network of a space, with only its own channels.

    Args:
        found: the architecture.
        blocks: in each stage.
        num_classes: outputs.
    """

    def __init__(self, found: Architecture, blocks: int, num_classes: int) -> None:
        super().__init__()
        self.resolution = found.resolution
        self.stem = Stem(found.channels[0])
        made = bottlenecks(found.channels, found.widths, blocks)
        self.blocks = nn.ModuleList(made)
        # not in a stage's first block, whose inputs are chosen independently of its outputs
        self.residual = [is_residual(block) and k % blocks > 0 for k, block in enumerate(made)]
        self.fc = nn.Linear(found.channels[-1], num_classes)

    def input_shape(self, default: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one input: [3, 32, 32]."""
        return 3, IMAGE, IMAGE

    def forward(self, x: Tensor) -> Tensor:
        """x [n, 3, 32, 32] -> logits [n, num_classes]."""
        x = self.stem(subsample(x, self.resolution))
        for block, add in zip(self.blocks, self.residual, strict=True):
            y = block(x)
            x = x + y if add else y
        return self.fc(x.mean((2, 3)))


class Found(nn.Module):
    """The gate: the width with the largest alpha, for every input.

    Args:
        options: widths, ascending; the last is the full width.
    """

    scores: Tensor

    def __init__(self, options: Sequence[int]) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(len(options)))
        first = torch.stack([torch.arange(options[-1]) < c for c in options])  # [K, C]: m_i
        self.register_buffer("scores", first.float() - 0.5, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, ...] -> scores [n, C], positive for the first c channels."""
        return self.scores[self.alpha.argmax()].expand(x.shape[0], -1)

    def choose(self, width: int) -> None:
        """Sets alpha so that this width is chosen.

        Raises:
            ValueError: it is no option.
        """
        widths = (self.scores > 0).sum(1).tolist()
        if width not in widths:
            raise ValueError(f"width {width} is none of {', '.join(map(str, widths))}")
        with torch.no_grad():
            self.alpha.copy_(F.one_hot(torch.tensor(widths.index(width)), len(widths)))


class DMasking(Plain):
    """The network with the channels and resolution that were found and masked blocks of the largest width.

    Args:
        resolution: of the input.
        channels: of the stem and of each stage.
        options: widths of each stage's blocks, ascending.
        blocks: in each stage.
        num_classes: outputs.
    """

    def __init__(
        self,
        resolution: int,
        channels: Sequence[int],
        options: Sequence[Sequence[int]],
        blocks: int,
        num_classes: int,
    ) -> None:
        space = Space((resolution,), [[c] for c in channels], options, blocks, num_classes)
        widest = tuple(widths[-1] for widths in _per_block(options, blocks))
        super().__init__(Architecture(resolution, tuple(channels), widest), blocks, num_classes)
        self.space = space
        names = [f"stage{s}_block{i}" for s in range(1, len(options) + 1) for i in range(blocks)]
        self.gates = {name: Found(stage) for name, stage in zip(names, _per_block(options, blocks), strict=True)}
        self.blocks = nn.ModuleList(
            Width(name, gate, block, nested=True)
            for (name, gate), block in zip(self.gates.items(), self.blocks, strict=True)
        )

    def set_widths(self, widths: Sequence[int]) -> None:
        """Sets the widths that the gates choose.

        Raises:
            ValueError: one of them is no option of its block.
        """
        for (name, gate), width in zip(self.gates.items(), widths, strict=True):
            try:
                gate.choose(width)
            except ValueError as e:
                raise ValueError(f"{name}: {e}") from e


def _per_block(options: Sequence[Sequence[int]], blocks: int) -> list[Sequence[int]]:
    """The options of each block, from those of each stage."""
    return [stage for stage in options for _ in range(blocks)]


def dmasking(
    resolution: int = IMAGE,
    channels: Sequence[int] | None = None,
    options: Sequence[Sequence[int]] = WIDTHS,
    widths: Sequence[int] | None = None,
    blocks: int = BLOCKS,
    num_classes: int = 10,
) -> DMasking:
    """The network that was found, as masks on the widest: a Width at each block.

    Args:
        resolution: of the input, after subsampling.
        channels: of the stem and of each stage; default: the largest of `CHANNELS`.
        options: possible widths of a block, by stage, ascending.
        widths: of each block; default: as trained (alpha is part of the weights), the narrowest if untrained.
        blocks: in each stage.
        num_classes: outputs.

    Raises:
        ValueError: sizes that `Space` refuses, or a width that is no option.
    """
    channels = [c[-1] for c in CHANNELS] if channels is None else channels
    net = DMasking(resolution, channels, options, blocks, num_classes)
    if widths is not None:
        _count("widths", widths, len(options) * blocks)
        net.set_widths(widths)
    return net


def plain(
    resolution: int = IMAGE,
    channels: Sequence[int] | None = None,
    widths: Sequence[int] | None = None,
    blocks: int = BLOCKS,
    num_classes: int = 10,
) -> Plain:
    """A network of a space with only its own channels: the baseline of equal work.

    Args:
        resolution: of the input, after subsampling.
        channels: of the stem and of each stage; default: the largest of `CHANNELS`.
        widths: of each block; default: the largest of `WIDTHS`.
        blocks: in each stage.
        num_classes: outputs.

    Raises:
        ValueError: not one width per block, or sizes that `Space` refuses.
    """
    channels = [c[-1] for c in CHANNELS] if channels is None else channels
    stages = len(channels) - 1
    if widths is None:
        widths = [options[-1] for options in _per_block(WIDTHS, blocks)]
    _count("widths", widths, stages * blocks)
    Space((resolution,), [[c] for c in channels], [[1]] * stages, blocks, num_classes)  # checks
    return Plain(Architecture(resolution, tuple(channels), tuple(widths)), blocks, num_classes)


def build(space: Space, a: Architecture) -> Plain:
    """The network of an architecture."""
    return Plain(a, space.blocks, space.num_classes)


def accounted_macs(model: DMasking | Plain, trace: Trace, shape: tuple[int, ...]) -> tuple[float, str]:
    """The cost that the search minimises: that of the network with the decided widths."""
    rule = "convolutions and the linear layer of the network of just these channels"
    if not isinstance(model, DMasking):
        return float(static_macs(model, shape)), rule
    decided = [trace.entries[name, ()] for name in model.gates]
    widths = [float(e.value[e.reached].sum(1).double().mean()) for e in decided]  # the cost is linear in each
    bare = Architecture(model.resolution, tuple(c[0] for c in model.space.channels), (0,) * len(widths))
    total = macs(model.space, bare)
    return total + sum(w * each for w, each in zip(widths, per_channel(model.space, bare), strict=True)), rule


def per_channel(space: Space, a: Architecture) -> list[int]:
    """The cost of one more channel in each block."""
    without, n = macs(space, replace(a, widths=(0,) * len(a.widths))), len(a.widths)
    return [macs(space, replace(a, widths=tuple(int(i == k) for i in range(n)))) - without for k in range(n)]


def macs(space: Space, a: Architecture) -> int:
    """Multiply-accumulates of a network, from its shapes."""
    sides = list(accumulate([a.resolution // 2, *(STRIDES[min(s, 1)] for s in range(len(space.widths)))], _over))
    total, inputs = 27 * a.channels[0] * sides[0] ** 2, a.channels[0]
    for k, width in enumerate(a.widths):
        stage, i = divmod(k, space.blocks)
        before, after, outputs = sides[stage if i == 0 else stage + 1], sides[stage + 1], a.channels[stage + 1]
        total += inputs * width * before**2 + (9 * width + width * outputs) * after**2
        inputs = outputs
    return total + inputs * space.num_classes


def params(space: Space, a: Architecture) -> int:
    """Parameters of a network, batch norm included."""
    total, inputs = 29 * a.channels[0], a.channels[0]
    for k, width in enumerate(a.widths):
        outputs = a.channels[k // space.blocks + 1]
        total += (inputs + 2 + 9 + 2 + outputs) * width + 2 * outputs
        inputs = outputs
    return total + (inputs + 1) * space.num_classes


def _over(side: int, stride: int) -> int:
    return side // stride


def _count(what: str, given: Sequence[int], wanted: int) -> None:
    if len(given) != wanted or any(g < 1 for g in given):
        raise ValueError(f"{what}={list(given)}: give {wanted} whole numbers from 1, one per block")
