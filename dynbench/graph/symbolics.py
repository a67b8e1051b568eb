"""How the exporter writes down our own operators, and those of torch that it does not know, as plain ONNX."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch.onnx import register_custom_op_symbolic as register
from torch.onnx import symbolic_helper, symbolic_opset9, symbolic_opset13
from torch.onnx.errors import SymbolicValueError

OPSET = 17
OPSETS = range(13, 21)  # below, axes of Squeeze, Unsqueeze and Split are no inputs; above, torch's exporter writes none
EXAMPLES = 5  # items of a trace for any batch: a dimension of this size may be that of the items, wherever it stands
_items_are_free: ContextVar[bool] = ContextVar("items_are_free", default=False)
LAZY, BLANK = "dynbench::Either", "dynbench::Blank"  # what `branches` looks for
SEEN = "dynbench::Seen"  # an Identity once the exporter is done
GIVEN = "dynbench::Given"  # an Identity of one of two decisions, see `export.Flat`
_parse = symbolic_helper._parse_arg
_INT64 = 7  # of ONNX
_OF_ONNX = {"Float": 1, "Byte": 2, "Char": 3, "Short": 5, "Int": 6, "Long": _INT64, "Bool": 9, "Half": 10, "Double": 11}
_OF_TORCH = {"Byte": 0, "Char": 1, "Short": 2, "Int": 3, "Long": 4, "Half": 5, "Float": 6, "Double": 7, "Bool": 11}
_done = False
_splits: set[int] = set()


def _either(g: Any, cond: Any, yes: Any, no: Any, group: Any, guard: Any, rest: Any) -> Any:
    said = {"group_i": _parse(group, "i"), "guard_i": _parse(guard, "i"), "rest_i": _parse(rest, "is")}
    traced = next(iter(g.original_node.outputs()))
    yes, no = (_as_traced(g, side, traced) for side in (yes, no))
    return _known(g.op(LAZY, cond, yes, no, **said), traced, rest)


def _as_traced(g: Any, value: Any, traced: Any) -> Any:
    """The value in the dtype that torch saw, which the exporter may have lost."""
    mine, right = (v.type().scalarType() for v in (value, traced))
    return value if mine in (None, right) else g.op("Cast", value, to_i=_OF_ONNX[right])


def _blank(g: Any, like: Any, items: Any, rest: Any) -> Any:
    kind = like.type().scalarType()
    return _known(g.op(BLANK, items, rest_i=_parse(rest, "is"), like_s=str(kind)), like, rest)


def _known(out: Any, like: Any, rest: Any) -> Any:
    """Tells the exporter the dtype and the sizes of an item."""
    out.setType(like.type().with_sizes([None, *_parse(rest, "is")]))
    return out


def _long(g: Any, *values: int) -> Any:
    return g.op("Constant", value_t=torch.tensor(values, dtype=torch.long))


def _put(g: Any, into: Any, rows: Any, part: Any) -> Any:
    return _any_items(g.op("ScatterND", into, g.op("Unsqueeze", rows, _long(g, 1)), part), into)


def _any_items(out: Any, like: Any) -> Any:
    """Tells the exporter that it is as `like`, but of any number of items."""
    known = like.type().sizes()
    out.setType(like.type() if known is None else like.type().with_sizes([None, *known[1:]]))
    return out


def _grouped(g: Any, chosen: Any, experts: Any) -> Any:
    """One NonZero over [E, n k] finds the places in the order of experts."""
    each = g.op("Constant", value_t=torch.arange(_parse(experts, "i")).unsqueeze(1))
    hit = g.op("Equal", g.op("Reshape", chosen, _long(g, 1, -1)), each)
    order = g.op("Gather", g.op("NonZero", hit), g.op("Constant", value_t=torch.tensor(1)), axis_i=0)
    sizes = g.op("ReduceSum", g.op("Cast", hit, to_i=_INT64), _long(g, 1), keepdims_i=0)
    return order, sizes


def split_symbolic(parts: int) -> None:
    """Tells the exporter of `dynbench::parts{n}`; once for each n."""
    if parts in _splits:
        return

    def symbolic(g: Any, x: Any, sizes: Any) -> Any:
        found = g.op("Split", x, sizes, axis_i=0, outputs=parts)
        if (known := x.type().sizes()) is not None:
            for part in found:
                part.setType(x.type().with_sizes([None, *known[1:]]))
        return tuple(found)

    for opset in OPSETS:
        register(f"dynbench::parts{parts}", symbolic, opset)
    _splits.add(parts)


def _whose(g: Any, pairs: Any, k: Any) -> Any:
    return g.op("Div", pairs, g.op("Constant", value_t=torch.tensor(_parse(k, "i"))))


def _inverse(g: Any, order: Any, pairs: Any) -> Any:
    many, first = g.op("Shape", order), g.op("Constant", value_t=torch.tensor(0))
    nowhere = g.op("Expand", many, g.op("Shape", g.op("Reshape", pairs, _long(g, -1))))
    places = g.op("Range", first, g.op("Squeeze", many, _long(g, 0)), g.op("Constant", value_t=torch.tensor(1)))
    found = g.op("ScatterND", nowhere, g.op("Unsqueeze", order, _long(g, 1)), places)
    return _any_items(found, order)


def _rows(g: Any, keep: Any) -> Any:
    return g.op("Reshape", g.op("NonZero", keep), _long(g, -1))


def _seen(g: Any, decision: Any, kind: Any, size: Any) -> Any:
    """The decision, as an operator that the exporter does not know: it takes the example's items for all there are."""
    sizes = decision.type().symbolic_sizes()  # below 0: a symbol
    if _parse(kind, "s") in ("skip", "loop") and sizes and sizes[0] < 0:
        return decision  # a plain comparison: what is known of its items stays known, and sums are fused by it
    return _any_items(g.op(SEEN, decision), decision)


