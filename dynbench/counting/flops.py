"""Executed FLOPs, bytes touched and operator calls, counted as operators are dispatched.

torch's own counter is not used: it gives 0 for attention and LSTM on a CPU, the fast paths of multi-head attention,
grouped products and `while_loop`, and adds up both branches of `torch.cond`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dynbench.counting.formulas import FORMULAS, base_name, kind
from dynbench.unavailable import Unavailable

Part = tuple[str, str | None, int | None]  # phase, point, index


class NoFormulaError(RuntimeError):
    """An operator that may compute has no FLOP formula, and the counter is strict."""


class FlopCounter(TorchDispatchMode):
    """Counts what runs inside `with FlopCounter() as work:`; as the profile of an execution it counts by part.

    Compiled regions run eagerly under the counter: the same products, without fusion. Counting is slow: do not time it.

    Args:
        strict: raise at the first operator that has no formula.

    Attributes:
        bytes_touched: tensor bytes read and written by operators. An upper bound of memory traffic: caches are ignored,
            broadcast operands count in full; of a table only the rows taken or written count.
        operator_calls: operators that computed or moved something; views and allocations are not counted.
        uncounted: calls of operators without a formula, by name.
        multiplied_in: types of the tensors that went into operators with a formula.
        by_part: FLOPs by (phase, point, index), each operator in its innermost part only; None: outside all parts.

    Raises:
        NoFormulaError: see `strict`.
    """

    supports_higher_order_operators = True

    def __init__(self, *, strict: bool = False) -> None:
        super().__init__()
        self.strict = strict
        self.bytes_touched = 0
        self.operator_calls = 0
        self.uncounted: dict[str, int] = defaultdict(int)
        self.multiplied_in: set[torch.dtype] = set()
        self.by_part: dict[Part | None, int] = defaultdict(int)
        self._stack: list[Part | None] = [None]

    @property
    def flops(self) -> int | Unavailable:
        """FLOPs executed, 1 MAC = 2 FLOPs; Unavailable where an operator has no formula."""
        if self.uncounted:
            return Unavailable(unavailable=f"operator {', '.join(sorted(self.uncounted))} has no formula")
        return sum(self.by_part.values())

    def enter(self, phase: str, point: str | None, index: int | None) -> None:
        """Begins a part of the model; called by the execution."""
        self._stack.append((phase, point, index))

    def exit(self) -> None:
        """Ends the part entered last."""
        self._stack.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operator and counts it."""
        kwargs = kwargs or {}
        what = _kind(func)
        if what == "higher order":
            return self._higher_order(func, args, kwargs)
        if what == "composite":
            with self:
                return func.decompose(*args, **kwargs)
        out = func(*args, **kwargs)
        if what == "view":
            return out
        self.operator_calls += 1
        self.bytes_touched += _bytes(func, args, kwargs, out)
        if what == "formula" and _are_plain(args):
            self._add(FORMULAS[base_name(func)](out, *args, **kwargs))
            self.multiplied_in.update(t.dtype for t in _tensors(args))
        elif what != "free":
            self._no_formula(str(func))
        return out

    def _add(self, flops: int) -> None:
        self.by_part[self._stack[-1]] += flops

    def _no_formula(self, name: str) -> None:
        if self.strict:
            raise NoFormulaError(f"operator {name} has no FLOP formula")
        self.uncounted[name] += 1

    def _higher_order(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Runs control flow as without the counter: only the branch taken, only the steps needed."""
        if func is torch.ops.higher_order.cond:
            predicate, yes, no, operands = args
            with self:
                return (yes if bool(predicate) else no)(*operands)
        if func is torch.ops.higher_order.while_loop:
            condition, body, carried, extra = args
            with self:
                while bool(condition(*carried, *extra)):
                    carried = body(*carried, *extra)
            return tuple(carried)
        self.operator_calls += 1
        self._no_formula(func.name())
        return func(*args, **kwargs)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)


def _are_plain(args: Any) -> bool:
    return all(t.layout is torch.strided and not t.is_nested for t in _tensors(args))


@cache
def _kind(func: Any) -> str:
    return "higher order" if isinstance(func, torch._ops.HigherOrderOperator) else kind(func)


def _size(value: Any) -> int:
    """Bytes of the tensors in a value; a loop, because it is called three times for every operator."""
    if isinstance(value, Tensor):
        return int(value.numel() * value.element_size())
    total = 0
    if isinstance(value, (tuple, list)):
        for part in value:
            if isinstance(part, (Tensor, tuple, list)):
                total += _size(part)
    return total


# Of these tables only some rows are read (as many as come out) ...
_TAKES_ROWS = frozenset({"index", "index_select", "_unsafe_index", "gather", "take", "embedding", "masked_select"})
_TAKES_BAGS = frozenset({"_embedding_bag", "_embedding_bag_forward_only"})
# ... or written (as many as come in, from this argument); where something is added they are read as well.
_PUTS_ROWS = {"index_copy_": 3, "index_put_": 2, "_index_put_impl_": 2, "scatter_": 3}
_ADDS_ROWS = {"index_add_": 3, "scatter_add_": 3, "index_reduce_": 3, "scatter_reduce_": 3}
_OVERWRITES = frozenset({"copy_", "fill_", "zero_", "normal_", "uniform_", "bernoulli_", "random_", "exponential_"})


def _bytes(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    """Tensor bytes an operator reads and writes."""
    name = func.overloadpacket.__name__
    written = _size(out)
    if name in _TAKES_ROWS:
        return 2 * written + _size(args[1:])
    if name in _TAKES_BAGS:
        weight, indices = args[0], args[1]
        taken: int = indices.numel() * weight.shape[1] * weight.element_size()
        return taken + _size(args[1:]) + written
    if name in _PUTS_ROWS or name in _ADDS_ROWS:
        source = args[_PUTS_ROWS.get(name) or _ADDS_ROWS[name]]
        rows = _size(source) if isinstance(source, Tensor) and source.dim() else written  # a scalar: at most all
        return _size(args[1:]) + rows * (1 if name in _PUTS_ROWS else 2)
    read = _size(args[1:] if name in _OVERWRITES else args)
    if kwargs:
        read += _size([v for k, v in kwargs.items() if not k.startswith("out")])
    return read + written
