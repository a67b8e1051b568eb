"""Spatially dynamic convolution: where on the map a residual block is computed is decided for each input.

Verelst and Tuytelaars, "Dynamic Convolutions: Exploiting Spatial Sparsity for Faster Inference", CVPR 2020
(arXiv 1912.03203; DynConv), at the granularity of Han, Yuan, Pu, Xue, Song, Sun, Huang, "Latency-aware Spatial-wise
Dynamic Networks", NeurIPS 2022 (LASNet): a square patch is computed or not, from one pixel to the whole map.

From the authors' code (thomasverelst/dynconv, classification): every block has a mask unit, its score is a 3x3
convolution to one channel plus a linear function of the pooled map; the residual branch is added where the score is
positive, and the ReLU after it is applied everywhere; convolutions before the last 3x3 are needed on the dilated mask.
That code computes everything and multiplies by the mask; the kernels they measured exist for depthwise convolutions
only.

Ours: coarser patches, whose score is computed on the map pooled to one value per patch (for patches of one pixel, the
authors' unit, except for a score of exactly 0); and the execution. An item is a patch. It is computed from a copy of
its part of the block's input with its surroundings (the halo), so neighbouring patches compute their overlap twice:
((S + 4) / S)^2 times the input of the patch is moved, and the first of two 3x3 convolutions computes ((S + 2) / S)^2
times its area. Values that a convolution would pad with zeros are zero, also at the edge of the map between the
convolutions, so that a computed patch has the value it has in the plain ResNet.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.dynamic import Patch, Patches, Skip, Trace
from dynbench.dynamic.patches import grid_size
from dynbench.models.accounting import static_macs
from dynbench.models.resnet import BasicBlock, Block, BlockKind, ResNet, architecture, block_names
from dynbench.models.sharing import shared_once
from dynbench.models.typed import module_list

PAPER = "Verelst and Tuytelaars, Dynamic Convolutions: Exploiting Spatial Sparsity for Faster Inference, CVPR 2020"
PROVENANCE = "paper and authors' code; coarser patches as in LASNet (NeurIPS 2022), their scores and execution are ours"


class MaskUnit(nn.Module):
    """Scores of the patches: conv3x3(x) + fc(mean of x), on the map pooled to a value per patch.

    Args:
        channels: C of the block's input.
        stride: of the block.
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 1, 3, stride, padding=1)
        self.fc = nn.Linear(channels, 1)

    def forward(self, p: Patch, carry: None) -> tuple[Tensor, None]:
        """Patches of a block's input -> (scores [n], None)."""
        grid = p.grid.value
        x, side = grid.source, grid.side  # [N, C, H, W]
        y = F.avg_pool2d(x, side, ceil_mode=True, count_include_pad=False) if side > 1 else x
        scores = self.conv(y).flatten(1) + self.fc(x.mean((2, 3)))  # [N, P]
        return scores.flatten().index_select(0, p.number), None


