"""BlockDrop: a small policy network looks at the image first and decides for all residual blocks at once.

Wu, Nagarajan, Kumar, Rennie, Davis, Grauman, Feris, "BlockDrop: Dynamic Inference Paths in Residual Networks", CVPR
2018 (arXiv 1711.08393). Where the paper leaves a choice open, the authors' code decides (Tushar-N/blockdrop,
models/resnet.py, models/base.py, test.py). The policy's second output, a value, is left out: nothing uses it, as their
baseline is the policy's own unsampled decision.
"""

from __future__ import annotations

from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.dynamic import Ahead, Trace
from dynbench.models.accounting import macs_run, static_macs
from dynbench.models.resnet import BasicBlock, BlockKind, ResNet, architecture, block_names, skip_block
from dynbench.models.sharing import shared_once
from dynbench.models.typed import module_list

PAPER = "Wu et al., BlockDrop: Dynamic Inference Paths in Residual Networks, CVPR 2018"
PROVENANCE = "authors' code; without the policy's value output, which nothing uses"

Shortcut = Literal["pool", "projection"]


class PooledShortcut(nn.Module):
    """A shortcut without parameters where the shape changes: average pooling, and zeros for the new channels.

    Args:
        outputs: channels.
        stride: of the block.
    """

    def __init__(self, outputs: int, stride: int) -> None:
        super().__init__()
        self.outputs, self.stride = outputs, stride

    def forward(self, x: Tensor) -> Tensor:
        """x [n, C, H, W] -> [n, outputs, H / stride, W / stride]."""
        x = F.avg_pool2d(x, self.stride, ceil_mode=True)
        return F.pad(x, (0, 0, 0, 0, 0, self.outputs - x.shape[1]))


class Policy(nn.Module):
    """s = sigmoid(f_pn(x)) (eq. 1): a ResNet of few blocks; it sees images of ImageNet at half the resolution.

    Args:
        blocks: in each group.
        decisions: K, the number of blocks it decides for.
        dataset: 'cifar' or 'imagenet'.
        shortcut: see `blockdrop`.
    """

    def __init__(self, blocks: int, decisions: int, dataset: str, shortcut: Shortcut) -> None:
        super().__init__()
        groups = 3 if dataset == "cifar" else 4
        self.net, self.dataset = ResNet(BasicBlock, (blocks,) * groups, decisions, dataset), dataset
        if shortcut == "pool":
            pool_shortcuts(self.net)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, 3, H, W], the image -> logits of s [n, K]."""
        s: Tensor = self.net(x if self.dataset == "cifar" else F.avg_pool2d(x, 2))
        return s


class BlockDrop(ResNet):
    """A ResNet whose K blocks run where u = 1; u is drawn from s in training, else u = (s > 0.5) (eq. 2).

    A skipped block that would change the shape is replaced by its shortcut, *without* ReLU.

    Args:
        block: BasicBlock or Bottleneck.
        layers: blocks per group.
        num_classes: outputs.
        dataset: 'cifar' or 'imagenet'.
        shortcut: see `blockdrop`.
        policy_blocks: blocks in each group of the policy network.
    """

    def __init__(
        self,
        block: BlockKind,
        layers: tuple[int, ...],
        num_classes: int,
        dataset: str,
        shortcut: Shortcut,
        policy_blocks: int,
    ) -> None:
        super().__init__(block, layers, num_classes, dataset)
        if shortcut == "pool":
            pool_shortcuts(self)
        self.policy = Policy(policy_blocks, sum(layers), dataset, shortcut)
        skips = [
            skip_block(name, None, body, relu=False)
            for name, body in zip(block_names(layers), self.blocks(), strict=True)
        ]
        self.ahead = Ahead("policy", self.policy, skips)
        self.skips = module_list(skips)
        shared_once(self)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, 3, H, W] -> logits [n, num_classes]."""
        return self.answer(x, self.ahead(x))

    def answer(self, x: Tensor, u: Any) -> Tensor:
        """x [n, 3, H, W] and the decisions u for its blocks (see `Ahead`) -> logits [n, num_classes]."""
        x = self.stem(x)
        for skip in self.skips:
            x, u = skip(x, u)
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def pool_shortcuts(net: ResNet) -> None:
    """Replaces the projection in every shortcut by pooling."""
    for block in net.blocks():
        if block.downsample is not None:
            block.downsample = PooledShortcut(block.outputs, block.stride)  # type: ignore[assignment]


def blockdrop(
    depth: int = 110,
    num_classes: int = 10,
    dataset: str = "cifar",
    shortcut: Shortcut | None = None,
    policy_blocks: int = 1,
) -> BlockDrop:
    """A BlockDrop network.

    Args:
        depth: 6n+2 for 'cifar' (the paper: 32, 110); 18, 34, 50, 101 or 152 for 'imagenet' (the paper: 101).
        num_classes: outputs.
        dataset: 'cifar' (inputs [n, 3, 32, 32], larger ones work) or 'imagenet' ([n, 3, 224, 224]).
        shortcut: 'pool' (without parameters) or 'projection' (1x1 convolution and norm). None: as the authors, 'pool'
            for 'cifar' and 'projection' for 'imagenet'.
        policy_blocks: blocks in each group of the policy network.

    Raises:
        ValueError: there is no such network of this depth, with this shortcut or for this data set, or a policy without
            blocks.
    """
    if policy_blocks < 1:
        raise ValueError(f"policy_blocks={policy_blocks}: a policy network has 1 block or more in each group")
    block, layers = architecture(depth, dataset)
    return BlockDrop(block, layers, num_classes, dataset, _shortcut(shortcut, dataset), policy_blocks)


def plain(depth: int = 110, num_classes: int = 10, dataset: str = "cifar", shortcut: Shortcut | None = None) -> ResNet:
    """The ResNet that BlockDrop starts from, without a policy; arguments and errors as for `blockdrop`."""
    block, layers = architecture(depth, dataset)
    net = ResNet(block, layers, num_classes, dataset)
    if _shortcut(shortcut, dataset) == "pool":
        pool_shortcuts(net)
    return net


def _shortcut(shortcut: Shortcut | None, dataset: str) -> Shortcut:
    if shortcut is None:
        return "pool" if dataset == "cifar" else "projection"
    if shortcut not in ("pool", "projection"):
        raise ValueError(f"shortcut={shortcut!r}: a BlockDrop network has 'pool' or 'projection'")
    return shortcut


def accounted_macs(model: BlockDrop, trace: Trace, shape: tuple[int, ...]) -> tuple[float, str]:
    """As the authors' test.py counts: every convolution and linear layer that ran, the policy's included."""
    macs = macs_run(model, model.skips, trace, shape) + static_macs(model.policy, shape)
    return macs, "blocks run, shortcuts, the fixed parts and the policy network; the authors count 2 operations a MAC"
