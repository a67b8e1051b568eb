"""Controls: a strategy with one of its parts left out, so that a ratio of two arms is what this part takes.

A control is played by a stand-in for the strategy, in an execution of its own (`Without`). Models and decision points
stay as they are. Where nothing decides, each point takes its decision from a trace; what the host had to wait for is
learned in the first pass over a batch, and known from then on; and where nothing moves, a body gets the first items of
the batch, as a view, in place of its own, and what it gives goes nowhere. Answers are then wrong on purpose, and the
work is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from dynbench.dynamic import Loop, Pick, Route, Skip, Weights, points
from dynbench.dynamic.context import Execution, Profile
from dynbench.dynamic.items import blank, cat, count, first, map_items, put_, rows_where, take, tensors, wide, zeros
from dynbench.dynamic.trace import Trace
from dynbench.strategies.base import alone, together
from dynbench.strategies.cascading import Cascading
from dynbench.strategies.compaction import Compaction, _run_lengths, _scatter_back
from dynbench.strategies.masking import Masking

Part = Literal["everything", "deciding", "waiting", "moving"]
T = TypeVar("T")


class Left(NamedTuple):
    """What a control leaves in.

    Attributes:
        gates: gates, routers, policies, and heads that only serve them.
        waits: the host waits for what was decided.
        moves: items are gathered, and put back.
    """

    gates: bool
    waits: bool
    moves: bool


LEFT: dict[Part, Left] = {
    "everything": Left(gates=False, waits=False, moves=False),
    "deciding": Left(gates=False, waits=False, moves=True),
    "waiting": Left(gates=True, waits=False, moves=True),
    "moving": Left(gates=True, waits=True, moves=False),
}
"""By what is left out. Everything: dense work at the number of items that each part is asked for."""


def refuses_control(strategy: str, part: Part, model: nn.Module) -> str | None:
    """Why a control means nothing for a strategy and a model, in a sentence; None: it does.

    Args:
        strategy: its name; the strategy itself does not refuse the model.
        part: that is left out.
        model: with decision points.
    """
    found = points(model)
    if strategy not in ("compaction", "cascading", "masking"):
        return f"there is no control of {strategy}: its parts cannot be left out one at a time"
    if opaque := next((p for p in found.values() if not p.can_be_known), None):
        return f"{type(opaque).__name__} {opaque.name!r} decides in the course of its own work: it cannot be left out"
    if strategy == "masking" and part == "waiting":
        return "masking waits for nothing"
    return None


def control(strategy: str, part: Part) -> MaskingWithout | CompactionWithout:
    """The stand-in for a strategy of which a part is left out; to be run by a `Without`.

    Raises:
        KeyError: there is no such control; see `refuses_control`.
    """
    stand_ins: dict[str, type[MaskingWithout] | type[CompactionWithout]] = {
        "masking": MaskingWithout,
        "compaction": CompactionWithout,
        "cascading": CascadingWithout,
    }
    return stand_ins[strategy](LEFT[part])


def filled_up(trace: Trace, other: Trace) -> Trace:
    """A trace with the tables of another one where it has none: of points that no item reached, so of no consequence.

    Args:
        trace: whose decisions are used.
        other: of the same stream.
    """
    return Trace({**other.entries, **trace.entries}, trace.items, trace.stream_hash, trace.covers)


class _Batch:
    """What is known of one batch of the stream: in the order in which it is asked for, which never changes."""

    __slots__ = ("at", "known")

    def __init__(self) -> None:
        self.known: list[Any] = []
        self.at = 0


class Without(Execution):
    """An execution that leaves out what its strategy, a control, says.

    Args:
        strategy: from `control`.
        replay: the decisions; for each batch (start and number of items) always the same.
        profile: called for the phases that points mark themselves.
    """

    strategy: MaskingWithout | CompactionWithout

    def __init__(
        self, strategy: MaskingWithout | CompactionWithout, *, replay: Trace, profile: Profile | None = None
    ) -> None:
        super().__init__(strategy, replay=replay, profile=profile)
        self.gates = strategy.left.gates
        self._batches: dict[tuple[int, int], _Batch] = {}
        self._batch = _Batch()

    def run(self, model: nn.Module, *args: Any, start: int = 0, items: int | None = None) -> Any:
        """As of any execution; of a batch that was run before, what was learned then is known."""
        key = (start, first(args).shape[0])
        if key not in self._batches:
            self._batches[key] = _Batch()
        self._batch = self._batches[key]
        self._batch.at = 0
        return super().run(model, *args, start=start, items=items)

    def profiled(self, profile: Profile) -> Execution:
        """The same execution, of which a profile is taken."""
        assert self.replay is not None
        return Without(self.strategy, replay=self.replay, profile=profile)

    def kept(self, make: Callable[[], T]) -> T:
        """What `make` gave at this place when the batch was run for the first time."""
        batch = self._batch
        if batch.at == len(batch.known):
            batch.known.append(make())
        batch.at += 1
        found: T = batch.known[batch.at - 1]
        return found

    def learned(self, ask: Callable[[], T]) -> T:
        """The answer to a question that makes the host wait: asked each time, or where it does not wait only once."""
        return ask() if self.strategy.left.waits else self.kept(ask)

    def known(self, point: Any) -> Tensor:
        """The replayed decision; looked up once."""
        return self.kept(lambda: super(Without, self).known(point))


class MaskingWithout(Masking):
    """Masking of which a part is left out: nothing selected, nothing decided, or both."""

    def __init__(self, left: Left) -> None:
        self.left = left

    def route(self, ex: Execution, point: Route | Skip, x: Any, chosen: Tensor, weights: Tensor | None) -> Any:
        """Every expert on every item; unless something moves, the answer of the last."""
        if self.left.moves:
            return super().route(ex, point, x, chosen, weights)
        y = x
        for expert in point.experts:
            y = y if expert is None else expert(x)
        return y

    def skip(self, ex: Execution, point: Skip, x: Any, keep: Tensor, soft: Tensor | None) -> Any:
        """Body and otherwise for everyone; unless something moves, the body's answer."""
        if self.left.moves:
            return super().skip(ex, point, x, keep, soft)
        if point.otherwise is not None:
            point.otherwise(x)
        return point.body(x)

    def pick(self, ex: Execution, point: Pick, x: Any, at: Tensor, weights: Tensor | None) -> Any:
        """All parts; unless something moves, the body's answer for all of them."""
        if self.left.moves:
            return super().pick(ex, point, x, at, weights)
        if weights is None:
            return point.body(x, at)
        shape = first(x).shape[:2]
        return point.body(x, at, weights.new_zeros(shape).scatter(1, at, weights))

    def loop(self, ex: Execution, point: Loop, state: Any) -> Any:
        """All steps for all; unless something moves, the answer of the last."""
        if self.left.moves:
            return super().loop(ex, point, state)
        answer = None
        for k in range(point.max_steps):
            state, answer, _ = point.once(ex, state, k)
        return answer


