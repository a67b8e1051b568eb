"""What an arm does between and inside its regions: calls with their sizes, rows moved, waits. Counted, not timed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dynbench.counting.flops import FlopCounter
from dynbench.dynamic import DecisionPoint
from dynbench.dynamic.items import tensors
from dynbench.dynamic.regions import Region, items_of

MOVES = frozenset(
    (
        "index_select",
        "index",
        "index_copy",
        "index_copy_",
        "index_put",
        "index_put_",
        "_index_put_impl_",
        "index_add",
        "index_add_",
        "gather",
        "scatter",
        "scatter_",
        "cat",
        "clone",
        "copy_",
        "where",
        "masked_scatter",
    )
)
"""Operators that gather rows, put them back, or make room for that."""
WAITS = frozenset(
    (
        "_local_scalar_dense",
        "nonzero",
        "unique_dim",
        "_unique2",
        "unique_consecutive",
        "is_nonzero",
        "equal",
    )
)
"""Operators after which the host knows a value or a size that depends on one."""
FREE = frozenset(
    (
        "empty",
        "empty_like",
        "new_empty",
        "empty_strided",
        "detach",
        "lift_fresh",
        "alias",
    )
)
"""Operators that only make room or another name."""


@dataclass
class Products:
    """Operators that execute FLOPs: matrix products, convolutions, attention.

    Attributes:
        operators: how many.
        flops: of all of them.
    """

    operators: int = 0
    flops: int = 0

    def add(self, flops: int) -> None:
        """Counts one more."""
        self.operators += 1
        self.flops += flops


@dataclass(frozen=True)
class Call:
    """A call of a region that goes on."""

    region: str
    items: int
    flops_before: int


@dataclass
class Work:
    """What calls of a region with the same number of items do, all of them together.

    Attributes:
        flops: executed.
        elements: of the tensors that they are given.
    """

    flops: int = 0
    elements: int = 0


class Watched(TorchDispatchMode):
    """Watches what runs inside `with`, as called by a network whose regions are known.

    Args:
        network: that is called.
        regions: of it, by name.

    Attributes:
        calls: of each region by number of items.
        work: that these do.
        inside: operators by region.
        products: operators within regions that execute FLOPs, and the FLOPs of these.
        outside: the same outside regions.
        movings: operators outside regions that move rows.
        moved_bytes: that these read and wrote.
        operators: other operators outside regions.
        operator_bytes: that these read and wrote, but for those that execute FLOPs.
        waits: times that the host looked at a value.
        points: visits to decision points.
    """

    def __init__(self, network: nn.Module, regions: Sequence[Region]) -> None:
        super().__init__()
        self.calls: dict[str, Counter[int]] = defaultdict(Counter)
        self.work: dict[str, dict[int, Work]] = defaultdict(lambda: defaultdict(Work))
        self.inside: Counter[str] = Counter()
        self.products, self.outside = Products(), Products()
        self.movings = self.moved_bytes = self.operators = self.operator_bytes = self.waits = self.points = 0
        self._network, self._regions = network, regions
        self._now: list[Call] = []
        self._hooks: list[Any] = []
        self._counter = FlopCounter()

    def __enter__(self) -> Watched:
        for region in self._regions:
            before = self._before(region.name)
            self._hooks.append(nn.Module.register_forward_pre_hook(region.module, before))
            self._hooks.append(nn.Module.register_forward_hook(region.module, self._after))
        for module in self._network.modules():
            if isinstance(module, DecisionPoint):
                self._hooks.append(module.register_forward_pre_hook(self._visit))
        self._counter.__enter__()  # what is watched is passed on to it
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._counter.__exit__(*error)
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operator and counts it."""
        before = self._flops
        out = func(*args, **(kwargs or {}))
        if computed := self._flops > before:
            (self.products if self._now else self.outside).add(self._flops - before)
        name = func.name().removeprefix("aten::").split(".")[0]
        if getattr(func, "is_view", False) or name in FREE:
            return out
        if self._now:
            self.inside[self._now[-1].region] += 1
            return out
        if name in WAITS:
            self.waits += 1
        elif name in MOVES:
            self.movings += 1
            self.moved_bytes += _moved(name, args, out)
        else:
            self.operators += 1
            self.operator_bytes += 0 if computed else _bytes(args) + _bytes(out)
        return out

    def _before(self, name: str) -> Callable[..., None]:
        def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
            call = Call(name, max(items_of(args), 1), self._flops)
            if not self._now:  # a region calls itself as well: of a network that is one
                self.calls[name][call.items] += 1
                self.work[name][call.items].elements += sum(t.numel() for t in tensors(args))
            self._now.append(call)

        return enter

    def _after(self, *_: Any) -> None:
        call = self._now.pop()
        if not self._now:
            self.work[call.region][call.items].flops += self._flops - call.flops_before

    @property
    def _flops(self) -> int:
        return self._counter.by_part[None]

    def _visit(self, *_: Any) -> None:
        self.points += 1


def _bytes(values: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tree_leaves(values) if isinstance(t, Tensor))


def _moved(name: str, args: Any, out: Any) -> int:
    """Read and written: of a table only the rows that are taken or put count."""
    if name in ("index_select", "index", "gather", "clone", "cat"):
        return 2 * _bytes(out)
    if name in ("index_copy_", "index_put_", "index_add_", "_index_put_impl_", "scatter_", "copy_"):
        rows = [t for t in tree_leaves(args[1:]) if isinstance(t, Tensor)]
        return 2 * max((t.numel() * t.element_size() for t in rows), default=0)
    return 2 * _bytes(out)


def roles(network: nn.Module, regions: Sequence[Region], run: Callable[[Any], Any]) -> dict[str, str]:
    """Which regions decide, and which compute, as the phases of one pass say.

    Args:
        network: with decision points.
        regions: of it.
        run: makes a pass with a given profile.

    Returns:
        'decide' or 'body' by region; one that both kinds of phases call is a body.
    """
    noted = _Phases()
    found: dict[str, str] = {}

    def note(name: str) -> Callable[..., None]:
        def enter(*_: Any) -> None:
            role = "decide" if noted.stack and noted.stack[-1] in ("decide", "head") else "body"
            found[name] = "body" if found.get(name, role) == "body" else role

        return enter

    hooks = [nn.Module.register_forward_pre_hook(r.module, note(r.name)) for r in regions]
    try:
        with torch.inference_mode():
            run(noted)
    finally:
        for hook in hooks:
            hook.remove()
    return found


class _Phases:
    """A profile that only knows which phase it is in."""

    def __init__(self) -> None:
        self.stack: list[str] = []

    def enter(self, phase: str, point: str | None, index: int | None) -> None:
        self.stack.append(phase)

    def exit(self) -> None:
        self.stack.pop()
