"""SkipNet's recurrent form as its authors run it: every block on every input, mixed by a mask of zeros and ones.

The network of `dynbench.models.skipnet` with control flow of its own and no decision points, to stand beside it as an
`[[opaque]]` network. It follows the published code (ucbdrive/skipnet, cifar/models.py) operator by operator: gates that
are 1x1 convolutions of a pooled map, an LSTM over sequences of one step whose state the module keeps, masks through
which a gradient could pass, and, where the shape changes, a shortcut that is computed twice. What it does not do is
the gate after the last block, which decides nothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.models.resnet import BlockKind, ResNet, architecture
from dynbench.models.sharing import shared_once
from dynbench.models.skipnet import EMBEDDING, HIDDEN, Control, init_as_authors
from dynbench.models.typed import module_list

PAPER = "Wang et al., SkipNet: Learning Dynamic Routing in Convolutional Networks, ECCV 2018"
PROVENANCE = "the authors' code: recurrent gates on CIFAR, in evaluation"


class PooledGate(nn.Module):
    """The block's own part of a gate: the average over the whole map, and a 1x1 convolution.

    Args:
        embed: the convolution's weights, as `SkipNet` keeps them.
    """

    def __init__(self, embed: nn.Linear) -> None:
        super().__init__()
        self.embed = embed

    def forward(self, x: Tensor) -> Tensor:
        """x [n, C, H, W] -> [n, 10, 1, 1]."""
        return F.conv2d(F.avg_pool2d(x, x.shape[-2:]), self.embed.weight[:, :, None, None], self.embed.bias)


class KeptState(nn.Module):
    """The LSTM behind all gates, which keeps its state from one call to the next.

    Args:
        control: whose weights it takes.
    """

    def __init__(self, control: Control) -> None:
        super().__init__()
        self.rnn, self.proj, self.prob = nn.LSTM(EMBEDDING, HIDDEN), control.proj, nn.Sigmoid()
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            setattr(self.rnn, f"{name}_l0", getattr(control.rnn, name))
        self.hidden: tuple[Tensor, Tensor] | None = None

    def begin(self, x: Tensor) -> None:
        """An empty state for the inputs x [n, ...]."""
        self.hidden = (x.new_zeros(1, len(x), HIDDEN), x.new_zeros(1, len(x), HIDDEN))

    def forward(self, e: Tensor) -> tuple[Tensor, Tensor]:
        """Embedding e [n, 10, 1, 1] -> (mask, p), both [n, 1, 1, 1]; the mask is 0 or 1 up to rounding."""
        out, self.hidden = self.rnn(e.view(1, len(e), -1), self.hidden)
        p: Tensor = self.prob(self.proj(out.squeeze(0)))[:, :, None, None]
        return (p > 0.5).to(p.dtype).detach() - p.detach() + p, p


class PublishedSkipNet(ResNet):
    """x_{i+1} = m_i F_i(x_i) + (1 - m_i) s_i(x_i), with s_i the block's 1x1 shortcut or the identity.

    Its weights have the names of `SkipNet`'s.

    Args:
        block: BasicBlock or Bottleneck.
        layers: blocks per group.
        num_classes: outputs.
    """

    def __init__(self, block: BlockKind, layers: tuple[int, ...], num_classes: int) -> None:
        super().__init__(block, layers, num_classes, "cifar")
        self.control = Control()
        embeds: list[nn.Linear] = []
        for g, count in enumerate(layers, start=1):
            for i in range(count):
                if (g, i) != (len(layers), count - 1):
                    embeds.append(nn.Linear(self.conv1.out_channels * 2 ** (g - 1) * block.expansion, EMBEDDING))
                    self.add_module(f"group{g}_gate{i}", embeds[-1])
        init_as_authors(self)
        self.gates = module_list(map(PooledGate, embeds))
        self.state = KeptState(self.control)
        shared_once(self)

    def forward(  # type: ignore[override]  # masks too, as in the authors' code
        self, x: Tensor
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """x [n, 3, H, W] -> (logits [n, num_classes], the mask [n] and p [n, 1, 1, 1] of each gated block)."""
        first, *blocks = self.blocks()
        x = self.stem(x)
        self.state.begin(x)
        prev = x = first(x)
        masks, probabilities = [], []
        for block, gate in zip(blocks, self.gates, strict=True):
            mask, p = self.state(gate(x))
            masks.append(mask.flatten())
            probabilities.append(p)
            if block.downsample is not None:
                prev = block.downsample(prev)
            x = block(x)
            prev = x = mask.expand_as(x) * x + (1 - mask).expand_as(prev) * prev
        logits: Tensor = self.fc(torch.flatten(F.avg_pool2d(x, x.shape[-2:]), 1))
        return logits, masks, probabilities


def skipnet_as_published(depth: int = 38, num_classes: int = 10) -> PublishedSkipNet:
    """A SkipNet with recurrent gates for inputs as CIFAR's, in the authors' masked form.

    Args:
        depth: 6n+2 (the paper: 38, 74, 110, 152).
        num_classes: outputs.

    Raises:
        ValueError: there is no such network of this depth.
    """
    block, layers = architecture(depth, "cifar")
    return PublishedSkipNet(block, layers, num_classes)
