"""The base of all decision points: what a point says about itself, so that no other file lists kinds of points.

A point is an `nn.Module` whose `forward` asks the execution for a decision and hands the work to the strategy. What the
harness needs to know besides (how made-up decisions are drawn, which work a decision requires, how a path is labelled)
the point says by the members below. Each has a default; a class of a user's own takes part by overriding them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from dynbench.dynamic.draw import Draw
from dynbench.dynamic.trace import Entry, Trace, TraceError

Scope = Literal["item", "sample", "batch"]
_SCOPES: tuple[Scope, ...] = ("item", "sample", "batch")


class Label(NamedTuple):
    """A phrase with its place among those of other points of the model.

    Attributes:
        rank: the lowest comes first. Those of dynbench's own points are 0 to 4.
        text: the phrase.
    """

    rank: int
    text: str


VAGUE = 100
"""From this rank on a label is used only where the model has no other, and only the first of them."""


Kind = Literal["real", "bool", "whole"]
ANY = -1  # a size that is not prescribed


class Wanted(NamedTuple):
    """What a decision point takes from one of its parts.

    Attributes:
        who: the part and what it gives: 'the gate gave scores'.
        shape: for n items, [n, ...]; `ANY`: any size there.
        kind: 'real': numbers; 'bool'; 'whole': long.
        more: more dimensions may follow.
    """

    who: str
    shape: tuple[int, ...]
    kind: Kind = "real"
    more: bool = False

    def fits(self, got: Tensor) -> bool:
        """Whether a tensor has this shape and kind."""
        shape = tuple(got.shape)
        sizes = len(shape) >= len(self.shape) if self.more else len(shape) == len(self.shape)
        return sizes and all(w in (ANY, g) for w, g in zip(self.shape, shape, strict=False)) and self.is_kind(got)

    def is_kind(self, got: Tensor) -> bool:
        """Whether a tensor has this kind."""
        if self.kind == "real":
            return not got.is_complex()
        return got.dtype == (torch.bool if self.kind == "bool" else torch.long)

    def __str__(self) -> str:
        sizes = ["any" if size == ANY else str(size) for size in self.shape] + ["..."] * self.more
        return f"[{', '.join(sizes)}]" + {"real": "", "bool": " bool", "whole": " int64"}[self.kind]


class DecisionPoint(nn.Module):
    """A place in a model where what is computed depends on the item.

    In the shapes below a *row* is one coordinate of a trace's table: rows = items * prod(sizes), where `sizes` are the
    sizes of an item's coordinates below the sample (tokens, steps).

    Args:
        name: unique within the model; the address of its decisions.
        scope: which items the decision or the body couples by the model's own definition: none ('item'), those of one
            sample (attention over tokens), or those of one batch (capacity-limited experts).

    Attributes:
        path: what the depth of a path through points of this kind counts, such as 'bodies run'; None: nothing. Depth
            and keep-rate of a model are those of its points with the first label.
        fixed_work: the work is the same whatever is decided.
        can_be_known: its `forward` goes by `Execution.known`, without deciding, where no gates run (a control).

    Raises:
        ValueError: an unknown scope.
    """

    path: ClassVar[Label | None] = None
    fixed_work: ClassVar[bool] = False
    can_be_known: ClassVar[bool] = False

    def __init__(self, name: str, scope: Scope = "item") -> None:
        super().__init__()
        if scope not in _SCOPES:
            raise ValueError(f"decision point {name!r}: scope {scope!r} is none of {', '.join(_SCOPES)}")
        self.name, self.scope = name, scope

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`forward`, and hooks where there are some.

        A point is called at every block: the rest of what `nn.Module` does on a call would cost as much as deciding.
        """
        if self._forward_hooks or self._forward_pre_hooks:
            return super().__call__(*args, **kwargs)
        return self.forward(*args, **kwargs)

    # --- structure ---

    def parts(self) -> Iterator[nn.Module]:
        """The modules between this point and those below it: gate, bodies, stages, heads, experts."""
        raise NotImplementedError

    @cached_property
    def widest_scope(self) -> Scope:
        """The widest scope among this point and those inside it."""
        return widest_scope(self)

    # --- what its parts return ---

    def wanted(self, n: int) -> Wanted:
        """What the part that decides has to give for n items, before any rule; default: a tensor with n items first."""
        return Wanted("it was given scores", (n,), more=True)

    def check_decision(self, decision: Tensor) -> None:
        """Whether a decision [n, ...] can be carried out, such as experts that there are; values are looked at.

        Raises:
            ModelError: it cannot; the message names the point.
        """

    # --- made-up decisions ---

    @property
    def can_be_made_up(self) -> bool:
        """Whether decisions can be drawn. True of a point that never has any."""
        return type(self).make_up is not DecisionPoint.make_up

    @property
    def rates(self) -> int | None:
        """How many keep-rates the point takes: a list of so many, or a single one for all; None: it takes none."""
        return None

    def options(self, tables: Sequence[Entry]) -> int:
        """Among how many options `make_up` chooses (experts, codes); 0: it does not choose among options.

        Args:
            tables: the point's own in the trace that decisions are made up after; none where no item reached it.
        """
        return 0

    def make_up(self, draw: Draw, like: Entry, rate: Tensor) -> Tensor:
        """Draws a decision for every row.

        Args:
            draw: where random numbers come from.
            like: the point's table as the model itself filled it.
            rate: the keep-rate, float64: [] for every decision, or [rates]; without a meaning where `rates` is None.

        Returns:
            Decisions in the shape of `like.value`, [rows, ...]; in any dtype, on any device.

        Raises:
            TraceError: decisions of this point cannot be made up.
        """
        raise TraceError(f"decisions of point {self.name!r} ({type(self).__name__}) cannot be made up; replay a trace")

    def edges(self, like: Entry) -> tuple[Tensor, Tensor]:
        """The two extremes of what can be decided, alike for all rows.

        Args:
            like: the point's table as the model itself filled it.

        Returns:
            (all run, stay, or go to the first expert; none do, or all go to the last), each of a shape that broadcasts
            to that of `like.value`. Default: what the model decided, twice.
        """
        return like.value, like.value

    # --- how decisions are counted ---

    def choices(self, row: Sequence[int]) -> int:
        """How many decisions one row of the point's table holds.

        Args:
            row: the shape of what a row holds: () for a single value.

        Returns:
            1: a row is one decision as a whole. More: a row [choices] lists so many, in any order, and each is one.
        """
        return 1

    # --- what decisions ask for ---

    def kept(self, decisions: Tensor) -> float | None:
        """How many of n decisions keep their item going; a decision may count in part (k of n experts).

        Args:
            decisions: [n, ...].

        Returns:
            The sum over the decisions, 0 to n; None: they have no keep-rate.
        """
        return None

    def needed(self, trace: Trace, phase: str, index: int, sizes: tuple[int, ...]) -> Tensor | None:
        """Which rows ask for one part of this point, given that the item comes by.

        Args:
            trace: the decisions.
            phase: of the part: 'decide', 'body' or 'head'.
            index: which body, expert, module or step it is.
            sizes: of the coordinates that items have inside the part.

        Returns:
            [rows] bool; None: every item that comes by needs it.
        """
        return None

    def added(self, trace: Trace, index: int, sizes: tuple[int, ...]) -> tuple[Tensor | int, int]:
        """What one visit to body `index` adds to the depth of an item's path; used where there is a `path`.

        Args:
            trace: the decisions.
            index: as in `needed`.
            sizes: as in `needed`.

        Returns:
            (what it adds, [rows] or the same for all; what it adds to the deepest path there can be).
        """
        return 1, 1

    @property
    def couples_work(self) -> bool:
        """Whether the work of an item depends on which other items are there, so that no item's work is its own."""
        return self.scope != "item"

    def decided(self, trace: Trace, sizes: tuple[int, ...]) -> Tensor | None:
        """A trace's whole table of this point, for items with coordinates of these sizes.

        Returns:
            [rows, ...]; None where no item reached the point.
        """
        return trace.look_up(self.name, (trace.items, *sizes), range(trace.items * math.prod(sizes)))

    # --- on paper ---

    @property
    def exits(self) -> int:
        """How many exits an item may leave by."""
        return 0

    def in_static_twin(self, index: int) -> bool:
        """Whether the static twin runs body `index`."""
        return True

    def per_visit(self, region: float, gate: float) -> tuple[float, float]:
        """The work of one visit, from the sums over every body that it may run and every decision that it may take.

        Args:
            region: sum over the bodies.
            gate: sum over the decisions.

        Returns:
            (of the bodies that a visit runs, of one decision).
        """
        return region, gate

    def action(self, item: str) -> Label:
        """What a model with this point does, as the predicate of a sentence: 'skips', 'leaves early'.

        Args:
            item: what an item is called here: 'token' inside an Each, else 'item'.
        """
        return Label(VAGUE, "decides what to compute")


def points(model: nn.Module) -> dict[str, DecisionPoint]:
    """A model's decision points by name, in module order.

    Raises:
        ValueError: two points share a name.
    """
    found: dict[str, DecisionPoint] = {}
    for module in model.modules():
        if isinstance(module, DecisionPoint):
            if module.name in found:
                raise ValueError(f"two decision points are named {module.name!r}; names are addresses of decisions")
            found[module.name] = module
    return found


def widest_scope(model: nn.Module) -> Scope:
    """The widest coupling scope among a model's decision points."""
    scopes = [_SCOPES.index(m.scope) for m in model.modules() if isinstance(m, DecisionPoint)]
    return _SCOPES[max(scopes, default=0)]


def modules_of(*candidates: Any) -> Iterator[nn.Module]:
    """Those of the candidates that are modules: a gate or a head may also be a plain function, or None."""
    return (c for c in candidates if isinstance(c, nn.Module))
