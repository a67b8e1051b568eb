"""A SkipNet as its authors write it, masked, and other networks with control flow of their own, beside ours."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from dynbench.dynamic import Skip
from dynbench.experiment.weights import load_weights
from dynbench.models.resnet import resnet
from dynbench.models.skipnet import SkipNet, skipnet


class Control(nn.Module):
    """The recurrent gate of the authors' code: an LSTM over sequences of one step, its state kept between calls."""

    def __init__(self, net: SkipNet) -> None:
        super().__init__()
        ours = net.control
        self.rnn, self.proj, self.prob = nn.LSTM(10, 10), nn.Conv2d(10, 1, 1), nn.Sigmoid()
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(self.rnn, f"{name}_l0").data = getattr(ours.rnn, name).data
        self.proj.weight.data, self.proj.bias.data = ours.proj.weight.data[:, :, None, None], ours.proj.bias.data
        self.hidden = None

    def init_hidden(self, batch: int) -> None:
        self.hidden = (torch.zeros(1, batch, 10), torch.zeros(1, batch, 10))

    def forward(self, x):
        batch = x.size(0)
        out, self.hidden = self.rnn(x.view(1, batch, -1), self.hidden)
        prob = self.prob(self.proj(out.squeeze(0)[:, :, None, None]))
        mask = (prob > 0.5).float().detach() - prob.detach() + prob
        return mask, prob


class Masked(nn.Module):
    """Every block for every input, times a mask of 0 and 1: x = mask * block(x) + (1 - mask) * previous."""

    def __init__(self, net: SkipNet) -> None:
        super().__init__()
        self.conv1, self.bn1, self.fc, self.control = net.conv1, net.bn1, net.fc, Control(net)
        self.blocks = nn.ModuleList(net.blocks())
        self.gates = nn.ModuleList(self.gate(skip.gate.embed) for skip in net.skips)

    def gate(self, ours: nn.Linear) -> nn.Module:
        conv = nn.Conv2d(ours.in_features, 10, 1)
        conv.weight.data, conv.bias.data = ours.weight.data[:, :, None, None], ours.bias.data
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), conv)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        self.control.init_hidden(x.size(0))
        masks, probs = [], []
        prev = x = self.blocks[0](x)
        mask, prob = self.control(self.gates[0](x))
        for i, block in enumerate(self.blocks[1:], start=1):
            if block.downsample is not None:
                prev = block.downsample(prev)
            x = block(x)
            prev = x = mask.expand_as(x) * x + (1 - mask).expand_as(prev) * prev
            masks.append(mask.squeeze())
            if i < len(self.gates):
                mask, prob = self.control(self.gates[i](x))
                probs.append(prob)
        return self.fc(x.mean((2, 3))), masks, probs


def authors(depth: int = 8, weights: str | None = None) -> nn.Module:
    net = skipnet(depth)
    if weights is not None:
        load_weights(net, Path(weights))
    return Masked(net)


class Ours(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(3)]
        self.skips = nn.ModuleList(Skip(f"s{i}", Score(), layer) for i, layer in enumerate(layers))

    def forward(self, x):
        for skip in self.skips:
            x, _ = skip(x)
        return x


class Score(nn.Module):
    def forward(self, x, carry):
        return x.mean(1), carry


class OwnIf(nn.Module):
    """The same by plain `if`s, one item after the other; `wrong`: the condition is another one."""

    def __init__(self, wrong: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(skip.body for skip in Ours().skips)
        self.wrong = wrong

    def forward(self, x):
        done = []
        for row in x.split(1):
            for layer in self.layers:
                if bool(row.mean() > 0) != self.wrong:
                    row = layer(row)
            done.append(row)
        return torch.cat(done)


def ours() -> nn.Module:
    return Ours()


def own_if(wrong: bool = False) -> nn.Module:
    return OwnIf(wrong)


def narrow() -> nn.Module:
    return nn.Linear(8, 3)


def static() -> nn.Module:
    return nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(3)))


def raises() -> nn.Module:
    return nn.Linear(3, 3)


def our_skipnet(depth: int = 8) -> nn.Module:
    return skipnet(depth)


def our_resnet(depth: int = 8) -> nn.Module:
    return resnet(depth)


def features(split, seed=0):
    return np.random.default_rng(seed).normal(size=(64, 8)).astype("float32")


def images(split, seed=0):
    return np.random.default_rng(seed).normal(size=(16, 3, 8, 8)).astype("float32")
