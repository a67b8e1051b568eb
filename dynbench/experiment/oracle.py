"""The right answer: what `per_sample` returns for the same decisions, and how far from it is rounding.

It is computed by a copy of the model in float64. Not every model can be copied so, or follows where one is: then the
model itself answers, item by item, in its own type.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from dynbench.counting.flops import FlopCounter
from dynbench.dynamic import Execution
from dynbench.dynamic.items import answer_parts, count, map_items, row, tensors
from dynbench.errors import DynbenchError, UserError
from dynbench.experiment.dtypes import REAL, cast
from dynbench.strategies import Dense, Masking

if TYPE_CHECKING:
    from dynbench.experiment.build import Batch

ERROR_FACTOR = 4.0  # a strategy may be this much further from float64 than the static net is
OWN_TYPE_FACTOR = 10.0  # and this many floors from the model in its own type, which rounds as well
OPAQUE_TOLERANCE = 1e-4  # of the answer's largest value: other code adds up in another order
SPECIAL = 1e3  # larger than this, and so many times what is usual, is no number but a mask, such as -1e4 or -1e9


class Precision(NamedTuple):
    """How exactly a network computes.

    Attributes:
        name: of the coarsest type that it multiplies in.
        floor: differences up to this share of an answer's largest value are rounding, whatever the network.
        ceiling: the largest share that rounding may explain.
    """

    name: str
    floor: float
    ceiling: float


PRECISIONS = {
    p.name: p
    for p in (
        Precision("float64", 1e-12, 1e-6),
        Precision("float32", 1e-5, 1e-3),
        Precision("float16", 2e-3, 1e-2),
        Precision("bfloat16", 2e-2, 5e-2),
        Precision("int8", 2e-2, 1e-1),  # 8 bits for numbers as large as the largest of a tensor
    )
}


def precision_of(model: nn.Module, x: Any) -> Precision:
    """The precision of a model's coarsest products, its quantised ones included, seen in one pass under masking.

    Args:
        model: without products, the type of its parameters counts, or else of its inputs.
        x: inputs [n, ...].
    """
    counter = FlopCounter()
    with counter:
        Execution(Masking()).run(model, x)
    names = {type_name(dtype) for dtype in counter.multiplied_in}
    if torch.int8 in counter.multiplied_in or any(name.startswith("quantized.") for name in counter.uncounted):
        names.add("int8")
    names = names or {type_name(p.dtype) for p in model.parameters()} or {type_name(t.dtype) for t in tensors(x)}
    coarse = [PRECISIONS.get(name, PRECISIONS["int8"]) for name in names if name is not None]
    return max(coarse, key=lambda p: p.floor, default=PRECISIONS["float32"])


def type_name(dtype: torch.dtype) -> str | None:
    """'float32' of float32 and of complex64, 'int8' of quantised types; None of integers and booleans."""
    name = str(REAL.get(dtype, dtype)).removeprefix("torch.")
    if name.startswith(("qint", "quint")):
        return "int8"
    return name if dtype.is_floating_point or dtype.is_complex else None


SIZES = (1, 2, 3, 4)  # of batches that tell what follows the number of items

_left_out: WeakKeyDictionary[nn.Module, frozenset[str]] = WeakKeyDictionary()


def left_out(model: nn.Module, x: Any) -> frozenset[str]:
    """The names of the tensors in a model's answer that belong to no item of the batch, worked out once per model.

    Such a one has as many rows whatever the number of items: the load of each expert, a mean over the batch.

    Args:
        model: as it is measured.
        x: inputs [n, ...]. Of a single item nothing can be told.
    """
    if model not in _left_out:
        _left_out[model] = _of_no_item(model, x)
    return _left_out[model]


def leave_out(model: nn.Module, names: frozenset[str]) -> None:
    """Makes `left_out` answer these names, too, for a model of which not all that it answers is to be compared."""
    _left_out[model] = _left_out.get(model, frozenset()) | names


@torch.inference_mode()
def _of_no_item(model: nn.Module, x: Any) -> frozenset[str]:
    rows: dict[str, list[int]] = {}
    sizes = [n for n in SIZES if n <= count(x)]
    try:
        for n in sizes:
            some = map_items(lambda t, n=n: t[:n].clone(), x)  # a model may write into its input
            parts, _ = answer_parts(Execution(Masking()).run(model, some), n)
            for name, part in parts.items():
                rows.setdefault(name, []).append(part.shape[0])
    except Exception:  # noqa: BLE001 (the passes that count say what is wrong)
        return frozenset()
    same = {name for name, found in rows.items() if len(found) == len(sizes) and len(set(found)) == 1 and found[0]}
    # where nothing would be left to compare, the difference is shown
    return frozenset(same) if len(sizes) > 1 and len(same) < len(rows) else frozenset()


def answers(
    call: Callable[[int, Tensor], Any], batches: list[Batch], without: frozenset[str] = frozenset()
) -> list[Tensor]:
    """The answer to several batches: its tensors, each with the batches one after the other.

    Numbers that belong to a whole batch are left out, and lists with an entry for each item are put together: see
    `answer_parts`.

    Args:
        call: `(index of the first item, inputs [n, ...]) -> answer`.
        batches: of a stream.
        without: names of tensors that are left out as well; see `left_out`.

    Raises:
        UserError: the batches are answered in different shapes.
    """
    found = [answer_parts(call(start, x), count(x))[0] for start, x in batches]
    parts = [[t for name, t in part.items() if name not in without] for part in found]
    shapes = {tuple(tuple(t.shape[1:]) for t in part) for part in parts}
    if len(shapes) > 1:
        raise UserError(
            f"the network answers different batches in different shapes, {' and '.join(map(_in_words, shapes))}: "
            "answers that follow the longest item of a batch cannot be compared"
        )
    return [torch.cat(same) for same in zip(*parts, strict=True)]


def _in_words(shapes: tuple[tuple[int, ...], ...]) -> str:
    return ", ".join(f"[{', '.join(['n', *map(str, shape)])}]" for shape in shapes) or "nothing"


def output_error(got: list[Tensor], reference: list[Tensor]) -> float:
    """The largest difference from the reference, relative to its largest value.

    NaN and infinities are values: the same in the same places are equal; otherwise, and where the shapes differ, the
    error is infinite. Very large numbers that stand for no number (a mask of -1e9) are compared among themselves.
    """
    if len(got) != len(reference):
        return math.inf
    return max(map(_error, got, reference), default=0.0)


def _error(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape:
        return math.inf
    a, b = _as_values(a, a.dtype), _as_values(b, a.dtype if b.is_floating_point() else b.dtype)
    same = (a == b) | (a.isnan() & b.isnan())
    if bool((~same & ~(a.isfinite() & b.isfinite())).any()):
        return math.inf
    zero = torch.zeros((), dtype=b.dtype, device=b.device)
    difference, size = torch.where(same, zero, a - b).abs(), torch.where(b.isfinite(), b, zero).abs()
    ordinary = size[size <= SPECIAL]
    special = size > SPECIAL * max(1.0, float(ordinary.median()) if ordinary.numel() else math.inf)
    return max(_share(difference, size, special), _share(difference, size, ~special))


def _as_values(t: Tensor, own: torch.dtype) -> Tensor:
    """In float64 or complex128; what is no number in the type `own`, or its very largest one, is infinite."""
    if t.is_complex():
        return t.to(torch.complex128)
    t = t.dequantize() if t.is_quantized else t
    wide = t.double()
    if not own.is_floating_point:
        return wide
    return torch.where(wide.abs() >= torch.finfo(own).max, wide.sign() * math.inf, wide)


def _share(difference: Tensor, size: Tensor, where: Tensor) -> float:
    if not bool(where.any()):
        return 0.0
    return float(difference[where].max() / size[where].max().clamp(min=1e-30))


def in_float64(model: nn.Module) -> nn.Module:
    """A copy whose floating-point numbers are float64, complex ones complex128.

    Raises:
        Exception: something in the model cannot be copied or converted.
    """
    return cast(copy.deepcopy(model), torch.float64)


@dataclass(frozen=True)
class Reference:
    """A right answer.

    Attributes:
        answer: its tensors, the items of all batches one after the other; None: there is none.
        tolerance: the error up to which an answer counts as the same.
        type: that it was computed in.
        note: why that is not float64, or why there is no right answer; None: it is float64.
    """

    answer: list[Tensor] | None
    tolerance: float = 0.0
    type: str = "float64"
    note: str | None = None


class Oracle:
    """Answers in float64, with the tolerance that follows from the static twin's own rounding.

    Where the model cannot be copied, its copy cannot run, or its static twin differs from that of the model by more
    than rounding explains, it answers in the model's own type.

    Args:
        model: as it is measured.
        batches: of a stream.
        items: of the stream.

    Attributes:
        precision: of the model.
        tolerance: the error up to which an answer counts as the same; never above the precision's ceiling.
        type: that it answers in.
        note: why that is not float64; None: it is.
    """

    def __init__(self, model: nn.Module, batches: list[Batch], items: int) -> None:
        self._model, self._batches, self._items = model, batches, items
        self._without = left_out(model, batches[0][1])
        self.precision = precision_of(model, batches[0][1])
        self.type = "float64"
        self.note: str | None = None
        try:
            self._copy = in_float64(model)
            static = output_error(self._run(Execution(Dense())), self._run_copy(Execution(Dense())))
        except Exception as e:  # noqa: BLE001 (a user's model may raise anything)
            self._use_own_type(f"its copy in float64 does not run ({_first_line(e)})")
            return
        self.tolerance = min(ERROR_FACTOR * static + self.precision.floor, self.precision.ceiling)
        if ERROR_FACTOR * static > self.precision.ceiling:
            self._use_own_type(f"its copy in float64 gives another answer (by {static:.1e} of the largest value)")

    def answer(self, execution: Execution) -> list[Tensor]:
        """The answer under an execution, such as `per_sample` with a trace.

        Raises:
            UserError: there is nothing in it that belongs to items.
        """
        found: list[Tensor] | None = None
        if self.note is None:
            try:
                found = self._run_copy(execution)
            except Exception as e:  # noqa: BLE001 (a user's model may raise anything)
                self._use_own_type(f"its copy in float64 does not run ({_first_line(e)})")
        found = self._run(execution) if found is None else found
        if not found:
            raise UserError("what the network answers holds no tensor with a row per item, so nothing can be compared")
        return found

    def reference(self, execution: Execution) -> Reference:
        """The right answer under an execution."""
        answer = self.answer(execution)
        return Reference(answer, self.tolerance, self.type, self.note)

    def _use_own_type(self, why: str) -> None:
        """From now on answers come from the model itself; its static twin shows how it rounds, item by item."""
        self.type, self.note = self.precision.name, why
        tolerance = OWN_TYPE_FACTOR * self.precision.floor
        try:
            alone = [(start + i, row(x, i)) for start, x in self._batches for i in range(count(x))]
            twin = Execution(Dense())
            tolerance += ERROR_FACTOR * output_error(self._run(twin), self._run(twin, alone))
        except Exception:  # noqa: BLE001 (a static twin that does not run: the strategies need none)
            pass
        self.tolerance = min(tolerance, self.precision.ceiling)

    def _run(self, execution: Execution, batches: list[Batch] | None = None) -> list[Tensor]:
        def call(start: int, x: Any) -> Any:
            return execution.run(self._model, x, start=start, items=self._items)

        return answers(call, batches or self._batches, self._without)

    def _run_copy(self, execution: Execution) -> list[Tensor]:
        def call(start: int, x: Any) -> Any:
            return execution.run(self._copy, map_items(_wide, x), start=start, items=self._items)

        return answers(call, self._batches, self._without)


def _wide(t: Tensor) -> Tensor:
    if t.is_complex():
        return t.to(torch.complex128)
    return t.double() if t.is_floating_point() else t


def _first_line(error: Exception) -> str:
    return (str(error) if isinstance(error, DynbenchError) else f"{type(error).__name__}: {error}").splitlines()[0]
