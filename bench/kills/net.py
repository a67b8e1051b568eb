"""A network so small that a run of it is mostly starting processes."""

import numpy as np
import torch
from torch import nn

from dynbench.dynamic import Skip
from dynbench.training.session import Session, Settings, cross_entropy


class Net(nn.Module):
    """One block that can be skipped."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Skip("block", lambda x, c: (x[:, 0], c), nn.Sequential(nn.Linear(8, 8), nn.ReLU()))
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        """Class scores, [n, 4]."""
        x, _ = self.block(x)
        return self.head(x)


def make() -> nn.Module:
    """The network."""
    torch.manual_seed(0)
    return Net()


def plain() -> nn.Module:
    """Its baseline."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))


def items(split: str, seed: int = 0, **_: object):
    """Made-up inputs [96, 8] and labels [96]."""
    generator = np.random.default_rng(seed + len(split))
    return generator.standard_normal((96, 8)).astype(np.float32), generator.integers(0, 4, 96)


def learn(session: Session) -> None:
    """The recipe of both networks."""
    for name, model in (("net", make()), ("plain", plain())):
        if not session.finished(name):
            settings = session.settings(Settings, name, epochs=40, batch_size=32, lr=0.01, precision="float32")
            session.save(name, model, {"training": session.fit(name, model, cross_entropy, settings)})
