"""Every decision has one address, whatever the order of execution, and costs nothing where it is not needed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dynbench.dynamic import Each, Execution, Loop, Route, Skip, Trace, current, outside
from dynbench.dynamic.context import Frame
from dynbench.dynamic.sources import edge
from dynbench.strategies import STRATEGIES, Compaction, Masking
from tests.networks import accepted, make

DYNAMIC = ["masking", "compaction", "cascading", "per_sample"]


@settings(max_examples=80, deadline=None, derandomize=True)
@given(data=st.data(), n=st.integers(1, 5), start=st.integers(0, 3), items=st.integers(8, 12))
def test_lazy_ids_equal_what_is_worked_out_at_once(data: st.DataObject, n: int, start: int, items: int) -> None:
    """Any nesting of narrow, only, spread and at, against rows of coordinates kept in plain lists."""
    ex = Execution(Compaction())
    ex.frame = Frame.root(start, n, items, torch.device("cpu"))
    rows: list[tuple[int, ...]] = [(start + i,) for i in range(n)]  # coordinates
    live, sizes, blocks = [True] * n, [items], []
    for kind in data.draw(st.lists(st.sampled_from(["narrow", "slice", "only", "spread", "at", "node"]), max_size=6)):
        m = len(rows)
        if kind == "narrow" and m:
            picked = data.draw(st.lists(st.integers(0, m - 1), max_size=4))
            blocks.append(ex.narrow(torch.tensor(picked, dtype=torch.long)))
            rows, live = [rows[i] for i in picked], [live[i] for i in picked]
        elif kind == "slice":
            part = slice(data.draw(st.integers(0, m)), data.draw(st.integers(0, m)))
            blocks.append(ex.narrow(part))
            rows, live = rows[part], live[part]
        elif kind == "only":
            mask = [data.draw(st.booleans()) for _ in rows]
            blocks.append(ex.only(torch.tensor(mask, dtype=torch.bool)))
            live = [a and b for a, b in zip(live, mask, strict=True)]
        elif kind == "spread":
            size = data.draw(st.integers(1, 3))
            blocks.append(ex.spread(size))
            rows = [(*row, t) for row in rows for t in range(size)]
            live, sizes = [v for v in live for _ in range(size)], [*sizes, size]
        elif kind == "at":
            size = data.draw(st.integers(1, 3))
            k = data.draw(st.integers(0, size - 1))
            blocks.append(ex.at(k, size))
            rows, sizes = [(*row, k) for row in rows], [*sizes, size]
        elif kind == "node":
            nodes = [data.draw(st.integers(0, 2)) for _ in rows]
            blocks.append(ex.at(torch.tensor(nodes, dtype=torch.long), 3))
            rows, sizes = [(*row, k) for row, k in zip(rows, nodes, strict=True)], [*sizes, 3]
        else:
            continue
        blocks[-1].__enter__()
    frame = ex.frame
    assert frame.extent == tuple(sizes)
    assert [tuple(row) for row in _coordinates(frame.ids, sizes)] == rows
    assert frame.span is None or list(frame.span) == frame.ids.tolist()
    assert (frame.live is None and all(live)) or frame.live.tolist() == live
    for block in reversed(blocks):
        block.__exit__()
    assert ex.frame.ids.tolist() == list(range(start, start + n))


def _coordinates(ids: Tensor, sizes: list[int]) -> list[list[int]]:
    columns = []
    for size in reversed(sizes):
        columns.insert(0, ids % size)
        ids = ids // size
    return torch.stack(columns, 1).tolist()


def test_ids_stay_a_range_until_a_strategy_picks_among_items() -> None:
    ex = Execution(Compaction())
    ex.frame = Frame.root(2, 4, 10, torch.device("cpu"))
    assert ex.frame.span == range(2, 6)
    with ex.narrow(slice(1, 3)), ex.only(torch.tensor([True, False])), ex.at(1, 3):
        assert ex.frame.span == range(10, 16, 3)
        with ex.narrow(torch.tensor([0])):
            assert ex.frame.span is None
    with ex.spread(5), ex.at(0, 2):
        assert ex.frame.span == range(20, 60, 2)
        with ex.spread(2):  # pairs, with gaps between them: no range
            assert ex.frame.span is None


@pytest.mark.parametrize(("start", "items"), [(-1, 9), (7, 9), (0, 2)])
def test_a_batch_outside_the_stream_is_refused(start: int, items: int) -> None:
    net, (x,) = make("fixed_loop", 3)
    with pytest.raises(ValueError, match=f"3 samples from {start} on lies outside a stream of {items}"):
        Execution(Compaction()).run(net, x, start=start, items=items)


def test_a_block_is_left_after_an_error() -> None:
    ex = Execution(Compaction())
    before = ex.frame
    with pytest.raises(ZeroDivisionError), ex.narrow(slice(0, 1)), ex.spread(2):
        1 / 0  # noqa: B018
    assert ex.frame is before


@pytest.mark.parametrize(("name", "strategy"), accepted())
@torch.inference_mode()
def test_no_ids_are_worked_out_unless_they_are_needed(
    name: str, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, args = make(name)
    asked = []
    lazy = Frame.ids

    def ids(frame: Frame) -> Tensor:
        asked.append(frame)
        return lazy.__get__(frame)

    monkeypatch.setattr(Frame, "ids", property(ids))
    Execution(STRATEGIES[strategy]()).run(net, *args)
    assert not asked
    Execution(STRATEGIES[strategy](), record=True).run(net, *args)
    assert bool(asked) == (name != "fixed_loop")  # the only one without a decision


class Nested(nn.Module):
    """A Skip in a Loop in an Each, on x that says where it is: 100 * sample + 10 * token; a step adds 1."""

    def __init__(self) -> None:
        super().__init__()
        self.skip = Skip("skip", lambda x, c: (_odd(x), c), nn.Identity())
        self.route = Route("route", lambda x: torch.stack([-_odd(x), _odd(x), _third(x)], 1), [None] * 3)
        halt = Loop("loop", self.step, lambda a, s, k: (a // 100 + k) % 4 == 3, 3)
        self.each = Each(halt)

    def step(self, x: Tensor, k: int) -> Tensor:
        x, _ = self.skip(x + 1)
        return self.route(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.each(x)


def _odd(x: Tensor) -> Tensor:
    return (x // 100 + x // 10 + x) % 2 * 2 - 1


def _third(x: Tensor) -> Tensor:
    return (x % 3 == 0) * 5.0


@pytest.mark.parametrize("strategy", DYNAMIC)
@torch.inference_mode()
def test_a_skip_in_a_loop_in_an_each_is_addressed_by_sample_token_and_step(strategy: str) -> None:
    samples, tokens, steps = 5, 2, 3
    x = torch.tensor([[100.0 * s + 10 * t for t in range(tokens)] for s in range(samples)])
    ex = Execution(STRATEGIES[strategy](), record=True)
    for first, part in ((0, x[:2]), (2, x[2:3]), (3, x[3:])):  # in batches
        y = ex.run(Nested(), part, start=first, items=samples)
    assert ex.trace is not None
    expected = Trace(items=samples)
    for s in range(samples):
        for t in range(tokens):
            for k in range(steps):
                here = torch.tensor([x[s, t] + k + 1])
                only, at = (samples, tokens, steps), torch.tensor([(s * tokens + t) * steps + k])
                expected.record("skip", only, at, None, _odd(here) > 0)
                scores = torch.stack([-_odd(here), _odd(here), _third(here)], 1)
                expected.record("route", only, at, None, scores.topk(1).indices)
                halts = (here // 100 + k) % 4 == 3
                if k < steps - 1:
                    expected.record("loop", only, at, None, halts)
                if halts:
                    break
        y_here = here
    assert ex.trace == expected
    assert y[-1, -1] == y_here


class Twice(nn.Module):
    """One point visited twice in a forward, told apart by a coordinate."""

    def __init__(self) -> None:
        super().__init__()
        self.skip = Skip("s", lambda x, c: (x[:, 0], c), Negate())

    def forward(self, x: Tensor) -> Tensor:
        ex = current()
        for k in range(2):
            with ex.at(k, 2):
                x, _ = self.skip(x)
        return x


class Negate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return -x


@torch.inference_mode()
def test_visits_of_one_point_are_told_apart() -> None:
    ex = Execution(Compaction(), record=True)
    ex.run(Twice(), torch.tensor([[1.0], [-1.0]]))
    assert ex.trace is not None
    assert ex.trace.entries["s", (2,)].value.tolist() == [True, False, False, False]


def record(net: nn.Module, *args: Any) -> Trace:
    ex = Execution(Masking(), record=True)
    ex.run(net, *args)
    assert ex.trace is not None
    return ex.trace


class One(nn.Module):
    """y = 10 x where x > 0, else x; for an answer without the carry."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.skip = Skip("s", self.gate, TenTimes())

    def gate(self, x: Tensor, carry: Any) -> tuple[Tensor, Any]:
        self.calls += 1
        return x[:, 0], carry

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x)[0]


