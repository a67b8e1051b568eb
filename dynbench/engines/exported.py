"""Regions as ONNX graphs with a free number of items, proved against their modules: for engines with such a runtime."""

from __future__ import annotations

import copy
import io
import re
import warnings
from collections.abc import Callable, Collection, Hashable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.pooling import _MaxPoolNd
from torch.overrides import TorchFunctionMode

from dynbench.dynamic.regions import Region
from dynbench.engines.base import CannotPrepare
from dynbench.engines.calls import (
    NotItems,
    Slot,
    as_written,
    equal,
    filled,
    flatten,
    largest,
    numbered,
    outcome,
    rows,
    slots,
)

OPSET = 17
PROOF_ROWS = (1, 2, 7)
ROUNDING = 10.0  # where the tolerance is exceeded: a session may be this much further from float64 than the module is
_TRACED_ROWS = 3  # a size that no layer has by chance, unlike 1, at which broadcasting hides what is baked in


class Session(NamedTuple):
    """A graph that a runtime has loaded.

    Attributes:
        inputs: names of the inputs that the graph uses.
        run: from the inputs [n, ...] by name to the outputs, in order, in memory of their own.
    """

    inputs: Collection[str]
    run: Callable[[dict[str, Tensor]], list[Tensor]]


class Runtime(Protocol):
    """What runs ONNX graphs.

    Attributes:
        name: of the engine that uses it.
        title: what it is called in a sentence.
    """

    name: str
    title: str

    def load(self, graph: bytes, outputs: list[str], device: torch.device) -> Session:
        """A session for a serialized ONNX graph, whose outputs have these names.

        Raises:
            WrongPlace: it would run elsewhere than on the device.
            Exception: whatever the runtime complains of.
        """

    def unknown_dtypes(self, device: torch.device) -> Collection[torch.dtype]:
        """That it does not compute with on a device."""

    def explained(self, complaint: str) -> str | None:
        """A complaint of its own in a clause; None: as it stands."""


class WrongPlace(Exception):
    """A session would not run where it was to; the message says what it does instead."""


def sessions(region: Region, runtime: Runtime) -> Callable[..., Any]:
    """What is called in place of a region's module: sessions, or the module itself where these would not be faster.

    As written stay single layers of torch other than convolutions and max pooling (a session call costs more than it
    saves in one such layer), and regions whose example is no call with items.

    Raises:
        CannotPrepare: see `Sessions.prepare`.
    """
    if region.name and _light(region.module):
        return region.module
    found = Sessions(region, runtime)
    return region.module if found.prepare(region.example, {}) is None else found


def _light(module: nn.Module) -> bool:
    """Whether it is one layer of torch that is as fast without a session."""
    single = next(module.children(), None) is None and type(module).__module__.startswith("torch.nn.")
    return single and not isinstance(module, (_ConvNd, _MaxPoolNd))


Answer = Callable[[list[Tensor]], Any]


