"""How modules are called in a forward pass: which argument is the tensor on its way, which have a row for each item."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from dynbench.adapt.network import SIZES, Inputs, said, tried
from dynbench.errors import UserError


class Call(NamedTuple):
    """One call of a module.

    Attributes:
        name: of the module.
        args, kwargs: what it was called with.
        out: what it returned.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any


def watch(model: nn.Module, inputs: Inputs, modules: dict[str, nn.Module]) -> tuple[Any, list[Call]]:
    """The model's answer, and the calls of some of its modules, in the order in which they ended."""
    calls: list[Call] = []

    def watcher(name: str) -> Callable[..., None]:
        def watched(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            calls.append(Call(name, args, kwargs, out))

        return watched

    handles = [m.register_forward_hook(watcher(name), with_kwargs=True) for name, m in modules.items()]
    try:
        return tried(model, inputs), calls
    finally:
        for handle in handles:
            handle.remove()


def only_call(model: nn.Module, name: str, calls: list[Call]) -> Call:
    """The call of a module that is called once.

    Raises:
        UserError: it is not called, or several times: its decisions have one address.
    """
    found = [call for call in calls if call.name == name]
    if len(found) != 1:
        often = f"is called {len(found)} times" if found else "is not called"
        raise UserError(f"{name!r} {often} in a forward pass of {type(model).__name__}; a decision is made there once")
    return found[0]


def main_output(out: Any) -> Tensor | None:
    """The tensor that a module returns: alone, or first in a tuple, as layers of transformers return it."""
    first = out[0] if isinstance(out, (tuple, list)) and out else out
    return first if isinstance(first, Tensor) else None


# --- arguments ---


def leaves(tree: Any, label: str = "") -> Iterator[tuple[str, Any]]:
    """The parts of nested arguments that are no tuples, lists or dicts, each with the name of the argument."""
    if isinstance(tree, dict):
        for key, part in tree.items():
            yield from leaves(part, label or str(key))
    elif isinstance(tree, (tuple, list)):
        for part in tree:
            yield from leaves(part, label)
    else:
        yield label, tree


def arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[str, Any]]:
    """The leaves of a call's arguments, in order."""
    by_place = [leaf for i, arg in enumerate(args) for leaf in leaves(arg, f"argument {i + 1}")]
    return [*by_place, *leaves(kwargs)]


