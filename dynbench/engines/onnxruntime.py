"""ONNX Runtime, region by region: decision points stay in Python, what lies between them is one session each."""

from __future__ import annotations

import copy
import importlib.util
import io
import re
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.pooling import _MaxPoolNd
from torch.overrides import TorchFunctionMode

from dynbench.dynamic.regions import Region
from dynbench.engines.base import CannotPrepare

OPSET = 17
PROVIDER = "CPUExecutionProvider"
PROOF_ROWS = (1, 2, 7)
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2}  # of the largest value; others: equal
ROUNDING = 10.0  # where that is exceeded: a session may be this much further from float64 than the module is
_TRACED_ROWS = 3  # a size that no layer has by chance, unlike 1, at which broadcasting hides what is baked in


class OnnxRuntime:
    """Every region is a session of ONNX Runtime on the CPU with a free batch dimension, with torch's number of threads.

    A region gets one session for each shape of an item that it is called with: that of the example when it is prepared,
    others at their first call. Each session is compared with the module before it is used.

    Two kinds of region stay as written: single layers of torch that a session does not make faster (all but
    convolutions and max pooling: a session call costs about 5 us, more than ONNX Runtime saves in one such layer), and
    calls whose arguments are not all tensors of the same number of items, None or plain numbers and texts.
    """

    name = "onnxruntime"
    as_written = False

    def facts(self) -> dict[str, object]:
        """Versions, the execution provider and the opset."""
        return {
            "onnxruntime": version("onnxruntime"),
            "onnx": version("onnx"),
            "torch": torch.__version__,
            "providers": [PROVIDER],
            "opset": OPSET,
        }

    def refuses(self, device: str) -> str | None:
        """Other devices than the CPU, and where a package is missing."""
        for package in ("onnxruntime", "onnx"):
            if importlib.util.find_spec(package) is None:
                return f"{package} is not installed: pip install {package}"
        if device != "cpu":
            return f"engine 'onnxruntime' runs on the CPU only, not on {device}"
        return None

    def prepare(self, region: Region) -> Callable[..., Any]:
        """Exports the region for its example and proves it.

        Raises:
            CannotPrepare: it cannot be exported or loaded, or a session answers otherwise than the module.
        """
        if region.name and _light(region.module):
            return region.module
        sessions = _Sessions(region)
        if sessions.prepare(region.example, {}) is None:
            return region.module
        return sessions


def _light(module: nn.Module) -> bool:
    """Whether it is one layer of torch that is as fast without a session."""
    single = next(module.children(), None) is None and type(module).__module__.startswith("torch.nn.")
    return single and not isinstance(module, (_ConvNd, _MaxPoolNd))


class _NotItems(Exception):
    """Part of a call or of an answer is neither a tensor of items nor a constant."""


