"""ConvNet-AIG: each residual block asks, from its own input, whether it is needed for this image.

Veit, Belongie, "Convolutional Networks with Adaptive Inference Graphs", ECCV 2018 (arXiv 1711.11503). Where the paper
leaves a choice open, the authors' code decides (andreasveit/convnet-aig, convnet_aig.py and gumbelmodule.py). Two
differences: their code draws Gumbel noise in testing too, so that its decisions differ from run to run, whereas here a
network in evaluation mode takes the likelier decision; and their code computes every block and multiplies by the gate
("TODO: for fast inference"), whereas here a strategy may skip it.

On a current torch their code does not run: it gives `BatchNorm1d` the gates' maps [n, 16, 1, 1], and that takes two or
three dimensions only.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.dynamic import Trace
from dynbench.models.accounting import macs_run
from dynbench.models.resnet import BlockKind, ResNet, architecture, block_names, skip_block
from dynbench.models.sharing import shared_once
from dynbench.models.typed import module_list

PAPER = "Veit, Belongie, Convolutional Networks with Adaptive Inference Graphs, ECCV 2018"
PROVENANCE = "authors' code; decisions unsampled in evaluation mode, as ours"

HIDDEN = 16  # of a gate
CLOSED, OPEN = 0.1, 2.0  # initial biases of the two logits: 85 % open


class Gate(nn.Module):
    """Relevance of a block (section 3.2): average pool over the whole map, 1x1 to 16, norm, ReLU, 1x1 to two logits.

    In training a decision is drawn (section 3.3): Gumbel noise on both logits, which is logistic noise on their
    difference. With the straight-through gradient of its sigmoid, which Skip uses, this is the authors' hard
    Gumbel-softmax at their temperature, 1.

    Args:
        channels: of the block's input.
        hidden: width between the two layers.

    Attributes:
        noisy: whether decisions are drawn in training; else training decides as evaluation does.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc1bn = nn.Linear(channels, hidden), nn.BatchNorm1d(hidden)
        self.fc2 = nn.Linear(hidden, 2)
        nn.init.normal_(self.fc2.weight, 0, 0.001)
        with torch.no_grad():
            self.fc2.bias.copy_(torch.tensor([CLOSED, OPEN]))
        self.noisy = True

    def forward(self, x: Tensor, carry: None) -> tuple[Tensor, None]:
        """x [n, C, H, W], the block's input -> (logit of running it [n], None)."""
        w = F.relu(self.fc1bn(self.fc1(x.mean((2, 3)))))  # [n, 16]
        closed, opened = self.fc2(w).unbind(1)
        score = opened - closed
        if self.training and self.noisy:
            u = torch.rand_like(score, dtype=torch.float32).clamp(1e-6, 1 - 1e-6)
            score = score + torch.logit(u).to(score.dtype)
        return score, None


class ConvNetAIG(ResNet):
    """x_l = relu(shortcut(x_{l-1}) + z(x_{l-1}) F_l(x_{l-1})) (eq. 4), z in {0, 1}; every block has a gate.

    The body is the whole block, with shortcut and ReLU. A skipped block is replaced by its shortcut with ReLU: where
    that is the identity, by the input itself, which the ReLU before it has made non-negative.

    Args:
        block: BasicBlock or Bottleneck.
        layers: blocks per group.
        num_classes: outputs.
        dataset: 'cifar' or 'imagenet'.
        hidden: width of the gates.
    """

    def __init__(
        self,
        block: BlockKind,
        layers: tuple[int, ...],
        num_classes: int,
        dataset: str,
        hidden: int,
    ) -> None:
        super().__init__(block, layers, num_classes, dataset)
        skips = []
        for name, body in zip(block_names(layers), self.blocks(), strict=True):
            gate = Gate(body.conv1.in_channels, hidden)
            self.add_module(name.replace("layer", "gate"), gate)
            skips.append(skip_block(name, gate, body, relu=True))
        self.skips = module_list(skips)
        shared_once(self)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, 3, H, W] -> logits [n, num_classes]."""
        x = self.stem(x)
        for skip in self.skips:
            x, _ = skip(x)
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def convnet_aig(depth: int = 110, num_classes: int = 10, dataset: str = "cifar", hidden: int = HIDDEN) -> ConvNetAIG:
    """A ConvNet-AIG.

    Args:
        depth: 6n+2 for 'cifar' (the paper: 110); 18, 34, 50, 101 or 152 for 'imagenet' (the paper: 50, 101).
        num_classes: outputs.
        dataset: 'cifar' (inputs [n, 3, 32, 32], larger ones work) or 'imagenet' ([n, 3, 224, 224]).
        hidden: width of the gates.

    Raises:
        ValueError: there is no such network of this depth for this data set, or gates have no width.
    """
    if hidden < 1:
        raise ValueError(f"hidden={hidden}: a gate is 1 or more wide")
    block, layers = architecture(depth, dataset)
    return ConvNetAIG(block, layers, num_classes, dataset, hidden)


def accounted_macs(model: ConvNetAIG, trace: Trace, shape: tuple[int, ...]) -> tuple[float, str]:
    """Blocks run and the fixed parts. The paper calls the gates' share negligible; its code counts nothing."""
    macs = macs_run(model, model.skips, trace, shape)
    return macs, "blocks run, shortcuts and the fixed parts; gates not counted"
