"""How many numbers a model has learned."""

from __future__ import annotations

from torch import nn


def count_params(model: nn.Module) -> int:
    """Parameters of a model, gates included, shared ones once; buffers are none."""
    return sum(p.numel() for p in model.parameters())
