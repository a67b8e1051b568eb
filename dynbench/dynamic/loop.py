"""Loop: how long an item goes on. Exits: a Loop with another stage and head at each step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dynbench.dynamic.context import Execution, Frame, current
from dynbench.dynamic.draw import Draw
from dynbench.dynamic.point import DecisionPoint, Label, Scope, Wanted, modules_of
from dynbench.dynamic.trace import Entry, Trace


class Loop(DecisionPoint):
    """Repeat until the item halts with its answer.

    Args:
        name: address of its decisions.
        step: `(state, k) -> state`.
        halt: `(answer, state, k) -> [n] bool`: which items leave; not called after the last step. None: none do.
        max_steps: of an item that does not leave.
        head: `(state, k) -> answer`; default: the state. What a caller needs of the final state belongs in the answer.
            Without `halt` it is called after the last step only.
        static: `state -> answer` outside any execution; default: all steps, then the last head.
        scope: see `DecisionPoint`. 'sample': the items of a sample step together, each in view of what all have left
            behind (keys and values in a `Shared` memory), so that the work of a step is that of the items in it. A step
            that writes there keeps what items that are not live (`Execution.frame`) have left.

    Raises:
        ValueError: max_steps below 1.
    """

    path = Label(1, "stages run")
    can_be_known = True
    _decider = "halt"

    def __init__(
        self,
        name: str,
        step: Callable[[Any, int], Any],
        halt: Callable[[Any, Any, int], Tensor] | None,
        max_steps: int,
        head: Callable[[Any, int], Any] | None = None,
        *,
        static: nn.Module | None = None,
        scope: Scope = "item",
    ) -> None:
        super().__init__(name, scope)
        if max_steps < 1:
            raise ValueError(f"Loop {name!r}: max_steps={max_steps}; a loop has at least one step")
        self.step, self.halt, self.max_steps, self.head, self.static = step, halt, max_steps, head, static

    def parts(self) -> Iterator[nn.Module]:
        """Step, head and halt, as far as they are modules."""
        return modules_of(self.step, self.head, self.halt)

    def forward(self, state: Any) -> Any:
        """state, a pytree of [n, ...] -> answer [n, ...], in the order of the items."""
        ex = current()
        return self._static(state) if ex is None else ex.strategy.loop(ex, self, state)

    def _static(self, state: Any) -> Any:
        if self.static is not None:
            return self.static(state)
        for k in range(self.max_steps):
            state = self.step(state, k)
        return state if self.head is None else self.head(state, self.max_steps - 1)

    def once(self, ex: Execution, state: Any, k: int) -> tuple[Any, Any, Tensor | None]:
        """Step k of the current items: (state, answer, which halt [n] bool; None: the step decides nothing).

        A Loop without `halt` answers after its last step only; before it the answer is None.
        """
        before = ex.frame
        ex.frame = Frame(before, "at", k, (*before.extent, self.max_steps))  # `with ex.at` would take twice as long
        try:
            if ex.profile is not None:
                return self._once_profiled(ex, state, k)
            state = self.step(state, k)
            if k == self.max_steps - 1:
                return state, state if self.head is None else self.head(state, k), None
            if self.halt is None:
                return state, None, None
            answer = state if self.head is None else self.head(state, k)
            return state, answer, ex.decide(self, self.halt(answer, state, k)) if ex.gates else ex.known(self)
        finally:
            ex.frame = before

    def _once_profiled(self, ex: Execution, state: Any, k: int) -> tuple[Any, Any, Tensor | None]:
        """`once` with its phases marked; a method apart, as marks slow down a small step without a profile too."""
        with ex.phase("body", self.name, k):
            state = self.step(state, k)
        last, halt = k == self.max_steps - 1, self.halt
        if halt is None and not last:
            return state, None, None
        answer = state
        if self.head is not None:
            with ex.phase("head", self.name, k):
                answer = self.head(state, k)
        if halt is None or last:
            return state, answer, None
        with ex.phase("decide", self.name, k):
            return state, answer, ex.decide(self, halt(answer, state, k)) if ex.gates else ex.known(self)

    def wanted(self, n: int) -> Wanted:
        """True where an item leaves."""
        return Wanted(f"{self._decider} gave", (n,), "bool")

    @property
    def rates(self) -> int | None:
        """One for each step but the last: of the items that came so far, the share that stays."""
        return None if self.halt is None else self.max_steps - 1

    def make_up(self, draw: Draw, like: Entry, rate: Tensor) -> Tensor:
        """False, so that the item stays, at the keep-rate: [rows] bool. After a list of rates the last step's is 1."""
        visits = draw.visits(like)
        if rate.dim():
            rate = torch.cat([rate, rate.new_ones(1)]).repeat(visits // self.max_steps)
        return ~(draw.uniform(visits) < rate).flatten()

    def edges(self, like: Entry) -> tuple[Tensor, Tensor]:
        """No item ever halts; all do at the first step."""
        return torch.tensor(False), torch.tensor(True)

    def kept(self, decisions: Tensor) -> float:
        """The items that stay."""
        return float((~decisions).sum())

    def needed(self, trace: Trace, phase: str, index: int, sizes: tuple[int, ...]) -> Tensor | None:
        """A step, with its head and decision, for the items that did not halt before it."""
        here = torch.zeros(trace.items * math.prod(sizes[:-1]), self.max_steps, dtype=torch.bool)
        here[:, index] = True
        halted = self.decided(trace, sizes) if index and self.halt is not None else None
        if halted is not None:
            here[:, index] = ~halted.view(here.shape)[:, :index].any(1)
        return here.flatten()

    @property
    def couples_work(self) -> bool:
        """Items of a sample that step together each do their own work, in view of the others."""
        return self.scope == "batch"

    def per_visit(self, region: float, gate: float) -> tuple[float, float]:
        """All steps; one decision."""
        return region, gate / max(self.max_steps - 1, 1)

    def action(self, item: str) -> Label:
        """'leaves early'."""
        return Label(3, "leaves early")


def _nth(modules: nn.ModuleList, k: int) -> nn.Module:
    """`modules[k]`, k >= 0, without the checks that take as long as all else at a step."""
    found = modules._modules[str(k)]
    assert found is not None
    return found


class Exits(Loop):
    """A Loop with another stage and head at each step.

    Args:
        name: address of its decisions.
        stages: modules `state -> state`.
        heads: modules `state -> answer`, one per stage.
        policy: `(answer, state, k) -> [n] bool`: which items leave after stage k; not called after the last.
        static: see `Loop`.

    Raises:
        ValueError: not one head per stage.
    """

    _decider = "the policy"

    def __init__(
        self,
        name: str,
        stages: Iterable[nn.Module],
        heads: Iterable[nn.Module],
        policy: Callable[[Any, Any, int], Tensor],
        *,
        static: nn.Module | None = None,
        scope: Scope = "item",
    ) -> None:
        stages, heads = nn.ModuleList(stages), nn.ModuleList(heads)
        if len(stages) != len(heads):
            raise ValueError(f"Exits {name!r}: {len(stages)} stages and {len(heads)} heads; each stage has one head")
        super().__init__(name, self._stage, policy, len(stages), self._head, static=static, scope=scope)
        self.stages, self.heads = stages, heads

    def _stage(self, state: Any, k: int) -> Any:
        return _nth(self.stages, k)(state)

    def _head(self, state: Any, k: int) -> Any:
        return _nth(self.heads, k)(state)

    def parts(self) -> Iterator[nn.Module]:
        """Stages, heads and policy."""
        return modules_of(*self.stages, *self.heads, self.halt)

    @property
    def exits(self) -> int:
        """One after each stage."""
        return self.max_steps