class CompactionWithout(Compaction):
    """Compaction of which a part is left out. Its executions are `Without`."""

    def __init__(self, left: Left) -> None:
        self.left = left

    def ahead(self, ex: Execution, keep: dict[str, Tensor]) -> None:
        """As compaction; where the host waits for nothing there is nothing to ask."""
        if self.left.waits:
            super().ahead(ex, keep)

    def skip(self, ex: Execution, point: Skip, x: Any, keep: Tensor, soft: Tensor | None) -> Any:
        """The body for as many items as keep it, `otherwise` for as many as do not."""
        assert isinstance(ex, Without)
        n = keep.numel()
        active, rows, rest = ex.learned(lambda: _sides(ex, point, keep))
        if active in (0, n):
            part = point.body if active else point.otherwise
            return x if part is None else part(x)
        with ex.narrow(rows):
            y = point.body(self._given(x, rows))
        if point.otherwise is None:
            if not self.left.moves:
                return x
            return put_(x if point.consumes else map_items(torch.clone, x), rows, y)
        with ex.narrow(rest):
            z = point.otherwise(self._given(x, rest))
        if not self.left.moves:
            return ex.kept(lambda: cat([y, z]))
        return put_(put_(blank(y, n), rows, y), rest, z)

    def _given(self, x: Any, rows: Tensor) -> Any:
        """What a part is given for the items `rows` [m]: these, gathered, or the first m."""
        if self.left.moves:
            return take(x, rows)
        m = rows.shape[0]
        return map_items(lambda t: t[:m], x)

    def route(self, ex: Execution, point: Route | Skip, x: Any, chosen: Tensor, weights: Tensor | None) -> Any:
        """Each expert for as many items as go to it."""
        assert isinstance(ex, Without)
        n, k = chosen.shape
        if n == 1:
            return alone(ex, point, x, ex.learned(chosen.cpu), weights)
        sizes, kept, rows = ex.learned(lambda: _by_expert(chosen, len(point.experts)))
        if sizes[0] == n * k:
            return zeros(x, n)
        if k == 1 and n in sizes[1:]:
            expert = point.experts[sizes[1:].index(n)]
            out = x if expert is None else expert(x)
        else:
            parts, done, begin = take(x, rows) if self.left.moves else x, [], 0
            for expert, size in zip(point.experts, sizes[1:], strict=True):
                if size == 0:
                    continue
                mine = slice(begin, begin + size)
                begin += size
                at = mine if self.left.moves else _first_rows(mine, k, n)
                part = map_items(lambda t, at=at: t[at], parts)
                with ex.narrow(rows[mine]):
                    done.append(part if expert is None else expert(part))
            if not self.left.moves:
                return _instead(ex, x, done[0], n)
            y = cat(done)
            out = put_(zeros(y, n * k) if sizes[0] else blank(y, n * k), kept, y)
        if weights is None or not self.left.moves:
            return out
        w = weights.flatten()
        out = map_items(lambda t: t * wide(w, t), out)
        return out if k == 1 else map_items(lambda t: t.unflatten(0, (n, k)).sum(1), out)

    def pick(self, ex: Execution, point: Pick, x: Any, at: Tensor, weights: Tensor | None) -> Any:
        """The body for as many parts as are picked."""
        if self.left.moves:
            return super().pick(ex, point, x, at, weights)
        n, k = at.shape
        some = map_items(lambda t: t.flatten(0, 1)[: n * k].unflatten(0, (n, k)), x)
        y = point.body(some, None) if weights is None else point.body(some, None, weights)
        return x if point.back else y

    def loop(self, ex: Execution, point: Loop, state: Any) -> Any:
        """Every step for as many items as are still in the loop."""
        assert isinstance(ex, Without)
        if point.halt is not None:
            return self._decided(ex, point, state) if ex.gates else self._known(ex, point, state)
        answer = None
        for k in range(point.max_steps):
            state, answer, _ = point.once(ex, state, k)
        return answer

    def _decided(self, ex: Without, point: Loop, state: Any) -> Any:
        """A loop with heads and policies for every item that is there."""
        n, answer = count(state), None
        everyone = self._everyone(state)
        live: Tensor | None = None  # rows of those still in the loop, once some have left
        part = whole = state
        for k in range(point.max_steps):
            before, rows = part, everyone if live is None else live
            if rows is None:
                part, new, halted = point.once(ex, before, k)
            else:
                with ex.narrow(rows):
                    part, new, halted = point.once(ex, before, k)
            if live is None:
                answer = new
            elif self.left.moves:
                answer = put_(answer, live, new)
            whole = self._put_back(whole, before, part, live, n)
            if halted is None:
                continue
            here = halted.shape[0]
            if n == 1:
                if ex.learned(partial(bool, halted)):
                    return answer
                continue
            stay = ex.learned(partial(_staying, halted))
            if stay.shape[0] == 0:
                return answer
            if stay.shape[0] == here:
                continue
            if live is None:
                live = stay
                answer = map_items(torch.clone, answer) if self.left.moves else answer
            else:
                live = ex.learned(partial(live.index_select, 0, stay))
            part = self._those_who_stay(whole, part, live, stay)
        return answer

    def _known(self, ex: Without, point: Loop, state: Any) -> Any:
        """A loop without policies, and with a head for the items alone that leave by it."""
        n, last = count(state), point.max_steps - 1
        answer, live, everyone = None, None, self._everyone(state)
        part = whole = state
        for k in range(point.max_steps):
            rows = everyone if live is None else live
            with ex.narrow(slice(None) if rows is None else rows), ex.at(k, point.max_steps):
                before, part = part, point.step(part, k)
                whole = self._put_back(whole, before, part, live, n)
                if k == last:
                    new, done, where = _headed(point, part, k), True, live
                else:
                    leave, stay = ex.kept(partial(_leaving, ex.known(point)))
                    if leave.shape[0] == 0:
                        continue
                    done = stay.shape[0] == 0
                    with ex.narrow(leave):
                        new = _headed(point, part if done else self._given(part, leave), k)
                    where = leave if live is None else ex.kept(partial(live.index_select, 0, leave))
            if done and live is None:
                return new
            assert where is not None
            answer = self._answered(ex, answer, where, new, n)
            if done:
                return answer
            live = stay if live is None else ex.kept(partial(live.index_select, 0, stay))
            part = self._those_who_stay(whole, part, live, stay)
        return answer

    def _answered(self, ex: Without, answer: Any, where: Tensor, new: Any, n: int) -> Any:
        """The answers so far, with those of the items `where` [m]."""
        if self.left.moves:
            return put_(blank(new, n) if answer is None else answer, where, new)
        return ex.kept(partial(zeros, new, n)) if answer is None else answer

    def _everyone(self, state: Any) -> Tensor | None:
        """The rows of all items: a tensor, as compaction has it from the first step on."""
        return torch.arange(count(state), device=first(state).device)

    def _put_back(self, whole: Any, before: Any, after: Any, live: Tensor | None, n: int) -> Any:
        """The state of all n items after a step of those in the loop, whose state was `before` [m]."""
        if live is None or not self.left.moves:
            return after
        return _scatter_back(whole, before, after, live, n)

    def _those_who_stay(self, whole: Any, part: Any, live: Tensor, stay: Tensor) -> Any:
        """The state of the rows `live` of all, which are the rows `stay` [m] of those who were in the loop."""
        return take(whole, live) if self.left.moves else self._given(part, stay)

    def weights(self, ex: Execution, point: Weights, x: Any, code: Tensor) -> Any:
        """One specialised layer for as many items as have its code; made beforehand where nothing moves."""
        assert isinstance(ex, Without)
        if not point.shared:
            return together(ex, point, x, code)
        n = code.shape[0]
        if n == 1:
            groups, sizes, order = code, [1], code
        else:
            groups, sizes, order = ex.learned(lambda: _by_code(code))
        make = partial(self.specialise, ex, point, groups)
        layers = make() if self.left.moves else ex.kept(make)
        if len(sizes) == 1:
            return layers[0](x)
        out, begin = None, 0
        for layer, size in zip(layers, sizes, strict=True):
            mine = slice(begin, begin + size)
            rows = order[mine]
            begin += size
            with ex.narrow(rows):
                y = layer(take(x, rows) if self.left.moves else map_items(lambda t, mine=mine: t[mine], x))
            if self.left.moves:
                out = put_(blank(y, n) if out is None else out, rows, y)
            elif out is None:
                out = _instead(ex, x, y, n)
        return out


