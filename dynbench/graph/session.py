"""Runs a graph here, on the CPU or a GPU: as ONNX Runtime executes it fastest, or as it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx import ModelProto, helper
from torch import Tensor

from dynbench.dynamic.trace import Entry, Trace, TraceError
from dynbench.engines.providers import Bound, providers, why_not_on
from dynbench.errors import DynbenchError
from dynbench.graph.compile import Graph
from dynbench.graph.export import DecisionOutput
from dynbench.graph.refused import CannotTrace

Feeds = dict[str, Any]
"""By the name of an input: an array on the CPU, a tensor on a GPU."""


class CannotFeed(DynbenchError):
    """Inputs or decisions that a graph does not take; the message says why in one sentence."""


class Session:
    """A graph, loaded.

    Args:
        graph: what to run.
        fast: optimised for this machine, on the CPU with layouts kept across branches; else as it is, without any
            optimisation.
        answers_only: as it is deployed: without outputs that say what was decided (`Graph.answering`). `run` loads the
            graph a second time, with them.
        threads: of ONNX Runtime.
        device: where it runs. On a GPU inputs, decisions and answers stay on the device.
        profile: a prefix for a profile's file; None: none is taken.

    Raises:
        CannotTrace: ONNX Runtime does not load the graph.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        fast: bool = True,
        answers_only: bool = False,
        threads: int = 1,
        device: torch.device | str = "cpu",
        profile: str | None = None,
    ) -> None:
        self.graph, self.device = graph, torch.device(device)
        loaded = graph.answering if answers_only else graph
        self._telling = None if loaded is not graph else self
        self._again = partial(Session, graph, fast=fast, threads=threads, device=device)
        on_cpu = self.device.type == "cpu"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 4
        level = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if fast and not on_cpu else level.ORT_DISABLE_ALL
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, profile
            if not fast:  # shapes of weights are recorded only if they stay as they are, which is slower
                options.add_session_config_entry("session.disable_prepacking", "1")
        try:
            model = loaded.here if fast and on_cpu else loaded.model
            self.session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=providers(self.device)
            )
        except Exception as e:
            raise CannotTrace(f"ONNX Runtime does not load the graph: {_complaint(e)}") from e
        if why := why_not_on(self.session, self.device):
            raise CannotTrace(f"the graph {why}")
        self._input = _input(loaded.model)
        self._takes = {i.name for i in self.session.get_inputs()}
        self._answers = list(graph.answers)
        self._call: Callable[[Feeds, list[str]], list[Tensor]]
        self._call = self._on_cpu if on_cpu else Bound(self.session, self.device)

    def _on_cpu(self, feeds: Feeds, names: list[str]) -> list[Tensor]:
        run = self.session._sess.run  # below its checks of arguments, which cost 1 us a call
        return [torch.from_numpy(array) for array in run(names, feeds, None)]

    def feeds(self, x: Tensor, trace: Trace | None = None, start: int = 0) -> Feeds:
        """What the session takes for the batch x [n, ...]: arrays on the CPU, tensors on a GPU.

        Args:
            x: as the example that the graph was made of, of any number of items, or of one for a single item's graph.
            trace: decisions of the stream, for a graph that replays.
            start: index of the batch's first item in the stream.

        Raises:
            CannotFeed: another shape, dtype or number of items, or decisions that are missing.
        """
        self._check(x)
        inputs = {"x": x.detach()} if "x" in self._takes else {}  # an input that nothing reads is gone
        for decision in self.graph.decisions:
            if decision.table is not None:
                table = _table(decision, trace, start, x.shape[0])
                if decision.table in self._takes:
                    inputs[decision.table] = table.to(self.device)
        return {name: t.numpy() if self.device.type == "cpu" else t for name, t in inputs.items()}

    def _check(self, x: Tensor) -> None:
        if not x.dim() or not x.shape[0]:
            raise CannotFeed("a graph takes at least one item")
        if self.graph.single and x.shape[0] != 1:
            raise CannotFeed(f"the graph is for a single item, not for {x.shape[0]}")
        if (x.device.type, x.device.index or 0) != (self.device.type, self.device.index or 0):
            raise CannotFeed(f"the graph runs on {self.device} and takes no input on {x.device}")
        if self._input is None:
            return
        dtype, item = self._input
        given = torch.empty(0, dtype=x.dtype).numpy().dtype if x.dtype != torch.bfloat16 else None
        if given != dtype:
            raise CannotFeed(f"the graph takes {dtype}, not {str(x.dtype).removeprefix('torch.')}")
        if tuple(x.shape[1:]) != item:
            raise CannotFeed(f"the graph takes items of shape {item}, not {tuple(x.shape[1:])}")

    def answer(self, feeds: Feeds) -> list[Tensor]:
        """The network's answer, its leaves in order, and nothing else read out.

        Raises:
            CannotTrace: ONNX Runtime fails to run the graph.
        """
        return self._read(self._answers, feeds)

    def run(self, x: Tensor, trace: Trace | None = None, start: int = 0) -> tuple[list[Tensor], Trace]:
        """The answer, and what the model itself decided, for whom, as a trace of this batch.

        Raises:
            CannotFeed: see `feeds`.
            CannotTrace: ONNX Runtime fails to run the graph, or it decides for items that there are not.
        """
        if self._telling is None:
            self._telling = self._again()
        return self._telling._told(x, trace, start)

    def _told(self, x: Tensor, trace: Trace | None, start: int) -> tuple[list[Tensor], Trace]:
        feeds, decisions = self.feeds(x, trace, start), self.graph.decisions
        wanted = [*self._answers, *(d.value for d in decisions), *(d.ids for d in decisions if isinstance(d.ids, str))]
        got = dict(zip(wanted, self._read(wanted, feeds), strict=True))
        said = {name: t.cpu() for name, t in got.items() if name not in self._answers}
        entries = {d.key: _entry(d, said, x.shape[0]) for d in decisions}
        covers = frozenset(name for name, _ in entries)
        return [got[a] for a in self._answers], Trace(entries, x.shape[0], "", covers)

    def _read(self, names: list[str], feeds: Feeds) -> list[Tensor]:
        try:
            return self._call(feeds, names)
        except Exception as e:
            raise CannotTrace(f"ONNX Runtime fails to run the graph: {_complaint(e)}") from e


