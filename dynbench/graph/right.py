"""What a graph is compared with: the network in torch, each item computed once however many batches are compared."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from dynbench.dynamic import Execution, Trace, points, widest_scope
from dynbench.dynamic.items import tensors
from dynbench.dynamic.sources import edge
from dynbench.strategies import Dense, Masking, PerSample

OWN = "own"  # decisions of the network itself
EDGES = ("none", "all", "one")


class Answered(NamedTuple):
    """The leaves of an answer, each [n, ...], the decisions that were taken, and those that were asked for, if any."""

    answer: list[Tensor]
    taken: Trace
    given: Trace | None = None


class Right:
    """The right answers for the first items of a stream, by `per_sample`; of a static network, as it is.

    `per_sample` computes each item alone, so that what it answers for the first 7 is the beginning of what it answers
    for the first 32. Where decisions depend on who is in the batch, each batch is computed.

    Args:
        model: with decision points, unless it is static; in evaluation mode, on the device of x.
        x: the stream [items, ...].
        static: whether points, if there are any, run their static twins.
        apart: whether each batch is to be computed by itself in any case.
    """

    def __init__(self, model: nn.Module, x: Tensor, *, static: bool = False, apart: bool = False) -> None:
        self.model, self.x, self.static = model, x, static
        self.apart = apart or widest_scope(model) == "batch"
        self._known: dict[tuple[str, int], Answered] = {}
        self._edges: dict[int, dict[str, Trace]] = {}

    def kinds(self) -> tuple[str, ...]:
        """The edges of what can be decided; none where decisions cannot be made up."""
        return EDGES if all(p.can_be_made_up for p in points(self.model).values()) else ()

    @torch.no_grad()
    def of(self, n: int, kind: str = OWN) -> Answered:
        """For the first n items.

        Args:
            n: how many.
            kind: the network's own decisions, or one of `EDGES`.
        """
        if (kind, n) not in self._known:
            larger = [m for known, m in self._known if known == kind and m > n]
            found = self._beginning(self._known[kind, max(larger)], n) if larger and not self.apart else None
            self._known[kind, n] = found or self._computed(n, kind)
        return self._known[kind, n]

    def _beginning(self, known: Answered, n: int) -> Answered | None:
        """That of the first n items; None: an answer holds something else than a row for each item."""
        if any(not leaf.dim() or len(leaf) != known.taken.items for leaf in known.answer):
            return None
        rows = torch.arange(n)
        given = None if known.given is None else known.given.of_items(rows)
        return Answered([leaf[:n] for leaf in known.answer], known.taken.of_items(rows), given)

    def _computed(self, n: int, kind: str) -> Answered:
        given = None if kind == OWN else self._edge(n, kind)
        execution = Execution(Dense() if self.static else PerSample(), replay=given, record=not self.static)
        answer = [leaf.clone() for leaf in tensors(execution.run(self.model, self.x[:n]))]
        return Answered(answer, Trace({}, n) if execution.trace is None else execution.trace, given)

    def _edge(self, n: int, kind: str) -> Trace:
        if n not in self._edges:
            everything = Execution(Masking(), record=True)
            everything.run(self.model, self.x[:n])
            assert everything.trace is not None
            self._edges[n] = {k: edge(everything.trace, self.model, k) for k in EDGES}
        return self._edges[n][kind]
