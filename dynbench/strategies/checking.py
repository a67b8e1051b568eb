"""A pass over a model that checks what each of its parts returns, before anything is measured or compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dynbench.dynamic import DecisionPoint, Execution, Loop, Pick, Route, Skip, Weights, points
from dynbench.dynamic.context import Frame
from dynbench.dynamic.faults import (
    ModelError,
    check_alike,
    check_items,
    check_no_nan,
    check_range,
    check_tensor,
    told,
)
from dynbench.dynamic.items import first, map_items, tensors
from dynbench.dynamic.point import Wanted
from dynbench.dynamic.program import Program
from dynbench.strategies.masking import Masking

CHECKED_ITEMS = (12, 1)  # of two batches: what only happens to fit one of them does not fit the other


@torch.inference_mode()
def check_model(model: nn.Module, *inputs: Any) -> None:
    """Runs every part of a model on a few items, and checks at each decision point what they return.

    Args:
        model: with decision points or without; in evaluation mode.
        *inputs: states of tensors [n, ...]; the first items are used.

    Raises:
        ModelError: a part returns something else than its point takes, a point is asked twice about an item, or the
            model's own code fails; in one sentence that names the point.
    """
    if not points(model):
        return
    with torch.random.fork_rng(devices=[]):
        for n in CHECKED_ITEMS:
            _Checked().run(model, *(map_items(lambda t, n=n: t[:n], part) for part in inputs))


class _Checked(Execution):
    """An execution under `_Checking` that looks at every decision. It records, so that none is made twice."""

    def __init__(self) -> None:
        super().__init__(_Checking(), record=True)

    def decide(self, point: DecisionPoint, scores: Tensor, rule: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """The model's own decision, if it and the scores that it comes from are what the point takes."""
        n, device = _items(self.frame)
        wanted = point.wanted(n)
        check_tensor(point, wanted, scores, device)
        check_no_nan(point, wanted, scores, self.frame.live)
        decision = scores if rule is None else rule(scores)
        check_items(point, "its rule gave", decision, n, device)
        point.check_decision(decision)
        return super().decide(point, decision)