def _input(model: ModelProto) -> tuple[np.dtype, tuple[int, ...]] | None:
    """(dtype, shape of an item) of the network's own input; None: the graph does not read it."""
    for value in model.graph.input:
        if value.name == "x":
            kind = value.type.tensor_type
            dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
            return dtype, tuple(d.dim_value for d in kind.shape.dim[1:])
    return None


def _table(decision: DecisionOutput, trace: Trace | None, start: int, n: int) -> Tensor:
    """The decisions of items `start` to `start + n`; zeros where no item of the stream was asked."""
    name, sizes = decision.key
    if trace is None:
        raise CannotFeed(f"the graph takes decisions of point {name!r}, and there is no trace")
    per = math.prod(sizes)
    try:
        found = trace.look_up(name, (trace.items, *sizes), range(start * per, (start + n) * per))
    except TraceError as e:
        raise CannotFeed(str(e)) from e
    if found is None:
        found = torch.zeros((n * per, *decision.shape), dtype=decision.dtype)
    if start + n > trace.items:
        raise CannotFeed(f"the trace has decisions for {trace.items} items, not for items {start} to {start + n - 1}")
    if found.dtype != decision.dtype or tuple(found.shape[1:]) != decision.shape:
        raise CannotFeed(
            f"decisions of point {name!r} are {_kind(found.dtype, found.shape[1:])} in the trace, "
            f"and {_kind(decision.dtype, decision.shape)} in the graph"
        )
    return found


def _kind(dtype: torch.dtype, shape: Iterable[int]) -> str:
    return f"{str(dtype).removeprefix('torch.')} {list(shape)}"


def _entry(decision: DecisionOutput, got: dict[str, Tensor], items: int) -> Entry:
    """What came out for one point, as an entry of a trace."""
    value = got[decision.value].reshape(-1, *decision.shape)
    ids = got[decision.ids].flatten() if isinstance(decision.ids, str) else torch.tensor(decision.ids, dtype=torch.long)
    size = items * math.prod(decision.key[1])
    if len(ids) != len(value) or bool(((ids < 0) | (ids >= size)).any()) or len(ids.unique()) != len(ids):
        raise CannotTrace(
            f"the graph decides at point {decision.key[0]!r} {len(value)} times for {len(ids)} items of {size}, "
            "or for an item twice"
        )
    table = torch.zeros((size, *decision.shape), dtype=decision.dtype)
    reached = torch.zeros(size, dtype=torch.bool)
    table[ids], reached[ids] = value, True
    return Entry(table, reached)


def _complaint(e: Exception) -> str:
    """What ONNX Runtime says, in one line."""
    text = " ".join(str(e).split())
    node, _, why = text.rpartition("Status Message: ")
    if not node:
        return text or type(e).__name__
    return f"{node[node.rfind('while running ') + len('while running ') :].strip().rstrip('.')}: {why}"
