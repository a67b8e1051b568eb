"""A network that makes a layer in its first forward, and one that writes its load beside its answer."""

import numpy as np
import torch
from torch import nn

from dynbench.dynamic import Exits, Skip


class Late(nn.Module):
    """Makes its layer when it sees its input."""

    def forward(self, x):
        if not hasattr(self, "project"):
            self.project = nn.Linear(x.shape[1], 8)
        return torch.relu(self.project(x))


def sure(answer, state, k):
    return answer.softmax(-1).amax(-1) > 0.3


def late():
    return Exits("exit", [Late() for _ in range(2)], [nn.Linear(8, 5) for _ in range(2)], sure)


def late_static():
    return nn.Sequential(Late(), Late(), nn.Linear(8, 5))


class Loaded(nn.Module):
    """Answers with the load of each of `kinds` experts, and a sum over the batch, beside the scores."""

    def __init__(self, kinds):
        super().__init__()
        self.router, self.head = nn.Linear(8, kinds), nn.Linear(8, 5)
        self.skip = Skip("skip", lambda x, carry: (x.mean(1), carry), nn.Linear(8, 8))

    def forward(self, x):
        x, _ = self.skip(x)
        shares = self.router(x).softmax(1)
        return {"logits": self.head(x), "load": shares.mean(0), "moments": x.sum(0)[None]}


def loaded(kinds=4):
    return Loaded(kinds)


class Random(nn.Module):
    """Draws its own decisions by plain ifs."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 5)

    def forward(self, x):
        return self.layer(x) * (torch.rand(len(x), 1) > 0.5)


def random():
    return Random()


class OverTheBatch(nn.Module):
    """Normalises over the items of a batch."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 5)

    def forward(self, x):
        y = self.layer(x)
        return y - y.mean(0, keepdim=True)


def over_the_batch():
    return OverTheBatch()


def only_of_the_batch():
    net = Loaded(4)
    skip = net.skip

    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.skip = skip

        def forward(self, x):
            return {"mean": self.skip(x)[0].mean(0)}

    return Mean()


def features(split, seed=0):
    return np.random.default_rng(seed).normal(size=(64, 8)).astype("float32")