def _given(g: Any, own: Any, table: Any) -> Any:
    out = g.op(GIVEN, own, table)
    out.setType(own.type())
    return out


def _sort(g: Any, x: Any, *more: Any) -> Any:
    """sort(x, dim, descending), sort(x, stable, dim, descending): one TopK, where of equal values the first leads."""
    dim, descending = (_parse(a, "i") for a in more[-2:])
    size = g.op("Gather", g.op("Shape", x), _long(g, dim))
    return g.op("TopK", x, size, axis_i=dim, largest_i=int(descending), sorted_i=1, outputs=2)


def _argsort(g: Any, x: Any, *more: Any) -> Any:
    return _sort(g, x, *more)[1]


def _unflatten(g: Any, x: Any, dim: Any, sizes: Any) -> Any:
    """One Reshape. The exporter's own way takes the example's number of items for that of all inputs."""
    known, at, parts = x.type().sizes(), _parse(dim, "i"), symbolic_helper._maybe_get_const(sizes, "is")
    at = at if at >= 0 or known is None else at + len(known)
    if known is None or not isinstance(parts, list | tuple) or (at and -1 in parts and known[at] is None):
        return symbolic_opset13.unflatten(g, x, dim, sizes)
    if at and -1 in parts:
        rest = -math.prod(parts)
        parts = [known[at] // rest if size == -1 else size for size in parts]
    shape, every = g.op("Shape", x), len(known)
    around = [(0, at), (at + 1, every)]
    before, after = ([g.op("Slice", shape, _long(g, i), _long(g, j))] if i < j else [] for i, j in around)
    out = g.op("Reshape", x, g.op("Concat", *before, _long(g, *parts), *after, axis_i=0))
    sizes = [*known[:at], *(None if s == -1 else s for s in parts), *known[at + 1 :]]
    out.setType(x.type().with_sizes([None, *(None if _may_be_items(size) else size for size in sizes[1:])]))
    return out


@contextmanager
def free_items() -> Iterator[None]:
    """To be used while tracing for any batch: no size that may be the number of items is taken for constant."""
    token = _items_are_free.set(True)
    try:
        yield
    finally:
        _items_are_free.reset(token)


def _may_be_items(size: int | None) -> bool:
    return _items_are_free.get() and size == EXAMPLES


def _size(g: Any, x: Any, dim: Any = None) -> Any:
    """The exporter folds sizes that it takes for constant; those that may be the number of items are not."""
    known = x.type().sizes()
    if dim is None or known is None or not _may_be_items(known[_parse(dim, "i")]):
        return symbolic_opset9.size(g, x, dim)
    hidden = g.op(SEEN, x)
    hidden.setType(x.type().with_sizes([None] * len(known)))
    return g.op("Gather", g.op("Shape", hidden), g.op("Constant", value_t=torch.tensor(_parse(dim, "i"))))


def _index_add(g: Any, into: Any, dim: Any, rows: Any, part: Any, alpha: Any = None) -> Any:
    """One ScatterElements, in which rows may occur again.

    The exporter's own way forgets that they do, and ONNX Runtime's ScatterND lets several threads add to one row at
    once.
    """
    if _parse(dim, "i") != 0 or (alpha is not None and symbolic_helper._maybe_get_const(alpha, "f") != 1):
        return symbolic_opset9.index_add(g, into, dim, rows, part, alpha)
    if g.opset < 16:
        raise NotImplementedError("index_add needs opset 16: before it no operator adds to one row several times")
    rank = symbolic_helper._get_tensor_rank(part)
    if rank is None:
        raise SymbolicValueError("index_add of values of unknown rank", part)
    if rank > 1:
        item = g.op("Slice", g.op("Shape", part), _long(g, 1), _long(g, rank))
        rows = g.op("Reshape", rows, _long(g, -1, *[1] * (rank - 1)))
        rows = g.op("Expand", rows, g.op("Concat", _long(g, 1), item, axis_i=0))
    return _any_items(g.op("ScatterElements", into, rows, part, axis_i=0, reduction_s="add"), into)


def _full(g: Any, sizes: Any, value: Any, dtype: Any, *more: Any) -> Any:
    """In the dtype that torch saw; where none is given, the exporter makes floats."""
    seen = next(iter(g.original_node.outputs())).type().scalarType()
    if symbolic_helper._is_none(dtype) and seen in _OF_TORCH:
        dtype = g.op("Constant", value_t=torch.tensor(_OF_TORCH[seen]))
    return symbolic_opset9.full(g, sizes, value, dtype, *more)


def _entr(g: Any, p: Any) -> Any:
    """-p log p; 0 at 0."""
    tiny = g.op("Constant", value_t=torch.tensor(torch.finfo(torch.float32).tiny))
    return g.op("Neg", g.op("Mul", p, g.op("Log", g.op("Max", p, tiny))))


def _rms_norm(g: Any, x: Any, shape: Any, weight: Any, eps: Any) -> Any:
    axes = list(range(-len(_parse(shape, "is")), 0))
    small = _parse(eps, "f")
    small = torch.finfo(torch.float32).eps if small is None else small
    square = g.op("Pow", x, g.op("Constant", value_t=torch.tensor(2.0)))  # ONNX Runtime knows a norm by it
    if g.opset < 18:
        mean = g.op("ReduceMean", square, axes_i=axes, keepdims_i=1)
    else:
        mean = g.op("ReduceMean", square, _long(g, *axes), keepdims_i=1)
    root = g.op("Sqrt", g.op("Add", mean, g.op("Constant", value_t=torch.tensor(small))))
    y = g.op("Div", x, root)
    return y if symbolic_helper._is_none(weight) else g.op("Mul", y, weight)


def _lstm(g: Any, x: Any, h: Any, c: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any) -> Any:
    """One step of an LSTM cell. torch's gates are i, f, g, o; ONNX's are i, o, f, g."""
    kind, zero, hidden = h.type(), _long(g, 0), w_hh.type().sizes()[1]

    def in_order(w: Any) -> Any:
        i, f, n, o = (g.op("Slice", w, _long(g, k * hidden), _long(g, (k + 1) * hidden), _long(g, 0)) for k in range(4))
        return g.op("Concat", i, o, f, n, axis_i=0)

    weights = [g.op("Unsqueeze", in_order(w), zero) for w in (w_ih, w_hh)]
    bias = g.op("Unsqueeze", g.op("Concat", in_order(b_ih), in_order(b_hh), axis_i=0), zero)
    nothing = g.op("prim::Constant")
    nothing.setType(torch._C.OptionalType.ofTensor())
    x, h0, c0 = (g.op("Unsqueeze", v, zero) for v in (x, h, c))
    _, h, c = g.op("LSTM", x, *weights, bias, nothing, h0, c0, hidden_size_i=hidden, outputs=3)
    h, c = (g.op("Squeeze", v, zero) for v in (h, c))
    h.setType(kind)
    c.setType(kind)
    return h, c


def register_symbolics() -> None:
    """Tells torch's exporter; once is enough."""
    global _done
    if _done:
        return
    symbolics: dict[str, Callable[..., Any]] = {
        "dynbench::either": _either,
        "dynbench::blank": _blank,
        "dynbench::put": _put,
        "dynbench::grouped": _grouped,
        "dynbench::whose": _whose,
        "dynbench::inverse": _inverse,
        "dynbench::rows": _rows,
        "dynbench::seen": _seen,
        "dynbench::given": _given,
        "dynbench::lstm": _lstm,
        "aten::size": _size,
        "aten::full": _full,
        "aten::unflatten": _unflatten,
        "aten::index_add": _index_add,
        "aten::sort": _sort,
        "aten::argsort": _argsort,
        "aten::special_entr": _entr,
        "aten::rms_norm": _rms_norm,
    }
    for name, symbolic in symbolics.items():
        for opset in OPSETS:
            register(name, symbolic, opset)
    _done = True
