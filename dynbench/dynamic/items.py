"""Moving items: the few operations a strategy needs on what items carry.

What items carry is a *state*: a tensor, or a tuple, list, dict, named tuple or dataclass of states, whose tensors have
the item as their first dimension. Classes of dicts, such as the outputs of language-model libraries, come out as they
went in. `None`, `Shared`, numbers, strings and tensors without a dimension belong to no item and are passed on
untouched. torch's own pytree is not used: it is private, slow for the one-tensor case that fills hot loops, and takes
`None` for a leaf.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence


class Shared:
    """An input that all items share (a table, an encoded memory): never gathered, never put back.

    Args:
        value: anything; `shared.value` gives it back.
    """

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class Arguments:
    """Several inputs of a model as one batch: what it is called with, by position and by name.

    A slice of it is the batch of these items, as of a tensor.

    Args:
        *by_position: states.
        **by_name: states.
    """

    __slots__ = ("by_name", "by_position")

    def __init__(self, *by_position: Any, **by_name: Any) -> None:
        self.by_position, self.by_name = by_position, by_name

    def __len__(self) -> int:
        return count(self)

    def __getitem__(self, rows: slice | Tensor) -> Arguments:
        part: Arguments = map_items(lambda t: t[rows], self)
        return part

    def call(self, f: Callable[..., Any]) -> Any:
        """`f` of these arguments."""
        return f(*self.by_position, **self.by_name)


def called(f: Callable[..., Any], x: Tensor | Arguments) -> Any:
    """`f` of a batch: of its one tensor, or of its several arguments."""
    return x.call(f) if isinstance(x, Arguments) else f(x)


def map_items(f: Callable[..., Any], state: Any, *others: Any) -> Any:
    """Applies `f` to every tensor of `state` that belongs to items (and the tensors in the same places of `others`)."""
    if isinstance(state, Tensor):
        return f(state, *others) if state.dim() else state
    if state is None or isinstance(state, _OF_NO_ITEM):
        return state
    if type(state) is dict:
        return {k: map_items(f, v, *(o[k] for o in others)) for k, v in state.items()}
    if isinstance(state, PackedSequence):
        raise TypeError("a packed sequence has no row per item: let the state be padded, and pack it inside a body")
    if isinstance(state, (tuple, list)):
        return _remade(state, [map_items(f, *same) for same in zip(state, *others, strict=True)])
    parts = zip(*(_parts(s) for s in (state, *others)), strict=True)
    return _remade(state, [map_items(f, *(part for _, part in same)) for same in parts])


_OF_NO_ITEM = (Shared, bool, int, float, complex, str, torch.dtype, torch.device)


def _parts(state: Any) -> Iterator[tuple[Any, Any]]:
    """What a state is made of, with its keys; nothing of what is no state."""
    if isinstance(state, Mapping):
        yield from state.items()
    elif isinstance(state, (tuple, list)):
        yield from zip(getattr(state, "_fields", range(len(state))), state, strict=True)
    elif isinstance(state, Arguments):
        yield from enumerate(state.by_position)
        yield from state.by_name.items()
    elif is_dataclass(state) and not isinstance(state, type):
        yield from ((field.name, getattr(state, field.name)) for field in fields(state))


def _remade(state: Any, parts: list[Any]) -> Any:
    """A state like this one, made of other parts.

    Raises:
        TypeError: it is no state.
    """
    if isinstance(state, (tuple, list)):
        return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
    if isinstance(state, Mapping):
        return _same_mapping(state, dict(zip(state, parts, strict=True)))
    if isinstance(state, Arguments):
        n = len(state.by_position)
        return Arguments(*parts[:n], **dict(zip(state.by_name, parts[n:], strict=True)))
    if is_dataclass(state) and not isinstance(state, type):
        new = copy.copy(state)
        for field, part in zip(fields(state), parts, strict=True):
            object.__setattr__(new, field.name, part)  # a frozen one, too
        return new
    raise TypeError(f"a state is made of tensors, tuples, lists, dicts and dataclasses, not of {type(state).__name__}")


def _same_mapping(state: Any, parts: dict[Any, Any]) -> Any:
    """A mapping of the class of `state` with these entries; those that are attributes as well stay so."""
    if type(state) is dict:
        return parts
    new = copy.copy(state)
    for key, part in parts.items():
        new[key] = part
    attributes = getattr(new, "__dict__", {})
    if attributes and vars(state) is state:  # `self.__dict__ = self`
        new.__dict__ = new
    else:
        attributes.update((key, part) for key, part in parts.items() if key in attributes)
    return new


def tensors(state: Any) -> Iterator[Tensor]:
    """The tensors of a state, in order, those that belong to no item included."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, (tuple, list)):
        for part in state:
            yield from tensors(part)
    else:
        for _, part in _parts(state):
            yield from tensors(part)


