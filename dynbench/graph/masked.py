"""Masking as a graph, for reference: everything is computed for everyone, and what was not decided for is dropped."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynbench.dynamic import Loop, Pick, Program
from dynbench.dynamic.context import Execution
from dynbench.dynamic.items import first, map_items, select
from dynbench.graph.refused import scheduled_on_the_host
from dynbench.strategies import Masking


class Masked(Masking):
    """As `Masking`; no number of items is taken from the example that is traced."""

    name = "masked"

    def loop(self, ex: Execution, point: Loop, state: Any) -> Any:
        """All steps for all; an item's answer freezes when it halts."""
        done: Tensor | None = None  # of nobody
        answer = None
        for k in range(point.max_steps):
            if done is None:
                state, new, halted = point.once(ex, state, k)
            else:
                with ex.only(~done):
                    state, new, halted = point.once(ex, state, k)
            answer = new if answer is None or done is None else select(done, answer, new)
            if halted is not None:
                done = halted if done is None else done | halted
        return answer

    def pick(self, ex: Execution, point: Pick, x: Any, at: Tensor, weights: Tensor | None) -> Any:
        """All parts; the results of those that were not picked are dropped."""
        parts = int(first(x).shape[1])
        hit = at.unsqueeze(2) == torch.arange(parts)  # [n, k, parts]
        y = point.body(x, at) if weights is None else point.body(x, at, (weights.unsqueeze(2) * hit).sum(1))
        if not point.back:
            return y
        done = select(hit.any(1).flatten(), *(map_items(lambda t: t.flatten(0, 1), s) for s in (y, x)))
        return map_items(lambda t: t.unflatten(0, (-1, parts)), done)

    def program(self, ex: Execution, point: Program, x: Any, layouts: Tensor) -> Any:
        """Refused: a program is scheduled on the host."""
        raise scheduled_on_the_host(point)
