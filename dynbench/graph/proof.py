"""A graph is proved before it is timed: the same answers and the same decisions as `per_sample`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dynbench.dynamic import Trace
from dynbench.graph.compile import Graph
from dynbench.graph.right import Answered, Right
from dynbench.graph.session import Session

SIZES = (1, 2, 7, 32)
TOLERANCE = 1e-4  # of the answer's largest value


@dataclass(frozen=True)
class Check:
    """One comparison with `per_sample`.

    Attributes:
        decisions: 'learned', or replayed ones: 'replayed', 'none', 'all', 'one'.
        items: of the batch.
        error: largest difference of the answers, relative to the largest value; infinite where one is no number.
        tolerance: the error up to which they count as the same.
        same_path: whether the same items were asked at each point.
        differ: share of the model's own decisions that differ, where they were not replayed.
    """

    decisions: str
    items: int
    error: float
    tolerance: float
    same_path: bool
    differ: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether it is the same network."""
        return self.error <= self.tolerance and self.same_path and self.differ == 0


@torch.no_grad()
def prove(
    model: nn.Module,
    graph: Graph,
    x: Tensor,
    sizes: tuple[int, ...] = SIZES,
    tolerance: float = TOLERANCE,
    right: Right | None = None,
) -> list[Check]:
    """Compares a graph with `per_sample` at several batch sizes.

    Args:
        model: what the graph was made of, on the device of x: there the graph is run.
        graph: learned, or with replayed decisions.
        x: items, as many as the largest batch.
        sizes: of batches; of a graph for a single item only 1.
        tolerance: the error up to which an answer counts as the same.
        right: answers for x that are known already; others are added.

    Raises:
        CannotTrace: ONNX Runtime cannot load or run the graph.
    """
    found, session, right = [], Session(graph, device=x.device), right or Right(model, x)
    sizes = (1,) if graph.single else sizes
    right.of(max(sizes))  # the others are its beginnings
    for n in sizes:
        own = right.of(n)
        got, said = session.run(x[:n], own.taken if graph.replays else None)
        if not graph.replays:
            found.append(_check(tolerance, "learned", n, got, own, said, own=True))
            continue
        found.append(_check(tolerance, "replayed", n, got, own, said, own=False))
    for kind in right.kinds() if graph.replays else ():
        right.of(max(sizes), kind)
        for n in sizes:
            forced = right.of(n, kind)
            got, said = session.run(x[:n], forced.given)
            found.append(_check(tolerance, kind, n, got, forced, said, own=False))
    return found


def _check(
    tolerance: float,
    kind: str,
    n: int,
    got: list[Tensor],
    right: Answered,
    said: Trace,
    *,
    own: bool,
) -> Check:
    error = max(map(_error, got, right.answer), default=0.0) if len(got) == len(right.answer) else math.inf
    mine, theirs = said.reached_only(), right.taken.reached_only()
    same = mine.keys() == theirs.keys() and all(torch.equal(mine[k][1], theirs[k][1]) for k in mine)
    if not own or not same:
        return Check(kind, n, error, tolerance, same)
    asked = sum(int(reached.sum()) for _, reached in theirs.values())
    wrong = sum(_count_different(mine[k][0], theirs[k][0], tolerance) for k in theirs)
    return Check(kind, n, error, tolerance, same, wrong / max(asked, 1))


def _count_different(a: Tensor, b: Tensor, tolerance: float) -> int:
    """Decisions [n, ...] that differ; those that are real numbers, by more than a share of the largest."""
    right = (a - b).abs() <= tolerance * b.abs().max() if a.is_floating_point() else a == b
    return int((~right).reshape(len(a), -1).any(1).sum())


def _error(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest finite value of b; infinite where no number says it."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return math.inf
    if not a.is_floating_point():
        return 0.0 if torch.equal(a, b) else math.inf
    finite = b.isfinite()
    if a.isnan().any() or b.isnan().any() or not torch.equal(a[~finite], b[~finite]):
        return math.inf
    if not finite.any():
        return 0.0
    scale = b[finite].abs().max().clamp(min=torch.finfo(b.dtype).tiny)
    return float((a[finite] - b[finite]).abs().max() / scale)
