"""A SkipNet as its authors write it, masked, and other networks with control flow of their own, beside ours."""

import numpy as np
import torch
from torch import nn

from dynbench.dynamic import Skip
from dynbench.models.resnet import resnet
from dynbench.models.skipnet import skipnet
from dynbench.models.skipnet_published import skipnet_as_published


def authors(depth: int = 8) -> nn.Module:
    """The published form, with the weights that our form begins with."""
    ours, net = skipnet(depth), skipnet_as_published(depth)  # in this order: the same random numbers as our form alone
    net.load_state_dict(ours.state_dict())
    return net


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
