"""masking: everything for everyone, then select. What most published code does, and the form that trains."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynbench.dynamic import Loop, Pick, Route, Skip, Weights
from dynbench.dynamic.context import Execution
from dynbench.dynamic.items import count, first, map_items, select, wide
from dynbench.dynamic.program import ARGUMENTS, WORD, Program
from dynbench.strategies.base import Strategy, together


class Masking(Strategy):
    """Computes every expert and every step for all items and never looks at a decision on the host."""

    name = "masking"
    trains = True
    fixed_work = True

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

    def pick(self, ex: Execution, point: Pick, x: Any, at: Tensor, weights: Tensor | None) -> Any:
        """All parts; the body gets the places of those that are there, and its results for the others are dropped."""
        shape = first(x).shape[:2]
        with ex.phase("body", point.name):
            if weights is None:
                y = point.body(x, at)
            else:
                y = point.body(x, at, weights.new_zeros(shape).scatter(1, at, weights))
        if not point.back:
            return y
        with ex.phase("scatter"):
            picked = torch.zeros(shape, dtype=torch.bool, device=at.device).scatter(1, at, True).flatten()
            done = select(picked, *(map_items(lambda t: t.flatten(0, 1), s) for s in (y, x)))
            return map_items(lambda t: t.unflatten(0, shape), done)

    def program(self, ex: Execution, point: Program, x: Any, layouts: Tensor) -> Any:
        """Every distinct wiring of modules for the whole batch, then select."""
        nodes, device = layouts.shape[1], first(x).device
        wiring = torch.cat([layouts[:, :, :WORD], layouts[:, :, ARGUMENTS:]], 2)
        distinct, which = wiring.unique(dim=0, return_inverse=True)
        words, which = layouts[:, :, WORD].clamp(min=0).to(device), which.to(device)
        answers = None
        for w, rows in enumerate(distinct.tolist()):
            mine = which == w
            values: list[Any] = []
            for j, (op, *args) in enumerate(rows):
                if op < 0:
                    break
                given = [values[a] for a in args[: point.ops[op].arguments]]
                word = words[:, j] * mine  # other items' words may belong to another module
                with ex.only(mine), ex.at(j, nodes), ex.phase("body", point.name, op):
                    values.append(point.call(op, x, given, word))
            with ex.phase("scatter"):
                y = values[-1]
                answers = y if answers is None else select(mine, y, answers)
        return answers

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
        return together(ex, point, x, code)
