"""Pick: which parts of an item are computed; how many is not decided."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dynbench.dynamic.context import Execution, current
from dynbench.dynamic.draw import Draw
from dynbench.dynamic.items import equal_weights, first, flat_parts, map_items, put_, take
from dynbench.dynamic.point import ANY, DecisionPoint, Wanted, modules_of
from dynbench.dynamic.trace import Entry


class Pick(DecisionPoint):
    """`body` for k parts of each item together, such as k tokens of a sample: which k is decided, how many is not.

    So all shapes are known beforehand: no strategy has to wait for the decision, a batch stays regular, and every item
    takes the same work.

    Args:
        name: address of its decisions: the places [n, k] of the picked among the parts that are there, ascending; parts
            that are `always` picked are neither counted nor scored.
        gate: `(x [n, T, ...], there) -> scores [n, T - always]`; the highest are picked.
        body: `(x [n, k, ...], there) -> y`; after `weigh`, `(x, there, weights [n, k])`. Inside it, `there` is None:
            all parts of x are; or the places [n, k] of those that are, ascending: the rest must not make a difference.
        keep: `parts -> k`: how many of so many parts are picked; at most all are.
        weigh: `scores [n, k] of the picked -> weights [n, k]`, for a gate that learns through them; without `always`.
        always: so many parts, the first, go on whatever the gate says; they are not among the k.
        back: the body's answer takes the place of the picked parts, and the others stay as they are; else the others
            are gone, and the body's answer is the point's.
        consumes: the caller promises not to use x afterwards, so that a strategy may write into it.

    Raises:
        ValueError: `weigh` together with `always`.
    """

    fixed_work = True
    can_be_known = True

    def __init__(
        self,
        name: str,
        gate: Callable[[Any, Tensor | None], Tensor],
        body: nn.Module,
        keep: Callable[[int], int],
        *,
        weigh: Callable[[Tensor], Tensor] | None = None,
        always: int = 0,
        back: bool = False,
        consumes: bool = False,
    ) -> None:
        super().__init__(name)
        if weigh is not None and always:
            raise ValueError(f"Pick {name!r}: always={always} parts have no score to be weighed by")
        self.gate, self.body, self.keep, self.weigh = gate, body, keep, weigh
        self.always, self.back, self.consumes = always, back, consumes

    def parts(self) -> Iterator[nn.Module]:
        """Gate and body."""
        return modules_of(self.gate, self.body)

    def choose(self, scores: Tensor) -> Tensor:
        """scores [n, T] -> places [n, k] of the highest, ascending."""
        parts = scores.shape[1]
        return scores.topk(min(self.keep(parts), parts), 1).indices.sort(1).values

    def forward(self, x: Any, there: Tensor | None = None) -> Any:
        """x [n, T, ...], of which parts `there` [n, T'] are (None: all) -> x with its parts changed, or the answer."""
        ex = current()
        if ex is None:
            return self.body(x, there)
        if not ex.gates:
            picked = ex.known(self)
            at = self._places(picked)
            at = at if there is None else there.gather(1, at)
            return ex.strategy.pick(ex, self, x, at, None if self.weigh is None else equal_weights(x, picked))
        profile = ex.profile  # checked here as in `Skip.forward`
        if profile is not None:
            profile.enter("decide", self.name, None)
        scores = self.gate(x, there)
        if there is not None:
            scores = scores.gather(1, there[:, self.always :] - self.always)
        picked = ex.decide(self, scores, self.choose)
        weights = None if self.weigh is None else self.weigh(scores.gather(1, picked))
        at = self._places(picked)
        if there is not None:
            at = there.gather(1, at)
        if profile is not None:
            profile.exit()
        return ex.strategy.pick(ex, self, x, at, weights)

    def _places(self, picked: Tensor) -> Tensor:
        """Of all that go on, among all that are there."""
        if self.always == 0:
            return picked
        others = picked + self.always
        return torch.cat([picked[:, :1] * 0 + torch.arange(self.always, device=picked.device), others], 1)

    def gathered(self, ex: Execution, x: Any, at: Tensor, weights: Tensor | None) -> Any:
        """The body on the picked parts, their places at [n, k], alone: gathered, computed, put back."""
        (n, k), parts = at.shape, first(x).shape[1]
        with ex.phase("gather"):
            rows, flat = at.flatten(), map_items(flat_parts, x)
            if n > 1:
                rows = (at + torch.arange(0, n * parts, parts, device=at.device).unsqueeze(1)).flatten()
            mine = map_items(lambda t: t.view(n, k, *t.shape[1:]), take(flat, rows))
        with ex.phase("body", self.name):
            y = self.body(mine, None) if weights is None else self.body(mine, None, weights)
        if not self.back:
            return y
        with ex.phase("scatter"):
            ours = self.consumes and not torch.is_grad_enabled()  # a gradient may need x as it was
            into = put_(flat if ours else map_items(torch.clone, flat), rows, map_items(flat_parts, y))
            return map_items(lambda t: t.view(n, parts, *t.shape[1:]), into)

    def wanted(self, n: int) -> Wanted:
        """A score for each item and part."""
        return Wanted("the gate gave scores", (n, ANY))

    def choices(self, row: Sequence[int]) -> int:
        """Each part that is picked is one."""
        return row[0]

    def make_up(self, draw: Draw, like: Entry, rate: Tensor) -> Tensor:
        """As many places as the model picked, of those up to the last that it picked: [rows, k] long, ascending."""
        parts, k = int(like.value.max()) + 1, like.value.shape[1]  # only the model knows how many parts there are
        return draw.apart(parts).choose(parts, k, draw.visits(like)).sort(1).values

    def edges(self, like: Entry) -> tuple[Tensor, Tensor]:
        """The first k places; the last k that were picked."""
        k = like.value.shape[1]
        first_k = torch.arange(k)
        return first_k, first_k + int(like.value.max()) + 1 - k
