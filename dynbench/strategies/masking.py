"""masking: everything for everyone, then select. What most published code does, and the form that trains."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynbench.dynamic.context import Execution
from dynbench.dynamic.items import count, first, map_items, select, wide
from dynbench.dynamic.points import Loop, Route, Skip, Weights
from dynbench.strategies.base import Strategy


class Masking(Strategy):
    """Computes every expert and every step for all items and never looks at a decision on the host."""

    name = "masking"
    trains = True

    def route(self, ex: Execution, point: Route | Skip, x: Any, chosen: Tensor, weights: Tensor | None) -> Any:
        """Every expert on every item, then select."""
        out = None
        for e, expert in enumerate(point.experts):
            hit = chosen == e  # [n, k]
            mine = hit.any(1)
            with ex.only(mine), ex.phase("body", point.name, e):
                y = x if expert is None else expert(x)
            with ex.phase("scatter"):
                if weights is not None:
                    w = (weights * hit).sum(1)
                    y = map_items(lambda t, w=w: t * wide(w, t), y)
                # select before adding: 0 * inf is not 0
                rest = map_items(torch.zeros_like, y) if out is None or weights is not None else out
                y = select(mine, y, rest)
                out = y if out is None or weights is None else map_items(torch.add, out, y)
        return out

    def skip(self, ex: Execution, point: Skip, x: Any, keep: Tensor, soft: Tensor | None) -> Any:
        """Body and otherwise for everyone, then select; in training, mix, so that the gate learns."""
        with ex.only(keep), ex.phase("body", point.name, 1):
            y = point.body(x)
        z = x
        if point.otherwise is not None:
            with ex.only(~keep), ex.phase("body", point.name, 0):
                z = point.otherwise(x)
        with ex.phase("scatter"):
            if soft is None:
                return select(keep, y, z)
            return map_items(lambda a, b: b + wide(soft, a) * (a - b), y, z)

    def loop(self, ex: Execution, point: Loop, state: Any) -> Any:
        """All steps for all; an item's answer freezes when it halts, its state need not."""
        done = torch.zeros(count(state), dtype=torch.bool, device=first(state).device)
        answer = None
        for k in range(point.max_steps):
            with ex.only(~done):
                state, new, halted = point.once(ex, state, k)
            with ex.phase("scatter"):
                answer = new if answer is None else select(done, answer, new)
                if halted is not None:
                    done = done | halted
        return answer

    def weights(self, ex: Execution, point: Weights, x: Any, code: Tensor) -> Any:
        """Per-item weights, generated for every item, applied to the batch."""
        with ex.phase("decide", point.name):
            params = point.generate(code)
        with ex.phase("body", point.name):
            return point.layer(x, params)