class _Slot:
    """Stands for a tensor in the structure of a call or of an answer."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index


def _flatten(state: Any, into: list[Tensor]) -> Hashable:
    """The signature of a state: its structure, constants, and the shape and dtype of an item of each tensor.

    Args:
        state: tensors [n, ...], constants, and tuples, lists and dicts of these.
        into: its tensors are appended here, in order.

    Raises:
        _NotItems: there is something else in it.
    """
    if isinstance(state, Tensor):
        if not state.dim():
            raise _NotItems
        into.append(state)
        return state.dtype, state.shape[1:]
    if state is None or isinstance(state, (bool, int, float, str)):
        return type(state), state
    if isinstance(state, dict):
        return dict, *((key, _flatten(part, into)) for key, part in state.items())
    if isinstance(state, (tuple, list)):
        return type(state), *(_flatten(part, into) for part in state)
    raise _NotItems


def _skeleton(state: Any, slot: Callable[[Tensor], _Slot]) -> Any:
    """A state with slots in the places of its tensors."""
    if isinstance(state, Tensor):
        return slot(state)
    if isinstance(state, dict):
        return {key: _skeleton(part, slot) for key, part in state.items()}
    if isinstance(state, (tuple, list)):
        parts = [_skeleton(part, slot) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
    return state


def _filled(skeleton: Any, tensors: list[Tensor]) -> Any:
    """A state from its skeleton: the inverse of `_skeleton`."""
    kind = type(skeleton)
    if kind is _Slot:
        return tensors[skeleton.index]
    if kind is tuple or kind is list:
        return kind([_filled(part, tensors) for part in skeleton])
    if isinstance(skeleton, dict):
        return {key: _filled(part, tensors) for key, part in skeleton.items()}
    if isinstance(skeleton, tuple):
        return kind(*(_filled(part, tensors) for part in skeleton))
    return skeleton


def _rows(tensors: list[Tensor], n: int) -> list[Tensor]:
    """n rows of each tensor, its own ones over and over."""
    have = tensors[0].shape[0]
    return [t.index_select(0, torch.arange(n) % have) for t in tensors]


Answer = Callable[[list[Tensor]], Any]


class _Sessions:
    """What is called in place of a region's module.

    Args:
        region: a region; its module's `forward` is still its own.
    """

    def __init__(self, region: Region) -> None:
        self.name, self.module, self.forward = region.name, region.module, region.module.forward
        self.answers: dict[Hashable, Answer | None] = {}  # None: as written

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The answer of the session for such arguments; of the module where they are no items."""
        if len(args) == 1 and type(args[0]) is Tensor and not kwargs and args[0].dim():  # the usual call
            tensors, key = [args[0]], (args[0].dtype, args[0].shape[1:])
        else:
            tensors = []
            try:
                key = _flatten((args, kwargs), tensors)  # type: ignore[assignment]
            except _NotItems:
                return self.forward(*args, **kwargs)
        answer = self.answers[key] if key in self.answers else self.prepare(args, kwargs)
        if answer is None or any(t.shape[0] != tensors[0].shape[0] for t in tensors[1:]):
            return self.forward(*args, **kwargs)
        return answer(tensors)

    def prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Answer | None:
        """A proven session for arguments like these; None: such calls stay as written.

        Raises:
            CannotPrepare: see `OnnxRuntime.prepare`.
        """
        tensors: list[Tensor] = []
        try:
            key = _flatten((args, kwargs), tensors)
        except _NotItems:
            return None
        if len(args) == 1 and isinstance(args[0], Tensor) and not kwargs:
            key = tensors[0].dtype, tensors[0].shape[1:]
        if not tensors or not tensors[0].shape[0] or any(t.shape[0] != tensors[0].shape[0] for t in tensors):
            return None  # says nothing of other calls with this signature
        with self._as_written():
            self.answers[key] = self._proven(args, kwargs, tensors)
        return self.answers[key]

    @contextmanager
    def _as_written(self) -> Iterator[None]:
        """The module and all in it call their own `forward` meanwhile: layers that it shares may be regions too."""
        replaced = [(m, m.__dict__.pop("forward")) for m in self.module.modules() if "forward" in m.__dict__]
        try:
            yield
        finally:
            for module, forward in replaced:
                object.__setattr__(module, "forward", forward)

    def _proven(self, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor]) -> Answer | None:
        count = iter(range(len(tensors)))
        given = _skeleton((args, kwargs), lambda t: _Slot(next(count)))

        example = _rows(tensors, _TRACED_ROWS)
        traced = _Traced(self.module, given)
        try:
            traced(*example)
        except _NotItems:
            return None
        if not traced.computed:
            return None
        answer = traced.answer(_session(self.name, traced, example))
        for inputs in (tensors, *(_rows(tensors, n) for n in PROOF_ROWS)):
            self._compare(given, answer, inputs)
        return answer

    def _compare(self, given: Any, answer: Answer, inputs: list[Tensor]) -> None:
        n = inputs[0].shape[0]
        args, kwargs = _filled(given, [t.clone() for t in inputs])
        expected = self.forward(*args, **kwargs)
        try:
            got = answer(inputs)
        except Exception as e:
            raise _cannot(self.name, f"does not run with {n} items: {_sentence(e)}") from e
        a: list[Tensor] = []
        b: list[Tensor] = []
        _flatten(expected, a)
        _flatten(got, b)
        for x, y in zip(a, b, strict=True):
            if x.shape != y.shape or x.dtype != y.dtype:
                raise _cannot(
                    self.name, f"answers {y.dtype} {tuple(y.shape)} with {n} items, not {x.dtype} {tuple(x.shape)}"
                )
        if all(_equal(x, y) for x, y in zip(a, b, strict=True)):
            return
        exact: list[Tensor] | None = self._in_float64(given, inputs)
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            if not _equal(x, y) and (exact is None or not _as_exact(x, y, exact[i])):
                raise _cannot(self.name, f"answers otherwise with {n} items, by {_largest(x, y):.2g}")

    def _in_float64(self, given: Any, inputs: list[Tensor]) -> list[Tensor] | None:
        """The tensors of the module's answer without its rounding; None: there is no such answer."""
        exact: list[Tensor] = []
        try:
            module = copy.deepcopy(self.module).double()
            args, kwargs = _filled(given, [t.double() if t.is_floating_point() else t for t in inputs])
            _flatten(module(*args, **kwargs), exact)
            again: list[Tensor] = []
            _flatten(module(*args, **kwargs), again)
        except Exception:  # noqa: BLE001  (a module of a user's; without an exact answer the strict limit holds)
            return None
        return exact if all(map(torch.equal, exact, again)) else None


def _largest(x: Tensor, y: Tensor) -> float:
    return float((x.double() - y.double()).abs().max()) if x.numel() else 0.0