class Sessions:
    """What is called in place of a region's module.

    It has one session for each shape of an item that it is called with: that of the example when it is prepared, others
    at their first call. Each is compared with the module before it is used. Calls without an item, and calls whose
    arguments are not all tensors of the same number of items, None or plain numbers and texts, are left to the module.

    Args:
        region: a region; its module's `forward` is still its own.
        runtime: runs the sessions.
    """

    def __init__(self, region: Region, runtime: Runtime) -> None:
        self._runtime = runtime
        self.name, self.module, self.forward = region.name, region.module, region.module.forward
        self.answers: dict[Hashable, Answer | None] = {}  # None: as written

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The answer of the session for such arguments; of the module where they are no items."""
        if len(args) == 1 and type(args[0]) is Tensor and not kwargs and args[0].dim():  # the usual call
            tensors, key = [args[0]], (args[0].dtype, args[0].shape[1:])
        else:
            tensors = []
            try:
                key = flatten((args, kwargs), tensors)  # type: ignore[assignment]
            except NotItems:
                return self.forward(*args, **kwargs)
        if not tensors or not tensors[0].shape[0]:
            return self.forward(*args, **kwargs)
        answer = self.answers[key] if key in self.answers else self.prepare(args, kwargs)
        if answer is None or any(t.shape[0] != tensors[0].shape[0] for t in tensors[1:]):
            return self.forward(*args, **kwargs)
        return answer(tensors)

    def prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Answer | None:
        """A proven session for arguments like these; None: such calls stay as written.

        Raises:
            CannotPrepare: the region cannot be exported or loaded, or a session answers otherwise than the module.
        """
        tensors: list[Tensor] = []
        try:
            key = flatten((args, kwargs), tensors)
        except NotItems:
            return None
        if len(args) == 1 and isinstance(args[0], Tensor) and not kwargs:
            key = tensors[0].dtype, tensors[0].shape[1:]
        if not tensors or not tensors[0].shape[0] or any(t.shape[0] != tensors[0].shape[0] for t in tensors):
            return None  # says nothing of other calls with this signature
        with as_written(self.module):
            self.answers[key] = self._proven(args, kwargs, tensors)
        return self.answers[key]

    def _proven(self, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor]) -> Answer | None:
        given = numbered((args, kwargs))
        example = rows(tensors, _TRACED_ROWS)
        traced = _Traced(self.module, given)
        try:
            traced(*example)
        except NotItems:
            return None
        if not traced.computed:
            return None
        answer = traced.answer(self._session(traced, example))
        for inputs in (tensors, *(rows(tensors, n) for n in PROOF_ROWS)):
            self._compare(given, answer, inputs)
        return answer

    def _compare(self, given: Any, answer: Answer, inputs: list[Tensor]) -> None:
        n = inputs[0].shape[0]
        args, kwargs = filled(given, [t.clone() for t in inputs])
        expected = self.forward(*args, **kwargs)
        try:
            got = answer(inputs)
        except Exception as e:
            raise self._cannot(f"does not run with {n} items: {self._sentence(e)}") from e
        a: list[Tensor] = []
        b: list[Tensor] = []
        flatten(expected, a)
        flatten(got, b)
        for x, y in zip(a, b, strict=True):
            if x.shape != y.shape or x.dtype != y.dtype:
                raise self._cannot(f"answers {y.dtype} {tuple(y.shape)} with {n} items, not {x.dtype} {tuple(x.shape)}")
        if all(equal(x, y) for x, y in zip(a, b, strict=True)):
            return
        exact: list[Tensor] | None = self._in_float64(given, inputs)
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            if not equal(x, y) and (exact is None or not _as_exact(x, y, exact[i])):
                raise self._cannot(f"answers otherwise with {n} items, by {largest(x, y):.2g}")

    def _in_float64(self, given: Any, inputs: list[Tensor]) -> list[Tensor] | None:
        """The tensors of the module's answer without its rounding; None: there is no such answer."""
        exact: list[Tensor] = []
        try:
            module = copy.deepcopy(self.module).double()
            args, kwargs = filled(given, [t.double() if t.is_floating_point() else t for t in inputs])
            flatten(module(*args, **kwargs), exact)
            again: list[Tensor] = []
            flatten(module(*args, **kwargs), again)
        except Exception:  # noqa: BLE001  (a module of a user's; without an exact answer the strict limit holds)
            return None
        return exact if all(map(torch.equal, exact, again)) else None

    def _session(self, traced: _Traced, example: list[Tensor]) -> Session:
        """A session for a traced region.

        Raises:
            CannotPrepare: the exporter or the runtime does not know something in it.
        """
        device = example[0].device
        unknown = self._runtime.unknown_dtypes(device)
        if wrong := next((t.dtype for t in [*traced.parameters(), *example] if t.dtype in unknown), None):
            where = "the CPU" if device.type == "cpu" else str(device)
            raise self._cannot(f"has tensors of {wrong}, which {self._runtime.title} does not compute with on {where}")
        inputs, outputs = [f"in{i}" for i in range(len(example))], [f"out{i}" for i in range(traced.computed)]
        file = io.BytesIO()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.onnx.export(
                    traced.eval(),
                    tuple(example),
                    file,  # type: ignore[arg-type]
                    dynamo=False,
                    opset_version=OPSET,
                    input_names=inputs,
                    output_names=outputs,
                    dynamic_axes={name: {0: "items"} for name in inputs + outputs},
                )
            return self._runtime.load(file.getvalue(), outputs, device)
        except WrongPlace as e:
            raise self._cannot(str(e)) from e
        except Exception as e:
            raise self._cannot(f"cannot become an ONNX graph: {self._sentence(e)}") from e

    def _cannot(self, what: str) -> CannotPrepare:
        region = f"region {self.name!r}" if self.name else "the network"
        return CannotPrepare(f"engine {self._runtime.name!r}: {region} {what}")

    def _sentence(self, e: Exception) -> str:
        """What the exporter or the runtime complains of, with the operator's name if it is about one."""
        text = str(e)
        if "requires grad as a constant" in text:
            return "it computes with parameters of a module that is not among its own"
        if found := re.search(r"have an op for ([\w:]+)", text):
            return f"the exporter does not know operator {found[1]} with these arguments"
        if found := re.search(r"operator '([\w:.]+)'", text):
            return f"operator {found[1]} is not available in opset {OPSET}"
        if (why := self._runtime.explained(text)) is not None:
            return why
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return f"{type(e).__name__}: {lines[0].partition('  [')[0]}" if lines else type(e).__name__


