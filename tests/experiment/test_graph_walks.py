"""T(n) of a network that is one graph: which items it is called with, and what a call takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dynbench import devices
from dynbench.experiment import Options, ways
from dynbench.experiment.build import Prepared, prepare
from dynbench.experiment.graph_walks import FEW_CALLS, GraphWalker
from dynbench.experiment.spec import load_spec
from dynbench.experiment.walks import regions_of
from dynbench.graph import Session

TINY = Path(__file__).parent / "tiny"


@pytest.fixture(scope="module")
def tiny() -> Prepared:
    return prepare(load_spec(str(TINY / "tiny.toml")), Options())


class Clock:
    """Of a device on which the first call of a graph takes 5 ms, and every later one 1 ms."""

    def __init__(self) -> None:
        self.now_ns, self.calls = 0, 0

    def clock_ns(self) -> int:
        """Asked before and after each call."""
        ends = self.calls % 2
        if ends:
            first = self.calls // 2 % (1 + FEW_CALLS) == 0
            self.now_ns += 5_000_000 if first else 1_000_000
        self.calls += 1
        return self.now_ns


def walker(p: Prepared, batch_size: int) -> GraphWalker:
    (source,) = (s for s in p.sources if s.decisions.label == "learned")
    (arm,) = (a for a in ways.dynamic_ways(p, source) if a.control == "graph")
    return GraphWalker(p, source, arm, batch_size, [r.name for r in regions_of(p.model, p)])


@pytest.mark.parametrize(("batch_size", "sizes"), [(1, [1]), (4, [1, 2, 4])])
def test_a_graph_takes_the_mean_of_a_pass_in_which_the_first_call_finds_other_caches(
    tiny: Prepared, batch_size: int, sizes: list[int]
) -> None:
    device: Any = Clock()
    with torch.inference_mode():
        walk = walker(tiny, batch_size)
        try:
            for _ in range(3):
                walk.some([1, 2, 4], device)
            found = walk.network()
        finally:
            walk.close()
    assert found.control == "graph" and found.single == (batch_size == 1)
    assert {"moving", "points"} <= {part.role for part in found.parts}
    for n in sizes:
        calls = -(-tiny.items // n)
        assert walk._whole[n] == [pytest.approx((5_000 + (calls - 1) * 1_000) / calls)] * 3  # us
    between = next(part for part in found.parts if part.role == "points")
    assert between.sizes == sizes and all(0 < us < 5_000 for us in between.us)


def test_a_graph_is_walked_over_the_stream_from_its_beginning_again(
    tiny: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    feeds = Session.feeds

    def seen(self: Session, x: torch.Tensor, trace: Any = None, start: int = 0) -> Any:
        asked.append((start, len(x)))
        assert torch.equal(x, tiny.inputs[start : start + len(x)])
        return feeds(self, x, trace, start)

    with torch.inference_mode():
        walk = walker(tiny, 4)
        try:
            monkeypatch.setattr(Session, "feeds", seen)
            for _ in range(6):
                walk.some([3], devices.device("cpu"))
        finally:
            walk.close()
    fit = tiny.items // 3
    assert asked == [(3 * (i % fit), 3) for i in range(6 * (1 + FEW_CALLS))] and len(asked) > fit
