"""The number of parameters of a model."""

from __future__ import annotations

from torch import nn


def count_params(model: nn.Module) -> int:
    """The parameters of a model, gates included, shared ones once; buffers do not count."""
    return sum(p.numel() for p in model.parameters())