class TenTimes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 10 * x


X = torch.tensor([[1.0], [-2.0], [3.0]])


def test_replayed_decisions_are_used_and_the_gate_is_paid_for() -> None:
    net = One()
    none = edge(record(net, X), net, "none")
    net.calls = 0
    assert Execution(Compaction(), replay=none).run(net, X).tolist() == X.tolist()
    assert net.calls == 1


def test_a_replayed_trace_is_of_this_many_items() -> None:
    net = One()
    with pytest.raises(ValueError, match="a stream of 3 items, not of 2"):
        Execution(Compaction(), replay=record(net, X)).run(net, X[:2])


def test_a_chosen_decision_replaces_the_rule() -> None:
    net = One()
    flip = Execution(Compaction(), choose=lambda point, scores: scores < 0)
    assert flip.run(net, X).tolist() == [[1], [-20], [3]]
    keep = Execution(Compaction(), choose=lambda point, scores: None)
    assert keep.run(net, X).tolist() == [[10], [-2], [30]]


def test_an_observer_sees_every_decision_with_its_graph() -> None:
    seen: list[Any] = []
    scale = torch.ones(1, requires_grad=True)
    Execution(Masking(), observe=lambda *what: seen.append(what)).run(net := One(), X * scale)
    ((point, scores, decision),) = seen
    assert point is net.skip
    assert scores.requires_grad
    assert decision.tolist() == [True, False, True]


