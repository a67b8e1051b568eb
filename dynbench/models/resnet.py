"""ResNet: the static twin of the image models.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016 (arXiv 1512.03385). Blocks are named
as in ucbdrive/skipnet, so that the weights of a ResNet are, name by name, those of the SkipNet built on it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.dynamic import Skip

PAPER = "He et al., Deep Residual Learning for Image Recognition, CVPR 2016"
PROVENANCE = "section 4.2 (CIFAR, 6n+2 layers) and table 1 (ImageNet); stride blocks with a 1x1 shortcut (option B)"

BOTTLENECKS = (50, 101, 152)
IMAGENET_LAYERS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution without bias; padding keeps the map's size, up to the stride."""
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    """Option B (section 3.3): a 1x1 projection where the shape changes, else None: the identity."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """y = relu(F(x) + shortcut(x)), F two 3x3 convolutions (figure 5, left).

    Args:
        inputs: channels of x.
        width: channels of both convolutions, and of y.
        stride: of the first convolution.
    """

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.outputs, self.stride = width, stride
        self.conv1, self.bn1 = conv3x3(inputs, width, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv3x3(width, width), nn.BatchNorm2d(width)
        self.downsample = shortcut(inputs, width, stride)

    def forward(self, x: Tensor, base: Tensor | None = None) -> Tensor:
        """x [n, inputs, H, W], its shortcut where that is known -> y [n, width, H / stride, W / stride]."""
        return F.relu(self.residual(x) + (_shortcut(self, x) if base is None else base))

    def residual(self, x: Tensor) -> Tensor:
        """F(x), of the shape of y."""
        y: Tensor = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return y


class Bottleneck(nn.Module):
    """y = relu(F(x) + shortcut(x)), F convolutions of 1x1, 3x3 and 1x1 (figure 5, right).

    Args:
        inputs: channels of x.
        width: channels of the first two convolutions; y has four times as many.
        stride: of the 3x3 convolution.
    """

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.outputs, self.stride = outputs, stride
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv3x3(width, width, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.downsample = shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor, base: Tensor | None = None) -> Tensor:
        """x [n, inputs, H, W], its shortcut where that is known -> y [n, 4 width, H / stride, W / stride]."""
        return F.relu(self.residual(x) + (_shortcut(self, x) if base is None else base))

    def residual(self, x: Tensor) -> Tensor:
        """F(x), of the shape of y."""
        y: Tensor = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return y


Block = BasicBlock | Bottleneck


def _shortcut(block: Block, x: Tensor) -> Tensor:
    return x if block.downsample is None else block.downsample(x)


class OnShortcut(nn.Module):
    """A block whose shortcut is computed beforehand, as the body of a Skip that shares it.

    Args:
        block: with a shortcut that is not the identity.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block

    def forward(self, given: tuple[Tensor, Tensor]) -> Tensor:
        """x [n, inputs, H, W] and its shortcut -> the block's answer."""
        y: Tensor = self.block(*given)
        return y


class ShortcutAlone(nn.Module):
    """What replaces such a block: the shortcut, with or without ReLU.

    Args:
        relu: with ReLU.
    """

    def __init__(self, *, relu: bool) -> None:
        super().__init__()
        self.relu = relu

    def forward(self, given: tuple[Tensor, Tensor]) -> Tensor:
        """x and its shortcut -> the shortcut."""
        return F.relu(given[1]) if self.relu else given[1]


def skip_block(name: str, gate: nn.Module | None, block: Block, *, relu: bool) -> Skip:
    """A Skip whose body is a block.

    Args:
        name: of the Skip.
        gate: see `Skip`.
        block: skipped, it is replaced by its shortcut, which is computed once for all items.
        relu: a shortcut that is not the identity is followed by ReLU where the block is skipped.
    """
    if block.downsample is None:
        return Skip(name, gate, block, consumes=True)
    return Skip(name, gate, OnShortcut(block), ShortcutAlone(relu=relu), shared=block.downsample, consumes=True)


BlockKind = type[BasicBlock] | type[Bottleneck]


