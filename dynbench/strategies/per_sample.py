"""per_sample: one item at a time, really branching. What papers assume, and the oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from dynbench.dynamic import Loop, Route, Skip, Weights, widest_scope
from dynbench.dynamic.context import Execution
from dynbench.dynamic.items import cat, count, joined_answers, row
from dynbench.dynamic.program import Program
from dynbench.strategies.base import Strategy, alone, one_program, special
from dynbench.strategies.compaction import Compaction


class PerSample(Strategy):
    """Every item alone; where a model couples items by its own definition, one coupling scope at a time."""

    name = "per_sample"
    item_by_item = True

    def run(self, ex: Execution, model: nn.Module, args: tuple[Any, ...]) -> Any:
        """The model on one sample after the other; on the batch where a point couples the batch."""
        if widest_scope(model) == "batch":
            return model(*args)
        return self._each(ex, args, lambda a: model(*a), joined_answers)

    def _each(
        self, ex: Execution, state: Any, f: Callable[[Any], Any], joined: Callable[[list[Any]], Any] = cat
    ) -> Any:
        n = count(state)
        if n == 1:
            return f(state)
        done = []
        for i in range(n):
            with ex.narrow(slice(i, i + 1)):
                done.append(f(row(state, i)))
        return joined(done)

    def route(self, ex: Execution, point: Route | Skip, x: Any, chosen: Tensor, weights: Tensor | None) -> Any:
        """Each item's experts, one after the other."""
        return self._each(ex, (x, chosen, weights), lambda s: alone(ex, point, *s))

    def program(self, ex: Execution, point: Program, x: Any, layouts: Tensor) -> Any:
        """Each item's program, node by node."""
        return self._each(ex, (x, layouts), lambda s: one_program(ex, point, s[0], s[1][0]))

    def loop(self, ex: Execution, point: Loop, state: Any) -> Any:
        """Each item's steps until it halts; items that a step couples, of a sample or a batch, step together."""
        if point.widest_scope != "item":
            return Compaction().loop(ex, point, state)

        def one(state: Any) -> Any:
            for k in range(point.max_steps):
                state, answer, halted = point.once(ex, state, k)
                with ex.phase("sync"):
                    if halted is not None and bool(halted):
                        break
            return answer

        return self._each(ex, state, one)

    def weights(self, ex: Execution, point: Weights, x: Any, code: Tensor) -> Any:
        """Each item's own layer."""

        def one(s: Any) -> Any:
            x, code = s
            (layer,) = special(ex, point, code)
            with ex.phase("body", point.name):
                return layer(x)

        return self._each(ex, (x, code), one)
