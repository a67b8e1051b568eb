"""What all strategies share: reasons to refuse, and how an item that is alone is served."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dynbench.dynamic.context import Execution
from dynbench.dynamic.items import map_items, wide, zeros
from dynbench.dynamic.points import Loop, Route, Skip, Weights

BatchNorm = nn.modules.batchnorm._BatchNorm


class Strategy:
    """How decided work is executed: `route`, `loop` and `weights`; the other words are made of these."""

    name: str
    trains = False  # whether it is the form that trains

    def refuses(self, model: nn.Module) -> str | None:
        """Why this strategy means nothing for `model`, in a sentence; None: it does."""
        if self.trains:
            return None
        if any(isinstance(m, BatchNorm) and m.training for m in model.modules()):
            return (
                f"{self.name} shows batch norm in training mode fewer items, which changes the answer; "
                "masking is the form that trains"
            )
        return None

    def run(self, ex: Execution, model: nn.Module, args: tuple[Any, ...]) -> Any:
        """The model's answer for a batch."""
        return model(*args)

    def route(self, ex: Execution, point: Route | Skip, x: Any, chosen: Tensor, weights: Tensor | None) -> Any:
        """x [n, ...], chosen [n, k] long (-1: dropped), weights [n, k] or None -> y [n, ...]."""
        raise NotImplementedError

    def skip(self, ex: Execution, point: Skip, x: Any, keep: Tensor, soft: Tensor | None) -> Any:
        """x [n, ...], keep [n] bool -> y [n, ...]: a Route over {otherwise, body}. `soft` matters only in training."""
        return self.route(ex, point, x, keep.long().unsqueeze(1), None)

    def loop(self, ex: Execution, point: Loop, state: Any) -> Any:
        """state [n, ...] -> the items' answers [n, ...], in their order."""
        raise NotImplementedError

    def weights(self, ex: Execution, point: Weights, x: Any, code: Tensor) -> Any:
        """x [n, ...], code [n, ...] -> y [n, ...]."""
        raise NotImplementedError


def alone(ex: Execution, point: Route | Skip, x: Any, chosen: Tensor, weights: Tensor | None) -> Any:
    """Route for one item: its experts are called one after the other, nothing is gathered."""
    with ex.phase("sync"):
        picks = chosen[0].tolist()
    total = None
    for slot, e in enumerate(picks):
        if e < 0:
            continue
        expert = point.experts[e]
        with ex.phase("body", point.name, e):
            y = x if expert is None else expert(x)
        if weights is not None:
            w = weights[:, slot]
            y = map_items(lambda t, w=w: t * wide(w, t), y)
        total = y if total is None else map_items(torch.add, total, y)
    return zeros(x, 1) if total is None else total  # dropped by every expert: nothing is added
