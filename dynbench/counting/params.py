"""The number of parameters of a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn


def count_params(model: nn.Module) -> int:
    """The parameters of a model, gates included, shared ones once; buffers do not count.

    Weights that quantised layers keep packed, and not as parameters, count as well.
    """
    return sum(p.numel() for p in model.parameters()) + sum(p.numel() for p in _packed(model))


def _packed(model: nn.Module) -> Iterator[Tensor]:
    module: Any  # what quantised layers have besides, no type knows
    for module in model.modules():
        kept: Any = []
        if hasattr(module, "_weight_bias") and callable(getattr(module, "weight", None)):  # layers of torch.ao
            kept = module._weight_bias()
        elif hasattr(module, "get_weight") and hasattr(module, "get_bias"):  # recurrent ones: tables by name
            kept = [*module.get_weight().values(), *module.get_bias().values()]
        yield from (t for t in kept if isinstance(t, Tensor))
