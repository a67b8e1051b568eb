"""A strategy that never looks at a value on the host, so that a trace of it is the whole dynamic network.

Two of it: for any batch, where who needs a body is gathered, computed and put back; and for a single item, where every
choice is a branch and nothing moves. Both are also ordinary strategies: run eagerly they give the same answers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dynbench.dynamic import DecisionPoint, Loop, Pick, Program, Route, Skip, Weights, Width
from dynbench.dynamic.context import Execution, Frame
from dynbench.dynamic.items import first, map_items, of_items_alone, wide
from dynbench.graph.operators import (
    anybody,
    blank,
    either,
    given,
    grouped,
    inverse,
    leaves,
    nobody,
    put,
    rows_of,
    seen,
    split,
    take,
    whose,
    zero,
)
from dynbench.graph.refused import CannotTrace, scheduled_on_the_host
from dynbench.strategies.base import Strategy, together

Side = Callable[[Any], Any]
Key = tuple[str, tuple[int, ...]]  # a point's name, sizes of the coordinates below the sample


@dataclass
class Event:
    """Decisions taken at one visit of a point.

    Attributes:
        ids: of the items asked, [m].
        value: what the model itself decided for them, [m, ...].
        known: the ids, where the host knows them.
    """

    ids: Tensor
    value: Tensor
    known: range | None = None


class Tracing(Execution):
    """An execution that can be traced: ids are tensors, decisions are kept as events, replayed ones come from tables.

    Args:
        strategy: an `InGraph`, or another that never looks at a value on the host.
        tables: decisions to use instead of the model's own, by key: [n * sizes, ...]; None: learned.
        gates: whether gates, routers and policies are part of it; without them there must be tables.

    Attributes:
        events: what was decided so far, by key, in the branch that is traced now.
    """

    def __init__(self, strategy: Strategy, tables: dict[Key, Tensor] | None = None, *, gates: bool = True) -> None:
        super().__init__(strategy)
        self.tables, self.gates = tables, gates
        self.events: dict[Key, list[Event]] = {}

    def run(self, model: nn.Module, *args: Any, start: int = 0, items: int | None = None) -> Any:
        """The model's answer for a batch that is a stream of its own."""
        from dynbench.dynamic.context import _current

        x = first(args)
        single = isinstance(self.strategy, OneItem)
        self.frame = Frame.root(0, 1, 1, x.device) if single else Frame(None, "root", x.device, (0,))
        if not single:
            self.frame._ids, self.frame._span_known = torch.arange(x.shape[0], device=x.device), True
        token = _current.set(self)
        try:
            return self.strategy.run(self, model, args)
        finally:
            _current.reset(token)

    def decide(self, point: DecisionPoint, scores: Tensor, rule: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """The model's own decision, kept as an event; where there are tables, theirs is used."""
        own = scores if rule is None else rule(scores)
        key = self._key(point)
        self.events.setdefault(key, []).append(self._event(own))
        used = own if self.tables is None or key not in self.tables else given(own, self._forced(self.tables[key]))
        return seen(used, *_kind(point))

    def known(self, point: DecisionPoint) -> Tensor:
        """The decision of the tables; what comes out as the model's own is this one."""
        key = self._key(point)
        if self.tables is None or key not in self.tables:
            raise CannotTrace(f"there is no decision of point {point.name!r} to go by, and its gate is left out")
        used = self._forced(self.tables[key])
        self.events.setdefault(key, []).append(self._event(used))
        return seen(used, *_kind(point))

    def _event(self, decision: Tensor) -> Event:
        """The decision about the items that count."""
        if (live := self.frame.live) is None:
            return Event(self.frame.ids, decision, self.frame.span)
        rows = rows_of(live)
        return Event(self.frame.ids.index_select(0, rows), decision.index_select(0, rows))

    def _key(self, point: DecisionPoint) -> Key:
        return point.name, tuple(map(int, self.frame.extent[1:]))  # while tracing, sizes are tensors

    def _forced(self, table: Tensor) -> Tensor:
        span = self.frame.span
        return table.index_select(0, self.frame.ids) if span is None else table[span.start : span.stop : span.step]

    def lazily(self, cond: Tensor, yes: Callable[[], Any], no: Callable[[], Any], *, guard: bool = False) -> Any:
        """`yes()` where cond, of one bool, holds, else `no()`, decisions that were taken there included."""
        outside, found = self.events, []
        for side in (yes, no):
            self.events = {}
            value = side()
            found.append((value, {key: _joined(events) for key, events in self.events.items()}))
        self.events = outside
        (a, said), (b, otherwise) = found
        for key in {**said, **otherwise}:
            like = said.get(key) or otherwise[key]
            said.setdefault(key, nobody(like))
            otherwise.setdefault(key, nobody(like))
        keys = list(said)
        value, decided = either(cond, (a, [said[k] for k in keys]), (b, [otherwise[k] for k in keys]), guard=guard)
        for key, (ids, what) in zip(keys, decided, strict=True):
            self.events.setdefault(key, []).append(Event(ids, what))
        return value


def _joined(events: list[Event]) -> tuple[Tensor, Tensor]:
    if len(events) == 1:
        return events[0].ids, events[0].value
    return torch.cat([e.ids for e in events]), torch.cat([e.value for e in events])


def _kind(point: DecisionPoint) -> tuple[str, int]:
    if isinstance(point, Skip):
        return "skip", 0
    if isinstance(point, Loop):
        return "loop", 0
    if isinstance(point, Width):
        return "width", 0
    return ("route", len(point.experts)) if isinstance(point, Route) else ("as it is", 0)


USUAL = 0.9  # share of items from which on a decision is taken for the usual one
PREFIXES = 8  # widths for which a layer of nested masks is sliced


class InGraph(Strategy):
    """Gather, compute, put back, without a look at who they are; of any batch.

    Args:
        rates: how often the body of a Skip is run, by name, as far as known. Where nearly always or hardly ever, a
            batch in which all do, or none, has a branch of its own in which nothing moves. It changes no answer.
    """

    name = "in_graph"
    large_bytes = 256  # larger items are gathered for each expert apart

    def __init__(self, rates: dict[str, float] | None = None) -> None:
        self.rates = rates or {}

    def skip(self, ex: Execution, point: Skip, x: Any, keep: Tensor, soft: Tensor | None) -> Any:
        """The body for those who keep it, `otherwise` for the rest; where one of them is usual, first asks for that."""
        rate = self.rates.get(point.name, 0.5)
        x, body, otherwise = _whole(point, x)
        usual, others = (body, ~keep) if rate > 0.5 else (otherwise, keep)
        if max(rate, 1 - rate) < USUAL or usual is None:
            return self.parted(ex, x, keep, body, otherwise)
        assert isinstance(ex, Tracing)
        return ex.lazily(anybody(rows_of(others)), lambda: self.parted(ex, x, keep, body, otherwise), lambda: usual(x))

    def parted(self, ex: Execution, x: Any, keep: Tensor, body: Side, otherwise: Side | None) -> Any:
        """Those who keep the body apart from the rest."""
        rows = rows_of(keep)
        y = self.on(ex, rows, x, body)
        if otherwise is None:
            return put(x, rows, y)
        rest = rows_of(~keep)
        z = self.on(ex, rest, x, otherwise)
        return put(put(blank(y, keep), rows, y), rest, z)

    def on(self, ex: Execution, rows: Tensor, x: Any, body: Callable[[Any], Any], *, gathered: bool = False) -> Any:
        """The body for the items `rows` [m] of x, or where they are `gathered` for x itself; not entered for none."""
        assert isinstance(ex, Tracing)
        like: list[Any] = []

        def some() -> Any:
            with ex.narrow(rows):
                like.append(body(x if gathered else take(x, rows)))
            return like[0]

        return ex.lazily(anybody(rows), some, lambda: nobody(like[0]), guard=True)

    def route(self, ex: Execution, point: Route | Skip, x: Any, chosen: Tensor, weights: Tensor | None) -> Any:
        """(item, slot) pairs in the order of their experts; each computes its own, and items take theirs from all."""
        experts, k = list(point.experts), int(chosen.shape[1])
        order, sizes = grouped(chosen, len(experts))
        rows = whose(order, k)
        those, theirs = split(rows, sizes, len(experts)), self._cut(x, rows, sizes, len(experts))
        each = zip(those, theirs, experts, strict=True)
        parts = [self.on(ex, mine, part, expert or _same, gathered=True) for mine, part, expert in each]
        y = _joined_items([*parts, zero(parts[0])])  # the last item is that of a pair that no expert takes
        at = inverse(order, chosen)
        if weights is None:
            return take(y, at)
        return _summed([_weighed(take(y, at.unflatten(0, (-1, k))[:, i]), weights[:, i]) for i in range(k)])

    def _cut(self, x: Any, rows: Tensor, sizes: Tensor, parts: int) -> list[Any]:
        """The items `rows` of x, in parts: small ones gathered together, large ones apart, which copies each once."""
        if first(x)[0].numel() * first(x).element_size() > self.large_bytes:
            return [take(x, mine) for mine in split(rows, sizes, parts)]
        every = take(x, rows)
        cut: list[list[Tensor]] = [split(t, sizes, parts) for t in leaves(every) if t.dim()]
        return [_rebuilt(every, iter([c[i] for c in cut])) for i in range(parts)]

    def loop(self, ex: Execution, point: Loop, state: Any) -> Any:
        """Who is done leaves for good; no step is entered without items."""
        if point.halt is None or point.scope != "item" or not of_items_alone(state):
            return self._from(ex, point, state, 0)
        return self._in_turn(ex, point, state)

    def _in_turn(self, ex: Execution, point: Loop, state: Any) -> Any:
        """A branch for each step, one after the other.

        Inside of one another they would keep in memory, down to the last step, what each of them has gathered: too much
        for the caches, which makes convolutions up to a third slower.
        """
        state, answer, halted = point.once(ex, state, 0)
        there: Tensor | None = None  # who is still in the loop; None: all
        for k in range(1, point.max_steps):
            assert halted is not None  # as after every step but the last
            stay = rows_of(~halted)
            there = among(there, stay)
            once = partial(_once, ex, point, k)
            state, new, halted = self.on(ex, there, take(state, stay), once, gathered=True)
            answer = put(answer, there, new)
        return answer

    def _from(self, ex: Execution, point: Loop, state: Any, k: int) -> Any:
        """The answers of these items, step k and all later ones still to come, each in the branch of the one before.

        For states that hold something which belongs to no item, and is what an earlier step has made of it.
        """
        assert isinstance(ex, Tracing)
        state, new, halted = point.once(ex, state, k)
        if k == point.max_steps - 1:
            return new
        if halted is None:
            return self._from(ex, point, state, k + 1)
        stay = rows_of(~halted)

        def rest() -> Any:
            with ex.narrow(stay):
                return put(new, stay, self._from(ex, point, take(state, stay), k + 1))

        return ex.lazily(anybody(stay), rest, lambda: new)

    def pick(self, ex: Execution, point: Pick, x: Any, at: Tensor, weights: Tensor | None) -> Any:
        """The picked parts gathered, computed and put back: all shapes are known."""
        k, parts = int(at.shape[1]), int(first(x).shape[1])
        place = (at[:, :1] * 0 + 1).cumsum(0) - 1  # 0, 1, ...: an arange the exporter may make as long as the example
        rows = (at + place * parts).flatten()
        flat = map_items(lambda t: t.flatten(0, 1), x)
        mine = map_items(lambda t: t.unflatten(0, (-1, k)), take(flat, rows))
        y = point.body(mine, None) if weights is None else point.body(mine, None, weights)
        if not point.back:
            return y
        out = put(flat, rows, map_items(lambda t: t.flatten(0, 1), y))
        return map_items(lambda t: t.unflatten(0, (-1, parts)), out)

    def weights(self, ex: Execution, point: Weights, x: Any, code: Tensor) -> Any:
        """By the number of a code as a Route; a Width sliced to what anybody uses; else weights of their own."""
        if isinstance(point, Width):
            return self._prefix(ex, point, x, code) if point.nested else _sliced(point, x, code)
        if point.codes is None or not point.shared or point.together or code.dim() != 1:
            return together(ex, point, x, code)
        return self.route(ex, _by_code(point), x, code.unsqueeze(1), None)

    def _prefix(self, ex: Execution, point: Width, x: Any, code: Tensor) -> Any:
        """A branch for each of a few widths: the narrowest that holds all channels used, sliced beforehand."""
        assert isinstance(ex, Tracing)
        channels = int(code.shape[1])
        used = code.any(0).sum()
        widths = [channels * i // PREFIXES for i in range(1, PREFIXES + 1)]
        widths = list(range(channels + 1)) if channels <= PREFIXES else widths

        def among(widths: list[int]) -> Any:
            if len(widths) == 1:
                only = torch.arange(channels) < widths[0]
                return point.layer.special(only)(x, code[:, : widths[0]])  # type: ignore[operator]
            half = len(widths) // 2
            return ex.lazily(used <= widths[half - 1], lambda: among(widths[:half]), lambda: among(widths[half:]))

        return among(widths)

    def program(self, ex: Execution, point: Program, x: Any, layouts: Tensor) -> Any:
        """Refused: a program is scheduled on the host."""
        raise scheduled_on_the_host(point)


class OneItem(InGraph):
    """Of a single item: each choice is a branch, nothing is gathered. Parts of it that are many items are grouped."""

    name = "one_item"
    large_bytes = 4096  # its parts are few

    def skip(self, ex: Execution, point: Skip, x: Any, keep: Tensor, soft: Tensor | None) -> Any:
        """The body or what stands for it."""
        if not _alone(ex):
            return super().skip(ex, point, x, keep, soft)
        assert isinstance(ex, Tracing)
        x, body, otherwise = _whole(point, x)
        if otherwise is None:
            return ex.lazily(keep, lambda: body(x), lambda: x)
        # under a name of its own, or the exporter would join what is the same in both branches in front of them
        mine = x if point.shared is None else map_items(lambda t: seen(t, "as it is"), x)
        return ex.lazily(keep, lambda: body(x), lambda: otherwise(mine))

    def route(self, ex: Execution, point: Route | Skip, x: Any, chosen: Tensor, weights: Tensor | None) -> Any:
        """The chosen expert; of several per item, each that was chosen."""
        if not _alone(ex):
            return super().route(ex, point, x, chosen, weights)
        if weights is not None and chosen.shape[1] != 1:
            return self._each(ex, list(point.experts), x, chosen, weights)
        y = self._among(ex, list(point.experts), 0, x, chosen[0, 0])
        return y if weights is None else map_items(lambda t: t * wide(weights[:, 0], t), y)

    def _among(self, ex: Execution, experts: list[Any], begin: int, x: Any, chosen: Tensor) -> Any:
        """A tree of branches over experts `begin` and on."""
        assert isinstance(ex, Tracing)
        if len(experts) == 1:
            return x if experts[0] is None else experts[0](x)
        half = len(experts) // 2
        return ex.lazily(
            chosen < begin + half,
            lambda: self._among(ex, experts[:half], begin, x, chosen),
            lambda: self._among(ex, experts[half:], begin + half, x, chosen),
        )

    def _each(self, ex: Execution, experts: list[Any], x: Any, chosen: Tensor, weights: Tensor) -> Any:
        """One expert after the other, in a branch each: what it says is added where it is among the chosen [1, k]."""
        assert isinstance(ex, Tracing)
        total: list[Any] = []

        def with_mine(expert: Any, w: Tensor) -> Any:
            y = x if expert is None else expert(x)
            y = map_items(lambda t: t * wide(w, t), y)
            if not total:
                total.append(blank(y, chosen))
            return map_items(torch.add, total[0], y)

        for e, expert in enumerate(experts):
            mine = chosen == e
            w = (weights * mine).sum(1)
            total[:] = [ex.lazily(mine.any(), partial(with_mine, expert, w), lambda: total[0])]
        return total[0]

    def loop(self, ex: Execution, point: Loop, state: Any) -> Any:
        """What is left of the loop lies in a branch that is not entered where the item halts."""
        return self._from(ex, point, state, 0) if _alone(ex) else super().loop(ex, point, state)

    def _from(self, ex: Execution, point: Loop, state: Any, k: int) -> Any:
        """The item's answer: this step's where it halts, else that of what is left of the loop, in a branch."""
        if not _alone(ex):
            return super()._from(ex, point, state, k)
        assert isinstance(ex, Tracing)
        state, new, halted = point.once(ex, state, k)
        if k == point.max_steps - 1:
            return new
        if halted is None:
            return self._from(ex, point, state, k + 1)
        return ex.lazily(halted, lambda: new, lambda: self._from(ex, point, state, k + 1))


def among(those: Tensor | None, rows: Tensor) -> Tensor:
    """The places of `rows` [m] of `those`; None: of all."""
    return rows if those is None else those.index_select(0, rows)


def _once(ex: Execution, point: Loop, k: int, state: Any) -> tuple[Any, Any, Tensor | None]:
    return point.once(ex, state, k)


def _whole(point: Skip, x: Any) -> tuple[Any, Side, Side | None]:
    """(what the sides of a Skip take, body, otherwise): what both begin with is computed in each side.

    Every item is on one side, so that nothing is computed twice; and beside the convolution that it is added to, the
    shortcut of a residual block needs no pass of its own. What was computed for all is no longer read, and goes away.
    """
    if point.shared is None:
        return x, point.body, point.otherwise
    alone, _ = x
    assert point.otherwise is not None
    otherwise = point.otherwise
    return alone, lambda x: point.body(point.begun(x)), lambda x: otherwise(point.begun(x))


def _sliced(point: Width, x: Any, code: Tensor) -> Any:
    """The layer with the channels that anybody uses; one of each convolution at least, as ONNX has none without."""
    parts = code.any(0).split(getattr(point.layer, "widths", [int(code.shape[1])]))
    used = torch.cat([part | (~part.any() & (torch.arange(int(part.shape[0])) == 0)) for part in parts])
    return point.layer.special(used)(x, code[:, used])  # type: ignore[operator]


def _alone(ex: Execution) -> bool:
    span = ex.frame.span
    return span is not None and len(span) == 1


def _rebuilt(like: Any, parts: Iterator[Tensor]) -> Any:
    return map_items(lambda _: next(parts), like)


def _joined_items(parts: list[Any]) -> Any:
    return parts[0] if len(parts) == 1 else map_items(lambda *t: torch.cat(t), *parts)


def _weighed(y: Any, weight: Tensor) -> Any:
    return map_items(lambda t: t * wide(weight, t), y)


def _summed(slots: list[Any]) -> Any:
    """States of the same items added, always in the same order."""
    return functools.reduce(lambda a, b: map_items(torch.add, a, b), slots)


def _same(x: Any) -> Any:
    return x


class _ByCode(nn.Module):
    """The layer made for one code."""


def _by_code(point: Weights) -> Any:
    params = point.generate(torch.arange(point.codes or 0))
    each = [map_items(lambda t, i=i: t[i], params) for i in range(point.codes or 0)]
    made: Any = _ByCode()
    made.name, made.experts = point.name, [point.layer.special(p) for p in each]  # type: ignore[operator]
    return made
