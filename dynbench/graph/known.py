"""Networks in a graph whose decisions are given and whose gates are left out: controls, to see what deciding takes."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from dynbench.dynamic import Loop
from dynbench.dynamic.context import Execution
from dynbench.graph.operators import blank, put, rows_of, take
from dynbench.graph.strategy import InGraph, OneItem, Tracing, _alone, among


class KnownInGraph(InGraph):
    """As `InGraph`; in a loop a head runs for the items alone that leave by it."""

    name = "known_in_graph"

    def _in_turn(self, ex: Execution, point: Loop, state: Any) -> Any:
        """Step after step, and after each the answers of those who leave."""
        if ex.gates:
            return super()._in_turn(ex, point, state)
        there: Tensor | None = None
        answer: Any = None
        state, halted = _stepped(ex, point, 0, state)
        everybody = halted
        for k in range(point.max_steps - 1):
            assert halted is not None and everybody is not None  # as after every step but the last
            leave, stay = rows_of(halted), rows_of(~halted)
            leaving, there = among(there, leave), among(there, stay)
            y = self.on(ex, leaving, take(state, leave), partial(_headed, point, k), gathered=True)
            answer = put(blank(y, everybody) if answer is None else answer, leaving, y)
            state, halted = self.on(ex, there, take(state, stay), partial(_stepped, ex, point, k + 1), gathered=True)
        return state if there is None else put(answer, there, state)

    def _from(self, ex: Execution, point: Loop, state: Any, k: int) -> Any:
        """The answers of those who leave here, and of the others."""
        if ex.gates or point.halt is None or k == point.max_steps - 1:
            return super()._from(ex, point, state, k)
        with ex.at(k, point.max_steps):
            state = point.step(state, k)
            halted = ex.known(point)
        leave, stay = rows_of(halted), rows_of(~halted)
        y = self.on(ex, leave, state, lambda s: _headed(point, k, s))
        z = self.on(ex, stay, state, lambda s: self._from(ex, point, s, k + 1))
        return put(put(blank(y, halted), leave, y), stay, z)


class KnownOneItem(KnownInGraph, OneItem):
    """As `OneItem`; in a loop a head runs where the item leaves by it."""

    name = "known_one_item"

    def _from(self, ex: Execution, point: Loop, state: Any, k: int) -> Any:
        """The item's answer: this step's, with its head, where it halts."""
        if ex.gates or not _alone(ex) or point.halt is None or k == point.max_steps - 1:
            return super()._from(ex, point, state, k)
        assert isinstance(ex, Tracing)
        with ex.at(k, point.max_steps):
            state = point.step(state, k)
            halted = ex.known(point)
        return ex.lazily(halted, lambda: _headed(point, k, state), lambda: self._from(ex, point, state, k + 1))


def _headed(point: Loop, k: int, state: Any) -> Any:
    return state if point.head is None else point.head(state, k)


def _stepped(ex: Execution, point: Loop, k: int, state: Any) -> tuple[Any, Tensor | None]:
    """(state after step k, which items halt); after the last step (the answer, None)."""
    with ex.at(k, point.max_steps):
        state = point.step(state, k)
        if k == point.max_steps - 1:
            return _headed(point, k, state), None
        return state, ex.known(point)
