"""The decisions that are replayed: made up, with rates that are known."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dynbench.dynamic import Trace, points
from dynbench.dynamic.sources import synthetic
from dynbench.dynamic.trace import Entry, Key
from dynbench.models.idk import IDKCascade
from dynbench.models.skipnet import SkipNet


def halving(net: IDKCascade, items: int) -> Trace:
    """Half of those still there leave at each level but the last."""
    levels = len(net.classifiers)
    rank = torch.randperm(items, generator=torch.Generator().manual_seed(0))
    knows = torch.stack([rank >= items // 2 ** (k + 1) for k in range(levels)], 1)
    return total(net, {("cascade", (levels,)): knows.flatten()}, items)


def coins(net: SkipNet, items: int, keep_rate: float) -> Trace:
    """Every block runs for every item with the same probability, independently: a synthetic trace."""
    names = [skip.name for skip in net.skips]
    empty = total(net, {(name, ()): torch.zeros(items, dtype=torch.bool) for name in names}, items)
    return synthetic(empty, net, keep_rate=keep_rate)


def total(net: nn.Module, values: dict[Key, Tensor], items: int) -> Trace:
    """A trace in which everything was asked."""
    entries = {key: Entry(value, torch.ones(value.shape[0], dtype=torch.bool)) for key, value in values.items()}
    return Trace(entries, items, "", frozenset(points(net)))
