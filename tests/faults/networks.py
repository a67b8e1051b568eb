"""Networks that misbehave, as a user's own file `net.py`."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dynbench.dynamic import Skip


class Net(nn.Module):
    """One skippable block; `how` says what happens in every forward pass, `point` what its decision point is called."""

    def __init__(self, how: str = "", flag: str = "", point: str = "block") -> None:
        super().__init__()
        self.how, self.flag = how, flag
        self.block = Skip(point, lambda x, c: (x[:, 0], c), nn.Sequential(nn.Linear(8, 8), nn.ReLU()))
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        self.misbehave()
        x, _ = self.block(x)
        return self.head(x)

    def misbehave(self) -> None:
        if self.how == "print":
            print("here I am [/b] \x1b[31m")
        elif self.how == "input":
            input("and you? ")
        elif self.how == "exit":
            raise SystemExit(0)
        elif self.how == "die":
            os._exit(0)
        elif self.how == "spin":
            Path(self.flag).touch()
            while True:
                time.sleep(0.001)
        elif self.how == "killed once" and not Path(self.flag).exists():
            Path(self.flag).touch()
            os.kill(os.getpid(), signal.SIGKILL)


def make(how: str = "", flag: str = "", point: str = "block") -> nn.Module:
    torch.manual_seed(0)
    return Net(how, flag, point)


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))


def other(how: str = "", flag: str = "") -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    net.register_forward_pre_hook(lambda *_: Net.misbehave(owner))
    owner = Net(how, flag)
    return net


def items(split: str, seed: int = 0, **_: object):
    generator = np.random.default_rng(seed + len(split))
    return generator.standard_normal((96, 8)).astype(np.float32), generator.integers(0, 4, 96)
