"""The execution context: which items are computed now, and where their decisions come from and go to.

An item's id is a row of coordinates: (sample), (sample, token), (sample, step, token) ... kept as one mixed-radix
number. A visit is just one more coordinate, so a decision has one address, (point, coordinates), whatever the order of
execution, and a trace recorded under one strategy replays under every other.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dynbench.dynamic.faults import asked_twice, explained
from dynbench.dynamic.items import Arguments, first
from dynbench.dynamic.point import DecisionPoint, points
from dynbench.dynamic.trace import Trace, TraceError


class Refused(RuntimeError):
    """A strategy means nothing for this model; the message is the reason a reader gets."""


class Strategy(Protocol):
    """What decision points ask of a strategy. The implementations live in `dynbench.strategies`.

    `point` is the point that calls: of the class named, or of a user's own that has the same attributes.
    """

    def refuses(self, model: nn.Module) -> str | None:
        """Why this strategy means nothing for `model`, or None."""

    def run(self, ex: Execution, model: nn.Module, args: tuple[Any, ...]) -> Any:
        """The model's answer for a batch."""

    def route(self, ex: Execution, point: Any, x: Any, chosen: Tensor, weights: Tensor | None) -> Any:
        """Route: which modules? Looks at `experts`."""

    def skip(self, ex: Execution, point: Any, x: Any, keep: Tensor, soft: Tensor | None) -> Any:
        """Skip: the body, or what stands for it? Looks at `body`, `otherwise`, `experts` (both) and `consumes`."""

    def ahead(self, ex: Execution, keep: dict[str, Tensor]) -> None:
        """Ahead: the decisions of several Skips, by name, before the first of them is reached."""

    def pick(self, ex: Execution, point: Any, x: Any, at: Tensor, weights: Tensor | None) -> Any:
        """Pick: which parts? Looks at `body` and `back`, and calls `gathered`."""

    def program(self, ex: Execution, point: Any, x: Any, layouts: Tensor) -> Any:
        """Program: which modules, and how wired? Looks at its modules, and calls `schedule`, `call` and `blank`."""

    def loop(self, ex: Execution, point: Any, state: Any) -> Any:
        """Loop: how long? Looks at `max_steps`, and calls `once`."""

    def weights(self, ex: Execution, point: Any, x: Any, code: Tensor) -> Any:
        """Weights: with which weights? Looks at `layer`, `shared`, `codes`, `together`, and calls `generate`."""


class Profile(Protocol):
    """Measures where time or work goes: the execution calls it when a phase begins and ends; phases may nest."""

    def enter(self, phase: str, point: str | None, index: int | None) -> None:
        """`phase` begins: decide, gather, body, scatter, sync or head; `index` is the expert or the step."""

    def exit(self) -> None:
        """The phase entered last ends."""


class Frame:
    """The items computed now. Ids and the live mask are computed only when they are needed.

    Attributes:
        extent: sizes of the coordinates of an id.
        ahead: what a strategy has worked out of decisions taken ahead for just these items, by point.
    """

    __slots__ = ("_arg", "_ids", "_kind", "_live", "_live_known", "_parent", "_span", "_span_known", "ahead", "extent")

    def __init__(self, parent: Frame | None, kind: str, arg: Any, extent: tuple[int, ...]) -> None:
        self._parent, self._kind, self._arg, self.extent = parent, kind, arg, extent
        self.ahead: dict[str, Any] | None = None
        self._ids: Tensor | None = None
        self._span: range | None = None
        self._live: Tensor | None = None
        self._live_known = self._span_known = parent is None

    @classmethod
    def root(cls, start: int, n: int, items: int, device: torch.device) -> Frame:
        """Samples `start` to `start + n` of a stream of `items`."""
        frame = cls(None, "root", device, (items,))
        frame._span = range(start, start + n)
        return frame

    @property
    def span(self) -> range | None:
        """The ids, as long as the host knows them to be a range: then a decision is a slice of a table."""
        if not self._span_known:
            assert self._parent is not None
            span, arg = self._parent.span, self._arg
            if span is not None and self._kind == "narrow":
                span = span[arg] if isinstance(arg, slice) else None
            elif span is not None and self._kind == "spread":
                span = range(span.start * arg, span.stop * arg) if span.step == 1 else None
            elif span is not None and self._kind == "at":
                size = self.extent[-1]
                span = (
                    range(span.start * size + arg, span.stop * size + arg, span.step * size)
                    if isinstance(arg, int)
                    else None
                )
            self._span, self._span_known = span, True
        return self._span

    @property
    def ids(self) -> Tensor:
        """[n] long, mixed radix over `extent`."""
        if self._ids is None:
            if self._parent is None:
                span = self._span
                assert span is not None
                self._ids = torch.arange(span.start, span.stop, device=self._arg)
                return self._ids
            ids, arg = self._parent.ids, self._arg
            if self._kind == "narrow":
                ids = ids[arg] if isinstance(arg, slice) else ids.index_select(0, arg)
            elif self._kind == "spread":
                ids = (ids.unsqueeze(1) * arg + torch.arange(arg, device=ids.device)).flatten()
            elif self._kind == "at":
                ids = ids * self.extent[-1] + arg
            self._ids = ids
        return self._ids

    @property
    def live(self) -> Tensor | None:
        """[n] bool: which of the computed items count; None: all."""
        if not self._live_known:
            assert self._parent is not None
            live, arg = self._parent.live, self._arg
            if self._kind == "only":
                live = arg if live is None else live & arg
            elif live is not None and self._kind == "narrow":
                live = live[arg] if isinstance(arg, slice) else live.index_select(0, arg)
            elif live is not None and self._kind == "spread":
                live = live.unsqueeze(1).expand(-1, arg).flatten()
            self._live, self._live_known = live, True
        return self._live