def _as_exact(x: Tensor, y: Tensor, exact: Tensor) -> bool:
    """Whether y is about as near to the exact values as x is: differences of large numbers lose digits in both."""
    if not x.is_floating_point():
        return False
    return largest(y, exact) <= ROUNDING * largest(x, exact)


def _entr(x: Tensor) -> Tensor:
    """-x ln(x) [same shape]: 0 at 0, minus infinity below."""
    inside = -x * torch.where(x > 0, x, torch.ones_like(x)).log()
    return torch.where(x < 0, torch.full_like(x, -torch.inf), inside)


def _rms_norm(x: Tensor, shape: list[int], weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    dims = list(range(-len(shape), 0))
    y = x * torch.rsqrt((x * x).mean(dims, keepdim=True) + (torch.finfo(x.dtype).eps if eps is None else eps))
    return y if weight is None else y * weight


def _eye(n: int, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Tensor:
    i = torch.arange(n, device=device)
    return (i.unsqueeze(1) == i).to(dtype or torch.get_default_dtype())


def _scatter(x: Tensor, dim: int, index: Tensor, value: Any, **kwargs: Any) -> Tensor:
    if isinstance(value, bool):
        value = torch.full_like(index, int(value)).to(x.dtype)
    return x.scatter(dim, index, value, **kwargs)


_PLAIN: dict[Any, Callable[..., Any]] = {  # functions that the exporter does not know, as others
    torch.special.entr: _entr,
    torch.rms_norm: _rms_norm,
    nn.functional.rms_norm: _rms_norm,
    torch.eye: _eye,
    Tensor.scatter: _scatter,
}


class _Plain(TorchFunctionMode):
    """Replaces functions that the exporter does not know."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _PLAIN.get(func, func)(*args, **(kwargs or {}))


class _Traced(nn.Module):
    """A module as a function from tensors to the tensors that it computes; the last call says what else it answers.

    Args:
        module: of a region.
        given: arguments `(args, kwargs)` with slots for the tensors.

    Attributes:
        computed: how many tensors of the answer are not those of the call.
        outcome: the answer with slots: first the tensors of the call, then the computed ones.
    """

    def __init__(self, module: nn.Module, given: Any) -> None:
        super().__init__()
        self.module, self.given = module, given
        self.computed, self.outcome = 0, None

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Tensors of n items each -> the computed tensors.

        Raises:
            NotItems: something in the answer is neither a tensor of items nor a constant.
        """
        torch._C._jit_set_onnx_log_enabled(False)  # the exporter turns it on, and prints the graph of a failure
        args, kwargs = filled(self.given, list(inputs))
        with _Plain():
            answer = self.module(*args, **kwargs)
        self.outcome, computed = outcome(answer, list(inputs))
        self.computed = len(computed)
        return tuple(computed)

    def answer(self, session: Session) -> Answer:
        """What runs a session of this graph on the tensors of a call."""
        fed = [(f"in{i}", i) for i in range(slots(self.given)) if f"in{i}" in session.inputs]  # unused ones are pruned
        run, form = session.run, self.outcome
        if isinstance(form, Slot):
            return lambda tensors: run({name: tensors[i] for name, i in fed})[0]
        return lambda tensors: filled(form, tensors + run({name: tensors[i] for name, i in fed}))