def _as_exact(x: Tensor, y: Tensor, exact: Tensor) -> bool:
    """Whether y is about as near to the exact values as x is: differences of large numbers lose digits in both."""
    if not x.is_floating_point():
        return False
    return _largest(y, exact) <= ROUNDING * _largest(x, exact)


def _equal(x: Tensor, y: Tensor) -> bool:
    if x.dtype not in TOLERANCE:
        return torch.equal(x, y)
    scale = x.abs().nan_to_num(0.0, 0.0, 0.0).max().item() if x.numel() else 0.0
    return torch.allclose(x, y, rtol=0.0, atol=TOLERANCE[x.dtype] * scale + 1e-30, equal_nan=True)


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
            _NotItems: something in the answer is neither a tensor of items nor a constant.
        """
        torch._C._jit_set_onnx_log_enabled(False)  # the exporter turns it on, and prints the graph of a failure
        args, kwargs = _filled(self.given, list(inputs))
        with _Plain():
            answer = self.module(*args, **kwargs)
        _flatten(answer, [])
        places = {id(t): i for i, t in enumerate(inputs)}
        out: list[Tensor] = []

        def slot(t: Tensor) -> _Slot:
            if id(t) not in places:
                places[id(t)] = len(inputs) + len(out)
                out.append(t)
            return _Slot(places[id(t)])

        self.outcome = _skeleton(answer, slot)
        self.computed = len(out)
        return tuple(out)

    def answer(self, session: Any) -> Answer:
        """What runs a session of this graph on the tensors of a call."""
        known = {value.name for value in session.get_inputs()}
        fed = [(f"in{i}", i) for i in range(_slots(self.given)) if f"in{i}" in known]  # unused ones are pruned
        names = [f"out{i}" for i in range(self.computed)]
        run, outcome = session._sess.run, self.outcome  # below its checks of arguments, which cost 1 us a call

        def computed(tensors: list[Tensor]) -> list[Tensor]:
            feed = {name: tensors[i].contiguous().numpy() for name, i in fed}
            return [torch.from_numpy(array) for array in run(names, feed, None)]

        if isinstance(outcome, _Slot):
            return lambda tensors: computed(tensors)[0]
        return lambda tensors: _filled(outcome, tensors + computed(tensors))


def _slots(skeleton: Any) -> int:
    if isinstance(skeleton, _Slot):
        return 1
    if isinstance(skeleton, dict):
        return sum(map(_slots, skeleton.values()))
    return sum(map(_slots, skeleton)) if isinstance(skeleton, (tuple, list)) else 0


def _session(name: str, traced: _Traced, example: list[Tensor]) -> Any:
    """A session for a traced region.

    Raises:
        CannotPrepare: the exporter or ONNX Runtime does not know something in it.
    """
    import onnxruntime as ort

    if wrong := next((t.dtype for t in [*traced.parameters(), *example] if t.dtype == torch.bfloat16), None):
        raise _cannot(name, f"has tensors of {wrong}, which ONNX Runtime does not compute with on the CPU")
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
        session = ort.InferenceSession(file.getvalue(), _options(ort), providers=[PROVIDER])
    except Exception as e:
        raise _cannot(name, f"cannot become an ONNX graph: {_sentence(e)}") from e
    if session.get_providers() != [PROVIDER]:
        raise _cannot(name, f"runs on {', '.join(session.get_providers())} instead of {PROVIDER}")
    return session


def _options(ort: Any) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.enable_cpu_mem_arena = False  # as fast, and memory goes back, so that what the next call needs can be seen
    options.log_severity_level = 4  # errors are raised as well
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # one pool for each of many sessions
    return options


def _cannot(name: str, what: str) -> CannotPrepare:
    region = f"region {name!r}" if name else "the network"
    return CannotPrepare(f"engine 'onnxruntime': {region} {what}")


def _sentence(e: Exception) -> str:
    """What an exporter or ONNX Runtime complains of, with the operator's name if it is about one."""
    text = str(e)
    if "requires grad as a constant" in text:
        return "it computes with parameters of a module that is not among its own"
    if found := re.search(r"have an op for ([\w:]+)", text):
        return f"the exporter does not know operator {found[1]} with these arguments"
    if found := re.search(r"operator '([\w:.]+)'", text):
        return f"operator {found[1]} is not available in opset {OPSET}"
    if found := re.search(r"implementation for (\w+)\(\d+\)", text):
        return f"ONNX Runtime has no {found[1]} for these dtypes"
    if found := re.search(r"while running (\w+) node", text):
        return f"operator {found[1]} fails, as where the number of items of the example is a constant in the graph"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"{type(e).__name__}: {lines[0].partition('  [')[0]}" if lines else type(e).__name__