class PatchBlock(nn.Module):
    """The residual branch F of a block, on patches: own + F(patch with halo).

    Args:
        block: the residual block.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block

    def forward(self, p: Patch) -> Patch:
        """Patches with the shortcut's values, own [n, C, S, S] -> with those of shortcut + F."""
        x = p.whole()
        y = self._valid(p) if x is None else p.cut(self.block.residual(x))
        return p._replace(own=p.own + y)

    def _valid(self, p: Patch) -> Tensor:
        """F on patches, from windows: -> [n, C', S, S]. Convolutions without padding consume the halo."""
        b, grid, stride = self.block, p.grid.value, self.block.stride
        size, (height, width) = grid.side, grid.source.shape[2:]
        if isinstance(b, BasicBlock):  # conv1 has the stride; conv2 needs a pixel more on every side
            y = _conv(b.conv1, p.window(stride + 1, (size + 1) * stride + 3, stride))  # [n, C', S + 2, S + 2]
            there = p.inside(1, size + 2, -(-height // stride), -(-width // stride))
            y = torch.where(there, F.relu(b.bn1(y)), 0)
            return b.bn2(_conv(b.conv2, y))
        need = (size - 1) * stride + 3  # conv2 has the stride
        y = F.relu(b.bn1(b.conv1(p.window(1, need, stride))))  # [n, C'/4, need, need]
        y = torch.where(p.inside(1, need, height, width, stride), y, 0)
        return b.bn3(b.conv3(F.relu(b.bn2(_conv(b.conv2, y)))))


def _conv(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """The convolution without its padding."""
    return F.conv2d(x, conv.weight, conv.bias, conv.stride)


class SpatialResNet(ResNet):
    """x_{l+1} = relu(shortcut(x_l) + m_l(x_l) * F_l(x_l)), m_l [n, 1, H, W] in {0, 1}, constant within a patch.

    Args:
        block: BasicBlock or Bottleneck.
        layers: blocks per group.
        granularity: S of each group.
        num_classes: outputs.
        dataset: 'cifar' or 'imagenet'.
    """

    def __init__(
        self,
        block: BlockKind,
        layers: tuple[int, ...],
        granularity: Sequence[int],
        num_classes: int,
        dataset: str,
    ) -> None:
        super().__init__(block, layers, num_classes, dataset)
        sides = [side for side, count in zip(granularity, layers, strict=True) for _ in range(count)]
        self.sides = dict(zip(block_names(layers), sides, strict=True))
        patches: list[Patches] = []
        inputs = self.bn1.num_features
        for (name, side), residual in zip(self.sides.items(), self.blocks(), strict=True):
            gate = MaskUnit(inputs, residual.stride)
            self.add_module(f"{name}_mask", gate)
            patches.append(Patches(Skip(name, gate, PatchBlock(residual), consumes=True), side))
            inputs = residual.outputs
        self.patches = module_list(patches)  # registered last, so that weights keep the names of their blocks
        shared_once(self)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, 3, H, W] -> logits [n, num_classes]."""
        x = self.stem(x.contiguous(memory_format=torch.channels_last))  # the channels of a pixel are moved together
        for block, patches in zip(self.blocks(), self.patches, strict=True):
            base = x if block.downsample is None else block.downsample(x)  # everywhere
            x = F.relu(patches(base, x))
        return self.fc(x.mean((2, 3)))


def spatial_resnet(
    depth: int = 20, granularity: int | Sequence[int] = 4, num_classes: int = 10, dataset: str = "cifar"
) -> SpatialResNet:
    """A ResNet whose blocks are computed patch by patch.

    Args:
        depth: 6n+2 for 'cifar' (DynConv: 8 to 32); 18, 34, 50, 101 or 152 for 'imagenet' (DynConv: 101).
        granularity: S, side of a patch in pixels of the map that a block computes; one for all groups of blocks, or one
            for each. 1: a pixel (DynConv); the size of the map or more: the whole map. LASNet: [4, 4, 2, 1].
        num_classes: outputs.
        dataset: 'cifar' (inputs [n, 3, 32, 32], larger ones work) or 'imagenet' ([n, 3, 224, 224]).

    Raises:
        ValueError: there is no such network of this depth for this data set, or a granularity below 1.
    """
    block, layers = architecture(depth, dataset)
    sides = [granularity] * len(layers) if isinstance(granularity, int) else list(granularity)
    if len(sides) != len(layers) or any(not isinstance(s, int) or isinstance(s, bool) or s < 1 for s in sides):
        raise ValueError(
            f"granularity={granularity!r}: it is the side of a patch in pixels, 1 or more, one for all or one for each "
            f"of the {len(layers)} groups of blocks"
        )
    return SpatialResNet(block, layers, sides, num_classes, dataset)


def pixel_masks(model: SpatialResNet, decided: Mapping[str, Tensor], shape: tuple[int, ...]) -> dict[str, Tensor]:
    """The mask of each block, pixel by pixel.

    Args:
        model: the network.
        decided: for each block [items * P], 1 or True where a patch is computed.
        shape: of one input, [3, H, W].

    Returns:
        By name of the block [items, 1, H', W'] float, on the map that the block computes.
    """
    found = {}
    for name, side, rows, columns, height, width in _grids(model, shape):
        patch = decided[name].view(-1, 1, rows, columns).float()
        found[name] = patch.repeat_interleave(side, 2).repeat_interleave(side, 3)[:, :, :height, :width]
    return found


def _grids(model: SpatialResNet, shape: tuple[int, ...]) -> Iterator[tuple[str, int, int, int, int, int]]:
    """For each block: name, side, rows and columns of patches, height and width of the map that it computes."""
    height, width = shape[1:]
    halvings = 2 if model.dataset == "imagenet" else 0  # a convolution of stride 2 and a pooling
    for _ in range(halvings):
        height, width = -(-height // 2), -(-width // 2)
    for (name, side), block in zip(model.sides.items(), model.blocks(), strict=True):
        height, width = (-(-k // block.stride) for k in (height, width))
        yield name, *grid_size(side, height, width), height, width


def dilated(mask: Tensor, stride: int) -> Tensor:
    """The input positions of a 3x3 convolution computed on `mask`: [n, 1, H, W] -> [n, 1, H * stride, W * stride]."""
    if stride > 1:
        wide = mask.new_zeros(*mask.shape[:2], mask.shape[2] * stride, mask.shape[3] * stride)
        wide[:, :, ::stride, ::stride] = mask
        mask = wide
    return F.max_pool2d(mask, 3, stride=1, padding=1)


def asked_macs(model: SpatialResNet, masks: Mapping[str, Tensor]) -> list[tuple[Tensor, int]]:
    """As the authors count: for each block the MACs of its residual branch on the mask, and on the whole map.

    Convolutions before the last 3x3 are needed on the dilated mask.

    Args:
        model: the network.
        masks: from `pixel_masks`.

    Returns:
        For each block (MACs per item on the mask, a scalar; MACs of the whole branch).
    """
    found = []
    for block, mask in zip(model.blocks(), masks.values(), strict=True):
        if isinstance(block, BasicBlock):
            parts: list[tuple[nn.Conv2d, Tensor]] = [(block.conv1, dilated(mask, 1)), (block.conv2, mask)]
        else:
            parts = [(block.conv1, dilated(mask, block.stride)), (block.conv2, mask), (block.conv3, mask)]
        asked = torch.stack([conv.weight.numel() * m.sum() / len(m) for conv, m in parts]).sum()
        found.append((asked, sum(conv.weight.numel() * m[0].numel() for conv, m in parts)))
    return found


def accounted_macs(model: SpatialResNet, trace: Trace, shape: tuple[int, ...]) -> tuple[float, str]:
    """As the authors' code counts: convolutions only, each on the positions where it is needed, mask units included."""
    branches = asked_macs(model, pixel_masks(model, decisions(trace), shape))
    macs = float(static_macs(model, shape) - model.fc.weight.numel())
    for asked, dense in branches:
        macs += float(asked) - dense
    for name, _, rows, columns, _, _ in _grids(model, shape):
        gate = cast(MaskUnit, model.get_submodule(f"{name}_mask"))
        macs += gate.conv.weight.numel() * rows * columns
    rule = (
        "convolutions only, on the positions that the mask asks for, those before the last 3x3 of a block on the mask "
        "dilated by a pixel; mask units included"
    )
    return macs, rule


def decisions(trace: Trace) -> dict[str, Tensor]:
    """The decisions by block, [items * P] bool."""
    return {name: entry.value for (name, _), entry in trace.entries.items()}
