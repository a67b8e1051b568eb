"""torch.compile, region by region: decision points stay in Python, what lies between them is compiled."""

from __future__ import annotations

import functools
import itertools
import types
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from dynbench.dynamic.regions import Region
from dynbench.engines.base import CannotPrepare

LIMIT = 16  # compilations of a region
_ACROSS_REGIONS = 4096  # torch's limit for code that several regions share


class Compile:
    """torch.compile with its defaults, but for weights: they are constants of the code as long as nobody changes them.

    torch calls that freezing (`torch._inductor.config.freezing`).

    A region is compiled for the number of items that it is called with first, then once for any number (with
    convolutions once below 16 and once from there on), and once more for a single item. Other changes of its arguments
    (a carry that is None at first, another number of tokens) add to that. A region that would be compiled more than
    `LIMIT` times is an error with the region's name; torch would return to eager PyTorch without a word.

    Args:
        backend: of torch.compile.
    """

    name = "compile"
    as_written = False

    def __init__(self, backend: str | Callable[..., Any] = "inductor") -> None:
        self.backend = backend

    def facts(self) -> dict[str, object]:
        """The version of torch, the backend, whether weights are constants, and the limit of compilations."""
        frozen = self.backend == "inductor"
        return {"torch": torch.__version__, "backend": str(self.backend), "freezing": frozen, "limit": LIMIT}

    def refuses(self, device: str) -> str | None:
        """Also where compiling a small function fails: no C++ compiler, no Triton, no headers."""
        return _try(device)

    def prepare(self, region: Region) -> Callable[..., Any]:
        """Compiles when it is first called. A single layer between the points stays: there is nothing to fuse in it."""
        if region.leaf and region.fixed:
            return region.module
        limits = torch._dynamo.config
        limits.recompile_limit = max(limits.recompile_limit, LIMIT + 1)
        return CompiledRegion(region, self.backend)


@functools.cache
def _try(device: str) -> str | None:
    try:
        probe = torch.compile(lambda x: (x * 2 + 1).relu())
        with torch.no_grad():
            probe(torch.ones(8, device=device))
    except Exception as e:  # noqa: BLE001  (whatever the compiler lacks)
        lines = [line for line in str(e).splitlines() if line.strip()] or [type(e).__name__]
        return f"torch.compile does not work on {device} here: {lines[0]}"
    return None


class _Uncompiled(Exception):
    """A call needs code that is not compiled yet."""


