"""Required work: what the decisions of a trace ask for, however a strategy executes it.

One probing run of one item with everything switched on gives the FLOPs of each part of a model (gate, body, expert,
stage, head) at each of its addresses. The trace says for how many items each address is needed: where the part around
it is and the point's decision asks for it (`DecisionPoint.needed`). So total traces (synthetic ones, filled in
everywhere) and recorded ones are treated alike: entries that would never have been reached do not count.

Where the work of a part follows from what was decided (channels, weights made for a code), there is no such table:
each item of the trace is run alone, on the one example, and its FLOPs are counted; what is made for a code counts for
the first item with that code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dynbench.counting.flops import FlopCounter
from dynbench.dynamic import (
    DecisionPoint,
    Execution,
    Loop,
    Pick,
    Program,
    Route,
    Skip,
    Trace,
    Weights,
    current,
    outside,
    points,
)
from dynbench.dynamic.context import Frame
from dynbench.dynamic.items import cat, first, map_items, row
from dynbench.unavailable import Unavailable


@dataclass(frozen=True, eq=False)
class Visit:
    """One entering of a part of the model while probing.

    Attributes:
        phase: 'decide', 'body' or 'head' (the phases that compute), or one that only moves things.
        point: name of the decision point.
        index: expert or step.
        parent: the part around it; None: outside any point.
        frame: the items it was computed for.
    """

    phase: str
    point: str | None
    index: int | None
    parent: Visit | None
    frame: Frame

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes of the item's coordinates below the sample."""
        return self.frame.extent[1:]

    @property
    def ids(self) -> Tensor:
        """Of the items of one sample that it was computed for, [ids] long, on the CPU."""
        return self.frame.ids.cpu()

    @property
    def items(self) -> int:
        """How many items of one sample it was computed for."""
        return self.frame.ids.shape[0]

    def ancestors(self) -> Iterator[Visit]:
        """This visit and those around it, innermost first."""
        visit: Visit | None = self
        while visit is not None:
            yield visit
            visit = visit.parent


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class _Probe(FlopCounter):
    """Attributes FLOPs to visits instead of parts."""

    def __init__(self) -> None:
        super().__init__()
        self.visits: list[Visit] = []

    def enter(self, phase: str, point: str | None, index: int | None) -> None:
        ex = current()
        assert ex is not None
        visit = Visit(phase, point, index, self._stack[-1], ex.frame)  # type: ignore[arg-type]
        self.visits.append(visit)
        self._stack.append(visit)  # type: ignore[arg-type]


class _Everything:
    """The strategy of the probing run: every part once, nothing selected.

    Attributes:
        given: of each visit of a layer whose weights follow a code: the point, and what the layer was given.
        making: the visits that make something for a code.
    """

    def __init__(self, probe: _Probe) -> None:
        self._probe = probe
        self.given: dict[Visit, tuple[Weights, Any]] = {}
        self.making: set[Visit] = set()

    def refuses(self, model: nn.Module) -> str | None:
        return None

    def run(self, ex: Execution, model: nn.Module, args: tuple[Any, ...]) -> Any:
        return model(*args)

    def route(self, ex: Execution, point: Route, x: Any, chosen: Tensor, weights: Tensor | None) -> Any:
        y = x
        for e, expert in enumerate(point.experts):
            with ex.phase("body", point.name, e):
                y = x if expert is None else expert(x)
        return y

    def skip(self, ex: Execution, point: Skip, x: Any, keep: Tensor, soft: Tensor | None) -> Any:
        with ex.phase("body", point.name, 0):
            if point.otherwise is not None:
                point.otherwise(x)
        with ex.phase("body", point.name, 1):
            return point.body(x)

    def pick(self, ex: Execution, point: Pick, x: Any, at: Tensor, weights: Tensor | None) -> Any:
        return point.gathered(ex, x, at, weights)

    def program(self, ex: Execution, point: Program, x: Any, layouts: Tensor) -> Any:
        n, answer = layouts.shape[0], x
        values = [point.blank(x, n)] * point.arguments
        word = torch.zeros(n, dtype=torch.long, device=first(x).device)
        for j in range(point.nodes):
            for op in range(len(point.ops)):
                with ex.at(j, point.nodes), ex.phase("body", point.name, op):
                    answer = point.call(op, x, values, word)
        return answer

    def ahead(self, ex: Execution, keep: dict[str, Tensor]) -> None:
        pass

    def loop(self, ex: Execution, point: Loop, state: Any) -> Any:
        for k in range(point.max_steps):
            state, answer, _ = point.once(ex, state, k)
        return answer

    def weights(self, ex: Execution, point: Weights, x: Any, code: Tensor) -> Any:
        with ex.phase("decide", point.name):
            params = point.generate(code)
            if point.shared:
                self.making.add(self._probe.visits[-1])
        with ex.phase("body", point.name):
            if point.shared:
                self.given[self._probe.visits[-1]] = point, x
                return point.layer(x, params)
            each = [map_items(lambda t, i=i: t[i], params) for i in range(code.shape[0])]
            return cat([point.layer.special(own)(row(x, i)) for i, own in enumerate(each)])  # type: ignore[operator]


