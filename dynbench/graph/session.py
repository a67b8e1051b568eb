"""Runs a graph here: as ONNX Runtime executes it fastest, or as it is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from dynbench.dynamic.trace import Entry, Trace
from dynbench.graph.compile import Graph
from dynbench.graph.layout import for_this_machine


class Session:
    """A graph, loaded.

    Args:
        graph: what to run.
        fast: optimised for this machine, with layouts kept across branches; else as it is, without any optimisation.
        threads: of ONNX Runtime.
        profile: a prefix for a profile's file; None: none is taken.
    """

    def __init__(self, graph: Graph, *, fast: bool = True, threads: int = 1, profile: str | None = None) -> None:
        self.graph = graph
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, profile
            options.add_session_config_entry("session.disable_prepacking", "1")  # or their shapes are not recorded
        model = for_this_machine(graph.model) if fast else graph.model
        self.session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self.takes = {i.name for i in self.session.get_inputs()}

    def feeds(self, x: Tensor, trace: Trace | None = None, start: int = 0) -> dict[str, np.ndarray]:
        """What the session takes, for items `start` and on of the trace's stream."""
        feeds = {"x": x.numpy()}
        for decision in self.graph.decisions:
            if decision.table in self.takes:
                assert decision.table is not None
                feeds[decision.table] = _table(decision, trace, start, x.shape[0])
        return feeds

    def answer(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        """The network's answer, and nothing else read out."""
        found: list[np.ndarray] = self.session.run(list(self.graph.answers), feeds)
        return found

    def run(self, x: Tensor, trace: Trace | None = None, start: int = 0) -> tuple[list[Tensor], Trace]:
        """The answer, and what the model itself decided, for whom, as a trace of this batch."""
        names = [n for t in self.graph.decisions for n in ([t.value, t.ids] if isinstance(t.ids, str) else [t.value])]
        wanted = list(dict.fromkeys([*self.graph.answers, *names]))
        got = dict(zip(wanted, self.session.run(wanted, self.feeds(x, trace, start)), strict=True))
        n, entries = x.shape[0], {}
        for decision in self.graph.decisions:
            value = torch.from_numpy(np.asarray(got[decision.value])).reshape(-1, *decision.shape)
            ids = (
                torch.tensor(decision.ids)
                if not isinstance(decision.ids, str)
                else torch.from_numpy(got[decision.ids]).flatten()
            )
            size = n * math.prod(decision.key[1])
            table = torch.zeros((size, *decision.shape), dtype=decision.dtype)
            reached = torch.zeros(size, dtype=torch.bool)
            table[ids], reached[ids] = value, True
            entries[decision.key] = Entry(table, reached)
        covers = frozenset(name for name, _ in entries)
        return [torch.from_numpy(np.asarray(got[a])) for a in self.graph.answers], Trace(entries, n, "", covers)


def _table(decision: Any, trace: Trace | None, start: int, n: int) -> np.ndarray:
    per = math.prod(decision.key[1])
    entry = None if trace is None else trace.entries.get(decision.key)
    if entry is None:  # nobody of the stream was asked
        return torch.zeros((n * per, *decision.shape), dtype=decision.dtype).numpy()
    return entry.value[start * per : (start + n) * per].numpy()
