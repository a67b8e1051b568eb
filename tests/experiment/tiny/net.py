"""A user's own little networks and inputs, for the tests of the experiment room."""

import os
import time

import numpy as np
import torch
from torch import nn

from dynbench.dynamic import Exits, Skip


class Net(nn.Module):
    """Two skippable blocks, then two exits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 16)
        self.blocks = nn.ModuleList(
            Skip(f"block{i}", lambda x, c: (x[:, 0], c), nn.Sequential(nn.Linear(16, 16), nn.ReLU())) for i in range(2)
        )
        stages = [nn.Sequential(nn.Linear(16, 16), nn.ReLU()) for _ in range(2)]
        heads = [nn.Linear(16, 4) for _ in range(2)]
        self.exits = Exits("exit", stages, heads, lambda answer, state, k: answer.softmax(-1).amax(-1) > 0.3)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x, _ = block(x)
        return self.exits(x)


def make(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return Net()


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


class Dies(nn.Module):
    """Ends or hangs the process, as a bad kernel would; only in evaluation on a batch."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.inner = how, plain()

    def forward(self, x):
        if self.how == "exit":
            os._exit(7)
        if self.how == "hang":
            time.sleep(1000)
        if self.how == "raise":
            raise ValueError("no such kernel")
        if self.how == "memory":
            raise MemoryError("1 TB asked for")
        return self.inner(x)


def dies(how: str) -> nn.Module:
    return Dies(how)


def raises() -> nn.Module:
    raise ValueError("depth must be odd")


def items(split: str, seed: int = 0, **_: object):
    generator = np.random.default_rng(seed + len(split))
    return generator.standard_normal((160, 8)).astype(np.float32), generator.integers(0, 4, 160)
