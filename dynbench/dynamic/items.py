"""Moving items: the few operations a strategy needs on what items carry.

What items carry is a *state*: a tensor, or a tuple, list, dict or named tuple of states, whose tensors have the item
as their first dimension. `None` and `Shared` parts belong to no item and are passed on untouched. torch's own pytree is
not used: it is private, slow for the one-tensor case that fills hot loops, and takes `None` for a leaf.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor


class Shared:
    """An input that all items share (a table, an encoded memory): never gathered, never put back.

    Args:
        value: anything; `shared.value` gives it back.
    """

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


def map_items(f: Callable[..., Any], state: Any, *others: Any) -> Any:
    """Applies `f` to every tensor of `state` (and the tensors in the same places of `others`)."""
    if isinstance(state, Tensor):
        return f(state, *others)
    if state is None or isinstance(state, Shared):
        return state
    if isinstance(state, dict):
        return {k: map_items(f, v, *(o[k] for o in others)) for k, v in state.items()}
    if isinstance(state, (tuple, list)):
        parts = [map_items(f, *same) for same in zip(state, *others, strict=True)]
        return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
    raise TypeError(f"a state is made of tensors, tuples, lists and dicts, not of {type(state).__name__}")


def tensors(state: Any) -> Iterator[Tensor]:
    """The tensors of a state, in order."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict):
        for part in state.values():
            yield from tensors(part)
    elif isinstance(state, (tuple, list)):
        for part in state:
            yield from tensors(part)


def first(state: Any) -> Tensor:
    """The first tensor of a state: it knows how many items there are and on which device.

    Raises:
        ValueError: the state holds no tensor.
    """
    if isinstance(state, Tensor):
        return state
    for tensor in tensors(state):
        return tensor
    raise ValueError("a state without a tensor has no items")


def count(state: Any) -> int:
    """The number of items in a state."""
    return first(state).shape[0]


def _is_channels_last(t: Tensor) -> bool:
    return t.dim() == 4 and not t.is_contiguous() and t.is_contiguous(memory_format=torch.channels_last)


def _take(t: Tensor, rows: Tensor) -> Tensor:
    if _is_channels_last(t):  # index_select would answer in the other layout and slow down all that follows
        return t.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)
    return t.index_select(0, rows)


def take(state: Any, rows: Tensor) -> Any:
    """The items `rows` [m] of a state, copied, in the layout they had."""
    return _take(state, rows) if isinstance(state, Tensor) else map_items(lambda t: _take(t, rows), state)


def row(state: Any, i: int) -> Any:
    """Item `i` alone, as a view of one row."""
    return map_items(lambda t: t[i : i + 1], state)


_WORD = torch.complex128  # the widest element there is: 16 bytes
_WORTH_IT = 16384  # bytes; below this finding out costs more than it saves


def _words(t: Tensor) -> Tensor | None:
    """The same memory [n, ...] as rows of 16-byte words [n, w]; None where that cannot be."""
    if _is_channels_last(t):
        t = t.permute(0, 2, 3, 1)
    whole = t.dim() > 1 and t.stride(0) * t.element_size() % 16 == 0 and t.storage_offset() * t.element_size() % 16 == 0
    return t.flatten(1).view(_WORD) if whole and t.is_contiguous() and not t.requires_grad else None


def _put_(into: Tensor, rows: Tensor, part: Tensor) -> Tensor:
    if part.device.type == "cpu" and part.nbytes >= _WORTH_IT and _is_channels_last(into) == _is_channels_last(part):
        a, b = _words(into), _words(part)
        if a is not None and b is not None:  # index_copy_ moves element by element there: a third of the time
            a.index_copy_(0, rows, b)
            return into
    return into.index_copy_(0, rows, part)


def put_(into: Any, rows: Tensor, state: Any) -> Any:
    """Writes the items of `state` [m] over the `rows` [m] of `into`, in place; returns `into`."""
    if isinstance(into, Tensor):
        return _put_(into, rows, state)
    return map_items(lambda a, b: _put_(a, rows, b), into, state)


def _blank(t: Tensor, n: int) -> Tensor:
    layout = torch.channels_last if _is_channels_last(t) else torch.contiguous_format
    return torch.empty((n, *t.shape[1:]), dtype=t.dtype, device=t.device, memory_format=layout)


def blank(state: Any, n: int) -> Any:
    """Room for `n` items like those of `state`, not initialised."""
    return map_items(lambda t: _blank(t, n), state)


def zeros(state: Any, n: int) -> Any:
    """`n` zero items like those of `state`."""
    return map_items(lambda t: _blank(t, n).zero_(), state)


def wide(v: Tensor, like: Tensor) -> Tensor:
    """A value per item [n], shaped to multiply `like` [n, ...]."""
    return v.view(-1, *[1] * (like.dim() - 1))


def select(mask: Tensor, yes: Any, no: Any) -> Any:
    """Per item: `yes` where `mask` [n], else `no`. Unlike `mask * yes + ...`, lets no NaN of the other through."""
    return map_items(lambda a, b: torch.where(wide(mask, a), a, b), yes, no)


def flat_parts(t: Tensor) -> Tensor:
    """The parts of items as items: [n, T, ...] -> [n * T, ...]."""
    return t.flatten(0, 1)


def cat(states: list[Any]) -> Any:
    """States one after the other."""
    return states[0] if len(states) == 1 else map_items(lambda *t: torch.cat(t), *states)