class _Checking(Masking):
    """Masking that looks at what goes into a point and at what its parts return."""

    name = "checking"

    def run(self, ex: Execution, model: nn.Module, args: tuple[Any, ...]) -> Any:
        """The answer: tensors, or one that has the items of the batch first."""
        n, answer = first(args).shape[0], super().run(ex, model, args)
        alone = isinstance(answer, Tensor) and (answer.dim() == 0 or answer.shape[0] != n)
        if alone or next(tensors(answer), None) is None:
            raise ModelError(f"the model answers {n} items by {told(answer)}; wanted tensors [{n}, ...]")
        return answer

    def skip(self, ex: Execution, point: Skip, x: Any, keep: Tensor, soft: Tensor | None) -> Any:
        """Body and otherwise return the same kind of state."""
        n, device = _given(ex, point, x)
        done: list[Any] = []

        def body(x: Any) -> Any:
            y = point.body(x)
            check_items(point, "the body gave", y, n, device)
            if point.otherwise is None:
                check_alike(point, "the body gave", y, x, "the shape of an item that skips it")
            done.append(y)
            return y

        def otherwise(x: Any) -> Any:
            assert point.otherwise is not None
            z = point.otherwise(x)
            check_items(point, "otherwise gave", z, n, device)
            check_alike(point, "the body gave", done[0], z, "as otherwise gave")
            return z

        watched = _watched(point, body=body, otherwise=point.otherwise and otherwise)
        return super().skip(ex, watched, x, keep, soft)

    def route(self, ex: Execution, point: Route | Skip, x: Any, chosen: Tensor, weights: Tensor | None) -> Any:
        """All experts return the same kind of state; there is a weight for each that is chosen."""
        n, device = _given(ex, point, x)
        if weights is not None:
            check_tensor(point, Wanted("weigh gave weights", (n, chosen.shape[1])), weights, device)
        done: list[Any] = []

        def called(e: int, expert: nn.Module | None, x: Any) -> Any:
            y = x if expert is None else expert(x)
            check_items(point, f"expert {e} gave", y, n, device)
            check_alike(point, f"expert {e} gave", y, done[0] if done else y, "as expert 0 gave")
            done.append(y)
            return y

        experts = [partial(called, e, expert) for e, expert in enumerate(point.experts)]
        return super().route(ex, _watched(point, experts=experts), x, chosen, weights)

    def pick(self, ex: Execution, point: Pick, x: Any, at: Tensor, weights: Tensor | None) -> Any:
        """The picked parts are there; the body keeps the items, and where its answer is put back their shape."""
        n, device = _given(ex, point, x)
        check_range(point, "it picked part", at, 0, first(x).shape[1])
        if weights is not None:
            check_tensor(point, Wanted("weigh gave weights", (n, at.shape[1])), weights, device)

        def body(x: Any, *where: Any) -> Any:
            y = point.body(x, *where)
            check_items(point, "the body gave", y, n, device)
            if point.back:
                check_alike(point, "the body gave", y, x, "the shape of the parts that are not picked")
            return y

        return super().pick(ex, _watched(point, body=body), x, at, weights)

    def program(self, ex: Execution, point: Program, x: Any, layouts: Tensor) -> Any:
        """A module returns a value, and all heads the same kind of answer."""
        n, device = _given(ex, point, x)
        answers: list[Any] = []

        def call(op: int, x: Any, args: Sequence[Tensor], word: Tensor) -> Any:
            y = point.call(op, x, args, word)
            if op < point.first_head:
                check_tensor(point, Wanted(f"module {op} gave", (n, *point.shape)), y, device)
                return y
            check_items(point, f"head {op} gave", y, n, device)
            check_alike(point, f"head {op} gave", y, answers[0] if answers else y, "as the other heads gave")
            answers.append(y)
            return y

        return super().program(ex, _watched(point, call=call), x, layouts)

    def loop(self, ex: Execution, point: Loop, state: Any) -> Any:
        """Each step keeps the items, and all answers are alike."""
        n, device = _given(ex, point, state)
        answers: list[Any] = []

        def once(ex: Execution, state: Any, k: int) -> tuple[Any, Any, Tensor | None]:
            state, answer, halted = point.once(ex, state, k)
            check_items(point, f"step {k} gave", state, n, device)
            if halted is not None or k == point.max_steps - 1:
                check_items(point, f"step {k} answered", answer, n, device)
                check_alike(point, f"step {k} answered", answer, answers[0] if answers else answer, "as step 0 did")
                answers.append(answer)
            return state, answer, halted

        return super().loop(ex, _watched(point, once=once), state)

    def weights(self, ex: Execution, point: Weights, x: Any, code: Tensor) -> Any:
        """Parameters are generated for each item, and the layer keeps the items."""
        n, device = _given(ex, point, x)
        if not point.shared:  # no decision, so nobody has looked at the codes
            check_tensor(point, point.wanted(n), code, device)

        def generate(code: Tensor) -> Any:
            params = point.generate(code)
            check_items(point, "generate gave", params, n, device)
            return params

        def layer(x: Any, params: Any) -> Any:
            y = point.layer(x, params)
            check_items(point, "the layer gave", y, n, device)
            return y

        return super().weights(ex, _watched(point, generate=generate, layer=layer), x, code)


def _watched(point: DecisionPoint, **parts: Any) -> Any:
    """A decision point as a strategy sees it, with some of its parts replaced."""
    return _Watched(point, parts)


class _Watched:
    def __init__(self, point: DecisionPoint, parts: dict[str, Any]) -> None:
        self._point = point
        self.__dict__.update(parts)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._point, name)


def _items(frame: Frame) -> tuple[int, torch.device]:
    """How many items are computed now, and where."""
    return frame.ids.shape[0], frame.ids.device


def _given(ex: Execution, point: DecisionPoint, x: Any) -> tuple[int, torch.device]:
    """How many items are computed now, and where; x, which the point was given, has them."""
    n, device = _items(ex.frame)
    check_items(point, "it was given", x, n, device)
    return n, device
