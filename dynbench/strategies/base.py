"""What all strategies share: reasons to refuse, and how an item that is alone is served."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dynbench.dynamic import Loop, Pick, Route, Skip, Weights
from dynbench.dynamic.context import Execution
from dynbench.dynamic.items import blank, first, map_items, put_, take, wide, zeros
from dynbench.dynamic.program import ARGUMENTS, MODULE, WORD, Program

BatchNorm = nn.modules.batchnorm._BatchNorm


class Strategy:
    """How decided work is executed: `route`, `loop` and `weights`; the other words are made of these.

    Attributes:
        name: unique among strategies.
        trains: it is the form that trains.
        static_twin: it makes no decision at all; its answer is another function of the input, by intention.
        fixed_work: it executes the same whatever is decided.
        item_by_item: it computes each item alone, so that the batch size makes no difference to its time per item.
    """

    name: str
    trains = False
    static_twin = False
    fixed_work = False
    item_by_item = False

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

    def ahead(self, ex: Execution, keep: dict[str, Tensor]) -> None:
        """keep: decisions of several Skips, by name, [n] bool each, before the first is reached. Not used here."""

    def pick(self, ex: Execution, point: Pick, x: Any, at: Tensor, weights: Tensor | None) -> Any:
        """x [n, T, ...], at [n, k] long, weights [n, k] or None -> y: the picked parts gathered, computed, put back."""
        return point.gathered(ex, x, at, weights)

    def program(self, ex: Execution, point: Program, x: Any, layouts: Tensor) -> Any:
        """x [n, ...], layouts [n, N, 2 + A] long on the CPU -> answers [n, ...].

        A Route over (item, node) pairs at each depth: each module is called once per depth, with all its nodes.
        """
        n, nodes = layouts.shape[:2]
        if n == 1:
            return one_program(ex, point, x, layouts[0])
        groups, table = point.schedule(layouts)
        with ex.phase("gather"):
            table = table.to(first(x).device)
            values = point.blank(x, n * nodes)
        answers = None
        for op, rows in groups:
            sample, node, word, *args = table[rows].unbind(1)
            with ex.phase("gather"):
                own = take(x, sample) if point.ops[op].looks else None
                place = sample * nodes
                given = [values.index_select(0, place + a) for a in args[: point.ops[op].arguments]]
            with ex.narrow(sample), ex.at(node, nodes), ex.phase("body", point.name, op):
                y = point.call(op, own, given, word)
            with ex.phase("scatter"):
                if op < point.first_head:
                    values = values.index_copy(0, place + node, y) if y.requires_grad else put_(values, place + node, y)
                elif y.shape[0] == n:
                    answers = put_(blank(y, n), sample, y)
                else:
                    answers = put_(blank(y, n) if answers is None else answers, sample, y)
        return answers

    def loop(self, ex: Execution, point: Loop, state: Any) -> Any:
        """state [n, ...] -> the items' answers [n, ...], in their order."""
        raise NotImplementedError

    def weights(self, ex: Execution, point: Weights, x: Any, code: Tensor) -> Any:
        """x [n, ...], code [n, ...] -> y [n, ...]."""
        raise NotImplementedError


def together(ex: Execution, point: Weights, x: Any, code: Tensor) -> Any:
    """Weights generated for every item, applied to the batch as one."""
    with ex.phase("decide", point.name):
        params = point.generate(code)
    with ex.phase("body", point.name):
        return point.layer(x, params)


def special(ex: Execution, point: Weights, codes: Tensor) -> list[Callable[[Any], Any]]:
    """The layer for each of the codes [m, ...], parameters generated in one go."""
    with ex.phase("decide", point.name):
        params = point.generate(codes)
    with ex.phase("gather", point.name):
        each = [map_items(lambda t, i=i: t[i], params) for i in range(codes.shape[0])]
        return [point.layer.special(one) for one in each]  # type: ignore[operator]


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
    return zeros(x, 1) if total is None else total  # dropped by every expert


def one_program(ex: Execution, point: Program, x: Any, layout: Tensor) -> Any:
    """A program for one item: its nodes one after the other, nothing is gathered. layout [N, 2 + A], on the CPU."""
    with ex.phase("sync"):
        words = layout[:, WORD : WORD + 1].clamp(min=0).to(first(x).device)  # [N, 1]
        rows = layout.tolist()
    values: list[Any] = []
    for j, line in enumerate(rows):
        op = line[MODULE]
        if op < 0:
            break
        args = [values[a] for a in line[ARGUMENTS : ARGUMENTS + point.ops[op].arguments]]
        with ex.at(j, len(rows)), ex.phase("body", point.name, op):
            values.append(point.call(op, x, args, words[j]))
    return values[-1]
