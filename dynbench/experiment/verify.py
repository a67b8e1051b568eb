"""Has a network a right answer, and is it the same under every strategy?

First the network alone: the same twice, and item by item. Then every strategy against `per_sample`: learned decisions,
edge traces, random ones, and a batch of one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dynbench.dynamic import Execution, Trace, points
from dynbench.dynamic.items import called, count, map_items, row
from dynbench.dynamic.sources import edge
from dynbench.errors import DynbenchError, UserError
from dynbench.experiment import trust
from dynbench.experiment.arms import Call
from dynbench.experiment.build import Prepared, prepare
from dynbench.experiment.oracle import OPAQUE_TOLERANCE, Oracle, answers, left_out, output_error
from dynbench.experiment.spec import Opaque, Options, Workload
from dynbench.strategies import Masking, PerSample

EDGES = ("all", "none", "one", "random")
VERIFY_ITEMS = 12  # samples; few, because the oracle runs each alone, in float64


@dataclass(frozen=True)
class Verdict:
    """One strategy on one workload; or, with a `finding`, the network itself.

    Attributes:
        strategy: its name, or that of an opaque network; empty: it is about the network.
        largest: the largest difference over all traces, relative to the answer's largest value.
        tolerance: what it may be, of the trace where the two are closest.
        worst_trace: the trace of the largest difference.
        same_decisions: whether exactly the decisions that `per_sample` reaches were reached, for every forced trace.
        unforced: share of the model's own decisions that differ from those of `per_sample`.
        beyond_rounding: points at which they differ by more than rounding at a threshold.
        refused: why the strategy means nothing here.
        finding: why the network has no right answer.
        said: how the network was taken, such as out of a wrapper.
        type: that the right answers were computed in.
        note: why that is not float64; None: it is.
    """

    workload: str
    strategy: str
    largest: float = 0.0
    tolerance: float = 0.0
    worst_trace: str = ""
    same_decisions: bool = True
    unforced: float = 0.0
    beyond_rounding: tuple[str, ...] = ()
    refused: str | None = None
    finding: str | None = None
    said: str | None = None
    type: str = "float64"
    note: str | None = None

    @property
    def ok(self) -> bool:
        """Whether it is the same answer, from the same decisions."""
        if self.refused is not None:
            return True
        same = self.largest <= self.tolerance and self.same_decisions and not self.beyond_rounding
        return self.finding is None and same


def verify_workloads(specs: list[Workload], options: Options) -> Iterator[Verdict]:
    """Checks every strategy on every workload.

    Args:
        specs: workloads.
        options: device, dtype, threads, data and seed; strategies restrict what is checked.

    Yields:
        A verdict for what is found about a network itself, and one per workload and strategy, as soon as it is known.
        A network that does not answer the same twice is compared no further.

    Raises:
        UserError: a workload that cannot be built, or a network that raises.
    """
    for spec in specs:
        small = spec.model_copy(update={"run": spec.run.model_copy(update={"accuracy_items": 0})})
        p = prepare(small, options)
        try:
            with torch.inference_mode():
                yield from _verify(p)
        except DynbenchError:
            raise
        except Exception as e:
            raise UserError(f"{spec.name}: the network raised {type(e).__name__}: {e}".splitlines()[0]) from e


def _verify(p: Prepared) -> Iterator[Verdict]:
    x = map_items(lambda t: t[:VERIFY_ITEMS], p.inputs)
    for note in p.notes:
        yield Verdict(p.spec.name, "", said=note)
    finding = p.finding
    if finding is not None:
        yield Verdict(p.spec.name, "", finding=str(finding))
        if finding.name == "not deterministic":
            return
    if p.spec.model_kind == "opaque":  # no strategy plays it
        return
    for opaque in p.spec.opaque_networks:
        yield _verify_opaque(p, opaque, x)
    compared = _Compared(p, x)
    for name, strategy in p.parts.strategies.items():
        if strategy.static_twin:
            continue  # another function of the input, by intention
        if why := strategy().refuses(p.model):
            yield Verdict(p.spec.name, name, refused=why)
        else:
            yield compared.verdict(name)


def _verify_opaque(p: Prepared, opaque: Opaque, x: Any) -> Verdict:
    """Of an opaque network: has it a right answer, and is it that of the workload's network, where it should be?"""
    if (finding := p.finding_about(opaque.name)) is not None:
        return Verdict(p.spec.name, opaque.name, finding=f"{opaque.name}: {finding}")
    if opaque.same_answer_as is None:
        return Verdict(p.spec.name, opaque.name, refused="it has a right answer; it is not compared with another one's")
    right = Oracle(p.model, [(0, x)], count(x)).answer(Execution(PerSample()))
    net = p.opaque[opaque.name]
    theirs = answers(lambda _, batch: called(net, batch), [(0, x)], left_out(net, x))
    error = output_error(theirs[: len(right)], right)
    return Verdict(p.spec.name, opaque.name, largest=error, tolerance=OPAQUE_TOLERANCE, worst_trace="learned")