def named_tensors(state: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of a state with their places in it, in order: 'logits', '1.boxes'; a tensor alone is ''."""
    if isinstance(state, Tensor):
        yield name, state
    for key, part in _parts(state):
        yield from named_tensors(part, _joined_name(name, str(key)))


def of_items_alone(state: Any) -> bool:
    """Whether all tensors in a state belong to items, so that gathering it gathers all of it."""
    if isinstance(state, Tensor):
        return state.dim() > 0
    if isinstance(state, Shared):
        return False
    return all(of_items_alone(part) for _, part in _parts(state))


def first(state: Any) -> Tensor:
    """The first tensor of a state that belongs to items: it knows how many there are and on which device.

    Raises:
        ValueError: the state holds no such tensor.
    """
    if isinstance(state, Tensor):
        return state
    for tensor in tensors(state):
        if tensor.dim():
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


def rows_where(mask: Tensor, size: int) -> Tensor:
    """The rows [size] where a mask [n] is True, of which it is known how many there are: a GPU is not waited for."""
    if mask.device.type == "cpu":  # twice as fast there
        return mask.nonzero().squeeze(1)
    return torch.nonzero_static(mask, size=size).squeeze(1)


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


def equal_weights(state: Any, chosen: Tensor) -> Tensor:
    """Weights [n, k] for what was chosen [n, k], in the type that the items of `state` are computed in: 1 / k each."""
    real = next((t.dtype for t in tensors(state) if t.dtype.is_floating_point), torch.get_default_dtype())
    return torch.full(chosen.shape, 1 / max(chosen.shape[1], 1), dtype=real, device=chosen.device)


def select(mask: Tensor, yes: Any, no: Any) -> Any:
    """Per item: `yes` where `mask` [n], else `no`. Unlike `mask * yes + ...`, lets no NaN of the other through."""
    return map_items(lambda a, b: torch.where(wide(mask, a), a, b), yes, no)


def flat_parts(t: Tensor) -> Tensor:
    """The parts of items as items: [n, T, ...] -> [n * T, ...]."""
    return t.flatten(0, 1)


def cat(states: list[Any]) -> Any:
    """States one after the other."""
    return states[0] if len(states) == 1 else map_items(lambda *t: torch.cat(t), *states)


# --- answers ---------------------------------------------------------------------------------------------------------


def joined_answers(answers: list[Any], sizes: Sequence[int] | None = None) -> Any:
    """A model's answers to batches as the one it gives to all of them.

    A list with an entry for every item, such as the boxes that a detector finds, goes on; what belongs to no item is
    that of the first.

    Args:
        answers: of one structure.
        sizes: of the batches; None: single items.
    """
    sizes = sizes or [1] * len(answers)
    like = answers[0]
    if len(answers) == 1:
        return like
    if isinstance(like, Tensor):
        return torch.cat(answers) if like.dim() else like
    if isinstance(like, list) and any(map(_has_entries, answers, sizes)):
        return [entry for answer in answers for entry in answer]
    parts = list(zip(*(_parts(answer) for answer in answers), strict=True))
    return _remade(like, [joined_answers([part for _, part in same], sizes) for same in parts]) if parts else like


def answer_parts(answer: Any, n: int) -> tuple[dict[str, Tensor], list[str]]:
    """What of an answer can be compared item by item.

    Args:
        answer: of a model, to n items.
        n: how many.

    Returns:
        Its tensors by name, the entries of a list with one for every item put together; and the names of the numbers
        that belong to the whole batch, such as a balance loss.
    """
    parts: dict[str, Tensor] = {}
    of_batch: list[str] = []
    _sort_parts(answer, n, "", parts, of_batch)
    return parts, of_batch


def _sort_parts(answer: Any, n: int, name: str, parts: dict[str, Tensor], of_batch: list[str]) -> None:
    if isinstance(answer, Tensor) and answer.dim():
        parts[name] = answer
    elif isinstance(answer, (Tensor, int, float)):
        of_batch.append(name)
    elif isinstance(answer, list) and _has_entries(answer, n):
        entries = [dict(named_tensors(entry)) for entry in answer]
        for key in entries[0]:
            same = [entry[key] for entry in entries]
            parts[_joined_name(name, _joined_name("0", key))] = torch.cat([t if t.dim() else t[None] for t in same])
    else:
        for key, part in _parts(answer):
            _sort_parts(part, n, _joined_name(name, str(key)), parts, of_batch)


def _has_entries(answer: list[Any], n: int) -> bool:
    """Whether a list holds an entry for each of n items, not tensors that hold all of them."""
    if len(answer) != n:
        return False
    numbers = [entry.dim() == 0 for entry in answer if isinstance(entry, Tensor)]
    if any(numbers):
        return all(numbers) and len(numbers) == n
    return any(t.dim() == 0 or t.shape[0] != n for t in tensors(answer))


def _joined_name(name: str, key: str) -> str:
    return f"{name}.{key}" if name and key else name or key
