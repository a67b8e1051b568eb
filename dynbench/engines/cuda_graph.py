"""CUDA graphs, region by region: the kernels of a region are recorded for a few sizes, and launched all at once.

A region that computes each item alone is recorded for powers of two: a call's items are copied into the buffers of the
next larger graph, whose other rows hold items of earlier calls, and their answers are copied out. A region that mixes
items is recorded for each number of items by itself.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from dynbench.dynamic.regions import Region
from dynbench.engines.base import CannotPrepare
from dynbench.engines.calls import NotItems, as_written, equal, filled, flatten, largest, numbered, outcome, rows

GRAPHS = 32  # of a region at most; the one that was not used for longest goes
WARM_UP = 3  # calls before recording, in which libraries choose their algorithms and allocate

Value = TypeVar("Value")
Call = Callable[[list[Tensor]], Any]
Record = Callable[[Call, list[Tensor]], tuple[Callable[[], Any], Any]]
"""`(call, buffers) -> (replay, answer)`: `replay()` computes the answer anew, in place, from what the buffers hold."""


class CudaGraph:
    """Every region is a set of CUDA graphs, recorded when it is prepared and for new shapes of an item at first sight.

    Each graph is compared with the module before it is used. As written stay: single layers of torch, in which there is
    nothing to launch together; regions that write into their arguments; calls whose arguments are not all tensors of
    the same number of items, None or plain numbers and texts; and calls with gradients.

    The rows that fill up a graph are computed too. They are no part of executed FLOPs, which are counted as written.

    Args:
        record: makes a graph; default: on a GPU.
        graphs: of a region at most.
    """

    name = "cuda_graph"
    as_written = False

    def __init__(self, record: Record | None = None, graphs: int = GRAPHS) -> None:
        self._record, self._graphs = record or _OnGpu(), graphs

    def facts(self) -> dict[str, object]:
        """Versions, and for which sizes graphs are recorded."""
        return {
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "sizes": "powers of two up to the largest batch; single ones where items are mixed",
            "graphs_per_region": self._graphs,
        }

    def refuses(self, device: str) -> str | None:
        """Other devices than GPUs of NVIDIA."""
        if torch.device(device).type != "cuda":
            return f"CUDA graphs are recorded on cuda devices only, not on {device}"
        if torch.version.cuda is None or not torch.cuda.is_available():
            return "torch finds no CUDA device here"
        return None

    def prepare(self, region: Region) -> Callable[..., Any]:
        """Records the region for all sizes up to the largest one that it was seen at.

        Raises:
            CannotPrepare: it cannot be recorded, as where it waits for the device, or a graph answers otherwise.
        """
        if region.leaf and type(region.module).__module__.startswith("torch.nn."):
            return region.module
        graphs = _Graphs(region, self._record, self._graphs)
        return graphs if graphs.recorded_ahead(region.example, region.sizes) else region.module


def bucket(n: int, most: int) -> int:
    """The size of the graph for n items: the next power of two, but the largest size seen where that is enough."""
    power = 1 << (n - 1).bit_length()
    return min(power, most) if n <= most else power


def buckets(most: int) -> list[int]:
    """All sizes of graphs for 1 to `most` items, ascending."""
    return sorted({bucket(n, most) for n in (most, *(1 << i for i in range(most.bit_length())))})


class Latest(Generic[Value]):
    """What was used last, by key, at most so many.

    Args:
        most: values kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[Hashable, Value] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value of a key; made where it is not kept, in place of the one that was not used for longest."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        made = self._kept[key] = make()
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)
        return made


class _Kind(NamedTuple):
    """Calls with one signature."""

    given: Any  # (args, kwargs), with slots
    example: list[Tensor]
    alone: bool  # each item is computed alone