@dataclass(frozen=True)
class Required:
    """FLOPs that the decisions of a trace require, summed over its stream.

    Attributes:
        region: bodies, stages, experts and everything outside the points.
        total: the same plus gates, routers, policies and heads: what executing item by item costs.
    """

    region: float | Unavailable
    total: float | Unavailable


class PartCosts:
    """The FLOPs of each part of a model for one sample, from a probing run in evaluation mode.

    Args:
        model: with decision points or without; its mode is put back afterwards.
        *example: the model's inputs, states of tensors; of each the first sample is used.

    Attributes:
        points: the model's decision points by name.
        visits: the parts, in the order they ran.
        flops: FLOPs of each visit, of what lies inside other visits nothing; None: outside all points.
        uncounted: calls of operators without a formula, by name.
    """

    def __init__(self, model: nn.Module, *example: Any) -> None:
        self.points = points(model)
        probe = _Probe()
        with evaluating(model), torch.no_grad(), probe:
            everything = _Everything(probe)
            Execution(everything, profile=probe).run(model, *(row(part, 0) for part in example))
        self.visits, self._given, self._making = probe.visits, everything.given, everything.making
        self._model = model
        self.flops: dict[Visit | None, int] = dict(probe.by_part)  # type: ignore[arg-type]
        self.uncounted = dict(probe.uncounted)

    def required(self, trace: Trace) -> Required:
        """The FLOPs that the decisions of a trace require.

        Returns:
            Sums over the stream's items; Unavailable, with the reason, where an item's work is not its own (a body that
            couples the items of a sample) or an operator has no formula.
        """
        why = self._why_not()
        if why is not None:
            return Required(Unavailable(unavailable=why), Unavailable(unavailable=why))
        trace = trace.to("cpu")
        region = float(self.flops.get(None, 0) * trace.items)
        extra = 0.0
        for visit, active in self._active(trace):
            if visit in self._given:
                body, special = self._by_code(visit, active, trace)
                region, extra = region + body, extra + special
                continue
            times = float(active.sum())
            if visit in self._making:
                times = float(len(self._codes(trace, visit, active)[0]))
            needed = self.flops.get(visit, 0) * times / visit.items
            if visit.phase == "body":
                region += needed
            elif visit.phase in ("decide", "head"):
                extra += needed
        return Required(region, region + extra)

    def path_depths(self, trace: Trace) -> tuple[np.ndarray, str]:
        """How far each item went, counted by the points with the model's first `DecisionPoint.path`.

        Returns:
            Depths [items], and what they count, e.g. 'bodies run of 17'. Where no point has a path: zeros, ''.
        """
        label = min((point.path for point in self.points.values() if point.path is not None), default=None)
        trace, depths, deepest = trace.to("cpu"), np.zeros(trace.items), 0
        if label is None:
            return depths, ""
        for visit, active in self._active(trace):
            point = self._point(visit)
            if visit.phase != "body" or point is None or point.path != label:
                continue
            added, most = point.added(trace, visit.index or 0, visit.sizes)
            if isinstance(added, Tensor):
                added = added.view(trace.items, -1)[:, visit.ids]
            depths += (active * added).sum(1).double().numpy()
            deepest += most * visit.items
        return depths, f"{label.text} of {deepest}"

    def required_by_part(self, trace: Trace, parts: int) -> np.ndarray:
        """FLOPs that decisions ask for about each part of an item, such as a token.

        Args:
            trace: whose decisions.
            parts: of an item: the first coordinate below the sample. Work that is not done part by part is left out.

        Returns:
            [items, parts]; 0 where nothing is decided part by part.
        """
        trace, found = trace.to("cpu"), np.zeros((trace.items, parts))
        for visit, active in self._active(trace):
            if not visit.sizes or visit.sizes[0] != parts or visit.phase not in ("body", "decide", "head"):
                continue
            each = self.flops.get(visit, 0) / visit.items
            of_part = torch.as_tensor(visit.ids) // (math.prod(visit.sizes) // parts)
            done = torch.zeros(trace.items, parts, dtype=torch.float64)
            found += each * done.index_add_(1, of_part, active.double()).numpy()
        return found

    def _why_not(self) -> str | None:
        if self.uncounted:
            return f"operator {', '.join(sorted(self.uncounted))} has no formula"
        for name, point in self.points.items():
            if point.couples_work:
                return f"{type(point).__name__} {name!r} couples the items of a {point.scope}"
        return None

    def macs_by_code(self, name: str) -> list[float] | None:
        """MACs of the layer of Weights, for one item with each of its codes; None: its codes are not known."""
        for point, x in self._given.values():
            if point.name == name and point.codes is not None:
                codes = torch.arange(point.codes, device=first(x).device)
                return [self._one_code(point, x, code)[0] / 2 for code in codes]
        return None

    def _by_code(self, visit: Visit, active: Tensor, trace: Trace) -> tuple[float, float]:
        """FLOPs of a layer for the codes of the items that are active, and of making it for each code."""
        point, x = self._given[visit]
        body = special = 0.0
        for code, items in zip(*self._codes(trace, visit, active), strict=True):
            once, making = self._one_code(point, x, code)
            body += once * int(items)
            special += making
        return body, special

    def _one_code(self, point: Weights, x: Any, code: Tensor) -> tuple[int, int]:
        """FLOPs of a layer for one item with this code, and of making it."""
        with evaluating(self._model), torch.no_grad(), outside():
            one = map_items(lambda t: t[0], point.generate(code[None].to(first(x).device)))
            with FlopCounter() as making:
                layer = point.layer.special(one)  # type: ignore[operator]
            with FlopCounter() as counter:
                layer(row(x, 0))
        return sum(counter.by_part.values()), sum(making.by_part.values())

    def _active(self, trace: Trace) -> Iterator[tuple[Visit, Tensor]]:
        """Each visit with the stream's items that need it, [items, ids of the visit] bool; the trace is on the CPU."""
        known: dict[Visit | None, Tensor] = {None: torch.ones(trace.items, 1, dtype=torch.bool)}
        for visit in self.visits:  # parents come first
            around = known[visit.parent]
            mask = around.repeat_interleave(math.prod(visit.sizes) // around.shape[1], 1)
            point = self._point(visit)
            needed = None if point is None else point.needed(trace, visit.phase, visit.index or 0, visit.sizes)
            known[visit] = mask if needed is None else mask & needed.view(mask.shape)
            yield visit, known[visit][:, visit.ids]

    def _point(self, visit: Visit) -> DecisionPoint | None:
        return self.points.get(visit.point or "")

    def _codes(self, trace: Trace, visit: Visit, active: Tensor) -> tuple[Tensor, Tensor]:
        """The distinct codes [m, ...] for the items that are active at a visit, and how many of them have each."""
        codes = self.points[str(visit.point)].decided(trace, visit.sizes)
        if codes is None:  # no item came by
            return torch.zeros(0), torch.zeros(0)
        rows = torch.zeros(trace.items, math.prod(visit.sizes), dtype=torch.bool)
        rows[:, visit.ids] = active
        found: tuple[Tensor, Tensor] = codes[rows.flatten()].unique(dim=0, return_counts=True)
        return found