class CompiledRegion:
    """What is called in place of a region's module.

    Args:
        region: a region; its module's `forward` is still its own.
        backend: of torch.compile.

    Attributes:
        name: of the region.
        compilations: how often it was compiled.
        breaks: why code of it runs in Python between compiled graphs, and how often that was met in compiling.
    """

    def __init__(self, region: Region, backend: str | Callable[..., Any]) -> None:
        self.name, self.forward, self._module = region.name, region.module.forward, region.module
        self.compilations, self._variants = 0, 0  # in all; of the code that is called now
        self.breaks: Counter[str] = Counter()
        self._backend, self._compiling = backend, False
        self._frozen = backend == "inductor" and _can_freeze(region.module)
        self._constants: list[tuple[Tensor, int]] = []  # tensors that are constants of the code, and their versions
        self._compiled = torch.compile(_with_code_of_its_own(self.forward), backend=self._compile_graph)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's answer.

        Raises:
            CannotPrepare: it would be compiled once too often.
        """
        if torch.compiler.is_compiling():  # it is also a part of another region, which is compiled just now
            return self.forward(*args, **kwargs)
        if any(t._version != version for t, version in self._constants):
            self._unfreeze()
        if self._variants:
            try:
                return self._compiled(*args, **kwargs)
            except torch._dynamo.exc.BackendCompilerFailed as e:
                if not isinstance(e.inner_exception, _Uncompiled):
                    raise
        return self._compile(args, kwargs)

    def _compile(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The answer, by code that is compiled for it."""
        if self._variants == LIMIT:
            raise CannotPrepare(
                f"engine 'compile': {_named(self.name)} was compiled {LIMIT} times and would have to be again: its "
                "arguments, or what else it reads, change too often"
            )
        self.compilations, self._variants = self.compilations + 1, self._variants + 1
        met = torch._dynamo.utils.counters["graph_break"]
        before = Counter(met)
        self._compiling = True
        try:
            with _settings(freezing=self._frozen):
                answer = self._compiled(*args, **kwargs)
        finally:
            self._compiling = False
        self.breaks += Counter({_first_line(reason): n for reason, n in (Counter(met) - before).items()})
        if self._frozen:
            self._constants = [(t, t._version) for t in _tensors(self._module)]
        return answer

    def _compile_graph(self, graph: torch.fx.GraphModule, example: list[Tensor]) -> Any:
        """The backend. Freezing acts on tracing already, so only a call that is known to compile may come here."""
        if not self._compiling:
            raise _Uncompiled
        compile_graph = torch._dynamo.lookup_backend(self._backend) if isinstance(self._backend, str) else self._backend
        return compile_graph(graph, example)

    def _unfreeze(self) -> None:
        """Code from now on reads the tensors of the module, because somebody changes them."""
        self._frozen, self._constants, self._variants = False, [], 0
        self._compiled = torch.compile(_with_code_of_its_own(self.forward), backend=self._compile_graph)


@dataclass(frozen=True)
class RegionReport:
    """What torch.compile made of a region.

    Attributes:
        name: of the region; '' is the whole network.
        compilations: how often it was compiled so far.
        breaks: why code of it runs in Python between compiled graphs.
    """

    name: str
    compilations: int
    breaks: tuple[str, ...]


def compiled_regions(network: nn.Module) -> list[RegionReport]:
    """The regions of a network that engine 'compile' prepared; none of another network."""
    calls = (module.__dict__.get("forward") for module in network.modules())
    found = (call for call in calls if isinstance(call, CompiledRegion))
    return [RegionReport(call.name, call.compilations, tuple(call.breaks)) for call in found]


_numbers = itertools.count()


def _with_code_of_its_own(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The function with code that no other has: blocks of one class share theirs.

    By code and its name torch.compile keeps what it knows of a function's sizes, and what its limits count.
    """

    def region(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    code = region.__code__.replace(co_name=f"region_{next(_numbers)}")
    return types.FunctionType(code, region.__globals__, code.co_name, closure=region.__closure__)


def _settings(*, freezing: bool) -> ExitStack:
    """torch's settings while a region is compiled. `torch.compile(options={"freezing": True})` would do nothing."""
    import torch._inductor.config

    settings = ExitStack()
    settings.enter_context(torch._inductor.config.patch(freezing=freezing))
    settings.enter_context(
        torch._dynamo.config.patch(fail_on_recompile_limit_hit=True, accumulated_recompile_limit=_ACROSS_REGIONS)
    )
    return settings


def _can_freeze(module: nn.Module) -> bool:
    """Whether changes of its tensors would be seen.

    Tensors made in inference mode have no version, and two parameters that share memory have one each.
    """
    tensors = _tensors(module)
    if module.training or any(t.is_inference() for t in tensors):
        return False
    memory = {t.untyped_storage().data_ptr() for t in tensors if t.numel()}
    return len(memory) == len({id(t) for t in tensors if t.numel()})


def _tensors(module: nn.Module) -> list[Tensor]:
    return list({id(t): t for t in chain(module.parameters(), module.buffers())}.values())


def _named(region: str) -> str:
    return f"region {region!r}" if region else "the network"


def _first_line(reason: str) -> str:
    """A reason as torch.compile gives it, without what to do about it."""
    return next((line.strip() for line in reason.splitlines() if line.strip()), "no reason was given")
