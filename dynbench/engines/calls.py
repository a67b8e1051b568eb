"""Calls of regions as lists of tensors: what engines that replace a module by something else have in common."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dynbench.dynamic.items import take

TOLERANCE = {  # of the answer's largest value, where two ways compute the same; other dtypes: equal
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.float16: 2e-2,
    torch.bfloat16: 5e-2,
}


class NotItems(Exception):
    """Part of a call or of an answer is neither a tensor of items nor a constant."""


class Slot:
    """Stands for a tensor in the structure of a call or of an answer."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index


def flatten(state: Any, into: list[Tensor]) -> Hashable:
    """The signature of a state: its structure, constants, and the shape and dtype of an item of each tensor.

    Args:
        state: tensors [n, ...], constants, and tuples, lists and dicts of these.
        into: its tensors are appended here, in order.

    Raises:
        NotItems: there is something else in it.
    """
    if isinstance(state, Tensor):
        if not state.dim():
            raise NotItems
        into.append(state)
        return state.dtype, state.shape[1:]
    if state is None or isinstance(state, (bool, int, float, str)):
        return type(state), state
    if type(state) is dict:  # classes of dicts would come out as plain ones
        return dict, *((key, flatten(part, into)) for key, part in state.items())
    if isinstance(state, (tuple, list)):
        return type(state), *(flatten(part, into) for part in state)
    raise NotItems


def skeleton(state: Any, slot: Callable[[Tensor], Slot]) -> Any:
    """A state with slots in the places of its tensors."""
    if isinstance(state, Tensor):
        return slot(state)
    if isinstance(state, dict):
        return {key: skeleton(part, slot) for key, part in state.items()}
    if isinstance(state, (tuple, list)):
        parts = [skeleton(part, slot) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
    return state


def numbered(state: Any) -> Any:
    """A state with slots 0, 1, ... in the places of its tensors, in order."""
    numbers = itertools.count()
    return skeleton(state, lambda t: Slot(next(numbers)))


def filled(form: Any, tensors: list[Tensor]) -> Any:
    """A state from its skeleton: the inverse of `skeleton`."""
    kind = type(form)
    if kind is Slot:
        return tensors[form.index]
    if kind is tuple or kind is list:
        return kind([filled(part, tensors) for part in form])
    if isinstance(form, dict):
        return {key: filled(part, tensors) for key, part in form.items()}
    if isinstance(form, tuple):
        return kind(*(filled(part, tensors) for part in form))
    return form


def slots(form: Any) -> int:
    """How many slots a skeleton has."""
    if isinstance(form, Slot):
        return 1
    if isinstance(form, dict):
        return sum(map(slots, form.values()))
    return sum(map(slots, form)) if isinstance(form, (tuple, list)) else 0


def outcome(answer: Any, given: list[Tensor]) -> tuple[Any, list[Tensor]]:
    """(the answer with slots, the tensors in it that are not those given).

    The slots count first the tensors that were given, then the others.

    Raises:
        NotItems: something in the answer is neither a tensor of items nor a constant.
    """
    flatten(answer, [])
    places = {id(t): i for i, t in enumerate(given)}
    computed: list[Tensor] = []

    def slot(t: Tensor) -> Slot:
        if id(t) not in places:
            places[id(t)] = len(given) + len(computed)
            computed.append(t)
        return Slot(places[id(t)])

    return skeleton(answer, slot), computed


def rows(tensors: list[Tensor], n: int) -> list[Tensor]:
    """n rows of each tensor, its own ones over and over."""
    index = torch.arange(n, device=tensors[0].device) % tensors[0].shape[0]
    return [take(t, index) for t in tensors]


@contextmanager
def as_written(module: nn.Module) -> Iterator[None]:
    """The module and all in it call their own `forward` meanwhile: layers that it shares may be regions too."""
    replaced = [(m, m.__dict__.pop("forward")) for m in module.modules() if "forward" in m.__dict__]
    try:
        yield
    finally:
        for inner, forward in replaced:
            object.__setattr__(inner, "forward", forward)


def largest(x: Tensor, y: Tensor) -> float:
    """The largest difference."""
    return float((x.double() - y.double()).abs().max()) if x.numel() else 0.0


def equal(x: Tensor, y: Tensor) -> bool:
    """Whether y is x up to rounding; a NaN equals a NaN."""
    if x.dtype not in TOLERANCE:
        return torch.equal(x, y)
    scale = x.abs().nan_to_num(0.0, 0.0, 0.0).max().item() if x.numel() else 0.0
    return torch.allclose(x, y, rtol=0.0, atol=TOLERANCE[x.dtype] * scale + 1e-30, equal_nan=True)
