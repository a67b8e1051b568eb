"""Evaluation of networks that skip blocks, for their cards: accuracy, computation, dependence on the input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from dynbench.dynamic import Skip, Trace
from dynbench.models.accounting import static_macs
from dynbench.strategies import Masking
from dynbench.training.evaluation import accuracy, recorded, with_decisions
from dynbench.training.session import Session

Accounted = Callable[[Any, Trace, tuple[int, ...]], tuple[float, str]]
ALWAYS, NEVER = 0.98, 0.02  # a block run by a larger, or smaller, share of inputs counts as run by all, or none


class Skipping(Protocol):
    """A network of Skips."""

    skips: list[Skip]

    def __call__(self, x: Tensor) -> Tensor:
        """The answers."""


def evaluate(session: Session, net: nn.Module, accounted: Accounted, always: int = 0) -> dict[str, Any]:
    """For the card, on the test part.

    Args:
        session: has the inputs.
        net: a network with `skips`.
        accounted: the paper's counting rule.
        always: number of blocks without a decision, which run for every input.

    Returns:
        Accuracy; computation as the paper counts it, relative to the static twin; how often each block runs; how
        decisions vary between inputs; and the accuracy if each input runs the blocks of another one, which is lower as
        far as decisions fit the input.
    """
    x, y = session.tensors(session.inputs("test"))
    outputs, trace = recorded(net, x, Masking())
    shape = tuple(x.shape[1:])
    macs, rule = accounted(net, trace, shape)
    keep = {skip.name: trace.entries[skip.name, ()].value for skip in cast(Skipping, net).skips}  # [n] bool each
    of_another = {name: value.roll(-7) for name, value in keep.items()}
    table = torch.stack(list(keep.values()))  # [N, n]
    rates, blocks = table.double().mean(1), (table.sum(0) + always).double()
    return {
        "accuracy": accuracy(outputs, y),
        "computation": round(macs / static_macs(net, shape), 5),
        "computation_rule": rule,
        "keep_rates": dict(zip(keep, [round(rate, 4) for rate in rates.tolist()], strict=True)),
        "gates_that_depend_on_the_input": int(((rates > NEVER) & (rates < ALWAYS)).sum()),
        "accuracy_with_the_decisions_of_another_input": accuracy(with_decisions(net, x, Masking(), of_another), y),
        "distinct_paths": len({tuple(path) for path in table.T.tolist()}),
        "blocks_run": {
            "mean": round(blocks.mean().item(), 3),
            "std": round(blocks.std().item(), 3),
            "of": len(table) + always,
        },
    }
