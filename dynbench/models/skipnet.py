"""SkipNet: whether a residual block runs is decided for each input.

Wang, Yu, Dou, Darrell, Gonzalez, "SkipNet: Learning Dynamic Routing in Convolutional Networks", ECCV 2018
(arXiv 1711.09485). Where the paper leaves a choice open, the authors' code decides (ucbdrive/skipnet, cifar/models.py
and imagenet/models.py).

At batch 1 their code runs only with recurrent gates on CIFAR: their feed-forward gates, and the recurrent ones of
ImageNet, remove the dimension of a single input (`squeeze()`) and then index it. It computes every block and mixes by
the gate, and where the shape changes it computes the shortcut twice.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.dynamic import Trace
from dynbench.dynamic.items import wide
from dynbench.models.accounting import run_rate, static_macs
from dynbench.models.resnet import BlockKind, ResNet, architecture, block_names, conv3x3, skip_block
from dynbench.models.sharing import shared_once
from dynbench.models.typed import module_list

PAPER = "Wang et al., SkipNet: Learning Dynamic Routing in Convolutional Networks, ECCV 2018"
PROVENANCE = "paper, section 3; details as in the authors' code"

GateKind = Literal["rnn", "ff1", "ff2"]
Gating = Literal["soft", "hard"]
Carry = tuple[Tensor, Tensor]  # the LSTM's hidden and cell state, each [n, 10]
EMBEDDING = HIDDEN = 10


class Control(nn.Module):
    """The LSTM that all recurrent gates share, and the projection of its output (section 3.1)."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTMCell(EMBEDDING, HIDDEN)
        self.proj = nn.Linear(HIDDEN, 1)

    def forward(self, e: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """Embedding e [n, 10] and the state so far -> (logit of p [n], state)."""
        rnn, proj = self.rnn, self.proj
        # plain functions: calling three modules takes as long as computing so little
        h, c = torch.lstm_cell(e, carry, rnn.weight_ih, rnn.weight_hh, rnn.bias_ih, rnn.bias_hh)
        return F.linear(h, proj.weight, proj.bias).squeeze(1), (h, c)


class RNNGate(nn.Module):
    """Recurrent gate: average pool over the whole map, a 1x1 convolution of the block's own, the shared LSTM.

    Args:
        embed: the block's own 1x1 convolution; after pooling it is a linear layer.
        control: shared by all gates.
    """

    def __init__(self, embed: nn.Linear, control: Control) -> None:
        super().__init__()
        self.embed, self.control = embed, control

    def forward(self, x: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """x [n, C, H, W], the previous block's output -> (logit of p [n], state)."""
        e = F.linear(x.mean((2, 3)), self.embed.weight, self.embed.bias)  # [n, 10]
        return self.control.forward(e, carry)


class FFGateI(nn.Module):
    """Feed-forward gate of networks below 100 layers (section 3.1): two 3x3 convolutions on a pooled map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3x3(channels, channels), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = conv3x3(channels, channels, stride=2), nn.BatchNorm2d(channels)
        self.linear_layer = nn.Conv2d(channels, 2, 1)

    def forward(self, x: Tensor, carry: None) -> tuple[Tensor, None]:
        """x [n, C, H, W], the previous block's output -> (logit of p [n], None)."""
        y = F.max_pool2d(x, 2)  # [n, C, H/2, W/2]
        y = F.relu(self.bn1(self.conv1(y)))
        y = F.relu(self.bn2(self.conv2(y)))  # [n, C, H/4, W/4]
        return _of_two(self.linear_layer(y.mean((2, 3), keepdim=True))), None


class FFGateII(nn.Module):
    """Feed-forward gate of networks above 100 layers (section 3.1): one 3x3 convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3x3(channels, channels, stride=2), nn.BatchNorm2d(channels)
        self.linear_layer = nn.Conv2d(channels, 2, 1)

    def forward(self, x: Tensor, carry: None) -> tuple[Tensor, None]:
        """x [n, C, H, W], the previous block's output -> (logit of p [n], None)."""
        y = F.relu(self.bn1(self.conv1(x)))  # [n, C, H/2, W/2]
        return _of_two(self.linear_layer(y.mean((2, 3), keepdim=True))), None


def _of_two(logits: Tensor) -> Tensor:
    """[n, 2, 1, 1] -> [n]: softmax(logits)[1] is the sigmoid of the difference, so p > 0.5 where it is positive."""
    logits = logits.flatten(1)
    return logits[:, 1] - logits[:, 0]


class SkipNet(ResNet):
    """x_{i+1} = g_i F_i(x_i) + (1 - g_i) x_i (eq. 1), F_i the whole residual block with shortcut and ReLU.

    The gate of a block sees the output of the block before it; the first block always runs. A skipped block that would
    change the shape is replaced by its own 1x1 shortcut with batch norm, *without* ReLU: the output may be negative.

    Args:
        block: BasicBlock or Bottleneck.
        layers: blocks per group.
        gate: 'rnn', 'ff1' (FFGate-I) or 'ff2' (FFGate-II).
        num_classes: outputs.
        dataset: 'cifar' or 'imagenet'.
    """

    def __init__(
        self,
        block: BlockKind,
        layers: tuple[int, ...],
        gate: GateKind,
        num_classes: int,
        dataset: str,
    ) -> None:
        super().__init__(block, layers, num_classes, dataset)
        self.control = Control() if gate == "rnn" else None
        gates: list[nn.Module] = []
        for g, count in enumerate(layers, start=1):
            channels = self.conv1.out_channels * 2 ** (g - 1) * block.expansion
            for i in range(count):
                if (g, i) != (len(layers), count - 1):  # there is nothing to decide after the last block
                    gates.append(self._add_gate(f"group{g}_gate{i}", gate, channels))
        init_as_authors(self)
        _, *bodies = zip(block_names(layers), self.blocks(), strict=True)  # the first block has no gate
        self.skips = module_list(
            skip_block(name, gate_before, body, relu=False)
            for (name, body), gate_before in zip(bodies, gates, strict=True)
        )
        shared_once(self)

    def _add_gate(self, name: str, kind: GateKind, channels: int) -> nn.Module:
        own: nn.Module
        if self.control is not None:
            own = nn.Linear(channels, EMBEDDING)
            self.add_module(name, own)
            return RNNGate(own, self.control)
        own = FFGateI(channels) if kind == "ff1" else FFGateII(channels)
        self.add_module(name, own)
        return own

    def forward(self, x: Tensor) -> Tensor:
        """x [n, 3, H, W] -> logits [n, num_classes]."""
        x, carry = self._before(x)
        for skip in self.skips:
            x, carry = skip(x, carry)
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits

    def _before(self, x: Tensor) -> tuple[Tensor, Carry | None]:
        """The part that always runs: x [n, 3, H, W] -> the first block's output, and the gates' initial state."""
        x, carry = self.stem(x), None
        if self.control is not None:
            zero = x.new_zeros(x.shape[0], HIDDEN)
            carry = (zero, zero)
        x = self.get_submodule("group1_layer0")(x)
        return x, carry


class Unskipped(SkipNet):
    """The paper's ablation (table 3): every block is computed for every input and mixed by its gate; nothing is saved.

    A static network, without decisions; it has the weights of a SkipNet.

    Args:
        gating: 'soft', g_i = p in eq. 1; or 'hard', g_i = 1 where p > 0.5, as a SkipNet under masking.
        **net: as for `SkipNet`.
    """

    def __init__(self, gating: Gating, **net: Any) -> None:
        super().__init__(**net)
        self.gating = gating

    def forward(self, x: Tensor) -> Tensor:
        """x [n, 3, H, W] -> logits [n, num_classes]."""
        return self.mixed(x)[0]

    def mixed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [n, 3, H, W] -> (logits [n, num_classes], p of every gate [N, n])."""
        x, carry = self._before(x)
        probabilities = []
        for skip in self.skips:
            assert skip.gate is not None
            logit, carry = skip.gate(x, carry)
            probabilities.append(torch.sigmoid(logit))
            g = wide(probabilities[-1] if self.gating == "soft" else (logit > 0).to(x.dtype), x)
            x = skip.begun(x)
            x = g * skip.body(x) + (1 - g) * (x if skip.otherwise is None else skip.otherwise(x))
        return self.fc(x.mean((2, 3))), torch.stack(probabilities)


def init_as_authors(net: nn.Module) -> None:
    """As in the authors' code: weights from N(0, sqrt(2 / n)), n = k k c_out of a convolution, else c_in c_out."""
    for name, m in net.named_modules():
        if isinstance(m, nn.Conv2d):
            nn.init.normal_(m.weight, 0, math.sqrt(2 / (m.kernel_size[0] * m.kernel_size[1] * m.out_channels)))
        elif isinstance(m, nn.Linear):  # that of a recurrent gate is a convolution in the authors' code
            n = m.out_features if "_gate" in name else m.weight.numel()
            nn.init.normal_(m.weight, 0, math.sqrt(2 / n))


def skipnet(depth: int = 38, gate: GateKind = "rnn", num_classes: int = 10, dataset: str = "cifar") -> SkipNet:
    """A SkipNet.

    The authors use FFGate-I below and FFGate-II above 100 layers, and only recurrent gates on ImageNet.

    Args:
        depth: 6n+2 for 'cifar' (the paper: 38, 74, 110, 152); 18, 34, 50, 101 or 152 for 'imagenet'.
        gate: 'rnn' (RNNGate), 'ff1' (FFGate-I) or 'ff2' (FFGate-II).
        num_classes: outputs.
        dataset: 'cifar' (inputs [n, 3, 32, 32], larger ones work) or 'imagenet' ([n, 3, 224, 224]).

    Raises:
        ValueError: there is no such network of this depth, with this gate or for this data set.
    """
    return SkipNet(**_net(depth, gate, num_classes, dataset))


def unskipped(
    depth: int = 38, gate: GateKind = "rnn", num_classes: int = 10, dataset: str = "cifar", gating: Gating = "soft"
) -> Unskipped:
    """A SkipNet that skips nothing: `gating` is 'soft' or 'hard'; other arguments and errors as for `skipnet`."""
    if gating not in ("soft", "hard"):
        raise ValueError(f"gating={gating!r}: gates mix 'soft' (by p) or 'hard' (by p > 0.5)")
    return Unskipped(gating, **_net(depth, gate, num_classes, dataset))


def _net(depth: int, gate: GateKind, num_classes: int, dataset: str) -> dict[str, Any]:
    if gate not in ("rnn", "ff1", "ff2"):
        raise ValueError(f"gate={gate!r}: a SkipNet has gates 'rnn' (RNNGate), 'ff1' (FFGate-I) or 'ff2' (FFGate-II)")
    if dataset == "imagenet" and gate != "rnn":
        raise ValueError(f"gate={gate!r}: on ImageNet a SkipNet has recurrent gates ('rnn') only")
    block, layers = architecture(depth, dataset)
    return {"block": block, "layers": layers, "gate": gate, "num_classes": num_classes, "dataset": dataset}


def from_author_checkpoint(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames a `state_dict` of the authors' code for `SkipNet.load_state_dict`.

    Left out: the shortcuts' second name `group{g}_ds{i}`, and the gate after the last block, which decides nothing.

    Args:
        state: the entry 'state_dict' of their checkpoint.
    """
    state = {name.removeprefix("module."): value for name, value in state.items()}
    blocks = [tuple(map(int, m.groups())) for n in state if (m := re.match(r"group(\d+)_layer(\d+)\.", n))]
    last_gate = "group{}_gate{}.".format(*max(blocks, default=(0, 0)))
    mapped = {}
    for name, value in state.items():
        if re.match(r"group\d+_ds\d+\.", name) or name.startswith(last_gate):
            continue
        if re.match(r"group\d+_gate\d+\.1\.weight", name) or name == "control.proj.weight":
            value = value.flatten(1)  # [10, C, 1, 1] -> [10, C]
        name = re.sub(r"(group\d+_gate\d+)\.1\.", r"\1.", name)
        mapped[re.sub(r"(control\.rnn\.\w+)_l0$", r"\1", name)] = value
    return mapped


def accounted_macs(model: SkipNet, trace: Trace, shape: tuple[int, ...]) -> tuple[float, str]:
    """As the authors' code counts: blocks run, every block weighing the same, gates not counted."""
    rates = [run_rate(trace, skip.name) for skip in model.skips]
    share = (sum(rates) + 1) / (len(rates) + 1)
    return share * static_macs(
        model, shape
    ), "(blocks run + 1) / blocks, every block weighing the same, gates not counted"