class _Inside:
    """`with` this frame."""

    __slots__ = ("_before", "_ex", "_frame")

    def __init__(self, ex: Execution, frame: Frame) -> None:
        self._ex, self._frame, self._before = ex, frame, ex.frame

    def __enter__(self) -> None:
        self._ex.frame = self._frame

    def __exit__(self, *_: object) -> None:
        self._ex.frame = self._before


class _Phase:
    __slots__ = ("_profile", "_what")

    def __init__(self, profile: Profile, *what: Any) -> None:
        self._profile, self._what = profile, what

    def __enter__(self) -> None:
        self._profile.enter(*self._what)

    def __exit__(self, *_: object) -> None:
        self._profile.exit()


class _Nothing:
    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


_NOTHING = _Nothing()
_current: ContextVar[Execution | None] = ContextVar("dynbench_execution", default=None)


current = _current.get
"""The execution this code runs in; None outside any, where a decision point is its static twin."""


class _Asked:
    """Which items each point was asked about in one forward pass; kept only while decisions are recorded."""

    __slots__ = ("_points", "_visits")

    def __init__(self) -> None:
        self._points: dict[str, DecisionPoint] = {}
        self._visits: dict[tuple[str, tuple[int, ...]], list[tuple[Tensor, Tensor | None]]] = {}

    def add(self, point: DecisionPoint, frame: Frame) -> None:
        """The point is asked about the items of a frame."""
        self._points[point.name] = point
        self._visits.setdefault((point.name, frame.extent), []).append((frame.ids, frame.live))

    def check(self) -> None:
        """Whether each point was asked at most once about an item. It looks at the ids, so it waits for a GPU.

        Raises:
            ModelError: one was asked twice, so that one of the two decisions would be lost.
        """
        for (name, _), visits in self._visits.items():
            if len(visits) > 1:
                ids = torch.cat([ids if live is None else ids[live] for ids, live in visits])
                if ids.unique().shape[0] < ids.shape[0]:
                    raise asked_twice(self._points[name])