class _Compared:
    """The right answers to a batch after several traces, and strategies against them.

    Args:
        p: the workload.
        x: inputs [n, ...].
    """

    def __init__(self, p: Prepared, x: Any) -> None:
        self._p, self._x, self._n = p, x, count(x)
        self._without = left_out(p.model, x)
        self._oracle = Oracle(p.model, [(0, x)], self._n)
        self._traces = _traces(p.model, x)
        self._right: dict[str, tuple[list[Tensor], Trace]] = {}
        for kind, trace in self._traces.items():
            ex = Execution(PerSample(), replay=trace, record=True)
            answer = self._oracle.answer(ex)
            assert ex.trace is not None
            self._right[kind] = answer, ex.trace
        self._forced = trust.run(p.model, x, PerSample(), replay=self._traces["learned"])

    def verdict(self, name: str) -> Verdict:
        """Of a strategy."""
        p, x, n, make = self._p, self._x, self._n, self._p.parts.strategies[name]
        largest, worst, same = 0.0, "", True
        for kind, trace in self._traces.items():
            ex = Execution(make(), replay=trace, record=True)
            error = output_error(answers(Call(p.model, ex, n), [(0, x)], self._without), self._right[kind][0])
            assert ex.trace is not None
            same = same and not trust.differing(ex.trace, self._right[kind][1])
            if error > largest:
                largest, worst = error, kind
        alone = Call(p.model, Execution(make(), replay=self._traces["learned"]), n)
        one_by_one = answers(alone, [(i, row(x, i)) for i in range(n)], self._without)
        error = output_error(one_by_one, self._right["learned"][0])
        if error > largest:
            largest, worst = error, "learned, batch of 1"
        own = Execution(make(), record=True)
        own.run(p.model, x)
        assert own.trace is not None
        forced = trust.run(p.model, x, make(), replay=self._traces["learned"])
        return Verdict(
            workload=p.spec.name,
            strategy=name,
            largest=largest,
            tolerance=self._oracle.tolerance,
            worst_trace=worst,
            same_decisions=same,
            unforced=_different(own.trace, self._traces["learned"], self._oracle.precision.floor),
            beyond_rounding=tuple(trust.beyond_rounding(p.model, x, forced, self._forced, self._oracle.precision)),
            type=self._oracle.type,
            note=self._oracle.note,
        )


def _traces(model: nn.Module, x: Any) -> dict[str, Trace]:
    own = Execution(PerSample(), record=True)
    own.run(model, x)
    everything = Execution(Masking(), record=True)
    everything.run(model, x)
    assert own.trace is not None and everything.trace is not None
    traces = {"learned": own.trace}
    if all(point.can_be_made_up for point in points(model).values()):
        traces |= {kind: edge(everything.trace, model, kind) for kind in EDGES}
    return traces


def _different(trace: Trace, other: Trace, slack: float) -> float:
    """Share of the decisions that were asked for in either of two traces of which the other has no equal."""
    asked = sum(int(reached.sum()) for _, reached in other.reached_only().values())
    return sum(trust.differing(other, trace, slack).values()) / max(asked, 1)