class CascadingWithout(CompactionWithout, Cascading):
    """Cascading of which a part is left out."""

    def _everyone(self, state: Any) -> Tensor | None:
        """No rows are named before some have left."""
        return None

    def _put_back(self, whole: Any, before: Any, after: Any, live: Tensor | None, n: int) -> Any:
        """Nothing: the state of items that left is let go."""
        return after

    def _those_who_stay(self, whole: Any, part: Any, live: Tensor, stay: Tensor) -> Any:
        """Of the state of those who were in the loop."""
        return self._given(part, stay)


def _staying(halted: Tensor) -> Tensor:
    return (~halted).nonzero().squeeze(1)


def _headed(point: Loop, state: Any, k: int) -> Any:
    return state if point.head is None else point.head(state, k)


def _leaving(halted: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the items leave, and which stay."""
    return halted.nonzero().squeeze(1), _staying(halted)


def _sides(ex: Execution, point: Skip, keep: Tensor) -> tuple[int, Tensor, Tensor]:
    """How many items run the body, which, and which `otherwise`; the host waits, where it was not told ahead."""
    n, told = keep.numel(), ex.frame.ahead
    mine = None if told is None else told.get(point.name)
    if mine is not None and mine.keep is keep:
        return mine.rows.numel(), mine.rows, mine.rest
    if n == 1:
        return int(keep.item()), keep, keep
    rows = keep.nonzero().squeeze(1)
    active = rows.numel()
    rest = rows if point.otherwise is None or active in (0, n) else rows_where(~keep, n - active)
    return active, rows, rest


def _by_expert(chosen: Tensor, experts: int) -> tuple[list[int], Tensor, Tensor]:
    """chosen [n, k] -> how many go to none and to each expert; the (item, slot) pairs by expert, and whose they are."""
    key, order = (chosen.flatten() + 1).sort(stable=True)
    sizes = _run_lengths(key, experts + 1).tolist()
    kept = order[sizes[0] :]
    return sizes, kept, kept if chosen.shape[1] == 1 else kept // chosen.shape[1]


def _by_code(code: Tensor) -> tuple[Tensor, list[int], Tensor]:
    """The distinct codes, how many items have each, and the items by code."""
    distinct, group, counts = code.unique(dim=0, return_inverse=True, return_counts=True)
    return distinct, counts.tolist(), group.argsort(stable=True)


def _first_rows(pairs: slice, k: int, n: int) -> slice:
    """As many of n items as there are (item, slot) pairs, k of an item: no expert is chosen twice by one."""
    size = pairs.stop - pairs.start
    begin = min(pairs.start // k, n - size)
    return slice(begin, begin + size)


def _instead(ex: Without, x: Any, y: Any, n: int) -> Any:
    """n items in place of answers like y [m, ...] that go nowhere: x itself, where it is alike."""
    alike = [(t.shape[1:], t.dtype) for t in tensors(x)] == [(t.shape[1:], t.dtype) for t in tensors(y)]
    return x if alike and type(x) is type(y) else ex.kept(lambda: zeros(y, n))
