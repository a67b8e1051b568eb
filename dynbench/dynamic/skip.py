"""Skip: a body for some items, nothing or something cheaper for the rest. Ahead: several Skips decided at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from operator import methodcaller
from typing import Any

import torch
from torch import Tensor, nn

from dynbench.dynamic.context import current
from dynbench.dynamic.draw import Draw
from dynbench.dynamic.faults import ModelError, named, told
from dynbench.dynamic.point import DecisionPoint, Label, Scope, Wanted, modules_of
from dynbench.dynamic.trace import Entry, Trace

positive = methodcaller("gt", 0)
"""Scores above 0, as bool."""


def straight_through(keep: Tensor, scores: Tensor) -> Tensor:
    """The decision as a number that carries the gradient of its probability: hard - sg(p) + p, p = sigmoid(scores).

    Args:
        keep: [n] bool.
        scores: [n] logits.
    """
    p = torch.sigmoid(scores)
    return keep.to(p.dtype) - p.detach() + p


class Skip(DecisionPoint):
    """`body` for some items, `otherwise` for the rest: a Route over {otherwise, body}.

    Args:
        name: address of its decisions.
        gate: `(x, carry) -> (scores [n], carry)`; the body runs where the score, a logit, is above 0. None: an `Ahead`
            decides, whose answer is the carry.
        body: `x -> y`.
        otherwise: `x -> y`, or None: x itself.
        shared: what both begin with, such as the shortcut of a residual block: `x -> z`, computed once, for all items,
            after the decision; body and otherwise then take the pair (x, z).
        consumes: the caller promises not to use x afterwards, so that a strategy may write into it.
        scope: see `DecisionPoint`.

    Raises:
        ValueError: `shared` without an `otherwise`.
    """

    path = Label(0, "bodies run")
    rates = 1
    can_be_known = True

    def __init__(
        self,
        name: str,
        gate: Callable[..., tuple[Tensor, Any]] | None,
        body: nn.Module,
        otherwise: nn.Module | None = None,
        *,
        shared: nn.Module | None = None,
        consumes: bool = False,
        scope: Scope = "item",
    ) -> None:
        super().__init__(name, scope)
        if shared is not None and otherwise is None:
            raise ValueError(
                f"Skip {name!r}: `shared` is what body and `otherwise` both begin with; give an `otherwise`"
            )
        self.gate, self.body, self.otherwise, self.consumes = gate, body, otherwise, consumes
        self.shared = shared

    @property
    def experts(self) -> list[nn.Module | None]:
        """As a Route: expert 0 is `otherwise`, expert 1 the body."""
        return [self.otherwise, self.body]

    def parts(self) -> Iterator[nn.Module]:
        """Gate, body and otherwise."""
        return modules_of(self.gate, self.body, self.otherwise)

    def forward(self, x: Any, carry: Any = None) -> tuple[Any, Any]:
        """x [n, ...] and what the gate carries from point to point -> (y [n, ...], carry)."""
        ex = current()
        if ex is None:
            return self.body(x if self.shared is None else self.begun(x)), carry
        gate = self.gate
        if gate is None:
            keep, soft = carry[self.name]
            return ex.strategy.skip(ex, self, x if self.shared is None else self.begun(x), keep, soft), carry
        if not ex.gates:
            return ex.strategy.skip(ex, self, x if self.shared is None else self.begun(x), ex.known(self), None), carry
        profile = ex.profile  # checked here: at a block, `with ex.phase` would take as long as deciding
        if profile is not None:
            profile.enter("decide", self.name, None)
        given = gate(x, carry)
        try:
            scores, carry = given
        except (TypeError, ValueError) as e:
            raise ModelError(f"{named(self)}: the gate gave {told(given)}; wanted (scores [n], carry)") from e
        keep = ex.decide(self, scores, positive)
        if profile is not None:
            profile.exit()
        soft = straight_through(keep, scores) if scores.requires_grad else None
        return ex.strategy.skip(ex, self, x if self.shared is None else self.begun(x), keep, soft), carry

    def begun(self, x: Any) -> Any:
        """What body and `otherwise` take: x, or the pair of x and what they share."""
        return x if self.shared is None else (x, self.shared(x))

    def wanted(self, n: int) -> Wanted:
        """A score for each item."""
        return Wanted("the gate gave scores", (n,))

    def make_up(self, draw: Draw, like: Entry, rate: Tensor) -> Tensor:
        """True at the keep-rate: [rows] bool."""
        return (draw.uniform(draw.visits(like)) < rate).flatten()

    def edges(self, like: Entry) -> tuple[Tensor, Tensor]:
        """The body for all items; for none."""
        return torch.tensor(True), torch.tensor(False)

    def kept(self, decisions: Tensor) -> float:
        """Those that run the body."""
        return float(decisions.sum())

    def needed(self, trace: Trace, phase: str, index: int, sizes: tuple[int, ...]) -> Tensor | None:
        """The body where the decision is True, `otherwise` where it is False, the gate always."""
        keep = self.decided(trace, sizes) if phase == "body" else None
        return None if keep is None else keep == bool(index)

    def added(self, trace: Trace, index: int, sizes: tuple[int, ...]) -> tuple[int, int]:
        """One by the body, nothing by `otherwise`."""
        return index, index

    def in_static_twin(self, index: int) -> bool:
        """The body, not what stands for it."""
        return index == 1

    def action(self, item: str) -> Label:
        """'skips'."""
        return Label(2, "skips")


class Ahead(DecisionPoint):
    """Decides several Skips at once, before the first of them is reached: a strategy may wait once for all of them.

    Each Skip's decisions keep their own address, at the coordinates that the items have here: no Loop and no Each lies
    between the two. A Skip that is reached by fewer items than were here (one inside a body, say) gets the same
    decision, but a strategy has to wait for it anew.

    Args:
        name: of the policy; it has no decisions of its own.
        policy: `(*x) -> scores [n, K]`, one logit per Skip: its body runs where that is above 0.
        skips: K Skips without a gate; they are part of the model elsewhere.
        scope: see `DecisionPoint`.

    Raises:
        ValueError: a Skip that has a gate.
    """

    can_be_known = True

    def __init__(self, name: str, policy: nn.Module, skips: Iterable[Skip], *, scope: Scope = "item") -> None:
        super().__init__(name, scope)
        self.policy, self.skips = policy, tuple(skips)
        for skip in self.skips:
            if skip.gate is not None:
                raise ValueError(f"Ahead {name!r} decides for Skip {skip.name!r}, which has a gate of its own")

    def parts(self) -> Iterator[nn.Module]:
        """The policy."""
        return modules_of(self.policy)

    def forward(self, *x: Any) -> dict[str, tuple[Tensor, Tensor | None]] | None:
        """What the policy takes, [n, ...] -> the carry of the Skips; None outside any execution: no policy is run."""
        ex = current()
        if ex is None:
            return None
        if not ex.gates:
            keep = {skip.name: ex.known(skip) for skip in self.skips}
            ex.strategy.ahead(ex, keep)
            return {name: (k, None) for name, k in keep.items()}
        with ex.phase("decide", self.name):
            scores = self.policy(*x)  # [n, K]
            if not isinstance(scores, Tensor) or scores.dim() != 2 or scores.shape[1] != len(self.skips):
                wanted = f"[n, {len(self.skips)}], one for each Skip"
                raise ModelError(f"{named(self)}: the policy gave scores {told(scores)}; wanted {wanted}")
            keep = {
                skip.name: ex.decide(skip, mine, partial(_known, own))
                for skip, mine, own in zip(self.skips, scores.unbind(1), (scores > 0).unbind(1), strict=True)
            }
        ex.strategy.ahead(ex, keep)
        if not scores.requires_grad:
            return {name: (k, None) for name, k in keep.items()}
        soft = (straight_through(k, s) for k, s in zip(keep.values(), scores.unbind(1), strict=True))
        return {name: (k, s) for (name, k), s in zip(keep.items(), soft, strict=True)}

    @property
    def can_be_made_up(self) -> bool:
        """It has no decisions of its own."""
        return True


def _known(decision: Tensor, _: Tensor) -> Tensor:
    return decision
