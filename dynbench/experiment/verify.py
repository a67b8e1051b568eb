"""The same answer under every strategy: learned decisions, edge traces, random ones, and a batch of one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from dynbench.dynamic import Execution, Trace, points
from dynbench.dynamic.sources import edge
from dynbench.experiment.arms import Call
from dynbench.experiment.build import Prepared, prepare
from dynbench.experiment.oracle import Oracle, answers, output_error
from dynbench.experiment.spec import Options, Workload
from dynbench.strategies import Masking, PerSample

EDGES = ("all", "none", "one", "random")
VERIFY_ITEMS = 12  # samples; few, because the oracle runs each alone, in float64


@dataclass(frozen=True)
class Verdict:
    """One strategy on one workload.

    Attributes:
        largest: the largest difference over all traces, relative to the answer's largest value.
        tolerance: what it may be, of the trace where the two are closest.
        worst_trace: the trace of the largest difference.
        same_decisions: whether exactly the decisions that `per_sample` reaches were reached, for every forced trace.
        unforced: share of the model's own decisions that differ from those of `per_sample` (rounding at a threshold).
        refused: why the strategy means nothing here.
    """

    workload: str
    strategy: str
    largest: float = 0.0
    tolerance: float = 0.0
    worst_trace: str = ""
    same_decisions: bool = True
    unforced: float = 0.0
    refused: str | None = None

    @property
    def ok(self) -> bool:
        """Whether it is the same answer, from the same decisions."""
        return self.refused is not None or (self.largest <= self.tolerance and self.same_decisions)


def verify_workloads(specs: list[Workload], options: Options) -> Iterator[Verdict]:
    """Checks every strategy on every workload.

    Args:
        specs: workloads.
        options: device, dtype, threads, data and seed; strategies restrict what is checked.

    Yields:
        A verdict per workload and strategy, as soon as it is known.

    Raises:
        UserError: a workload that cannot be built.
    """
    for spec in specs:
        small = spec.model_copy(update={"run": spec.run.model_copy(update={"accuracy_items": 0})})
        yield from _verify(prepare(small, options))


@torch.inference_mode()
def _verify(p: Prepared) -> Iterator[Verdict]:
    x = p.inputs[:VERIFY_ITEMS]
    n = x.shape[0]
    batches = [(0, x)]
    oracle = Oracle(p.model, batches, n, p.dtype)
    traces = _traces(p.model, x)
    right = {}
    for kind, trace in traces.items():
        ex = Execution(PerSample(), replay=trace, record=True)
        right[kind] = (oracle.answer(ex), ex.trace)
    for name, strategy in p.parts.strategies.items():
        if strategy.static_twin:
            continue  # another function of the input, by intention
        if why := strategy().refuses(p.model):
            yield Verdict(p.spec.name, name, refused=why)
            continue
        own = Execution(strategy(), record=True)
        answers(Call(p.model, own, n), batches)
        assert own.trace is not None
        largest, worst, same = 0.0, "", True
        for kind, trace in traces.items():
            ex = Execution(strategy(), replay=trace, record=True)
            error = output_error(answers(Call(p.model, ex, n), batches), right[kind][0])
            same = same and ex.trace == right[kind][1]
            if not error <= largest:
                largest, worst = error, kind
        alone = Call(p.model, Execution(strategy(), replay=traces["learned"]), n)
        error = output_error(answers(alone, [(i, x[i : i + 1]) for i in range(n)]), right["learned"][0])
        if not error <= largest:
            largest, worst = error, "learned, batch of 1"
        unforced = _different(own.trace, traces["learned"])
        yield Verdict(p.spec.name, name, largest, oracle.tolerance, worst, same, unforced)


def _traces(model: nn.Module, x: torch.Tensor) -> dict[str, Trace]:
    own = Execution(PerSample(), record=True)
    own.run(model, x)
    everything = Execution(Masking(), record=True)
    everything.run(model, x)
    assert own.trace is not None and everything.trace is not None
    traces = {"learned": own.trace}
    if all(point.can_be_made_up for point in points(model).values()):
        traces |= {kind: edge(everything.trace, model, kind) for kind in EDGES}
    return traces


def _different(trace: Trace, other: Trace) -> float:
    a, b = trace.reached_only(), other.reached_only()
    asked = sum(int(reached.sum()) for _, reached in b.values())
    differ = 0
    for key, (value, _) in b.items():
        theirs = a[key][0] if key in a else torch.zeros_like(value)
        differ += int((value != theirs).flatten(1).any(1).sum() if value.dim() > 1 else (value != theirs).sum())
    return differ / max(asked, 1)