class _Graphs:
    """What is called in place of a region's module.

    Args:
        region: a region; its module's `forward` is still its own.
        record: makes a graph.
        graphs: at most.
    """

    def __init__(self, region: Region, record: Record, graphs: int) -> None:
        self.name, self.module, self.forward = region.name, region.module, region.module.forward
        self.most = max(region.sizes)
        self.kinds: dict[Hashable, _Kind | None] = {}  # None: as written
        self.graphs: Latest[_Graph] = Latest(graphs)
        self._record = record

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The answer of the graph for such arguments; of the module where they are no items."""
        found = None if torch.is_grad_enabled() else self._kind(args, kwargs)
        if found is None:
            return self.forward(*args, **kwargs)
        key, kind, tensors = found
        n = tensors[0].shape[0]
        return self._graph(key, kind, bucket(n, self.most) if kind.alone else n)(tensors)

    def recorded_ahead(self, args: tuple[Any, ...], sizes: list[int]) -> bool:
        """Records graphs for calls like this one of up to so many items; False: such calls stay as written.

        Raises:
            CannotPrepare: see `CudaGraph.prepare`.
        """
        with torch.no_grad():
            found = self._kind(args, {})
            if found is None:
                return False
            key, kind, _ = found
            for size in buckets(self.most) if kind.alone else filter(None, sizes):
                self._graph(key, kind, size)
        return True

    def _kind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Hashable, _Kind, list[Tensor]] | None:
        """(signature, what is known of such calls, tensors) of a call; None: it stays as written."""
        tensors: list[Tensor] = []
        try:
            key = flatten((args, kwargs), tensors)
        except NotItems:
            return None
        n = tensors[0].shape[0] if tensors else 0
        if not n or any(t.shape[0] != n for t in tensors):
            return None
        if key not in self.kinds:
            with as_written(self.module):
                self.kinds[key] = self._look(numbered((args, kwargs)), tensors)
        kind = self.kinds[key]
        return None if kind is None else (key, kind, tensors)

    def _look(self, given: Any, tensors: list[Tensor]) -> _Kind | None:
        tried = _buffers(tensors)
        written = [t._version for t in tried]  # how often
        try:
            _, computed = outcome(self._call(given, tried), tried)
        except NotItems:
            return None
        if not computed or [t._version for t in tried] != written:  # it writes into its arguments
            return None
        return _Kind(given, [t.clone() for t in tensors], computes_alone(self.module, given, tensors))

    def _call(self, given: Any, tensors: list[Tensor]) -> Any:
        args, kwargs = filled(given, tensors)
        return self.forward(*args, **kwargs)

    def _graph(self, key: Hashable, kind: _Kind, size: int) -> _Graph:
        return self.graphs.get((key, size), lambda: self._recorded(kind, size))

    def _recorded(self, kind: _Kind, size: int) -> _Graph:
        with as_written(self.module):
            try:
                graph = _Graph(lambda tensors: self._call(kind.given, tensors), rows(kind.example, size), self._record)
            except torch.OutOfMemoryError:
                raise
            except Exception as e:
                raise self._cannot(f"cannot be recorded for {size} items: {_sentence(e)}") from e
            self._compare(kind, size, graph)
        return graph

    def _compare(self, kind: _Kind, size: int, graph: _Graph) -> None:
        """With other items than those it was recorded with, and where it may be filled up with as few as possible."""
        n = size // 2 + 1 if kind.alone else size
        inputs = [t.flip(0) for t in rows(kind.example, size)]
        inputs = [t[:n] for t in inputs]
        a: list[Tensor] = []
        b: list[Tensor] = []
        flatten(self._call(kind.given, [t.clone() for t in inputs]), a)
        flatten(graph(inputs), b)
        for x, y in zip(a, b, strict=True):
            if x.shape != y.shape or not equal(x, y):
                why = f"by {largest(x, y):.2g}" if x.shape == y.shape else f"{tuple(y.shape)} for {tuple(x.shape)}"
                raise self._cannot(f"answers otherwise with {n} items, {why}")

    def _cannot(self, what: str) -> CannotPrepare:
        region = f"region {self.name!r}" if self.name else "the network"
        return CannotPrepare(f"engine 'cuda_graph': {region} {what}")


class _Graph:
    """A recorded call for a number of items, and its buffers.

    Args:
        call: is recorded.
        example: as many items as the graph has room for.
        record: records it.
    """

    def __init__(self, call: Call, example: list[Tensor], record: Record) -> None:
        self.buffers = _buffers(example)
        self.size = self.buffers[0].shape[0]
        self._replay, answer = record(call, self.buffers)
        self._form, self._computed = outcome(answer, self.buffers)

    def __call__(self, tensors: list[Tensor]) -> Any:
        """The answer for up to `size` items, in tensors of its own: the next call overwrites the graph's."""
        n = tensors[0].shape[0]
        whole = n == self.size
        for buffer, t in zip(self.buffers, tensors, strict=True):
            (buffer if whole else buffer[:n]).copy_(t)
        self._replay()
        return filled(self._form, tensors + [(t if whole else t[:n]).clone() for t in self._computed])


def _buffers(tensors: list[Tensor]) -> list[Tensor]:
    """Copies that can be written in any mode, and count how often they are."""
    with torch.inference_mode(False), torch.no_grad():
        return [t.clone() for t in tensors]


class _OnGpu:
    """Records on the current GPU. All graphs share one pool of memory: their answers are copied out before the next."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, call: Call, buffers: list[Tensor]) -> tuple[Callable[[], Any], Any]:
        """See `Record`."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        beside, here = torch.cuda.Stream(), torch.cuda.current_stream()
        beside.wait_stream(here)
        with torch.cuda.stream(beside):
            for _ in range(WARM_UP):
                call(buffers)
        here.wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):  # others may read sensors
            answer = call(buffers)
        return graph.replay, answer


def computes_alone(module: nn.Module, given: Any, tensors: list[Tensor]) -> bool:
    """Whether a module's answer for an item does not depend on the items beside it, as far as trying shows.

    It is tried on the CPU, where an index out of range is only an exception: two items, each alone, must answer as they
    do together and beside items that are NaN. What cannot be tried counts as mixing.

    Args:
        module: as written.
        given: its arguments `(args, kwargs)` with slots for the tensors.
        tensors: some items [n, ...].
    """
    try:
        own = copy.deepcopy(module).cpu()
        two = [t.cpu() for t in rows(tensors, 2)]
        singly = [_answer(own, given, [t[i : i + 1] for t in two]) for i in range(2)]
        beside = _answer(own, given, [torch.cat([t, _strange(t)]) for t in two])
    except Exception:  # noqa: BLE001  (a module of a user's may not run on the CPU)
        return False
    together = [torch.cat(alone) for alone in zip(*singly, strict=True)]
    if [(2, *t.shape[1:]) for t in beside] != [tuple(t.shape) for t in together] or any(len(t) != 4 for t in beside):
        return False
    return all(equal(t, both[:2]) for t, both in zip(together, beside, strict=True))


def _answer(module: nn.Module, given: Any, tensors: list[Tensor]) -> list[Tensor]:
    args, kwargs = filled(given, tensors)
    found: list[Tensor] = []
    flatten(module(*args, **kwargs), found)
    return found


def _strange(t: Tensor) -> Tensor:
    """Items as those of t, but NaN where there is such a thing."""
    return torch.full_like(t, torch.nan) if t.is_floating_point() else t[:1].expand_as(t)


def _sentence(e: Exception) -> str:
    lines = [line.strip() for line in str(e).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(e).__name__
