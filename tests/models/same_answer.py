"""What every model must pass: the answer of `per_sample`, from the same decisions, under every strategy."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from dynbench.dynamic import Execution, Trace
from dynbench.dynamic.sources import edge
from dynbench.strategies import STRATEGIES, Masking, PerSample
from tests.networks import DYNAMIC, REFUSALS

__all__ = ["DYNAMIC", "TOLERANCE", "assert_same_answer", "decided_both_ways", "forced", "run"]

TOLERANCE = 2e-5  # of the answer's largest value


def run(net: nn.Module, x: Tensor, strategy: str, replay: Trace | None = None) -> tuple[Tensor, Trace]:
    ex = Execution(STRATEGIES[strategy](), replay=replay, record=True)
    with torch.inference_mode():
        y = ex.run(net, x)
    assert ex.trace is not None
    return y, ex.trace


def forced(net: nn.Module, x: Tensor) -> Iterator[tuple[str, Trace]]:
    """Traces at the edges of what can be decided, and a random one."""
    every = Execution(Masking(), record=True)
    with torch.inference_mode():
        every.run(net, x)
    assert every.trace is not None
    for kind in ("all", "none", "one", "random"):
        yield kind, edge(every.trace, net, kind)


def assert_same_answer(net: nn.Module, x: Tensor, strategy: str) -> None:
    """Learned decisions, forced ones, and a batch of one; where the strategy refuses, it says why."""
    if why := STRATEGIES[strategy]().refuses(net):
        assert REFUSALS[strategy] in why
        return
    with torch.inference_mode():
        learned, asked = Execution(PerSample(), record=True), None
        answer = learned.run(net, x)
    for kind, trace in [("learned", learned.trace), *forced(net, x)]:
        want, asked = (answer, learned.trace) if kind == "learned" else run(net, x, "per_sample", trace)
        got, recorded = run(net, x, strategy, None if kind == "learned" else trace)
        assert float((got - want).abs().max() / want.abs().max().clamp(min=1e-30)) < TOLERANCE, kind
        assert recorded == asked, kind


def decided_both_ways(trace: Trace) -> bool:
    """Whether the decisions differ from item to item: a test on a constant decision shows little."""
    return any(
        bool((value[reached] != value[reached][:1]).any()) for value, reached in trace.entries.values() if reached.any()
    )
