"""A few operators that a traced strategy leaves in the graph, and that `branches` and the exporter know how to read.

- `dynbench::either(cond, yes, no, group, rest)`: `yes` where the scalar `cond` holds, else `no`. It is *lazy*: what
  only one side needs is moved into a branch of an `If` afterwards. Those of one `group` become one `If`.
- `dynbench::blank(like, items, rest)`: zeros, as many as there are items.
- `dynbench::put(into, rows, part)`: `into` with the rows replaced; one ScatterND.
- `dynbench::given(own, table)`: the decision of the table; a graph that decides by itself takes its own there.
- `dynbench::seen(decision, kind, size)`: the decision. While tracing its values are replaced by ones that reach every
  branch, whatever an example input would have decided.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dynbench.dynamic.items import map_items, tensors
from dynbench.graph.symbolics import split_symbolic

DOMAIN = "dynbench"
_library = torch.library.Library(DOMAIN, "DEF")
_library.define("either(Tensor cond, Tensor yes, Tensor no, int group, bool guard, int[] rest) -> Tensor")
_library.define("blank(Tensor like, Tensor items, int[] rest) -> Tensor")
_library.define("put(Tensor into, Tensor rows, Tensor part) -> Tensor")
_library.define("grouped(Tensor chosen, int experts) -> (Tensor, Tensor)")
_library.define("whose(Tensor pairs, int k) -> Tensor")
_library.define("inverse(Tensor order, Tensor pairs) -> Tensor")
_library.define("rows(Tensor keep) -> Tensor")
_library.define("seen(Tensor decision, str kind, int size) -> Tensor")
_library.define("given(Tensor own, Tensor table) -> Tensor")
_weights = "Tensor w_ih, Tensor w_hh, Tensor b_ih, Tensor b_hh"
_library.define(f"lstm(Tensor x, Tensor h, Tensor c, {_weights}) -> (Tensor, Tensor)")
_groups = itertools.count()


def _either(cond: Tensor, yes: Tensor, no: Tensor, group: int, guard: bool, rest: list[int]) -> Tensor:
    return (yes if bool(cond) else no).clone()


def _blank(like: Tensor, items: Tensor, rest: list[int]) -> Tensor:
    return like.new_zeros((items.shape[0], *rest))


def _put(into: Tensor, rows: Tensor, part: Tensor) -> Tensor:
    return into.index_put((rows,), part)


def _grouped(chosen: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    flat = chosen.flatten()
    hit = flat == torch.arange(experts).unsqueeze(1)  # [E, n k]
    return hit.nonzero()[:, 1], hit.sum(1)


def _parts(x: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
    return tuple(part.clone() for part in x.split(sizes.tolist()))


def _whose(pairs: Tensor, k: int) -> Tensor:
    return pairs // k


def _inverse(order: Tensor, pairs: Tensor) -> Tensor:
    return order.new_full((pairs.numel(),), order.shape[0]).index_put((order,), torch.arange(order.shape[0]))


def _rows(keep: Tensor) -> Tensor:
    return keep.nonzero().squeeze(1)


def _seen(decision: Tensor, kind: str, size: int) -> Tensor:
    n = decision.shape[0]
    if kind == "skip":
        return torch.arange(n) % 2 == 0
    if kind == "loop":
        return torch.zeros(n, dtype=torch.bool)
    if kind == "route":  # neighbours in the order of experts, so that an item's are distinct
        flat = torch.arange(n).unsqueeze(1) + torch.arange(decision.shape[1])
        return (flat % size).to(decision.dtype)
    if kind == "width":  # some channels of each convolution, not all: those that slice must gather
        return (torch.arange(decision.shape[1]) % 2 == 0).expand(n, -1).clone()
    return decision.clone()


def _given(own: Tensor, table: Tensor) -> Tensor:
    return table.clone()


def _lstm(x: Tensor, h: Tensor, c: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
    return torch._VF.lstm_cell(x, (h, c), *weights)


for _name, _function in (
    ("either", _either),
    ("blank", _blank),
    ("put", _put),
    ("whose", _whose),
    ("inverse", _inverse),
    ("grouped", _grouped),
    ("rows", _rows),
    ("seen", _seen),
    ("given", _given),
    ("lstm", _lstm),
):
    _library.impl(_name, _function, "CompositeExplicitAutograd")


def either(cond: Tensor, yes: Any, no: Any, *, guard: bool = False) -> Any:
    """`yes` where cond, a tensor of one bool, holds, else `no`: two states of one structure; items may differ.

    A guard is a choice that only spares what would be computed for no items: `yes` would be as right.
    """
    group = next(_groups)
    return map_items(lambda a, b: torch.ops.dynbench.either(cond, a, b, group, guard, _rest(a)), yes, no)


def _rest(t: Tensor) -> list[int]:
    """Sizes of an item."""
    return list(map(int, t.shape[1:]))


def blank(state: Any, items: Tensor) -> Any:
    """Zero items like those of `state`, as many as there are in `items` [n, ...]."""
    return map_items(lambda t: torch.ops.dynbench.blank(t, items, _rest(t)), state)


def put(into: Any, rows: Tensor, part: Any) -> Any:
    """A copy of the state `into` whose items `rows` [m], all different, are those of `part` [m]."""
    return map_items(lambda a, b: torch.ops.dynbench.put(a, rows, b), into, part)


def whose(pairs: Tensor, k: int) -> Tensor:
    """Places among n k (item, slot) pairs [m] -> the items [m]."""
    found: Tensor = pairs if k == 1 else torch.ops.dynbench.whose(pairs, k)
    return found


def grouped(chosen: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """chosen [n, k] -> (places in n k, those of expert 0 first, ascending; how many each has [E]); -1 is left out."""
    found: tuple[Tensor, Tensor] = torch.ops.dynbench.grouped(chosen, experts)
    return found


def inverse(order: Tensor, pairs: Tensor) -> Tensor:
    """Where each of `pairs` [n, k] is in `order` [m], which lists some of their places: [n k]; m where it is not."""
    found: Tensor = torch.ops.dynbench.inverse(order, pairs)
    return found


def split(x: Tensor, sizes: Tensor, parts: int) -> list[Tensor]:
    """x [m, ...] cut into parts of these sizes."""
    if parts == 1:
        return [x]
    name = f"parts{parts}"
    if not hasattr(torch.ops.dynbench, name):
        _library.define(f"{name}(Tensor x, Tensor sizes) -> ({', '.join(['Tensor'] * parts)})")
        _library.impl(name, _parts, "CompositeExplicitAutograd")
        split_symbolic(parts)
    return list(getattr(torch.ops.dynbench, name)(x, sizes))


def rows_of(keep: Tensor) -> Tensor:
    """keep [n] bool -> the places [m] where it holds, ascending."""
    found: Tensor = torch.ops.dynbench.rows(keep)
    return found


def anybody(rows: Tensor) -> Tensor:
    """rows [m] -> one bool: whether m is above 0."""
    return rows.shape[0] > torch.zeros((), dtype=torch.long)


def seen(decision: Tensor, kind: str, size: int = 0) -> Tensor:
    """The decision; while tracing, one of this kind (skip, loop, width, route of `size`) that reaches all branches."""
    found: Tensor = torch.ops.dynbench.seen(decision, kind, size)
    return found


def given(own: Tensor, table: Tensor) -> Tensor:
    """The decision `table` in place of the model's own one; which of them counts can still be chosen in the graph."""
    found: Tensor = torch.ops.dynbench.given(own, table)
    return found