def block_names(layers: Sequence[int]) -> list[str]:
    """Names of a network's residual blocks, in order: group1_layer0, group1_layer1, ...; `layers` per group."""
    return [f"group{g}_layer{i}" for g, count in enumerate(layers, start=1) for i in range(count)]


class ResNet(nn.Module):
    """The network: stem, groups of residual blocks `group{g}_layer{i}`, average pooling, one linear layer.

    Args:
        block: BasicBlock or Bottleneck.
        layers: blocks per group.
        num_classes: outputs.
        dataset: 'cifar' (3x3 stem, widths 16, 32, 64) or 'imagenet' (7x7 stem, pooling, widths 64 to 512).
    """

    def __init__(self, block: BlockKind, layers: tuple[int, ...], num_classes: int, dataset: str) -> None:
        super().__init__()
        self.layers, self.dataset = layers, dataset
        inputs = 16 if dataset == "cifar" else 64
        if dataset == "cifar":
            self.conv1 = conv3x3(3, inputs)
        else:
            self.conv1 = nn.Conv2d(3, inputs, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        width = inputs
        for g, count in enumerate(layers, start=1):
            for i in range(count):
                stride = 2 if g > 1 and i == 0 else 1
                self.add_module(f"group{g}_layer{i}", block(inputs, width, stride))
                inputs = width * block.expansion
            width *= 2
        self.fc = nn.Linear(inputs, num_classes)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):  # He et al. 2015, eq. 14, by fan-out
                nn.init.normal_(m.weight, 0, math.sqrt(2 / (m.kernel_size[0] * m.kernel_size[1] * m.out_channels)))

    def input_shape(self, default: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one input: [3, H, W]."""
        return default if self.dataset == "cifar" else (3, 224, 224)

    def blocks(self) -> Iterator[Block]:
        """The residual blocks, in order."""
        for name in block_names(self.layers):
            yield cast(Block, self.get_submodule(name))

    def stem(self, x: Tensor) -> Tensor:
        """x [n, 3, H, W] -> the input of the first block."""
        x = F.relu(self.bn1(self.conv1(x)))
        return F.max_pool2d(x, 3, stride=2, padding=1) if self.dataset == "imagenet" else x

    def forward(self, x: Tensor) -> Tensor:
        """x [n, 3, H, W] -> logits [n, num_classes]."""
        x = self.stem(x)
        for block in self.blocks():
            x = block(x)
        return self.fc(x.mean((2, 3)))


def resnet(depth: int = 38, num_classes: int = 10, dataset: str = "cifar") -> ResNet:
    """A ResNet.

    Args:
        depth: 6n+2 for 'cifar' (8, 20, 32, 38, 74, 110, 152, ...); 18, 34, 50, 101 or 152 for 'imagenet'.
        num_classes: outputs.
        dataset: 'cifar' (inputs [n, 3, 32, 32], larger ones work) or 'imagenet' ([n, 3, 224, 224]).

    Raises:
        ValueError: there is no such network of this depth for this data set.
    """
    block, layers = architecture(depth, dataset)
    return ResNet(block, layers, num_classes, dataset)


def architecture(depth: int, dataset: str) -> tuple[BlockKind, tuple[int, ...]]:
    """The kind of block, and the number of blocks in each group.

    Raises:
        ValueError: there is no such network of this depth for this data set.
    """
    if dataset == "cifar":
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth={depth}: a CIFAR ResNet has 6n+2 layers (8, 14, 20, 26, 32, 38, ...)")
        return BasicBlock, ((depth - 2) // 6,) * 3
    if dataset == "imagenet":
        if depth not in IMAGENET_LAYERS:
            raise ValueError(f"depth={depth}: an ImageNet ResNet has {', '.join(map(str, IMAGENET_LAYERS))} layers")
        return Bottleneck if depth in BOTTLENECKS else BasicBlock, IMAGENET_LAYERS[depth]
    raise ValueError(f"dataset={dataset!r}: a ResNet is built for 'cifar' or 'imagenet'")
