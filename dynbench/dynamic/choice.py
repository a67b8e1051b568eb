"""Choice: a value that the computation goes on with, whatever it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from dynbench.dynamic.context import current
from dynbench.dynamic.draw import Draw
from dynbench.dynamic.point import VAGUE, DecisionPoint, Label, Scope, Wanted, modules_of
from dynbench.dynamic.trace import Entry


class Choice(DecisionPoint):
    """A value for each item that the computation goes on with, such as where to look.

    What follows is the same computation whatever the value, so a strategy has nothing to do here. As a decision the
    value has an address: it is recorded and replayed, in any dtype, and can be sampled (`Execution(choose=...)`).

    Args:
        name: address of its decisions.
        body: `(*x) -> scores [n, ...]`; part of the network, unless it is a gate.
        rule: `scores -> value [n, ...]`, bool or long: real numbers would differ by their rounding.
        gate: the body serves the decision alone, and the static twin does without: outside any execution it is not
            run, and the value is None.
        listed: a value [n, k] lists k choices, in any order, each of which is a decision: two forms that differ in one
            of them differ in one decision of k.
        scope: see `DecisionPoint`.
    """

    fixed_work = True
    can_be_known = True

    def __init__(
        self,
        name: str,
        body: nn.Module,
        rule: Callable[[Tensor], Tensor],
        *,
        gate: bool = False,
        listed: bool = False,
        scope: Scope = "item",
    ) -> None:
        super().__init__(name, scope)
        self.body, self.rule, self.gate, self.listed = body, rule, gate, listed

    def parts(self) -> Iterator[nn.Module]:
        """The body."""
        return modules_of(self.body)

    def forward(self, *x: Any) -> Any:
        """What the body takes, [n, ...] -> value [n, ...]; of a gate outside any execution, None."""
        ex = current()
        if ex is None:
            return None if self.gate else self.rule(self.body(*x))
        if self.gate:
            if not ex.gates:
                return ex.known(self)
            with ex.phase("decide", self.name):
                return ex.decide(self, self.body(*x), self.rule)
        with ex.phase("body", self.name):
            scores = self.body(*x)
        return ex.decide(self, scores, self.rule)

    def wanted(self, n: int) -> Wanted:
        """Scores for each item."""
        return Wanted("the body gave scores", (n,), more=True)

    def choices(self, row: Sequence[int]) -> int:
        """One, or each that a value lists; a row that is no list is one decision as a whole."""
        return row[0] if self.listed and len(row) == 1 else 1

    def make_up(self, draw: Draw, like: Entry, rate: Tensor) -> Tensor:
        """The model's own values [rows, ...]; 0, or False, in rows that were not reached."""
        return like.value.clone()

    def action(self, item: str) -> Label:
        """'decides what to look at'."""
        return Label(VAGUE + 1, "decides what to look at")
