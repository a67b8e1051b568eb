"""Programs: which modules are run for an item, and how they are wired, is decided for each item."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dynbench.dynamic.context import current
from dynbench.dynamic.draw import Draw
from dynbench.dynamic.faults import ModelError, named, told
from dynbench.dynamic.items import first, select
from dynbench.dynamic.point import DecisionPoint, Label, Scope, Wanted, modules_of
from dynbench.dynamic.trace import Entry, Trace

NONE = -1  # in a layout: no module, no word, no argument
MODULE, WORD, ARGUMENTS = 0, 1, 2  # columns of a layout's rows: from the third on arguments


class Op(NamedTuple):
    """A module that programs use.

    Attributes:
        module: `((x, args, word)) -> value [m, *shape]`; the node's arguments are the first of `args`, each a value
            [m, *shape]; `word` [m] long says which variant of it, and is 0 where the layout says none.
        arguments: how many arguments it takes.
        looks: whether it takes x; otherwise x may be None.
    """

    module: nn.Module
    arguments: int
    looks: bool = True


class Group(NamedTuple):
    """Nodes that one call of a module computes: all of one depth.

    Attributes:
        op: index of the module.
        rows: of the schedule's table.
    """

    op: int
    rows: slice


class Program(DecisionPoint):
    """Each item carries a small program over shared modules; its items are (sample, node).

    A *layout* [N, 2 + A] long has a row per node: module, word, arguments. Arguments are earlier nodes, -1 is none, and
    so is what follows the last node. The last node is a head, whose value is the item's answer, and the only one. The
    layout is known to the host before the first module runs, so that no strategy waits for the shape of the work.

    Args:
        name: address of its decisions, the layouts.
        parse: `cue -> layouts [n, N, 2 + A]` long, on the CPU; it may read `cue` back, and so wait for the device.
            Layouts are not checked on the way: a parser calls `check` for those that are new.
        ops: modules with values in common, of one shape.
        heads: modules with answers, of another shape; numbered after `ops`.
        shape: of a value, without the item.
        nodes: N, of the largest program.
        static: `(x, layouts) -> answers` outside any execution; default: every module at every node for all items,
            then select.
        scope: see `DecisionPoint`.

    Raises:
        ValueError: no head, or no room for a node.
    """

    path = Label(2, "nodes run")

    def __init__(
        self,
        name: str,
        parse: Callable[[Any], Tensor],
        ops: Sequence[Op],
        heads: Sequence[Op],
        shape: tuple[int, ...],
        nodes: int,
        *,
        static: Callable[[Any, Tensor], Any] | None = None,
        scope: Scope = "item",
    ) -> None:
        super().__init__(name, scope)
        if not heads:
            raise ValueError(f"Program {name!r} has no head: the last node of a program answers")
        if nodes < 1:
            raise ValueError(f"Program {name!r}: nodes={nodes}; a program has at least one")
        self.parse, self.ops, self.first_head = parse, [*ops, *heads], len(ops)
        self.experts = nn.ModuleList(op.module for op in self.ops)
        self.shape, self.nodes, self.static = shape, nodes, static
        self.arguments = max(op.arguments for op in self.ops)

    def parts(self) -> Iterator[nn.Module]:
        """The modules, heads included, and the parser if it is one."""
        return modules_of(self.parse, *self.experts)

    def forward(self, x: Any, cue: Any) -> Any:
        """x [n, ...] and what the layouts are parsed from [n, ...] -> answers [n, ...]."""
        ex = current()
        if ex is None:
            layouts = self.parse(cue)
            return self._everything(x, layouts) if self.static is None else self.static(x, layouts)
        with ex.phase("decide", self.name):
            own = self.parse(cue)
            if not isinstance(own, Tensor):
                raise ModelError(f"{named(self)}: parse gave {told(own)}; wanted layouts [n, {self.nodes}, ...] int64")
            moved = own.to(first(x).device)
            layouts = ex.decide(self, moved)
        if layouts is not moved:  # replayed or chosen
            with ex.phase("sync"):
                own = layouts.cpu()
        return ex.strategy.program(ex, self, x, own)

    def call(self, op: int, x: Any, args: Sequence[Tensor], word: Tensor) -> Any:
        """A module's value [m, ...]: x [m, ...], at least as many args [m, *shape] as it takes, word [m]."""
        what = self.ops[op]
        return self.experts[op]((x if what.looks else None, tuple(args[: what.arguments]), word))

    def check(self, layout: Tensor) -> None:
        """Whether this is the layout of one program.

        Args:
            layout: [N, 2 + A] long, on the CPU.

        Raises:
            ValueError: what is wrong with it, in a sentence.
        """
        wanted = (self.nodes, ARGUMENTS + self.arguments)
        if tuple(layout.shape) != wanted:
            raise ValueError(f"Program {self.name!r}: a layout is {wanted}, not {tuple(layout.shape)}")
        rows = layout.tolist()
        length = next((j for j, row in enumerate(rows) if row[MODULE] == NONE), len(rows))
        where = f"Program {self.name!r}: node"
        if length == 0 or any(row[MODULE] != NONE for row in rows[length:]):
            raise ValueError(f"Program {self.name!r}: a layout has one node or more, and nothing between them")
        for j, (op, _, *args) in enumerate(rows[:length]):
            if not 0 <= op < len(self.ops):
                raise ValueError(f"{where} {j} is of module {op}; modules are 0 to {len(self.ops) - 1}")
            if (op >= self.first_head) != (j == length - 1):
                raise ValueError(f"{where} {j} of {length} is of module {op}; the last, and only that, is a head")
            takes = self.ops[op].arguments
            if not all(0 <= a < j for a in args[:takes]) or any(a != NONE for a in args[takes:]):
                raise ValueError(f"{where} {j} has arguments {args}; module {op} takes {takes}, of earlier nodes")

    def wanted(self, n: int) -> Wanted:
        """A layout for each item."""
        return Wanted("parse gave layouts", (n, self.nodes, ARGUMENTS + self.arguments), "whole")

    def check_decision(self, decision: Tensor) -> None:
        """Whether all layouts are those of programs."""
        for layout in decision.cpu():
            try:
                self.check(layout)
            except ValueError as e:
                raise ModelError(str(e)) from e

    def schedule(self, layouts: Tensor) -> tuple[list[Group], Tensor]:
        """What to call in which order, so that each module is called once at each depth.

        Depth is the longest way from a node without arguments.

        Args:
            layouts: [n, N, 2 + A] long, on the CPU.

        Returns:
            (groups, table [nodes of all, 3 + A]: sample, node, word, arguments; 0 for none).
        """
        n, nodes = layouts.shape[:2]
        op, args = layouts[:, :, MODULE], layouts[:, :, ARGUMENTS:]
        known = args >= 0
        filled = layouts[:, :, WORD:].clamp(min=0)
        above = torch.zeros(n, nodes, dtype=torch.long)
        for j in range(1, nodes):  # the first has no arguments
            below = above.gather(1, filled[:, j, 1:]) + 1  # [n, A]
            above[:, j] = (below * known[:, j]).amax(1) if self.arguments else 0
        key = (above * len(self.ops) + op)[op >= 0]
        key, order = key.sort(stable=True)
        at = (op >= 0).nonzero()[order]  # [nodes of all, 2]: sample, node
        table = torch.cat([at, filled[at[:, 0], at[:, 1]]], 1)
        kinds, sizes = key.unique_consecutive(return_counts=True)
        groups, begin = [], 0
        for kind, size in zip(kinds.tolist(), sizes.tolist(), strict=True):
            groups.append(Group(kind % len(self.ops), slice(begin, begin + size)))
            begin += size
        return groups, table

    def blank(self, x: Any, n: int) -> Tensor:
        """`n` values of zero, of the dtype and on the device of x."""
        like = first(x)
        return like.new_zeros((n, *self.shape))

    def options(self, tables: Sequence[Entry]) -> int:
        """The model's different layouts."""
        return max((len(_layouts(table)) for table in tables), default=0)

    def make_up(self, draw: Draw, like: Entry, rate: Tensor) -> Tensor:
        """One of the model's own layouts [rows, N, 2 + A], by the skew: the most frequent is option 0."""
        layouts = _layouts(like)
        if not len(layouts):
            return like.value.clone()
        return layouts[draw.choose(len(layouts), 1, draw.visits(like))[:, 0]]

    def edges(self, like: Entry) -> tuple[Tensor, Tensor]:
        """The model's largest program; its smallest."""
        layouts = _layouts(like)
        if not len(layouts):
            return like.value, like.value
        length = (layouts[..., MODULE] >= 0).sum(1)
        return layouts[length.argmax()], layouts[length.argmin()]

    def kept(self, decisions: Tensor) -> float:
        """The nodes that a program has, as a share of those that there is room for."""
        return float((decisions[..., MODULE] >= 0).double().mean(1).sum())

    def needed(self, trace: Trace, phase: str, index: int, sizes: tuple[int, ...]) -> Tensor | None:
        """A module at the nodes of which it is the module, the parser always."""
        layouts = self.decided(trace, sizes[:-1]) if phase == "body" else None  # the last coordinate is the node
        return None if layouts is None else (layouts[..., MODULE] == index).flatten()

    def added(self, trace: Trace, index: int, sizes: tuple[int, ...]) -> tuple[int, int]:
        """A node, by whichever module; the deepest path has all nodes."""
        return 1, int(index == 0)

    def per_visit(self, region: float, gate: float) -> tuple[float, float]:
        """One module, on average."""
        return region / len(self.experts), gate

    def action(self, item: str) -> Label:
        """'composes its modules for each item'."""
        return Label(1, "composes its modules for each item")

    def _everything(self, x: Any, layouts: Tensor) -> Any:
        """Every module at every node for all items, then select: the static twin of programs that differ."""
        layouts = layouts.to(first(x).device)
        n, nodes = layouts.shape[:2]
        values: list[Tensor] = []
        answer = None
        everyone = torch.arange(n, device=layouts.device)
        for j in range(nodes):
            op, word, args = layouts[:, j, MODULE], layouts[:, j, WORD].clamp(min=0), layouts[:, j, ARGUMENTS:]
            so_far = torch.stack(values or [self.blank(x, n)])  # [j, n, *shape]
            given = [so_far[a.clamp(min=0), everyone] for a in args.unbind(1)]
            value = self.blank(x, n)
            for e in range(len(self.ops)):
                y = self.call(e, x, given, word)
                if e < self.first_head:
                    value = select(op == e, y, value)
                else:
                    answer = y if answer is None else select(op == e, y, answer)
            values.append(value)
        return answer


def _layouts(table: Entry) -> Tensor:
    """The distinct layouts [m, N, 2 + A] that were reached, the most frequent first; on the CPU."""
    layouts, counts = table.value[table.reached].cpu().unique(dim=0, return_counts=True)
    return layouts[counts.argsort(descending=True, stable=True)]