@contextlib.contextmanager
def whole_cells(model: nn.Module) -> Iterator[None]:
    """Inside this block an LSTM cell, a module of the model or a function, is one operator, not torch's fourteen."""
    cells = [m for m in model.modules() if type(m) is nn.LSTMCell and m.bias]
    for cell in cells:
        cell.forward = functools.partial(_one_step, cell)  # type: ignore[method-assign]
    function = torch.lstm_cell

    def told(x: Tensor, state: tuple[Tensor, Tensor], *weights: Tensor) -> tuple[Tensor, Tensor]:
        whole = len(weights) == 4  # both with their biases
        return torch.ops.dynbench.lstm(x, *state, *weights) if whole else function(x, state, *weights)

    torch.lstm_cell = told  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.lstm_cell = function
        for cell in cells:
            del cell.forward


@contextlib.contextmanager
def fixed_causality() -> Iterator[None]:
    """Inside this block attention may be told by a traced comparison of sizes whether it is causal."""
    attention: Callable[..., Tensor] = functional.scaled_dot_product_attention

    def told(*args: Any, is_causal: Any = False, **more: Any) -> Tensor:
        return attention(*args, is_causal=bool(is_causal), **more)

    functional.scaled_dot_product_attention = told
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = attention


@contextlib.contextmanager
def convolved_items() -> Iterator[None]:
    """Inside this block a convolution of one map in which each item is groups of channels is a product of matrices.

    Its groups are as many as there are items, and the number of groups of an ONNX convolution is fixed.
    """
    convolution: Callable[..., Tensor] = functional.conv2d

    def told(
        x: Tensor,
        weight: Tensor,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: Any = 1,
    ) -> Tensor:
        if isinstance(groups, Tensor) and int(x.shape[0]) == 1 and bias is None and dilation == 1:
            return _convolved(x, weight, stride, padding, groups)
        return convolution(x, weight, bias, stride, padding, dilation, groups)

    functional.conv2d = told  # type: ignore[assignment]
    try:
        yield
    finally:
        functional.conv2d = convolution


def _convolved(x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int], groups: Tensor) -> Tensor:
    """x [1, G I, H, W], weight [G O, I, k, l], G groups -> [1, G O, H', W']."""
    inputs, high, wide = map(int, weight.shape[1:])
    outputs = int(weight.shape[0]) // int(groups)
    (down, right), (top, left) = stride, padding
    x = functional.pad(x.reshape(-1, inputs, *map(int, x.shape[2:])), (left, left, top, top))
    height, width = (int(x.shape[2]) - high) // down + 1, (int(x.shape[3]) - wide) // right + 1
    shifted = [
        x[:, :, i : i + (height - 1) * down + 1 : down, j : j + (width - 1) * right + 1 : right]
        for i in range(high)
        for j in range(wide)
    ]
    patches = torch.stack(shifted, 2).reshape(-1, inputs * high * wide, height * width)
    y = weight.reshape(-1, outputs, inputs * high * wide) @ patches
    return y.reshape(1, -1, height, width)


def _one_step(cell: nn.LSTMCell, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    h, c = state or (x.new_zeros(x.shape[0], cell.hidden_size),) * 2
    weights = cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh
    found: tuple[Tensor, Tensor] = torch.ops.dynbench.lstm(x, h, c, *weights)
    return found


def take(state: Any, rows: Tensor) -> Any:
    """The items `rows` [m] of a state; one Gather each."""
    return map_items(lambda t: t.index_select(0, rows), state)


def nobody(state: Any) -> Any:
    """A state of no items like those of `state`."""
    return map_items(lambda t: torch.zeros((0, *_rest(t)), dtype=t.dtype), state)


def zero(state: Any) -> Any:
    """A state of one item like those of `state`: zeros."""
    return map_items(lambda t: torch.zeros((1, *_rest(t)), dtype=t.dtype), state)


def leaves(state: Any) -> list[Tensor]:
    """The tensors of a state."""
    return list(tensors(state))
