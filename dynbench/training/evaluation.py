"""The evaluation of trained networks, for their model cards."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from dynbench.dynamic import DecisionPoint, Execution, Strategy, Trace

BATCH = 250
STORED = torch.float16  # halves the files of weights; converted when they are loaded


@torch.inference_mode()
def logits(run: Callable[[Tensor], Tensor], x: Tensor, batch_size: int = BATCH) -> Tensor:
    """The answers of a network to all of x, batch by batch, in float32."""
    return torch.cat([run(part).float() for part in x.split(batch_size)])


def accuracy(outputs: Tensor, labels: Tensor) -> float:
    """Share of right answers: logits [n, K], or [n, T, K] with labels [n, T]."""
    return round((outputs.argmax(-1) == labels).double().mean().item(), 5)


@torch.inference_mode()
def recorded(net: nn.Module, x: Tensor, strategy: Strategy, batch_size: int = BATCH) -> tuple[Tensor, Trace]:
    """The answers of a network to all of x in float32, and its decisions."""
    ex = Execution(strategy, record=True)
    starts = range(0, len(x), batch_size)
    parts = [ex.run(net, x[i : i + batch_size], start=i, items=len(x)).float() for i in starts]
    assert ex.trace is not None
    return torch.cat(parts), ex.trace


@torch.inference_mode()
def with_decisions(
    net: nn.Module, x: Tensor, strategy: Strategy, decisions: Mapping[str, Tensor], batch_size: int = BATCH
) -> Tensor:
    """The answers of a network to all of x in float32, under given decisions.

    Args:
        net: whose points are not nested in each other.
        x: [n, ...].
        strategy: of the execution.
        decisions: of every point, by name, [n, ...].
        batch_size: inputs at once.
    """
    parts = []
    for i in range(0, len(x), batch_size):

        def choose(point: DecisionPoint, scores: Tensor, rows: slice = slice(i, i + batch_size)) -> Tensor:
            return decisions[point.name][rows]

        parts.append(Execution(strategy, choose=choose).run(net, x[i : i + batch_size]).float())
    return torch.cat(parts)


def dtype_name(dtype: torch.dtype) -> str:
    """'float16', for a model card."""
    return str(dtype).removeprefix("torch.")


def round_parameters(net: nn.Module, dtype: torch.dtype = STORED) -> None:
    """Rounds the parameters to the values that they will have when loaded, so that a card describes its file."""
    for p in net.parameters():
        p.data = p.data.to(dtype).to(p.dtype)
