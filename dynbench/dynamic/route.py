"""Route: which of several modules an item goes to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dynbench.dynamic.context import current
from dynbench.dynamic.draw import Draw
from dynbench.dynamic.faults import check_range, check_tensor
from dynbench.dynamic.items import equal_weights
from dynbench.dynamic.point import ANY, DecisionPoint, Label, Scope, Wanted, modules_of
from dynbench.dynamic.trace import Entry, Trace


class Route(DecisionPoint):
    """Each item goes to k of n experts: y_i = sum_s w[i, s] * experts[chosen[i, s]](x_i).

    Args:
        name: address of its decisions.
        router: `x -> scores [n, E]`.
        experts: modules `x -> y`; None: x itself.
        k: experts per item.
        weigh: `(scores, chosen [n, k]) -> weights [n, k]`, from the decision *used*; None with k=1: unweighted.
        static: `x -> y` outside any execution; default: every expert on every item, weighted over all experts.
        capacity_factor: at most ceil(factor * k * items / E) items per expert, first come first served, slot by slot
            (Switch Transformer, 2.2); an item that finds no room is dropped there: chosen -1, adding nothing. Couples a
            batch, and takes experts that answer in the shape of x.

    Raises:
        ValueError: k does not fit the experts, or several experts per item are to be added unweighted.
    """

    path = Label(3, "experts visited")
    can_be_known = True

    def __init__(
        self,
        name: str,
        router: Callable[[Any], Tensor],
        experts: Iterable[nn.Module | None],
        k: int = 1,
        weigh: Callable[[Tensor, Tensor], Tensor] | None = None,
        *,
        static: nn.Module | None = None,
        capacity_factor: float | None = None,
        scope: Scope = "item",
    ) -> None:
        super().__init__(name, "batch" if capacity_factor is not None else scope)
        self.router = router
        self.experts: list[nn.Module | None] | nn.ModuleList = nn.ModuleList(experts)  # type: ignore[arg-type]
        if not 1 <= k <= len(self.experts):
            raise ValueError(f"Route {name!r}: k={k} of {len(self.experts)} experts; k is 1 to the number of experts")
        if k > 1 and weigh is None:
            raise ValueError(f"Route {name!r}: {k} experts per item need `weigh` to say how they are added")
        self.k, self.weigh, self.static, self.capacity_factor = k, weigh, static, capacity_factor

    def parts(self) -> Iterator[nn.Module]:
        """Router and experts."""
        return modules_of(self.router, *self.experts)

    def choose(self, scores: Tensor) -> Tensor:
        """scores [n, E] -> chosen [n, k] long, -1 where the expert has no room."""
        chosen = scores.topk(self.k, dim=-1).indices
        if self.capacity_factor is None:
            return chosen
        n, experts = scores.shape
        ex = current()
        live = None if ex is None else ex.frame.live
        present = torch.ones(n, dtype=torch.bool, device=scores.device) if live is None else live
        room = torch.ceil(self.capacity_factor * self.k * present.sum() / experts)
        queue = chosen.T.flatten()  # all first choices, then the second
        taken = torch.nn.functional.one_hot(queue, experts) * present.repeat(self.k).unsqueeze(1)
        place = (taken.cumsum(0) - 1).gather(1, queue.unsqueeze(1)).squeeze(1)  # place in the expert's queue
        return torch.where(place < room, queue, -1).view(self.k, n).T.contiguous()

    def forward(self, x: Any) -> Any:
        """x [n, ...] -> y [n, ...]."""
        ex = current()
        if ex is None:
            return self._static(x)
        if not ex.gates:
            chosen = ex.known(self)
            return ex.strategy.route(ex, self, x, chosen, None if self.weigh is None else equal_weights(x, chosen))
        with ex.phase("decide", self.name):
            scores = self.router(x)
            chosen = ex.decide(self, scores, self.choose)
            weights = None if self.weigh is None else self.weigh(scores, chosen)
        return ex.strategy.route(ex, self, x, chosen, weights)

    def _static(self, x: Any) -> Any:
        if self.static is not None:
            return self.static(x)
        scores = self.router(x)
        n, experts = scores.shape
        all_of_them = torch.arange(experts, device=scores.device).expand(n, experts)
        w = scores.softmax(-1) if self.weigh is None else self.weigh(scores, all_of_them)
        y = 0
        for e, expert in enumerate(self.experts):
            out = x if expert is None else expert(x)
            y = y + out * w[:, e].view(-1, *[1] * (out.dim() - 1))
        return y

    def wanted(self, n: int) -> Wanted:
        """A score for each item and expert."""
        return Wanted("the router gave scores", (n, len(self.experts)))

    def check_decision(self, decision: Tensor) -> None:
        """Whether k experts are chosen that there are; -1 is none."""
        check_tensor(self, Wanted("it chose experts", (ANY, self.k), "whole"), decision, decision.device)
        check_range(self, "it chose expert", decision, -1, len(self.experts))

    def options(self, tables: Sequence[Entry]) -> int:
        """The experts."""
        return len(self.experts)

    def make_up(self, draw: Draw, like: Entry, rate: Tensor) -> Tensor:
        """k different experts, by the skew: [rows, k] long."""
        return draw.choose(len(self.experts), self.k, draw.visits(like))

    def edges(self, like: Entry) -> tuple[Tensor, Tensor]:
        """The first k experts; the last k, the last one first."""
        first = torch.arange(self.k)
        return first, first.flip(0) + len(self.experts) - self.k

    def kept(self, decisions: Tensor) -> float:
        """The experts chosen, as a share of all; an item that is dropped has chosen none."""
        return float((decisions >= 0).sum()) / len(self.experts)

    def needed(self, trace: Trace, phase: str, index: int, sizes: tuple[int, ...]) -> Tensor | None:
        """An expert where it is among the chosen, the router always."""
        chosen = self.decided(trace, sizes) if phase == "body" else None
        return None if chosen is None else (chosen == index).any(-1)

    @property
    def couples_work(self) -> bool:
        """A capacity couples decisions, not the bodies: what each item then does is its own."""
        return super().couples_work and self.capacity_factor is None

    def per_visit(self, region: float, gate: float) -> tuple[float, float]:
        """One expert, on average."""
        return region / len(self.experts), gate

    def action(self, item: str) -> Label:
        """'uses 2 of 8 experts per token'. Experts without weights are alternatives: how many there are says little."""
        if self.weigh is None:
            return Label(0, "uses some of its experts per item")
        return Label(0, f"uses {self.k} of {len(self.experts)} experts per {item}")
