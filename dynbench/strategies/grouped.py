"""grouped: compaction that computes all experts of a Route in one grouped matrix product, without waiting for a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import grouped_mm, linear
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from dynbench.dynamic import DecisionPoint, Route, Skip
from dynbench.dynamic.context import Execution
from dynbench.dynamic.items import blank, put_, take, wide
from dynbench.strategies.compaction import Compaction

ALIGNMENT_BYTES = 16  # of the rows of a matrix


class Grouped(Compaction):
    """Compaction whose Routes are grouped matrix products where that can be; elsewhere it is compaction.

    It can be on a GPU, in bfloat16, without gradients, where all experts are the same module but for the values of
    parameters, and use these only as weights and biases of linear layers. Their weights are kept a second time, one
    after the other. Which items go where stays on the device; the experts share one phase `body`.
    """

    name = "grouped"

    def __init__(self) -> None:
        self._stacks: WeakKeyDictionary[Route, Stack | None] = WeakKeyDictionary()

    def route(self, ex: Execution, point: Route | Skip, x: Any, chosen: Tensor, weights: Tensor | None) -> Any:
        """Sort the (item, slot) pairs by expert, compute all, put back, add the slots."""
        stack = self._stack(point) if isinstance(point, Route) and fits(x) and chosen.shape[0] > 1 else None
        if stack is None:
            return super().route(ex, point, x, chosen, weights)
        n, k = chosen.shape
        with ex.phase("gather"):
            flat, experts = chosen.flatten(), len(point.experts)
            expert, order = torch.where(flat < 0, experts, flat).sort(stable=True)  # those that are dropped come last
            rows = order if k == 1 else order // k
            part = take(x, rows)
        with ex.phase("body", point.name):
            y = stack.run(part, expert)
        with ex.phase("scatter"):
            kept = wide(expert < experts, y)
            out = put_(blank(y, n * k), order, torch.where(kept, y, 0))
            if weights is not None:
                out = out * wide(weights.flatten(), out)
            return out if k == 1 else out.unflatten(0, (n, k)).sum(1)

    def _stack(self, point: Route) -> Stack | None:
        if point not in self._stacks:
            self._stacks[point] = Stack.of(list(point.experts))
        return self._stacks[point]


def fits(x: Any) -> bool:
    """Whether grouped products have a kernel for a state: torch's other ways of computing them wait for the device."""
    if not isinstance(x, Tensor) or torch.is_grad_enabled():
        return False
    return x.is_cuda and x.dtype == torch.bfloat16 and x.dim() == 2


class Stack:
    """Equal experts, as one.

    Args:
        expert: the first of them; its forward is run for all.
        parameters: of all of them [E, ...], by the id of the first one's.
    """

    def __init__(self, expert: nn.Module, parameters: dict[int, Tensor]) -> None:
        self._expert, self._parameters = expert, parameters

    @classmethod
    def of(cls, experts: Sequence[nn.Module | None]) -> Stack | None:
        """The experts as one; None where they differ, or use their parameters otherwise than in linear layers."""
        first = experts[0]
        if first is None or len({id(e) for e in experts}) < len(experts):
            return None
        if any(e is None or not _alike(first, e) for e in experts):
            return None
        named = [dict(e.named_parameters()) for e in experts if e is not None]
        stacked = {id(own): torch.stack([other[name].detach() for other in named]) for name, own in named[0].items()}
        return cls(first, stacked) if _only_linear(first, stacked) else None

    def run(self, x: Tensor, expert: Tensor) -> Tensor:
        """x [m, ...], the expert of each row [m] in ascending order, E where there is none -> y [m, ...].

        Rows without an expert are undefined.
        """
        experts = next(iter(self._parameters.values())).shape[0]
        ends = torch.searchsorted(expert, torch.arange(experts, device=x.device), right=True).to(torch.int32)

        def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            y = grouped_mm(x, self._parameters[id(weight)].transpose(1, 2), offs=ends)
            if bias is None:
                return y
            return y + self._parameters[id(bias)].index_select(0, expert.clamp(max=experts - 1))

        with _Linear(product, self._parameters):
            y: Tensor = self._expert(x)
        return y


class _Elsewhere(Exception):
    """A parameter is used otherwise than as weight or bias of a linear layer of rows."""


class _Linear(TorchFunctionMode):
    """Computes linear layers by another function `(x [m, d], weight, bias) -> y`; parameters must go nowhere else."""

    def __init__(self, product: Callable[..., Tensor], parameters: dict[int, Tensor]) -> None:
        super().__init__()
        self._product, self._parameters = product, parameters

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [id(t) in self._parameters for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if not any(given):
            return func(*args, **kwargs)
        if func is not linear or given[0] or not all(given[1:]):
            raise _Elsewhere
        x, *others = args
        if x.dim() != 2 or any(size * x.element_size() % ALIGNMENT_BYTES for size in others[0].shape):
            raise _Elsewhere
        return self._product(x, *others, **kwargs)


def _only_linear(expert: nn.Module, parameters: dict[int, Tensor]) -> bool:
    """Whether an expert's parameters are all used by linear layers of rows [m, d]; tried with its first one's width."""
    weight = next((p for p in expert.parameters() if p.dim() == 2), None)
    if weight is None:
        return False
    row = weight.new_zeros(1, weight.shape[1])
    try:
        with torch.no_grad(), _Linear(linear, parameters):
            expert(row)
    except Exception:  # noqa: BLE001  (a module of a user's; one that takes something else is no such expert)
        return False
    return True


def _alike(a: nn.Module, b: nn.Module) -> bool:
    """Whether two modules are the same but for the values of their parameters, have no buffers and decide nothing."""
    mine, theirs = list(a.named_modules()), list(b.named_modules())
    return [name for name, _ in mine] == [name for name, _ in theirs] and all(
        _same_layer(x, y) for (_, x), (_, y) in zip(mine, theirs, strict=True)
    )


def _same_layer(a: nn.Module, b: nn.Module) -> bool:
    if type(a) is not type(b) or isinstance(a, DecisionPoint) or a._buffers or b._buffers:
        return False
    shapes = [{name: p is not None and (p.shape, p.dtype) for name, p in m._parameters.items()} for m in (a, b)]
    plain = [{k: v for k, v in vars(m).items() if k not in ("_parameters", "_modules")} for m in (a, b)]
    try:
        return shapes[0] == shapes[1] and plain[0] == plain[1]
    except (RuntimeError, ValueError):  # tensors and arrays do not compare so
        return False