class Marks:
    """A profile that keeps every phase."""

    def __init__(self) -> None:
        self.open: list[Any] = []
        self.seen: list[Any] = []

    def enter(self, phase: str, point: str | None, index: int | None) -> None:
        self.open.append(phase)
        self.seen.append((phase, point, index))

    def exit(self) -> None:
        self.open.pop()


@pytest.mark.parametrize(("name", "strategy"), accepted())
@torch.inference_mode()
def test_phases_open_and_close_and_name_their_point(name: str, strategy: str) -> None:
    net, args = make(name)
    marks = Marks()
    Execution(STRATEGIES[strategy](), profile=marks).run(net, *args)
    assert not marks.open
    assert {phase for phase, _, _ in marks.seen} <= {"decide", "gather", "body", "scatter", "sync", "head"}
    assert all(point is not None for phase, point, _ in marks.seen if phase in {"decide", "body", "head"})


def test_outside_any_execution_a_point_is_its_static_twin() -> None:
    net = One()
    assert current() is None
    assert net(X).tolist() == [[10], [-20], [30]]
    assert net.calls == 0


def test_outside_is_left_again() -> None:
    seen = []

    class Look(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with outside():
                seen.append(current())
            seen.append(current())
            return x

    ex = Execution(Compaction())
    ex.run(Look(), X)
    assert seen == [None, ex]
    assert current() is None


def test_an_execution_ends_with_an_error_too() -> None:
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        Execution(Compaction()).run(Fails(), X)
    assert current() is None