class _Named(nn.Module):
    """A model of which the last arguments have names, called by position; `names` starts with how many have none."""

    def __init__(self, model: nn.Module, names: tuple[Any, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names
        self.train(model.training)

    def forward(self, *args: Any) -> Any:
        n, *names = self.names
        return self.model(*args[:n], **dict(zip(names, args[n:], strict=True)))


Choose = Callable[["DecisionPoint", Tensor], Tensor | None]
Observe = Callable[["DecisionPoint", Tensor, Tensor], None]


class Execution:
    """Runs models under one strategy.

    Args:
        strategy: how decided work is executed.
        replay: decisions to use instead of the model's own. Gates still run and are paid for.
        record: keep the decisions in `trace`; it accumulates over the `run` calls of one stream.
        choose: `(point, scores) -> decision or None`: replaces the point's own rule, e.g. to sample actions.
        observe: `(point, scores, decision)`: called with every decision; scores carry their graph.
        profile: called for every phase.

    Attributes:
        gates: whether what decides runs. False: a control, in which each point takes its decision from `known`.
    """

    gates = True

    def __init__(
        self,
        strategy: Strategy,
        *,
        replay: Trace | None = None,
        record: bool = False,
        choose: Choose | None = None,
        observe: Observe | None = None,
        profile: Profile | None = None,
    ) -> None:
        self.strategy, self.replay, self.choose, self.observe, self.profile = strategy, replay, choose, observe, profile
        self.trace: Trace | None = Trace() if record else None
        # under a strategy that makes no decision every point is its static twin, as outside any execution
        self._seen = None if getattr(strategy, "static_twin", False) else self
        self.frame = Frame(None, "root", None, (0,))
        self._asked = _Asked()
        self._named: _Named | None = None

    def run(self, model: nn.Module, *args: Any, start: int = 0, items: int | None = None) -> Any:
        """The model's answer for a batch of samples.

        Args:
            model: a module with decision points, or without.
            *args: the model's inputs, or `Arguments` that hold several; every tensor's first dimension is the sample.
            start: index in the stream of the first sample of this batch.
            items: number of samples in the stream; default: this batch is the stream.

        Raises:
            Refused: the strategy means nothing for a model in training mode.
            ValueError: the batch lies outside the stream.
            TraceError: the replayed trace does not cover this model or stream.
            ModelError: the model fails; the error of its own code is the cause. Or, while decisions are recorded, a
                point was asked twice about an item.
        """
        if model.training and (why := self.strategy.refuses(model)):
            raise Refused(why)
        tensor = first(args)
        n = tensor.shape[0]
        items = start + n if items is None else items
        if not 0 <= start <= items - n:
            raise ValueError(f"a batch of {n} samples from {start} on lies outside a stream of {items}")
        if self.trace is not None:
            self.trace.items = items
            self.trace.covers |= frozenset(points(model))
            self._asked = _Asked()
        self.frame = Frame.root(start, n, items, tensor.device)
        token = _current.set(self._seen)
        try:
            if isinstance(args[0], Arguments):
                model, args = self._by_position(model, args[0])
            answer = self.strategy.run(self, model, args)
        except (Exception, SystemExit) as e:  # a model that ends the process ends nothing but its own call
            error = explained(e, model)
            if error is None:
                raise
            raise error from e
        finally:
            _current.reset(token)
        if self.trace is not None:
            self._asked.check()
        return answer

    def _by_position(self, model: nn.Module, x: Arguments) -> tuple[nn.Module, tuple[Any, ...]]:
        """What to call by position alone, as strategies do, for several arguments."""
        if not x.by_name:
            return model, x.by_position
        names = (len(x.by_position), *x.by_name)
        if self._named is None or self._named.model is not model or self._named.names != names:
            self._named = _Named(model, names)
        return self._named, (*x.by_position, *x.by_name.values())

    def profiled(self, profile: Profile) -> Execution:
        """The same execution, of which a profile is taken."""
        return Execution(self.strategy, replay=self.replay, profile=profile)

    def narrow(self, rows: Tensor | slice) -> _Inside:
        """Inside, only these items are computed."""
        return _Inside(self, Frame(self.frame, "narrow", rows, self.frame.extent))

    def only(self, mask: Tensor) -> _Inside:
        """Inside, all items are computed, but only these count (masking)."""
        return _Inside(self, Frame(self.frame, "only", mask, self.frame.extent))

    def spread(self, size: int) -> _Inside:
        """Each item becomes `size` items: samples -> tokens, images -> (image, task)."""
        return _Inside(self, Frame(self.frame, "spread", size, (*self.frame.extent, size)))

    def at(self, k: int | Tensor, size: int) -> _Inside:
        """The same items with one more coordinate: a loop's step (int) or a program's node ([n])."""
        return _Inside(self, Frame(self.frame, "at", k, (*self.frame.extent, size)))

    def phase(self, phase: str, point: str | None = None, index: int | None = None) -> _Phase | _Nothing:
        """Marks where time and work go; costs nothing without a profile."""
        return _NOTHING if self.profile is None else _Phase(self.profile, phase, point, index)

    def decide(self, point: DecisionPoint, scores: Tensor, rule: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """The decision for the items computed now: the rule's, unless chosen otherwise or replayed.

        Args:
            point: whose decision it is.
            scores: of the gate, [n, ...].
            rule: the model's own way from scores to a decision; always computed, so that it is paid for. None: the
                scores are the decision.

        Returns:
            [n, ...] bool or long.
        """
        decision = scores if rule is None else rule(scores)
        if self.choose is not None:
            chosen = self.choose(point, scores)
            decision = decision if chosen is None else chosen
        if self.replay is not None:
            frame = self.frame
            span = frame._span if frame._span_known else frame.span  # at a block, a call is a tenth of deciding
            forced = self.replay.look_up(point.name, frame.extent, frame.ids if span is None else span)
            decision = decision if forced is None else forced
        if self.trace is not None:
            self._asked.add(point, self.frame)
            self.trace.record(point.name, self.frame.extent, self.frame.ids, self.frame.live, decision)
        if self.observe is not None:
            self.observe(point, scores, decision)
        return decision

    def known(self, point: DecisionPoint) -> Tensor:
        """The replayed decision for the items computed now, where nothing decides (`gates` is False).

        Raises:
            TraceError: there is none.
        """
        frame = self.frame
        found = None
        if self.replay is not None:
            ids = frame.ids if frame.span is None else frame.span
            found = self.replay.look_up(point.name, frame.extent, ids)
        if found is None:
            raise TraceError(f"there is no decision of point {point.name!r} to go by, and its gate does not run")
        return found


class outside:
    """Inside this block every decision point is its static twin."""

    def __enter__(self) -> None:
        self._token = _current.set(None)

    def __exit__(self, *_: object) -> None:
        _current.reset(self._token)