def map_leaves(f: Callable[[Any], Any], tree: Any) -> Any:
    """Nested arguments with every leaf replaced, in the order of `leaves`."""
    if isinstance(tree, dict):
        return {key: map_leaves(f, part) for key, part in tree.items()}
    if isinstance(tree, (tuple, list)):
        parts = [map_leaves(f, part) for part in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return f(tree)


Role = Literal["x", "item", "shared", "constant"]
_CONSTANTS = (type(None), bool, int, float, str, torch.dtype, torch.device)


@dataclass(frozen=True)
class Place:
    """Stands in nested arguments for a tensor that travels apart: x (None), or one of the items' other tensors."""

    index: int | None


class Signature:
    """How one module is called, and what each of its arguments is to the items.

    x, the tensor on its way, and the tensors with a row for each item travel in a state; the rest is the same for all
    items. Known from two calls, with different numbers of items.

    Args:
        name: of the module.
        small: its call with 2 items.
        large: the same with 3.
        x: place of x among the leaves of the arguments; None: the first tensor.

    Attributes:
        roles: of the leaves of the arguments.
        is_plain: it is called with x alone.

    Raises:
        UserError: an argument is of another kind.
    """

    def __init__(self, name: str, small: Call, large: Call, x: int | None = None) -> None:
        few, many = arguments(small.args, small.kwargs), arguments(large.args, large.kwargs)
        if [label for label, _ in few] != [label for label, _ in many]:
            raise UserError(f"{name!r} is called in one way for {SIZES[0]} items and in another for {SIZES[1]}")
        if x is None:
            x = next((i for i, (_, leaf) in enumerate(few) if isinstance(leaf, Tensor)), None)
        if x is None:
            raise UserError(f"{name!r} is called without a tensor")
        self.name = name
        self.roles: list[Role] = [_role(name, label, a, b) for (label, a), (_, b) in zip(few, many, strict=True)]
        if self.roles[x] != "item":
            raise UserError(
                f"{name!r} takes {said(few[x][1])} for {SIZES[0]} items: a tensor without a row for each item"
            )
        self.roles = ["x" if leaf is few[x][1] else role for role, (_, leaf) in zip(self.roles, few, strict=True)]
        self.is_plain = len(small.args) == 1 and not small.kwargs and isinstance(small.args[0], Tensor)

    def split(self, args: tuple[Any, ...], kwargs: dict[str, Any], items: list[Tensor]) -> tuple[Tensor, Any]:
        """The arguments of a call, taken apart.

        Args:
            args: by place.
            kwargs: by name.
            items: the items' other tensors that are known so far; new ones are added.

        Returns:
            (x; args and kwargs with a `Place` for every tensor that belongs to the items).

        Raises:
            UserError: the module is not called as it was when the network was adapted.
        """
        found = arguments(args, kwargs)
        if len(found) != len(self.roles):
            raise UserError(f"{self.name!r} is called with other arguments than for the example it was adapted with")
        left = iter(zip(self.roles, found, strict=True))
        xs: list[Tensor] = []

        def placed(leaf: Tensor) -> Place:
            index = next((i for i, known in enumerate(items) if known is leaf), len(items))
            if index == len(items):
                items.append(leaf)
            return Place(index)

        def place(leaf: Any) -> Any:
            role, (label, _) = next(left)
            if leaf is None and role == "item":  # such as a mask that masks nothing
                return leaf
            if role == "constant" and isinstance(leaf, Tensor) and torch.jit.is_tracing():
                # transformers makes a mask for a graph where it needs none otherwise; the graph is proved afterwards
                of_items = xs and leaf.dim() and int(leaf.shape[0]) == int(xs[0].shape[0])
                return placed(leaf) if of_items else leaf
            if isinstance(leaf, Tensor) == (role == "constant"):
                raise UserError(
                    f"{self.name!r} gets {label} {said(leaf)}, and had another kind of argument there when it was "
                    "adapted: adapt it with an example like these inputs"
                )
            if role == "x":
                xs.append(leaf)
                return Place(None)
            if role != "item":
                return leaf
            return placed(leaf)

        tree = map_leaves(place, (args, kwargs))
        return xs[0], tree


def joined(tree: Any, x: Tensor, items: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What `split` took apart, put together again: args and kwargs."""

    def put(leaf: Any) -> Any:
        if not isinstance(leaf, Place):
            return leaf
        return x if leaf.index is None else items[leaf.index]

    args, kwargs = map_leaves(put, tree)
    return args, kwargs


def _role(name: str, label: str, small: Any, large: Any) -> Role:
    if isinstance(small, Tensor) and isinstance(large, Tensor):
        few, many = tuple(small.shape), tuple(large.shape)
        if few and (few[0], many[0]) == SIZES and few[1:] == many[1:]:
            return "item"
        if few == many:
            return "shared"
        raise UserError(
            f"{name!r} takes {label} {said(small)} for {SIZES[0]} items and {said(large)} for {SIZES[1]}: neither "
            "a row for each item nor the same for all"
        )
    if not isinstance(small, _CONSTANTS):
        raise UserError(
            f"{name!r} takes {label}, {_a(type(small).__name__)}, which cannot be divided between the items"
        )
    if type(small) is not type(large) or small != large:
        raise UserError(f"{name!r} takes {label} {small!r} for {SIZES[0]} items and {large!r} for {SIZES[1]}")
    return "constant"


def _a(word: str) -> str:
    return f"{'an' if word[:1].lower() in 'aeiou' else 'a'} {word}"
